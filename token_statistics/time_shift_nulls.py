"""Statistics of series in time, each beside what it is when the two sides are shifted in time.

A circular shift of one side within each text keeps its values and its autocorrelation and breaks
what ties it to the other side in time: the statistic of the shifted data is what coincidence gives.
Texts are pooled (their tokens one after the other), and every shift stays within its text, or its
group of related texts: what counts as an observation, and what is moved together, stands in
`observations`, what becomes of the position in `position_course`.

References:
  [1] Bretherton, Widmann, Dymnikov, Wallace & Blade 1999, The effective number of spatial degrees
      of freedom of a time-varying field, eq. 30
  [2] Phipson & Smyth 2010, Permutation p-values should never be zero
  [3] Lancaster et al. 2018, Surrogate data for hypothesis testing of physical systems, section 3

Shapes: n pooled tokens of texts with `lengths` tokens each; p and q channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy import stats

from suite_plumbing.arguments import validate_int
from token_statistics.association import spearman
from token_statistics.autocorrelation import autocorrelation_within_texts, effective_samples
from token_statistics.description import IntArray, Values, as_float64, unit_columns
from token_statistics.observations import observations, row_tokens
from token_statistics.position_course import (
    PositionCourse,
    paired_correlations,
    ranks_among,
    unit_columns_without,
)
from token_statistics.position_scale import why_scaled_by_position

MIN_TOKENS = 40
"""Fewer pooled tokens than this, and nothing is claimed."""

MIN_EFFECTIVE = 40
"""Fewer effective samples a text than this, and slow series allow no null of time shifts."""

MIN_SHIFTS = 20
"""Fewer distinct shifts than this, and there is no null."""

NUM_SHIFTS = 39
"""Default number of shifts: with 39, the smallest and largest are a central 95 % interval."""

MAX_LAG = 8
"""Lags up to this are effects, not null: a shift of the null is larger wherever the text allows."""


@dataclass(frozen=True)
class NullTest:
    """A statistic beside its null; every field but the counts is None where it is undefined."""

    value: float | None
    """the statistic of the data as they are"""
    null_mean: float | None
    """mean of the statistic over the draws of the null"""
    null_low: float | None
    """2.5 % quantile of the draws, rank / (draws + 1): the smallest of 39 or fewer"""
    null_high: float | None
    """97.5 % quantile, likewise the largest of 39 or fewer"""
    p_value: float | None
    """two-sided, 2 (1 + draws at least as far on that side) / (1 + draws), at most 1 [2]"""
    n: int
    """samples behind `value`"""
    num_draws: int
    """draws of the null; 0 without one"""
    reason: str | None = None
    """why the fields are None"""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, strict JSON."""
        return fields_to_dict(self)

    @property
    def outside_null(self) -> bool | None:
        """Whether the value lies outside [null_low, null_high]; None where undefined."""
        if self.value is None or self.null_low is None or self.null_high is None:
            return None
        return not self.null_low <= self.value <= self.null_high


def fields_to_dict(result: Any) -> dict[str, Any]:
    """Fields of a result by name, with tuples as lists and inner results as dicts."""
    return {field.name: _plain(getattr(result, field.name)) for field in fields(result)}


def _plain(value: Any) -> Any:
    if isinstance(value, NullTest):
        return value.to_dict()
    if hasattr(value, "_asdict"):
        return {name: _plain(entry) for name, entry in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def undefined(reason: str, n: int) -> NullTest:
    """A test that the data do not allow, with the reason."""
    return NullTest(None, None, None, None, None, n, 0, reason)


def against_null(value: float, draws: Values, n: int) -> NullTest:
    """Compare a value with draws (m,) of its null; undefined where either is nan."""
    drawn = as_float64(draws)
    if not (math.isfinite(value) and drawn.size and np.isfinite(drawn).all()):
        return undefined("a side of the comparison has zero variance", n)
    # Rounding must not decide a tie between the data and a draw that equals them.
    tolerance = 1e-9 * max(abs(value), 1e-12)
    tail = min((drawn >= value - tolerance).sum(), (drawn <= value + tolerance).sum())
    p_value = min(1.0, 2.0 * (1 + int(tail)) / (1 + drawn.size))
    low, high = np.quantile(drawn, (0.025, 0.975), method="weibull")
    return NullTest(value, float(drawn.mean()), float(low), float(high), p_value, n, drawn.size)


def smallest_shift(length: int) -> int:
    """The smallest shift of the null in a text: beyond MAX_LAG, or a quarter of a short text."""
    return max(1, min(MAX_LAG + 1, length // 4))


def count_shifts(lengths: Sequence[int]) -> int:
    """How many distinct joint shifts texts of these lengths allow; one token cannot be shifted."""
    return math.prod(max(1, length - 2 * smallest_shift(length) + 1) for length in lengths)


def why_too_few(lengths: Sequence[int], num_tokens: int | None = None) -> str | None:
    """Why texts of these lengths allow no claim, or None if they do.

    `num_tokens`: distinct tokens, where `lengths` are those of the axes of groups of texts
    (`observations`).
    """
    n = sum(lengths) if num_tokens is None else num_tokens
    if n < MIN_TOKENS:
        return f"{n} tokens; a claim needs at least {MIN_TOKENS}"
    if (available := count_shifts(lengths)) < MIN_SHIFTS:
        return f"{available} distinct time shifts; a null needs at least {MIN_SHIFTS}"
    return None


def why_too_slow(
    n_eff: Values,
    lengths: Sequence[int],
    num_tokens: int | None = None,
    independent: float | None = None,
) -> str | None:
    """Why series of this effective sample size are too slow for a null of shifts, or None.

    `n_eff`: effective samples of the pooled tokens, of which the median counts; `num_tokens` as in
    `why_too_few`; `independent`: what n_eff would be if no token depended on another (default: the
    tokens). A series that drifts through its whole text has no ends that meet: shifted circularly
    it gets a jump that the data lack, and slow series agree more often than their shifts. From
    MIN_EFFECTIVE effective samples a text the shifts hold their 5 % (see the calibration under
    benchmarks); a series whose tokens are nearly independent, n_eff > 3/4 `independent`, has
    nothing to drift.
    """
    n = sum(lengths) if num_tokens is None else num_tokens
    most = sum(lengths) if independent is None else independent
    typical = float(np.nanmedian(as_float64(n_eff)))
    if typical > 0.75 * most or typical >= MIN_EFFECTIVE * len(lengths):
        return None
    return (
        f"{n} tokens of {len(lengths)} text(s) that change so slowly that they are worth "
        f"{typical:.0f}; a null of time shifts needs {MIN_EFFECTIVE} a text"
    )


def draw_shifts(
    lengths: Sequence[int],
    count: int = NUM_SHIFTS,
    seed: int = 0,
    num_tokens: int | None = None,
) -> IntArray:
    """Distinct seeded shifts, one for each text: (m, texts), m up to count.

    A text of l tokens is shifted by smallest_shift(l) to l - smallest_shift(l) tokens, so that
    lags up to MAX_LAG are not in the null (short texts: up to a quarter of the text). Raises
    ValueError where `why_too_few` has a reason, and for count < MIN_SHIFTS.
    """
    if reason := why_too_few(lengths, num_tokens):
        raise ValueError(f"lengths is {list(lengths)}: {reason}; use longer texts or more of them")
    validate_int("seed", seed, 0)
    if count < MIN_SHIFTS:
        raise ValueError(f"count is {count}; a null needs at least {MIN_SHIFTS} shifts")
    rng = np.random.default_rng(seed)
    ranges = [(smallest_shift(length), length - smallest_shift(length)) for length in lengths]
    if len(lengths) == 1:
        return rng.permutation(np.arange(ranges[0][0], ranges[0][1] + 1))[:count, None]
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < min(count, count_shifts(lengths)):
        drawn.add(tuple(int(rng.integers(a, b + 1)) if a <= b else 0 for a, b in ranges))
    return np.array(sorted(drawn), dtype=np.int64)


def shifted_rows(lengths: Sequence[int], shifts: Sequence[int] | IntArray | int) -> IntArray:
    """Indices (n,) that shift pooled rows circularly within each text, as numpy.roll does.

    y[shifted_rows(lengths, s)] has at token t of a text the row of its token (t - s) mod length.
    `shifts`: one for each text, or one for all.
    """
    per_text = np.broadcast_to(np.asarray(shifts, dtype=np.int64), (len(lengths),))
    starts = np.cumsum([0, *lengths[:-1]])
    rows = [
        start + (np.arange(length) - shift) % length
        for start, length, shift in zip(starts, lengths, per_text, strict=True)
    ]
    return np.concatenate(rows).astype(np.int64)


def spearman_shift_test(
    x: Values,
    y: Values,
    lengths: Sequence[int],
    *,
    tokens: Sequence[Sequence[Hashable]] | None = None,
    num_shifts: int = 199,
    seed: int = 0,
) -> NullTest:
    """Spearman correlation of two pooled series (N,) against circular shifts of y within texts.

    Of the observations (`observations`; related texts are known by `tokens`, ids or what stands
    for a token, by text; without them by equal values), ranks without their course over position
    (`position_course`). Undefined, with the reason, for fewer than MIN_TOKENS tokens or MIN_SHIFTS
    shifts, where a side is constant, for series too slow for shifts (`why_too_slow`), and for sides
    that vary by position alike (`why_scaled_by_position`). Cost:
    two sorts and num_shifts inner products. Source: [3].
    """
    validate_int("seed", seed, 0)
    sides = [as_float64(v)[:, None] for v in (x, y)]
    if tokens is None:  # of a single text nothing was read before, whatever stands for its tokens
        tokens = [range(lengths[0])] if len(lengths) == 1 else row_tokens(sides, lengths)
    observed = observations(tokens)
    n, axes = len(observed.rows), observed.axis_lengths
    if reason := why_too_few(axes, observed.num_distinct):
        return undefined(reason, n)
    course = PositionCourse(observed)
    ranks = ranks_among(np.hstack(sides), observed.rows)
    units = unit_columns_without(course, ranks)
    if not units.varies.all():
        return undefined("one of the two series is constant", n)
    used = observed.used_lengths
    rho = autocorrelation_within_texts(units.values, used, max(used) // 4)
    independent = course.samples
    n_eff = effective_samples(rho[:, :1], rho[:, 1:], independent, pairs=False)
    reason = why_too_slow(n_eff, axes, observed.num_distinct, independent)
    sides = units.values[:, :1], units.values[:, 1:]
    if reason := reason or why_scaled_by_position(*sides, observed):
        return undefined(reason, n)
    second = units.moving[:, 1:]
    matched = observed.end_matched(second)
    shifts = draw_shifts(matched.axis_lengths, num_shifts, seed, observed.num_distinct)
    moved = paired_correlations(units.values[:, :1], second, course, matched, shifts)
    value = float(units.values[:, 0] @ units.values[:, 1])
    return against_null(value, np.array([float(r[0]) for r in moved]), n)


def spearman_permutation_test(
    x: Values, y: Values, *, num_permutations: int = 999, seed: int = 0
) -> NullTest:
    """Spearman correlation of x and y (n,), whose samples have no order, against permutations.

    Undefined, with the reason, for fewer than 8 samples (then too few permutations are distinct in
    rank correlation to matter) and where a side is constant. Cost: num_permutations inner products.
    """
    first, second = as_float64(x), as_float64(y)
    validate_int("seed", seed, 0)
    n = first.size
    if n < 8:
        return undefined(f"{n} samples; a permutation test here needs at least 8", n)
    value = spearman(first, second)
    if math.isnan(value):
        return undefined("one of the two sides is constant", n)
    ranks, _ = unit_columns(np.stack([stats.rankdata(v) for v in (first, second)], axis=1))
    draws = ranks[_permutations(n, num_permutations, seed), 1] @ ranks[:, 0]
    return against_null(value, draws, n)


@functools.lru_cache(maxsize=4)
def _permutations(n: int, count: int, seed: int) -> IntArray:
    """(count, n) seeded orders of n samples: tests of as many samples share them."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(count)])
