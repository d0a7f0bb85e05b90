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
    if null.ndim != 2 or null.shape[1] != found.size:
        raise ValueError(f"draws has shape {null.shape}; pass (draws, {found.size}), one a value")
    p = np.full(found.size, np.nan)
    if len(null) == 0:
        return p
    centre, spread = null.mean(axis=0), null.std(axis=0)
    known = np.isfinite(found) & np.isfinite(null).all(axis=0) & (spread > 0)
    if not known.any():
        return p
    scaled = (null[:, known] - centre[known]) / spread[known]
    own = (found[known] - centre[known]) / spread[known]
    # Rounding must not decide a tie.
    reached = (scaled.max(axis=1)[:, None] >= own - 1e-9).sum(axis=0)
    p[known] = (1 + reached) / (1 + len(null))
    return p
