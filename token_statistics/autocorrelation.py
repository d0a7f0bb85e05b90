"""Autocorrelation within texts, beside that of shuffled tokens, and the samples it leaves.

References:
  [1] Bretherton, Widmann, Dymnikov, Wallace & Blade 1999, The effective number of spatial degrees
      of freedom of a time-varying field, eq. 30

Shapes: n pooled tokens of texts with `lengths` tokens each; p and q channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from suite_plumbing.arguments import validate_int
from token_statistics.description import (
    FloatArray,
    IntArray,
    Values,
    as_float64,
    lagged_products,
    unit_columns,
)
from token_statistics.rhythms import Rhythm, no_rhythm, rhythm

_READ_AT_ONCE = 1 << 17  # entries of a Gram matrix: for a CPU's second-level cache


def autocorrelation_within_texts(x: Values, lengths: Sequence[int], max_lag: int) -> FloatArray:
    """Autocorrelation of pooled series x (n, p) with no product across texts: (max_lag + 1, p).

    rho_k = sum over texts and t < length - k of (x_t - m)(x_{t+k} - m) / sum_t (x_t - m)^2 with m
    the mean over all n tokens; in [-1, 1], nan at zero variance. For one text it is
    `analysis_utils.autocorrelation`. Cost: O(n p log n) by FFT.
    """
    units, constant = unit_columns(as_float64(x))
    total = np.zeros((units.shape[1], max_lag + 1))
    for part in np.split(units, np.cumsum(lengths)[:-1]):
        reach = min(max_lag, len(part) - 1)
        total[:, : reach + 1] += lagged_products(part.T, reach)
    return np.where(constant, np.nan, total.T)


SHORT_REST = 16
"""Tokens of a stretch: a shorter one, left of a text after what was read before, would cut the lags
short."""


def long_enough(lengths: Sequence[int]) -> list[int]:
    """Numbers of the stretches that are no short rests; the longest where all are short."""
    enough = min(SHORT_REST, max(lengths, default=0))
    return [i for i, length in enumerate(lengths) if length >= enough]


class MeanAutocorrelation(NamedTuple):
    """Autocorrelation averaged over channels, at each lag, beside that of shuffled tokens."""

    lags: tuple[int, ...]
    """1, 2, ... tokens, at most half of the shortest text; empty where there is none"""
    mean: tuple[float, ...]
    """mean over the channels of rho_k, in [-1, 1]"""
    null_mean: tuple[float, ...]
    """its mean over the shuffles"""
    null_low: tuple[float, ...]
    """2.5 % quantile over the shuffles"""
    null_high: tuple[float, ...]
    """97.5 % quantile"""
    memory_time: int | None
    """first lag at which `mean` is no longer above the null's band: 1 when there is no memory at
    all; None if it never comes down within `lags`"""
    first_lag_below: int | None
    """first lag at which `mean` lies below the band; None if never"""
    rhythm: Rhythm
    """period at which the spectrum of `mean` stands out, with its null"""
    reason: str | None
    """why there are no lags"""


def mean_autocorrelation(
    x: Values,
    lengths: Sequence[int],
    max_lag: int,
    *,
    together: Sequence[tuple[int, int]] | None = None,
    num_shuffles: int = 199,
    seed: int = 0,
) -> MeanAutocorrelation:
    """Mean over channels of the autocorrelation of pooled series x (n, p), within texts.

    rho_k = sum over texts and t of (x_t - m)(x_{t+k} - m) / sum_t (x_t - m)^2, m the channel's mean
    in that text; channels that never vary are left out. The null shuffles the tokens of each text;
    with ``together``, the group of each text and where it begins on its axis (`observations`), the
    places of the axis, so that related texts are shuffled alike.
    Raises ValueError for max_lag < 1 or num_shuffles < 39 (a 95 % interval needs as many). Cost:
    one Gram matrix (l, l) a text, from which every shuffle is read in O(l max_lag).
    """
    validate_int("max_lag", max_lag, 1)
    validate_int("num_shuffles", num_shuffles, 39)
    validate_int("seed", seed, 0)
    lags = range(1, min(max_lag, min(lengths) // 2) + 1)
    grams = _gram_matrices(as_float64(x), lengths) if lags else []
    if not grams:
        reason = "no channel varies within a text" if lags else "a text has one token"
        return MeanAutocorrelation((), (), (), (), (), None, None, no_rhythm(reason), reason)
    rng = np.random.default_rng(seed)
    observed = _lag_sums(grams, lags, [np.arange(len(gram))[None] for gram in grams])[0]
    shuffles = [_shuffles(lengths, together, rng) for _ in range(num_shuffles)]
    draws = _lag_sums(grams, lags, [np.stack(orders) for orders in zip(*shuffles, strict=True)])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0, method="weibull")
    return MeanAutocorrelation(
        lags=tuple(lags),
        mean=tuple(observed.tolist()),
        null_mean=tuple(draws.mean(axis=0).tolist()),
        null_low=tuple(low.tolist()),
        null_high=tuple(high.tolist()),
        memory_time=_first(lags, observed <= high),
        first_lag_below=_first(lags, observed < low),
        rhythm=rhythm(observed, draws),
        reason=None,
    )


def _shuffles(
    lengths: Sequence[int], together: Sequence[tuple[int, int]] | None, rng: np.random.Generator
) -> list[IntArray]:
    """An order of the tokens of each text."""
    if together is None:
        return [rng.permutation(length) for length in lengths]
    sizes: dict[int, int] = {}
    for (group, begin), length in zip(together, lengths, strict=True):
        sizes[group] = max(sizes.get(group, 0), begin + length)
    keys = {group: rng.permutation(size) for group, size in sizes.items()}
    return [
        np.argsort(keys[group][begin : begin + length])
        for (group, begin), length in zip(together, lengths, strict=True)
    ]


def _gram_matrices(values: FloatArray, lengths: Sequence[int]) -> list[FloatArray]:
    """Inner products (l, l) of the tokens of each text, averaged over the channels that vary.

    Each channel is centred within each text and scaled to unit sum of squares over all of them, so
    that the sum along the k-th diagonals is the mean over channels of rho_k.
    """
    parts = np.split(values, np.cumsum(lengths)[:-1])
    constant = np.all([np.ptp(part, axis=0) == 0 for part in parts], axis=0)
    if constant.all():
        return []
    centred = [(part - part.mean(axis=0))[:, ~constant] for part in parts]
    total = np.sqrt(sum(np.square(part).sum(axis=0) for part in centred))
    scaled = [part / total for part in centred]
    return [part @ part.T / part.shape[1] for part in scaled]


def _lag_sums(grams: list[FloatArray], lags: range, orders: list[IntArray]) -> FloatArray:
    """(k, lags) sums of all Gram matrices along their diagonals once their tokens are put in each
    of k orders (k, l)."""
    return sum(
        (_diagonal_sums(gram, order, lags) for gram, order in zip(grams, orders, strict=True)),
        np.zeros((len(orders[0]), len(lags))),
    )


def _diagonal_sums(gram: FloatArray, orders: IntArray, lags: range) -> FloatArray:
    """The sums of one matrix, each diagonal a column of one reading: what lies beyond the text is
    read from a column of zeros. Some orders at a time."""
    n = len(gram)
    padded = F.pad(torch.from_numpy(gram), (0, 1))
    rows = torch.from_numpy(orders)
    columns = F.pad(rows, (0, lags.stop - 1), value=n).unfold(1, lags.stop, 1)[..., lags.start :]
    step = max(1, _READ_AT_ONCE // (n * len(lags)))
    read = (
        torch.take(padded, a.unsqueeze(2) * (n + 1) + b).sum(dim=1)
        for a, b in zip(rows.split(step), columns.split(step), strict=True)
    )
    return torch.cat(list(read)).numpy()


def _first(lags: range, condition: NDArray[np.bool_]) -> int | None:
    hits = np.flatnonzero(condition)
    return lags[int(hits[0])] if len(hits) else None


def effective_samples(rho_x: FloatArray, rho_y: FloatArray, n: float, *, pairs: bool) -> FloatArray:
    """Effective sample size n / (1 + 2 sum_{k>=1} rho_x(k) rho_y(k)) [1], within [2, n].

    rho_x (lags + 1, p) and rho_y (lags + 1, q) are autocorrelations. With `pairs` the result is
    (p, q), for every pair of channels; without, p = q and it is (p,), for each channel with its
    own counterpart. nan where rho is.
    """
    x, y = rho_x[1:], rho_y[1:]
    inflation = 1.0 + 2.0 * (x.T @ y if pairs else (x * y).sum(axis=0))
    return np.clip(n / np.maximum(inflation, 1.0), min(2, n), n)
