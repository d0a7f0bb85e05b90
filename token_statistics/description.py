"""Numbers that describe one set of samples: entropy, rank, kurtosis, autocorrelation, spread.

Pure functions on torch tensors or numpy arrays, in float64. One rule for what cannot be computed,
here and in the other modules of this folder: a quantity that the data leave undefined (a channel of
zero variance, a row of zero sum) is ``nan``, which callers write as null with the reason; an input
of the wrong shape, with non-finite values or with too few samples raises ``ValueError``.

Shapes: l tokens, n samples (tokens unless said otherwise), p channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, stats

FloatArray = NDArray[np.float64]

Values = torch.Tensor | NDArray[Any] | Sequence[Any]

IntArray = NDArray[np.int64]


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


def autocorrelation(x: Values, max_lag: int) -> FloatArray:
    """Autocorrelation of each channel of x (l, p) at lags 0..max_lag, shape (max_lag + 1, p).

    rho_k = sum_{t < l-k} (x_t - m)(x_{t+k} - m) / sum_t (x_t - m)^2: the biased estimator, which
    shrinks lag k by (l - k)/l and therefore stays in [-1, 1] and positive semidefinite. A channel
    of zero variance (every channel at l = 1) is nan. Raises ValueError unless 0 <= max_lag < l.
    Cost: O(p l log l) by FFT.
    """
    values = finite_matrix(x, "x")
    _check_lag(max_lag, len(values))
    units, constant = unit_columns(values)
    return np.where(constant, np.nan, lagged_products(units.T, max_lag).T)


def participation_ratio(samples: Values) -> FloatArray:
    """Participation ratio of the covariance of samples (..., n, d) over n, shape (...).

    (sum lambda)^2 / sum lambda^2 = tr(C)^2 / |C|_F^2, the number of directions that share the
    variance: in [1, min(n - 1, d)]. Unchanged by scaling and rotation. nan at zero variance (always
    at n = 1). No eigendecomposition: cost O(n d min(n, d)), memory O(min(n, d)^2) a leading index.
    """
    values = to_float64(samples)
    if values.ndim < 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"samples has shape {values.shape}; expected finite values (..., n, d)")
    centred = centred_columns(values)
    transposed = np.swapaxes(centred, -1, -2)
    wide = values.shape[-2] < values.shape[-1]  # either product has the non-zero eigenvalues
    return covariance_participation_ratio(centred @ transposed if wide else transposed @ centred)


def covariance_participation_ratio(covariance: Values) -> FloatArray:
    """Participation ratio tr(C)^2 / |C|_F^2 of symmetric covariance matrices (..., d, d): (...).

    In [1, d]; nan for C = 0. Raises ValueError unless the last two sizes agree. Cost: O(d^2).
    """
    matrix = to_float64(covariance)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"covariance has shape {matrix.shape}; expected (..., d, d)")
    trace = np.trace(matrix, axis1=-2, axis2=-1)
    energy = np.square(matrix).sum(axis=(-2, -1))
    return np.divide(trace**2, energy, where=energy > 0, out=np.full_like(trace, np.nan))


def kurtosis(x: Values) -> FloatArray:
    """Excess kurtosis of each column of x (n, p): m_4 / m_2^2 - 3, shape (p,).

    0 for a Gaussian; the biased moment estimator, in [-2, n - 5 + 1/(n - 1)], whose top is a single
    outlier. nan at zero variance. Source: scipy.stats.kurtosis. Cost: O(n p).
    """
    values = finite_matrix(x, "x")
    units, constant = unit_columns(values)  # scipy warns of a small spread around a large mean
    result = np.full(values.shape[1], np.nan)
    result[~constant] = stats.kurtosis(units[:, ~constant], axis=0)
    return result


def relative_error(actual: Values, expected: Values) -> float:
    """Relative error |actual - expected| / |expected| in the Euclidean norm of all entries, >= 0.

    Both zero gives 0; only expected zero gives inf; nan in either gives nan. Raises ValueError for
    unequal shapes. Cost: O(size), in float64.
    """
    a, e = to_float64(actual), to_float64(expected)
    if a.shape != e.shape:
        raise ValueError(f"actual has shape {a.shape} and expected {e.shape}; they must agree")
    difference, scale = float(np.linalg.norm(a - e)), float(np.linalg.norm(e))
    if scale == 0.0:
        return 0.0 if difference == 0.0 else difference * math.inf  # nan stays nan
    return difference / scale


def summarise(values: Values) -> dict[str, float | int | None]:
    """Mean, std, min, quartiles and max of the finite entries of values, with their number `n`.

    Every entry is strict JSON: None where undefined (all but the counts at n = 0; `std`, the sample
    standard deviation with n - 1, also at n = 1). `num_undefined` counts the nan, infinite or None
    entries left out.
    """
    entries = to_float64(values).reshape(-1)
    is_finite = np.isfinite(entries)
    finite = entries if is_finite.all() else entries[is_finite]
    lower, median, upper = _quartiles(finite) if finite.size else (None, None, None)
    return {
        "mean": float(finite.mean()) if finite.size else None,
        "std": float(finite.std(ddof=1)) if finite.size > 1 else None,
        "min": float(finite.min()) if finite.size else None,
        "lower_quartile": lower,
        "median": median,
        "upper_quartile": upper,
        "max": float(finite.max()) if finite.size else None,
        "n": finite.size,
        "num_undefined": entries.size - finite.size,
    }


def _quartiles(finite: FloatArray) -> tuple[float, float, float]:
    """As np.quantile, between the two nearest; of many entries by a sort, which is vectorised."""
    ordered = np.sort(finite)
    places = np.array((0.25, 0.5, 0.75)) * (finite.size - 1)
    below = places.astype(int)
    low, high = ordered[below], ordered[np.minimum(below + 1, finite.size - 1)]
    lower, median, upper = (low + (places - below) * (high - low)).tolist()
    return lower, median, upper


def to_float64(values: Values | float) -> FloatArray:
    """Values as a float64 array on the CPU, detached."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def finite_matrix(values: Values, name: str) -> FloatArray:
    """A float64 matrix; ValueError, by this name, unless it has two axes and is finite."""
    matrix = to_float64(values)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; expected two axes, neither empty")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds nan or infinite values; remove those rows or columns first")
    return matrix


def _check_lag(max_lag: int, length: int) -> None:
    if not 0 <= max_lag < length:
        raise ValueError(f"max_lag is {max_lag}; for {length} tokens it must be 0..{length - 1}")


def _is_constant(values: FloatArray) -> NDArray[np.bool_]:
    # Not variance == 0: the rounded mean of equal values can differ from them by an ulp.
    return np.ptp(values, axis=-2) == 0


def centred_columns(values: FloatArray) -> FloatArray:
    """Columns of (..., n, p) less their mean; exactly 0 where all values are the same."""
    centred = values - values.mean(axis=-2, keepdims=True)
    return np.where(_is_constant(values)[..., None, :], 0.0, centred)


def unit_columns(values: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Columns of (n, p) centred and of unit norm; those of zero variance are 0, and marked (p,)."""
    centred, constant = centred_columns(values), _is_constant(values)
    centred /= np.where(constant, 1.0, np.abs(centred).max(axis=0))  # squares cannot underflow
    return centred / np.where(constant, 1.0, np.linalg.norm(centred, axis=0)), constant


def lagged_products(rows: FloatArray, max_lag: int) -> FloatArray:
    """sum_t row_t row_{t+k} for k = 0..max_lag, (p, l) -> (p, max_lag + 1)."""
    length = rows.shape[1]
    size = fft.next_fast_len(length + max_lag, real=True)  # no wrap-around up to max_lag
    spectrum = np.fft.rfft(np.ascontiguousarray(rows), size, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, size, axis=1)[:, : max_lag + 1]


def as_float64(values: Values) -> FloatArray:
    """The values as a float64 array, from a tensor on any device too."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
