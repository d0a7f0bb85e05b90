"""Tuned lens: one affine map a layer, from its stream to what the last layer makes of it.

The plain lens reads every layer as if it spoke the unembedding's language; a tuned lens (Belrose
et al. 2023, arXiv 2303.08112) translates first. Here the map of a layer is fitted in closed form,
by ridge regression of the last layer's stream, each divided by its root mean square, on this
layer's, over the tokens of training texts; its strength is chosen by the KL on the last quarter of
those tokens. How much better it reads is measured on texts that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from causal_interventions.logit_lens import divergence, streams_of
from mamba_mixers.weights import logits_of_stream
from suite_plumbing.progress import progress

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Strengths tried, in units of the mean eigenvalue of the streams' covariance."""

LEAST_TOKENS = 8


class Translator(NamedTuple):
    """The affine map of one layer."""

    weight: Tensor
    """(d_model, d_model) of a stream divided by its root mean square"""
    bias: Tensor
    """(d_model,)"""
    ridge: float
    """the strength chosen"""

    def __call__(self, stream: Tensor) -> Tensor:
        """The last layer's stream, up to its size, as this layer's (l, d_model) foretells it."""
        return _scaled(stream) @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Maps of every layer, and how both lenses read texts that no map was fitted to."""

    translators: list[Translator]
    """of the embedding, then of each layer"""
    kl_plain: list[float]
    """KL(final || plain lens) by the same, mean over held-out positions, nats"""
    kl_tuned: list[float]
    """KL(final || tuned lens)"""
    num_fitted: int
    """tokens that maps were fitted to"""
    num_held_out: int

    def to_dataframe(self) -> pd.DataFrame:
        """Columns layer ("embedding" before the first), kl_plain, kl_tuned, ridge."""
        table = pd.DataFrame(
            {
                "layer": ["embedding", *range(len(self.translators) - 1)],
                "kl_plain": self.kl_plain,
                "kl_tuned": self.kl_tuned,
                "ridge": [translator.ridge for translator in self.translators],
            }
        )
        return table.astype({"layer": object})


@torch.no_grad()
def tuned_lens(model: Any, texts: Sequence[Tensor], held_out: Sequence[Tensor]) -> TunedLens:
    """Fit a map for every layer on texts, each (1, l), and measure it on held-out ones.

    Raises ValueError for texts of fewer than ``LEAST_TOKENS`` tokens together,
    UnsupportedModelError as the lens. Cost: a forward pass of every text, and for every layer a
    decomposition (d_model, d_model) and the unembedding of a quarter of the training tokens for
    every strength.
    """
    fitted, measured = _streams(model, texts), _streams(model, held_out)
    if len(fitted[0]) < LEAST_TOKENS:
        raise ValueError(
            f"texts hold {len(fitted[0])} tokens; a tuned lens needs {LEAST_TOKENS} or more"
        )
    final = logits_of_stream(model, measured[-1]).log_softmax(-1)
    translators, plain, tuned = [], [], []
    for layer in progress(range(len(fitted)), desc="tuned lens", unit="layer"):
        translator = _fit(model, fitted[layer], fitted[-1])
        translators.append(translator)
        plain.append(_mean_kl(model, final, measured[layer]))
        tuned.append(_mean_kl(model, final, translator(measured[layer])))
    return TunedLens(translators, plain, tuned, len(fitted[0]), len(measured[0]))


def _streams(model: Any, texts: Sequence[Tensor]) -> list[Tensor]:
    """By layer, the streams (N, d_model) of the tokens of all texts."""
    by_text = [streams_of(model, ids)[0] for ids in texts]
    return [torch.cat(streams) for streams in zip(*by_text, strict=True)]


def _scaled(stream: Tensor) -> Tensor:
    """Divided by its root mean square, by token."""
    return stream / stream.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def _fit(model: Any, stream: Tensor, last: Tensor) -> Translator:
    """The map of the strength whose KL on the last quarter of the tokens is least."""
    cut = len(stream) - len(stream) // 4
    x, y = _scaled(stream), _scaled(last)
    final = logits_of_stream(model, last[cut:]).log_softmax(-1)
    tried = [
        (_mean_kl(model, final, found(stream[cut:])), found.ridge)
        for found in _ridges(x[:cut], y[:cut], RIDGES)
    ]
    return _ridges(x, y, [min(tried)[1]])[0]


def _ridges(x: Tensor, y: Tensor, strengths: Sequence[float]) -> list[Translator]:
    """Ridge regression of y on x, with an intercept that is not shrunk."""
    mean_x, mean_y = x.double().mean(0), y.double().mean(0)
    centred = x.double() - mean_x
    eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred)
    product = vectors.mT @ (centred.mT @ (y.double() - mean_y))
    unit = float(eigenvalues.clamp_min(0.0).mean()) + 1e-12
    found = []
    for strength in strengths:
        shrunk = product / (eigenvalues.clamp_min(0.0) + strength * unit)[:, None]
        weight = vectors @ shrunk
        found.append(Translator(weight.to(x), (mean_y - mean_x @ weight).to(x), strength))
    return found


def _mean_kl(model: Any, final: Tensor, stream: Tensor) -> float:
    log_p = logits_of_stream(model, stream).to(final).log_softmax(-1)
    return float(divergence(final, log_p).mean())
