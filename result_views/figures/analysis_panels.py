"""Panels of the figures: each draws one quantity of a result dict on an ``ax`` and returns it.

A panel is given one step's sections by text (``text_sections(results, "ssm_components")`` of
``panel_primitives``), or one section of the cross-text analysis, live or loaded from JSON. It
computes no statistic: what it shows stands in the results. Where these hold a null for a value it
is drawn in grey beside it. A colour with a marker is a text (on pages without texts, a method or a
quantity), dark dashes are quantities; layers, where they are colours, run from dark (first) to
light (last).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn
from matplotlib.axes import Axes

from result_views.beside_nulls import MAGNITUDES
from result_views.figures.drawing import draw_heatmap, drawable_text, token_ticks
from result_views.figures.null_looks import mark_standings
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    draw_lines_by_layer,
    draw_mean_std,
    draw_points,
    draw_summary,
    draw_tests,
    draw_text_line,
    end,
    lag_axis,
    layer_colours,
    legend_above,
    log_axis,
    name_layers,
    pair_labels,
    point_size,
    text_style,
    thin_ticks,
    write_reason,
)
from result_views.glossary import STATISTIC_NAMES
from suite_plumbing.result_reading import (
    Section,
    Sections,
    all_layers,
    failure,
    layers_of,
    usable,
    why_none,
)

PAIR_STATISTICS = {"mean_abs": "mean |r|", "max_abs": "largest |r|", "cka": "CKA (debiased)"}
"""Statistics of a pair of layers, and how they are written."""

_STREAMS = {"residual": "residual stream", "mixer": "mixers"}

PAIR_NAMES = {
    "delta_received": "Δ, attention\nreceived",
    "delta_paid": "Δ, attention\npaid",
    "delta_given": "Δ, attention\ngiven later",
    "B_norm_given": "|B|, attention\ngiven later",
    "delta_distance": "Δ, distance\nof attention",
    "B_norm_received": "|B|, attention\nreceived",
    "C_norm_paid": "|C|, attention\npaid",
}
"""How the pairs of quantities of the SSM-attention correlations are written."""


def plot_spectral_radius(sections: Sections, ax: Axes | None = None) -> Axes:
    """Largest factor by which a channel's state is kept from token to token, in (0, 1)."""
    return draw_summary(
        sections, "dynamics.spectral_radius", ax, "Spectral radius of exp(ΔA)",
        "factor per token",
    )  # fmt: skip


def plot_half_life(sections: Sections, ax: Axes | None = None) -> Axes:
    """Half-life of the states in tokens; a dotted line at the longest text, beyond which it is
    not observed."""
    ax = draw_summary(sections, "dynamics.half_life", ax, "Half-life of states", "tokens", log=True)
    lengths = [layers_of(section)[0][1]["num_tokens"] for section in usable(sections).values()]
    if lengths:
        line = ax.axhline(max(lengths), color="0.4", linestyle=":", label="longest text")
        legend_above(ax, 1, [line])
    return ax


def plot_delta(sections: Sections, ax: Axes | None = None) -> Axes:
    """Step size Δ after softplus."""
    return draw_summary(sections, "delta", ax, "Step size Δ", "Δ", log=True)


def plot_decay_rate(sections: Sections, ax: Axes | None = None) -> Axes:
    """Continuous-time decay rate |A|: the state decays as exp(-|A| Δ)."""
    return draw_summary(
        sections, "A", ax, "Decay rate −A", "per unit of Δ", log=True, sign=-1, once=True
    )


def plot_skip(sections: Sections, ax: Axes | None = None) -> Axes:
    """Skip connection D."""
    return draw_summary(sections, "D", ax, "Skip connection D", "D", once=True)


def plot_projections(sections: Sections, ax: Axes | None = None) -> Axes:
    """Entries of B and C: mean, and a band of one standard deviation either side."""
    names = {"B": "B (writes)", "C": "C (reads)"}
    return draw_mean_std(sections, names, ax, "Input and output projections", "entry")


def plot_state_energy(sections: Sections, ax: Axes | None = None) -> Axes:
    """Norm of what a token adds to the state and of what is kept of it, over tokens."""
    names = {
        "dynamics.write_energy": "written ‖ΔBu‖",
        "dynamics.retain_energy": "kept ‖exp(ΔA)h‖",
    }
    return draw_mean_std(sections, names, ax, "Written and kept per token", "L2 norm")


def plot_survival(sections: Sections, ax: Axes | None = None) -> Axes:
    """Share of what a token wrote into the state that is left some tokens later, by layer."""
    ax = begin(ax, "Survival of a token in the state", "lag (tokens)", "share left")
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, 1.02)
    ax.xaxis.set_major_formatter("{x:g}")
    return draw_lines_by_layer(
        sections,
        ax,
        lambda layer: (layer["delta_memory"]["lags"], layer["delta_memory"]["survival"]),
    )


def plot_entropy_strength(sections: Sections, ax: Axes | None = None) -> Axes:
    """Entropy of each query's attention against its strength, a point a query, by layer."""
    ax = begin(ax, "Entropy and strength of attention", "strength Σ|α| per query", "entropy (nats)")
    layers = all_layers(sections)
    colours = layer_colours(layers)
    for section in usable(sections).values():
        for layer, part in layers_of(section):
            rows = part["by_query"]
            strength, entropy = (as_array(rows[name][0]) for name in ("strength", "entropy"))
            visible = strength > 0
            ax.plot(
                strength[visible], entropy[visible], "o", markersize=point_size(len(strength)) / 2,
                color=colours[layer], alpha=0.5, markeredgewidth=0, rasterized=True,
            )  # fmt: skip
    if not ax.lines:
        return write_reason(ax, why_none(sections))
    log_axis(ax, "x")
    return name_layers(ax, layers)


def plot_memory_kernel(sections: Sections, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Share of the attention that reaches back by each lag, by layer; both axes logarithmic."""
    ax = begin(ax, "Memory kernel", "lag (tokens)", "share of attention")

    def kernel(layer: Section) -> tuple[Sequence[float], Sequence[float | None]]:
        # A lag beyond the text has share 0, which a logarithmic axis cannot show.
        shares = [share or None for share in layer["memory_kernel"]["kernel"][0]]
        return range(len(shares)), shares

    ax = draw_lines_by_layer(sections, ax, kernel, legend=legend)
    return lag_axis(log_axis(ax, "y")) if ax.lines else ax


def plot_reach(sections: Sections, ax: Axes | None = None) -> Axes:
    """Share of the queries whose attention reaches back so far on average or less, by layer.

    The queries of all texts together; those at the start of a text have little to reach back to.
    """
    ax = begin(ax, "Mean distance of each query", "tokens", "share of queries")
    layers = all_layers(sections)
    colours = layer_colours(layers)
    by_text = [dict(layers_of(section)) for section in usable(sections).values()]
    for layer in layers:
        parts = [text[layer]["by_query"]["mean_distance"][0] for text in by_text if layer in text]
        distances = np.concatenate([as_array(part) for part in parts])
        seaborn.ecdfplot(x=distances[np.isfinite(distances)], color=colours[layer], ax=ax)
    if not ax.lines:
        return write_reason(ax, why_none(sections) or "no queries")
    ax.set_xlabel("tokens")
    ax.set_ylabel("share of queries")
    return name_layers(lag_axis(ax), layers)


def plot_entropy_share(sections: Sections, ax: Axes | None = None) -> Axes:
    """Entropy of attention over its largest possible value, ln(t + 1), over queries."""
    return draw_summary(sections, "statistics.entropy_share", ax, "Entropy over ln(t + 1)", "share")


def plot_mean_distance(sections: Sections, ax: Axes | None = None) -> Axes:
    """Mean distance of attention over queries."""
    return draw_summary(
        sections, "statistics.mean_distance", ax, "Mean distance of attention", "tokens"
    )


def plot_attention_shares(sections: Sections, ax: Axes | None = None) -> Axes:
    """Shares of attention on the query itself, its last four tokens, the text's first token."""
    names = {
        "statistics.recent_share": "last four",
        "statistics.self_share": "itself",
        "statistics.first_share": "first",
    }
    ax = draw_mean_std(sections, names, ax, "Where attention goes", "share of |α|", band=False)
    ax.set_ylim(-0.02, 1.02)
    return ax


def plot_synthetic_agreement(sections: Sections, ax: Axes | None = None) -> Axes:
    """Spearman correlation of implicit attention and the cosine attention of states."""
    ax = begin(ax, "Agreement with synthetic", "layer", "Spearman")
    for text, section in usable(sections).items():
        layers = layers_of(section)
        values = [part["agreement_with_synthetic"][0] for _, part in layers]
        draw_text_line(ax, [layer for layer, _ in layers], values, text)
    ax = end(ax, sections, all_layers(sections), "undefined: too few tokens")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05, 1.05)
    return ax


def plot_attention_map(
    matrix: Any,
    tokens: Sequence[str],
    ax: Axes | None = None,
    title: str = "Mean α over heads",
    *,
    span: tuple[int, int] | None = None,
) -> Axes:
    """A causal map (l, l), query by source, signed; sources after the query are left white.

    `span`: first token shown, and the one after the last; all where None. The colour scale ends at
    the 99th percentile of the magnitudes, so that a few strong entries do not leave the rest white.
    """
    ax = begin(ax, title, "source", "query")
    first, stop = span or (0, len(tokens))
    values = np.array(matrix, dtype=float)[first:stop, first:stop]
    causal = np.abs(values[np.tril_indices(len(values))])
    limit = float(np.quantile(causal, 0.99)) or None
    values[np.triu_indices(len(values), 1)] = np.nan
    draw_heatmap(ax, values, diverging=True, limit=limit, title=title, cbar_label="α", hatch=False)
    for axis in ("x", "y"):
        token_ticks(ax, tokens[first:stop], axis, first=first)
    ax.tick_params(labelsize=5.5)
    return ax


def plot_pair_statistic(
    sections: Sections, stream: str, statistic: str, ax: Axes | None = None
) -> Axes:
    """A statistic of the correlations of successive layers, beside its null, by pair of layers."""
    label = PAIR_STATISTICS[statistic]
    ax = begin(ax, f"{label}, {_STREAMS[stream]}", "layers", label)
    parts = {text: part[stream] for text, part in usable(sections).items()}
    labels = pair_labels(next(iter(parts.values()), {}))
    tests = {text: [pair[statistic] for pair in part.values()] for text, part in parts.items()}
    return draw_tests(ax, sections, labels, tests, one_sided=statistic in MAGNITUDES)


def plot_lagged_correlation(
    section: Section, ax: Axes | None = None, *, stream: str = "residual"
) -> Axes:
    """Mean |r| of successive layers when the later is taken some tokens later; rows are pairs.

    A cross marks what does not lie above the null of time shifts, "?" what has none.
    """
    title = f"Mean |r| by lag, {_STREAMS[stream]}"
    ax = begin(ax, title, "lag of the later layer (tokens)", "layers")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    defined = [pair for pair in section.values() if pair["lags"]]
    if not defined:
        return write_reason(ax, next(iter(section.values()))["reason"])
    lags = defined[0]["lags"]
    rows = [pair["lagged_mean_abs"] or [None] * len(lags) for pair in section.values()]
    matrix = as_array(rows)
    draw_heatmap(ax, matrix, diverging=False, cbar_label="mean |r|", title=title)
    tops = as_array([pair["mean_abs"]["null_high"] for pair in section.values()])
    mark_standings(ax, matrix, None, tops[:, None], colour="0.75")
    thin_ticks(ax, "x", [f"{lag:+d}" if lag else "0" for lag in lags])
    thin_ticks(ax, "y", pair_labels(section))
    return ax


def plot_autocorrelation(
    section: Section, ax: Axes | None = None, *, stream: str = "residual"
) -> Axes:
    """Autocorrelation of a stream by layer and lag.

    A cross marks what lies within the null of shuffled tokens, "?" what has none; a layer without
    values, such as one that is silent, is hatched, with the reason.
    """
    title = f"Autocorrelation, {_STREAMS[stream]}"
    ax = begin(ax, title, "lag (tokens)", "layer")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    series = [(layer, part["autocorrelation"]) for layer, part in layers_of(section)]
    # Layers that warm up later have fewer tokens left, and with a short text fewer lags.
    lags = max((found["lags"] for _, found in series), key=len, default=[])
    if not lags or all(found["reason"] for _, found in series):
        return write_reason(ax, next(found["reason"] for _, found in series) or "no lags")
    matrix, low, high = (
        as_array([(found[name] + [None] * len(lags))[: len(lags)] for _, found in series])
        for name in ("mean", "null_low", "null_high")
    )
    draw_heatmap(ax, matrix, diverging=True, cbar_label="correlation", title=title)
    mark_standings(ax, matrix, low, high)
    for row, (_, found) in enumerate(series):
        if not found["lags"]:
            ax.text(0, row, drawable_text(found["reason"], 60), va="center", fontsize=5.5,
                    parse_math=False)  # fmt: skip
    thin_ticks(ax, "x", [str(lag) for lag in lags])
    thin_ticks(ax, "y", [str(layer) for layer, _ in series])
    return ax


def plot_ssm_attention(sections: Sections, ax: Axes | None = None) -> Axes:
    """Spearman correlation over tokens of Δ, B, C with attention; a row a layer.

    Each group of columns is a pair of quantities, and within it the texts in their order. A cross
    marks what lies within the null of time shifts, "?" what has none.
    """
    title = "SSM quantities and attention, correlation over tokens"
    ax = begin(ax, title, "", "layer")
    found = usable(sections)
    if not found:
        return write_reason(ax, why_none(sections))
    layers = all_layers(sections)
    names = list(layers_of(next(iter(found.values())))[0][1]["tokens"])
    tests = [
        [
            dict(layers_of(section))[layer]["tokens"][name]
            for name in names
            for section in found.values()
        ]
        for layer in layers
    ]
    matrix, low, high = (
        as_array([[test[key] for test in row] for row in tests])
        for key in ("value", "null_low", "null_high")
    )
    if np.isnan(matrix).all():
        return write_reason(ax, tests[0][0]["reason"] or "undefined")
    draw_heatmap(ax, matrix, diverging=True, limit=1.0, cbar_label="Spearman", title=title)
    mark_standings(ax, matrix, low, high)
    for group in range(1, len(names)):
        ax.axvline(group * len(found) - 0.5, color="white", linewidth=2.5)
    centres = [(i + 0.5) * len(found) - 0.5 for i in range(len(names))]
    ax.set_xticks(centres, [PAIR_NAMES.get(name) or str(name) for name in names])
    thin_ticks(ax, "y", [str(layer) for layer in layers])
    return ax


def plot_text_spread(section: Section, ax: Axes | None = None, title: str = "") -> Axes:
    """Spread of statistics between texts over that expected by chance, by layer; 1 is chance.

    Grey: the central 95 % interval where all texts have one mean.
    """
    ax = begin(ax, title, "layer", "spread / expected by chance")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    layers = [part for _, part in layers_of(section)]
    names = {name: STATISTIC_NAMES.get(name) or str(name) for name in layers[0]}
    points = {label: [part[name]["ratio"] for part in layers] for name, label in names.items()}
    null = {
        label: ([part[name].get("null_low") for part in layers],
                [part[name].get("null_high") for part in layers])
        for name, label in names.items()
    }  # fmt: skip
    reason = next(iter(layers[0].values()))["reason"]
    return draw_points(ax, section, points, 1.0, reason, null=null)


def plot_change_correlation(sections: Sections, ax: Axes | None = None) -> Axes:
    """Rank correlation over tokens of change of state and change of activation, by layer."""
    ax = begin(
        ax, "Correlation of change of state and of activation", "layer", "Spearman correlation"
    )
    labels = [str(layer) for layer in all_layers(sections)]
    tests = {
        text: [part["change_correlation"] for _, part in layers_of(section)]
        for text, section in usable(sections).items()
    }
    ax = draw_tests(ax, sections, labels, tests)
    ax.set_ylim(-1.05, 1.05)
    return ax


def plot_changes(sections: Sections, layer: int, ax: Axes | None = None) -> Axes:
    """Change of activation against change of state in one layer, a point a token."""
    ax = begin(ax, f"layer {layer}", "change of state", "change of activation")
    for text, section in usable(sections).items():
        part = dict(layers_of(section))[layer]
        x, y = as_array(part["state_change"]), as_array(part["activation_change"])
        colour, marker = text_style(text)
        ax.plot(
            x,
            y,
            marker,
            color=colour,
            markersize=point_size(len(x)),
            alpha=0.6,
            markeredgewidth=0,
            rasterized=True,
        )
    if not any(np.isfinite(line.get_xydata()).all(axis=1).any() for line in ax.lines):
        reason = "no token to compare with, or a state or an activation that is zero throughout"
        return write_reason(ax, why_none(sections) or reason)
    x, y = (np.concatenate([line.get_data()[i] for line in ax.lines]) for i in (0, 1))
    # From 0, so that a change twice as large lies twice as far out.
    ax.set_xlim(0, 1.05 * max(np.nanmax(x), 1e-3))
    ax.set_ylim(0, 1.05 * max(np.nanmax(y), 1e-3))
    return ax


def plot_norms(
    ssm_components: Sections, layer_activations: Sections, ax: Axes | None = None
) -> Axes:
    """L2 norms by layer: state, residual stream, and what the mixer adds to it."""
    ax = begin(ax, "L2 norms", "layer", "L2 norm, mean over tokens")
    series = (
        (ssm_components, "dynamics.state_norm", "state h"),
        (layer_activations, "residual_norm", "residual stream"),
        (layer_activations, "mixer_norm", "mixer output"),
    )
    for i, (sections, path, label) in enumerate(series):
        draw_mean_std(sections, {path: label}, ax, band=False, first_colour=i)
    return log_axis(legend_above(ax, 3), "y") if ax.lines else ax
