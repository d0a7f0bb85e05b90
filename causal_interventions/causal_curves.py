"""Curves of causal memory: the effect of one intervention at several positions, by the lag.

What ``intervention_study`` measures, and statistics of it: means over bins of lags with intervals
over positions, a comparison with other positions, the agreement with a memory kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from causal_interventions.interventions import Intervention, hide_source, reset_state
from suite_plumbing.arguments import numpy_rng
from suite_plumbing.result_files import finite_or_none
from token_statistics.association import spearman
from token_statistics.description import FloatArray
from token_statistics.intervals import MIN_VALUES, mean_interval
from token_statistics.smallest_effects import KL_FLOOR

# Resamples of positions behind the interval of an agreement.
_NUM_RESAMPLES = 500


class Kind(NamedTuple):
    """One kind of causal memory."""

    intervention: Callable[[Tensor, Sequence[int]], Intervention]
    """(one token a row, layers) -> intervention"""
    first_lag: int
    """smallest lag at which it can have an effect"""


KINDS: dict[str, Kind] = {"reset": Kind(reset_state, 0), "knockout": Kind(hide_source, 1)}


class LagBin(NamedTuple):
    """A curve over some lags: means over positions of each position's mean over the lags."""

    first_lag: int
    last_lag: int
    """tokens, both ends in the bin"""
    num_positions: int
    """positions with a token at such a lag"""
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    """nats; 95 % interval over positions, None for fewer than 5 of them"""
    loss_change: float | None
    loss_low: float | None
    loss_high: float | None
    """nats, likewise"""


@dataclass(frozen=True, eq=False)
class CausalMemoryCurve:
    """Effect of the same intervention at several positions, by the lag after it."""

    kind: str
    """key of ``KINDS``"""
    layers: tuple[int, ...]
    """layers in which the state was intervened in, together"""
    positions: tuple[tuple[int, int], ...]
    """(text, token) of each intervention"""
    kl: Tensor
    """(positions, max_lag + 1) nats, >= 0; nan beyond the text's end and below the kind's first
    lag"""
    loss_change: Tensor
    """(positions, max_lag + 1) nats; nan too where there is no next token"""

    @property
    def max_lag(self) -> int:
        """Largest lag, in tokens."""
        return self.kl.shape[1] - 1

    @property
    def mean_kl(self) -> Tensor:
        """(max_lag + 1,) mean over the positions that have a token at the lag; nan without one."""
        return self.kl.nanmean(0)

    def bins(self, seed: int = 0) -> list[LagBin]:
        """The curve over ``lag_bins``, with intervals over positions; seeded."""
        return [
            _lag_bin(self, first, last, seed)
            for first, last in lag_bins(KINDS[self.kind].first_lag, self.max_lag)
        ]

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Bins and the mean at every lag, for JSON."""
        return {
            "kind": self.kind,
            "layers": list(self.layers),
            "positions": [list(place) for place in self.positions],
            "bins": [entry._asdict() for entry in self.bins(seed)],
            "mean_kl": [finite_or_none(x) for x in self.mean_kl.tolist()],
        }


def pooled_curve(curves: Sequence[CausalMemoryCurve]) -> CausalMemoryCurve:
    """The positions of several curves of one kind, the same layers and lags, in one curve."""
    if len({(curve.kind, curve.layers, curve.max_lag) for curve in curves}) != 1:
        raise ValueError(
            "curves must be at least one, all of one kind, the same layers and max_lag"
        )
    return CausalMemoryCurve(
        curves[0].kind,
        curves[0].layers,
        tuple(place for curve in curves for place in curve.positions),
        torch.cat([curve.kl for curve in curves]),
        torch.cat([curve.loss_change for curve in curves]),
    )


class PairEffect(NamedTuple):
    """What intervening in two layers at once does, beside each alone; means over positions and
    lags, nats."""

    kind: str
    """key of ``KINDS``"""
    layer_a: int
    layer_b: int
    kl_a: float
    """KL with the intervention in layer a alone"""
    kl_b: float
    kl_together: float
    """KL with it in both"""
    excess: float
    """together less the sum of both alone: large where either layer makes up for the other, so that
    neither alone is missed"""
    excess_low: float | None
    excess_high: float | None
    """95 % interval over positions; None where they are too few"""
    num_positions: int

    @property
    def backed_up(self) -> bool:
        """Whether both are needed together and neither alone is: the pair has an effect of KL_FLOOR
        or more, at least ten times that of the two alone."""
        return self.kl_together >= max(KL_FLOOR, 10 * (self.kl_a + self.kl_b))


def pair_effect(
    first: CausalMemoryCurve, second: CausalMemoryCurve, together: CausalMemoryCurve, seed: int = 0
) -> PairEffect:
    """Effect of an intervention in two layers at once beside that in each, at the same positions.

    Raises ValueError for curves of other positions, kinds or lags.
    """
    shared = {(c.kind, c.positions, c.max_lag) for c in (first, second, together)}
    if len(shared) != 1 or set(together.layers) != {*first.layers, *second.layers}:
        raise ValueError("curves must be of one kind at the same positions and lags: a, b and both")
    start = KINDS[first.kind].first_lag
    a, b, both = (
        curve.kl[:, start:].nanmean(1).double().numpy() for curve in (first, second, together)
    )
    excess, low, high = _with_interval(both - a - b, seed)
    return PairEffect(
        first.kind, first.layers[0], second.layers[0], float(a.mean()), float(b.mean()),
        float(both.mean()), float(excess or 0.0), low, high, len(both),
    )  # fmt: skip


def kernel_agreement(curve: CausalMemoryCurve, kernel: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Spearman over the lags 1.. of a causal curve's mean KL and a memory kernel (lags,).

    ``spearman`` in [-1, 1], or None with the ``reason``; ``low``, ``high``: its 95 % interval by
    resampling the positions of the curve, None for fewer than 5; ``num_lags`` compared. Both curves
    are smooth over the lag, so that a p-value for independent lags would mean nothing: none is
    given. Instead ``falling`` is the causal curve's agreement with one that only falls: a kernel
    says more than that where its agreement is larger. With an effect below KL_FLOOR at every lag
    there is nothing to agree with.
    """
    stop = min(curve.max_lag + 1, len(kernel))
    kl, descriptive = curve.kl[:, 1:stop].double(), kernel[1:stop].double()
    defined = curve.mean_kl[1:stop].isfinite() & descriptive.isfinite()
    kl, descriptive = kl[:, defined], descriptive[defined]
    number, rho = len(descriptive), math.nan
    nothing_there = number >= 3 and float(kl.nanmean(0).max()) < KL_FLOOR
    if number >= 3 and not nothing_there:
        rho = spearman(kl.nanmean(0), descriptive)
    if math.isnan(rho):
        reason = "fewer than 3 lags" if number < 3 else "a curve is the same at every lag"
        reason = f"no effect of {KL_FLOOR:g} nats at any lag" if nothing_there else reason
        nothing = dict.fromkeys(("spearman", "low", "high", "falling"))
        return {**nothing, "num_lags": number, "reason": reason}
    low, high = _resampled_agreement(kl, descriptive, seed)
    falling = spearman(kl.nanmean(0), -torch.arange(number))
    return {"spearman": rho, "low": low, "high": high, "falling": falling, "num_lags": number,
            "reason": None}  # fmt: skip


def _resampled_agreement(
    kl: Tensor, kernel: Tensor, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the agreement over positions (rows of ``kl``)."""
    if len(kl) < MIN_VALUES:
        return None, None
    rng = numpy_rng(seed)
    draws = rng.integers(len(kl), size=(_NUM_RESAMPLES, len(kl)))
    found = [spearman(kl[rows].nanmean(0), kernel) for rows in draws]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def compare_curves(
    curve: CausalMemoryCurve, baseline: CausalMemoryCurve, *, seed: int = 0
) -> list[dict[str, Any]]:
    """KL of a curve beside that at other positions, by bin of lags, with a permutation test.

    ``difference`` in nats, mean minus baseline mean; ``p_value`` two-sided, positions exchanged
    between the two at random 999 times; None with the ``reason`` for fewer than 2 positions.
    Raises ValueError for curves of another kind, layers or max_lag.
    """
    pooled_curve([curve, baseline])  # refuses curves that do not compare
    return [
        {"first_lag": first, "last_lag": last, **_permutation_test(a, b, seed)}
        for first, last in lag_bins(KINDS[curve.kind].first_lag, curve.max_lag)
        for a, b in [(_bin_means(curve.kl, first, last), _bin_means(baseline.kl, first, last))]
    ]


def lag_bins(first_lag: int, max_lag: int) -> list[tuple[int, int]]:
    """Lags in bins that double: (0, 0), (1, 1), (2, 2), (3, 4), (5, 8), ... up to ``max_lag``."""
    lasts = [0, 1]
    while lasts[-1] < max_lag:
        lasts.append(2 * lasts[-1])
    firsts = [0, *(last + 1 for last in lasts[:-1])]
    return [
        (first, min(last, max_lag))
        for first, last in zip(firsts, lasts, strict=True)
        if first_lag <= first
    ]


def _bin_means(values: Tensor, first: int, last: int) -> FloatArray:
    """Mean over the lags of a bin at each position that has one."""
    means = values[:, first : last + 1].nanmean(1)
    return means[means.isfinite()].numpy()


def _lag_bin(curve: CausalMemoryCurve, first: int, last: int, seed: int) -> LagBin:
    kl = _bin_means(curve.kl, first, last)
    loss = _bin_means(curve.loss_change, first, last)
    return LagBin(first, last, len(kl), *_with_interval(kl, seed), *_with_interval(loss, seed))


def _with_interval(values: FloatArray, seed: int) -> tuple[float | None, ...]:
    """Mean and its 95 % interval."""
    return mean_interval(values, seed=seed)[:3]


def _permutation_test(a: FloatArray, b: FloatArray, seed: int) -> dict[str, Any]:
    counts = {"num_positions": len(a), "num_baseline": len(b)}
    if min(len(a), len(b)) < 2:
        nothing = dict.fromkeys(("kl", "baseline_kl", "difference", "p_value"))
        return {**counts, **nothing, "reason": "fewer than 2 positions on a side"}

    def difference(x: FloatArray, y: FloatArray, axis: int) -> FloatArray:
        return x.mean(axis) - y.mean(axis)

    test = stats.permutation_test(
        (a, b), difference, n_resamples=999, rng=numpy_rng(seed), vectorized=True
    )
    return {
        **counts,
        "kl": float(a.mean()),
        "baseline_kl": float(b.mean()),
        "difference": float(test.statistic),
        "p_value": float(test.pvalue),
        "reason": None,
    }
