"""The picture of a step: the numbers of its table, a panel each, over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from result_views.figures.drawing import PALETTE
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import begin, layer_ticks, log_axis, write_reason

_LOG_RATIO = 30.0  # positive values that differ by more stand on a logarithmic axis


@styled
def figure_by_layer(title: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Rows of `result_views.step_lines`: each column of numbers as points over layers."""
    names = [name for name in rows[0] if name != "layer" and not isinstance(rows[0][name], str)]
    count = -(-len(names) // 2)
    figure, axes = page({}, title, "Means over texts, a point a layer.", [(2, 1.2)] * count, {})
    places = [ax for row in axes for ax in row]
    layers = [row["layer"] for row in rows]
    for name, ax in zip(names, places, strict=False):
        begin(ax, name, "layer", name)
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
