"""Several statistics tried at once, each beside the largest that chance gives any of them.

References:
  [1] Westfall & Young 1993, Resampling-Based Multiple Testing, algorithm 2.8 (single step)
"""

from __future__ import annotations

import numpy as np

from token_statistics.description import FloatArray, Values, as_float64


def largest_of_all_p(values: Values, draws: Values) -> FloatArray:
    """One-sided p of each of m values that chance, anywhere among the m, gives as much: (m,) [1].

    ``draws`` (k, m): the m statistics under the null, each row a draw of all of them together. Each
    is measured in standard deviations of its own draws, and p is (1 + draws whose largest is at
    least the value) / (1 + k): over all m, one false finding in a share p of samples. nan where a
    value or one of its draws is not finite, or its draws are all the same; such a statistic counts
    in no other's p. Raises ValueError for draws of another width.
    """
    found, null = as_float64(values), as_float64(draws)
    p = np.full(found.size, np.nan)
    known, scaled, centre, spread = _scaled(found, null)
    if not known.any():
        return p
    own = (found[known] - centre) / spread
    # Rounding must not decide a tie.
    reached = (scaled.max(axis=1)[:, None] >= own - _TIE).sum(axis=0)
    p[known] = (1 + reached) / (1 + len(null))
    return p


def largest_of_all_bounds(
    values: Values, draws: Values, level: float = 0.05
) -> tuple[FloatArray, FloatArray]:
    """What chance, anywhere among the m values, goes below and above in a share ``level`` each:
    (m,) and (m,).

    The bounds that go with `largest_of_all_p`: a value lies above the second where its p is at most
    ``level``, and below the first where that of its negative is. Infinite for fewer than
    1 / level - 1 draws; nan, and ValueError, as there.
    """
    found, null = as_float64(values), as_float64(draws)
    low, high = np.full(found.size, np.nan), np.full(found.size, np.nan)
    known, scaled, centre, spread = _scaled(found, null)
    if not known.any():
        return low, high
    beyond = int(np.floor(level * (1 + len(null)) + 1e-9))  # of the data and its draws
    least, most = np.sort(scaled.min(axis=1)), np.sort(scaled.max(axis=1))
    ends = (least[beyond - 1] - _TIE, most[-beyond] + _TIE) if beyond else (-np.inf, np.inf)
    low[known], high[known] = (centre + end * spread for end in ends)
    return low, high


_TIE = 1e-9  # of a standard deviation


def _scaled(
    values: FloatArray, draws: FloatArray
) -> tuple[np.ndarray, FloatArray, FloatArray, FloatArray]:
    """Which of the values count, (m,); of those, their draws in standard deviations, with the mean
    and the deviation of each."""
    if draws.ndim != 2 or draws.shape[1] != values.size:
        raise ValueError(f"draws has shape {draws.shape}; pass (draws, {values.size}), one a value")
    if len(draws) == 0:
        return np.zeros(values.size, dtype=bool), draws, draws, draws
    centre, spread = draws.mean(axis=0), draws.std(axis=0)
    known = np.isfinite(values) & np.isfinite(draws).all(axis=0) & (spread > 0)
    centre, spread = centre[known], spread[known]
    return known, (draws[:, known] - centre) / spread, centre, spread
