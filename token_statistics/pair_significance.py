"""Significance of single pairs of channels from the distribution of all pairs under time-shifts.

A t-test on r is Gaussian: on heavy tails, where two outliers that meet make an r near 1, it finds
pairs in noise. Here z = |r| sqrt(effective samples) of a pair is compared with the z of all pairs
under all shifts together: p(z) = (1 + pairs of the null at least as far) / (1 + pairs of the null).
Pooling needs that pairs differ in their null by their effective samples alone. Where they differ
in their tails as well, p holds on average over pairs: the expected number of false pairs, of which
the false discovery rate speaks, is right, that of one heavy-tailed channel is not.

Beyond the largest draw p goes on falling as the generalised Pareto distribution [1] of z^2 that the
largest TAIL_SHARE of the draws follow, by their moments: exponential, as the z^2 of Gaussian data
are, unless their excesses spread by more than twice the standard error than an exponential's.
Without it no lone pair among half a million could be found with a few million draws. Where noise
alone is at hand, a pair beyond all draws comes once in 40 times, whatever the tail.

References:
  [1] Knijnenburg, Wessels, Reinders & Shmulevich 2009, Fewer permutations, more accurate p-values

Cost: one histogram a draw.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from token_statistics.association import FALSE_DISCOVERY_RATE
from token_statistics.description import FloatArray

TAIL_SHARE = 1e-3
"""Share of the draws that says how the tail goes on, at least MIN_TAIL of them."""

MIN_TAIL = 50

NUM_CALIBRATIONS = 3
"""Shifts at which the whole test is repeated, to see what it finds in nothing."""

_NUM_BINS = 8192


class ShiftedPairs:
    """The distribution of z = |r| sqrt(effective samples) of all pairs under all shifts."""

    def __init__(self, effective_samples: FloatArray) -> None:
        """`effective_samples` (p, q) of the pairs whose draws are added."""
        roots = np.sqrt(effective_samples)
        # z is at most the root of the largest: |r| <= 1.
        self.width = max(float(roots.max()), 1.0) / _NUM_BINS
        self._bins_per_r = torch.from_numpy((roots / self.width).astype(np.float32))
        self._counts = np.zeros(_NUM_BINS)
        self._first_counts = np.zeros((NUM_CALIBRATIONS, _NUM_BINS))
        self.largest = 0.0

    def add(self, magnitudes: Tensor, draw: int, channels: slice = slice(None)) -> None:
        """Add |r| (p, k, w) float32 of the draws from number `draw` on, of these of the q channels.

        Without k, (p, w), of one draw.
        """
        some = magnitudes.view(len(magnitudes), -1, magnitudes.shape[-1])
        z = some * self._bins_per_r[:, None, channels]
        self.largest = max(self.largest, float(z.amax()) * self.width)
        bins = z.int()
        self._counts += _counted(bins)
        for number in range(draw, min(draw + bins.shape[1], NUM_CALIBRATIONS)):
            self._first_counts[number] += _counted(bins[:, number - draw])

    def share_by_chance(self) -> float:
        """Share of pairs that the whole test finds in the first shifts, mean over them."""
        p_values = (1.0 + _at_least(self._counts)) / (1.0 + self._counts.sum())
        ranks = _at_least(self._first_counts)
        # Of pairs in one bin, which have one p, the last counts (Benjamini & Hochberg).
        found = p_values * ranks[:, :1] <= FALSE_DISCOVERY_RATE * ranks
        return float(np.max(np.where(found, ranks, 0.0) / ranks[:, :1], axis=1).mean())

    def p_values(self, z: FloatArray) -> FloatArray:
        """p of each z, any shape."""
        total = self._counts.sum()
        above = np.append(_at_least(self._counts), 0.0)
        # A draw in the same bin counts as at least as far.
        bins = np.clip((z / self.width).astype(np.int64), 0, _NUM_BINS)
        p_values = (1.0 + above[bins]) / (1.0 + total)
        beyond = z > self.largest + self.width
        p_values[beyond] = self._tail(z[beyond], above, total)
        return p_values

    def _tail(self, z: FloatArray, above: FloatArray, total: float) -> FloatArray:
        """The tail fitted to the largest draws, from 1 / (1 + draws) at the largest on."""
        size = min(max(MIN_TAIL, TAIL_SHARE * total), total)
        first = int(np.flatnonzero(above[:-1] >= size)[-1])
        counts, count = self._counts[first:], above[first]
        squares = np.square((np.arange(first, _NUM_BINS) + 0.5) * self.width)
        excess = squares - squares[0]
        mean = max(float(counts @ excess) / count, squares[0] * 1e-6, 1e-12)
        dispersion = float(counts @ np.square(excess - mean)) / count / mean**2
        beyond = np.square(z) - self.largest**2
        if dispersion <= 1.0 + 4.0 / math.sqrt(count):
            return np.exp(-beyond / mean) / (1.0 + total)
        shape = 0.5 * (1.0 - 1.0 / dispersion)
        scale = mean * (1.0 - shape) + shape * (self.largest**2 - squares[0])
        return (1.0 + shape * beyond / scale) ** (-1.0 / shape) / (1.0 + total)


def _counted(bins: Tensor) -> FloatArray:
    """(bins,) pairs in each; the last has those that rounding put beyond it."""
    counts = torch.bincount(bins.flatten(), minlength=_NUM_BINS).double().numpy()
    counts[_NUM_BINS - 1] += counts[_NUM_BINS:].sum()
    return counts[:_NUM_BINS]


def _at_least(counts: FloatArray) -> FloatArray:
    """(..., bins) pairs in this bin or a later one."""
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
