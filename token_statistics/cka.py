"""Linear CKA of two sets of channels, debiased, also at time shifts of one side.

References:
  [3] Kornblith, Norouzi, Lee & Hinton 2019, Similarity of neural network representations revisited
  [4] Song, Smola, Gretton, Bedo & Borgwardt 2012, Feature selection via dependence maximization,
      eq. 5 (unbiased HSIC); Nguyen, Raghu & Kornblith 2021 apply it to CKA

Shapes: n samples, p and q channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from token_statistics.association import paired_samples
from token_statistics.description import FloatArray, IntArray, Values, centred_columns


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


def _cka_at_shifts(x: Values, y: Values, shifts: NDArray[np.int64], debiased: bool) -> FloatArray:
    x_values, y_values = paired_samples(x, y)
    num_samples, minimum = len(x_values), 4 if debiased else 2
    if num_samples < minimum:
        raise ValueError(f"x and y have {num_samples} samples; this CKA needs {minimum} or more")
    x_centred, y_centred = (
        values / (np.abs(values).max() or 1.0)
        for values in (centred_columns(x_values), centred_columns(y_values))
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


class DebiasedCKA:
    """Debiased linear CKA [1, 2] of x (n, p) with reordered y (n, q) from their correlations.

    With the columns centred, |x^T y|_F^2 = sum_ij r_ij^2 |x_i|^2 |y_j|^2, and the unbiased HSIC is
    that - n/(n-2) k.l + (sum k)(sum l) / ((n-1)(n-2)), k and l the squared norms of the rows: what
    `analysis_utils.linear_cka` computes, here at the price of a weighted sum a shift.
    """

    def __init__(self, x: FloatArray, y: FloatArray) -> None:
        self.rows, self.columns, own = [], [], []
        for values in (x, y):
            centred = values - values.mean(axis=0)
            centred /= np.linalg.norm(centred)
            self.rows.append(np.square(centred).sum(axis=1))
            self.columns.append(torch.from_numpy(np.square(centred).sum(axis=0)))
            narrow = centred.shape[1] <= len(centred)
            gram = centred.T @ centred if narrow else centred @ centred.T
            own.append(self._hsic(float(np.square(gram).sum()), self.rows[-1], self.rows[-1]))
        self.scale = np.sqrt(own[0] * own[1]) if min(own) > 1e-12 else np.nan

    @staticmethod
    def _hsic(energy: float, k: FloatArray, l_norms: FloatArray) -> float:
        n = len(k)
        return energy - n / (n - 2) * float(k @ l_norms) + 1.0 / ((n - 1) * (n - 2))

    def at(self, squares: torch.Tensor, order: IntArray) -> float:
        """CKA when y's rows are taken in this order and `squares` are r^2 (p, q) then."""
        first, second = (column.to(squares.dtype) for column in self.columns)
        energy = float(first @ squares @ second)
        hsic = self._hsic(energy, self.rows[0], self.rows[1][order])
        return float(np.clip(hsic / self.scale, -1.0, 1.0))
