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
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from result_views.beside_nulls import standing
from result_views.figures.drawing import (
    LAYER_CMAP,
    MARKERS,
    NULL_ALPHA,
    NULL_COLOUR,
    PALETTE,
    QUANTITY_STYLES,
    drawable_text,
)
from result_views.figures.null_looks import draw_beside_null, draw_standings
from suite_plumbing.result_reading import Section, Sections, all_layers, layers_of, usable, why_none

MAX_TICKS = 13
"""More layers or pairs than this, and only every second, third, ... is labelled."""

MAX_LEGEND_LAYERS = 3
"""More layers than this in colours are named by a colour bar."""

# Black is a text's, and the last quarter of the colour map, pale yellow, hard to see on white.
_LAYER_CMAP_ENDS = (0.12, 0.76)

# Lines of texts that differ by less than this share of the panel's range are drawn as one.
_SAME_LINE = 0.05

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_ALL_TEXTS_COLOUR = QUANTITY_STYLES[0][0]

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
    once: bool = False,
) -> Axes:
    """A summary by layer, a line a text: the median, and the band of the middle half of the values.

    `path` leads from a layer's section to the summary: "dynamics.half_life". Where the texts'
    medians lie upon each other, the first is drawn for all, dark. `sign` -1 shows the values
    negated. `once`: the quantity is the same for every text.
    """
    ax = begin(ax, title, "layer", ylabel)
    found = usable(sections)
    layers = all_layers(sections)
    drawn = {
        text: sign * _median_quartiles(_summaries(section, path)[1])
        for text, section in found.items()
    }
    alike = once or _coincide([centre for centre, _, _ in drawn.values()], log)
    for text, (centre, low, high) in list(drawn.items())[: 1 if alike else None]:
        colour, marker = (_ALL_TEXTS_COLOUR, "") if alike else text_style(text)
        label = "all texts" if alike else text
        ax.plot(layers, centre, color=colour, marker=marker, alpha=0.8, label=label)
        _draw_band(ax, layers, low, high, colour, 1 if alike else len(found))
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
    """Means by layer of several summaries, a style each (`names`: label by path), a line a text.

    Where the texts' means lie upon each other, the first is drawn for all. `band`: one standard
    deviation either side.
    """
    ax = begin(ax, title, "layer", ylabel) if title or ax is None else ax
    found, layers = usable(sections), all_layers(sections)
    for i, (path, label) in enumerate(names.items(), first_colour):
        colour, style = QUANTITY_STYLES[i]
        drawn = [_mean_std(_summaries(section, path)[1]) for section in found.values()]
        shown = drawn[:1] if _coincide([mean for mean, _, _ in drawn]) else drawn
        for j, (mean, low, high) in enumerate(shown):
            name = label if j == 0 else None
            ax.plot(layers, mean, color=colour, linestyle=style, label=name)
            if band:
                _draw_band(ax, layers, low, high, colour, len(shown))
    end(ax, sections, layers, "undefined in these texts")
    return legend_above(ax, len(ax.get_legend_handles_labels()[0])) if found else ax


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
    wide: bool = False,
) -> Axes:
    """Values beside the interval of their null, by text: tests of the categories in `labels`.

    A grey bar spans null_low to null_high. A point outside is filled, one inside is hollow, one
    without a null half filled. `one_sided`, or that key of a test: only values above null_high
    count as outside. `wide`: the panel is as wide as the page.
    """
    given = [test for row in tests.values() for test in row]
    if all(test["value"] is None for test in given):
        reason = next((test["reason"] for test in given if test["reason"]), "undefined")
        return write_reason(ax, why_none(sections) or reason)
    ax.use_sticky_edges = False  # a null is seen to end
    offsets, width, alpha = _beside_each_other(len(tests), len(labels) // (3 if wide else 1))
    for (text, row), offset in zip(tests.items(), offsets, strict=True):
        x = np.arange(len(labels)) + offset
        names = ("value", "null_low", "null_high")
        value, low, high = (as_array([test[name] for test in row]) for name in names)
        ax.bar(x, high - low, width, low, color=NULL_COLOUR, alpha=alpha, linewidth=0, label="null")
        colour, marker = text_style(text)
        ax.plot(x, value, color=colour, linewidth=0.6, alpha=0.6)
        draw_beside_null(ax, x, row, colour, marker, one_sided=one_sided, label=text)
    return upright_ticks(ax, labels) if wide else thin_ticks(ax, "x", labels)


def _beside_each_other(num_texts: int, num_labels: int) -> tuple[NDArray, float, float]:
    """Offsets of the texts' marks, width and opacity of their bars: side by side where they fit,
    else upon each other, where the darkest grey is common to most nulls."""
    if num_texts * num_labels > _MAX_MARKS_ASIDE:
        return np.zeros(num_texts), 0.8, 0.7 / num_texts**0.7
    step = 0.8 / num_texts
    return (np.arange(num_texts) - (num_texts - 1) / 2) * step, 0.85 * step, NULL_ALPHA


def draw_points(
    ax: Axes,
    section: Section,
    points: Mapping[str, Sequence[float | None]],
    chance: float,
    reason: str | None,
    *,
    standings: Mapping[str, Sequence[str | None]] | None = None,
    null: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] | None = None,
) -> Axes:
    """Groups of points, one group a layer, and a grey line at what chance gives.

    `null`: by name, the lower and upper ends of the interval of chance, as grey bars in place of
    the line. `standings`: by name of the points, where each stands beside chance (`beside_nulls`);
    that of `null` where they are not given. Points of which neither is known have no null.
    """
    if all(value is None for values in points.values() for value in values):
        return write_reason(ax, reason or "undefined")
    width = 0.7 / len(points)
    for i, (name, values) in enumerate(points.items()):
        x, y = np.arange(len(values)) + (i - (len(points) - 1) / 2) * width, as_array(values)
        if null is not None:
            low, high = map(as_array, null[name])
            ax.bar(
                x, high - low, 0.8 * width, low, color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=0
            )
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        ends = null[name] if null is not None else ([None] * len(values),) * 2
        looks = standings[name] if standings else list(map(standing, values, *ends))
        draw_standings(ax, x, y, looks, colour, marker, size=4)
        label = name if np.isfinite(y).any() else f"{name}: undefined"
        ax.plot([], [], marker, color=colour, markersize=4, label=label)
    if null is None:
        ax.axhline(chance, color=NULL_COLOUR, linewidth=1.5, zorder=0)
    thin_ticks(ax, "x", [str(layer) for layer, _ in layers_of(section)])
    return legend_above(ax, len(points))


def legend_above(ax: Axes, columns: int, handles: Sequence[Any] | None = None) -> Axes:
    """A legend between title and axes, so that it hides nothing.

    A line without any defined value is named as undefined.
    """
    shown = ax.get_legend_handles_labels()[0] if handles is None else list(handles)
    for handle in shown:
        line = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        drawn = as_array(line.get_ydata()) if isinstance(line, Line2D) else np.zeros(0)
        if drawn.size and not np.isfinite(drawn).any():
            handle.set_label(f"{handle.get_label()}: undefined")
    rows = -(-len(shown) // max(columns, 1))
    ax.set_title(ax.get_title(), pad=5 + 9 * rows)
    ax.legend(
        handles=shown, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
        borderaxespad=0.1, handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
    return ax


def layer_colours(layers: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each layer, from dark (first) to light (last)."""
    cmap = matplotlib.colormaps[LAYER_CMAP]
    shares = np.linspace(*_LAYER_CMAP_ENDS, max(2, len(layers)))
    return {layer: cmap(share) for layer, share in zip(layers, shares, strict=False)}


def name_layers(ax: Axes, layers: Sequence[int]) -> Axes:
    """Say which colour is which layer: by a legend, or by a colour bar for many."""
    colours = layer_colours(layers)
    if len(layers) <= MAX_LEGEND_LAYERS:
        for layer in layers:
            ax.plot([], [], color=colours[layer], label=f"layer {layer}")
        return legend_above(ax, len(layers))
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
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(power_of_ten if low < 1e-3 else "{x:g}")
    else:
        axis.set_major_formatter(power_of_ten)
        axis.set_minor_formatter(NullFormatter())
    return ax


def power_of_ten(x: float, _: Any = None) -> str:
    """Label of a logarithmic axis, 10⁻³ or 2×10⁻³, as plain text: mathematics takes a hundred times
    as long to set."""
    if x <= 0:
        return f"{x:g}"
    digits, exponent = f"{x:.2e}".split("e")
    power = "10" + str(int(exponent)).translate(_RAISED)
    return power if float(digits) == 1 else f"{float(digits):g}×{power}"


def lag_axis(ax: Axes) -> Axes:
    """Make the x axis of lags logarithmic, with a place for lag 0."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    longest = max((as_array(line.get_xdata()).max(initial=0) for line in ax.lines), default=0)
    ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= longest]
    ticks += [10**power for power in range(3, 10) if 10**power <= longest]
    ax.set_xlim(-0.3, max(longest, 1) * 1.1)
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    return ax


def point_size(count: int) -> float:
    """Marker size, points, of a scatter of so many points a group."""
    return 5.0 if count < 20 else 3.0 if count < 200 else 2.0


def layer_ticks(ax: Axes, layers: Sequence[int]) -> Axes:
    """Ticks of the x axis at the layers, at most MAX_TICKS of them."""
    ax.set_xticks(list(layers)[:: _step(len(layers), MAX_TICKS)])
    return ax


def thin_ticks(ax: Axes, axis: str, labels: Sequence[str]) -> Axes:
    """Ticks at positions 0, 1, ... of an axis, at most MAX_TICKS of them long and labelled."""
    longest = max(map(len, labels), default=1)
    step = _step(len(labels), MAX_TICKS if longest < 4 or axis == "y" else 24 // longest)
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    set_ticks(range(0, len(labels), step), list(labels)[::step])
    if step > 1:
        set_ticks(range(len(labels)), minor=True)
    return ax


def upright_ticks(ax: Axes, labels: Sequence[str]) -> Axes:
    """Ticks at the labels of the x axis of a wide panel; at most 16 of them long, and upright."""
    given = [i for i, label in enumerate(labels) if label]
    shown = given[:: _step(len(given), 16)]
    ax.set_xticks(shown, [labels[i] for i in shown], rotation=90)
    ax.set_xticks(given, minor=True)
    return ax


def pair_labels(section: Section) -> list[str]:
    """Names of the pairs of layers of a section keyed by "layer_0_to_3"."""
    return [f"{pair['layers'][0]}→{pair['layers'][1]}" for pair in section.values()]


def _step(count: int, most: int) -> int:
    return max(1, -(-count // most))


def _summaries(section: Section, path: str) -> tuple[list[int], list[Mapping[str, Any]]]:
    """Layers, and the summary of each at the end of a path of keys."""
    layers, parts = zip(*layers_of(section), strict=True)
    for key in path.split("."):
        parts = [part[key] for part in parts]
    return list(layers), list(parts)


def _median_quartiles(summaries: Iterable[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(3, k): median, lower and upper quartile; no quartiles in results that do not hold them."""
    names = ("median", "lower_quartile", "upper_quartile")
    return as_array([[part.get(name) for name in names] for part in summaries]).T


def _coincide(lines: Sequence[NDArray[np.float64]], log: bool = False) -> bool:
    """Whether lines (k,) of two texts or more cannot be told apart in a panel of their range."""
    if len(lines) < 2 or len({len(line) for line in lines}) > 1:
        return False
    values = np.stack(lines)
    if log:
        values = np.log(np.where(values > 0, values, np.nan))
    values = values[:, ~np.isnan(values).all(axis=0)]
    if values.size == 0 or np.isnan(values).any():
        return False
    return bool(np.ptp(values, axis=0).max() <= _SAME_LINE * np.ptp(values))


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
