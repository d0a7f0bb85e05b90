"""Logit lens: what the final norm and the unembedding read in the stream after every layer.

After each layer l the stream x_l(t) is given to the model's own final norm and unembedding, as if
the later layers did not exist (nostalgebraist 2020, Interpreting GPT: the logit lens); so is each
mixer's own write. Early layers need not speak the unembedding's language: a tuned lens
(``tuned_lens``) learns to translate, and the plain one misleads there. Two nulls stand beside it:
the same with the final distribution of another position of the text, which is what a lens gets
right by knowing nothing but which tokens are frequent; and an untrained twin of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mamba_mixers.recording import block_output_scale, record_streams
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import blocks_of, find_mixers
from mamba_mixers.weights import final_norm, logits_of_stream
from suite_plumbing.arguments import torch_rng

STREAMS = ("residual", "mixer")
"""The stream after a layer, and what its mixer alone wrote."""


class LensReading(NamedTuple):
    """What one stream of one layer says of every position's next token; (l,) tensors."""

    kl: Tensor
    """KL(model's final distribution || lens), nats"""
    kl_permuted: Tensor
    """the same with the final distribution of another position, drawn at random"""
    entropy: Tensor
    """of the lens, nats"""
    top: Tensor
    """id of its likeliest token"""
    final_rank: Tensor
    """rank from 0 of the model's own likeliest token in the lens"""
    final_log_p: Tensor
    """its log-probability in the lens, nats"""
    next_rank: Tensor
    """rank from 0 of the token that really follows; nan at the last position"""
    next_log_p: Tensor
    """its log-probability, nats; nan at the last position"""


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The lens after every layer of one text."""

    input_ids: Tensor
    """(l,)"""
    residual: list[LensReading]
    """of the embedding, then after each layer"""
    mixer: dict[int, LensReading]
    """of what each mixer wrote, by layer"""
    twin: LogitLens | None = None
    """the same of an untrained twin of the model"""

    @property
    def settled(self) -> Tensor:
        """(l,) first layer from which on the likeliest token is the model's own; -1 where the
        embedding already says it."""
        agrees = torch.stack([r.top for r in self.residual]) == self.residual[-1].top
        layers_of_agreement = agrees.flip(0).long().cumprod(0).sum(0)
        return len(self.residual) - 1 - layers_of_agreement

    def to_dataframe(self) -> pd.DataFrame:
        """Means over positions: one row a stream and layer ("embedding" before the first).

        Columns layer, stream, kl, kl_permuted, kl_twin (nan without a twin), entropy, agrees (the
        share of positions whose likeliest token is the model's own), final_rank and next_rank
        (medians), final_log_p, next_log_p.
        """
        last = self.residual[-1].top
        twin = {} if self.twin is None else dict(_named_readings(self.twin))
        rows = [
            {
                "layer": layer,
                "stream": stream,
                **_means(reading, last),
                "kl_twin": float(twin[layer, stream].kl.mean()) if twin else math.nan,
            }
            for (layer, stream), reading in _named_readings(self)
        ]
        return pd.DataFrame(rows).astype({"layer": object})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the means by layer, and by position the layer from which the token stays."""
        rows = self.to_dataframe().to_dict("records")
        return {
            "layers": [
                {name: None if isinstance(x, float) and math.isnan(x) else x
                 for name, x in row.items()}
                for row in rows
            ],
            "settled": self.settled.tolist(),
        }  # fmt: skip

    def at(self, position: int) -> pd.DataFrame:
        """One position: one row a stream and layer, the columns of ``LensReading``."""
        rows = [
            {"layer": layer, "stream": stream,
             **{name: values[position].item() for name, values in reading._asdict().items()}}
            for (layer, stream), reading in _named_readings(self)
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"layer": object})


@torch.no_grad()
def logit_lens(model: Any, input_ids: Tensor, *, seed: int = 0) -> LogitLens:
    """Read the streams of one text (1, l) by the model's own final norm and unembedding.

    ``seed`` draws the positions of ``kl_permuted``. Raises UnsupportedModelError for a model
    without logits or without a final RMS norm. Cost: a forward pass, and for every layer the
    unembedding of two streams.
    """
    streams, written = streams_of(model, input_ids)
    final = logits_of_stream(model, streams[-1]).log_softmax(-1)
    other = _other_positions(input_ids.shape[1], seed).to(final.device)
    following = torch.cat([input_ids[0, 1:], input_ids.new_full((1,), -1)])

    def read(stream: Tensor) -> LensReading:
        return _reading(logits_of_stream(model, stream), final, other, following)

    residual = [read(stream) for stream in streams]
    mixer = {layer: read(stream) for layer, stream in written.items()}
    return LogitLens(input_ids[0].cpu(), residual, mixer)


@torch.no_grad()
def streams_of(model: Any, input_ids: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Streams (l, d_model) of one text: before the first layer and after each; what mixers wrote.

    Raises UnsupportedModelError as ``final_norm``. Cost: a forward pass by the suite's scan.
    """
    final_norm(model)
    written: dict[int, Tensor] = {}
    sites = find_mixers(model)

    def observe(layer: int, replay: Any) -> None:
        written[layer] = replay.output[0] * block_output_scale(sites[layer])

    with fast_scan(model, observe=observe):
        around = record_streams(model, range(len(blocks_of(model))), input_ids)
    return [around[0][0][0], *(around[layer][1][0] for layer in sorted(around))], written


def divergence(final: Tensor, log_p: Tensor) -> Tensor:
    """KL(final || lens) by position, of log-probabilities (l, V), nats."""
    return (final.exp() * (final - log_p)).sum(-1)


def _reading(logits: Tensor, final: Tensor, other: Tensor, following: Tensor) -> LensReading:
    log_p = logits.to(final).log_softmax(-1)
    known = following >= 0
    final_log_p, final_rank = _standing(log_p, final.argmax(-1))
    next_log_p, next_rank = _standing(log_p, following.clamp_min(0))
    found = (
        divergence(final, log_p),
        divergence(final[other], log_p),
        -(log_p.exp() * log_p).sum(-1),
        log_p.argmax(-1),
        final_rank,
        final_log_p,
        next_rank.double().masked_fill(~known, math.nan),
        next_log_p.masked_fill(~known, math.nan),
    )
    return LensReading(*(x.cpu() for x in found))


def _standing(log_p: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (l,) of these tokens, and how many tokens are likelier."""
    own = log_p.gather(1, tokens[:, None])
    return own[:, 0], (log_p > own).sum(1)


def _other_positions(length: int, seed: int) -> Tensor:
    """A position other than its own for each of ``length``; of a single one itself."""
    order = torch.randperm(length, generator=torch_rng(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


Name = tuple[int | str, str]


def _named_readings(lens: LogitLens) -> list[tuple[Name, LensReading]]:
    """Every reading by layer and stream, in the order of the model."""
    named: list[tuple[Name, LensReading]] = [(("embedding", "residual"), lens.residual[0])]
    for layer, reading in enumerate(lens.residual[1:]):
        if layer in lens.mixer:
            named.append(((layer, "mixer"), lens.mixer[layer]))
        named.append(((layer, "residual"), reading))
    return named


def _means(reading: LensReading, final_top: Tensor) -> dict[str, float]:
    ranks = {
        name: float(getattr(reading, name).double().nanmedian())
        for name in ("final_rank", "next_rank")
    }
    means = {
        name: float(getattr(reading, name).nanmean())
        for name in ("kl", "kl_permuted", "entropy", "final_log_p", "next_log_p")
    }
    return {**means, **ranks, "agrees": float((reading.top == final_top).double().mean())}
