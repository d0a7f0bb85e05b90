"""Figure of a long text read through: what memory beyond a window is worth, and the state.

Reads what ``long_memory`` writes; computes no statistic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import MARKERS, PALETTE
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    layer_colours,
    legend_above,
    log_axis,
    name_layers,
    write_reason,
)
from result_views.figures.titles import long_memory_title
from suite_plumbing.result_reading import Section, layers_of

WHOLE = "whole text"
"""The reading that the others are compared with."""

FIRST_CONTEXT = 128
"""Tokens of context from which on losses are drawn; those of less dwarf the differences."""


@styled
def figure_long_memory(results: Section) -> Figure:
    """Readings beside the whole text, loss by context and along the text, norm of the state."""
    figure, axes = page(
        results,
        long_memory_title(results["readings"]),
        f"{results['num_tokens'] - 1} tokens, each predicted once in every reading: from all of "
        "the text before it (whole text), or from a window that starts from an empty memory. "
        "Differences: loss minus that of the whole text, above 0 where memory beyond the window "
        f"helps; bars: 95 % interval by resampling blocks of {results['block']} tokens"
        f"{_without_intervals(results['readings'])}. By "
        "context: each point of the whole text holds tokens of its own, few of them at the left. "
        "Along the text: means of the same blocks.",
        [(2, 1.3)] * 2,
        {},
    )
    plot_differences(results, axes[0][0])
    plot_by_context(results, axes[0][1])
    plot_along(results, axes[1][0])
    plot_state_norm(results, axes[1][1])
    return figure


def _without_intervals(readings: Sequence[Section]) -> str:
    """Why differences stand without an interval, for the caption; "" where none does."""
    reasons = {row["reason"] for row in readings if row["difference"] is not None} - {None}
    return f" (none here: {'; '.join(sorted(reasons))})" if reasons else ""


def plot_differences(results: Section, ax: Axes | None = None) -> Axes:
    """Loss of each reading minus that of the whole text, with its interval."""
    ax = begin(ax, "Loss minus that of the whole text", "nats a token", "")
    rows = [row for row in results["readings"] if row["reading"] != WHOLE]
    if not any(row["difference"] is not None for row in rows):
        return write_reason(ax, rows[0]["reason"] if rows else "no windows shorter than the text")
    value, low, high = (
        as_array([row[name] for row in rows]) for name in ("difference", "low", "high")
    )
    for i, (x, left, right) in enumerate(zip(value, low, high, strict=True)):
        colour, marker = _style(results, rows[i]["reading"])
        ax.hlines(i, left, right, color=colour, linewidth=1.2)
        ax.plot([x], [i], marker, color=colour)
    ax.axvline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(rows)), [row["reading"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.locator_params(axis="x", nbins=5)
    return ax


def plot_by_context(results: Section, ax: Axes | None = None) -> Axes:
    """Mean loss by the number of tokens that a token is predicted from, from FIRST_CONTEXT on.

    Less context is what every reading has at the start of the text or of a window; it is drawn
    where the text is too short for more, and of windows that are no longer their last bin alone.
    """
    ax = begin(ax, "Loss by context", "tokens of context", "nats a token")
    long = any(row["first"] >= FIRST_CONTEXT for row in results["by_context"][WHOLE])
    for name, every in results["by_context"].items():
        rows = [row for row in every if row["first"] >= FIRST_CONTEXT] if long else every
        rows = rows or every[-1:]
        colour, marker = _style(results, name)
        x = [np.sqrt(row["first"] * row["last"]) for row in rows]
        y = as_array([row["loss"] for row in rows])
        ax.plot(x, y, color=colour, marker=marker, label=name)
    return log_axis(legend_above(ax, 2), "x")


def plot_along(results: Section, ax: Axes | None = None) -> Axes:
    """Mean loss of each block of tokens, a line a reading."""
    ax = begin(ax, "Loss along the text", "token", "nats a token")
    for name, losses in results["along"].items():
        x = (np.arange(len(losses)) + 0.5) * results["block"]
        ax.plot(x, as_array(losses), color=_style(results, name)[0], label=name)
    return ax


def plot_state_norm(results: Section, ax: Axes | None = None) -> Axes:
    """Norm of the state by chunk, a line a layer."""
    ax = begin(ax, "Norm of the state", "token", "L2 norm, mean over a chunk")
    layers = layers_of(results["layers"])
    if not layers:
        return write_reason(ax, "no layers were measured")
    colours = layer_colours([layer for layer, _ in layers])
    for layer, part in layers:
        x = (np.arange(len(part["state_norm"])) + 0.5) * results["chunk_size"]
        ax.plot(x, as_array(part["state_norm"]), color=colours[layer], linewidth=0.8)
    log_axis(ax, "y")
    return name_layers(ax, list(colours))


def _style(results: Section, name: str) -> tuple[str, str]:
    """Colour and marker of a reading, the same in every panel."""
    i = list(results["by_context"]).index(name)
    return ("black" if name == WHOLE else PALETTE[i - 1]), MARKERS[i % len(MARKERS)]


LONG_MEMORY_FIGURES = {"long_memory": figure_long_memory}
"""By file name: functions of the results."""
