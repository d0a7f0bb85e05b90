"""What an attribution explains: a text, a scalar f of the logits on it, and a stand-in for a token.

A token is taken away by putting the embedding of a baseline in its place; what that does to f
depends on the baseline, and figures made with another one do not compare. The methods that share
f out among the tokens are in ``input_attribution``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.targets import PinnedTarget, Target
from mamba_mixers.running import fast_scan
from mamba_mixers.weights import (
    check_has_logits,
    embeddings_of,
    input_embeddings,
    num_embeddings,
)
from suite_plumbing.arguments import validate_choice, validate_int
from suite_plumbing.errors import AnalysisError
from suite_plumbing.model_inputs import token_ids
from suite_plumbing.models import execution_device
from suite_plumbing.precision import in_full_precision
from suite_plumbing.texts import ids_of_tokens

BASELINES = ("mean", "padding", "zero")
"""Named baselines, beside any token id: the mean of all token embeddings; the padding token (else
the end of text, else token 0); the zero vector.

A token that ends texts may make a model forget what came before it, so that replacing one token by
it takes all earlier ones away too; the mean stands for no token in particular. At the zero vector
the norms are not smooth, and integrated gradients do not converge in any practical number of
steps: their completeness gap shows it."""

Baseline = str | int | Sequence[int] | Tensor
"""One of BASELINES, a token id, or as many ids as the text has: tokens of another text, each in the
place of the one that it stands in for."""


@dataclass(frozen=True, eq=False)
class Explained:
    """One text, the scalar f explained on it, and what stands in for a token taken away."""

    model: PreTrainedModel
    """in eval mode"""
    input_ids: Tensor
    """(1, l)"""
    target: PinnedTarget
    """f, its tokens fixed on the unperturbed text"""
    f: float
    """f of the unperturbed text, in the target's unit (nats, or the unit of logits)"""
    embeddings: Tensor
    """(1, l, d_model) of the tokens, detached"""
    baseline: Tensor
    """(d_model,) embedding that replaces that of a token taken away, or (l, d_model), one each"""
    baseline_name: str
    """ "mean", "zero", "token <id>", or "another text" """
    num_steps: int
    """nodes of the integrated gradients' quadrature"""
    batch_size: int
    """variants of the text per forward pass"""
    seed: int
    """of the method "random" """

    @property
    def num_tokens(self) -> int:
        """l."""
        return self.input_ids.shape[1]

    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits (k, 1 or l, V) of variants (k, l, d_model); one position where f reads one."""
        keep = self.target.position if self.target.reads_one_position else 0
        return self.model(
            inputs_embeds=embeddings, use_cache=False, logits_to_keep=keep, return_dict=True
        ).logits

    def f_of_logits(self, logits: Tensor) -> Tensor:
        """f (k,) of what :meth:`logits` gives."""
        # Not every transformers release has logits_to_keep for a Mamba: those return all l.
        kept = self.target.reads_one_position and logits.shape[1] == 1
        return (self.target.for_kept_logits() if kept else self.target)(logits)

    @torch.no_grad()
    def values(self, keep: Tensor) -> Tensor:
        """f (k,), float64, of variants of the text: tokens where ``keep`` (k, l) is False replaced.

        A replaced token keeps its place: distances to the other tokens stay what they were.
        Cost: k forward passes over l tokens, ``batch_size`` at a time.
        """
        values = []
        with fast_scan(self.model):
            for rows in keep.to(self.embeddings.device).split(self.batch_size):
                variants = torch.where(rows[..., None], self.embeddings, self.baseline)
                values.append(self.f_of_logits(self.logits(variants)).double().cpu())
        return torch.cat(values)


class Scores(NamedTuple):
    """What a method returns."""

    tokens: Tensor
    """(l,)"""
    total: float | None = None
    """what tokens and bias together are compared with; None where a sum means nothing"""
    bias: float = 0.0
    """relevance of the model's additive constants"""
    reason: str | None = None
    """why the scores say nothing: they are all 0 then"""


@torch.inference_mode(False)
@in_full_precision
def explain(
    model: PreTrainedModel,
    input_ids: Sequence[int] | Tensor,
    target: Target,
    *,
    baseline: Baseline = "mean",
    num_steps: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Explained:
    """Fix what is explained on one text (l,) of token ids: f's tokens, its value, the baseline.

    ``baseline``: see ``Baseline``; "mean" leaves out ids that ``tokenizer``, if
    given, has no token for. Raises ValueError for a bad argument, and for a target that does not
    fit the text, UnsupportedModelError for a model without logits, and AnalysisError where f is no
    number. Cost: one forward pass.
    """
    check_has_logits(model)
    ids = _checked_ids("input_ids", input_ids, num_embeddings(model))
    ids = ids.to(execution_device(model))
    num_steps = validate_int("num_steps", num_steps, 1)
    batch_size = validate_int("batch_size", batch_size, 1)
    seed = validate_int("seed", seed, 0)
    replacing = _replacing_ids(model, baseline, ids)
    with torch.no_grad(), fast_scan(model):
        embeddings = input_embeddings(model, ids)
        logits = model(inputs_embeds=embeddings, use_cache=False, return_dict=True).logits
        pinned = target.pin(logits, ids)
        f = float(pinned(logits))
        if replacing is not None:
            vector, name = input_embeddings(model, replacing)[0], "another text"
        else:
            vector, name = _baseline(model, baseline, tokenizer)
    if not math.isfinite(f):
        raise AnalysisError(f"the target is {f} on this text: the model's logits overflow")
    return Explained(model, ids, pinned, f, embeddings, vector, name, num_steps, batch_size, seed)


def _checked_ids(name: str, input_ids: Sequence[int] | Tensor, vocabulary: int) -> Tensor:
    """(1, l) token ids of any integer dtype as int64; a copy, for autograd keeps them."""
    ids = token_ids(name, input_ids, vocabulary)
    if len(ids) != 1:
        raise ValueError(f"{name} holds {len(ids)} texts; pass one, (l,)")
    return ids.clone()


def _replacing_ids(model: PreTrainedModel, baseline: Baseline, ids: Tensor) -> Tensor | None:
    """(1, l) ids of a baseline that has one for each token; None for the others."""
    if isinstance(baseline, str) or not isinstance(baseline, (Sequence, Tensor)):
        return None
    given = _checked_ids("baseline", baseline, num_embeddings(model)).to(ids.device)
    if given.shape != ids.shape:
        raise ValueError(
            f"baseline has {given.shape[1]} token ids, the text {ids.shape[1]}; pass as many"
        )
    return given


def _baseline(
    model: PreTrainedModel, baseline: Baseline, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Tensor, str]:
    """The embedding that replaces a token, and its name."""
    size = num_embeddings(model)
    if baseline == "padding":
        config = model.config
        candidates = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
        baseline = next((x for x in candidates if isinstance(x, int)), 0)
    if not isinstance(baseline, (str, bool)):
        number = validate_int("baseline", baseline, 0, size - 1)
        return embeddings_of(model, [number])[0], f"token {number}"
    validate_choice("baseline", baseline, (*BASELINES, f"a token id from 0 to {size - 1}"))
    mean = embeddings_of(model, ids_of_tokens(tokenizer, size)).mean(0)
    return (mean if baseline == "mean" else torch.zeros_like(mean)), str(baseline)
