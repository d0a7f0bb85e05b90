"""The figure of a comparison of models, drawn from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import MARKERS, PALETTE, draw_heatmap
from result_views.figures.null_looks import mark_standings
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    lag_axis,
    layer_colours,
    legend_above,
    log_axis,
    name_layers,
    thin_ticks,
    write_reason,
)
from result_views.figures.titles import comparison_title
from suite_plumbing.result_reading import Section

MEASURES = {
    "entropy_share": ("Entropy", "share of ln(t + 1)"),
    "first_share": ("Attention on the first token", "share"),
    "mean_distance": ("Mean distance", "{unit}"),
}
"""Title and unit of what is drawn by depth, by the name it has in the results."""

_LINESTYLES = {"implicit": "-", "softmax": "--"}


@styled
def figure_comparison(results: Section) -> Figure:
    """Kernels of every model, measures by depth, and agreement and CKA of every two models."""
    unit, pairs = results["unit"], results["pairs"]
    names = list(results["models"])
    figure, axes = page(
        results,
        comparison_title(results),
        "Implicit attention of SSMs (|α|, mean over channels; solid lines) and softmax attention "
        "(mean over heads; dashed), every row divided by its sum; means over texts, bars of one "
        "standard deviation over them. Black: attention spread evenly over the past. Agreement: "
        "Spearman over the lags of a window, mean over queries; CKA: debiased, of the residual "
        "stream. Crosses: not above the null of time shifts, 95 % interval of a single pair; ?: no "
        "null."
        + ("" if unit == "tokens" else " Tokens are here the pieces that all tokenizers share."),
        [(len(names), 1.2), (len(MEASURES), 1.2), *[(2, 1.6)] * len(pairs)],
        {},
    )
    for name, ax in zip(names, axes[0], strict=True):
        plot_kernels(results, name, ax)
    for measure, ax in zip(MEASURES, axes[1], strict=True):
        plot_by_depth(results, measure, ax, legend=measure == next(iter(MEASURES)))
    for pair, row in zip(pairs, axes[2:], strict=True):
        plot_agreement(pair, row[0])
        plot_cka(pair, row[1])
    return figure


def plot_kernels(results: Section, name: str, ax: Axes | None = None) -> Axes:
    """Memory kernel of each attention of one model by lag, and of even attention in black."""
    ax = begin(ax, name, f"lag ({results['unit']})", "share of attention")
    sites = results["attention"][name]
    layers = results["models"][name]["layers"]
    colours = layer_colours(layers)
    for site, found in sites.items():
        layer, kind = _layer_and_kind(site)
        kernel = as_array([value or None for value in found["kernel"]])
        ax.plot(range(len(kernel)), kernel, color=colours[layer], linestyle=_LINESTYLES[kind])
    if not any(np.isfinite(as_array(line.get_ydata())).any() for line in ax.lines):
        return write_reason(ax, "no layer attends to anything in these texts")
    even = results["uniform"]["kernel"]
    ax.plot(range(len(even)), even, color="black", linewidth=0.8)
    return name_layers(lag_axis(log_axis(ax, "y")), layers)


def plot_by_depth(
    results: Section, measure: str, ax: Axes | None = None, *, legend: bool = True
) -> Axes:
    """A measure of every model's attention by depth, layer / (layers - 1), a colour a model."""
    title, unit = MEASURES[measure]
    ax = begin(ax, title, "depth (share of layers)", unit.format(unit=results["unit"]))
    for i, (name, sites) in enumerate(results["attention"].items()):
        last = max(1, results["models"][name]["num_layers"] - 1)
        for kind, style in _LINESTYLES.items():
            shown = [
                (_layer_and_kind(site)[0] / last, found[measure])
                for site, found in sites.items()
                if _layer_and_kind(site)[1] == kind
            ]
            if shown:
                depth, values = zip(*shown, strict=True)
                spread = [one["text_std"] or 0.0 for one in values]
                ax.errorbar(
                    depth, as_array([one["value"] for one in values]), spread,
                    color=PALETTE[i % len(PALETTE)], marker=MARKERS[i % len(MARKERS)],
                    linestyle=style, linewidth=0.8, elinewidth=0.6, label=f"{name}, {kind}",
                )  # fmt: skip
    even = results["uniform"][measure]
    if even is not None:
        ax.axhline(even, color="black", linewidth=0.8)
    if legend:
        legend_above(ax, 1)
    return ax


def plot_agreement(pair: Section, ax: Axes | None = None) -> Axes:
    """Windowed agreement of every two maps of two models as a heat map."""
    labels = [
        [f"{layer}{kind[0]}" for layer, kind in map(_layer_and_kind, sites)]
        for sites in pair["agreement"]["sites"]
    ]
    return _plot_pairs(pair, pair["agreement"]["windowed"], "Agreement of attention", labels, ax)


def plot_cka(pair: Section, ax: Axes | None = None) -> Axes:
    """CKA of every two layers of two models as a heat map."""
    labels = [[str(layer) for layer in layers] for layers in pair["cka"]["layers"]]
    return _plot_pairs(pair, pair["cka"], "CKA of layers", labels, ax)


def _plot_pairs(
    pair: Section,
    tests: Mapping[str, Any],
    title: str,
    labels: Sequence[Sequence[str]],
    ax: Axes | None,
) -> Axes:
    first, second = pair["models"]
    ax = begin(ax, title, f"layer of {second}", f"layer of {first}")
    values = as_array(tests["value"])
    if not np.isfinite(values).any():
        return write_reason(ax, tests["reason"] or "a side is the same at every token")
    draw_heatmap(ax, values, diverging=True, limit=1.0, title=title)
    mark_standings(ax, values, None, as_array(tests["null_high"]))
    thin_ticks(ax, "x", labels[1])
    return thin_ticks(ax, "y", labels[0])


def _layer_and_kind(site: str) -> tuple[int, str]:
    """(3, "implicit") of "layer_3.implicit"."""
    layer, kind = site.removeprefix("layer_").split(".")
    return int(layer), kind


COMPARISON_FIGURES: dict[str, Callable[[Section], Figure]] = {
    "model_comparison": figure_comparison
}  # fmt: skip
"""By file name: functions of the results."""
