"""Linear CKA of two sets of channels, debiased, also at time shifts of one side.

References:
  [3] Kornblith, Norouzi, Lee & Hinton 2019, Similarity of neural network representations revisited
  [4] Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature selection via dependence maximization,
      eq. 5 (unbiased HSIC); Nguyen, Raghu & Kornblith 2021 apply it to CKA

Shapes: n samples, p and q channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from token_statistics.association import paired_samples
from token_statistics.description import FloatArray, Values, centred_columns


def linear_cka(x: Values, y: Values, debiased: bool = True, freedom: float | None = None) -> float:
    """Linear centred kernel alignment of x (n, p) and y (n, q) over the same n samples [3, 4].

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = x x^T, L = y y^T. It is 1 for equal
    representations and unchanged by rotation, shift and isotropic scaling of either side. Biased,
    it is in [0, 1] and tends to 1 for any two inputs as p, q grow past n; `debiased` uses the
    unbiased HSIC, is in [-1, 1] and 0 on average for independent inputs. nan if either side has no
    variance. `freedom`: see `unbiased_hsic`. Raises ValueError for n < 4 (n < 2 if not debiased)
    and for unequal n. Cost: the cheaper of the feature form, O(n (p + q)^2), and the Gram
    form, O(n^2 (p + q)).
    """
    x_values, y_values = paired_samples(x, y)
    num_samples, minimum = len(x_values), 4 if debiased else 2
    if num_samples < minimum:
        raise ValueError(f"x and y have {num_samples} samples; this CKA needs {minimum} or more")
    x_centred, y_centred = (
        values / (np.abs(values).max() or 1.0)
        for values in (centred_columns(x_values), centred_columns(y_values))
    )
    sides = ((x_centred, y_centred), (x_centred, x_centred), (y_centred, y_centred))
    cross, own_x, own_y = (
        _hsic(energy, a, b, debiased, freedom)
        for energy, (a, b) in zip(_energies(x_centred, y_centred), sides, strict=True)
    )
    if own_x <= 0.0 or own_y <= 0.0:
        return math.nan
    return float(np.clip(cross / math.sqrt(own_x) / math.sqrt(own_y), -1.0, 1.0))


def unbiased_hsic(
    energy: Any, diagonal: Any, traces: Any, n: float, freedom: float | None = None
) -> Any:
    """Unbiased HSIC [4] of centred Gram matrices K, L (n, n), times n (n - 3): numbers or arrays.

    Because centred Gram rows sum to 0, the matrices with zero diagonal have row sums -k and -l,
    their diagonals, and eq. 5 becomes <K, L> - n/(n-2) k.l + (sum k)(sum l) / ((n-1)(n-2)).
    `energy` is <K, L>, `diagonal` k.l, `traces` (sum k)(sum l). CKA cancels the factor. With more
    taken out than the mean, `freedom` degrees of freedom are left instead of n - 1, and independent
    sides have <K, L> = (sum k)(sum l) / freedom on average: it stands for n - 1 above.
    """
    left = n - 1 if freedom is None else freedom
    weight = (left + 1) / (left - 1)
    return energy - weight * diagonal - (1.0 / left - weight / n) * traces


def _energies(x: FloatArray, y: FloatArray) -> tuple[float, float, float]:
    """<K, L>, <K, K> and <L, L> of K = x x^T and L = y y^T, by the smaller products."""
    if len(x) > x.shape[1] + y.shape[1]:
        return float(np.square(x.T @ y).sum()), _own_energy(x), _own_energy(y)
    k, gram_y = x @ x.T, y @ y.T
    return float(np.vdot(k, gram_y)), float(np.vdot(k, k)), float(np.vdot(gram_y, gram_y))


def _own_energy(x: FloatArray) -> float:
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(np.vdot(gram, gram))


def _hsic(
    energy: float, x: FloatArray, y: FloatArray, debiased: bool, freedom: float | None
) -> float:
    """HSIC of centred x with y of this `energy` <K, L>, times a factor of n that CKA cancels."""
    if not debiased:
        return energy
    k, l_norms = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    traces = float(k.sum() * l_norms.sum())
    hsic = unbiased_hsic(energy, float(k @ l_norms), traces, len(x), freedom)
    # Terms of the size of `energy` cancel: what is left below their rounding is zero.
    return hsic if abs(hsic) > 1e-12 * energy else 0.0


class DebiasedCKA:
    """Debiased linear CKA [3, 4] of x (n, p) with y (n, q) in the course of a null, from x^T y.

    <K, L> is the sum of the squared entries of x^T y, which the draws of a null have at hand. HSIC
    of a side with itself is computed once: reordered and projected again it changes its scale but
    hardly its spectrum, and is taken to go with the square of the sum of squares.
    """

    def __init__(self, x: FloatArray, y: FloatArray, freedom: float) -> None:
        """`x` and `y`: columns centred; `freedom`: see `unbiased_hsic`."""
        self.freedom = freedom
        self.norms = [np.square(side).sum(axis=1) for side in (x, y)]
        own = [_hsic(_own_energy(side), side, side, True, freedom) for side in (x, y)]
        total = float(self.norms[0].sum() * self.norms[1].sum())
        self.scale = math.sqrt(own[0] * own[1]) / total if min(own) > 0 else np.nan

    def at(self, energy: float, norms: FloatArray) -> float:
        """CKA with a y of these squared norms (n,) of rows, `energy` |x^T y|^2; in [-1, 1]."""
        traces = float(self.norms[0].sum() * norms.sum())
        hsic = unbiased_hsic(energy, float(self.norms[0] @ norms), traces, len(norms), self.freedom)
        return float(np.clip(hsic / (self.scale * traces), -1.0, 1.0)) if traces > 0 else np.nan
