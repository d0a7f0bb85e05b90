"""How two sets of samples go together: Pearson and rank correlations, their p-values, overlap.

Pure functions on torch tensors or numpy arrays, in float64; what is undefined is ``nan``, as in
`description`.

References:
  [1] Bretherton, Widmann, Dymnikov, Wallace & Blade 1999, The effective number of spatial degrees
      of freedom of a time-varying field, eq. 30; after Bartlett 1935
  [2] Benjamini & Hochberg 1995, Controlling the false discovery rate
  [3] Benjamini & Yekutieli 2001, The control of the false discovery rate in multiple testing under
      dependency, theorems 1.2 and 1.3

Shapes: l tokens, n samples (tokens unless said otherwise), p and q channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from token_statistics.description import (
    FloatArray,
    IntArray,
    Values,
    finite_matrix,
    to_float64,
    unit_columns,
)

FALSE_DISCOVERY_RATE = 0.05

Places = tuple[IntArray, IntArray]


def pearson_matrix(x: Values, y: Values) -> FloatArray:
    """Pearson correlation of every column of x (n, p) with every column of y (n, q): (p, q).

    r = cov(x, y) / (std x std y) in [-1, 1]; nan where either column has zero variance (every
    column at n = 1; at n = 2 every r is +1 or -1). Raises ValueError for unequal n. Cost: one
    matrix product, 2 n p q operations.
    """
    x_values, y_values = paired_samples(x, y)
    x_units, x_constant = unit_columns(x_values)
    y_units, y_constant = unit_columns(y_values)
    r = np.clip(x_units.T @ y_units, -1.0, 1.0)
    return np.where(x_constant[:, None] | y_constant, np.nan, r)


def pearson_p_values(r: Values, n_eff: Values | float) -> FloatArray:
    """Two-sided p-values of correlations r, any shape, against zero correlation.

    t = r sqrt(df / (1 - r^2)) follows Student's t with df = n_eff - 2 for Gaussian data; n_eff
    broadcasts against r and need not be whole. At n_eff <= 2 there is no degree of freedom left and
    p is 1, the limit of the formula; nan in r or n_eff stays nan. Raises ValueError for |r| > 1.
    Cost: one incomplete-beta-type evaluation an entry.
    """
    r_values = to_float64(r)
    if np.any(np.abs(r_values) > 1.0):
        raise ValueError("r holds values outside [-1, 1]; pass Pearson correlations")
    df = np.maximum(to_float64(n_eff) - 2.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # |r| = 1 is t = inf, p = 0
        t = np.abs(r_values) * np.sqrt(df / ((1.0 - r_values) * (1.0 + r_values)))
        p = 2.0 * special.stdtr(df, -t)
    undefined = np.isnan(r_values) | np.isnan(df)
    return np.where(undefined, np.nan, np.where(df > 0, p, 1.0))


class Discoveries(NamedTuple):
    """Where the null is `rejected`, and the smallest rate at which it would be, `adjusted`."""

    rejected: NDArray[np.bool_]
    adjusted: FloatArray


def benjamini_hochberg(p: Values, q: float = 0.05) -> Discoveries:
    """Benjamini-Hochberg control of the false discovery rate at `q` over all entries of p [2].

    Adjusted p_(i) = min_{j >= i} p_(j) m / j over the m defined p-values; a nan is outside the
    family, never rejected and stays nan. The rate holds for independent tests, and for dependent
    ones where they are positively so: where each of the true nulls, as it grows, makes the others
    no more significant on average (positive regression dependency [3]), as one-sided tests of
    positively correlated normal statistics are. For any dependence q bounds it only times 1 + 1/2 +
    ... + 1/m. Pairs of channels that share a channel are dependent in neither proven way: that
    their rate holds is what `benchmarks/calibration.py` measures. Raises ValueError unless
    0 < q < 1 and every p is in [0, 1]. Cost: one sort.
    """
    if not 0.0 < q < 1.0:
        raise ValueError(f"q is {q}; a false discovery rate lies strictly between 0 and 1")
    p_values = to_float64(p)
    defined = ~np.isnan(p_values)
    adjusted = np.full(p_values.shape, np.nan)
    if defined.any():
        adjusted[defined] = stats.false_discovery_control(p_values[defined], method="bh")
    return Discoveries(adjusted <= q, adjusted)  # nan <= q is False


def spearman(x: Values, y: Values) -> float:
    """Spearman rank correlation of x and y (n,), in [-1, 1]; ties share their mean rank.

    nan if either side is constant (always at n = 1). Raises ValueError for unequal or zero length.
    """
    return float(spearman_matrix(to_float64(x)[:, None], to_float64(y)[:, None])[0, 0])


def spearman_matrix(x: Values, y: Values) -> FloatArray:
    """Spearman rank correlation of every column of x (n, p) with every column of y (n, q): (p, q).

    The Pearson correlation of the mean ranks; edge cases as `pearson_matrix`. Cost: p + q sorts and
    one matrix product.
    """
    x_values, y_values = paired_samples(x, y)
    return pearson_matrix(stats.rankdata(x_values, axis=0), stats.rankdata(y_values, axis=0))


def causal_spearman(map_a: Values, map_b: Values) -> float | None:
    """Agreement of two causal maps (l, l): Spearman over s <= t per query t, averaged over t.

    In [-1, 1]. Queries with fewer than 3 sources or with a constant row are left out; None if none
    remains (always for l < 3). Entries above the diagonal are not compared. Raises ValueError
    unless both are (l, l). Cost: O(l^2 log l), memory O(l) beyond the maps.
    """
    a, b = finite_matrix(map_a, "map_a"), finite_matrix(map_b, "map_b")
    if a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise ValueError(f"map_a is {a.shape} and map_b {b.shape}; both must be the same (l, l)")
    blocks = (slice(start, start + 64) for start in range(2, len(a), 64))
    rows = np.concatenate([np.empty(0), *(_spearman_by_row(a, b, queries) for queries in blocks)])
    defined = rows[~np.isnan(rows)]
    return float(defined.mean()) if defined.size else None


def _spearman_by_row(a: FloatArray, b: FloatArray, queries: slice) -> FloatArray:
    """Spearman over s <= t of each of these rows t; nan where one of the two is constant."""
    seen = np.tri(len(a[queries]), min(queries.stop, len(a)), queries.start, dtype=bool)
    middle = (seen.sum(axis=1, keepdims=True) + 1) / 2  # the mean rank, exact as are the ranks
    ranks = (
        stats.rankdata(np.where(seen, m[queries, : queries.stop], np.inf), axis=1) for m in (a, b)
    )
    x, y = (np.where(seen, rank - middle, 0.0) for rank in ranks)
    scale = np.sqrt(np.square(x).sum(axis=1) * np.square(y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, where=scale > 0, out=np.full_like(scale, np.nan))


def hypergeometric_overlap(
    overlap: int, size_a: int, size_b: int, population: int
) -> tuple[float, float]:
    """Mean overlap of two sets (say, top-n lists) drawn at random, and the p-value of `overlap`.

    Mean size_a size_b / population; p = P(X >= overlap), X hypergeometric. Raises ValueError unless
    0 <= overlap <= size_a, size_b <= population and population > 0.
    """
    if not 0 <= overlap <= min(size_a, size_b) or not max(size_a, size_b, 1) <= population:
        raise ValueError(
            f"overlap {overlap}, size_a {size_a}, size_b {size_b}, population {population}: "
            "need 0 <= overlap <= size_a, size_b <= population and population > 0"
        )
    p_value = stats.hypergeom.sf(overlap - 1, population, size_a, size_b)
    return size_a * size_b / population, float(p_value)


def paired_samples(x: Values, y: Values) -> tuple[FloatArray, FloatArray]:
    """x (n, p) and y (n, q) as float64; ValueError for unequal n and as `finite_matrix`."""
    x_values, y_values = finite_matrix(x, "x"), finite_matrix(y, "y")
    if len(x_values) != len(y_values):
        raise ValueError(
            f"x has {len(x_values)} samples and y {len(y_values)}; rows must be the same samples"
        )
    return x_values, y_values


def rejected_and_adjusted(p_values: FloatArray, places: Places) -> tuple[float, FloatArray]:
    """Share of p-values rejected at the false discovery rate, and those at `places` adjusted.

    As `analysis_utils.benjamini_hochberg`, but with a sort instead of an argsort, which for 768 x
    768 pairs takes fifteen times as long.
    """
    ordered = np.sort(p_values, axis=None)
    adjusted = ordered * (ordered.size / np.arange(1, ordered.size + 1))
    adjusted = np.minimum(np.minimum.accumulate(adjusted[::-1])[::-1], 1.0)
    # Equal p-values share the adjusted one of the last of them.
    chosen = adjusted[np.searchsorted(ordered, p_values[places], side="right") - 1]
    return float((adjusted <= FALSE_DISCOVERY_RATE).mean()), chosen


def share_rejected(r: FloatArray, n_eff: FloatArray) -> float:
    """Share of pairs rejected at the false discovery rate (Benjamini & Hochberg), and no more.

    That is the largest k / m with the k-th smallest of m p-values at most k / m times the rate.
    Only p-values up to the rate are computed: |t| <= 1.95 means p > 0.05 at any number of degrees
    of freedom (the normal distribution's limit is 1.96).
    """
    degrees = np.maximum(n_eff - 2.0, 0.0)
    possible = np.square(r) * (degrees + 1.95**2) > 1.95**2
    p_values = np.sort(pearson_p_values(r[possible], n_eff[possible]))
    ranks = np.arange(1, len(p_values) + 1)
    rejected = ranks[p_values <= ranks / r.size * FALSE_DISCOVERY_RATE]
    return float(rejected[-1]) / r.size if len(rejected) else 0.0
