"""How a value is drawn beside its null: outside, inside and without a null are three looks.

Points are filled, hollow or half filled; cells of a heat map are plain, crossed or marked "?".
`result_views.beside_nulls` says which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from result_views.beside_nulls import INSIDE, NO_NULL, OUTSIDE, standing, standing_of

POINTS_SAY = "filled points lie outside it, hollow ones within, half-filled ones have no null"
"""End of a sentence of a caption, after the null was named."""

MAGNITUDES_SAY = "filled points lie above it, hollow ones do not, half-filled ones have no null"
"""The same of statistics of which only a value above the null counts."""

CELLS_SAY = "crosses: within it; ?: no null"
"""The same of heat maps."""

_FACES: Mapping[str, Mapping[str, str]] = {
    OUTSIDE: {"fillstyle": "full"},
    INSIDE: {"fillstyle": "full", "markerfacecolor": "white"},
    NO_NULL: {"fillstyle": "left", "markerfacecoloralt": "white"},
}


def draw_standings(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    standings: Sequence[str | None],
    colour: str,
    marker: str,
    *,
    label: str | None = None,
    size: float | None = None,
) -> Axes:
    """Points (k,) in the look of their standing; undefined ones are not drawn.

    ``label`` names each of the groups that are drawn, filled and hollow ones also where there are
    none.
    """
    across, up = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    for name, face in _FACES.items():
        chosen = np.array([one == name for one in standings], dtype=bool)
        if name == NO_NULL and not chosen.any():
            continue
        ax.plot(
            across[chosen], up[chosen], marker, label=label,
            **{"color": colour, "markerfacecolor": colour, "markersize": size,
               "markeredgewidth": 0.8, **face},
        )  # fmt: skip
    return ax


def draw_beside_null(
    ax: Axes,
    x: ArrayLike,
    tests: Sequence[Mapping[str, Any]],
    colour: str,
    marker: str,
    *,
    one_sided: bool = False,
    label: str | None = None,
    size: float | None = None,
) -> Axes:
    """Points at the values of tests (k,), each in the look of where it stands beside its null."""
    values = np.array([test["value"] for test in tests], dtype=float)
    standings = [standing_of(test, one_sided=one_sided) for test in tests]
    return draw_standings(ax, x, values, standings, colour, marker, label=label, size=size)


def mark_standings(
    ax: Axes,
    values: ArrayLike,
    low: ArrayLike | None,
    high: ArrayLike,
    *,
    colour: str = "0.35",
) -> Axes:
    """Marks on the cells of a heat map (rows, columns): a cross within the null, "?" without one.

    ``low`` None: only what lies above ``high`` is outside. Both are broadcast over the cells.
    """
    cells = np.asarray(values, dtype=float)
    lows, highs = (
        np.broadcast_to(np.asarray(np.nan if end is None else end, dtype=float), cells.shape)
        for end in (low, high)
    )
    found = np.array(
        [
            standing(*ends, one_sided=low is None) or ""
            for ends in zip(cells.flat, lows.flat, highs.flat, strict=True)
        ]
    ).reshape(cells.shape)
    mark_cells(ax, found == INSIDE, colour)
    return mark_cells(ax, found == NO_NULL, colour, "$?$")


def mark_cells(
    ax: Axes, chosen: NDArray[np.bool_], colour: str = "0.35", marker: str = "x"
) -> Axes:
    """A small cross, or another marker, on each chosen cell of a heat map."""
    if not chosen.any():
        return ax
    rows, columns = np.nonzero(chosen)
    size = 3.0 if max(chosen.shape) <= 20 else 1.8
    size = size if marker == "x" else 1.4 * size
    ax.plot(
        columns, rows, color=colour, marker=marker, linestyle="", markersize=size,
        markeredgewidth=0.5,
    )  # fmt: skip
    return ax
