"""What interventions in a Mamba do to its predictions: KL, loss, a chosen logit; neurons too.

Effects of the interventions of ``interventions`` on one text: a clean run and the rows of an
intervention start from the residual stream before the first edited layer, which no edit changes.
KL(clean || intervened) = sum_v p(v) (ln p(v) - ln q(v)) of the next-token distributions, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.interventions import LayerEdit, set_neuron
from causal_interventions.targets import PinnedTarget, Target
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import mixer_parameters
from ssm_measures.components import Capture, extracted_layer
from suite_plumbing.arguments import torch_rng, validate_int, whole_numbers
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device
from suite_plumbing.result_files import finite_or_none
from token_statistics.intervals import mean_interval

# Tokens, over the rows of a pass, and logits that it may give: both bound memory, not results.
_TOKENS_PER_PASS = 4096

_LOGITS_PER_PASS = 1 << 25


@dataclass(frozen=True, eq=False)
class InterventionEffects:
    """What interventions do to one text's predictions, one row an intervention; float64."""

    kl: Tensor
    """(rows, l) KL(clean || intervened) of the next-token distribution after each token, nats"""
    loss_change: Tensor
    """(rows, l) change of -ln p(next token), nats; nan after the last token"""
    target_change: Tensor | None
    """(rows,) target intervened minus clean; None without a target"""

    def to_dict(self) -> dict[str, Any]:
        """Means over the tokens of each row, for JSON."""
        target = self.target_change
        return {
            "kl": self.kl.mean(1).tolist(),
            "loss_change": [finite_or_none(x) for x in self.loss_change.nanmean(1).tolist()],
            "target_change": None if target is None else target.tolist(),
        }


@dataclass(frozen=True, eq=False)
class NeuronInterventions:
    """Effects of setting single neurons of a layer, beside random ones of the same norm.

    The norm of neuron i is that of what it writes to the residual stream over the text: the L2
    norm of its activations over tokens times that of its column of out_proj.
    """

    layer: int
    value: str
    """what each was set to; "tensor" for values of another text"""
    neurons: Tensor
    """(k,) channel numbers"""
    norms: Tensor
    """(k,)"""
    kl: Tensor
    """(k,) KL(clean || intervened), mean over tokens, nats"""
    loss_change: Tensor
    """(k,) change of the mean loss, nats"""
    random_neurons: Tensor
    """(k, r) drawn for each neuron, see :func:`matched_neurons`"""
    random_norms: Tensor
    """(k, r)"""
    random_kl: Tensor
    """(k, r)"""
    random_loss_change: Tensor
    """(k, r)"""

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Neuron by neuron, and the mean KL over that of the random ones with its 95 % interval
        over neurons (None, with the reason, for fewer than 5)."""
        excess = (self.kl - self.random_kl.mean(1)).numpy()
        mean, low, high, n, reason = mean_interval(excess, seed=seed)
        tensors = ("neurons", "norms", "kl", "loss_change", "random_neurons", "random_norms",
                   "random_kl", "random_loss_change")  # fmt: skip
        return {
            "layer": self.layer,
            "value": self.value,
            **{name: getattr(self, name).tolist() for name in tensors},
            "kl_excess": {"mean": mean, "low": low, "high": high, "n": n, "reason": reason},
        }


def intervention_effects(
    model: PreTrainedModel,
    captured: Capture,
    intervention: Mapping[int, LayerEdit],
    *,
    target: Target | None = None,
) -> InterventionEffects:
    """Effects of one intervention, in as many rows as it branches into, on one text.

    ``captured`` holds one text without padding and the first edited layer. Two clean runs of the
    same text differ in the rounding of their logits, about 1e-6, which is a KL of 1e-12. Raises
    ValueError for no edit, a batch, a layer without an SSM or not captured, and what the pieces
    themselves refuse. Cost: the layers from the first edited one on, for each row and once clean.
    """
    if not intervention:
        raise ValueError("intervention is empty; compose at least one piece")
    return _effects(model, _clean_run(model, captured, min(intervention), target), intervention)


def batched_effects(
    model: PreTrainedModel,
    captured: Capture,
    build: Callable[[Tensor], Mapping[int, LayerEdit]],
    choices: Sequence[int] | Tensor,
    *,
    target: Target | None = None,
) -> InterventionEffects:
    """Effects of ``build(part)`` for consecutive parts of ``choices`` (n, ...), as n rows.

    ``build`` makes one intervention of as many rows as the part has entries, always in the same
    layers: ``lambda tokens: reset_state(tokens, [3])``. Raises as :func:`intervention_effects`.
    """
    table = torch.as_tensor(choices)
    if table.dim() == 0 or len(table) == 0:
        raise ValueError("choices is empty; pass at least one")
    clean = _clean_run(model, captured, min(build(table[:1])), target)
    length, vocabulary = clean.log_p.shape
    per_pass = min(_TOKENS_PER_PASS // length, _LOGITS_PER_PASS // (length * vocabulary))
    parts = table.split(max(1, per_pass))
    effects = [_effects(model, clean, build(part)) for part in parts]
    targets = [one.target_change for one in effects if one.target_change is not None]
    return InterventionEffects(
        torch.cat([one.kl for one in effects]),
        torch.cat([one.loss_change for one in effects]),
        torch.cat(targets) if targets else None,
    )


def neuron_interventions(
    model: PreTrainedModel,
    captured: Capture,
    layer: int,
    neurons: Sequence[int],
    *,
    value: str | Tensor = "zero",
    num_random: int = 4,
    seed: int = 0,
) -> NeuronInterventions:
    """Effects of :func:`interventions.set_neuron` on each neuron alone, and on random ones.

    Raises ValueError for no neurons, one that does not exist, too few others to draw from, and as
    :func:`intervention_effects`. Cost: k (1 + num_random) rows at most, from this layer on.
    """
    norms = written_norms(model, captured, layer)
    chosen = torch.tensor(whole_numbers("neurons", neurons, 0, len(norms) - 1, empty=True))
    drawn = matched_neurons(norms, chosen.tolist(), num_random, seed=seed)
    each, index = torch.cat([chosen[:, None], drawn], 1).unique(return_inverse=True)
    found = batched_effects(
        model, captured, lambda part: set_neuron(layer, part[:, None], value), each
    )
    kl, loss = found.kl.mean(1)[index], found.loss_change.nanmean(1)[index]
    return NeuronInterventions(
        layer=layer,
        value=value if isinstance(value, str) else "tensor",
        neurons=chosen,
        norms=norms[chosen],
        kl=kl[:, 0],
        loss_change=loss[:, 0],
        random_neurons=drawn,
        random_norms=norms[drawn],
        random_kl=kl[:, 1:],
        random_loss_change=loss[:, 1:],
    )


def written_norms(model: PreTrainedModel, captured: Capture, layer: int) -> Tensor:
    """(d_inner,) L2 norm over tokens of what each neuron writes to the residual stream."""
    gated = extracted_layer(captured.components, layer, "capture").gated[0].double()
    columns = mixer_parameters(find_mixers(model)[layer]).out_weight.double().norm(dim=0)
    return gated.norm(dim=0) * columns


def matched_neurons(
    norms: Tensor, neurons: Sequence[int], num_random: int, *, seed: int = 0
) -> Tensor:
    """(k, num_random) neurons other than ``neurons``, at random among those of nearest norm.

    For each one ``num_random`` without replacement of the 4 num_random others whose norm (d_inner,)
    is nearest, by absolute difference; seeded. Raises ValueError for no neurons and for fewer
    others than ``num_random``.
    """
    num_random = validate_int("num_random", num_random, 1)
    others = sorted(set(range(len(norms))) - set(neurons))
    if not neurons or len(others) < num_random:
        raise ValueError(
            f"neurons names {len(neurons)} of {len(norms)}; pass at least one, and leave "
            f"{num_random} others to draw from"
        )
    generator = torch_rng(seed)
    pool = torch.tensor(others)
    drawn = []
    for neuron in neurons:
        near = pool[(norms[pool] - norms[neuron]).abs().argsort(stable=True)[: 4 * num_random]]
        drawn.append(near[torch.randperm(len(near), generator=generator)[:num_random]])
    return torch.stack(drawn)


class _CleanRun(NamedTuple):
    """A text's predictions from some layer on, without an intervention."""

    layer: int
    stream: Tensor  # (1, l, d_model) before the layer
    input_ids: Tensor  # (1, l)
    following: Tensor  # (l - 1,) next tokens
    log_p: Tensor  # (l, V) float64
    pinned: PinnedTarget | None
    f: float


@torch.no_grad()
def _clean_run(
    model: PreTrainedModel, captured: Capture, layer: int, target: Target | None
) -> _CleanRun:
    if len(captured.input_ids) != 1 or not bool(captured.attention_mask.all()):
        raise ValueError(
            f"captured has {len(captured.input_ids)} texts, or padding; pass captured.text(row)"
        )
    device = execution_device(model)
    stream = extracted_layer(captured.block_inputs, layer, "capture").to(device)
    ids = captured.input_ids.to(device)
    with fast_scan(model):
        logits = forward_from(model, layer, stream, ids)
    pinned = None if target is None else target.pin(logits, ids)
    f = math.nan if pinned is None else float(pinned(logits))
    log_p = logits[0].double().log_softmax(-1)
    if not bool(torch.isfinite(log_p).all()):
        raise AnalysisError(
            "the model's predictions are NaN or infinite without any intervention: they overflow "
            f"on this text in {str(model.dtype).removeprefix('torch.')}; run it in a wider dtype"
        )
    return _CleanRun(layer, stream, ids, ids[0, 1:], log_p, pinned, f)


@torch.no_grad()
def _effects(
    model: PreTrainedModel, clean: _CleanRun, intervention: Mapping[int, LayerEdit]
) -> InterventionEffects:
    with fast_scan(model, edits=intervention):
        logits = forward_from(model, clean.layer, clean.stream, clean.input_ids)
    p = clean.log_p.exp()
    clean_loss = _losses(clean.log_p, clean.following)
    kl, loss_change = [], []
    for row in logits:
        log_q = row.double().log_softmax(-1)
        # Rounding can leave a KL of equal distributions just below 0.
        kl.append((p * (clean.log_p - log_q)).sum(-1).clamp_min(0))
        loss_change.append(_losses(log_q, clean.following) - clean_loss)
    change = None if clean.pinned is None else (clean.pinned(logits).double() - clean.f).cpu()
    return InterventionEffects(torch.stack(kl).cpu(), torch.stack(loss_change).cpu(), change)


def _losses(log_p: Tensor, following: Tensor) -> Tensor:
    """(l,) -ln p of each next token; nan after the last."""
    losses = torch.full_like(log_p[:, 0], math.nan)
    losses[:-1] = -log_p[:-1].gather(1, following[:, None])[:, 0]
    return losses
