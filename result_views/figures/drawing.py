"""Primitives that draw on an ``ax``, and tokens as labels; `analysis_utils` passes them on.

Each primitive draws what it is given on the axes it is given and returns them: no statistic is
computed, no figure made and no backend chosen here.

Reference: Okabe & Ito 2008, Color universal design (the palette).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from suite_plumbing.messages import quoted
from suite_plumbing.texts import clean_token

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe & Ito: told apart under every common colour-vision deficiency.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")

# Seven markers against eight colours: 56 groups before a pair comes back.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

SEQUENTIAL_CMAP = "viridis"

LAYER_CMAP = "magma"
"""Of layers where they are colours; none of the palette's, which are texts, methods or models."""

QUANTITY_STYLES = (("#332288", "-"), ("#882255", "--"), ("#661100", ":"), ("#999933", "-."))
"""Colour and dashes of quantities that share a panel with texts elsewhere on the page."""

NULL_COLOUR = "0.6"

NULL_ALPHA = 0.5
"""The one grey of nulls, in every panel."""

HATCH = "////"
"""Of what is missing; grey alone is a null."""

DIVERGING_CMAP = "RdBu_r"

UNDEFINED_COLOUR = "white"


def draw_heatmap(
    ax: Axes,
    matrix: ArrayLike,
    *,
    diverging: bool,
    xlabels: Sequence[str] | None = None,
    ylabels: Sequence[str] | None = None,
    cbar_label: str = "",
    title: str = "",
    limit: float | None = None,
    hatch: bool = True,
) -> Axes:
    """Draw a matrix (rows, columns) as a heat map with its colour bar.

    `diverging` takes limits symmetric about 0, at `limit` or at the largest magnitude; otherwise
    the scale runs from the smallest value (or 0, with `limit` as its top). Undefined entries (nan)
    are hatched, or white without `hatch`. Labels are thinned and cleaned as tokens. Raises
    ValueError unless matrix has two axes and the labels their lengths.
    """
    values = np.ma.masked_invalid(_array(matrix))
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"matrix has shape {values.shape}; expected (rows, columns)")
    top = limit if limit is not None else _largest_magnitude(values)
    low, high = (-top, top) if diverging else (0.0 if limit is not None else None, limit)
    cmap = DIVERGING_CMAP if diverging else SEQUENTIAL_CMAP
    image = ax.imshow(
        values, cmap=cmap, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    if hatch and np.ma.is_masked(values):
        hatch_missing(ax, values.shape)  # masked entries are transparent
    ax.figure.colorbar(image, ax=ax, label=cbar_label)
    ax.set_title(title)
    for axis, labels, size in (("x", xlabels, values.shape[1]), ("y", ylabels, values.shape[0])):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{axis}labels has {len(labels)} entries; the matrix has {size}")
        if labels is not None:
            token_ticks(ax, labels, axis)
    return ax


def hatch_missing(ax: Axes, shape: tuple[int, int]) -> None:
    """Hatch the cells (rows, columns) of a heat map, under it: what is undefined shows through."""
    from matplotlib.patches import Rectangle

    rows, columns = shape
    ax.set_facecolor(UNDEFINED_COLOUR)
    ax.add_patch(
        Rectangle(
            (-0.5, -0.5), columns, rows, fill=False, hatch=HATCH, edgecolor="0.75", linewidth=0,
            zorder=-1, label="missing",
        )
    )  # fmt: skip


def draw_lines_with_band(
    ax: Axes,
    x: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    label: str,
    color: str | None = None,
) -> Axes:
    """Draw a line (k,) with the band from low to high (k,) in its colour; nan leaves a gap."""
    (line,) = ax.plot(_array(x), _array(mean), label=label, color=color)
    band = (_array(x), _array(low), _array(high))
    ax.fill_between(*band, color=line.get_color(), alpha=0.2, linewidth=0)
    return ax


def draw_null_band(
    ax: Axes,
    x: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    mean: ArrayLike | None = None,
    label: str = "null, 95 % interval",
) -> Axes:
    """Draw a null's interval (k,) as a grey band behind the data, its mean as a dashed line."""
    band = (_array(x), _array(low), _array(high))
    ax.fill_between(*band, color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=0, label=label, zorder=0)
    if mean is not None:
        ax.plot(_array(x), _array(mean), color="0.4", linestyle="--", linewidth=1, zorder=1)
    return ax


def token_ticks(ax: Axes, tokens: Sequence[str], axis: str = "x", *, first: int = 0) -> Axes:
    """Label positions 0..len(tokens) - 1 of an axis with cleaned tokens, as many as are readable.

    All tokens if the axis has 0.16 inch for each, else every 2nd, 5th, 10th, 20th, ..., each label
    then with its position, counted from ``first``. Labels of the x axis stand upright. Raises
    ValueError unless axis is "x" or "y".
    """
    if axis not in ("x", "y"):
        raise ValueError(f"axis is {quoted(axis)}; expected 'x' or 'y'")
    extent = ax.get_window_extent()
    inches = (extent.width if axis == "x" else extent.height) / ax.figure.dpi
    step = _tick_step(len(tokens), max(1, int(inches / 0.16)))
    positions = range(0, len(tokens), step)
    cleaned = [drawable_text(clean_token(tokens[i]), 20) for i in positions]
    labels = (
        cleaned
        if step == 1
        else [f"{first + i} {name}" for i, name in zip(positions, cleaned, strict=True)]
    )
    if axis == "x":
        ax.set_xticks(list(positions), labels, rotation=90, fontsize=8)
    else:
        ax.set_yticks(list(positions), labels, fontsize=8)
    return ax


def drawable_text(text: str, max_length: int | None = None) -> str:
    """`text` with every character that the current fonts lack as its escape, such as "\\U0001f642".

    Matplotlib would draw the same box for all of them, and warn. Which character it was can be read
    off the escape; a box would show different texts as one. Longer than `max_length`, the result
    ends in "…". The fonts are those of `font.family`.
    """
    known = _drawable_characters(tuple(_current_fonts()))
    drawn = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)
    if max_length is not None and len(drawn) > max_length:
        return drawn[: max_length - 1] + "\u2026"
    return drawn


def font_families() -> list[str]:
    """DejaVu Sans, which matplotlib brings, and what this machine has for other scripts."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]


_FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai",
    "Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Noto Sans Symbols 2", "Symbola",
    "Arial Unicode MS",
)  # fmt: skip


def _current_fonts() -> list[str]:
    # Imported here: every module of statistics would wait for matplotlib otherwise.
    from matplotlib import font_manager, rcParams

    families = [font_manager.FontProperties(family=[name]) for name in rcParams["font.family"]]
    return [font_manager.findfont(family) for family in families]


@functools.cache
def _drawable_characters(fonts: tuple[str, ...]) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset().union(*(font_manager.get_font(font).get_charmap() for font in fonts))


def _tick_step(count: int, most: int) -> int:
    """Smallest of 1, 2, 5, 10, 20, 50, ... that leaves at most `most` of `count` labels."""
    wanted = math.ceil(count / most)
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= wanted:
                return factor * scale
        scale *= 10


def _array(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _largest_magnitude(values: np.ma.MaskedArray) -> float:
    """Half the width of a symmetric colour scale; 1 where nothing gives it a width."""
    return float(np.abs(values.compressed()).max(initial=0.0)) or 1.0
