"""Single panels by name: any panel of the pages, of one layer, text or stretch of tokens.

``Results.figure("attention_map", layer=11, text=0, tokens=(0, 40))`` draws one; an unknown name or
choice is answered with those there are. Like the pages, they are drawn from saved results alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from result_views.answers import overview_rows
from result_views.figures import analysis_panels as panels
from result_views.figures import memory_figures as memory
from result_views.figures import memory_panels, neuron_panels
from result_views.figures import overview_figures as overview
from result_views.figures.command_panels import FAITHFULNESS_PANELS, command_panels
from result_views.figures.finding_figures import plot_findings
from result_views.figures.pages import PageFigure, styled, text_handles
from result_views.figures.panel_view import View, chosen_key
from suite_plumbing.arguments import validate_choice
from suite_plumbing.result_reading import (
    Section,
    Tensors,
    all_layers,
)

_SIZE = (3.6, 2.7)
_WIDE = (7.2, 3.2)
_SQUARE = (4.6, 4.0)
_TALL = (7.2, 4.6)


def _of_texts(plot: Callable[..., Axes], step: str) -> Callable[..., Axes]:
    """A panel of one step's sections by text."""
    return lambda view, ax: plot(view.texts(step), ax)


def _by_method(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    """A panel of the neurons of one method across layers."""

    def draw(view: View, ax: Axes, method: str = "attention_weighted") -> Axes:
        known = view.results["analysis_metadata"]["neuron_methods"]
        return plot(view.texts("neuron_evolution"), validate_choice("method", method, known), ax)

    return draw


def _attention_map(view: View, ax: Axes, tokens: tuple[int, int] | None = None) -> Axes:
    """One layer's map of one text: the first text and the last layer where none is chosen."""
    texts = view.results["individual_texts"]
    text = chosen_key("text", view.text or 0, texts)
    layers = view.results["analysis_metadata"]["layer_indices"]
    layer = validate_choice("layer", layers[-1] if view.layer is None else view.layer, layers)
    part, name = texts[text], f"{text}.layer_{layer}.attention"
    if name not in view.tensors:
        raise ValueError(f"panel 'attention_map' needs tensor {name!r}, which is not beside it")
    matrix = view.tensors[name].float().numpy()
    title = f"Mean α over heads, {text.replace('_', ' ')}, layer {layer}"
    return panels.plot_attention_map(
        matrix, part["tokens"], ax, title, span=_span(tokens, len(part["tokens"]))
    )


def _span(tokens: tuple[int, int] | None, count: int) -> tuple[int, int]:
    """First token shown and the one after the last; ValueError unless they lie in the text."""
    if tokens is None:
        return 0, count
    first, stop = tokens
    if not 0 <= first < stop <= count:
        raise ValueError(f"tokens is {tokens}; expected (first, stop) within (0, {count})")
    return first, stop


def _changes(view: View, ax: Axes) -> Axes:
    sections = view.texts("recursive_patterns")
    layer = view.layer if view.layer is not None else all_layers(sections)[-1]
    return panels.plot_changes(sections, layer, ax)


def _norms(view: View, ax: Axes) -> Axes:
    return panels.plot_norms(view.texts("ssm_components"), view.texts("layer_activations"), ax)


def _pair_statistic(
    view: View, ax: Axes, stream: str = "mixer", statistic: str = "mean_abs"
) -> Axes:
    validate_choice("stream", stream, _STREAMS)
    validate_choice("statistic", statistic, panels.PAIR_STATISTICS)
    return panels.plot_pair_statistic(view.texts("layer_correlations"), stream, statistic, ax)


def _lagged_correlation(view: View, ax: Axes, stream: str = "residual") -> Axes:
    section = view.across("correlation_patterns")
    validate_choice("stream", stream, _STREAMS)
    return panels.plot_lagged_correlation(section.get(stream, section), ax, stream=stream)


def _autocorrelation(view: View, ax: Axes) -> Axes:
    sections = view.texts("recursive_patterns")
    return panels.plot_autocorrelation(next(iter(sections.values())), ax)


_STREAMS = ("residual", "mixer")

MAIN_PANELS: dict[str, Callable[..., Axes]] = {
    "half_life": _of_texts(panels.plot_half_life, "ssm_components"),
    "survival": _of_texts(panels.plot_survival, "ssm_components"),
    "spectral_radius": _of_texts(panels.plot_spectral_radius, "ssm_components"),
    "delta": _of_texts(panels.plot_delta, "ssm_components"),
    "decay_rate": _of_texts(panels.plot_decay_rate, "ssm_components"),
    "projections": _of_texts(panels.plot_projections, "ssm_components"),
    "skip": _of_texts(panels.plot_skip, "ssm_components"),
    "state_energy": _of_texts(panels.plot_state_energy, "ssm_components"),
    "attention_map": _attention_map,
    "memory_kernel": _of_texts(panels.plot_memory_kernel, "attention_data"),
    "reach": _of_texts(panels.plot_reach, "attention_data"),
    "attention_shares": _of_texts(panels.plot_attention_shares, "attention_data"),
    "entropy_share": _of_texts(panels.plot_entropy_share, "attention_data"),
    "entropy_strength": _of_texts(panels.plot_entropy_strength, "attention_data"),
    "mean_distance": _of_texts(panels.plot_mean_distance, "attention_data"),
    "synthetic_agreement": _of_texts(panels.plot_synthetic_agreement, "attention_data"),
    "neuron_transitions": _of_texts(neuron_panels.plot_neuron_transitions, "neuron_evolution"),
    "neuron_cka": _by_method(neuron_panels.plot_neuron_cka),
    "attention_agreement": _by_method(neuron_panels.plot_attention_agreement),
    "neuron_magnitude": _by_method(neuron_panels.plot_neuron_magnitude),
    "neuron_concentration": _by_method(neuron_panels.plot_neuron_concentration),
    "pair_statistic": _pair_statistic,
    "lagged_correlation": _lagged_correlation,
    "autocorrelation": _autocorrelation,
    "ssm_attention": _of_texts(panels.plot_ssm_attention, "ssm_attention_correlations"),
    "ssm_spread": lambda view, ax: panels.plot_text_spread(
        view.across("ssm_consistency"), ax, "Spread between texts, SSM"
    ),
    "attention_spread": lambda view, ax: panels.plot_text_spread(
        view.across("attention_consistency"), ax, "Spread between texts, attention"
    ),
    "neuron_overlap": lambda view, ax: neuron_panels.plot_neuron_overlap(
        view.across("neuron_consistency"), ax
    ),
    "neuron_rank_agreement": lambda view, ax: neuron_panels.plot_neuron_rank_agreement(
        view.across("neuron_consistency"), ax
    ),
    "change_correlation": _of_texts(panels.plot_change_correlation, "recursive_patterns"),
    "changes": _changes,
    "norms": _norms,
}
"""Panels of the main analysis by name: functions of (view, ax) and their own choices."""


def _overview(plot: Callable[..., Axes], *described: Any) -> Callable[..., Axes]:
    """A panel of the rows of the overview, all layers or the chosen one."""

    def draw(view: View, ax: Axes) -> Axes:
        rows = overview_rows(view.results)
        if view.layer is not None:
            validate_choice("layer", view.layer, [row["layer"] for row in rows])
            rows = [row for row in rows if row["layer"] == view.layer]
        if not described:
            return plot(rows, ax)
        key, title, label, reference = described
        return plot(rows, key, ax, title, label, reference)

    return draw


OVERVIEW_PANELS: dict[str, Callable[..., Axes]] = {
    "kept": _overview(overview.plot_half_life),
    "copying": _overview(overview.plot_tested, "copying", "Copying", "times the lags around", 1.0),
    "reset_cost": _overview(overview.plot_tested, "reset", "State erased", "nats a token", 0.0),
    "gate": _overview(overview.plot_tested, "gate", "Gate at words' beginnings", "SD of ln Δ", 0.0),
}
"""Panels of the overview of all layers, where results hold one."""


def _activation(view: View, ax: Axes, method: str = "attention_weighted") -> Axes:
    known = view.results["analysis_metadata"]["neuron_methods"]
    methods = [validate_choice("method", method, known)]
    return memory_panels.plot_activation(view.memory("neurons"), methods, ax)


def _memory_autocorrelation(view: View, ax: Axes, stream: str = "mixer") -> Axes:
    validate_choice("stream", stream, _STREAMS)
    return memory_panels.plot_autocorrelation(view.memory("recursive_patterns"), stream, ax)


def _memory_changes(view: View, ax: Axes, stream: str = "mixer") -> Axes:
    path = (validate_choice("stream", stream, _STREAMS), "change_correlation")
    title = "Changes of state and activation"
    section = view.memory("recursive_patterns")
    return memory_panels.plot_tests_by_layer(section, path, title, "ρ", ax)


def _pairs(view: View, ax: Axes, stream: str = "mixer", statistic: str = "mean_abs") -> Axes:
    validate_choice("stream", stream, _STREAMS)
    validate_choice("statistic", statistic, panels.PAIR_STATISTICS)
    return memory_panels.plot_pairs(view.memory("cross_layer_correlations"), stream, statistic, ax)


def _delta_test(name: str) -> Callable[..., Axes]:
    path, title, label = memory.DELTA_TESTS[name]

    def draw(view: View, ax: Axes) -> Axes:
        twins = memory.untrained_values(view.results, path)
        section = view.memory("delta_neurons")
        return memory_panels.plot_tests_by_layer(section, path, title, label, ax, twins=twins)

    return draw


def _causal(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    def draw(view: View, ax: Axes, kind: str = "reset") -> Axes:
        return plot(view.causal(), validate_choice("kind", kind, memory_panels.CAUSAL_KINDS), ax)

    return draw


CAUSAL_PANELS: dict[str, Callable[..., Axes]] = {
    "causal_curve": _causal(memory_panels.plot_causal),
    "causal_bins": _causal(memory_panels.plot_causal_bins),
    "causal_map": _causal(memory_panels.plot_causal_map),
    "kernel_agreement": lambda view, ax: memory_panels.plot_kernel_agreement(view.causal(), ax),
}
"""Panels of causal memory, of the memory analysis and of ``intervention_study``."""

MEMORY_PANELS: dict[str, Callable[..., Axes]] = {
    "activation": _activation,
    "how_far_back": lambda view, ax: memory_panels.plot_by_layer(
        view.results["memory_by_layer"], memory.LAGS, "How far back", "tokens", ax, log=True
    ),
    "memory_kernel": lambda view, ax: memory_panels.plot_kernel(view.memory("memory_kernel"), ax),
    "survival": lambda view, ax: memory_panels.plot_survival(view.memory("delta"), ax),
    "norm_growth": lambda view, ax: memory_panels.plot_by_text(
        view.memory("state"), memory.NORM_RATIOS, "Norm of the state along a text", "ratio", ax
    ),
    "rank": lambda view, ax: memory_panels.plot_by_text(
        view.memory("state"), memory.RANK, "Rank of the state", "participation ratio", ax
    ),
    "autocorrelation": _memory_autocorrelation,
    "change_correlation": _memory_changes,
    "pair_statistic": _pairs,
    "delta_activation": _delta_test("delta_activation"),
    "delta_memory": _delta_test("delta_memory"),
    "importance_correlations": lambda view, ax: memory_panels.plot_rank_correlations(
        view.memory("neuron_memory"), ax
    ),
    **CAUSAL_PANELS,
}
"""Panels of the memory analysis by name."""


FINDING_PANELS: dict[str, Callable[..., Axes]] = {
    "claims": lambda view, ax: plot_findings(view.results["findings"], ax)
}
"""Panel of the findings by name."""

_BY_KEY = (
    ("cross_text_analysis", MAIN_PANELS),
    ("memory", MEMORY_PANELS),
    ("reset", CAUSAL_PANELS),
    ("knockout", CAUSAL_PANELS),
)

_SIZES = {"claims": _TALL} | dict.fromkeys(
    ("neuron_transitions", "ssm_attention", "importance_correlations"), _WIDE
)


def panels_of(results: Section) -> dict[str, Callable[..., Axes]]:
    """The panels that results hold the numbers for, by name."""
    found = next((table for key, table in _BY_KEY if key in results), None)
    found = dict(command_panels(results) if found is None else found)
    if "cross_text_analysis" in results and overview_rows(results):
        found |= OVERVIEW_PANELS
    if "attribution_faithfulness" in results.get("cross_text_analysis", {}):
        found |= FAITHFULNESS_PANELS
    return found | (FINDING_PANELS if results.get("findings") else {})


@styled
def draw_panel(
    results: Section,
    name: str,
    tensors: Tensors | None = None,
    *,
    text: int | None = None,
    layer: int | None = None,
    **choices: Any,
) -> Figure:
    """One panel of `panels_of` as a figure of its own, at the size of a column of a page.

    ``text`` and ``layer`` restrict what is drawn; further ``choices`` are the panel's own, such as
    ``tokens`` of a map or ``method``, ``stream``, ``statistic``, ``kind``. Raises ValueError, with
    what is allowed, for an unknown name or choice.
    """
    known = panels_of(results)
    draw = known[validate_choice("panel", name, known)]
    allowed = [key for key in inspect.signature(draw).parameters if key not in ("view", "ax")]
    for key in choices:
        validate_choice(f"choice of panel {name!r}", key, ["text", "layer", *allowed])
    size = _SQUARE if name.endswith("map") else _SIZES.get(name, _SIZE)
    figure = PageFigure(figsize=size)
    figure.set_layout_engine(ConstrainedLayoutEngine())
    draw(View(results, tensors or {}, text, layer), figure.subplots(), **choices)
    if text is None and _shows_texts(figure):
        handles = text_handles(results, start=False)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def _shows_texts(figure: Figure) -> bool:
    """Whether a line of a panel is a text's."""
    labels = {str(line.get_label()) for ax in figure.axes for line in ax.lines}
    return any(label.startswith("text_") for label in labels)
