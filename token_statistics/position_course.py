"""What depends on the position in a text alone, and values without it.

A state starts at 0 and fills, an activation drifts: two layers that read different texts go
together for that reason, and time-shifts within texts call it coincidence. Of every value the
course over position is taken out, in two steps:

1. In every text by itself, or stretch of it that counts, a smooth course: a constant and a linear
   drift, by least squares. Where step 2 cannot follow, relaxations exp(-t / tau) too, with tau 16,
   64, 4 and 256 tokens, as far as the text has PER_FUNCTION observations for each function.
2. Where MIN_GROUPS independent groups of texts (`related_texts`) or more have a position: the mean
   over their tokens there. A course that all texts share is gone, whatever it looks like.

Both are linear, and every draw of a null undergoes them after it was moved, as the data do unmoved:
data and draws lose the same degrees of freedom and the same slow change, and a correlation of what
is left is distributed alike in both.

What both layers vary by may depend on the position as well: of texts that say the same but at a few
positions, and are not known as related, those positions alone are left. Then draws, in which they
no longer meet, are no coincidence, and there is no null (`position_scale`).

What this does not control for. With fewer than MIN_GROUPS groups: a course that is not smooth, such
as a rhythm of line lengths, cannot be told from what the text says, and neither can a scale that
depends on the position; the warm-up that `observations` leaves out holds most of it. What a text
says so slowly that it looks like a drift is taken for one.

Shapes: N tokens given, n observations among them, c channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suite_plumbing.precision import in_full_precision
from token_statistics.description import FloatArray, IntArray
from token_statistics.observations import Observations

MIN_GROUPS = 5
"""Independent groups of texts whose mean at a position is its course."""

PER_FUNCTION = 10
"""Observations of a text for each function of its smooth course."""

_FLOATS_AT_ONCE = 1 << 18  # of moved columns: for a CPU's second-level cache

_TIME_CONSTANTS = (16.0, 64.0, 4.0, 256.0)


class PositionCourse:
    """Takes the course over position out of values of these observations."""

    def __init__(self, tokens: Observations) -> None:
        self.tokens = tokens
        positions = tokens.positions
        size = int(positions.max()) + 1 if len(positions) else 0
        covered = _groups_at(positions, tokens.row_groups, size) >= MIN_GROUPS
        self._slots = np.where(covered, np.cumsum(covered) - 1, -1)
        own = self._slots[positions]
        self._by_mean = np.flatnonzero(own >= 0)
        self._own = own[self._by_mean]
        self._counts = np.bincount(self._own, minlength=int(covered.sum())).astype(float)
        ends = np.cumsum(tokens.used_lengths).tolist()
        self._spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self._bases = [_smooth_basis(positions[a:b], own[a:b] >= 0) for a, b in self._spans]

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom that are left: n less those of the course."""
        n = len(self.tokens.rows)
        left = n - sum(basis.shape[1] for basis in self._bases)
        return left * (1.0 - len(self._counts) / n) if n else 0.0

    @property
    def samples(self) -> float:
        """Samples that the observations are worth: `freedom`, with what related texts share counted
        once."""
        return self.freedom * min(1.0, self.tokens.num_places / max(len(self.tokens.rows), 1))

    @property
    def described(self) -> str:
        """What is taken out, in words."""
        num_groups = len(self.tokens.group_numbers)
        if len(self._by_mean) == len(self.tokens.rows):
            return f"each text's drift and the mean over {num_groups} independent texts by position"
        smooth = "each text's smooth course over position (drift and relaxations)"
        if not len(self._by_mean):
            return f"{smooth}; a mean by position needs {MIN_GROUPS} independent texts"
        return f"{smooth}, and the mean over texts where {MIN_GROUPS} have the position"

    def moving(self, values: FloatArray) -> FloatArray:
        """Values (N, c) of all tokens given as a null moves them: without the mean of each text
        and then of each position, but with their drift.

        Moved and `taken_out_`, they have lost what the data have; had the smooth course gone before
        they are moved, slow change would be taken out of the draws twice.
        """
        tokens, result = self.tokens, values.copy()
        begins = np.cumsum([0, *tokens.lengths])
        for text, warm in enumerate(tokens.warm_up):
            own = slice(begins[text], begins[text + 1])
            result[own] -= result[own][warm:].mean(axis=0)
        means = np.zeros((len(self._counts), values.shape[1]))
        own, measured = torch.from_numpy(self._own), result[tokens.rows[self._by_mean]]
        torch.from_numpy(means).index_add_(0, own, torch.from_numpy(measured))
        means /= self._counts[:, None]
        for text, length in enumerate(tokens.lengths):
            positions = np.minimum(np.arange(length), len(self._slots))
            slots = np.append(self._slots, -1)[positions]
            result[begins[text] + np.flatnonzero(slots >= 0)] -= means[slots[slots >= 0]]
        return result

    @in_full_precision
    def taken_out_(self, values: Tensor) -> Tensor:
        """Take the course out of values (n, c) of the observations, in place."""
        by_mean, own, counts, bases = self._tensors
        for rows, basis in bases:
            some = values if len(rows) == len(values) else values.index_select(0, rows)
            parts, functions = some.view(*basis.shape[:2], -1), basis.to(values)
            parts.baddbmm_(functions, functions.mT @ parts, alpha=-1)
            if some is not values:
                values.index_copy_(0, rows, some)
        if len(own):
            every = len(own) == len(values)
            some = values if every else values.index_select(0, by_mean)
            means = values.new_zeros(len(counts), values.shape[1]).index_add_(0, own, some)
            means /= counts.to(values)[:, None]
            values.index_add_(0, by_mean, means.index_select(0, own), alpha=-1)
        return values

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Those of the means; and rows (k l,) and bases (k, l, functions) of texts alike."""
        by_mean, own, counts = (
            torch.from_numpy(array) for array in (self._by_mean, self._own, self._counts)
        )
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, basis in enumerate(self._bases):
            alike.setdefault(basis.shape, []).append(i)
        return by_mean, own, counts, [self._stacked(texts) for texts in alike.values()]

    def _stacked(self, texts: list[int]) -> tuple[Tensor, Tensor]:
        rows = np.concatenate([np.arange(*self._spans[i]) for i in texts])
        bases = np.stack([self._bases[i] for i in texts])
        return torch.from_numpy(rows), torch.from_numpy(bases)


class UnitColumns(NamedTuple):
    """Columns without the course over position, of unit norm over the observations."""

    values: FloatArray
    """(n, c) of the observations; 0 in columns that do not vary"""
    moving: FloatArray
    """(N, c) of all tokens given, on the same scale, as a null moves them"""
    scale: FloatArray
    """(c,) norms before; 0 in columns that do not vary"""

    @property
    def varies(self) -> NDArray[np.bool_]:
        """(c,) columns that vary by more than the course over position."""
        return self.scale > 0


def without_course(
    course: PositionCourse, values: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Values (N, c) of all tokens given: what is left at the observations (n, c), what a null moves
    (N, c), and the divisor (c,) of both, so that squares can neither underflow nor overflow.

    Columns that vary by no more than the course over position are 0.
    """
    rows = course.tokens.rows
    measured = values[rows]
    centre = measured.mean(axis=0)
    highest, lowest = measured.max(axis=0), measured.min(axis=0)
    largest = np.maximum(highest - centre, centre - lowest)
    moves = (highest > lowest) & (largest > 0)
    del measured  # of a layer's size, as what follows
    largest = np.where(moves, largest, 1.0)
    scaled = values - centre
    scaled /= largest
    scaled[:, ~moves] = 0.0
    moving = course.moving(scaled)
    del scaled
    left = course.taken_out_(torch.from_numpy(moving[rows])).numpy()
    gone = np.abs(left).max(axis=0) < 1e-10
    left[:, gone] = moving[:, gone] = 0.0
    return left, moving, largest


def unit_columns_without(course: PositionCourse, values: FloatArray) -> UnitColumns:
    """Values (N, c) of all tokens given, the course taken out, of unit norm over observations."""
    if not len(course.tokens.rows):
        nothing = np.zeros((0, values.shape[1]))
        return UnitColumns(nothing, np.zeros_like(values), np.zeros(values.shape[1]))
    left, moving, largest = without_course(course, values)
    scale = np.linalg.norm(left, axis=0)
    inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros_like(scale))
    left *= inverse
    moving *= inverse
    return UnitColumns(left, moving, scale * largest)


def moved_columns(
    values: Tensor, course: PositionCourse, tokens: Observations, shifts: Iterable[Any]
) -> Iterator[Tensor]:
    """Values (N, c) of all tokens moved by each joint shift, the course taken out: (n, k, c).

    Some shifts at a time, in their order, as many as a cache holds the columns of. ``tokens``:
    those of the course, with their axes as they are moved.
    """
    n, num_axes = len(tokens.rows), len(tokens.axis_lengths)
    count = max(1, _FLOATS_AT_ONCE // max(1, n * values.shape[1]))
    remaining = iter(shifts)
    while some := list(itertools.islice(remaining, count)):
        joint = np.empty((len(some), num_axes), np.int64)
        joint[:] = np.array(some).reshape(len(some), -1)  # one shift for all axes, or one for each
        rows = torch.from_numpy(tokens.order(joint).T.reshape(-1))
        moved = values.index_select(0, rows)
        course.taken_out_(moved.view(n, -1))
        yield moved.view(n, len(some), -1)


def paired_correlations(
    x: FloatArray,
    y: FloatArray,
    course: PositionCourse,
    tokens: Observations,
    shifts: Iterable[Any],
) -> Iterator[FloatArray]:
    """Correlations (c,) of the columns of x with those of y moved by each joint shift.

    `x` (n, c) and `y` (N, c): `values` and `moving` of `unit_columns_without`; `tokens`: those of
    the course, with their axes as they are moved. nan where a moved column is gone. Cost: a few
    passes over (n, c) a shift.
    """
    first = torch.from_numpy(x).unsqueeze(1)
    for moved in moved_columns(torch.from_numpy(y), course, tokens, shifts):
        norms = moved.square().sum(dim=0).sqrt_()
        norms = torch.where(norms > 1e-10, norms, torch.nan)
        yield from ((first * moved).sum(dim=0) / norms).clamp_(-1.0, 1.0).numpy()


def ranks_among(values: FloatArray, rows: IntArray) -> FloatArray:
    """Mean ranks of values (N, c) among those of these rows, 1 to n; ties share theirs."""
    counts = np.bincount(rows, minlength=len(values))
    size = max(1, _FLOATS_AT_ONCE // max(1, len(values)))
    parts = [_ranks(values[:, i : i + size], counts) for i in range(0, values.shape[1], size)]
    return np.concatenate(parts, axis=1) if parts else np.empty(values.shape)


def _ranks(values: FloatArray, counts: IntArray) -> FloatArray:
    """Ranks of values (N, c) among those that count, read off the order of all of them."""
    columns = np.ascontiguousarray(values.T)
    order = np.argsort(columns, axis=1)
    ordered = np.take_along_axis(columns, order, axis=1)
    here = counts[order]
    up_to_here = here.cumsum(axis=1)
    begins = np.ones(columns.shape, bool)  # where a value differs from the one before
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.roll(begins, -1, axis=1)
    low = np.maximum.accumulate(np.where(begins, up_to_here - here, 0), axis=1)
    high = np.where(ends, up_to_here, len(values))[:, ::-1]
    ranks = (low + np.minimum.accumulate(high, axis=1)[:, ::-1] + 1) / 2
    result = np.empty(columns.shape)
    np.put_along_axis(result, order, ranks, axis=1)
    return result.T


def _smooth_basis(positions: IntArray, by_mean: NDArray[np.bool_]) -> FloatArray:
    """Orthonormal functions of the position (n, functions) of one text."""
    t = np.asarray(positions, dtype=np.float64)[:, None]
    functions = [np.ones_like(t), t / 100.0, *(np.exp(-t / tau) for tau in _TIME_CONSTANTS)]
    most = min(len(t) // PER_FUNCTION, 2 if by_mean.all() else len(functions))
    u, s, _ = np.linalg.svd(np.hstack(functions[: max(1, most)]), full_matrices=False)
    return u[:, s > 1e-8 * s[0]]


def _groups_at(positions: IntArray, groups: IntArray, size: int) -> IntArray:
    """(size,) how many groups have an observation at each position."""
    pairs = np.unique(np.stack([positions, groups]), axis=1)
    return np.bincount(pairs[0], minlength=size)
