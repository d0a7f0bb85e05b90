"""Windows of texts kept for each neuron: the most extreme ones, and one drawn for each octave.

What is kept does not depend on the order in which windows come, nor on how they are shared out:
extremes are those of a total order, by value and then by the window's number; of the windows whose
largest magnitude lies in one octave, that of the smallest hash of seed and number is kept, which is
a uniform draw (bottom-1 sampling [1]). Two parts are merged by the same rules.

References:
  [1] Cohen & Kaplan 2007, Summarizing data using bottom-k sketches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from token_statistics.description import FloatArray, IntArray

EXTREMES = 6
"""Windows kept at each end."""

LOWEST_OCTAVE, NUM_OCTAVES = -8, 14
"""Octaves of magnitude [2^k, 2^(k + 1)) from 2^-8 on that a window is drawn from."""

BEFORE, AFTER = 19, 8
"""Tokens of a window that are kept before and after the largest."""

WIDTH = BEFORE + 1 + AFTER

KINDS = ("highest", "lowest", "drawn")

_NOTHING = np.int64(2**62)  # the number of a window that is none


class Window(NamedTuple):
    """One window as it was read."""

    number: int
    """of its own in the corpus; below 2^62"""
    document: int
    ids: IntArray
    """(l,) token ids"""
    values: NDArray[np.float32]
    """(l, neurons)"""


@dataclass(eq=False)
class Slots:
    """Windows kept of one kind: ``size`` for each neuron, those that are none at the end."""

    order: FloatArray
    """(neurons, size) what decides, the smallest first; inf for none"""
    number: IntArray
    """(neurons, size) of the window, which decides between equals"""
    document: IntArray
    position: IntArray
    """(neurons, size) of the token within the window"""
    value: NDArray[np.float32]
    """(neurons, size) at that token"""
    ids: NDArray[np.int32]
    """(neurons, size, WIDTH) tokens around it, -1 beyond the window"""
    values: NDArray[np.float32]
    """(neurons, size, WIDTH) the neuron at these"""

    @classmethod
    def empty(cls, neurons: int, size: int) -> Slots:
        """No window kept yet."""
        shape = (neurons, size)
        return cls(
            np.full(shape, np.inf), np.full(shape, _NOTHING), np.full(shape, -1, np.int64),
            np.full(shape, -1, np.int64), np.zeros(shape, np.float32),
            np.full((*shape, WIDTH), -1, np.int32), np.zeros((*shape, WIDTH), np.float32),
        )  # fmt: skip

    def put(self, rows: IntArray, slots: IntArray, order: FloatArray, window: Window,
            position: IntArray) -> None:  # fmt: skip
        """Let a window take these slots of these neurons."""
        around = position[:, None] + np.arange(-BEFORE, AFTER + 1)
        inside = (around >= 0) & (around < len(window.ids))
        around = np.where(inside, around, 0)
        self.order[rows, slots] = order
        self.number[rows, slots] = window.number
        self.document[rows, slots] = window.document
        self.position[rows, slots] = position
        self.value[rows, slots] = window.values[position, rows]
        self.ids[rows, slots] = np.where(inside, window.ids[around], -1)
        self.values[rows, slots] = np.where(inside, window.values[around, rows[:, None]], 0)

    def offer(self, order: FloatArray, window: Window, position: IntArray) -> None:
        """Keep a window, for each neuron at this order (neurons,), where it is before the last."""
        last = self.order.max(1)
        at_last = self.order == last[:, None]
        number = np.where(at_last, self.number, -1)
        slot = number.argmax(1)
        before = (order < last) | ((order == last) & (window.number < number.max(1)))
        rows = np.flatnonzero(before)
        if len(rows):
            self.put(rows, slot[rows], order[rows], window, position[rows])

    def sorted(self, size: int) -> Slots:
        """The first ``size`` in order."""
        by = np.lexsort((self.number, self.order), axis=-1)[:, :size]
        return Slots(*(_taken(array, by) for array in vars(self).values()))

    def joined(self, other: Slots) -> Slots:
        """The first of both, as many as each has."""
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return Slots(*(np.concatenate(pair, axis=1) for pair in both)).sorted(self.order.shape[1])


def _taken(array: np.ndarray, by: IntArray) -> np.ndarray:
    return np.take_along_axis(array, by if array.ndim == 2 else by[..., None], axis=1)


class KeptWindows:
    """The windows kept for the neurons of one layer."""

    def __init__(self, neurons: int, seed: int = 0) -> None:
        self.seed = seed
        self.highest = Slots.empty(neurons, EXTREMES)
        self.lowest = Slots.empty(neurons, EXTREMES)
        self.drawn = Slots.empty(neurons, NUM_OCTAVES)

    def add(self, window: Window) -> None:
        """Take in a window. Cost: a pass over its values; memory does not grow."""
        neurons = np.arange(window.values.shape[1])
        high, low = window.values.argmax(0), window.values.argmin(0)
        largest = window.values[high, neurons].astype(np.float64)
        smallest = window.values[low, neurons].astype(np.float64)
        # Where nothing is positive (negative) there is no window of that end.
        self.highest.offer(np.where(largest > 0, -largest, np.inf), window, high)
        self.lowest.offer(np.where(smallest < 0, smallest, np.inf), window, low)
        position = np.where(largest >= -smallest, high, low)
        self._draw(np.maximum(largest, -smallest), window, position)

    def _draw(self, magnitude: FloatArray, window: Window, position: IntArray) -> None:
        order = window_hash(self.seed, window.number)
        with np.errstate(divide="ignore"):
            octave = np.floor(np.log2(magnitude)) - LOWEST_OCTAVE
        rows = np.flatnonzero((octave >= 0) & (octave < NUM_OCTAVES))
        slots = octave[rows].astype(np.int64)
        before = order < self.drawn.order[rows, slots]
        rows, slots = rows[before], slots[before]
        if len(rows):
            self.drawn.put(rows, slots, np.full(len(rows), order), window, position[rows])

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is kept, by ``kind/field``, in an order that does not depend on the way here."""
        found = {
            "highest": self.highest.sorted(EXTREMES),
            "lowest": self.lowest.sorted(EXTREMES),
            "drawn": self.drawn,
        }
        return {
            f"{kind}/{name}": array for kind, s in found.items() for name, array in vars(s).items()
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], seed: int = 0) -> KeptWindows:
        """What :meth:`arrays` gave."""
        names = list(vars(Slots.empty(1, 1)))
        kept = cls(1, seed)
        for kind in KINDS:
            setattr(kept, kind, Slots(*(arrays[f"{kind}/{name}"].copy() for name in names)))
        return kept

    def merge(self, other: KeptWindows) -> None:
        """Take in what another part of the corpus kept."""
        self.highest = self.highest.joined(other.highest)
        self.lowest = self.lowest.joined(other.lowest)
        first = other.drawn.order < self.drawn.order
        for name, array in vars(other.drawn).items():
            mine = getattr(self.drawn, name)
            mine[first] = array[first]


def window_hash(seed: int, number: int) -> float:
    """A number in [0, 1) of 53 bits that looks random (splitmix64 of seed and number)."""
    mask = (1 << 64) - 1
    x = (number + 0x9E3779B97F4A7C15 * (seed + 1)) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) / float(1 << 53)


def merged_arrays(
    parts: Sequence[Mapping[str, np.ndarray]], seed: int = 0
) -> dict[str, np.ndarray]:
    """The arrays of several parts as those of one."""
    kept = KeptWindows.of_arrays(parts[0], seed)
    for part in parts[1:]:
        kept.merge(KeptWindows.of_arrays(part, seed))
    return kept.arrays()
