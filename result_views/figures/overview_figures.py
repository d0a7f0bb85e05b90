"""Figure of the overview: how long each layer keeps a token, copies, and is needed.

Reads ``overview`` of the main analysis's results; computes no statistic.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.answers import is_above_chance, overview_rows, shown_answers
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    NULL_COLOUR,
    as_array,
    begin,
    layer_ticks,
    legend_above,
    log_axis,
    write_reason,
)
from result_views.layer_names import capitalised
from suite_plumbing.result_reading import Section

_COLOUR = "#0072B2"


@styled
def figure_overview(results: Section) -> Figure:
    """All layers: half-life, copying, what erasing the state costs, and gates by kind of token."""
    said = [one for one in shown_answers(results) if one.said]
    figure, axes = page(
        results,
        capitalised(_beginning(said[0].sentence)) if said else "All layers at a glance",
        "Half-life: median over heads and states, as A and the mean Δ set it; squares: lag by "
        "which 90 % of |α| has passed, hollow where the half-life of a head's slowest state is "
        "above a quarter of the text. Copying: share of |α u| on the token after an earlier "
        "occurrence of the query's, over that of those around. Erased: change of the loss of the "
        "next tokens, the other layers' states kept. Gate: words' beginnings minus other tokens, "
        "standard deviations of ln Δ. Grey: what chance gives over all layers, 5 % of it beyond "
        "either end; filled: above chance over all questions too, and over texts from five on. "
        + " ".join(one.sentence for one in said),
        [(2, 1.15)] * 2,
        {},
    )
    rows = overview_rows(results)
    plot_half_life(rows, axes[0][0])
    plot_tested(rows, "copying", axes[0][1], "Copying", "times the lags around", 1.0)
    plot_tested(rows, "reset", axes[1][0], "State erased", "nats a token", 0.0)
    plot_tested(rows, "gate", axes[1][1], "Gate at words' beginnings", "SD of ln Δ", 0.0)
    panels = {"copying": axes[0][1], "reset": axes[1][0]}
    for one in said:
        if (ax := panels.get(one.path.rpartition(".")[2])) is not None:
            _entitle(ax, one.sentence)
    return figure


_TITLE_WIDTH = 40  # characters over half a page; a title has two lines at most


def _entitle(ax: Axes, sentence: str) -> None:
    """Give the panel that an answer is about its beginning as a title, where that is short."""
    lines = textwrap.wrap(_beginning(sentence), _TITLE_WIDTH)
    if len(lines) <= 2:
        ax.set_title("\n".join(lines))


def _beginning(sentence: str) -> str:
    """An answer up to its numbers in brackets or after a colon."""
    return sentence.partition(":")[0].partition(" (")[0]


def plot_half_life(rows: Sequence[Section], ax: Axes | None = None) -> Axes:
    """Median half-life and 90 % lag by layer, tokens, on a logarithmic axis."""
    ax = begin(ax, "How long a state keeps a token", "layer", "tokens")
    layers = [row["layer"] for row in rows]
    half = as_array([row["median_half_life"] for row in rows])
    ax.plot(layers, half, "o-", color=_COLOUR, label="half-life, median state")
    for row in rows:
        if row["lag_90"] is not None:
            face = "white" if row["limited_by_text"] else "0.3"
            ax.plot(row["layer"], row["lag_90"], "s", color="0.3", markerfacecolor=face)
    ax.plot([], [], "s", color="0.3", label="90 % of |α|")
    log_axis(ax, "y")
    return legend_above(layer_ticks(ax, layers), 2)


def plot_tested(
    rows: Sequence[Section],
    key: str,
    ax: Axes | None = None,
    title: str = "",
    ylabel: str = "",
    reference: float = 0.0,
) -> Axes:
    """A tested quantity by layer beside its null; filled where an answer may rest on it."""
    ax = begin(ax, title, "layer", ylabel)
    tests = [row["gate"]["space_leading"] if key == "gate" else row[key] for row in rows]
    known = [(row["layer"], one) for row, one in zip(rows, tests, strict=True)
             if one["value"] is not None]  # fmt: skip
    if not known:
        return write_reason(ax, tests[0]["reason"] if tests else "no overview in these results")
    layers = [layer for layer, _ in known]
    low, high, value = (
        as_array([one[name] for _, one in known]) for name in ("null_low", "null_high", "value")
    )
    ax.use_sticky_edges = False  # a null is seen to end
    ax.bar(layers, high - low, 0.7, low, color=NULL_COLOUR, alpha=0.5, linewidth=0)
    for (layer, test), y in zip(known, value, strict=True):
        face = _COLOUR if is_above_chance(test) else "white"
        ax.plot(layer, y, "o", color=_COLOUR, markerfacecolor=face)
    ax.axhline(reference, color="0.4", linewidth=0.6, linestyle=":")
    return layer_ticks(ax, layers)


OVERVIEW_FIGURES: dict[str, Callable[..., Figure]] = {"overview": figure_overview}
"""By file name: functions of the results."""
