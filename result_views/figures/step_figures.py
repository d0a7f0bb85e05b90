"""The pictures of steps: the numbers of a table over layers, and correlations of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from result_views.figures.analysis_panels import PAIR_STATISTICS
from result_views.figures.drawing import PALETTE
from result_views.figures.memory_panels import plot_pairs
from result_views.figures.null_looks import MAGNITUDES_SAY
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import begin, layer_ticks, log_axis, write_reason
from result_views.figures.titles import cross_layer_title
from suite_plumbing.result_reading import Section

_LOG_RATIO = 30.0  # positive values that differ by more stand on a logarithmic axis


@styled
def figure_by_layer(title: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> Figure:
    """Rows of `result_views.step_lines`: each column of numbers as points over layers."""
    names = [name for name in rows[0] if name != "layer" and not isinstance(rows[0][name], str)]
    count = -(-len(names) // 2)
    said = f"A point a layer, mean over texts. {caption}"
    figure, axes = page({}, title, said, [(2, 1.2)] * count, {})
    places = [ax for row in axes for ax in row]
    layers = [row["layer"] for row in rows]
    for name, ax in zip(names, places, strict=False):
        begin(ax, "", "layer", name)
        values = np.array([np.nan if row[name] is None else row[name] for row in rows], float)
        if np.isnan(values).all():
            write_reason(ax, "undefined on these texts")
            continue
        ax.plot(layers, values, "o", color=PALETTE[0])
        layer_ticks(ax, layers)
        known = values[~np.isnan(values)]
        if known.min() > 0 and known.max() > _LOG_RATIO * known.min():
            log_axis(ax, "y")
    for ax in places[len(names) :]:
        ax.set_axis_off()
    return figure


@styled
def figure_layer_correlations(results: Section) -> Figure:
    """Correlations of pairs of layers, a row a stream, each pair beside its null."""
    section = tested_pairs(results)
    streams = [stream for stream in ("mixer", "residual") if section.get(stream)]
    mixers = {"mixer": section[streams[0]]} if streams else {"skipped": "fewer than two layers"}
    title = cross_layer_title(mixers)
    figure, axes = page(
        results,
        title.replace("Mixers", "Residual streams") if streams == ["residual"] else title,
        "Pearson r of every pair of channels: mean and largest |r|, and debiased CKA, over the "
        "tokens of all texts. Grey: 95 % interval of the null of circular time shifts; "
        f"{MAGNITUDES_SAY}. The residual stream of a later layer contains that of an earlier one: "
        "compare the mixers' outputs.",
        [(3, 1.15)] * max(len(streams), 1),
        {},
    )
    for row, stream in zip(axes, streams or ("mixer",), strict=True):
        for ax, statistic in zip(row, PAIR_STATISTICS, strict=True):
            plot_pairs(section if streams else mixers, stream, statistic, ax)
    return figure


def tested_pairs(results: Section) -> dict[str, Section]:
    """The pairs of layers by stream and name, each statistic as a test with its null."""
    return {
        stream: {name: {**pair, **pair.get("tests", {})} for name, pair in pairs.items()}
        for stream, pairs in results["layer_correlations"].items()
    }


LAYER_CORRELATION_FIGURES = {"layer_correlations": figure_layer_correlations}
"""By file name: functions of the results of ``layer_correlation_analyzer``."""
