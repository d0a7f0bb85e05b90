"""Figures of the memory analysis, drawn from its results alone: five of memory, one of causes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from result_views.figures import memory_panels as panels
from result_views.figures.analysis_panels import PAIR_STATISTICS
from result_views.figures.finding_figures import twin_ranges
from result_views.figures.null_looks import CELLS_SAY, MAGNITUDES_SAY, POINTS_SAY
from result_views.figures.pages import page, styled
from result_views.figures.titles import (
    activation_title,
    causal_title,
    cross_layer_title,
    limited_layers,
    memory_title,
    recursion_title,
    ssm_neuron_title,
)
from result_views.layer_names import layer_names
from suite_plumbing.result_reading import Section


@styled
def figure_neuron_activation(results: Section) -> Figure:
    """Activation of the methods' neurons by layer, on one axis."""
    section = memory_section(results, "neurons")
    methods = [m for m in results["analysis_metadata"]["neuron_methods"] if m != _OTHER_UNIT]
    figure, axes = page(
        results, activation_title(section, methods),
        "Point: median over neurons of the root mean square over tokens of a neuron's value, a "
        "point a text; bar: the middle half of the neurons. Gradient-guided values have another "
        "unit, activation times gradient, and are not on this axis.",
        [(1, 1.6)], {},
    )  # fmt: skip
    panels.plot_activation(section, methods, axes[0][0])
    return figure


_OTHER_UNIT = "gradient_guided"
"""The method whose values are not activations."""


@styled
def figure_memory_effects(results: Section) -> Figure:
    """How far back layers read, memory kernels, norm and rank of the state by layer."""
    rows = results["memory_by_layer"]
    state = memory_section(results, "state")
    figure, axes = page(
        results, memory_title(rows),
        "Half-life: median over channels of the slowest state at the channel's mean Δ. Kernel: "
        "implicit attention |α| by lag, mean over the tokens of all texts that have one so far "
        f"back{_limited(rows)}. Norm: last quarter of a text over its first, or third. Rank: "
        "participation ratio of the states over tokens, at most their number. Thin: single texts.",
        [(2, 1.25)] * 2, {},
    )  # fmt: skip
    panels.plot_by_layer(rows, LAGS, "How far back", "tokens", axes[0][0], log=True)
    panels.plot_kernel(memory_section(results, "memory_kernel"), axes[0][1])
    panels.plot_by_text(state, NORM_RATIOS, "Norm of the state along a text", "ratio", axes[1][0])
    panels.plot_by_text(state, RANK, "Rank of the state", "participation ratio", axes[1][1])
    return figure


def _limited(rows: Sequence[Section]) -> str:
    """In which layers a kernel's lags say how long the texts are."""
    layers = sorted(limited_layers(rows))
    if not layers:
        return ""
    which = "every layer" if len(layers) == len(rows) else layer_names(layers)
    return f"; longer texts would give more in {which}"


LAGS = {"median_half_life": "slowest half-life", "kernel_mean_lag": "kernel, mean lag",
        "kernel_lag_90": "kernel, 90 % lag"}  # fmt: skip
"""How far back a layer reads, by column of the table by layer."""

NORM_RATIOS = {"last_over_first": "last / first quarter", "last_over_third": "last / third"}
"""Growth of the state along a text, by the name it has in the results."""

RANK = {"participation_ratio": "rank"}
"""Rank of the states, by the name it has in the results."""


@styled
def figure_recursive_patterns(results: Section) -> Figure:
    """Autocorrelation over time, and change of state against change of activation."""
    section = memory_section(results, "recursive_patterns")
    figure, axes = page(
        results, recursion_title(section),
        "Autocorrelation of the mixer's output within texts, mean over channels; its null, 95 % "
        f"interval: shuffled tokens; {CELLS_SAY}; hatched: missing. Changes: Spearman over "
        "tokens of ‖hₜ − hₜ₋₁‖ and the same of the mixer's output; grey: null of circular time "
        f"shifts; {POINTS_SAY}.",
        [(1, 1.3), (1, 1.1)], {},
    )  # fmt: skip
    panels.plot_autocorrelation(section, "mixer", axes[0][0])
    path = ("mixer", "change_correlation")
    panels.plot_tests_by_layer(section, path, "Changes of state and activation", "ρ", axes[1][0])
    return figure


@styled
def figure_cross_layer(results: Section) -> Figure:
    """Correlations of successive layers, each pair beside its null."""
    section = memory_section(results, "cross_layer_correlations")
    figure, axes = page(
        results, cross_layer_title(section),
        "Pearson r of every pair of channels of successive layers: mean and largest |r|, and "
        "debiased CKA, over the tokens of all texts. Grey: 95 % interval of the null of circular "
        f"time shifts; {MAGNITUDES_SAY}. The residual stream of a later layer contains "
        "that of an earlier one: compare the mixers' outputs, above.",
        [(3, 1.15)] * 2, {},
    )  # fmt: skip
    for row, stream in zip(axes, ("mixer", "residual"), strict=True):
        for ax, statistic in zip(row, PAIR_STATISTICS, strict=True):
            panels.plot_pairs(section, stream, statistic, ax)
    return figure


@styled
def figure_ssm_neurons(results: Section) -> Figure:
    """Delta and memory with neurons: over tokens, and over channels."""
    delta = memory_section(results, "delta_neurons")
    figure, axes = page(
        results, ssm_neuron_title(delta),
        "Spearman. Left: mean over channels of |ρ| over tokens of Δ with |activation|, null of "
        "circular time shifts. Right: over channels, mean Δ with the neuron's change when the "
        "decay alone is scaled (its memory), null of permutations. Dashed: smallest and largest "
        "value of untrained models, where they were tried. Below: over channels, importance by "
        "method with mean Δ, half-life and memory. Grey: the null's 95 % interval; "
        f"{POINTS_SAY} (mean |ρ|: filled above it); {CELLS_SAY}.",
        [(2, 1.2), (1, 1.6)], {},
    )  # fmt: skip
    for ax, (path, title, label) in zip(axes[0], DELTA_TESTS.values(), strict=True):
        twins = untrained_values(results, path)
        panels.plot_tests_by_layer(delta, path, title, label, ax, twins=twins)
    panels.plot_rank_correlations(memory_section(results, "neuron_memory"), axes[1][0])
    return figure


DELTA_TESTS = {
    "delta_activation": (("observed", "mean_abs"), "Δ with activation", "mean |ρ|"),
    "delta_memory": (("delta_with_memory",), "Mean Δ with memory", "ρ"),
}
"""Tests of delta: path in ``delta_neurons``, title and label."""


def untrained_values(results: Section, path: Sequence[str]) -> list[list[float]]:
    """Ranges of the untrained models' values of the claim that rests on a path of delta_neurons."""
    ending = ".".join(["memory.delta_neurons.*", *path])
    rows = [row for row in results.get("findings", ()) if row["path"] == ending]
    return [ends for row in rows for ends in twin_ranges(row)]


@styled
def figure_causal_memory(results: Section) -> Figure:
    """What the predictions lose without memory: by layer and lag, beside random positions.

    A column a kind of intervention that was made; pairs of layers where they were measured.
    """
    section, pairs = causal_section(results), results.get("pairs", ())
    kinds = [kind for kind in panels.CAUSAL_KINDS if kind in section] or list(panels.CAUSAL_KINDS)
    columns = len(kinds)
    figure, axes = page(
        results, causal_title(section), _causal_caption(section, bool(pairs)),
        [(columns, 1.4), (columns, 1.1), (1, 0.9), *([(columns, 1.2)] if pairs else [])], {},
    )  # fmt: skip
    for column, kind in enumerate(kinds):
        panels.plot_causal(section, kind, axes[0][column])
        panels.plot_causal_bins(section, kind, axes[1][column])
        if pairs:
            panels.plot_layer_pairs(pairs, kind, axes[3][column])
    panels.plot_kernel_agreement(section, axes[2][0])
    return figure


def _causal_caption(section: Section, pairs: bool) -> str:
    parts = (section.get(kind, {}) for kind in panels.CAUSAL_KINDS)
    lacking = [kind for kind in panels.CAUSAL_KINDS if kind not in section]
    lacking = lacking if len(lacking) == 1 else []
    random = any("random_positions" in part for part in parts)
    return (
        "KL of the next-token distribution as it is and without the memory, mean over texts. "
        "Reset: the state is erased before a token. Hidden: what one source gives through the "
        "state is taken out. By lag: a layer alone, or (black, with the band of the 95 % "
        "intervals by bin) all analysed layers together. By bin of lags: all together, bars 95 % "
        "bootstrap intervals over texts, of 5 or more"
        + ("; grey: the same at random other positions. " if random else ". ")
        + "Agreement: Spearman over lags of a layer's own curve with its memory kernel, the mean "
        "of |α| by lag, mean over texts with its interval; none where every effect is below 1e-4 "
        "nats."
        + (" Two layers: mean over lags; grey: the sum of both alone." if pairs else "")
        + "".join(f" {kind} was not measured." for kind in lacking)
    )


def causal_section(results: Section) -> Section:
    """Causal memory in results of the memory analysis, or in those of ``intervention_study``."""
    kinds = {kind: results[kind] for kind in panels.CAUSAL_KINDS if kind in results}
    return kinds or memory_section(results, "causal_memory")


def memory_section(results: Section, step: str) -> Section:
    """A step's section of the memory analysis, or one that says that it is not there."""
    missing = {"skipped": f"{step} is not in these results"}
    return results.get("memory", {}).get(step, missing)


MEMORY_FIGURES: dict[str, Callable[[Section], Figure]] = {
    "neuron_activation_patterns": figure_neuron_activation,
    "memory_effects": figure_memory_effects,
    "recursive_patterns": figure_recursive_patterns,
    "cross_layer_correlations": figure_cross_layer,
    "ssm_neuron_correlations": figure_ssm_neurons,
    "causal_memory": figure_causal_memory,
}
"""By file name: functions of the results."""

CAUSAL_FIGURES: dict[str, Callable[[Section], Figure]] = {"causal_memory": figure_causal_memory}
"""Those of ``intervention_study``'s results."""
