"""Correlations of all pairs of channels of two layers, one of which is moved in time.

Each joint shift is one matrix product. Of its p q correlations a null needs a few sums, maxima and
a histogram: the channels of the moved layer are taken in blocks whose product a cache holds, and
all of these are read off it while it is there.

Precision: products are taken in float32 on columns of unit norm, so that a correlation is off by at
most (n + 4) 2^-24 (rounding of n terms whose magnitudes sum to at most 1, and of the columns), and
in fact by about sqrt(n) 2^-24: 1e-6 for 500 tokens. A column whose course over position was many
times larger than what it leaves has that many times the error.

Shapes: N tokens given, n observations; p channels that stay and q that are moved; k joint shifts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from token_statistics.description import FloatArray, IntArray
from token_statistics.observations import Observations
from token_statistics.pair_significance import ShiftedPairs
from token_statistics.position_course import PositionCourse, moved_columns

_FLOATS_AT_ONCE = 1 << 18  # of correlations: for a CPU's second-level cache


class PairDraws(NamedTuple):
    """What the correlations r of all pairs are under each of k joint shifts."""

    mean: FloatArray
    """(k,) mean of r"""
    mean_abs: FloatArray
    """(k,) mean of |r|"""
    max_abs: FloatArray
    """(k,) largest |r|"""
    best_match: FloatArray
    """(k,) largest |r| of each moved channel, mean over these"""
    energies: FloatArray
    """(k,) sum of squared covariances, each by its channels' weights"""
    row_norms: FloatArray
    """(k, n) squared norms of the moved rows, by their channels' weights"""


class _Block(NamedTuple):
    """Some channels, moved by some shifts."""

    draws: slice  # which of the shifts
    channels: slice  # which of the q
    columns: Tensor  # (n, k, w) moved, without their course, of unit norm
    squares: Tensor  # (n, k, w) squares before they were scaled
    r: Tensor  # (p, k, w)


class MovedPairs:
    """Correlations of channels with others that are moved in time."""

    def __init__(self, units: FloatArray, moving: FloatArray, course: PositionCourse) -> None:
        """`units` (n, p) and `moving` (N, q): `values` and `moving` of `unit_columns_without`."""
        self.course = course
        self.tokens = course.tokens.end_matched(moving)
        """with their axes as the null moves them"""
        self._first = torch.from_numpy(units.T.astype(np.float32))
        self._second = torch.from_numpy(moving.astype(np.float32))

    def draws(
        self, shifts: Sequence[Any] | IntArray, weights: Sequence[FloatArray], pairs: ShiftedPairs
    ) -> PairDraws:
        """The null by these joint shifts; |r| of all pairs are added to `pairs`.

        `weights`: of the channels that stay (p,) and of those moved (q,), in `energies`.
        """
        first, second = (torch.from_numpy(w.astype(np.float32)) for w in weights)
        by_channel = self._first.new_empty(4, len(shifts), self._second.shape[1])
        row_norms = self._first.new_zeros(len(shifts), self._first.shape[1])
        over_first = self._first.sum(dim=0)
        for block in self._blocks(shifts, self.tokens):
            mean, magnitude, best, energy = by_channel[:, block.draws, block.channels]
            magnitudes = block.r.abs_()
            pairs.add(magnitudes, block.draws.start, block.channels)
            torch.tensordot(over_first, block.columns, 1, out=mean)
            torch.sum(magnitudes, dim=0, out=magnitude)
            torch.amax(magnitudes, dim=0, out=best)
            squared = torch.tensordot(first, magnitudes.square_(), 1)
            energy.copy_(squared * block.squares.sum(dim=0) * second[block.channels])
            row_norms[block.draws] += torch.matmul(block.squares, second[block.channels]).T
        mean, magnitude, best, energy = by_channel.double()
        best.clamp_(max=1.0)
        found = (
            mean.mean(dim=1) / len(self._first), magnitude.mean(dim=1) / len(self._first),
            best.amax(dim=1), best.mean(dim=1), energy.sum(dim=1), row_norms.double(),
        )  # fmt: skip
        return PairDraws(*(column.numpy() for column in found))

    def mean_magnitudes(self, shifts: Sequence[Any] | IntArray) -> FloatArray:
        """(k,) mean of |r| at each joint shift, whole axes moved, none of them cut."""
        total = torch.zeros(len(shifts), dtype=torch.float64)
        for block in self._blocks(shifts, self.course.tokens):
            total[block.draws] += block.r.abs_().sum(dim=0).sum(dim=1, dtype=torch.float64)
        return total.numpy() / (len(self._first) * self._second.shape[1])

    def _blocks(self, shifts: Sequence[Any] | IntArray, tokens: Observations) -> Iterator[_Block]:
        p, q = len(self._first), self._second.shape[1]
        width = -(-q // -(-p * q // _FLOATS_AT_ONCE))
        for begin in range(0, q, width):
            channels, done = slice(begin, min(begin + width, q)), 0
            values = self._second[:, channels].contiguous()
            for columns in moved_columns(values, self.course, tokens, shifts):
                squares = columns.square()
                columns /= squares.sum(dim=0).sqrt_().clamp_min_(1e-12)
                draws = slice(done, done := done + columns.shape[1])
                r = torch.mm(self._first, columns.flatten(1)).view(p, *columns.shape[1:])
                yield _Block(draws, channels, columns, squares, r)
