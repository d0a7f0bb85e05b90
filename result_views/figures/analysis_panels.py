"""Panels of the figures: each draws one quantity of a result dict on an ``ax`` and returns it.

A panel is given one step's sections by text (``text_sections(results, "ssm_components")`` of
``panel_primitives``), or one section of the cross-text analysis, live or loaded from JSON. It
computes no statistic: what it shows stands in the results. Where these hold a null for a value it
is drawn in grey beside it. Colours are texts, methods or quantities; layers, where they are
colours, run from dark (first) to light (last).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from result_views.figures.drawing import draw_heatmap
from result_views.figures.panel_primitives import (
    as_array,
    begin,
    draw_bars,
    draw_lines_by_layer,
    draw_mean_std,
    draw_summary,
    draw_tests,
    draw_text_line,
    drawn_layers,
    end,
    layer_colours,
    log_axis,
    mark_cells,
    name_layers,
    pair_labels,
    point_size,
    text_style,
    thin_ticks,
    write_reason,
)
from result_views.glossary import STATISTIC_NAMES, method_name
from suite_plumbing.result_reading import (
    Section,
    Sections,
    all_layers,
    failure,
    layers_of,
    usable,
    why_none,
)

PAIR_NAMES = {
    "delta_received": "Δ, attention\nreceived",
    "delta_paid": "Δ, attention\npaid",
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
        ax.legend(handles=[line], loc="best")
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


def plot_memory_kernel(sections: Sections, ax: Axes | None = None) -> Axes:
    """Share of the attention that reaches back by each lag, by layer."""
    ax = begin(ax, "Memory kernel", "lag (tokens)", "share of attention")

    def kernel(layer: Section) -> tuple[Sequence[float], Sequence[float | None]]:
        # A lag beyond the text has share 0, which a logarithmic axis cannot show.
        shares = [share or None for share in layer["memory_kernel"]["kernel"][0]]
        return range(len(shares)), shares

    ax = draw_lines_by_layer(sections, ax, kernel, legend=False)
    return log_axis(ax, "y") if ax.lines else ax


def plot_entropy_share(sections: Sections, ax: Axes | None = None) -> Axes:
    """Entropy of attention over its largest possible value, ln(t + 1), over queries."""
    return draw_summary(
        sections, "statistics.entropy_share", ax, "Entropy over its maximum ln(t + 1)", "share",
        spread=True,
    )  # fmt: skip


def plot_mean_distance(sections: Sections, ax: Axes | None = None) -> Axes:
    """Mean distance of attention over queries."""
    return draw_summary(
        sections, "statistics.mean_distance", ax, "Mean distance of attention", "tokens",
        spread=True,
    )  # fmt: skip


def plot_attention_shares(sections: Sections, ax: Axes | None = None) -> Axes:
    """Shares of attention on the query itself, its last four tokens, the text's first token."""
    names = {
        "statistics.recent_share": "last four tokens",
        "statistics.self_share": "the token itself",
        "statistics.first_share": "the first token",
    }
    ax = draw_mean_std(sections, names, ax, "Where attention goes", "share of |α|", band=False)
    ax.set_ylim(-0.02, 1.02)
    return ax


def plot_synthetic_agreement(sections: Sections, ax: Axes | None = None) -> Axes:
    """Spearman correlation of implicit attention and the cosine attention of states."""
    ax = begin(ax, "Implicit and synthetic attention", "layer", "Spearman correlation")
    for text, section in usable(sections).items():
        layers = layers_of(section)
        values = [part["agreement_with_synthetic"][0] for _, part in layers]
        draw_text_line(ax, [layer for layer, _ in layers], values, text)
    ax = end(ax, sections, all_layers(sections), "undefined: too few tokens")
    ax.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.05, 1.05)
    return ax


def plot_attention_map(
    matrix: Any, tokens: Sequence[str], ax: Axes | None = None, title: str = "Mean α over heads"
) -> Axes:
    """A causal map (l, l), query by source, signed; sources after the query are grey.

    The colour scale ends at the 99th percentile of the magnitudes, so that a few strong entries do
    not leave the rest white.
    """
    ax = begin(ax, title, "source", "query")
    values = np.array(matrix, dtype=float)
    causal = np.abs(values[np.tril_indices(len(values))])
    limit = float(np.quantile(causal, 0.99)) or None
    values[np.triu_indices(len(values), 1)] = np.nan
    draw_heatmap(
        ax, values, diverging=True, xlabels=tokens, ylabels=tokens, limit=limit, title=title,
        cbar_label="α",
    )  # fmt: skip
    ax.tick_params(labelsize=5.5)
    return ax


def plot_neuron_cka(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """CKA of a method's neurons in successive layers, beside its null by time shifts."""
    ax = begin(ax, _of("CKA of successive layers", method), "layers", "CKA (debiased)")
    parts = {text: section[method]["transitions"] for text, section in usable(sections).items()}
    first = next(iter(parts.values()), [])
    labels = [f"{step['from_layer']}→{step['to_layer']}" for step in first]
    tests = {
        text: [
            {"value": step["cka"], "null_low": step["cka_null_mean"],
             "null_high": step["cka_null_max"], "reason": step["reason"]}
            for step in steps
        ]
        for text, steps in parts.items()
    }  # fmt: skip
    return draw_tests(ax, sections, labels, tests, one_sided=True)


def plot_attention_agreement(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Rank agreement of a method's maps in successive layers at equal lag, beside its null."""
    ax = begin(ax, _of("Agreement of attention", method), "layers", "Spearman by lag")
    parts = {text: section[method]["transitions"] for text, section in usable(sections).items()}
    first = next(iter(parts.values()), [])
    labels = [f"{step['from_layer']}→{step['to_layer']}" for step in first]
    tests = {text: [step["attention_agreement"] for step in steps] for text, steps in parts.items()}
    return draw_tests(ax, sections, labels, tests)


def plot_neuron_magnitude(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Root mean square activation of a method's neurons over tokens and neurons."""
    ax = begin(ax, _of("Magnitude", method), "layer", "RMS activation")
    for text, section in usable(sections).items():
        layers = layers_of(section[method]["rms"])
        draw_text_line(ax, [layer for layer, _ in layers], [rms for _, rms in layers], text)
    layers = drawn_layers(ax)
    if any((as_array(line.get_ydata()) > 0).any() for line in ax.lines):
        log_axis(ax, "y")
    return end(ax, sections, layers, "no activations")


def _of(quantity: str, method: str) -> str:
    return f"{quantity},\n{method_name(method)}"


def plot_neuron_concentration(sections: Sections, method: str, ax: Axes | None = None) -> Axes:
    """Share of the importance in the top 5 % of the neurons; a line where all count alike."""
    ax = begin(ax, _of("Share of the top 5 % of neurons", method), "layer", "share of importance")
    for text, section in usable(sections).items():
        layers = layers_of(section[method]["concentration"])
        shares = [part["top_5_percent_share"] for _, part in layers]
        draw_text_line(ax, [layer for layer, _ in layers], shares, text)
    layers = drawn_layers(ax)
    ax.axhline(0.05, color="0.4", linestyle="--", linewidth=0.8)
    ax.set_ylim(0, 1.02)
    return end(ax, sections, layers, "all importance is zero")


def plot_pair_statistic(
    sections: Sections, stream: str, statistic: str, ax: Axes | None = None
) -> Axes:
    """A statistic of the correlations of successive layers, beside its null, by pair of layers."""
    ax = begin(ax, "", "layers", "")
    parts = {text: part[stream] for text, part in usable(sections).items()}
    labels = pair_labels(next(iter(parts.values()), {}))
    tests = {text: [pair[statistic] for pair in part.values()] for text, part in parts.items()}
    return draw_tests(ax, sections, labels, tests)


def plot_lagged_correlation(section: Section, ax: Axes | None = None) -> Axes:
    """Mean |r| of successive layers when the later is taken some tokens later; rows are pairs.

    A cross marks what lies within the null of time shifts.
    """
    title = "Mean |r| by lag, residual stream"
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
    mark_cells(ax, matrix <= tops[:, None], "0.75")
    thin_ticks(ax, "x", [f"{lag:+d}" if lag else "0" for lag in lags])
    thin_ticks(ax, "y", pair_labels(section))
    return ax


def plot_autocorrelation(section: Section, ax: Axes | None = None) -> Axes:
    """Autocorrelation of the residual stream of one text by layer and lag.

    A cross marks what lies within the null of shuffled tokens.
    """
    title = "Autocorrelation, residual stream"
    ax = begin(ax, title, "lag (tokens)", "layer")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    series = [(layer, part["autocorrelation"]) for layer, part in layers_of(section)]
    lags = next((found["lags"] for _, found in series if found["lags"]), [])
    if not lags or all(found["reason"] for _, found in series):
        return write_reason(ax, next(found["reason"] for _, found in series) or "no lags")
    matrix, low, high = (
        as_array([found[name] or [None] * len(lags) for _, found in series])
        for name in ("mean", "null_low", "null_high")
    )
    draw_heatmap(ax, matrix, diverging=True, cbar_label="correlation", title=title)
    mark_cells(ax, (low <= matrix) & (matrix <= high))
    thin_ticks(ax, "x", [str(lag) for lag in lags])
    thin_ticks(ax, "y", [str(layer) for layer, _ in series])
    return ax


def plot_ssm_attention(sections: Sections, ax: Axes | None = None) -> Axes:
    """Spearman correlation over tokens of Δ, B, C with attention; a row a layer.

    Each group of columns is a pair of quantities, and within it the texts in their order. A cross
    marks what lies within the null of time shifts.
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
    mark_cells(ax, (low <= matrix) & (matrix <= high))
    for group in range(1, len(names)):
        ax.axvline(group * len(found) - 0.5, color="white", linewidth=2.5)
    centres = [(i + 0.5) * len(found) - 0.5 for i in range(len(names))]
    ax.set_xticks(centres, [PAIR_NAMES.get(name) or str(name) for name in names])
    thin_ticks(ax, "y", [str(layer) for layer in layers])
    return ax


def plot_text_spread(section: Section, ax: Axes | None = None, title: str = "") -> Axes:
    """Spread of statistics between texts over that expected by chance, by layer; 1 is chance."""
    ax = begin(ax, title, "layer", "spread / expected by chance")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    bars = {
        STATISTIC_NAMES.get(name) or str(name): [
            part[name]["ratio"] for _, part in layers_of(section)
        ]
        for name in layers_of(section)[0][1]
    }
    first = next(iter(layers_of(section)[0][1].values()))
    return draw_bars(ax, section, bars, 1.0, first["reason"])


def plot_neuron_overlap(section: Section, ax: Axes | None = None) -> Axes:
    """Number of important neurons that two texts share; a dashed line at that of random lists.

    An outline, where some pair of texts shares no more than random lists do (p > 0.05).
    """
    ax = begin(ax, "Shared important neurons", "layer", "neurons on both lists")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    first = next(iter(layers_of(section)[0][1].values()))
    ax.set_ylabel(f"neurons on both lists, of {first['top_n']}")
    bars = _by_method(section, "mean_overlap")
    by_chance = {
        name: [p_value is None or p_value > 0.05 for p_value in p_values]
        for name, p_values in _by_method(section, "largest_p_value").items()
    }
    return draw_bars(ax, section, bars, first["expected_overlap"], first["reason"], by_chance)


def plot_neuron_rank_agreement(section: Section, ax: Axes | None = None) -> Axes:
    """Rank correlation of the neurons' importance between texts; 0 is chance."""
    ax = begin(ax, "Agreement on importance", "layer", "Spearman correlation")
    if (reason := failure(section)) is not None:
        return write_reason(ax, reason)
    first = next(iter(layers_of(section)[0][1].values()))
    bars = _by_method(section, "mean_spearman")
    return draw_bars(ax, section, bars, 0.0, first["reason"])


def _by_method(section: Section, name: str) -> dict[str, list[float | None]]:
    methods = layers_of(section)[0][1]
    return {
        method_name(method): [part[method][name] for _, part in layers_of(section)]
        for method in methods
    }


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
    ax = begin(ax, f"layer {layer}", "", "")
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
    return log_axis(ax, "y") if ax.lines else ax
