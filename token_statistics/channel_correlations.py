"""Correlation of every channel of one layer with every channel of another, beside its null.

Pearson correlation of all pairs by one matrix product on standardised columns, the same for each
time-shift of the null and each lag, significance with the effective sample size at a false
discovery rate of 5 %, and debiased linear CKA. No model in here: activations in, statistics out.

References:
  [1] Kornblith, Norouzi, Lee & Hinton 2019, Similarity of neural network representations revisited
  [2] Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature selection via dependence maximization,
      eq. 5 (unbiased HSIC)

Shapes: n pooled tokens of all texts; p and q channels of the two layers that vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from token_statistics.association import (
    Places,
    pearson_p_values,
    rejected_and_adjusted,
    share_rejected,
)
from token_statistics.autocorrelation import autocorrelation_within_texts, effective_samples
from token_statistics.cka import DebiasedCKA
from token_statistics.description import FloatArray, IntArray, unit_columns
from token_statistics.time_shift_nulls import (
    MAX_LAG,
    NUM_SHIFTS,
    NullTest,
    against_null,
    draw_shifts,
    fields_to_dict,
    shifted_rows,
    smallest_shift,
    undefined,
    why_too_few,
    why_too_slow,
)

_NUM_TOP_PAIRS = 10

_TESTS = ("mean", "mean_abs", "max_abs", "best_match", "cka")

# Shifts at which the whole significance test is repeated, to see what it finds in nothing.
_NUM_CALIBRATIONS = 3


class PooledActivations(NamedTuple):
    """One layer's activations on all texts, the tokens of one text after those of another."""

    values: FloatArray
    """(n, d_model) float64, padding left out"""
    lengths: tuple[int, ...]
    """tokens of each text; they sum to n"""


class TopPair(NamedTuple):
    """One of the most correlated pairs of channels."""

    channel_a: int
    channel_b: int
    r: float
    """Pearson correlation"""
    effective_samples: float
    """samples behind r after correction for autocorrelation, of n tokens"""
    adjusted_p: float
    """Benjamini-Hochberg adjusted over all pairs of channels"""
    num_texts_agreeing: int | None = None
    """texts whose part of r has r's sign; None where texts were not told apart, or r = 0"""
    leading_text: int | None = None
    """number of the text with the largest part of r"""
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
    """n, padding left out"""
    num_texts: int
    num_channels: tuple[int, int]
    """channels of a and b that vary; the others have no correlation and are left out"""
    enough_tokens: bool
    reason: str | None
    """why nothing is claimed"""
    mean: NullTest
    """mean of r over the pairs; null: circular time-shifts within each text"""
    mean_abs: NullTest
    """mean of |r|, in [0, 1]"""
    max_abs: NullTest
    """largest |r|, in [0, 1]"""
    best_match: NullTest
    """largest |r| of a channel of b with any of a, mean over the channels of b, in [0, 1]"""
    mean_abs_without_first_tokens: float | None
    """mean of |r| without the first token of each text, which is an outlier in many models"""
    same_channel_mean_abs: float | None
    """mean of |r| of the pairs (i, i), which in the residual stream share their coordinate"""
    significant_share: float | None
    """share of pairs with r != 0 at a false discovery rate of 5 %, by Student's t with the
    effective sample size"""
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
    (p, n) x (n, q) in float32; the observed values are float64. About 60 products: 0.6 s on two
    cores for 512 tokens of 768 channels. Memory a few (p, q) matrices.
    """
    if first.lengths != second.lengths:
        raise ValueError(
            f"the layers hold texts of {first.lengths} and {second.lengths} tokens; they must be "
            "of the same texts"
        )
    lengths, n = first.lengths, sum(first.lengths)
    x, y = _varying_columns(first.values), _varying_columns(second.values)
    head: dict[str, Any] = {
        "layers": layers,
        "stream": stream,
        "shares_residual": stream == "residual",
        "num_tokens": n,
        "num_texts": len(lengths),
        "num_channels": (len(x.channels), len(y.channels)),
    }
    reason = why_too_few(lengths)
    if reason is None and not (len(x.channels) and len(y.channels)):
        reason = "no channel of one of the layers varies over the tokens"
    if reason is not None:
        return CrossLayerCorrelation(**head, **_no_claim(reason, n))
    n_eff = _effective_samples(x, y, lengths)
    if reason := why_too_slow(n_eff, lengths):
        return CrossLayerCorrelation(**head, **_no_claim(reason, n))
    shifts = draw_shifts(lengths, num_shifts, seed)
    r = np.clip(x.units.T @ y.units, -1.0, 1.0)
    return CrossLayerCorrelation(
        **head,
        enough_tokens=True,
        reason=None,
        mean_abs_without_first_tokens=_mean_abs_without_first(first, second),
        same_channel_mean_abs=_same_channel_mean_abs(r, x.channels, y.channels),
        **_significance(r, n_eff, x, y, lengths, shifts),
        **_against_shifts(r, x, y, lengths, shifts),
        **_lagged(x, y, lengths),
    )


class _Columns(NamedTuple):
    """The channels of a layer that vary, standardised over the pooled tokens."""

    values: FloatArray  # (n, p) as given
    units: FloatArray  # (n, p) centred, of unit norm: r is an inner product
    channels: IntArray  # (p,) their numbers in the layer


def _varying_columns(values: FloatArray) -> _Columns:
    units, constant = unit_columns(values)
    return _Columns(values[:, ~constant], units[:, ~constant], np.flatnonzero(~constant))


def _no_claim(reason: str, n: int) -> dict[str, Any]:
    test = undefined(reason, n)
    tests = dict.fromkeys(_TESTS, test)
    numbers = dict.fromkeys(
        ("mean_abs_without_first_tokens", "same_channel_mean_abs", "significant_share",
         "significant_share_null", "median_effective_samples")
    )  # fmt: skip
    empty = {"top_pairs": (), "lags": (), "lagged_mean_abs": ()}
    return {"enough_tokens": False, "reason": reason, **tests, **numbers, **empty}


def _mean_abs_without_first(first: PooledActivations, second: PooledActivations) -> float | None:
    starts = np.cumsum([0, *first.lengths[:-1]])
    rest = np.setdiff1d(np.arange(sum(first.lengths)), starts)
    if len(rest) < 2:
        return None
    x, y = _varying_columns(first.values[rest]), _varying_columns(second.values[rest])
    r = x.units.T @ y.units
    return float(np.abs(r).mean()) if r.size else None


def _same_channel_mean_abs(r: FloatArray, a: IntArray, b: IntArray) -> float | None:
    _, rows, columns = np.intersect1d(a, b, return_indices=True)
    return float(np.abs(r[rows, columns]).mean()) if len(rows) else None


def _effective_samples(x: _Columns, y: _Columns, lengths: tuple[int, ...]) -> FloatArray:
    max_lag = max(lengths) // 4
    rho_x, rho_y = (autocorrelation_within_texts(c.units, lengths, max_lag) for c in (x, y))
    return effective_samples(rho_x, rho_y, sum(lengths), pairs=True)


def _significance(
    r: FloatArray,
    n_eff: FloatArray,
    x: _Columns,
    y: _Columns,
    lengths: tuple[int, ...],
    shifts: IntArray,
) -> dict[str, Any]:
    share, pairs = significant_pairs(r, n_eff, x.channels, y.channels)
    shifted = (y.units[shifted_rows(lengths, shift)] for shift in shifts[:_NUM_CALIBRATIONS])
    by_chance = [share_rejected(np.clip(x.units.T @ y, -1.0, 1.0), n_eff) for y in shifted]
    return {
        "significant_share": share,
        "significant_share_null": float(np.mean(by_chance)),
        "median_effective_samples": float(np.median(n_eff)),
        "top_pairs": tuple(_with_texts(pair, x, y, lengths) for pair in pairs),
    }


def significant_pairs(
    r: FloatArray, n_eff: FloatArray, a: IntArray, b: IntArray
) -> tuple[float, tuple[TopPair, ...]]:
    """Share of pairs (p, q) significant at the false discovery rate, and those of largest |r|.

    The pairs descend in |r|; a and b are the channels' numbers.
    """
    places = largest_pairs(r)
    share, adjusted = rejected_and_adjusted(pearson_p_values(r, n_eff), places)
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


def _with_texts(pair: TopPair, x: _Columns, y: _Columns, lengths: tuple[int, ...]) -> TopPair:
    """The pair with the texts that it rests on, for r is the sum of their parts; none for r = 0."""
    if pair.r == 0:
        return pair
    i, j = np.searchsorted(x.channels, pair.channel_a), np.searchsorted(y.channels, pair.channel_b)
    starts = np.cumsum([0, *lengths[:-1]])
    parts = np.add.reduceat(x.units[:, i] * y.units[:, j], starts) / pair.r
    return pair._replace(
        num_texts_agreeing=int((parts > 0).sum()),
        leading_text=int(parts.argmax()),
        leading_share=float(parts.max()),
    )


def _against_shifts(
    r: FloatArray, x: _Columns, y: _Columns, lengths: tuple[int, ...], shifts: IntArray
) -> dict[str, NullTest]:
    """The tests of r and of CKA, from one product a shift."""
    n = sum(lengths)
    cka = DebiasedCKA(x.values, y.values)
    x_sum, y_sum = x.units.sum(axis=1), y.units.sum(axis=1)
    draws = np.empty((len(shifts), len(_TESTS)))
    for draw, shift, product in zip(draws, shifts, _products(x, y, lengths, shifts), strict=True):
        order = shifted_rows(lengths, shift)
        draw[0] = x_sum @ y_sum[order] / product.numel()
        best = product.abs_().amax(dim=0)
        draw[1:4] = product.mean(), best.max(), best.mean()
        draw[4] = cka.at(product.square_(), order)
    magnitudes = np.abs(r)
    observed_cka = cka.at(torch.from_numpy(np.square(r)), np.arange(n))
    best = magnitudes.max(axis=0)
    values = (r.mean(), magnitudes.mean(), best.max(), best.mean(), observed_cka)
    tests = [
        against_null(float(value), drawn, n) for value, drawn in zip(values, draws.T, strict=True)
    ]
    return dict(zip(_TESTS, tests, strict=True))


def _lagged(x: _Columns, y: _Columns, lengths: tuple[int, ...]) -> dict[str, Any]:
    reach = min(MAX_LAG, min(smallest_shift(length) for length in lengths) - 1)
    lags = range(-reach, reach + 1)
    # y later by k tokens than x is y shifted back by k.
    products = _products(x, y, lengths, [-lag for lag in lags])
    return {
        "lags": tuple(lags),
        "lagged_mean_abs": tuple(
            float(torch.linalg.vector_norm(product, 1)) / product.numel() for product in products
        ),
    }


def _products(
    x: _Columns, y: _Columns, lengths: tuple[int, ...], shifts: Iterable[Any]
) -> Iterator[torch.Tensor]:
    """Correlations (p, q) with y shifted, in float32: twice as fast, rounding below 1e-6.

    One buffer serves them all: each is overwritten by the next.
    """
    first = torch.from_numpy(x.units.T.astype(np.float32))
    second = torch.from_numpy(y.units.astype(np.float32))
    product = first.new_empty(len(first), second.shape[1])
    for shift in shifts:
        rows = torch.from_numpy(shifted_rows(lengths, shift))
        yield torch.mm(first, second.index_select(0, rows), out=product)
