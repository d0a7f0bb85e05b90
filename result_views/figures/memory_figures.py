"""Figures of the memory analysis, drawn from its results alone: five of memory, one of causes."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from result_views.figures import memory_panels as panels
from result_views.figures.pages import page, styled
from suite_plumbing.result_reading import Section


@styled
def figure_neuron_activation(results: Section) -> Figure:
    """Activation of each method's neurons by layer."""
    section = _section(results, "neurons")
    methods = results["analysis_metadata"]["neuron_methods"]
    figure, axes = page(
        results, "Neuron activation patterns",
        "RMS over tokens of a neuron's value, in the unit of the method (gradient-guided: "
        "activation times gradient). Line: mean over neurons and texts; band: range of the texts.",
        [(len(methods), 1.3)], {},
    )  # fmt: skip
    for method, ax in zip(methods, axes[0], strict=True):
        panels.plot_activation(section, method, ax)
    return figure


@styled
def figure_memory_effects(results: Section) -> Figure:
    """Half-lives, survival, memory kernel, energies, norm and rank by layer."""
    rows = results["memory_by_layer"]
    figure, axes = page(
        results, "Memory effects",
        "Half-life: median over channels of the slowest state at the channel's mean Δ. Kernel: "
        "implicit attention |α| by lag, mean over texts. Written ‖ΔBu‖, kept ‖exp(ΔA)h‖. Rank: "
        "participation ratio of the states over tokens.",
        [(2, 1.2)] * 3, {},
    )  # fmt: skip
    lags = {"median_half_life": "half-life", "kernel_mean_lag": "kernel, mean lag",
            "kernel_lag_90": "kernel, 90 % lag"}  # fmt: skip
    panels.plot_by_layer(rows, lags, "How far back", "tokens", axes[0][0], log=True)
    panels.plot_survival(_section(results, "delta"), axes[0][1])
    panels.plot_kernel(_section(results, "memory_kernel"), axes[1][0])
    energy = {"state_write": "written", "state_retain": "kept"}
    panels.plot_by_layer(
        rows, energy, "Written and kept per token", "L2 norm", axes[1][1], log=True
    )
    ratios = {"state_last_over_first": "last / first quarter",
              "state_last_over_third": "last / third quarter"}  # fmt: skip
    panels.plot_by_layer(rows, ratios, "Norm of the state along a text", "ratio", axes[2][0])
    rank = {"state_participation_ratio": "rank"}
    panels.plot_by_layer(rows, rank, "Rank of the state", "participation ratio", axes[2][1])
    return figure


@styled
def figure_recursive_patterns(results: Section) -> Figure:
    """Autocorrelation over time, and change of state against change of activation."""
    section = _section(results, "recursive_patterns")
    figure, axes = page(
        results, "Recursive patterns",
        "Autocorrelation within texts, mean over channels; grey: null of shuffled tokens, from the "
        "lowest to the highest of the layers. Changes: Spearman over tokens of "
        "‖hₜ − hₜ₋₁‖ and the same of the mixer's output; grey: null of circular time shifts; "
        "hollow points lie inside it.",
        [(2, 1.3), (1, 1.1)], {},
    )  # fmt: skip
    panels.plot_autocorrelation(section, "residual", axes[0][0])
    panels.plot_autocorrelation(section, "mixer", axes[0][1])
    path = ("mixer", "change_correlation")
    panels.plot_tests_by_layer(section, path, "Changes of state and activation", "ρ", axes[1][0])
    return figure


@styled
def figure_cross_layer(results: Section) -> Figure:
    """Correlations of successive layers as maps of layer by layer."""
    section = _section(results, "cross_layer_correlations")
    figure, axes = page(
        results, "Cross-layer correlations",
        "Pearson r of every pair of channels of successive layers: mean and largest |r|, and "
        "debiased CKA. Below the diagonal: the value; above it, mirrored: the upper end of its "
        "null by circular time shifts; a cross where the value does not exceed it. Grey: not "
        "compared. Each panel has a scale of its own.",
        [(3, 1.3)] * 2, {},
    )  # fmt: skip
    for row, stream in zip(axes, ("residual", "mixer"), strict=True):
        for ax, statistic in zip(row, ("mean_abs", "max_abs", "cka"), strict=True):
            panels.plot_pair_heatmap(section, stream, statistic, ax)
    return figure


@styled
def figure_ssm_neurons(results: Section) -> Figure:
    """Delta and memory with neurons: over tokens, and over channels."""
    delta = _section(results, "delta_neurons")
    figure, axes = page(
        results, "SSM and neurons",
        "Spearman. Left: mean over channels of |ρ| over tokens of Δ with |activation|, null of "
        "circular time shifts. Right: over channels, mean Δ with the neuron's change when the "
        "decay alone is scaled (its memory), null of permutations. Below: over channels, "
        "importance by method with mean Δ, half-life and memory. Hollow points and crosses: within "
        "the 95 % interval of the null.",
        [(2, 1.2), (1, 1.6)], {},
    )  # fmt: skip
    path = ("observed", "mean_abs")
    panels.plot_tests_by_layer(delta, path, "Δ with activation", "mean |ρ|", axes[0][0])
    path = ("delta_with_memory",)
    panels.plot_tests_by_layer(delta, path, "Mean Δ with memory", "ρ", axes[0][1])
    panels.plot_rank_correlations(_section(results, "neuron_memory"), axes[1][0])
    return figure


@styled
def figure_causal_memory(results: Section) -> Figure:
    """What the predictions lose without memory: by layer and lag, beside random positions."""
    section = causal_section(results)
    figure, axes = page(
        results, "Causal memory",
        "KL of the next-token distribution as it is and without the memory, mean over positions. "
        "Reset: the state is erased before a token. Hidden: what one source gives through the "
        "state is taken out. By lag: a layer alone, or (black) all analysed layers together. By "
        "bin of lags: all together, bars 95 % bootstrap intervals over positions; hollow: the "
        "same at random other positions. Agreement: Spearman over lags of a layer's own "
        "curve with its memory kernel, the mean of |α| by lag.",
        [(2, 1.4), (2, 1.1), (2, 1.4), (1, 0.9)], {},
    )  # fmt: skip
    for column, kind in enumerate(panels.CAUSAL_KINDS):
        panels.plot_causal(section, kind, axes[0][column])
        panels.plot_causal_bins(section, kind, axes[1][column])
        panels.plot_causal_map(section, kind, axes[2][column])
    panels.plot_kernel_agreement(section, axes[3][0])
    return figure


def causal_section(results: Section) -> Section:
    """Causal memory in results of the memory analysis, or in those of ``intervention_study``."""
    kinds = {kind: results[kind] for kind in panels.CAUSAL_KINDS if kind in results}
    return kinds or _section(results, "causal_memory")


def _section(results: Section, step: str) -> Section:
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
