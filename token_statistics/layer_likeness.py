"""How alike the layers of two models are on one text: all pairs of layers at once, and their nulls.

Two comparisons. Of attention maps: the rank correlation of what a query takes from its sources,
averaged over queries. Of representations: debiased linear CKA over the text's tokens. Each is an
inner product of two vectors, one a layer, so that all pairs of layers are one matrix product; and
a circular shift of one side in time rolls its vectors, which gives the null.

Attention falls off with distance in every model, so that two maps agree for that reason alone. The
null of the windowed agreement keeps it: each query's attention as a function of the lag is given to
another query, which leaves the dependence on the lag as it is and breaks the tie to the tokens.

References:
  [1] Szekely & Rizzo 2014, Partial distance correlation with methods for dissimilarities, eq. 2.1
      (U-centred matrices, whose inner product is the unbiased HSIC of Song et al. 2012, eq. 5)
  [2] Kornblith, Norouzi, Lee & Hinton 2019, Similarity of neural network representations revisited

Shapes: p and q layers of the two models; l tokens of the text (or pieces: see
`analysis_pipelines.shared_pieces`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from token_statistics.description import FloatArray, IntArray, Values, as_float64
from token_statistics.text_groups import group_means, members, one_each
from token_statistics.time_shift_nulls import against_null

MAX_WINDOW = 64
"""Largest lag of the windowed agreement; at most a quarter of the text."""

MIN_SOURCES = 3
"""A rank correlation of fewer sources than this says nothing, and the query is left out."""


class RankedRows(NamedTuple):
    """Rows of several maps as ranks, centred and of unit norm: rank correlations are products."""

    values: NDArray[np.float32]
    """(p, entries) the rows one after the other; zero where a row is undefined"""
    defined: NDArray[np.float32]
    """(p, rows) 1 where the row has MIN_SOURCES that are not all equal"""


def causal_ranks(maps: Sequence[Values]) -> RankedRows:
    """Every row t of maps (l, l) over its sources s <= t. Cost: l sorts a map."""
    length = len(maps[0])
    causal = np.tri(length, dtype=bool)
    sizes = np.arange(1, length + 1)
    rows = []
    for one in maps:
        # Later tokens rank behind all sources and are left out.
        ranks = stats.rankdata(np.where(causal, as_float64(one), np.inf), axis=1)
        rows.append(_unit_ranks(np.where(causal, ranks, 0.0), causal, sizes))
    return _ranked([row[causal] for row in rows], [np.any(row, axis=1) for row in rows])


def first_rows(ranked: RankedRows, length: int) -> RankedRows:
    """The causal ranks of the first ``length`` queries: what a text cut there would give."""
    return RankedRows(
        ranked.values[:, : length * (length + 1) // 2], ranked.defined[:, :length]
    )  # fmt: skip


def window_size(length: int) -> int:
    """Largest lag of the windowed agreement in a text of this length."""
    return min(MAX_WINDOW, length // 4)


def window_ranks(maps: Sequence[Values]) -> RankedRows:
    """Rows t >= W of maps (l, l) over the lags 0..W, W = window_size(l): l - W rows of W + 1.

    Every row has the same lags, so that rows can be exchanged.
    """
    length = len(maps[0])
    window = window_size(length)
    queries = np.arange(window, length)[:, None]
    sources = queries - np.arange(window + 1)
    inside = np.ones(sources.shape, dtype=bool)
    sizes = np.full(len(queries), window + 1)
    rows = [
        _unit_ranks(stats.rankdata(as_float64(one)[queries, sources], axis=1), inside, sizes)
        for one in maps
    ]
    return _ranked([row.ravel() for row in rows], [np.any(row, axis=1) for row in rows])


def lag_profile(shares: Values) -> FloatArray:
    """A causal map (l, l) that depends on the lag alone: mean over queries at each lag k of
    (t + 1) shares[t, t - k].

    ``shares`` have rows that sum to 1. Relative to attention spread evenly, 1 / (t + 1), they are
    comparable across queries: without that, short lags would gain from early queries, whose few
    sources have large shares. Differences below 1e-5 are rounding, and made equal.
    """
    values = as_float64(shares)
    length = len(values)
    relative = values * np.arange(1, length + 1)[:, None]
    profile = np.array([np.diagonal(relative, -k).mean() for k in range(length)])
    mantissa, exponent = np.frexp(profile)
    profile = np.ldexp(np.round(mantissa, 5), exponent)
    lags = np.subtract.outer(np.arange(length), np.arange(length))
    return np.where(lags >= 0, profile[np.abs(lags)], 0.0)


def agreement(a: RankedRows, b: RankedRows, shift: int = 0) -> FloatArray:
    """Spearman per query, averaged over the queries: (p, q) in [-1, 1]; nan where none is defined.

    Queries that are undefined in either map are left out. With ``shift``, b's rows are rolled by so
    many queries, circularly; for window ranks only. Of causal ranks it is
    `analysis_utils.causal_spearman` for every pair of maps. Cost: one matrix product.
    """
    values, defined = b
    if shift:
        rows = values.reshape(*defined.shape, -1)
        values = np.roll(rows, shift, axis=1).reshape(len(values), -1)
        defined = np.roll(defined, shift, axis=1)
    counts = a.defined @ defined.T
    sums = (a.values @ values.T).astype(np.float64)
    return np.divide(sums, counts, where=counts > 0, out=np.full(counts.shape, np.nan))


def unit_grams(representations: Sequence[Values]) -> FloatArray:
    """U-centred Gram matrices [1] of representations (l, d), each of unit norm: (p, l, l).

    With K = x x^T without its diagonal: K_ij - K_i. / (l - 2) - K_.j / (l - 2) + K.. / ((l - 1)
    (l - 2)) off the diagonal, 0 on it. nan without variance. Raises ValueError for l < 4. Cost:
    O(l^2 d) a layer, memory 8 l^2 bytes.
    """
    return np.stack([_unit_gram(as_float64(x)) for x in representations])


def cka(a: FloatArray, b: FloatArray, shift: int = 0) -> FloatArray:
    """Debiased linear CKA [2] of all pairs of layers from their unit Gram matrices: (p, q).

    In [-1, 1], 0 on average for independent layers. With ``shift``, b's tokens are rolled by so
    many, circularly. It is `analysis_utils.linear_cka` for every pair. Cost: one matrix product.
    """
    rolled = np.roll(b, (shift, shift), axis=(1, 2)) if shift else b
    return np.clip(a.reshape(len(a), -1) @ rolled.reshape(len(b), -1).T, -1.0, 1.0)


def over_texts(
    values: Sequence[FloatArray], groups: Sequence[int] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Mean and sample standard deviation (p, q) over texts of (p, q) matrices, nan left out.

    ``groups``: of each text; those of one group count as one, with their mean (`text_groups`). The
    mean is nan where every text is, the deviation where fewer than 2 independent texts are defined.
    """
    stacked = np.stack(group_means(values, groups))
    defined = np.isfinite(stacked)
    count = defined.sum(axis=0)
    mean = np.where(defined, stacked, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
    squares = np.square(np.where(defined, stacked - mean, 0.0)).sum(axis=0)
    return mean, np.sqrt(squares / np.where(count > 1, count - 1, np.nan))


def with_null(
    values: Sequence[FloatArray],
    draws: Sequence[FloatArray],
    n: int,
    reason: str | None,
    groups: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A statistic of all pairs of layers beside its null, as matrices for JSON; None is undefined.

    ``values``: (p, q) for each text; ``draws``: (m, p, q) for each text, the j-th draw of every
    text being one draw of the null; none with the ``reason`` why there is no null. Both are
    averaged over texts, those of one of the ``groups`` as one. Keys: ``value``, ``text_std``,
    ``null_mean``, ``null_low``, ``null_high`` and ``p_value`` as in `time_shift_nulls.NullTest`,
    ``n`` (samples), ``num_texts``, ``num_groups``, ``num_draws``, ``reason``.
    """
    mean, spread = over_texts(values, groups)
    drawn = np.array([over_texts(draw, groups)[0] for draw in zip(*draws, strict=True)])
    drawn = drawn.reshape(-1, *mean.shape)
    names = ("null_mean", "null_low", "null_high", "p_value")
    nulls = {name: np.full(mean.shape, np.nan) for name in names}
    for cell in np.ndindex(mean.shape):
        test = against_null(float(mean[cell]), drawn[(slice(None), *cell)], n)
        for name in names:
            found = getattr(test, name)
            nulls[name][cell] = np.nan if found is None else found
    return {
        "value": plain(mean),
        "text_std": plain(spread),
        **{name: plain(matrix) for name, matrix in nulls.items()},
        "n": n,
        "num_texts": len(values),
        "num_groups": len(members(one_each(groups, len(values)))),
        "num_draws": len(drawn),
        "reason": reason,
    }


def best_match(matrix: FloatArray) -> float:
    """Mean over the layers of both models of each one's largest value (p, q); nan without any.

    A layer without a defined value is left out.
    """
    filled = np.where(np.isfinite(matrix), matrix, -np.inf)
    best = np.concatenate([filled.max(axis=1), filled.max(axis=0)])
    return float(best[np.isfinite(best)].mean()) if np.isfinite(best).any() else float("nan")


def plain(matrix: FloatArray) -> list[Any]:
    """A matrix as lists, nan as None."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in matrix]


def _unit_ranks(ranks: FloatArray, given: NDArray[np.bool_], sizes: IntArray) -> FloatArray:
    """Ranks 1..size in each row, where ``given``, centred and of unit norm; zero without order."""
    # Ties share their mean rank, so that the mean of a row is that of 1..size.
    centred = np.where(given, ranks - (sizes[:, None] + 1) / 2, 0.0)
    norms = np.linalg.norm(centred, axis=1)
    ordered = (norms > 0) & (sizes >= MIN_SOURCES)
    return np.where(ordered, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)[:, None] * centred


def _ranked(values: Sequence[FloatArray], defined: Sequence[NDArray[np.bool_]]) -> RankedRows:
    return RankedRows(np.stack(values).astype(np.float32), np.stack(defined).astype(np.float32))


def _unit_gram(values: FloatArray) -> FloatArray:
    n = len(values)
    if n < 4:
        raise ValueError(f"representations have {n} tokens; a debiased CKA needs 4 or more")
    if not np.ptp(values, axis=0).any():
        return np.full((n, n), np.nan)
    centred = values - values.mean(axis=0)
    scaled = centred / np.abs(centred).max()
    gram = scaled @ scaled.T
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=0)
    gram -= (sums[:, None] + sums) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    norm = np.linalg.norm(gram)
    # What is left below the rounding of the products is no variance.
    return gram / norm if norm > 1e-12 * np.square(scaled).sum() else np.full((n, n), np.nan)
