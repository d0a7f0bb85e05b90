"""Figure of one set of neurons: how importance is spread, and when the first ones are active."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from result_views.figures.drawing import PALETTE, draw_heatmap
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import begin, log_axis, write_reason

TOP = 20
"""Neurons whose activations are drawn."""


@styled
def figure_neuron_set(
    title: str, ranking: NDArray[np.int64], importance: NDArray, activations: NDArray
) -> Figure:
    """Importance by rank, and the values of the first TOP neurons at the tokens of one text.

    ``ranking`` and ``importance`` (d_inner,): neurons by importance, and the importance by neuron;
    ``activations`` (l, d_inner): the method's value of each neuron at each token.
    """
    figure, axes = page(
        {}, title,
        "Importance in the unit of the method; dashed: all neurons alike. Values of the most "
        "important neurons, the most important on top, at each token of the first text; the "
        "colours end at the 99th percentile of their magnitudes.",
        [(2, 1.8)], {},
    )  # fmt: skip
    plot_importance(importance[ranking], axes[0][0])
    plot_activations(ranking[:TOP], activations[:, ranking[:TOP]], axes[0][1])
    return figure


def plot_importance(ranked: NDArray, ax: Axes | None = None) -> Axes:
    """Importance (d_inner,) of the neurons from first to last, both axes logarithmic."""
    ax = begin(ax, "Importance by rank", "rank", "importance")
    if not (ranked > 0).any():
        return write_reason(ax, "the importance of every neuron is zero")
    # A zero has no place on a logarithmic axis.
    ax.plot(np.arange(1, len(ranked) + 1), np.where(ranked > 0, ranked, np.nan), color=PALETTE[0])
    ax.axhline(ranked.mean(), color="0.4", linestyle="--", linewidth=0.8)
    return log_axis(log_axis(ax, "x"), "y")


def plot_activations(neurons: NDArray[np.int64], values: NDArray, ax: Axes | None = None) -> Axes:
    """Values (l, k) of k neurons at the tokens of a text, a row a neuron."""
    ax = begin(ax, f"Values of the first {len(neurons)}", "token", "neuron")
    limit = float(np.quantile(np.abs(values), 0.99)) or None
    draw_heatmap(ax, values.T, diverging=True, limit=limit, title=ax.get_title())
    ax.set_yticks(range(len(neurons)), [str(neuron) for neuron in neurons], fontsize=5)
    return ax
