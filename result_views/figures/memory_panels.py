"""Panels of the memory figures: each draws one quantity of the memory analysis on an ``ax``.

A panel is given one step's section of ``results["memory"]``, live or loaded from JSON, and computes
no statistic. Where the section is missing or failed the panel says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from result_views.figures.drawing import (
    MARKERS,
    PALETTE,
    draw_heatmap,
    draw_lines_with_band,
    draw_null_band,
)
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    layer_colours,
    layer_ticks,
    log_axis,
    mark_cells,
    name_layers,
    thin_ticks,
    write_reason,
)
from result_views.glossary import method_name
from suite_plumbing.result_reading import Section, failure, layers_of

CAUSAL_KINDS = {"reset": "State reset", "knockout": "One source hidden"}
"""How the interventions on the state are written, by the name they have in the results."""

_CORRELATES = {
    "mean_delta": "mean Δ", "half_life": "half-life", "memory_sensitivity": "memory",
}  # fmt: skip

_STREAMS = {"residual": "residual stream", "mixer": "mixer output"}

_STATISTICS = {"mean_abs": "Mean |r|", "max_abs": "Largest |r|", "cka": "CKA"}


def plot_by_layer(
    rows: Sequence[Section],
    names: Mapping[str, str],
    title: str,
    ylabel: str,
    ax: Axes | None = None,
    *,
    log: bool = False,
) -> Axes:
    """Columns of the table by layer, a colour each (``names``: label by column)."""
    ax = begin(ax, title, "layer", ylabel)
    layers = [row["layer"] for row in rows]
    for i, (name, label) in enumerate(names.items()):
        values = as_array([row[name] for row in rows])
        ax.plot(layers, values, color=PALETTE[i], marker=MARKERS[i], label=label)
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "the steps that measure it gave no result")
    if len(names) > 1:
        ax.legend(loc="best")
    if log:
        log_axis(ax, "y")
    return layer_ticks(ax, layers)


def plot_activation(section: Section, method: str, ax: Axes | None = None) -> Axes:
    """RMS of a method's neurons by layer: mean over neurons and texts, band of the texts' range."""
    ax = begin(ax, method_name(method), "layer", "RMS per neuron")
    if reason := failure(section):
        return write_reason(ax, reason)
    layers = layers_of(section)
    means = [[t["activation_rms"]["mean"] for t in part[method].values()] for _, part in layers]
    values = as_array(means)
    numbers = [layer for layer, _ in layers]
    low, high = values.min(1), values.max(1)
    draw_lines_with_band(ax, numbers, values.mean(1), low, high, method, PALETTE[0])
    ax.plot(numbers, values.mean(1), "o", color=PALETTE[0])
    return layer_ticks(ax, numbers)


def plot_tests_by_layer(
    section: Section,
    path: Sequence[str],
    title: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """A tested value by layer on the band of its null; hollow points lie inside the band."""
    ax = begin(ax, title, "layer", ylabel)
    if reason := failure(section):
        return write_reason(ax, reason)
    tests = [(layer, _at(part, path)) for layer, part in layers_of(section)]
    shown = [(layer, test) for layer, test in tests if test["value"] is not None]
    if not shown:
        return write_reason(ax, tests[0][1]["reason"] if tests else "no layers")
    layers = [layer for layer, _ in shown]
    value, low, high = (
        as_array([test[name] for _, test in shown]) for name in ("value", "null_low", "null_high")
    )
    draw_null_band(ax, layers, low, high)
    ax.vlines(layers, low, high, color="0.75", linewidth=3)  # a single layer has no band
    inside = (low <= value) & (value <= high)
    colours = ["white" if one else PALETTE[0] for one in inside]
    ax.plot(layers, value, color=PALETTE[0], linewidth=0.6)
    ax.scatter(layers, value, c=colours, edgecolors=PALETTE[0], zorder=3, s=14)
    return layer_ticks(ax, layers)


def plot_autocorrelation(section: Section, stream: str, ax: Axes | None = None) -> Axes:
    """Autocorrelation by lag, a line a layer, on a band around the nulls of all layers."""
    ax = _lines(
        section,
        lambda part: (part[stream]["autocorrelation"]["lags"],
                      part[stream]["autocorrelation"]["mean"]),
        begin(ax, f"Autocorrelation, {_STREAMS[stream]}", "lag (tokens)", "mean over channels"),
    )  # fmt: skip
    if failure(section) is None:
        given = [part[stream]["autocorrelation"] for _, part in layers_of(section)]
        found = [series for series in given if series["lags"]]  # a silent layer has none
        low, high = (as_array([one[end] for one in found]) for end in ("null_low", "null_high"))
        if found:
            draw_null_band(ax, found[0]["lags"], low.min(0), high.max(0))
    return ax


def plot_survival(section: Section, ax: Axes | None = None) -> Axes:
    """Share of what a token wrote that is left some tokens later, a line a layer."""
    ax = begin(ax, "Survival in the state", "lag (tokens)", "share left")
    return _lines(section, lambda part: (part["memory"]["lags"], part["memory"]["survival"]), ax)


def plot_kernel(section: Section, ax: Axes | None = None) -> Axes:
    """Memory kernel by lag, mean over texts, a line a layer."""
    ax = begin(ax, "Memory kernel", "lag (tokens)", "share of attention")
    ax = _lines(
        section,
        lambda part: (range(len(part["kernel"])), [share or None for share in part["kernel"]]),
        ax,
    )
    return log_axis(ax, "y") if not ax.texts else ax


def plot_pair_heatmap(
    section: Section, stream: str, statistic: str, ax: Axes | None = None
) -> Axes:
    """A statistic of pairs of layers below the diagonal, the top of its null above it.

    A cross marks a value that does not exceed its null.
    """
    ax = begin(ax, f"{_STATISTICS[statistic]}, {_STREAMS[stream]}", "layer", "layer")
    if reason := failure(section):
        return write_reason(ax, reason)
    pairs = list(section[stream].values())
    layers = sorted({layer for pair in pairs for layer in pair["layers"]})
    matrix = np.full((len(layers), len(layers)), np.nan)
    for pair in pairs:
        earlier, later = sorted(layers.index(layer) for layer in pair["layers"])
        test = pair[statistic]
        matrix[later, earlier], matrix[earlier, later] = as_array(
            [test["value"], test["null_high"]]
        )
    if not np.isfinite(matrix).any():
        return write_reason(ax, pairs[0]["reason"])
    # |r| and CKA start at 0; a debiased CKA a little below it counts as 0.
    draw_heatmap(
        ax, matrix, diverging=False, limit=float(np.nanmax(matrix)) or None, title=ax.get_title()
    )
    mark_cells(ax, np.tril(matrix <= matrix.T), "white")
    labels = [str(layer) for layer in layers]
    thin_ticks(ax, "x", labels)
    return thin_ticks(ax, "y", labels)


def plot_rank_correlations(section: Section, ax: Axes | None = None) -> Axes:
    """Rank correlation over channels of each method's importance with delta and memory.

    A cross marks what lies within the null of permutations.
    """
    ax = begin(ax, "Importance with Δ and memory", "", "layer")
    if reason := failure(section):
        return write_reason(ax, reason)
    layers = layers_of(section)
    columns = [
        (method, name) for method, part in layers[0][1].items() for name in part["correlations"]
    ]
    tests = [[part[m]["correlations"][name] for m, name in columns] for _, part in layers]
    values, low, high = (
        as_array([[test[key] for test in row] for row in tests])
        for key in ("value", "null_low", "null_high")
    )
    if not np.isfinite(values).any():
        return write_reason(ax, tests[0][0]["reason"])
    draw_heatmap(ax, values, diverging=True, limit=1.0, cbar_label="ρ", title=ax.get_title())
    mark_cells(ax, (low <= values) & (values <= high))
    names = [f"{_CORRELATES.get(name, name)}\n{method.split('_')[0]}" for method, name in columns]
    ax.set_xticks(range(len(names)), names)
    for i in range(1, len(columns)):
        if columns[i][0] != columns[i - 1][0]:
            ax.axvline(i - 0.5, color="white", linewidth=2.5)
    return thin_ticks(ax, "y", [str(layer) for layer, _ in layers])


def plot_causal(section: Section, kind: str, ax: Axes | None = None) -> Axes:
    """Mean KL by lag, a line a layer alone, and all layers together in black."""
    ax = begin(ax, CAUSAL_KINDS[kind], "lag (tokens)", "KL (nats)")
    if reason := _without(section, kind):
        return write_reason(ax, reason)
    curves = layers_of(section[kind]["layers"])
    colours = layer_colours([layer for layer, _ in curves])
    for layer, curve in curves:
        kl = as_array([value or None for value in curve["mean_kl"]])
        ax.plot(range(len(kl)), kl, color=colours[layer])
    together = as_array([value or None for value in section[kind]["together"]["mean_kl"]])
    ax.plot(range(len(together)), together, color="black", label="all together")
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "no effect at any lag")
    log_axis(ax, "y")
    ax = name_layers(ax, list(colours))
    if ax.get_legend() is None:  # layers have a colour bar, and the black line no name yet
        ax.legend(loc="best")
    return ax


def plot_causal_bins(section: Section, kind: str, ax: Axes | None = None) -> Axes:
    """KL by bin of lags of all layers together, with intervals, beside random other positions."""
    title = f"{CAUSAL_KINDS[kind]}, all layers together"
    ax = begin(ax, title, "lag (tokens)", "KL (nats)")
    if reason := _without(section, kind):
        return write_reason(ax, reason)
    bins = section[kind]["together"]["bins"]
    names = ("kl", "kl_low", "kl_high")
    kl, low, high = (as_array([entry[name] or None for entry in bins]) for name in names)
    if not np.isfinite(kl).any():
        return write_reason(ax, "no effect at any lag")
    x = np.arange(len(bins))
    ax.vlines(x, low, high, color="black", linewidth=1.2)
    ax.plot(
        x, kl, "o", color="black", label=f"{len(section[kind]['together']['positions'])} positions"
    )
    random = section[kind].get("random_positions", {})
    if "bins" in random:
        others = as_array([entry["baseline_kl"] or None for entry in random["bins"]])
        label = f"{random['num_positions']} random others"
        ax.plot(x + 0.2, others, "o", color="0.45", markerfacecolor="white", label=label)
    log_axis(ax, "y")
    labels = [_range(entry["first_lag"], entry["last_lag"]) for entry in bins]
    ax.set_xticks(x, labels)
    ax.legend(loc="best")
    return ax


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def plot_causal_map(section: Section, kind: str, ax: Axes | None = None) -> Axes:
    """Mean KL by layer (alone) and lag as a heat map, log10."""
    ax = begin(ax, f"{CAUSAL_KINDS[kind]}, by layer", "lag (tokens)", "layer")
    if reason := _without(section, kind):
        return write_reason(ax, reason)
    curves = layers_of(section[kind]["layers"])
    values = as_array([[value or None for value in curve["mean_kl"]] for _, curve in curves])
    if not np.isfinite(values).any():
        return write_reason(ax, "no effect at any lag")
    draw_heatmap(
        ax, np.log10(values), diverging=False, cbar_label="log10 KL (nats)", title=ax.get_title()
    )
    return thin_ticks(ax, "y", [str(layer) for layer, _ in curves])


def plot_kernel_agreement(section: Section, ax: Axes | None = None) -> Axes:
    """Spearman over lags of a layer's causal curve with its memory kernel, both kinds."""
    ax = begin(ax, "Causal memory and memory kernel", "layer", "Spearman over lags")
    if reason := failure(section):
        return write_reason(ax, reason)
    for i, (kind, label) in enumerate(CAUSAL_KINDS.items()):
        found = layers_of(section.get(kind, {}).get("kernel_agreement", {}))
        values = as_array([part["spearman"] for _, part in found])
        layers = [layer for layer, _ in found]
        ax.plot(layers, values, color=PALETTE[i], marker=MARKERS[i], label=label)
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "undefined: too few lags, or no effect")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05, 1.05)
    ax.legend(loc="best")
    return layer_ticks(ax, layers)


def _without(section: Section, kind: str) -> str | None:
    """Why a kind of intervention is not to be had; None if it is."""
    return failure(section) or (None if kind in section else f"{kind} was not measured")


def _lines(section: Section, series: Callable[[Any], tuple[Any, Any]], ax: Axes) -> Axes:
    """A line a layer, coloured by layer."""
    if reason := failure(section):
        return write_reason(ax, reason)
    layers = layers_of(section)
    colours = layer_colours([layer for layer, _ in layers])
    for layer, part in layers:
        x, y = series(part)
        ax.plot(as_array(list(x)), as_array(list(y)), color=colours[layer])
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "undefined in these texts")
    return name_layers(ax, list(colours))


def _at(part: Any, path: Sequence[str]) -> Any:
    for key in path:
        part = part[key]
    return part
