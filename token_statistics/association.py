"""Statistics that two or more analyses need; the drawing primitives are passed on from `drawing`.

The statistics are pure functions on torch tensors or numpy arrays and compute in float64. One rule
for what cannot be computed: a quantity that the data leave undefined (a channel of zero variance, a
row of zero sum) is ``nan``, which callers write as null with the reason; an input of the wrong
shape, with non-finite values or with too few samples for the definition raises ``ValueError``.

References:
  [1] Bretherton, Widmann, Dymnikov, Wallace & Blade 1999, The effective number of spatial degrees
      of freedom of a time-varying field, eq. 30; after Bartlett 1935
  [2] Benjamini & Hochberg 1995, Controlling the false discovery rate
  [3] Kornblith, Norouzi, Lee & Hinton 2019, Similarity of neural network representations revisited
  [4] Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature selection via dependence maximization,
      eq. 5 (unbiased HSIC); Nguyen, Raghu & Kornblith 2021 apply it to CKA
  [5] Wald & Wolfowitz 1943, An exact test for randomness in the non-parametric case based on serial
      correlation

Shapes: l tokens, n samples (tokens unless said otherwise), p and q channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, special, stats

from drawing import PALETTE as PALETTE
from drawing import clean_token as clean_token
from drawing import draw_heatmap as draw_heatmap
from drawing import draw_lines_with_band as draw_lines_with_band
from drawing import draw_null_band as draw_null_band
from drawing import draw_points_by_group as draw_points_by_group
from drawing import token_ticks as token_ticks

FloatArray = NDArray[np.float64]
Values = torch.Tensor | NDArray[Any] | Sequence[Any]


def entropy(weights: torch.Tensor | NDArray[Any], dim: int = -1) -> torch.Tensor:
    """Shannon entropy in nats of non-negative weights normalised to sum 1 along `dim`.

    H = -sum_s w_s ln w_s with w = weights / sum(weights) and 0 ln 0 = 0; in [0, ln(size of dim)].
    Computed in float64, returned in the dtype of floating-point weights, without `dim`. A row of
    zero sum is nan. Negative or non-finite weights raise ValueError: take the absolute value first
    if |alpha| is meant. Cost: O(size).
    """
    tensor = torch.as_tensor(weights)
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float64
    tensor = tensor.double()
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError("weights holds negative or non-finite values; pass finite weights.abs()")
    shares = tensor / tensor.sum(dim=dim, keepdim=True)
    return torch.special.entr(shares).sum(dim=dim).to(dtype)


def normalised_entropy(weights: torch.Tensor | NDArray[Any]) -> torch.Tensor:
    """Entropy of each causal row as a share of its maximum ln(t+1), in [0, 1].

    weights (..., l, l), row t over sources s <= t; entries above the diagonal are not read. Returns
    (..., l). Row 0 has one source, ln 1 = 0, so its share is undefined: nan, as is a row of zero
    sum. Raises ValueError as `entropy` does, and if the last two sizes differ. Cost: O(l^2).
    """
    tensor = torch.as_tensor(weights)
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2]:
        raise ValueError(f"weights has shape {tuple(tensor.shape)}; expected (..., l, l)")
    nats = entropy(tensor.tril())
    sources = torch.arange(1, tensor.shape[-1] + 1, dtype=torch.float64, device=nats.device)
    # Row 0 is 0 / 0 = nan; the division rounds a full-entropy row at most to 1 + eps.
    return (nats.double() / sources.log()).clamp(max=1.0).to(nats.dtype)


def autocorrelation(x: Values, max_lag: int) -> FloatArray:
    """Autocorrelation of each channel of x (l, p) at lags 0..max_lag, shape (max_lag + 1, p).

    rho_k = sum_{t < l-k} (x_t - m)(x_{t+k} - m) / sum_t (x_t - m)^2: the biased estimator, which
    shrinks lag k by (l - k)/l and therefore stays in [-1, 1] and positive semidefinite. A channel
    of zero variance (every channel at l = 1) is nan. Raises ValueError unless 0 <= max_lag < l.
    Cost: O(p l log l) by FFT.
    """
    values = _matrix(x, "x")
    _check_lag(max_lag, len(values))
    units, constant = unit_columns(values)
    return np.where(constant, np.nan, lagged_products(units.T, max_lag).T)


class NullBand(NamedTuple):
    """What a null hypothesis gives for a statistic: its mean and its central 95 % interval."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


def autocorrelation_null(x: Values, max_lag: int, num_shuffles: int, seed: int) -> NullBand:
    """Autocorrelation of x (l, p) when its time order carries nothing: shuffled in time.

    Each of `num_shuffles` seeded shuffles permutes the tokens of all channels alike; `low` and
    `high` are the 2.5 % and 97.5 % quantiles over the shuffles, per lag and channel. `mean` is
    exact, not sampled: over all permutations E[rho_k] = -(l - k) / (l (l - 1)) for k >= 1 [5].
    Shapes (max_lag + 1, p); zero variance is nan. Fewer than 40 shuffles cannot resolve a 2.5 %
    quantile: ValueError. Cost: num_shuffles times that of `autocorrelation`.
    """
    values = _matrix(x, "x")
    length = len(values)
    _check_lag(max_lag, length)
    if num_shuffles < 40:
        raise ValueError(f"num_shuffles is {num_shuffles}; a 95 % interval needs at least 40")
    units, constant = unit_columns(values)
    rng = np.random.default_rng(seed)
    draws = np.empty((num_shuffles, values.shape[1], max_lag + 1))
    for draw in draws:
        draw[:] = lagged_products(units[rng.permutation(length)].T, max_lag)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    lags = np.arange(max_lag + 1)[:, None]
    mean = np.where(lags == 0, 1.0, (lags - length) / (length * max(length - 1, 1)))
    return NullBand(*(np.where(constant, np.nan, bound) for bound in (mean, low.T, high.T)))


def circular_shifts(
    length: int, count: int = 20, seed: int = 0, min_shift: int = 1
) -> NDArray[np.int64]:
    """Distinct circular time-shifts, sorted, drawn without replacement: (count,) integers.

    Every shift s has min_shift <= s <= length - min_shift, so that it moves the series by at least
    `min_shift` tokens either way round; a min_shift beyond the autocorrelation makes the null
    independent of the truth. The same arguments give the same shifts. If fewer than `count` shifts
    exist the series is too short for that null: ValueError says how long it would have to be.
    """
    if min_shift < 1 or count < 1:
        raise ValueError(f"min_shift is {min_shift} and count {count}; both must be at least 1")
    available = length - 2 * min_shift + 1
    if available < count:
        raise ValueError(
            f"length is {length}: {max(available, 0)} distinct shifts of {min_shift} or more exist "
            f"and count is {count}; use {count + 2 * min_shift - 1} tokens or more, or fewer shifts"
        )
    rng = np.random.default_rng(seed)
    return np.sort(min_shift + rng.choice(available, size=count, replace=False)).astype(np.int64)


def pearson_matrix(x: Values, y: Values) -> FloatArray:
    """Pearson correlation of every column of x (n, p) with every column of y (n, q): (p, q).

    r = cov(x, y) / (std x std y) in [-1, 1]; nan where either column has zero variance (every
    column at n = 1; at n = 2 every r is +1 or -1). Raises ValueError for unequal n. Cost: one
    matrix product, 2 n p q operations.
    """
    x_values, y_values = _paired(x, y)
    x_units, x_constant = unit_columns(x_values)
    y_units, y_constant = unit_columns(y_values)
    r = np.clip(x_units.T @ y_units, -1.0, 1.0)
    return np.where(x_constant[:, None] | y_constant, np.nan, r)


def effective_sample_size(x: Values, y: Values, max_lag: int | None = None) -> FloatArray:
    """Effective number of samples behind r(x_i, y_j) for autocorrelated series, shape (p, q).

    n_eff = n / (1 + 2 sum_{k=1}^{max_lag} rho_x(k) rho_y(k)) [1], bounded to [2, n], with the
    biased autocorrelations of x (n, p) and y (n, q). For two AR(1) series it is
    n (1 - a b) / (1 + a b). `max_lag` defaults to n // 4: beyond it the estimates are noise, which
    for nearly equal series adds up to a bias. nan where a column has zero variance. Raises
    ValueError for unequal n. Cost: two FFTs and one matrix product, 2 max_lag p q operations.
    """
    x_values, y_values = _paired(x, y)
    num_samples = len(x_values)
    max_lag = num_samples // 4 if max_lag is None else max_lag
    _check_lag(max_lag, num_samples)
    x_units, x_constant = unit_columns(x_values)
    y_units, y_constant = unit_columns(y_values)
    rho_x = lagged_products(x_units.T, max_lag)[:, 1:]
    rho_y = lagged_products(y_units.T, max_lag)[:, 1:]
    inflation = np.maximum(1.0 + 2.0 * (rho_x @ rho_y.T), 1.0)
    n_eff = np.maximum(num_samples / inflation, min(2, num_samples))
    return np.where(x_constant[:, None] | y_constant, np.nan, n_eff)


def pearson_p_values(r: Values, n_eff: Values | float) -> FloatArray:
    """Two-sided p-values of correlations r, any shape, against zero correlation.

    t = r sqrt(df / (1 - r^2)) follows Student's t with df = n_eff - 2 for Gaussian data; n_eff
    broadcasts against r and need not be whole. At n_eff <= 2 there is no degree of freedom left and
    p is 1, the limit of the formula; nan in r or n_eff stays nan. Raises ValueError for |r| > 1.
    Cost: one incomplete-beta-type evaluation an entry.
    """
    r_values = _float64(r)
    if np.any(np.abs(r_values) > 1.0):
        raise ValueError("r holds values outside [-1, 1]; pass Pearson correlations")
    df = np.maximum(_float64(n_eff) - 2.0, 0.0)
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
    family, never rejected and stays nan. Valid for independent or positively dependent tests.
    Raises ValueError unless 0 < q < 1 and every p is in [0, 1]. Cost: one sort.
    """
    if not 0.0 < q < 1.0:
        raise ValueError(f"q is {q}; a false discovery rate lies strictly between 0 and 1")
    p_values = _float64(p)
    defined = ~np.isnan(p_values)
    adjusted = np.full(p_values.shape, np.nan)
    if defined.any():
        adjusted[defined] = stats.false_discovery_control(p_values[defined], method="bh")
    return Discoveries(adjusted <= q, adjusted)  # nan <= q is False


def linear_cka(x: Values, y: Values, debiased: bool = True) -> float:
    """Linear centred kernel alignment of x (n, p) and y (n, q) over the same n samples [3, 4].

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = x x^T, L = y y^T. It is 1 for equal
    representations and unchanged by rotation, shift and isotropic scaling of either side. Biased,
    it is in [0, 1] and tends to 1 for any two inputs as p, q grow past n; `debiased` uses the
    unbiased HSIC, is in [-1, 1] and 0 on average for independent inputs. nan if either side has no
    variance. Raises ValueError for n < 4 (n < 2 if not debiased) and for unequal n. Cost: the
    cheaper of the feature form, O(n p q), and the Gram form, O(n^2 (p + q)).
    """
    return float(_cka_at_shifts(x, y, np.zeros(1, dtype=np.int64), debiased)[0])


def cka_null(x: Values, y: Values, shifts: Values, debiased: bool = True) -> FloatArray:
    """Linear CKA of x with y shifted circularly in time by each of `shifts`: (len(shifts),).

    Shifting keeps each side's own autocorrelation and breaks what ties the two in time, so
    (1 + number of null values >= observed) / (1 + len(shifts)) is a p-value. nan and ValueError as
    `linear_cka`. Cost: one CKA, and the cheaper of O(n^2) (Gram form) and O(n p q) a shift.
    """
    return _cka_at_shifts(x, y, _float64(shifts).astype(np.int64).reshape(-1), debiased)


def spearman(x: Values, y: Values) -> float:
    """Spearman rank correlation of x and y (n,), in [-1, 1]; ties share their mean rank.

    nan if either side is constant (always at n = 1). Raises ValueError for unequal or zero length.
    """
    return float(spearman_matrix(_float64(x)[:, None], _float64(y)[:, None])[0, 0])


def spearman_matrix(x: Values, y: Values) -> FloatArray:
    """Spearman rank correlation of every column of x (n, p) with every column of y (n, q): (p, q).

    The Pearson correlation of the mean ranks; edge cases as `pearson_matrix`. Cost: p + q sorts and
    one matrix product.
    """
    x_values, y_values = _paired(x, y)
    return pearson_matrix(stats.rankdata(x_values, axis=0), stats.rankdata(y_values, axis=0))


def causal_spearman(map_a: Values, map_b: Values) -> float | None:
    """Agreement of two causal maps (l, l): Spearman over s <= t per query t, averaged over t.

    In [-1, 1]. Queries with fewer than 3 sources or with a constant row are left out; None if none
    remains (always for l < 3). Entries above the diagonal are not compared. Raises ValueError
    unless both are (l, l). Cost: O(l^2 log l), memory O(l) beyond the maps.
    """
    a, b = _matrix(map_a, "map_a"), _matrix(map_b, "map_b")
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


def participation_ratio(samples: Values) -> FloatArray:
    """Participation ratio of the covariance of samples (..., n, d) over n, shape (...).

    (sum lambda)^2 / sum lambda^2 = tr(C)^2 / |C|_F^2, the number of directions that share the
    variance: in [1, min(n - 1, d)]. Unchanged by scaling and rotation. nan at zero variance (always
    at n = 1). No eigendecomposition: cost O(n d min(n, d)), memory O(min(n, d)^2) a leading index.
    """
    values = _float64(samples)
    if values.ndim < 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"samples has shape {values.shape}; expected finite values (..., n, d)")
    centred = _centre(values)
    transposed = np.swapaxes(centred, -1, -2)
    wide = values.shape[-2] < values.shape[-1]  # either product has the non-zero eigenvalues
    return covariance_participation_ratio(centred @ transposed if wide else transposed @ centred)


def covariance_participation_ratio(covariance: Values) -> FloatArray:
    """Participation ratio tr(C)^2 / |C|_F^2 of symmetric covariance matrices (..., d, d): (...).

    In [1, d]; nan for C = 0. Raises ValueError unless the last two sizes agree. Cost: O(d^2).
    """
    matrix = _float64(covariance)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"covariance has shape {matrix.shape}; expected (..., d, d)")
    trace = np.trace(matrix, axis1=-2, axis2=-1)
    energy = np.square(matrix).sum(axis=(-2, -1))
    return np.divide(trace**2, energy, where=energy > 0, out=np.full_like(trace, np.nan))


def bootstrap_interval(
    values: Values,
    statistic: Callable[..., Any] = np.mean,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of values (n,).

    `statistic(sample, axis)` as numpy's reductions. Equal values give a point. Raises ValueError
    for n < 2, where resampling says nothing. Source: scipy.stats.bootstrap. Cost: num_resamples
    evaluations, in batches of at most 80 MB.
    """
    sample = _float64(values).reshape(-1)
    if sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"values has {sample.size} entries; a bootstrap needs 2 or more, finite")
    interval = stats.bootstrap(
        (sample,),
        statistic,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=max(1, 10_000_000 // sample.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


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


def kurtosis(x: Values) -> FloatArray:
    """Excess kurtosis of each column of x (n, p): m_4 / m_2^2 - 3, shape (p,).

    0 for a Gaussian; the biased moment estimator, in [-2, n - 5 + 1/(n - 1)], whose top is a single
    outlier. nan at zero variance. Source: scipy.stats.kurtosis. Cost: O(n p).
    """
    values = _matrix(x, "x")
    units, constant = unit_columns(values)  # scipy warns of a small spread around a large mean
    result = np.full(values.shape[1], np.nan)
    result[~constant] = stats.kurtosis(units[:, ~constant], axis=0)
    return result


def relative_error(actual: Values, expected: Values) -> float:
    """Relative error |actual - expected| / |expected| in the Euclidean norm of all entries, >= 0.

    Both zero gives 0; only expected zero gives inf; nan in either gives nan. Raises ValueError for
    unequal shapes. Cost: O(size), in float64.
    """
    a, e = _float64(actual), _float64(expected)
    if a.shape != e.shape:
        raise ValueError(f"actual has shape {a.shape} and expected {e.shape}; they must agree")
    difference, scale = float(np.linalg.norm(a - e)), float(np.linalg.norm(e))
    if scale == 0.0:
        return 0.0 if difference == 0.0 else difference * math.inf  # nan stays nan
    return difference / scale


def summarise(values: Values) -> dict[str, float | int | None]:
    """Mean, std, min, median and max of the finite entries of values, with their number `n`.

    Every entry is strict JSON: None where undefined (all but the counts at n = 0; `std`, the sample
    standard deviation with n - 1, also at n = 1). `num_undefined` counts the nan, infinite or None
    entries left out.
    """
    entries = _float64(values).reshape(-1)
    finite = entries[np.isfinite(entries)]
    return {
        "mean": float(finite.mean()) if finite.size else None,
        "std": float(finite.std(ddof=1)) if finite.size > 1 else None,
        "min": float(finite.min()) if finite.size else None,
        "median": float(np.median(finite)) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "n": finite.size,
        "num_undefined": entries.size - finite.size,
    }


def _float64(values: Values | float) -> FloatArray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _matrix(values: Values, name: str) -> FloatArray:
    matrix = _float64(values)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; expected two axes, neither empty")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds nan or infinite values; remove those rows or columns first")
    return matrix


def _paired(x: Values, y: Values) -> tuple[FloatArray, FloatArray]:
    x_values, y_values = _matrix(x, "x"), _matrix(y, "y")
    if len(x_values) != len(y_values):
        raise ValueError(
            f"x has {len(x_values)} samples and y {len(y_values)}; rows must be the same samples"
        )
    return x_values, y_values


def _check_lag(max_lag: int, length: int) -> None:
    if not 0 <= max_lag < length:
        raise ValueError(f"max_lag is {max_lag}; for {length} tokens it must be 0..{length - 1}")


def _is_constant(values: FloatArray) -> NDArray[np.bool_]:
    # Not variance == 0: the rounded mean of equal values can differ from them by an ulp.
    return np.ptp(values, axis=-2) == 0


def _centre(values: FloatArray) -> FloatArray:
    centred = values - values.mean(axis=-2, keepdims=True)
    return np.where(_is_constant(values)[..., None, :], 0.0, centred)


def unit_columns(values: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Columns of (n, p) centred and of unit norm; those of zero variance are 0, and marked (p,)."""
    centred, constant = _centre(values), _is_constant(values)
    centred /= np.where(constant, 1.0, np.abs(centred).max(axis=0))  # squares cannot underflow
    return centred / np.where(constant, 1.0, np.linalg.norm(centred, axis=0)), constant


def lagged_products(rows: FloatArray, max_lag: int) -> FloatArray:
    """sum_t row_t row_{t+k} for k = 0..max_lag, (p, l) -> (p, max_lag + 1)."""
    length = rows.shape[1]
    size = fft.next_fast_len(length + max_lag, real=True)  # no wrap-around up to max_lag
    spectrum = np.fft.rfft(np.ascontiguousarray(rows), size, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, size, axis=1)[:, : max_lag + 1]


def _cka_at_shifts(x: Values, y: Values, shifts: NDArray[np.int64], debiased: bool) -> FloatArray:
    x_values, y_values = _paired(x, y)
    num_samples, minimum = len(x_values), 4 if debiased else 2
    if num_samples < minimum:
        raise ValueError(f"x and y have {num_samples} samples; this CKA needs {minimum} or more")
    x_centred, y_centred = (
        values / (np.abs(values).max() or 1.0) for values in (_centre(x_values), _centre(y_values))
    )
    cross = _hsic(x_centred, y_centred, shifts, debiased)
    own_x, own_y = (_hsic(c, c, np.zeros(1, int), debiased)[0] for c in (x_centred, y_centred))
    if own_x <= 0.0 or own_y <= 0.0:
        return np.full(len(shifts), np.nan)
    return np.clip(cross / math.sqrt(own_x) / math.sqrt(own_y), -1.0, 1.0)


def _hsic(x: FloatArray, y: FloatArray, shifts: NDArray[np.int64], debiased: bool) -> FloatArray:
    """HSIC of centred x with y at each shift, times a factor of n alone that CKA cancels.

    Unbiased [4], with k and l the squared row norms: because centred Gram rows sum to 0, the
    zero-diagonal Gram matrices have row sums -k and -l, and eq. 5 becomes
    |x^T y|_F^2 - n/(n-2) k.l + (sum k)(sum l) / ((n-1)(n-2)).
    """
    energy = _cross_energies(x, y, shifts)
    if not debiased:
        return energy
    n = len(x)
    k, l_norms = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    diagonal = np.array([k @ np.roll(l_norms, shift) for shift in shifts])
    hsic = energy - n / (n - 2) * diagonal + k.sum() * l_norms.sum() / ((n - 1) * (n - 2))
    # Terms of the size of `energy` cancel: what is left below their rounding is zero.
    return np.where(np.abs(hsic) > 1e-12 * energy, hsic, 0.0)


def _cross_energies(x: FloatArray, y: FloatArray, shifts: NDArray[np.int64]) -> FloatArray:
    """|x^T roll(y, shift)|_F^2 = <x x^T, roll(y y^T)> for each shift."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    if n * (p + q + len(shifts)) >= p * q * len(shifts):
        return np.array([np.square(x.T @ np.roll(y, shift, axis=0)).sum() for shift in shifts])
    gram_x, gram_y = x @ x.T, y @ y.T
    rolled = (np.roll(gram_y, (shift, shift), axis=(0, 1)) for shift in shifts)
    return np.array([np.vdot(gram_x, gram) for gram in rolled])
