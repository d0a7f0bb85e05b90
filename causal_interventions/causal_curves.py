"""Curves of causal memory: the effect of one intervention at several positions, by the lag.

What ``intervention_study`` measures, and statistics of it: means over bins of lags, a comparison
with other positions, the agreement with a memory kernel. A sample of all of them is an independent
text, with the mean over its positions: positions of one text share its tokens, and are no samples
of their own. Intervals are those of ``token_statistics.intervals``, and end where the measure does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from causal_interventions.interventions import Intervention, hide_source, reset_state
from suite_plumbing.result_files import finite_or_none
from token_statistics.association import spearman
from token_statistics.description import FloatArray
from token_statistics.intervals import MIN_VALUES, mean_interval, sign_flip_p
from token_statistics.smallest_effects import KL_FLOOR
from token_statistics.text_groups import group_means


class Kind(NamedTuple):
    """One kind of causal memory."""

    intervention: Callable[[Tensor, Sequence[int]], Intervention]
    """(one token a row, layers) -> intervention"""
    first_lag: int
    """smallest lag at which it can have an effect"""


KINDS: dict[str, Kind] = {"reset": Kind(reset_state, 0), "knockout": Kind(hide_source, 1)}


class LagBin(NamedTuple):
    """A curve over some lags: means over texts of the mean over the text's positions and lags."""

    first_lag: int
    last_lag: int
    """tokens, both ends in the bin"""
    num_positions: int
    """positions with a token at such a lag"""
    num_texts: int
    """independent texts with such a position"""
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    """nats, >= 0; 95 % interval over texts, None for fewer than 5 of them"""
    loss_change: float | None
    loss_low: float | None
    loss_high: float | None
    """nats, likewise"""
    reason: str | None
    """why there is no interval"""


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
    groups: tuple[int, ...] | None = None
    """(positions,) the first text of the related ones that the position's text is of; None, and
    every text is independent"""

    @property
    def texts(self) -> tuple[int, ...]:
        """(positions,) number of the independent text of each position."""
        return self.groups or tuple(text for text, _ in self.positions)

    @property
    def max_lag(self) -> int:
        """Largest lag, in tokens."""
        return self.kl.shape[1] - 1

    @property
    def mean_kl(self) -> Tensor:
        """(max_lag + 1,) mean over texts of the mean over their positions that have a token at the
        lag; nan without one."""
        return _by_text(self, self.kl).nanmean(0)

    def bins(self, seed: int = 0) -> list[LagBin]:
        """The curve over ``lag_bins``, with intervals over texts; seeded."""
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
        tuple(text for curve in curves for text in curve.texts),
    )


class PairEffect(NamedTuple):
    """What intervening in two layers at once does, beside each alone; means over texts of those
    over positions and lags, nats."""

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
    """95 % interval over texts; None for fewer than 5 of them"""
    num_positions: int
    num_texts: int
    """independent ones"""
    reason: str | None
    """why there is no interval"""

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
        _by_text(curve, curve.kl[:, start:].nanmean(1)).double().numpy()
        for curve in (first, second, together)
    )
    excess = mean_interval(both - a - b, seed=seed)
    return PairEffect(
        first.kind, first.layers[0], second.layers[0], float(a.mean()), float(b.mean()),
        float(both.mean()), float(excess.value or 0.0), excess.low, excess.high,
        len(together.positions), excess.n, _too_few(excess.n),
    )  # fmt: skip


def kernel_agreement(curve: CausalMemoryCurve, kernel: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Spearman over the lags 1.. of a text's causal curve and a memory kernel (lags,), mean over
    texts.

    ``spearman`` in [-1, 1], or None with the ``reason``; ``low``, ``high``: its 95 % interval over
    the ``num_texts`` independent texts whose curve is not the same at every lag, None with the
    ``reason`` for fewer than 5 of them; ``num_lags`` compared. Both curves are smooth over the lag,
    so that a p-value for independent lags would mean nothing: none is given. Instead ``falling`` is
    the causal curves' agreement with one that only falls: a kernel says more than that where its
    agreement is larger. What is noise in a text's curve, of few positions, lowers both. With a mean
    effect below KL_FLOOR at every lag there is nothing to agree with.
    """
    stop = min(curve.max_lag + 1, len(kernel))
    kl, descriptive = _by_text(curve, curve.kl)[:, 1:stop].double(), kernel[1:stop].double()
    defined = kl.nanmean(0).isfinite() & descriptive.isfinite()
    kl, descriptive = kl[:, defined], descriptive[defined]
    number = len(descriptive)
    found = [_agreements(row, descriptive) for row in kl] if number >= 3 else []
    found = [pair for pair in found if np.isfinite(pair).all()]
    nothing_there = number >= 3 and float(kl.nanmean(0).max()) < KL_FLOOR
    if nothing_there or not found:
        reason = "fewer than 3 lags" if number < 3 else "a curve is the same at every lag"
        reason = f"no effect of {KL_FLOOR:g} nats at any lag" if nothing_there else reason
        nothing = dict.fromkeys(("spearman", "low", "high", "falling"))
        return {**nothing, "num_lags": number, "num_texts": 0, "reason": reason}
    agreements, falling = np.array(found).T
    rho, low, high = mean_interval(agreements, seed=seed, least=-1.0, largest=1.0)[:3]
    return {
        "spearman": rho, "low": low, "high": high, "falling": float(falling.mean()),
        "num_lags": number, "num_texts": len(found), "reason": _too_few(len(found)),
    }  # fmt: skip


def _agreements(kl: Tensor, kernel: Tensor) -> tuple[float, float]:
    """Spearman of one text's curve with a kernel and with one that falls, at the lags it has."""
    at = kl.isfinite()
    if int(at.sum()) < 3:
        return np.nan, np.nan
    falling = -torch.arange(len(kl), dtype=kl.dtype)
    return spearman(kl[at], kernel[at]), spearman(kl[at], falling[at])


def compare_curves(
    curve: CausalMemoryCurve, baseline: CausalMemoryCurve, *, seed: int = 0
) -> list[dict[str, Any]]:
    """KL of a curve beside that at other positions of the same texts, by bin of lags.

    ``kl``, ``baseline_kl``, ``difference``: nats, means over the ``num_texts`` independent texts
    that have positions of both. ``p_value``: two-sided, by the signs of the texts' differences;
    None, with the ``reason``, for fewer than 5 texts: positions of one text are no samples of their
    own. Raises ValueError for curves of another kind, layers or max_lag.
    """
    pooled_curve([curve, baseline])  # refuses curves that do not compare
    return [
        {"first_lag": first, "last_lag": last, **_compared(curve, baseline, first, last, seed)}
        for first, last in lag_bins(KINDS[curve.kind].first_lag, curve.max_lag)
    ]


def _compared(
    curve: CausalMemoryCurve, baseline: CausalMemoryCurve, first: int, last: int, seed: int
) -> dict[str, Any]:
    """One bin of lags of two curves, text by text."""
    sides = [_bin_means(one, one.kl, first, last) for one in (curve, baseline)]
    counts = [_num_positions(one.kl, first, last) for one in (curve, baseline)]
    both = [text for text in sides[0] if text in sides[1]]
    result = {"num_positions": counts[0], "num_baseline": counts[1], "num_texts": len(both)}
    if not both:
        nothing = dict.fromkeys(("kl", "baseline_kl", "difference", "p_value"))
        return {**result, **nothing, "reason": "no text has positions on both sides"}
    a, b = (np.array([side[text] for text in both]) for side in sides)
    few = _too_few(len(both), "a p")
    return {
        **result,
        "kl": float(a.mean()),
        "baseline_kl": float(b.mean()),
        "difference": float((a - b).mean()),
        "p_value": None if few else _two_sided_p(a - b, seed),
        "reason": few,
    }


def _two_sided_p(differences: FloatArray, seed: int) -> float:
    """Of the signs of differences, one a text."""
    sides = (sign_flip_p(side, seed=seed) for side in (differences, -differences))
    return min(1.0, 2 * min(sides))


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


def _by_text(curve: CausalMemoryCurve, values: Tensor) -> Tensor:
    """(texts, ...) means over the positions of each independent text of values (positions, ...);
    nan where a text has none."""
    means = group_means(list(values.double().numpy()), curve.texts)
    return torch.from_numpy(np.stack(means)).to(values.dtype)


def _bin_means(curve: CausalMemoryCurve, values: Tensor, first: int, last: int) -> dict[int, float]:
    """By independent text, the mean over its positions of the mean over the lags of a bin; without
    texts that have none."""
    means = _by_text(curve, values[:, first : last + 1].nanmean(1)).tolist()
    texts = dict.fromkeys(curve.texts)
    return {text: x for text, x in zip(texts, means, strict=True) if np.isfinite(x)}


def _num_positions(values: Tensor, first: int, last: int) -> int:
    return int(values[:, first : last + 1].isfinite().any(1).sum())


def _lag_bin(curve: CausalMemoryCurve, first: int, last: int, seed: int) -> LagBin:
    kl, loss = (
        list(_bin_means(curve, values, first, last).values())
        for values in (curve.kl, curve.loss_change)
    )
    return LagBin(
        first, last, _num_positions(curve.kl, first, last), len(kl),
        *mean_interval(kl, seed=seed, least=0.0)[:3], *mean_interval(loss, seed=seed)[:3],
        _too_few(len(kl)),
    )  # fmt: skip


def _too_few(num_texts: int, what: str = "an interval") -> str | None:
    """Why so many independent texts have no interval; None where they have."""
    if num_texts >= MIN_VALUES:
        return None
    plural = "" if num_texts == 1 else "s"
    return f"{num_texts} independent text{plural}; {what} needs {MIN_VALUES}"
