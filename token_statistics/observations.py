"""Which tokens of several texts are observations, and how the null moves texts in time.

What counts: every token that was not read before with the same history, nor by a relative at the
same place after the same few tokens (`related_texts`), but for the warm-up. What repeats on both
sides at the same tokens would add up in the data, and less in the null, where the sides repeat at
different ones. States start at 0 and fill alike in every text, and in many models the first token
is far from all others: the first WARM_UP_TOKENS tokens are left out, and those before the norm of
what is measured reaches WARM_UP_SHARE of its median in the text, at most a quarter of the text. It
is the norm of the values that are compared, not of the state behind them: what has to be stationary
is what is moved, and a layer's output may settle before its state does, or after.

The null: one side of a statistic moved circularly in time, every group of related texts by its own
amount. Exchangeable, where the two sides have nothing to do with each other, are the places along
the axis of a group: the texts of a group lie on one axis by their offsets, so that what they have
in common is moved to one place in all of them, and what repeats adds up in the null as it does in
the data. A token that is moved beyond the end of its text comes to lie in another text of the group
that covers the place. A text without relatives is its own axis, and is rolled. Where an axis has
fewer than MIN_AXIS places, several are put end to end and moved as one: in a short text that is
rolled within itself, products with its mean taken out sum to 0 over all shifts, so that draws would
lean away from the data. What is moved beyond the end of an axis comes in at its beginning; a series
that swings or drifts would get a jump there that the data lack. The axis is therefore cut, by a
quarter at most, where what follows is most like its beginning ([1], section on end points).

What it does not control for: what depends on the position in the text alone (`position_course`),
and change so slow that a text holds few of it (`time_shift_nulls.why_too_slow`).

References:
  [1] Lancaster et al. 2018, Surrogate data for hypothesis testing of physical systems

Shapes: N tokens of all texts as they were given, one text after the other; n of them count.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suite_plumbing.related_texts import Reading, readings
from token_statistics.description import FloatArray, IntArray

WARM_UP_TOKENS = 4
"""Tokens at the beginning of every text that are no observations."""

WARM_UP_SHARE = 0.9
"""Share of its median that the norm reaches when a text has warmed up."""


MIN_AXIS = 32
"""Places of an axis that is moved by itself; shorter ones are joined to twice as many."""


END_WINDOW = 16
"""Tokens after a cut of an axis that are compared with those at its beginning."""


class Stretch(NamedTuple):
    """Tokens of one text that follow each other and all count."""

    text: int
    """its number"""
    first: int
    """position of the first"""
    stop: int
    """that after the last"""


@dataclass(frozen=True, eq=False)
class Observations:
    """The tokens of some texts that count, and the groups in which texts are moved."""

    lengths: tuple[int, ...]
    """tokens of each text as given"""
    groups: tuple[int, ...]
    """of each text: number of the first text of its group"""
    offsets: tuple[int, ...]
    """of each text: where it begins on the axis of its group"""
    seen: tuple[int, ...]
    """of each text: tokens at its beginning that were read before with the same history"""
    again: tuple[tuple[tuple[int, int], ...], ...]
    """of each text: stretches of it that a relative read before, as in `related_texts.Reading`"""
    warm_up: tuple[int, ...]
    """of each text: tokens at its beginning that are left out as warm-up"""
    cuts: tuple[int, ...] = ()
    """of each axis that is moved: places at its end that nothing is moved to; () for none"""

    @property
    def num_distinct(self) -> int:
        """Tokens that are new, warm-up included."""
        return int(self._new.sum())

    @cached_property
    def used(self) -> tuple[Stretch, ...]:
        """The stretches of observations, text by text."""
        return self._stretches(self.warm_up)

    @property
    def new_stretches(self) -> tuple[Stretch, ...]:
        """The stretches of tokens that are new, warm-up included."""
        return self._stretches((0,) * len(self.lengths))

    def _stretches(self, skipped: Sequence[int]) -> tuple[Stretch, ...]:
        found = []
        for i, new in enumerate(self.new_by_text):
            counts = new.copy()
            counts[: skipped[i]] = False
            ends = np.flatnonzero(np.diff(counts, prepend=False, append=False)).tolist()
            found += [Stretch(i, *pair) for pair in zip(ends[::2], ends[1::2], strict=True)]
        return tuple(found)

    @property
    def used_lengths(self) -> tuple[int, ...]:
        """Observations of each stretch; they sum to n."""
        return tuple(stop - first for _, first, stop in self.used)

    def together(self, stretches: Sequence[Stretch]) -> list[tuple[int, int]]:
        """Of each stretch its group, and where it begins on an axis that has no places below 0."""
        lowest: dict[int, int] = {}
        for group, offset in zip(self.groups, self.offsets, strict=True):
            lowest[group] = min(lowest.get(group, 0), offset)
        return [
            (self.groups[i], first + self.offsets[i] - lowest[self.groups[i]])
            for i, first, _ in stretches
        ]

    @cached_property
    def positions(self) -> IntArray:
        """(n,) position of each observation in its text."""
        parts = [np.arange(first, stop) for _, first, stop in self.used]
        return np.concatenate([np.empty(0, np.int64), *parts])

    @cached_property
    def rows(self) -> IntArray:
        """(n,) place of each observation among all tokens given."""
        return self.positions + np.repeat(self._begins[self._texts], self._counts)

    @property
    def distinct_rows(self) -> IntArray:
        """Places among all tokens given of those that are new, warm-up included."""
        return np.flatnonzero(self._new)

    @property
    def new_by_text(self) -> list[NDArray[np.bool_]]:
        """Of each text (l,), whether a token is new."""
        return np.split(self._new, self._begins[1:])

    @cached_property
    def row_groups(self) -> IntArray:
        """(n,) group of each observation."""
        return np.repeat(np.array(self.groups, dtype=np.int64)[self._texts], self._counts)

    @cached_property
    def group_numbers(self) -> tuple[int, ...]:
        """Groups that have observations, ascending: the number of independent texts is theirs."""
        return tuple(sorted({self.groups[i] for i in self._texts.tolist()}))

    @property
    def axis_lengths(self) -> tuple[int, ...]:
        """Places on each axis that is moved: of a lone text, its observations, less a cut."""
        return tuple((self._sizes - np.array(self.cuts or (0,))).tolist())

    @property
    def axis_groups(self) -> tuple[int, ...]:
        """Of each axis that is moved: the first group on it."""
        return tuple(groups[0] for groups in self._axes)

    @property
    def num_places(self) -> int:
        """Places on all axes: what the observations would be if related texts were one."""
        return int(self._sizes.sum())

    def end_matched(self, values: FloatArray) -> Observations:
        """The same with every axis cut where values (N, c) go on most as they began.

        Of up to a quarter of the axis, less the END_WINDOW tokens that are compared.
        """
        ends = np.cumsum(self._sizes).tolist()
        covers = np.split(self._grid.cover, ends[:-1])
        return replace(self, cuts=tuple(_best_cut(values[cover]) for cover in covers))

    def order(self, shifts: Sequence[int] | IntArray | int) -> IntArray:
        """Rows (n,) among all tokens given that stand where the observations stood, once moved.

        `shifts`: for each of `axis_lengths`, or one for all: an observation at u on its axis gets
        the row of u - shift. It is no permutation where texts are related. Of several joint shifts
        (k, axes) the rows of each, (k, n).
        """
        grid, moved = self._grid, np.asarray(shifts, np.int64)
        moved = moved[..., grid.axis] if moved.ndim else moved
        places = (grid.place - moved) % grid.size
        own = places + grid.origin
        there = grid.cover[grid.begin + places]
        rows = np.where((grid.first <= own) & (own < grid.end), own, there)
        if (rows < 0).any():
            rolled = grid.first + (self.rows - grid.first - moved) % (grid.end - grid.first)
            rows = np.where(rows < 0, rolled, rows)
        return rows

    @cached_property
    def _grid(self) -> _Grid:
        texts = self._texts
        sizes, begin = np.array(self.axis_lengths), np.cumsum([0, *self._sizes])
        axis, base = {}, {}
        for number, groups in enumerate(self._axes):
            ends = np.cumsum([0, *(len(self._spans[group][1]) for group in groups)])
            for group, end in zip(groups, ends.tolist(), strict=False):
                axis[group], base[group] = number, end
        numbers = np.array([axis[self.groups[i]] for i in texts])
        shift = [self._spans[self.groups[i]][0] - self.offsets[i] - base[self.groups[i]]
                 for i in texts]  # fmt: skip
        first = self._begins[texts] + np.array(self.warm_up)[texts]
        ends = self._begins[texts] + np.array(self.lengths)[texts]
        by_text = numbers, sizes[numbers], begin[numbers], self._begins[texts] + shift, first, ends
        columns = [np.repeat(values, self._counts) for values in by_text]
        cover = [self._spans[group][1] for groups in self._axes for group in groups]
        return _Grid(*columns, place=self.rows - columns[3], cover=np.concatenate(cover))

    @cached_property
    def _axes(self) -> list[list[int]]:
        """The groups on each axis that is moved."""
        axes, short, size = [], [], 0
        for group in self.group_numbers:
            length = len(self._spans[group][1])
            if length >= MIN_AXIS:
                axes.append([group])
                continue
            short.append(group)
            size += length
            if size >= 2 * MIN_AXIS:
                axes.append(short)
                short, size = [], 0
        return [*axes[:-1], [*axes[-1], *short]] if axes else [short]

    @cached_property
    def _sizes(self) -> IntArray:
        return np.array([sum(len(self._spans[g][1]) for g in groups) for groups in self._axes])

    @cached_property
    def _spans(self) -> dict[int, tuple[int, IntArray]]:
        """By group: where its places begin, and the row at each (-1 where no text lies)."""
        spans: dict[int, list[tuple[int, int, int]]] = {}
        for i, (length, warm) in enumerate(zip(self.lengths, self.warm_up, strict=True)):
            low = self.offsets[i] + warm
            begin = int(self._begins[i]) + warm
            spans.setdefault(self.groups[i], []).append((low, low + length - warm, begin))
        return {group: _places(parts) for group, parts in spans.items()}

    @cached_property
    def _begins(self) -> IntArray:
        return np.cumsum([0, *self.lengths[:-1]])

    @cached_property
    def _new(self) -> NDArray[np.bool_]:
        """(N,) whether a token is new."""
        new = np.ones(sum(self.lengths), dtype=bool)
        for begin, seen, again in zip(self._begins.tolist(), self.seen, self.again, strict=True):
            for first, stop in ((0, seen), *again):
                new[begin + first : begin + stop] = False
        return new

    @cached_property
    def _texts(self) -> IntArray:
        """Text of each stretch of observations."""
        return np.array([i for i, _, _ in self.used], dtype=np.int64)

    @property
    def _counts(self) -> IntArray:
        return np.array(self.used_lengths, dtype=np.int64)


class _Grid(NamedTuple):
    """Of each observation (n,): where it lies on the axis that is moved."""

    axis: IntArray  # its number
    size: IntArray  # places on it, less its cut
    begin: IntArray  # where it begins in `cover`
    origin: IntArray  # row that the text would have at the beginning of the axis
    first: IntArray  # first row of the text that has warmed up
    end: IntArray  # row after its last
    place: IntArray  # on the axis
    cover: IntArray  # of all axes: the row at each place, -1 where no text lies


def _places(spans: Sequence[tuple[int, int, int]]) -> tuple[int, IntArray]:
    low, high = min(a for a, _, _ in spans), max(b for _, b, _ in spans)
    cover = np.full(high - low, -1, dtype=np.int64)
    for a, b, begin in reversed(spans):
        cover[a - low : b - low] = begin + np.arange(b - a)
    return low, cover


def _best_cut(values: FloatArray) -> int:
    """Places to cut from the end of an axis with these values (places, c)."""
    size, window = len(values), END_WINDOW
    reach = size // 4
    if reach < window:
        return 0
    # Channels count alike.
    spread = values.std(axis=0)
    scaled = values * np.divide(1.0, spread, where=spread > 0, out=np.zeros_like(spread))
    cuts = np.arange(window, reach + 1)
    unlike = [np.square(scaled[:window] - scaled[size - cut :][:window]).sum() for cut in cuts]
    return int(cuts[int(np.argmin(unlike))])


def observations(
    tokens: Sequence[Sequence[Hashable]], norms: FloatArray | None = None
) -> Observations:
    """Observations of texts given by their tokens: ids, or whatever stands for a token.

    `norms` (N, ...): norms of what is measured, all texts one after the other, which say when a
    text has warmed up; the latest of several columns counts.
    """
    return from_readings(readings(tokens), norms)


def from_readings(read: Sequence[Reading], norms: FloatArray | None = None) -> Observations:
    """Observations of texts of which it is known what they add to those before them."""
    lengths = tuple(one.num_tokens for one in read)
    return Observations(
        lengths=lengths,
        groups=tuple(one.group for one in read),
        offsets=tuple(one.offset for one in read),
        seen=tuple(one.num_seen for one in read),
        again=tuple(one.again for one in read),
        warm_up=warm_up(lengths, norms),
    )


def warm_up(lengths: Sequence[int], norms: FloatArray | None = None) -> tuple[int, ...]:
    """Tokens at the beginning of each text that are left out: see the module's docstring."""
    if norms is None:
        return tuple(min(WARM_UP_TOKENS, length // 4) for length in lengths)
    parts = np.split(np.asarray(norms, float).reshape(len(norms), -1), np.cumsum(lengths)[:-1])
    return tuple(min(max(WARM_UP_TOKENS, _warm(part)), len(part) // 4) for part in parts)


def _warm(norms: FloatArray) -> int:
    """First token at which every column (l, k) has reached its share of the median."""
    reached = norms >= WARM_UP_SHARE * np.median(norms, axis=0)
    return int(reached.argmax(axis=0).max())


def row_tokens(sides: Sequence[FloatArray], lengths: Sequence[int]) -> list[list[int]]:
    """Stand-ins for token ids, by text, where these are not known: hashes of the values (N, p).

    Tokens with the same values on all sides are taken for the same token, which holds up to
    rounding only where they were computed together.
    """
    columns = [np.ascontiguousarray(side) for side in sides]
    keys = [hash(tuple(row.tobytes() for row in rows)) for rows in zip(*columns, strict=True)]
    ends = np.cumsum(lengths).tolist()
    return [keys[end - length : end] for end, length in zip(ends, lengths, strict=True)]
