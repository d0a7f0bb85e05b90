"""The neurons that go with delta, and those that depend on it.

Correlation over tokens of delta with each neuron's activation, beside its null; and the change of
each neuron when delta is really scaled. Neurons are the d_inner channels at out_proj's input,
y * SiLU(gate). Tokens of all texts are pooled. Letters: the glossary of `selective_scan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selective_scan.scan import selective_scan
from ssm_measures.components import SSMComponents, checked_deltas
from suite_plumbing.arguments import validate_choice, validate_int, validate_number
from suite_plumbing.result_files import finite_or_none
from token_statistics.association import (
    FALSE_DISCOVERY_RATE,
    benjamini_hochberg,
    pearson_p_values,
    share_rejected,
    spearman,
)
from token_statistics.autocorrelation import autocorrelation_within_texts, effective_samples
from token_statistics.description import FloatArray, summarise
from token_statistics.observations import Observations, observations, row_tokens
from token_statistics.position_course import (
    PositionCourse,
    UnitColumns,
    paired_correlations,
    ranks_among,
    unit_columns_without,
)
from token_statistics.position_scale import why_scaled_by_position
from token_statistics.time_shift_nulls import (
    NUM_SHIFTS,
    NullTest,
    against_null,
    draw_shifts,
    fields_to_dict,
    undefined,
    why_too_few,
    why_too_slow,
)

SCALE_FACTOR = 1.1
"""By how much delta is multiplied to see which neurons depend on it."""


@dataclass(frozen=True, eq=False)
class DeltaNeuronCorrelation:
    """Spearman correlation over tokens of delta with |activation| in each channel of one layer."""

    layer: int
    num_tokens: int
    """distinct observations: tokens that were not read before with the same history"""
    num_texts: int
    num_groups: int
    """independent groups of related texts"""
    groups: tuple[int, ...]
    """of each text: number of the first text of its group"""
    reason: str | None
    """why nothing is claimed; then only the counts are given"""
    rho: Tensor | None
    """(d_inner,) in [-1, 1]; nan where delta or the activation never varies"""
    adjusted_p: Tensor | None
    """(d_inner,) two-sided p with the effective sample size, Benjamini-Hochberg adjusted"""
    mean: NullTest
    """mean of rho over channels; null: circular time-shifts within each group of texts"""
    mean_abs: NullTest
    """mean of |rho|"""
    significant_share: float | None
    """share of channels with rho != 0 at a false discovery rate of 5 %"""
    significant_share_null: float | None
    """the same share under the shifts, mean over them"""
    top_channels: tuple[int, ...]
    """channels of largest |rho| among the significant, descending, at most 10"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON; rho as a summary and the top channels with their values."""
        result = fields_to_dict(self)
        result["adjusted_p"] = None
        result["rho"] = None if self.rho is None else summarise(self.rho)
        if self.rho is not None and self.adjusted_p is not None:
            result["top_channels"] = [
                {"channel": c, "rho": float(self.rho[c]), "adjusted_p": float(self.adjusted_p[c])}
                for c in self.top_channels
            ]
        del result["adjusted_p"]
        return result


@dataclass(frozen=True, eq=False)
class DeltaSensitivity:
    """How much each neuron of one layer changes when the layer's delta is scaled."""

    layer: int
    factor: float
    """what delta was multiplied by, in every channel and token"""
    num_tokens: int
    num_texts: int
    sensitivity: Tensor
    """(d_inner,) root mean square over tokens of the change of the gated output, over the standard
    deviation of the gated output; nan for a channel that never varies"""
    memory_sensitivity: Tensor
    """(d_inner,) the same when delta is scaled in the decay exp(delta A) alone and what a token
    writes stays: 0 in a channel that keeps nothing"""
    top_channels: tuple[int, ...]
    """channels by `rank_by`, descending"""
    rank_by: str
    """what they are ranked by: a name of the two fields above"""
    rank_correlation_with_delta: float | None
    """Spearman correlation over channels of sensitivity and mean delta: far from 1 where the size
    of delta does not tell which neurons depend on it"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: summaries, and the top channels with their values."""
        result = fields_to_dict(self)
        for name in ("sensitivity", "memory_sensitivity"):
            result[name] = summarise(getattr(self, name))
        result["top_channels"] = [
            {
                "channel": channel,
                "sensitivity": float(self.sensitivity[channel]),
                "memory_sensitivity": float(self.memory_sensitivity[channel]),
            }
            for channel in self.top_channels
        ]
        return result


def delta_neuron_correlation(
    texts: Sequence[SSMComponents],
    layer: int = 0,
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    num_shifts: int = NUM_SHIFTS,
    seed: int = 0,
) -> DeltaNeuronCorrelation:
    """Spearman correlation of delta with |neuron| over pooled tokens, in each channel.

    A neuron's delta is that of its head. Of the observations (`token_statistics.observations`; what
    was read before is known by `token_ids`, by text, without them by equal values), ranks without
    their course over position.

    Undefined, with the reason, for fewer tokens than a claim needs, or too slow ones. Raises
    ValueError as `delta_memory`. Cost: 2 d_inner sorts, and a pass over the tokens a shift.
    """
    seed = validate_int("seed", seed, 0)
    tokens = _observed(texts, token_ids)
    course, axes = PositionCourse(tokens), tokens.axis_lengths
    n = len(tokens.rows)
    counts = {
        "layer": layer,
        "num_tokens": tokens.num_distinct,
        "num_texts": len(tokens.lengths),
        "num_groups": len(tokens.group_numbers),
        "groups": tokens.groups,
    }
    x, y = _unit_ranks(texts, course)
    varies = x.varies & y.varies
    reason = why_too_few(axes, tokens.num_distinct)
    if reason is None and not varies.any():
        reason = "in no channel do both delta and the activation vary"
    if reason is None:
        n_eff = _effective_samples(x, y, course)
        reason = why_too_slow(n_eff[varies], axes, tokens.num_distinct, course.samples)
        reason = reason or why_scaled_by_position(x.values, y.values, tokens)
    if reason is not None:
        return DeltaNeuronCorrelation(**counts, **_no_claim(reason, n))
    matched = tokens.end_matched(y.moving[:, varies])
    shifts = draw_shifts(matched.axis_lengths, num_shifts, seed, tokens.num_distinct)
    rho = np.where(varies, np.clip((x.values * y.values).sum(axis=0), -1.0, 1.0), math.nan)
    moved = paired_correlations(x.values, y.moving, course, matched, shifts)
    shifted = [np.where(varies, r, math.nan) for r in moved]
    found = benjamini_hochberg(pearson_p_values(rho, n_eff), FALSE_DISCOVERY_RATE)
    by_chance = [share_rejected(r[varies], n_eff[varies]) for r in shifted]
    strongest = np.argsort(-np.where(found.rejected, np.abs(rho), -1.0), kind="stable")
    return DeltaNeuronCorrelation(
        **counts,
        reason=None,
        rho=torch.from_numpy(rho).float(),
        adjusted_p=torch.from_numpy(found.adjusted),
        mean=_mean_against_null(rho, shifted, n),
        mean_abs=_mean_against_null(np.abs(rho), [np.abs(r) for r in shifted], n),
        significant_share=float(found.rejected[varies].mean()),
        significant_share_null=float(np.mean(by_chance)),
        top_channels=tuple(strongest[: min(10, int(found.rejected.sum()))].tolist()),
    )


def _no_claim(reason: str, n: int) -> dict[str, Any]:
    test = undefined(reason, n)
    numbers = dict.fromkeys(("rho", "adjusted_p", "significant_share", "significant_share_null"))
    return {**numbers, "reason": reason, "mean": test, "mean_abs": test, "top_channels": ()}


def _observed(
    texts: Sequence[SSMComponents], token_ids: Sequence[Sequence[int]] | None
) -> Observations:
    """The observations that the components hold: warmed up by the norm of the neurons."""
    deltas, lengths = checked_deltas(texts)
    gated = torch.cat([text.gated[0] for text in texts]).double().numpy()
    known = row_tokens([np.concatenate(deltas), gated], lengths) if token_ids is None else token_ids
    if [len(ids) for ids in known] != list(lengths):
        raise ValueError(
            f"token_ids holds texts of {[len(ids) for ids in known]} tokens, the components "
            f"{list(lengths)}; pass the ids of the same tokens"
        )
    return observations(known, np.linalg.norm(gated, axis=1))


def delta_sensitivity(
    texts: Sequence[SSMComponents],
    layer: int = 0,
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    factor: float = SCALE_FACTOR,
    top_k: int = 10,
    rank_by: str = "sensitivity",
) -> DeltaSensitivity:
    """Change of every neuron when delta is multiplied by `factor` and the scan is run again.

    u, B, C and the gate stay as they are: they do not depend on delta within the layer, so this is
    exactly what the model's mixer would compute; where Mamba-2's norm follows, the token's root
    mean square is held at what it is. Raises ValueError as `delta_memory`, for a factor
    that is not positive or is 1, for top_k < 1 and an unknown rank_by. Cost: three scans a text.
    """
    tokens = _observed(texts, token_ids)
    top_k = validate_int("top_k", top_k, 1)
    validate_choice("rank_by", rank_by, ("sensitivity", "memory_sensitivity"))
    if validate_number("factor", factor, above=0) == 1:
        raise ValueError(f"factor is {factor}; it must be a positive number other than 1")
    news = [torch.from_numpy(new) for new in tokens.new_by_text]
    gated = torch.cat([x.gated[0, new] for x, new in zip(texts, news, strict=True)]).double()
    spread = gated.std(dim=0, correction=0).where(gated.amax(0) > gated.amin(0), math.nan)
    changes = (_squared_changes(x, factor, new) for x, new in zip(texts, news, strict=True))
    squares = torch.stack(list(changes)).sum(0)
    total, memory = (squares / len(gated)).sqrt() / spread
    ranked = total if rank_by == "sensitivity" else memory
    order = torch.argsort(ranked.nan_to_num(nan=-1.0), descending=True, stable=True)
    defined = ~total.isnan()
    deltas = [x.channel_delta[0, new] for x, new in zip(texts, news, strict=True)]
    mean_delta = torch.cat(deltas).double().mean(0)
    agreement = (
        finite_or_none(spearman(total[defined], mean_delta[defined])) if defined.any() else None
    )
    return DeltaSensitivity(
        layer=layer,
        factor=float(factor),
        num_tokens=tokens.num_distinct,
        num_texts=len(tokens.lengths),
        sensitivity=total.float(),
        memory_sensitivity=memory.float(),
        top_channels=tuple(order[: min(top_k, int(defined.sum()))].tolist()),
        rank_by=rank_by,
        rank_correlation_with_delta=agreement,
    )


def _unit_ranks(
    texts: Sequence[SSMComponents], course: PositionCourse
) -> tuple[UnitColumns, UnitColumns]:
    """Ranks over tokens of the channel's delta and of |activation|, without their course.

    Delta is never moved, and what would be is left out: these columns are the largest arrays here.
    """
    x = _ranked((text.channel_delta[0].double().numpy() for text in texts), course)
    x = x._replace(moving=np.empty((0, x.values.shape[1])))
    return x, _ranked((np.abs(text.gated[0].double().numpy()) for text in texts), course)


def _ranked(of_texts: Iterator[FloatArray], course: PositionCourse) -> UnitColumns:
    ranks = ranks_among(np.concatenate(list(of_texts)), course.tokens.rows)
    return unit_columns_without(course, ranks)


def _effective_samples(x: UnitColumns, y: UnitColumns, course: PositionCourse) -> FloatArray:
    """(d_inner,) sample sizes that the autocorrelation of x and y leaves."""
    used = course.tokens.used_lengths
    rho_x, rho_y = (autocorrelation_within_texts(v.values, used, max(used) // 4) for v in (x, y))
    return effective_samples(rho_x, rho_y, course.samples, pairs=False)


def _mean_against_null(values: FloatArray, draws: Sequence[FloatArray], n: int) -> NullTest:
    """Mean over channels, beside that of each draw."""
    return against_null(float(np.nanmean(values)), [np.nanmean(draw) for draw in draws], n)


def _squared_changes(text: SSMComponents, factor: float, new: Tensor) -> Tensor:
    """Sum over the tokens that are new (l,) of the squared change of the neurons when delta is
    scaled, (2, d_inner).

    First as it is; then with u divided by the factor, so that delta B u stays and only the decay
    changes. D u is the same before and after and cancels.
    """
    share = text.own_share
    before = selective_scan(text.u, text.delta, text.A, text.B, text.C, own_share=share)
    changes = [
        selective_scan(u, text.delta * factor, text.A, text.B, text.C, own_share=share) - before
        for u in (text.u, text.u / factor)
    ]
    return (torch.cat(changes) * text.gating)[:, new].double().square().sum(dim=1)
