"""What the panels of `analysis_panels` are drawn with: sections, texts, layers and nulls on an ax.

A section that failed is named with its reason, an undefined value (null) leaves a gap, and a panel
in which nothing is defined says why. Nothing here computes a statistic.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter
from numpy.typing import NDArray

from result_views.figures.drawing import MARKERS, PALETTE, SEQUENTIAL_CMAP, drawable_text
from suite_plumbing.result_reading import Section, Sections, all_layers, layers_of, usable, why_none

NULL_COLOUR = "0.6"

MAX_TICKS = 13
"""More layers or pairs than this, and only every second, third, ... is labelled."""

MAX_LEGEND_LAYERS = 3
"""More layers than this in colours are named by a colour bar."""

# The last tenth of the colour map, pale yellow, is hard to see on white.
_LAYER_CMAP_END = 0.9

# More marks than this in a panel of tests, and those of different texts lie upon each other.
_MAX_MARKS_ASIDE = 45

# Without the palette's yellow, for the same reason.
_TEXT_COLOURS = tuple(colour for colour in PALETTE if colour != "#F0E442")


def drawn_layers(ax: Axes) -> list[int]:
    """The layers at which the lines of a panel by layer have points, ascending."""
    return sorted({int(x) for line in ax.lines for x in as_array(line.get_xdata())})


def as_array(values: Any) -> NDArray[np.float64]:
    """Numbers as float64, None as nan."""
    return np.array(values, dtype=np.float64)


def begin(ax: Axes | None, title: str, xlabel: str, ylabel: str) -> Axes:
    """Axes with title and labels; those of a new figure where none is given."""
    if ax is None:
        ax = Figure(layout="constrained").add_subplot()
    ax.set_title(title)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax


def end(ax: Axes, sections: Sections, layers: Sequence[int], undefined: str) -> Axes:
    """Ticks at the layers; or, where no line has a value, the reason: a failure or `undefined`.

    Call it before lines of reference are drawn.
    """
    drawn = (as_array(line.get_ydata()) for line in ax.lines)
    if not any(np.isfinite(values).any() for values in drawn):
        return write_reason(ax, why_none(sections) or undefined)
    return layer_ticks(ax, layers)


def write_reason(ax: Axes, reason: str | None) -> Axes:
    """Say in the middle of an empty panel why it is empty."""
    lines = textwrap.wrap(drawable_text(reason or "undefined"), 36, max_lines=6, placeholder=" …")
    ax.set_xscale("linear")
    ax.set_yscale("linear")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(
        0.5, 0.5, "\n".join(["not available", *lines]), transform=ax.transAxes, ha="center",
        va="center", color="0.35", parse_math=False,
    )  # fmt: skip
    return ax


def text_style(text: str) -> tuple[str, str]:
    """Colour and marker of a text ("text_3"), the same in every panel."""
    cycle, number = divmod(int(text.rpartition("_")[2]), len(_TEXT_COLOURS))
    return _TEXT_COLOURS[number], MARKERS[(number + cycle) % len(MARKERS)]


def draw_text_line(ax: Axes, x: Sequence[float], y: Sequence[Any], text: str) -> Axes:
    """A line (k,) in the colour and marker of its text; None leaves a gap."""
    colour, marker = text_style(text)
    ax.plot(as_array(x), as_array(y), color=colour, marker=marker, alpha=0.8, label=text)
    return ax


def draw_summary(
    sections: Sections,
    path: str,
    ax: Axes | None,
    title: str,
    ylabel: str,
    *,
    log: bool = False,
    sign: int = 1,
    spread: bool = False,
    once: bool = False,
) -> Axes:
    """A summary by layer, a line a text: the median within the range from smallest to largest.

    `path` leads from a layer's section to the summary: "dynamics.half_life". With `spread`, the
    mean within one standard deviation either side. `sign` -1 shows the values negated. `once`: the
    quantity is the same for every text and drawn once, in grey.
    """
    ax = begin(ax, title, "layer", ylabel)
    found = dict(list(usable(sections).items())[: 1 if once else None])
    for text, section in found.items():
        layers, summaries = _summaries(section, path)
        centre, low, high = sign * (_mean_std if spread else _median_range)(summaries)
        colour, marker = ("0.25", "o") if once else text_style(text)
        ax.plot(layers, centre, color=colour, marker=marker, alpha=0.8, label=text)
        _draw_band(ax, layers, low, high, colour, len(found))
    if log and ax.lines:
        log_axis(ax, "y")
    return end(ax, sections, all_layers(sections), "undefined in these texts")


def draw_mean_std(
    sections: Sections,
    names: Mapping[str, str],
    ax: Axes | None,
    title: str = "",
    ylabel: str = "",
    *,
    band: bool = True,
    first_colour: int = 0,
) -> Axes:
    """Means by layer of several summaries, a colour each (`names`: label by path), a line a text.

    `band`: one standard deviation either side.
    """
    ax = begin(ax, title, "layer", ylabel) if title or ax is None else ax
    found = usable(sections)
    for i, (path, label) in enumerate(names.items(), first_colour):
        for j, section in enumerate(found.values()):
            layers, summaries = _summaries(section, path)
            mean, low, high = _mean_std(summaries)
            name = label if j == 0 else None
            ax.plot(layers, mean, color=PALETTE[i], marker=MARKERS[i], label=name)
            if band:
                _draw_band(ax, layers, low, high, PALETTE[i], len(found))
    end(ax, sections, all_layers(sections), "undefined in these texts")
    if found:
        ax.legend(loc="best")
    return ax


def draw_lines_by_layer(
    sections: Sections,
    ax: Axes,
    series: Callable[[Section], tuple[Sequence[float], Sequence[float | None]]],
    *,
    legend: bool = True,
) -> Axes:
    """A line for each layer of each text, coloured by layer; `series` gives x and y of a layer."""
    layers = all_layers(sections)
    colours = layer_colours(layers)
    for section in usable(sections).values():
        for layer, part in layers_of(section):
            x, y = series(part)
            ax.plot(as_array(x), as_array(y), color=colours[layer], alpha=0.8)
    if not ax.lines:
        return write_reason(ax, why_none(sections) or "no layers")
    return name_layers(ax, layers) if legend else ax


def draw_tests(
    ax: Axes,
    sections: Sections,
    labels: Sequence[str],
    tests: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    one_sided: bool = False,
) -> Axes:
    """Values beside the interval of their null, by text: tests of the categories in `labels`.

    A grey bar spans null_low to null_high. A point outside is filled, one inside is hollow, one
    without a null is hollow too. `one_sided`: only values above null_high count as outside.
    """
    given = [test for row in tests.values() for test in row]
    if all(test["value"] is None for test in given):
        reason = next((test["reason"] for test in given if test["reason"]), "undefined")
        return write_reason(ax, why_none(sections) or reason)
    offsets, width, alpha = _beside_each_other(len(tests), len(labels))
    for (text, row), offset in zip(tests.items(), offsets, strict=True):
        x = np.arange(len(labels)) + offset
        names = ("value", "null_low", "null_high")
        value, low, high = (as_array([test[name] for test in row]) for name in names)
        ax.bar(x, high - low, width, low, color=NULL_COLOUR, alpha=alpha, linewidth=0, label="null")
        colour, marker = text_style(text)
        ax.plot(x, value, color=colour, linewidth=0.6, alpha=0.6)
        outside = (value > high) | ((value < low) & (not one_sided))
        for chosen, face in ((outside, colour), (~outside, "white")):
            ax.plot(
                x[chosen], value[chosen], marker, color=colour, markerfacecolor=face,
                markeredgewidth=0.8, label=text,
            )  # fmt: skip
    thin_ticks(ax, "x", labels)
    return ax


def _beside_each_other(num_texts: int, num_labels: int) -> tuple[NDArray, float, float]:
    """Offsets of the texts' marks, width and opacity of their bars: side by side where they fit,
    else upon each other, where the darkest grey is common to most nulls."""
    if num_texts * num_labels > _MAX_MARKS_ASIDE:
        return np.zeros(num_texts), 0.8, 0.7 / num_texts**0.7
    step = 0.8 / num_texts
    return (np.arange(num_texts) - (num_texts - 1) / 2) * step, 0.85 * step, 0.55


def draw_bars(
    ax: Axes,
    section: Section,
    bars: Mapping[str, Sequence[float | None]],
    chance: float,
    reason: str | None,
    hollow: Mapping[str, Sequence[bool]] | None = None,
) -> Axes:
    """Groups of bars, one group a layer, and a dashed line at what chance gives.

    `hollow`: by name of the bars, those that are drawn as outlines.
    """
    if all(value is None for values in bars.values() for value in values):
        return write_reason(ax, reason or "undefined")
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        x = np.arange(len(values)) + (i - (len(bars) - 1) / 2) * width
        colour = PALETTE[i % len(PALETTE)]
        drawn = ax.bar(
            x, as_array(values), width * 0.88, color=colour, edgecolor=colour, linewidth=0.7
        )
        drawn.set_label(name)
        for bar, empty in zip(drawn, hollow[name] if hollow else (), strict=False):
            bar.set_facecolor("white" if empty else colour)
    handles = [Patch(color=PALETTE[i % len(PALETTE)], label=name) for i, name in enumerate(bars)]
    ax.axhline(chance, color="0.25", linestyle="--", linewidth=0.9)
    thin_ticks(ax, "x", [str(layer) for layer, _ in layers_of(section)])
    ax.set_title(ax.get_title(), pad=16)
    # Above the axes, so that it hides no bar.
    ax.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(bars),
        borderaxespad=0.1, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    return ax


def layer_colours(layers: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each layer, from dark (first) to light (last)."""
    cmap = matplotlib.colormaps[SEQUENTIAL_CMAP]
    shares = np.linspace(0, _LAYER_CMAP_END, max(2, len(layers)))
    return {layer: cmap(share) for layer, share in zip(layers, shares, strict=False)}


def name_layers(ax: Axes, layers: Sequence[int]) -> Axes:
    """Say which colour is which layer: by a legend, or by a colour bar for many."""
    colours = layer_colours(layers)
    if len(layers) <= MAX_LEGEND_LAYERS:
        for layer in layers:
            ax.plot([], [], color=colours[layer], label=f"layer {layer}")
        ax.legend(loc="best")
        return ax
    cmap = ListedColormap([colours[layer] for layer in layers])
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(-0.5, len(layers) - 0.5), cmap), ax=ax, label="layer"
    )
    step = _step(len(layers), 8)
    bar.set_ticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])
    return ax


def log_axis(ax: Axes, name: str) -> Axes:
    """Make an axis with its data logarithmic, with more than powers of ten over a short range.

    Data of which none is above 0 stay on a linear axis, the only one that shows them.
    """
    if not np.isfinite(ax.dataLim.minposx if name == "x" else ax.dataLim.minposy):
        return ax
    (ax.set_xscale if name == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if name == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
        small = LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(99.0, 99.0))
        axis.set_major_formatter(small if low < 1e-3 else "{x:g}")
    return ax


def point_size(count: int) -> float:
    """Marker size, points, of a scatter of so many points a group."""
    return 5.0 if count < 20 else 3.0 if count < 200 else 2.0


def layer_ticks(ax: Axes, layers: Sequence[int]) -> Axes:
    """Ticks of the x axis at the layers, at most MAX_TICKS of them."""
    ax.set_xticks(list(layers)[:: _step(len(layers), MAX_TICKS)])
    return ax


def thin_ticks(ax: Axes, axis: str, labels: Sequence[str]) -> Axes:
    """Label positions 0, 1, ... of an axis, at most MAX_TICKS of them."""
    longest = max(map(len, labels), default=1)
    step = _step(len(labels), MAX_TICKS if longest < 4 or axis == "y" else 24 // longest)
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    set_ticks(range(0, len(labels), step), list(labels)[::step])
    return ax


def pair_labels(section: Section) -> list[str]:
    """Names of the pairs of layers of a section keyed by "layer_0_to_3"."""
    return [f"{pair['layers'][0]}→{pair['layers'][1]}" for pair in section.values()]


def mark_cells(ax: Axes, chosen: NDArray[np.bool_], colour: str = "0.35") -> Axes:
    """A small cross on each chosen cell of a heat map."""
    rows, columns = np.nonzero(chosen)
    size = 3.0 if max(chosen.shape) <= 20 else 1.8
    ax.plot(columns, rows, "x", color=colour, markersize=size, markeredgewidth=0.5)
    return ax


def _step(count: int, most: int) -> int:
    return max(1, -(-count // most))


def _summaries(section: Section, path: str) -> tuple[list[int], list[Mapping[str, Any]]]:
    """Layers, and the summary of each at the end of a path of keys."""
    layers, parts = zip(*layers_of(section), strict=True)
    for key in path.split("."):
        parts = [part[key] for part in parts]
    return list(layers), list(parts)


def _median_range(summaries: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(3, k): median, smallest, largest."""
    return as_array([[part[name] for name in ("median", "min", "max")] for part in summaries]).T


def _mean_std(summaries: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(3, k): mean, and one standard deviation below and above it."""
    mean, std = as_array([[part["mean"], part["std"]] for part in summaries]).T
    return np.stack([mean, mean - std, mean + std])


def _draw_band(
    ax: Axes, x: Sequence[int], low: Any, high: Any, colour: str, num_bands: int
) -> None:
    """A band in a colour, lighter where many lie upon each other; a bar for a single layer."""
    alpha = 0.22 / num_bands**0.7
    if len(x) == 1:
        ax.vlines(x, low, high, color=colour, alpha=2 * alpha, linewidth=4)
    else:
        ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
