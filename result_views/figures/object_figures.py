"""Figures of single result objects: a layer's components along a text, a layer's attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from result_views.figures.drawing import PALETTE, draw_heatmap, token_ticks
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import begin, log_axis

MAX_LABELS = 64
"""Tokens that are named along an axis; of a longer text their numbers stand there."""


@styled
def figure_by_token(
    title: str, series: Mapping[str, NDArray], tokens: Sequence[str] | None
) -> Figure:
    """Series (l,) of one text, a panel each, over its tokens; the keys are their labels."""
    figure, axes = page(
        {}, title, "Values at each token of the first text.", [(1, 1.1)] * len(series), {}
    )
    for (label, values), (ax,) in zip(series.items(), axes, strict=True):
        begin(ax, label, "token", label)
        ax.plot(np.arange(len(values)), values, color=PALETTE[0], marker=".")
    _name(axes[-1][0], tokens)
    return figure


@styled
def figure_attention(
    title: str, attention: NDArray, kernel: NDArray, tokens: Sequence[str] | None
) -> Figure:
    """Mean |alpha| of one text, query by source, and its mean by lag."""
    figure, axes = page(
        {}, title,
        "Mean of |α| over heads: from each query (down) to its sources (across), the colours end "
        "at the 99th percentile; and its mean by lag, divided by its sum.",
        [(2, 2.4)], {},
    )  # fmt: skip
    left, right = axes[0]
    begin(left, "Attention", "source", "query")
    shown = attention[np.tri(len(attention), dtype=bool)]
    draw_heatmap(
        left, attention, diverging=False, limit=float(np.quantile(shown, 0.99)) or None,
        title="Attention",
    )  # fmt: skip
    _name(left, tokens)
    begin(right, "Memory kernel", "lag, tokens", "share")
    right.plot(np.arange(len(kernel)), np.where(kernel > 0, kernel, np.nan), color=PALETTE[0])
    log_axis(right, "y")
    return figure


def _name(ax: Axes, tokens: Sequence[str] | None) -> None:
    if tokens is not None and len(tokens) <= MAX_LABELS:
        token_ticks(ax, tokens)
