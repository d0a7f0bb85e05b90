"""How a method's neurons, and the attention that made them, change from layer to layer.

A neuron's number in one layer has no counterpart in another. What can be compared is how importance
is spread, how large activations are, what two layers say about the same tokens (CKA), and whether
the same tokens are attended to (rank agreement at equal lag).

Nulls. Values that attention gathered are smoothed over the past in every layer alike, by windows
that grow from the first token on, so that shifting the values themselves in time would break more
than what ties their contents: for them the channels are shifted first, and then gathered by the
attention as it is. Attention falls with the lag in every layer alike: it is compared lag by lag.

Both nulls speak of coincidence in time, not of training: layers of an untrained model read the same
tokens too, and agree. What a trained model adds is seen beside an untrained twin alone.

References:
  [1] Kornblith et al. 2019, Similarity of neural network representations revisited; debiased as
      Song et al. 2012, eq. 5
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from ssm_measures.neuron_sets import NeuronSet, importance_concentration
from suite_plumbing.parallel import side_by_side
from suite_plumbing.precision import in_full_precision
from token_statistics.cka import linear_cka, unbiased_hsic
from token_statistics.description import FloatArray
from token_statistics.observations import observations
from token_statistics.position_course import (
    PositionCourse,
    paired_correlations,
    unit_columns_without,
    without_course,
)
from token_statistics.time_shift_nulls import (
    NullTest,
    against_null,
    draw_shifts,
    undefined,
    why_too_few,
)

NUM_SHIFTS = 20
"""With 20, a value above them all has p = 1 / 21."""

_MAX_LAG = 32

_FLOATS_AT_ONCE = 1 << 18  # of shifted Gram matrices: for a CPU's second-level cache


@dataclass(frozen=True, eq=False)
class NeuronEvolution:
    """How a method's neurons change from layer to layer."""

    layers: tuple[int, ...]
    """in ascending order"""
    concentration: dict[int, dict]
    """by layer: see :func:`neuron_sets.importance_concentration`"""
    rms: dict[int, float]
    """by layer: root mean square activation over tokens and neurons"""
    transitions: list[dict]
    """for successive layers: ``from_layer``, ``to_layer``, ``rms_ratio``, ``cka`` (debiased linear
    CKA of the activations over tokens, in [-1, 1]), its null (``cka_null_mean``, ``cka_null_max``)
    and ``cka_p_value``, one-sided; None where undefined, with the ``reason``;
    ``attention_agreement``: see :func:`attention_agreement`"""

    def to_dict(self) -> dict:
        """Everything, for JSON."""
        transitions = [
            {**step, "attention_agreement": step["attention_agreement"].to_dict()}
            for step in self.transitions
        ]
        return {**vars(self), "layers": list(self.layers), "transitions": transitions}


def neuron_evolution(
    sets: Mapping[int, NeuronSet], *, num_shifts: int = NUM_SHIFTS, seed: int = 0
) -> NeuronEvolution:
    """Compare one method's neurons in successive layers of one capture.

    Raises ValueError for no sets, or for sets of different methods or tokens. Cost: for each pair
    of successive layers a CKA, and two (n, n) products a shift, n tokens.
    """
    layers = sorted(sets)
    _check_comparable(sets)
    rms = {layer: _rms(sets[layer]) for layer in layers}

    def transition(pair: tuple[int, int]) -> dict[str, Any]:
        a, b = pair
        return {
            "from_layer": a,
            "to_layer": b,
            "rms_ratio": rms[b] / rms[a] if rms[a] > 0 else None,
            **_cka_with_null(sets[a], sets[b], num_shifts, seed),
            "attention_agreement": attention_agreement(sets[a], sets[b], seed=seed),
        }

    return NeuronEvolution(
        layers=tuple(layers),
        concentration={layer: importance_concentration(sets[layer].importance) for layer in layers},
        rms=rms,
        transitions=side_by_side(transition, itertools.pairwise(layers)),
    )


def attention_agreement(
    a: NeuronSet, b: NeuronSet, *, num_shifts: int = NUM_SHIFTS, seed: int = 0
) -> NullTest:
    """Whether two layers attend to the same tokens: rank agreement of their maps at equal lag.

    Mean over lags 1, ..., a quarter of the text (at most 32) of the Spearman correlation over
    queries of the attention paid to that lag in the one layer and in the other, in [-1, 1]; null:
    the queries of one layer shifted in time, all lags together. Of the first text of the sets.
    Undefined, with the reason, for too few tokens, attention that does not vary, and maps of one
    target, which sit on a few tokens. Cost: two sorts a lag.
    """
    keep = a.attention_mask[0].bool()
    length = int(keep.sum())
    if a.target is not None:
        return undefined(_ONE_TARGET, length)
    reach = min(_MAX_LAG, length // 4)
    count = length - reach
    # Queries of one text: none was read before.
    queries = observations([range(count)])
    course = PositionCourse(queries)
    if reason := why_too_few(queries.axis_lengths, count):
        return undefined(reason, count)
    ranks = []
    for one in (a, b):
        weights = one.attention[0][keep][:, keep].double().numpy()
        by_lag = [np.diagonal(weights, -k)[reach - k :] for k in range(1, reach + 1)]
        ranks.append(unit_columns_without(course, stats.rankdata(np.array(by_lag), axis=1).T))
    x, y = ranks
    varies = x.varies & y.varies
    if not varies.any():
        return undefined("the attention to no lag varies over the queries", count)
    first, second = x.values[:, varies], y.moving[:, varies]
    value = float((first * y.values[:, varies]).sum(axis=0).mean())
    matched = queries.end_matched(second)
    shifts = draw_shifts(matched.axis_lengths, num_shifts, seed, count)
    moved = paired_correlations(first, second, course, matched, shifts)
    return against_null(value, np.array([r.mean() for r in moved]), len(queries.rows))


_ONE_TARGET = "values of one target sit on a few tokens, for which time shifts are no null"


def _cka_with_null(a: NeuronSet, b: NeuronSet, num_shifts: int, seed: int) -> dict:
    names = ("cka", "cka_null_mean", "cka_null_max", "cka_p_value")
    undefined_fields = dict.fromkeys(names)
    keep = a.attention_mask.bool()
    x, y = (s.activations[keep] for s in (a, b))
    if len(x) < 4:
        return {**undefined_fields, "reason": f"{len(x)} tokens; a debiased CKA needs 4"}
    if a.target is not None:
        # Gradients of one prediction sit on the few tokens it depends on, the same ones in every
        # layer; a shift in time moves them apart, so that even untrained layers would exceed it.
        return {**undefined_fields, "reason": _ONE_TARGET}
    lengths = keep.sum(dim=1).tolist()
    ids = [row[kept].tolist() for row, kept in zip(b.input_ids, keep, strict=True)]
    sides = [side.double().numpy() for side in (x, y)]
    norms = np.stack([np.linalg.norm(side, axis=1) for side in sides], axis=1)
    course = PositionCourse(observations(ids, norms))
    tokens = course.tokens
    if len(tokens.rows) < 4:
        return {**undefined_fields, "reason": f"{sum(lengths)} tokens; a debiased CKA needs 4"}
    first, second = (
        part * divisor for part, _, divisor in (without_course(course, side) for side in sides)
    )
    observed = linear_cka(first, second, freedom=course.freedom)
    if math.isnan(observed):
        reason = "the activations of a layer do not vary over tokens"
        return {**undefined_fields, "reason": reason}
    if reason := why_too_few(tokens.axis_lengths, tokens.num_distinct):
        return {**undefined_fields, "cka": observed, "reason": reason}
    draws = _null_draws(torch.from_numpy(first), b, course, num_shifts, seed)
    return {
        "cka": observed,
        "cka_null_mean": float(np.mean(draws)),
        "cka_null_max": float(np.max(draws)),
        "cka_p_value": (1 + int((draws >= observed).sum())) / (1 + len(draws)),
        "reason": None,
    }


@in_full_precision
def _null_draws(
    x: torch.Tensor, b: NeuronSet, course: PositionCourse, num_shifts: int, seed: int
) -> FloatArray:
    """CKA of x (n, p) with b's values made from channels that are shifted in time.

    In Gram matrices, in float32: with the gathering M (n, N), less its course over position, and
    channels c, the values of shifted channels have the Gram matrix M (c c^T, rows and columns
    shifted) M^T.
    """
    keep, tokens = b.attention_mask.bool(), course.tokens
    channels = (b.activations if b.gathered is None else b.gathered)[keep].float()
    gram, gram_x = channels @ channels.mT, centred_gram(x.float())
    gram /= gram.diagonal().mean().clamp_min(1e-30)
    observed, gathering = torch.from_numpy(tokens.rows), _gathering(b, course)
    shifts = draw_shifts(tokens.axis_lengths, num_shifts, seed, tokens.num_distinct)
    parts = min(len(shifts), -(-len(shifts) * gram.numel() // _FLOATS_AT_ONCE))
    own_x, draws = _hsic(gram_x, gram_x, course.freedom), []
    for some in np.array_split(shifts, parts):
        # What is no observation stays where it is: values are gathered from it too.
        rows = torch.arange(len(channels)).repeat(len(some), 1)
        rows[:, observed] = torch.from_numpy(tokens.order(some))
        shifted = gram[rows].gather(2, rows.unsqueeze(1).expand(-1, len(channels), -1))
        moved = gathering @ shifted @ gathering.mT
        draws.append(_gram_cka(gram_x, moved, course.freedom, own_x))
    return torch.cat(draws).numpy()


def _gathering(b: NeuronSet, course: PositionCourse) -> torch.Tensor:
    """(n, N) what makes b's values at the observations of its channels, centred, without the course
    over position."""
    keep = b.attention_mask.bool()
    if b.gathered is None:
        maps = [torch.eye(int(keep.sum()))]
    else:
        maps = [text[kept][:, kept] for text, kept in zip(b.attention, keep, strict=True)]
    gathering = torch.block_diag(*maps).double()[torch.from_numpy(course.tokens.rows)]
    left = course.taken_out_(gathering)
    return (left - left.mean(dim=0)).float()


@in_full_precision
def centred_gram(values: torch.Tensor) -> torch.Tensor:
    """(..., l, l) Gram matrix of values (..., l, d), centred, of mean diagonal 1."""
    return _centred(values @ values.mT)


def _centred(gram: torch.Tensor) -> torch.Tensor:
    """Gram matrix (..., l, l) of the centred values, scaled to mean diagonal 1."""
    centred = gram - gram.mean(dim=-2, keepdim=True) - gram.mean(dim=-1, keepdim=True)
    centred = centred + gram.mean(dim=(-2, -1), keepdim=True)
    size = centred.diagonal(dim1=-2, dim2=-1).mean(-1)
    return centred / size.clamp_min(1e-30)[..., None, None]


def _gram_cka(
    gram_x: torch.Tensor, gram_y: torch.Tensor, freedom: float, own_x: torch.Tensor
) -> torch.Tensor:
    """(k,) debiased linear CKA [1] of centred Gram matrices (n, n) and (k, n, n), with `own_x`
    the first one's HSIC with itself; 0 where a side has no signal."""
    cross, own_y = (_hsic(gram, gram_y, freedom) for gram in (gram_x, gram_y))
    signal = torch.minimum(own_x, own_y) > 0
    return torch.where(signal, cross / torch.where(signal, own_x * own_y, 1.0).sqrt(), 0.0)


def _hsic(gram_x: torch.Tensor, gram_y: torch.Tensor, freedom: float) -> torch.Tensor:
    """Unbiased HSIC times n (n - 3), of centred Gram matrices (..., n, n): their rows sum to 0."""
    k, m = (gram.diagonal(dim1=-2, dim2=-1).double() for gram in (gram_x, gram_y))
    energy = (gram_x * gram_y).sum(dim=(-2, -1), dtype=torch.float64)
    traces = k.sum(-1) * m.sum(-1)
    return unbiased_hsic(energy, (k * m).sum(-1), traces, gram_x.shape[-1], freedom)


def _check_comparable(sets: Mapping[int, NeuronSet]) -> None:
    if not sets:
        raise ValueError("sets is empty; pass the neurons of at least one layer")
    first = next(iter(sets.values()))
    for layer, neurons in sets.items():
        if neurons.method != first.method or not torch.equal(neurons.input_ids, first.input_ids):
            raise ValueError(
                f"the neurons of layer {layer} are of {neurons.method} on other tokens or by "
                f"another method than those of layer {first.layer} ({first.method}); pass sets "
                "of one call"
            )


def _rms(neurons: NeuronSet) -> float:
    return float(neurons.activations[neurons.attention_mask.bool()].double().square().mean().sqrt())
