"""Figures of activation patching: effects by layer and token, and circuits by their size.

Reads what ``activation_patching`` writes; computes no statistic.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import PALETTE, draw_heatmap, drawable_text
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import as_array, begin, legend_above, thin_ticks
from suite_plumbing.result_reading import Section
from suite_plumbing.texts import clean_token

_MAPS_IN_A_ROW = 2

_HEIGHT_OF_A_LAYER = 0.1


@styled
def figure_patching(results: Section) -> Figure:
    """A map of layers and tokens for each site, and the circuit's curves where there are some."""
    found = results.get("patching", results)
    names, circuit = list(found["sites"]), results.get("circuit")
    layers = max(len(part["layers"]) for part in found["sites"].values())
    rows = [names[i : i + _MAPS_IN_A_ROW] for i in range(0, len(names), _MAPS_IN_A_ROW)]
    height = 0.9 + _HEIGHT_OF_A_LAYER * min(layers, 24)
    heights = [(len(row), height) for row in rows] + ([(1, 1.2)] if circuit else [])
    figure, axes = page(
        results,
        patching_title(found),
        f"{found['direction'].capitalize()}: one value of one layer and token of the other run, "
        f"n = {found['num_pairs']} pairs. Colour: effect, the change of the "
        f"{found['metric'].replace('_', ' ')} as a share of what lies between the corrupt run (0) "
        "and the clean one (1). Black dot: the 95 % interval over pairs lies above the effect of "
        "an unrelated pair's value there.",
        heights,
        {},
    )
    for row, panels in zip(rows, axes, strict=False):
        for site, ax in zip(row, panels, strict=True):
            plot_patching(found, site, ax)
    if circuit:
        plot_circuit(circuit, axes[-1][0])
    return figure


def patching_title(found: Section) -> str:
    """The place that a patch moves the prediction most from, and by how much.

    Of sites other than the residual stream, whose last layer holds the answer in any model. Where a
    control was measured, of the places that the interval sets apart from it; without, that is said.
    """
    sites = [site for site in found["sites"] if site != "residual"] or list(found["sites"])
    places = [
        (value, site, row, token)
        for site in sites
        for row, values in enumerate(found["sites"][site]["effect"])
        for token, value in enumerate(values)
        if value is not None
    ]
    if not places:
        return "Activation patching"
    controlled = any(found["sites"][site].get("control") for site in sites)
    apart = [place for place in places
             if place[2:] in _above_control(found["sites"][place[1]])]  # fmt: skip
    value, site, row, token = max(apart or places, key=lambda place: place[0])
    layer = found["sites"][site]["layers"][row]
    name = f"“{_name(found['tokens'][token])}” ({token})" if found["tokens"] else f"token {token}"
    where = f"{site} of layer {layer} at {name}"
    if controlled and not apart:
        most = f"the most, {value:.0%}, from the {where}"
        return f"No patch is set apart from an unrelated pair's values: {most}"
    bare = "" if controlled else "; no control"
    return f"What the {where} holds makes {value:.0%} of the difference between the runs{bare}"


def _name(token: object) -> str:
    return drawable_text(clean_token(str(token))).strip() or "␣"


def plot_patching(found: Section, site: str, ax: Axes | None = None) -> Axes:
    """Effect of a site by layer and token; 0 the corrupt run, 1 the clean one."""
    part = found["sites"][site]
    ax = begin(ax, site, "token", "layer")
    values = as_array(part["effect"])
    draw_heatmap(ax, values, diverging=True, limit=1.0, title=site, cbar_label="effect",
                 xlabels=found["tokens"])  # fmt: skip
    thin_ticks(ax, "y", [str(layer) for layer in part["layers"]])
    for layer, token in _above_control(part):
        ax.plot([token], [layer], ".", color="black", markersize=2)
    return ax


def plot_circuit(circuit: Section, ax: Axes | None = None) -> Axes:
    """Faithfulness of circuits by the number of edges, beside random edges."""
    ax = begin(ax, "Circuits of the strongest edges", "edges kept", "effect")
    rows = circuit["curve"]
    x = [row["edges"] for row in rows]
    shown = {
        "faithfulness": ("these edges alone", PALETTE[0], "-"),
        "without": ("all but these", PALETTE[1], "-"),
        "random_faithfulness": ("as many at random alone", PALETTE[0], ":"),
        "random_without": ("all but as many at random", PALETTE[1], ":"),
    }
    for name, (label, colour, style) in shown.items():
        ax.plot(x, as_array([row[name] for row in rows]), style, color=colour, label=label)
    ax.axhline(1, color="0.7", linewidth=0.5, zorder=0)
    ax.axhline(0, color="0.7", linewidth=0.5, zorder=0)
    return legend_above(ax, 2)


def _above_control(part: Section) -> list[tuple[int, int]]:
    """Rows and columns of the places that the interval sets apart from the control."""
    if part.get("control") is None:
        return []
    low, control = as_array(part["low"]), as_array(part["control"])
    rows, columns = (low > control).nonzero()
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


PATCHING_FIGURES: dict[str, Any] = {"activation_patching": figure_patching}
"""By file name: functions of the results."""
