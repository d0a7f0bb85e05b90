"""Figure of a corpus: its layers' steps, reach and copying, and what position does.

Reads what ``corpus_analysis`` writes; computes no statistic.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import NULL_COLOUR, PALETTE, draw_heatmap
from result_views.figures.null_looks import POINTS_SAY, draw_beside_null
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    layer_colours,
    layer_ticks,
    legend_above,
    log_axis,
    name_layers,
    thin_ticks,
    write_reason,
)
from result_views.figures.titles import step_title
from suite_plumbing.result_reading import Section, layers_of


@styled
def figure_corpus(results: Section) -> Figure:
    """Half-lives and reach, copying beside chance, states by position, likeness of layers."""
    corpus = results["corpus"]
    figure, axes = page(
        results,
        corpus_title(results),
        f"{corpus['windows']:,} windows, {corpus['tokens']:,} tokens of "
        f"{_documents(corpus['documents'])}; one window in {corpus['maps_every']} gave maps, "
        f"states and pairs ({corpus['mapped']:,}). Half-life at the mean Δ, median over channels "
        "and states. "
        "Copying: share of |αu| on what followed an earlier occurrence of the token over that "
        f"around it; grey: 95 % of what queries moved in time give; {POINTS_SAY}. CKA of sampled "
        "channels of the residual stream, the course over position taken out; no null.",
        [(2, 1.3), (2, 1.3)],
        {},
    )
    plot_reach(results, axes[0][0])
    plot_copying(results, axes[0][1])
    plot_state_by_position(results, axes[1][0])
    plot_cka(results, axes[1][1])
    return figure


def corpus_title(results: Section) -> str:
    """Which layer keeps a token longest over the corpus, and which least."""
    rows = [{"layer": layer, "half-life": part["half_life_median"]}
            for layer, part in layers_of(results["layers"])]  # fmt: skip
    return step_title(
        rows, "half-life", "Over the corpus layer {} keeps a token longest: median half-life {}"
    )


def plot_reach(results: Section, ax: Axes | None = None) -> Axes:
    """Median half-life and the lag within which 90 % of attention lies, by layer."""
    ax = begin(ax, "How far back layers reach", "layer", "tokens")
    rows = [(layer, part) for layer, part in layers_of(results["layers"])]
    x = [layer for layer, _ in rows]
    ax.plot(
        x,
        as_array([p["half_life_median"] for _, p in rows]),
        "o-",
        color=PALETTE[0],
        label="half-life",
    )
    lags = [p["maps"]["kernel"]["lag_90"][0] if p["maps"] else None for _, p in rows]
    ax.plot(x, as_array(lags), "s--", color=PALETTE[3], label="90 % of attention")
    return log_axis(legend_above(ax, 2), "y")


def plot_copying(results: Section, ax: Axes | None = None) -> Axes:
    """Copying gain by layer, beside its null."""
    ax = begin(ax, "Copying", "layer", "times the lags around")
    rows = [(k, p["maps"]["copying"]) for k, p in layers_of(results["layers"]) if p["maps"]]
    rows = [(k, test) for k, test in rows if test["value"] is not None]
    if not rows:
        return write_reason(ax, "no token was read before in its window")
    x = [layer for layer, _ in rows]
    low, high, value = (
        as_array([t[k] for _, t in rows]) for k in ("null_low", "null_high", "value")
    )
    ax.fill_between(x, low, high, color=NULL_COLOUR, alpha=0.5, linewidth=0)
    ax.plot(x, value, "-", color=PALETTE[0], linewidth=0.6)
    draw_beside_null(ax, x, [test for _, test in rows], PALETTE[0], "o", size=3)
    return layer_ticks(ax, x)


def plot_state_by_position(results: Section, ax: Axes | None = None) -> Axes:
    """Norm of the state by position, a line a layer."""
    ax = begin(ax, "Norm of the state", "position + 1", "L2 norm over the heads measured")
    by_position = results["by_position"]
    found = layers_of(by_position["state_norm"])
    if not any(x is not None for _, curve in found for x in curve):
        return write_reason(ax, "no window gave states")
    colours = layer_colours([layer for layer, _ in found])
    x = as_array(by_position["first_position"]) + 1
    for layer, curve in found:
        ax.plot(x, as_array(curve), color=colours[layer], linewidth=0.8)
    log_axis(log_axis(ax, "x"), "y")
    return name_layers(ax, list(colours))


def plot_cka(results: Section, ax: Axes | None = None) -> Axes:
    """CKA of every pair of layers."""
    ax = begin(ax, "Likeness of layers (CKA)", "layer", "layer")
    if results["cka"] is None:
        return write_reason(ax, "fewer than two layers, or no window long enough")
    names = [str(layer) for layer, _ in layers_of(results["layers"])]
    draw_heatmap(
        ax, as_array(results["cka"]), diverging=False, limit=1.0, title="Likeness of layers (CKA)"
    )
    return thin_ticks(thin_ticks(ax, "x", names), "y", names)


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"


CORPUS_FIGURES = {"corpus": figure_corpus}
"""By file name: functions of the results."""
