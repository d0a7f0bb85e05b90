"""Figure of direct attribution: what layers, paths and source tokens gave; what the lens reads.

Reads what ``direct_attribution`` writes; computes no statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import NULL_COLOUR, PALETTE, drawable_text
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    layer_ticks,
    legend_above,
    write_reason,
)
from suite_plumbing.result_reading import Section
from suite_plumbing.texts import clean_token

PATHS = ("embedding", "skip", "convolution", "state", "attention", "mlp", "bias")
"""In the order of their colours."""

MAX_SOURCES = 24
"""Source tokens drawn: those that gave most, either way."""


@styled
def figure_direct_attribution(results: Section) -> Figure:
    """The first text's logit by layer and path and by source token; the lens of all its layers."""
    text = next(iter(results["individual_texts"].values()))
    section = text["direct_attribution"]
    figure, axes = page(
        results,
        _title(section),
        "Direct: what was written to the residual stream itself, led through the final norm at its "
        "value; the parts sum to the logit. Total: what the logit loses without all that a layer "
        f"wrote at this token. The {MAX_SOURCES} source tokens that gave most, either way. Lens: "
        "final norm and unembedding of the stream after each layer and of each mixer's write, mean "
        "over the text; grey: the final distribution of another position, and an untrained twin.",
        [(1, 1.5), (1, 1.5), (1, 1.4)],
        {},
    )
    plot_by_layer(section, axes[0][0])
    plot_by_source(section, axes[1][0])
    plot_lens(text["logit_lens"], axes[2][0])
    return figure


@styled
def figure_logit_parts(section: Section) -> Figure:
    """One logit by layer and path, and by source token."""
    figure, axes = page(
        {},
        _title(section),
        "Direct: what was written to the residual stream itself, led through the final norm at its "
        "value; the parts sum to the logit. Total, where measured: what the logit loses without "
        f"all that a layer wrote at this token. The {MAX_SOURCES} source tokens that gave most.",
        [(1, 1.5), (1, 1.5)],
        {},
    )
    plot_by_layer(section, axes[0][0])
    plot_by_source(section, axes[1][0])
    return figure


DIRECT_ATTRIBUTION_FIGURES = {"direct_attribution": figure_direct_attribution}


def _title(section: Section) -> str:
    parts = [p for p in section["parts"] if isinstance(p["layer"], int)]
    by_layer: dict[int, float] = {}
    for part in parts:
        by_layer[part["layer"]] = by_layer.get(part["layer"], 0.0) + part["value"]
    most = max(by_layer, key=lambda layer: by_layer[layer])
    name = drawable_text(clean_token(str(section["token"])))
    return (
        f"Layer {most} gave most to the logit of “{name}”: "
        f"{by_layer[most]:.2f} of {section['logit']:.2f}"
    )


def plot_by_layer(section: Section, ax: Axes | None = None) -> Axes:
    """Bars by layer, stacked by path; a mark where the total effect is known."""
    ax = begin(ax, "By layer and path", "layer", "logit")
    places = list(dict.fromkeys(part["layer"] for part in section["parts"]))
    above, below = np.zeros(len(places)), np.zeros(len(places))
    for path in PATHS:
        values = np.zeros(len(places))
        for part in section["parts"]:
            if part["path"] == path:
                values[places.index(part["layer"])] += part["value"]
        if not values.any():
            continue
        base = np.where(values >= 0, above, below)
        colour = PALETTE[PATHS.index(path) % len(PALETTE)]
        ax.bar(range(len(places)), values, bottom=base, color=colour, label=path, width=0.7)
        above, below = above + values.clip(min=0), below + values.clip(max=0)
    if section["total_effects"]:
        # Live results have numbers for layers, those from JSON words.
        layers = {str(layer): value for layer, value in section["total_effects"].items()}
        known = [(i, layers[str(p)]) for i, p in enumerate(places) if str(p) in layers]
        ax.plot(*zip(*known, strict=True), "D", color="black", markersize=3, label="total")
    ax.axhline(0, color="0.4", linewidth=0.6)
    ax.set_xticks(range(len(places)), [str(place) for place in places])
    return legend_above(ax, 7)


def plot_by_source(section: Section, ax: Axes | None = None) -> Axes:
    """Bars by source token, in the order of the text."""
    ax = begin(ax, "By source token, all layers together", "", "logit")
    rows = [row for row in section["by_source"] if isinstance(row["source"], int)]
    chosen = sorted(rows, key=lambda row: -abs(row["value"]))[:MAX_SOURCES]
    chosen.sort(key=lambda row: row["source"])
    if not chosen:
        return write_reason(ax, "no source token gave anything")
    ax.bar(range(len(chosen)), as_array([row["value"] for row in chosen]), color=PALETTE[0])
    labels = [_label(row) for row in chosen]
    ax.set_xticks(range(len(chosen)), labels, rotation=60, ha="right", fontsize=6)
    ax.axhline(0, color="0.4", linewidth=0.6)
    return ax


def _label(row: Mapping[str, Any]) -> str:
    return f"{drawable_text(clean_token(str(row['token'])))} {row['source']}"


def plot_lens(lens: Section, ax: Axes | None = None) -> Axes:
    """KL of the final distribution to the lens by layer, beside its two nulls."""
    ax = begin(ax, "Logit lens", "after layer", "KL to the final distribution (nats)")
    for stream, colour in zip(("residual", "mixer"), PALETTE, strict=False):
        rows = [row for row in lens["layers"] if row["stream"] == stream]
        x = [-1 if row["layer"] == "embedding" else row["layer"] for row in rows]
        ax.plot(x, as_array([row["kl"] for row in rows]), color=colour, label=stream)
        if stream == "residual":
            for name, style in (("kl_permuted", "--"), ("kl_twin", ":")):
                label = {"kl_permuted": "another position", "kl_twin": "untrained twin"}[name]
                values = as_array([row[name] for row in rows])
                ax.plot(x, values, style, color=NULL_COLOUR, label=label)
            _lens_ticks(ax, x)
    return legend_above(ax, 4)


def _lens_ticks(ax: Axes, layers: Sequence[int]) -> None:
    """Ticks at layers, and at what the embedding gives before the first."""
    layer_ticks(ax, [layer for layer in layers if layer >= 0])
    if -1 in layers:
        ticks = [int(tick) for tick in ax.get_xticks()]
        ax.set_xticks([-1, *ticks], ["embedding", *map(str, ticks)])
