"""Correlation of every channel of one layer with every channel of another, beside its null.

Pearson correlation of all pairs by one matrix product on standardised columns, the same for each
time-shift of the null and each lag, significance at a false discovery rate of 5 %, and debiased
linear CKA. No model in here: activations in, statistics out.

What is correlated are observations (`observations`: nothing that was read before, no warm-up)
without the course over position (`position_course`); groups of related texts are moved together.
The null says: the layers have their own course in time and over position, and what ties them to
each other at one token is coincidence.

Shapes: n observations of all texts; p and q channels of the two layers that vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from suite_plumbing.precision import in_full_precision
from token_statistics.association import Places, rejected_and_adjusted
from token_statistics.autocorrelation import autocorrelation_within_texts, effective_samples
from token_statistics.cka import DebiasedCKA
from token_statistics.description import FloatArray, IntArray, unit_columns
from token_statistics.moved_pairs import MovedPairs
from token_statistics.observations import Observations, observations, row_tokens
from token_statistics.pair_significance import ShiftedPairs
from token_statistics.position_course import PositionCourse, unit_columns_without
from token_statistics.position_scale import why_scaled_by_position
from token_statistics.time_shift_nulls import (
    MAX_LAG,
    NUM_SHIFTS,
    NullTest,
    against_null,
    draw_shifts,
    fields_to_dict,
    smallest_shift,
    undefined,
    why_too_few,
    why_too_slow,
)

PAIR_STATISTICS = {
    "mean": "mean r",
    "mean_abs": "mean |r|",
    "max_abs": "largest |r|",
    "best_match": "best match",
    "cka": "debiased CKA",
}
"""Statistics of all pairs of channels of two layers that are set beside their null: labels."""

_NUM_TOP_PAIRS = 10


class PooledActivations(NamedTuple):
    """One layer's activations on all texts, the tokens of one text after those of another."""

    values: FloatArray
    """(N, d_model) float64, padding left out"""
    lengths: tuple[int, ...]
    """tokens of each text; they sum to N"""
    token_ids: tuple[tuple[int, ...], ...] | None = None
    """of each text, by which what was read before is known; None: by equal values"""


class TopPair(NamedTuple):
    """One of the most correlated pairs of channels."""

    channel_a: int
    channel_b: int
    r: float
    """Pearson correlation, the course over position taken out"""
    effective_samples: float
    """samples behind r after correction for autocorrelation, of n tokens"""
    adjusted_p: float
    """p by the time-shifts of all pairs, Benjamini-Hochberg adjusted over them"""
    num_texts_agreeing: int | None = None
    """independent texts (groups of related ones) whose part of r has r's sign; None where texts
    were not told apart, or r = 0"""
    leading_text: int | None = None
    """number of the text, the first of its group, with the largest part of r"""
    leading_share: float | None = None
    """its part over r: near 1, the pair rests on one text; above 1, others pull against it"""


@dataclass(frozen=True, eq=False)
class CrossLayerCorrelation:
    """Correlation of every pair of channels of two layers over pooled tokens.

    With too few tokens for a claim, or too slow ones, `enough_tokens` is False and every statistic
    None.
    """

    layers: tuple[int, int]
    """(a, b)"""
    stream: str
    """what was correlated: "residual" or "mixer"
    (see layer_correlation_analyzer.STREAMS)"""
    shares_residual: bool
    """True for the residual stream: b's activations contain a's, so that correlation is expected
    and says nothing of selectivity; compare the mixer stream"""
    num_tokens: int
    """distinct observations: tokens that were not read before with the same history, padding left
    out; of them `num_warm_up` are in no statistic"""
    num_texts: int
    num_groups: int
    """independent groups of related texts: how many texts there are to speak of"""
    groups: tuple[int, ...]
    """of each text: number of the first text of its group"""
    num_warm_up: int
    """tokens left out at the beginning of texts (see token_statistics.observations)"""
    position: str | None
    """what was taken out as the course over position (see token_statistics.position_course)"""
    num_channels: tuple[int, int]
    """channels of a and b that vary; the others have no correlation and are left out"""
    enough_tokens: bool
    reason: str | None
    """why nothing is claimed"""
    mean: NullTest
    """mean of r over the pairs; null: circular time-shifts within each group of texts"""
    mean_abs: NullTest
    """mean of |r|, in [0, 1]"""
    max_abs: NullTest
    """largest |r|, in [0, 1]"""
    best_match: NullTest
    """largest |r| of a channel of b with any of a, mean over the channels of b, in [0, 1]"""
    mean_abs_with_position: float | None
    """mean of |r| of all distinct tokens as they are, warm-up and course over position left in: far
    above `mean_abs` where the layers agree in where a token stands more than in what it is"""
    same_channel_mean_abs: float | None
    """mean of |r| of the pairs (i, i), which in the residual stream share their coordinate"""
    significant_share: float | None
    """share of pairs with r != 0 at a false discovery rate of 5 %, by the distribution of r sqrt(
    effective samples) under the shifts (see token_statistics.pair_significance)"""
    significant_share_null: float | None
    """the same share when b is shifted in time, mean of three shifts: what that test finds where
    there is nothing"""
    median_effective_samples: float | None
    """median over the pairs, at most n"""
    top_pairs: tuple[TopPair, ...]
    """the pairs of largest |r|, descending"""
    cka: NullTest
    """debiased linear CKA [1, 2], in [-1, 1]"""
    lags: tuple[int, ...]
    """tokens by which b is taken later than a, circularly within each text, -8..8 (fewer where a
    text is shorter than 36 tokens)"""
    lagged_mean_abs: tuple[float, ...]
    """mean of |r| at each lag; its null is that of `mean_abs`, whose shifts lie beyond the lags"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return fields_to_dict(self)


@in_full_precision
def cross_layer_correlation(
    first: PooledActivations,
    second: PooledActivations,
    *,
    layers: tuple[int, int] = (0, 1),
    stream: str = "residual",
    num_shifts: int = NUM_SHIFTS,
    seed: int = 0,
) -> CrossLayerCorrelation:
    """Correlate every channel of one layer with every channel of another over the same tokens.

    Raises ValueError when the two hold different tokens. Cost: for each shift and lag one product
    (p, n) x (n, q) in float32; the observed values are float64. About 60 products: 0.55 s on one
    core for 512 tokens of 768 channels. Memory a few (p, q) matrices.
    """
    tokens = observed_by(first, second)
    course = PositionCourse(tokens)
    x, y = (_varying_columns(side.values, course) for side in (first, second))
    n = len(tokens.rows)
    head: dict[str, Any] = {
        "layers": layers,
        "stream": stream,
        "shares_residual": stream == "residual",
        "num_tokens": tokens.num_distinct,
        "num_texts": len(tokens.lengths),
        "num_groups": len(tokens.group_numbers),
        "groups": tokens.groups,
        "num_warm_up": tokens.num_distinct - n,
        "num_channels": (len(x.channels), len(y.channels)),
    }
    reason = why_too_few(tokens.axis_lengths, tokens.num_distinct)
    if reason is None and not (len(x.channels) and len(y.channels)):
        reason = "no channel of one of the layers varies over the tokens"
    if reason is not None:
        return CrossLayerCorrelation(**head, **_no_claim(reason, n))
    n_eff = _effective_samples(x, y, course)
    typical = np.median(n_eff, keepdims=True)
    reason = why_too_slow(typical, tokens.axis_lengths, tokens.num_distinct, course.samples)
    if reason := reason or why_scaled_by_position(x.units, y.units, tokens):
        return CrossLayerCorrelation(**head, **_no_claim(reason, n))
    r = np.clip(x.units.T @ y.units, -1.0, 1.0)
    moved = MovedPairs(x.units, y.moving, course)
    tests, pairs = _against_shifts(r, n_eff, moved, _cka(x, y, course.freedom), num_shifts, seed)
    return CrossLayerCorrelation(
        **head,
        position=course.described,
        enough_tokens=True,
        reason=None,
        median_effective_samples=float(typical.item()),
        mean_abs_with_position=_mean_abs_with_position(first, second, tokens),
        same_channel_mean_abs=_same_channel_mean_abs(r, x.channels, y.channels),
        **_significance(r, n_eff, pairs, x, y, tokens),
        **tests,
        **_lagged(moved),
    )


def observed_by(first: PooledActivations, second: PooledActivations) -> Observations:
    """The observations that two layers have of the same texts; ValueError for different texts."""
    if first.lengths != second.lengths or first.token_ids != second.token_ids:
        raise ValueError(
            f"the layers hold texts of {first.lengths} and {second.lengths} tokens; they must be "
            "of the same texts"
        )
    sides = (first.values, second.values)
    texts: Sequence[Sequence[int]] | None = first.token_ids
    if texts is None:
        texts = row_tokens(sides, first.lengths)
    return observations(texts, np.stack([np.linalg.norm(side, axis=1) for side in sides], axis=1))


class _Columns(NamedTuple):
    """The channels of a layer that vary, without the course over position."""

    units: FloatArray  # (n, p), of unit norm over the observations: r is an inner product
    moving: FloatArray  # (N, p) of all tokens given, as a null moves them
    scale: FloatArray  # (p,) norms before
    channels: IntArray  # (p,) their numbers in the layer


def _varying_columns(values: FloatArray, course: PositionCourse) -> _Columns:
    columns = unit_columns_without(course, values)
    varies = columns.varies
    return _Columns(
        columns.values[:, varies],
        columns.moving[:, varies],
        columns.scale[varies],
        np.flatnonzero(varies),
    )


def _no_claim(reason: str, n: int) -> dict[str, Any]:
    test = undefined(reason, n)
    tests = dict.fromkeys(PAIR_STATISTICS, test)
    numbers = dict.fromkeys(
        ("mean_abs_with_position", "same_channel_mean_abs", "significant_share",
         "significant_share_null", "median_effective_samples", "position")
    )  # fmt: skip
    empty = {"top_pairs": (), "lags": (), "lagged_mean_abs": ()}
    return {"enough_tokens": False, "reason": reason, **tests, **numbers, **empty}


def _mean_abs_with_position(
    first: PooledActivations, second: PooledActivations, tokens: Observations
) -> float | None:
    rows = tokens.distinct_rows
    sides = (unit_columns(side.values[rows]) for side in (first, second))
    x, y = (units[:, ~constant].astype(np.float32) for units, constant in sides)
    r = x.T @ y
    return float(np.abs(r, out=r).mean(dtype=np.float64)) if r.size else None


def _same_channel_mean_abs(r: FloatArray, a: IntArray, b: IntArray) -> float | None:
    _, rows, columns = np.intersect1d(a, b, return_indices=True)
    return float(np.abs(r[rows, columns]).mean()) if len(rows) else None


def _effective_samples(x: _Columns, y: _Columns, course: PositionCourse) -> FloatArray:
    lengths = course.tokens.used_lengths
    max_lag = max(lengths) // 4
    rho_x, rho_y = (autocorrelation_within_texts(c.units, lengths, max_lag) for c in (x, y))
    return effective_samples(rho_x, rho_y, course.samples, pairs=True)


def _significance(
    r: FloatArray,
    n_eff: FloatArray,
    pairs: ShiftedPairs,
    x: _Columns,
    y: _Columns,
    tokens: Observations,
) -> dict[str, Any]:
    share, top = significant_pairs(r, n_eff, pairs, x.channels, y.channels)
    return {
        "significant_share": share,
        "significant_share_null": pairs.share_by_chance(),
        "top_pairs": tuple(_with_texts(pair, x, y, tokens) for pair in top),
    }


def significant_pairs(
    r: FloatArray, n_eff: FloatArray, null: ShiftedPairs, a: IntArray, b: IntArray
) -> tuple[float, tuple[TopPair, ...]]:
    """Share of pairs (p, q) significant at the false discovery rate, and those of largest |r|.

    The pairs descend in |r|; a and b are the channels' numbers.
    """
    places = largest_pairs(r)
    p_values = null.p_values(np.abs(r) * np.sqrt(n_eff))
    share, adjusted = rejected_and_adjusted(p_values, places)
    columns = (a[places[0]], b[places[1]], r[places], n_eff[places], adjusted)
    pairs = (TopPair(*pair) for pair in zip(*(c.tolist() for c in columns), strict=True))
    return share, tuple(pairs)


def largest_pairs(r: FloatArray) -> Places:
    """Rows and columns of the largest |r|, descending."""
    magnitudes = np.abs(r).ravel()
    count = min(_NUM_TOP_PAIRS, magnitudes.size)
    largest = np.argpartition(magnitudes, -count)[-count:]
    largest = largest[np.argsort(-magnitudes[largest], kind="stable")]
    rows, columns = np.unravel_index(largest, r.shape)
    return rows, columns


def _with_texts(pair: TopPair, x: _Columns, y: _Columns, tokens: Observations) -> TopPair:
    """The pair with the texts that it rests on, for r is the sum of their parts; none for r = 0."""
    if pair.r == 0:
        return pair
    i, j = np.searchsorted(x.channels, pair.channel_a), np.searchsorted(y.channels, pair.channel_b)
    groups = np.searchsorted(tokens.group_numbers, tokens.row_groups)
    parts = np.bincount(groups, x.units[:, i] * y.units[:, j]) / pair.r
    return pair._replace(
        num_texts_agreeing=int((parts > 0).sum()),
        leading_text=tokens.group_numbers[int(parts.argmax())],
        leading_share=float(parts.max()),
    )


def _against_shifts(
    r: FloatArray,
    n_eff: FloatArray,
    moved: MovedPairs,
    cka_and_weights: tuple[DebiasedCKA, list[FloatArray]],
    num_shifts: int,
    seed: int,
) -> tuple[dict[str, NullTest], ShiftedPairs]:
    """The tests of r and of CKA, and the null of single pairs, from one product a shift."""
    tokens, (cka, weights) = moved.tokens, cka_and_weights
    shifts = draw_shifts(tokens.axis_lengths, num_shifts, seed, tokens.num_distinct)
    pairs = ShiftedPairs(n_eff)
    drawn = moved.draws(shifts, weights, pairs)
    drawn_cka = [cka.at(*pair) for pair in zip(drawn.energies, drawn.row_norms, strict=True)]
    magnitudes = np.abs(r)
    best = magnitudes.max(axis=0)
    energy = float(weights[0] @ np.square(r) @ weights[1])
    values = (r.mean(), magnitudes.mean(), best.max(), best.mean(), cka.at(energy, cka.norms[1]))
    tests = [
        against_null(float(value), draws, len(tokens.rows))
        for value, draws in zip(values, (*drawn[:4], drawn_cka), strict=True)
    ]
    return dict(zip(PAIR_STATISTICS, tests, strict=True)), pairs


def _cka(x: _Columns, y: _Columns, freedom: float) -> tuple[DebiasedCKA, list[FloatArray]]:
    """CKA of two layers, and the weights of their channels in it, of sum 1 each."""
    weights = [np.square(side.scale / np.linalg.norm(side.scale)) for side in (x, y)]
    left, right = (side.units * np.sqrt(w) for side, w in zip((x, y), weights, strict=True))
    return DebiasedCKA(left, right, freedom), weights


def _lagged(moved: MovedPairs) -> dict[str, Any]:
    lengths = moved.course.tokens.lengths
    reach = min(MAX_LAG, min(smallest_shift(length) for length in lengths) - 1)
    lags = tuple(range(-reach, reach + 1))
    # y later by k tokens than x is y shifted back by k.
    means = moved.mean_magnitudes([-lag for lag in lags])
    return {"lags": lags, "lagged_mean_abs": tuple(means.tolist())}
