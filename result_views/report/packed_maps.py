"""Causal attention maps packed small enough for one HTML file, and unpacked again.

A map (l, l) has entries for source s <= query t alone. Each query's row is divided into steps of
its own, the largest magnitude over the number of levels, and rounded; codes of one byte follow
each other row by row, deflated (zlib), and stand in the file as base64. The browser inflates them
by itself (`DecompressionStream`).

Every unpacked entry lies within half a step of the packed one. Steps are rounded up by less than
1 %, so that the error is at most the query's largest magnitude over 1.98 times the levels. That is
for a picture. Which entries of a row or a column are the largest is chosen before rounding, and
those stand beside it to three significant digits: see :func:`strongest`.
"""

from __future__ import annotations

import base64
import bisect
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suite_plumbing.messages import quoted

LEVELS = (
    127,
    113,
    100,
    90,
    80,
    71,
    63,
    56,
    50,
    45,
    40,
    36,
    32,
    28,
    25,
    22,
    20,
    18,
    15,
    13,
    11,
    9,
    8,
)
"""Steps from 0 to a query's largest magnitude, finest first; 127 fill a signed byte."""

STRONGEST = 8
"""Entries listed of every row and of every column."""

_LEAST_EXPONENT = -23

Codes = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class PackedMap:
    """One packed map."""

    size: int
    """number of tokens l"""
    levels: int
    """steps from 0 to a query's largest magnitude"""
    differences: bool
    """whether a code is the difference, modulo 256, from that of the same source one query
    before (queries after their own source); otherwise the code itself"""
    steps: bytes
    """by query, the step: upper 16 bits of a float32, little endian"""
    codes: bytes
    """the l (l + 1) / 2 codes, row by row, deflated"""
    lists: bytes
    """what :func:`strongest` gives of the rows, and of the columns below the diagonal: lags, then
    decimals, each (STRONGEST, l) of 16 bits; first the lower bytes of all, then the upper ones,
    deflated"""

    def to_dict(self) -> dict[str, object]:
        """Fields for JSON, bytes as base64."""
        return {
            "size": self.size,
            "levels": self.levels,
            "differences": self.differences,
            "steps": base64.b64encode(self.steps).decode(),
            "codes": base64.b64encode(self.codes).decode(),
            "lists": base64.b64encode(self.lists).decode(),
        }


def pack_maps(maps: Mapping[str, ArrayLike], max_bytes: int) -> dict[str, PackedMap]:
    """Pack maps (l, l) with the most levels, the same for all, that need about max_bytes together.

    The size is foreseen from the entropy of the codes, which deflating meets or undercuts; where
    even the fewest levels need more, they are taken. Entries above the diagonal are left out.
    Raises ValueError for a map that is not square or holds NaN or infinity. Cost: about 0.1 s for
    a map of 512 tokens.
    """
    rows = {name: _checked(name, values) for name, values in maps.items()}

    def written(levels: int) -> dict[str, _Written]:
        return {name: _Written.of(values, levels) for name, values in rows.items()}

    def fits(levels: int) -> bool:
        return sum(part.entropy for part in written(levels).values()) <= max_bytes

    # Fewer levels need fewer bytes: the first that fits, or the last.
    place = bisect.bisect_left(LEVELS, True, hi=len(LEVELS) - 1, key=fits)
    return {
        name: part.packed(LEVELS[place], _lists(rows[name]))
        for name, part in written(LEVELS[place]).items()
    }


def strongest(matrix: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """By row of a causal map (l, l): lags and values of its entries of largest magnitude.

    Both (STRONGEST, l), largest first and of equal ones the nearest first; the lag is row minus
    column. Entries that are 0, and ranks beyond the row, have value 0. Of the transposed map the
    rows are columns, and the lag is negative.
    """
    size = len(matrix)
    place = np.arange(size)
    lag = place[:, None] - place[None]
    order = np.lexsort((np.abs(lag), -np.abs(matrix)), axis=1)[:, :STRONGEST]
    shape = (STRONGEST, size)
    lags, values = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    lags[: order.shape[1]] = np.take_along_axis(lag, order, axis=1).T
    values[: order.shape[1]] = np.take_along_axis(matrix, order, axis=1).T
    return lags, values


def _lists(matrix: NDArray[np.float64]) -> bytes:
    parts = []
    for lags, values in (strongest(matrix), strongest(np.tril(matrix, -1).T)):
        parts += [np.abs(lags).astype("<u2"), decimals(values).astype("<u2")]
    # Lags are small and decimals of one row of a size: apart, the upper bytes take little room.
    by_byte = np.concatenate([part.ravel() for part in parts]).view(np.uint8).reshape(-1, 2).T
    return zlib.compress(by_byte.tobytes(), 9)


def decimals(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Numbers to three significant digits, in 16 bits: sign, exponent of ten, digits 100 to 999.

    From 1e-23 to 9.99e8 in magnitude; what is smaller is 0, what is larger that largest.
    """
    size = np.abs(values)
    exponent = np.floor(np.log10(size, out=np.full(size.shape, -99.0), where=size > 0))
    digits = np.rint(size / 10.0 ** (exponent - 2))
    exponent, digits = exponent + (digits == 1000), np.where(digits == 1000, 100, digits)
    digits = np.where(exponent > 31 + _LEAST_EXPONENT, 999, digits)
    digits = np.where(exponent < _LEAST_EXPONENT, 0, digits)
    code = np.clip(exponent - _LEAST_EXPONENT, 0, 31) * 1024 + digits
    return np.where(digits > 0, code + 32768 * (values < 0), 0).astype(np.uint16)


def unpack_map(packed: PackedMap) -> NDArray[np.float32]:
    """The map (l, l) as the browser shows it; 0 above the diagonal."""
    triangle = np.frombuffer(zlib.decompress(packed.codes), dtype=np.uint8)
    codes = np.zeros((packed.size, packed.size), dtype=np.uint8)
    codes[np.tri(packed.size, dtype=bool)] = triangle
    if packed.differences:
        # uint8 wraps around, as the differences did.
        codes = np.tril(np.cumsum(codes, axis=0, dtype=np.uint8))
    upper = np.frombuffer(packed.steps, dtype="<u2").astype(np.uint32)
    steps = (upper << 16).view(np.float32)
    return codes.view(np.int8) * steps[:, None]


def _checked(name: str, values: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"map {quoted(name)} has shape {matrix.shape}; expected (tokens, tokens)")
    lower = np.tril(matrix)
    if not np.isfinite(lower).all():
        raise ValueError(f"map {quoted(name)} holds NaN or infinity")
    return lower


class _Written(NamedTuple):
    """A map's codes in the shorter of both ways to write them, before deflating."""

    triangle: NDArray[np.uint8]
    differences: bool
    entropy: float
    """of the codes taken one by one, bytes"""
    steps: NDArray[np.uint16]

    @classmethod
    def of(cls, matrix: NDArray[np.float64], levels: int) -> _Written:
        codes, steps = _quantise(matrix, levels)
        causal = np.tri(len(codes), dtype=bool)
        changes = codes.copy()
        changes[1:] -= codes[:-1]  # int8 wraps around: the difference modulo 256
        ways = [part[causal].view(np.uint8) for part in (codes, changes)]
        entropies = [_entropy_bytes(part) for part in ways]
        shorter = int(np.argmin(entropies))
        return cls(ways[shorter], bool(shorter), entropies[shorter], steps)

    def packed(self, levels: int, lists: bytes) -> PackedMap:
        codes = zlib.compress(self.triangle.tobytes(), 9)
        steps = self.steps.astype("<u2").tobytes()
        return PackedMap(len(self.steps), levels, self.differences, steps, codes, lists)


def _quantise(matrix: NDArray[np.float64], levels: int) -> tuple[Codes, NDArray[np.uint16]]:
    """Codes (l, l) and, by query, the upper half of the float32 step that they count."""
    wanted = (np.abs(matrix).max(axis=1, initial=0.0) / levels).astype(np.float32)
    bits = wanted.view(np.uint32)
    # The lower half of the float is dropped, rounded up: no code may pass the number of levels.
    upper = (bits >> 16) + (bits & 0xFFFF > 0)
    steps = (upper.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    codes = np.zeros(matrix.shape)
    np.divide(matrix, steps[:, None], out=codes, where=steps[:, None] > 0)
    return np.rint(codes).astype(np.int8), upper.astype(np.uint16)


def _entropy_bytes(codes: NDArray[np.uint8]) -> float:
    counts = np.bincount(codes, minlength=1)
    shares = counts[counts > 0] / max(len(codes), 1)
    return float(-(shares * np.log2(shares)).sum() * len(codes) / 8)
