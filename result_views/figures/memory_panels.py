"""Panels of the memory figures: each draws one quantity of the memory analysis on an ``ax``.

A panel is given one step's section of ``results["memory"]``, live or loaded from JSON, and computes
no statistic. Where the section is missing or failed the panel says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from result_views.beside_nulls import MAGNITUDES
from result_views.figures.analysis_panels import PAIR_STATISTICS
from result_views.figures.analysis_panels import (
    plot_autocorrelation as autocorrelation_of_layers,
)
from result_views.figures.drawing import (
    MARKERS,
    NULL_ALPHA,
    NULL_COLOUR,
    PALETTE,
    QUANTITY_STYLES,
    draw_heatmap,
    draw_null_band,
)
from result_views.figures.null_looks import draw_beside_null, mark_standings
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    lag_axis,
    layer_colours,
    layer_ticks,
    legend_above,
    log_axis,
    name_layers,
    pair_labels,
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

_LOG_RATIO = 30.0  # values that differ by more stand on a logarithmic axis

_STREAMS = {"residual": "residual stream", "mixer": "mixer output"}


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
        legend_above(ax, len(names))
    if log:
        log_axis(ax, "y")
    return layer_ticks(ax, layers)


def plot_activation(section: Section, methods: Sequence[str], ax: Axes | None = None) -> Axes:
    """RMS of the neurons of some methods by layer: median over neurons, a bar of the middle half.

    A point a text and method, the methods side by side, on an axis that starts at 0.
    """
    ax = begin(ax, "RMS of a neuron's value over tokens", "layer", "RMS")
    if reason := failure(section):
        return write_reason(ax, reason)
    layers = layers_of(section)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        texts = list(layers[0][1][method])
        for j, text in enumerate(texts):
            offset = (i - (len(methods) - 1) / 2) * width + (j + 1) * width / (len(texts) + 1)
            x = np.arange(len(layers)) + offset - width / 2
            summaries = [part[method][text]["activation_rms"] for _, part in layers]
            names = ("median", "lower_quartile", "upper_quartile")
            middle, low, high = (as_array([one.get(name) for one in summaries]) for name in names)
            ax.vlines(x, low, high, color=PALETTE[i], linewidth=1.0, alpha=0.6)
            label = method_name(method) if j == 0 else None
            ax.plot(x, middle, MARKERS[i], color=PALETTE[i], label=label)
    thin_ticks(ax, "x", [str(layer) for layer, _ in layers])
    _from_zero(ax)
    return legend_above(ax, len(methods))


def _from_zero(ax: Axes) -> None:
    """Let the y axis start at 0; where values differ much, with room for the small ones."""
    drawn = np.concatenate([as_array(line.get_ydata()) for line in ax.lines])
    known = drawn[drawn > 0]
    if len(known) and known.max() > _LOG_RATIO * known.min():
        least = 10 ** np.floor(np.log10(known.min()))
        ax.set_yscale("symlog", linthresh=least, linscale=0.5)
    ax.set_ylim(0, None)


def plot_by_text(
    section: Section, names: Mapping[str, str], title: str, ylabel: str, ax: Axes | None = None
) -> Axes:
    """Quantities of each text by layer (``names``: label by key), thin, and their mean over the
    texts that have one in some layer; none where one of these lacks it.

    ``section``: by layer, by text, by key.
    """
    ax = begin(ax, title, "layer", ylabel)
    if reason := failure(section):
        return write_reason(ax, reason)
    layers = layers_of(section)
    numbers = [layer for layer, _ in layers]
    for i, (name, label) in enumerate(names.items()):
        values = as_array([[text[name] for text in part.values()] for _, part in layers])
        for line in values.T if values.shape[1] > 1 else ():
            ax.plot(numbers, line, color=PALETTE[i], linewidth=0.5, alpha=0.5)
        own = values[:, np.isfinite(values).any(axis=0)]
        mean = np.where(
            np.isfinite(own).all(axis=1), own.sum(axis=1) / max(own.shape[1], 1), np.nan
        )
        ax.plot(numbers, mean, color=PALETTE[i], marker=MARKERS[i], label=label)
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "undefined in these texts")
    if len(names) > 1:
        legend_above(ax, len(names))
    return layer_ticks(ax, numbers)


def plot_tests_by_layer(
    section: Section,
    path: Sequence[str],
    title: str,
    ylabel: str,
    ax: Axes | None = None,
    *,
    twins: Sequence[Sequence[float]] = (),
) -> Axes:
    """A tested value by layer on the band of its null: filled outside it (of a magnitude, above),
    hollow inside, half filled without one.

    ``twins``: smallest and largest value of untrained models, mean over layers, as dashed lines.
    """
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
    if len(layers) == 1:  # which has no band
        ax.vlines(layers, low, high, color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=3)
    ax.plot(layers, value, color=PALETTE[0], linewidth=0.6)
    draw_beside_null(
        ax, layers, [test for _, test in shown], PALETTE[0], "o", one_sided=path[-1] in MAGNITUDES
    )
    for i, end in enumerate(sorted({end for ends in twins for end in ends})):
        label = None if i else "untrained models, mean over layers"
        ax.axhline(end, color=PALETTE[3], linestyle="--", linewidth=0.8, label=label)
    if twins:
        legend_above(ax, 2)
    return layer_ticks(ax, layers)


def plot_autocorrelation(section: Section, stream: str, ax: Axes | None = None) -> Axes:
    """Autocorrelation of a stream by layer and lag, mean over channels, beside its null."""
    if failure(section) is None:
        section = {f"layer_{layer}": part[stream] for layer, part in layers_of(section)}
    return autocorrelation_of_layers(section, ax, stream=stream)


def plot_survival(section: Section, ax: Axes | None = None) -> Axes:
    """Share of what a token wrote that is left some tokens later, a line a layer."""
    ax = begin(ax, "Survival in the state", "lag (tokens)", "share left")
    return _lines(section, lambda part: (part["memory"]["lags"], part["memory"]["survival"]), ax)


def plot_kernel(section: Section, ax: Axes | None = None) -> Axes:
    """Memory kernel by lag, mean over texts, a line a layer; both axes logarithmic."""
    ax = begin(ax, "Memory kernel", "lag (tokens)", "share of attention")
    ax = _lines(
        section,
        lambda part: (range(len(part["kernel"])), [share or None for share in part["kernel"]]),
        ax,
    )
    return lag_axis(log_axis(ax, "y")) if not ax.texts else ax


def plot_pairs(section: Section, stream: str, statistic: str, ax: Axes | None = None) -> Axes:
    """A statistic of the pairs of layers that were compared, each beside its null.

    Grey bar: the null's 95 % interval; a point above it is filled, one that is not hollow, one
    without a null half filled.
    """
    label = PAIR_STATISTICS[statistic]
    ax = begin(ax, f"{label}, {_STREAMS[stream]}", "layers", label)
    if reason := failure(section):
        return write_reason(ax, reason)
    tests = [pair[statistic] for pair in section[stream].values()]
    value, low, high = (
        as_array([test[name] for test in tests]) for name in ("value", "null_low", "null_high")
    )
    if not np.isfinite(value).any():
        return write_reason(ax, next(iter(section[stream].values()))["reason"])
    x = np.arange(len(tests))
    ax.use_sticky_edges = False  # a null is seen to end
    ax.bar(x, high - low, 0.5, low, color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=0)
    ax.plot(x, value, color=PALETTE[0], linewidth=0.6, alpha=0.6)
    draw_beside_null(ax, x, tests, PALETTE[0], "o", one_sided=statistic in MAGNITUDES)
    return thin_ticks(ax, "x", pair_labels(section[stream]))


def plot_rank_correlations(section: Section, ax: Axes | None = None) -> Axes:
    """Rank correlation over channels of each method's importance with delta and memory.

    A cross marks what lies within the null of permutations, "?" what has none.
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
    mark_standings(ax, values, low, high)
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
    ax.plot(range(len(together)), together, color="black", linewidth=1.6, label="all together")
    _draw_intervals(ax, section[kind]["together"].get("bins", ()))
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "no effect at any lag")
    lag_axis(log_axis(ax, "y"))
    ax = name_layers(ax, list(colours))
    if ax.get_legend() is None:  # layers have a colour bar, and the black line no name yet
        legend_above(ax, 1)
    return ax


def _draw_intervals(ax: Axes, bins: Sequence[Section]) -> None:
    """The band of the intervals over texts, from bin to bin of lags, where they are above 0."""
    known = [one for one in bins if one["kl_low"] is not None and one["kl_low"] > 0]
    lags = [(one["first_lag"] + one["last_lag"]) / 2 for one in known]
    low, high = (as_array([one[end] for one in known]) for end in ("kl_low", "kl_high"))
    if known:
        ax.fill_between(lags, low, high, color=QUANTITY_STYLES[0][0], alpha=0.18, linewidth=0)


def plot_causal_bins(section: Section, kind: str, ax: Axes | None = None) -> Axes:
    """KL by bin of lags of all layers together, with intervals, beside random other positions."""
    title = f"{CAUSAL_KINDS[kind]}, all layers together"
    ax = begin(ax, title, "lag (tokens)", "KL (nats)")
    if reason := _without(section, kind):
        return write_reason(ax, reason)
    bins = section[kind]["together"]["bins"]
    kl, high = (as_array([entry[name] or None for entry in bins]) for name in ("kl", "kl_high"))
    low = as_array([entry["kl_low"] for entry in bins])  # at 0 it leaves the axes below
    if not np.isfinite(kl).any():
        return write_reason(ax, "no effect at any lag")
    x = np.arange(len(bins))
    ax.vlines(x, low, high, color="black", linewidth=1.2)
    count = len(section[kind]["together"]["positions"])
    label = "1 position, no mean" if count == 1 else f"{count} positions"
    ax.plot(x, kl, "o", color="black", label=label)
    random = section[kind].get("random_positions", {})
    if "bins" in random:
        others = as_array([entry["baseline_kl"] or None for entry in random["bins"]])
        label = f"{random['num_positions']} random others"
        ax.plot(x + 0.2, others, "o", color=NULL_COLOUR, markerfacecolor="white", label=label)
    log_axis(ax, "y")
    labels = [_range(entry["first_lag"], entry["last_lag"]) for entry in bins]
    ax.set_xticks(x, labels)
    return legend_above(ax, 2)


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
        if not found:
            continue
        values = as_array([part["spearman"] for _, part in found])
        layers = np.array([layer for layer, _ in found]) + (i - 0.5) * 0.2
        low, high = (as_array([part.get(end) for _, part in found]) for end in ("low", "high"))
        ax.vlines(layers, low, high, color=PALETTE[i], alpha=0.6)
        ax.plot(layers, values, MARKERS[i], color=PALETTE[i], label=label)
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "undefined: too few lags, or no effect")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.15, 1.15)
    kinds = [layers_of(section.get(kind, {}).get("kernel_agreement", {})) for kind in CAUSAL_KINDS]
    layer_ticks(ax, sorted({layer for found in kinds for layer, _ in found}))
    return legend_above(ax, len(CAUSAL_KINDS))


MAX_PAIRS = 10
"""Pairs of layers that a panel has room for: those of the largest effect."""


def plot_layer_pairs(pairs: Sequence[Section], kind: str, ax: Axes | None = None) -> Axes:
    """KL with an intervention in two layers at once, a row a pair, beside the sum of both alone."""
    ax = begin(ax, f"{CAUSAL_KINDS[kind]}, two layers at once", "KL (nats)", "layers")
    rows = sorted((p for p in pairs if p["kind"] == kind), key=lambda p: p["kl_together"])
    rows = [pair for pair in rows if pair["kl_together"] > 0][-MAX_PAIRS:]
    if not rows:
        return write_reason(ax, "no pair has an effect")
    y = range(len(rows))
    alone = [pair["kl_a"] + pair["kl_b"] for pair in rows]
    together = [pair["kl_together"] for pair in rows]
    ax.hlines(y, alone, together, color="0.6", linewidth=0.8)
    ax.plot(alone, y, "s", color=NULL_COLOUR, label="sum of both alone")
    ax.plot(together, y, "o", color="black", label="both at once")
    log_axis(ax, "x")
    ax.set_yticks(y, [f"{pair['layer_a']}, {pair['layer_b']}" for pair in rows])
    return legend_above(ax, 2)


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
