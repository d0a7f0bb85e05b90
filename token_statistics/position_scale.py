"""Whether two layers vary by position alike, so that shifts in time are no null for them.

The mean by position can be taken out of values (`position_course`), a scale that depends on the
position cannot. Of texts that say the same but at a few positions, and are not known as related,
those positions alone are left, in both layers.

The energies of the two sides at a position (mean squares over channels and texts) are taken from
different halves of the independent groups, so that a token that is large in both counts for
nothing: it is the text's own; and of single tokens no more than `_MOST_ENERGY` times what is usual.
Their product, mean over positions, over that of their means is 1 where nothing depends on the
position.

Shapes: n observations, c channels, P positions.
"""

from __future__ import annotations

import numpy as np

from token_statistics.description import FloatArray, IntArray
from token_statistics.observations import Observations
from token_statistics.position_course import MIN_GROUPS

MAX_COMMON_SCALE = 1.1
"""Product of the energies of two layers at equal positions of different texts, over that of any
positions, up to which a scale that depends on the position is small."""

_MOST_ENERGY = 4.0


class PositionEnergy:
    """Energy of one side at each position, of each half of the groups, summed over batches."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 0))
        self._counts = np.zeros((2, 0))

    def add(self, values: FloatArray, positions: IntArray, halves: IntArray) -> None:
        """Add observations (n, c), without their course, by position (n,) and half (n,), 0 or 1."""
        energy = _usual(np.square(values).mean(axis=1))
        self._reach(int(positions.max(initial=-1)) + 1)
        np.add.at(self._sums, (halves, positions), energy)
        np.add.at(self._counts, (halves, positions), 1.0)

    def _reach(self, size: int) -> None:
        """Hold positions below ``size`` too."""
        more = max(0, size - self._sums.shape[1])
        self._sums, self._counts = (
            np.pad(part, ((0, 0), (0, more))) for part in (self._sums, self._counts)
        )

    def means(self) -> FloatArray:
        """(2, P) mean energy at each position; nan for none."""
        empty = np.full(self._sums.shape, np.nan)
        return np.divide(self._sums, self._counts, out=empty, where=self._counts > 0)


def why_scaled_alike(first: PositionEnergy, second: PositionEnergy) -> str | None:
    """Why shifts are no null for two sides of the same observations; None where they are one.

    Refused where the product exceeds MAX_COMMON_SCALE, and what chance gives (three standard
    errors).
    """
    ratios, errors = [], []
    for a, b in zip(first.means(), second.means()[::-1], strict=True):
        known = np.isfinite(a) & np.isfinite(b)
        a, b = (mean[known] / max(mean[known].mean(), 1e-300) for mean in (a, b))
        ratios.append(float((a * b).mean()))
        errors.append(float(a.std() * b.std() / max(known.sum(), 1) ** 0.5))
    ratio = float(np.mean(ratios))
    if not ratio > max(MAX_COMMON_SCALE, 1.0 + 3.0 * float(np.mean(errors))):
        return None
    return (
        f"both layers vary at the same positions of every text, {ratio:.2g} times as much as "
        "chance gives: shifts in time are no coincidence there"
    )


def why_scaled_by_position(x: FloatArray, y: FloatArray, tokens: Observations) -> str | None:
    """`why_scaled_alike` of sides (n, c) at hand; None for fewer than MIN_GROUPS groups.

    With fewer this cannot be told.
    """
    if len(tokens.group_numbers) < MIN_GROUPS:
        return None
    halves = np.searchsorted(tokens.group_numbers, tokens.row_groups) % 2
    sides = PositionEnergy(), PositionEnergy()
    for side, values in zip(sides, (x, y), strict=True):
        side.add(values, tokens.positions, halves)
    return why_scaled_alike(*sides)


def _usual(energy: FloatArray) -> FloatArray:
    """Energies (n,) up to _MOST_ENERGY times the mean of the lower 95 %."""
    usual = np.sort(energy)[: max(1, int(0.95 * len(energy)))].mean()
    return np.minimum(energy, _MOST_ENERGY * usual)
