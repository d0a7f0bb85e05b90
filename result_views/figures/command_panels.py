"""Panels by name of the commands beside the two analyses: functions of (view, ax) and choices."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from result_views.figures import attribution_figures as direct
from result_views.figures import comparison_figures as comparison
from result_views.figures import corpus_figures as corpus
from result_views.figures import faithfulness_figures as faithfulness
from result_views.figures import long_memory_figures as long_text
from result_views.figures import patching_figures as patching
from result_views.figures import steering_figures as steering
from result_views.figures import token_score_figures as token_scores
from result_views.figures.analysis_panels import PAIR_STATISTICS
from result_views.figures.memory_panels import plot_pairs
from result_views.figures.panel_view import View, chosen_key
from result_views.figures.step_figures import tested_pairs
from suite_plumbing.arguments import validate_choice
from suite_plumbing.result_reading import Section


def _of_faithfulness(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    return lambda view, ax: plot(faithfulness.faithfulness_section(view.results), ax)


FAITHFULNESS_PANELS: dict[str, Callable[..., Axes]] = {
    "delta_af": _of_faithfulness(faithfulness.plot_delta_af),
    "gain_over_random": _of_faithfulness(faithfulness.plot_gain_over_random),
    "curves": _of_faithfulness(faithfulness.plot_curves),
    "randomisation": _of_faithfulness(faithfulness.plot_randomisation),
    "effect_agreement": _of_faithfulness(faithfulness.plot_agreement),
    "sufficiency": _of_faithfulness(faithfulness.plot_sufficiency),
}
"""Panels of attribution faithfulness by name."""


def _of_long_text(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    return lambda view, ax: plot(view.results, ax)


LONG_TEXT_PANELS: dict[str, Callable[..., Axes]] = {
    "differences": _of_long_text(long_text.plot_differences),
    "by_context": _of_long_text(long_text.plot_by_context),
    "along": _of_long_text(long_text.plot_along),
    "state_norm": _of_long_text(long_text.plot_state_norm),
}
"""Panels of ``long_memory`` by name."""


def _kernels(view: View, ax: Axes, model: str | None = None) -> Axes:
    names = list(view.results["models"])
    chosen = names[0] if model is None else validate_choice("model", model, names)
    return comparison.plot_kernels(view.results, chosen, ax)


def _by_depth(view: View, ax: Axes, measure: str = "mean_distance") -> Axes:
    known = comparison.MEASURES
    return comparison.plot_by_depth(view.results, validate_choice("measure", measure, known), ax)


def _of_pair(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    def draw(view: View, ax: Axes, pair: int = 0) -> Axes:
        pairs = view.results["pairs"]
        return plot(pairs[validate_choice("pair", pair, range(len(pairs)))], ax)

    return draw


COMPARISON_PANELS: dict[str, Callable[..., Axes]] = {
    "kernels": _kernels,
    "by_depth": _by_depth,
    "map_agreement": _of_pair(comparison.plot_agreement),
    "layer_cka": _of_pair(comparison.plot_cka),
}
"""Panels of ``model_comparison`` by name."""


def _token_scores(view: View, ax: Axes) -> Axes:
    texts = token_scores.scored_texts(view.results)
    name = chosen_key("text", view.text or 0, texts)
    return token_scores.plot_token_scores(texts[name], ax, name.replace("_", " "))


TOKEN_SCORE_PANELS: dict[str, Callable[..., Axes]] = {"token_scores": _token_scores}
"""Panel of ``input_attribution`` by name."""


def _of_logit(plot: Callable[..., Axes], key: str) -> Callable[..., Axes]:
    def draw(view: View, ax: Axes) -> Axes:
        texts = view.results["individual_texts"]
        return plot(texts[chosen_key("text", view.text or 0, texts)][key], ax)

    return draw


DIRECT_ATTRIBUTION_PANELS: dict[str, Callable[..., Axes]] = {
    "logit_by_layer": _of_logit(direct.plot_by_layer, "direct_attribution"),
    "logit_by_source": _of_logit(direct.plot_by_source, "direct_attribution"),
    "lens": _of_logit(direct.plot_lens, "logit_lens"),
}
"""Panels of ``direct_attribution`` by name."""


def _patching(view: View, ax: Axes, site: str | None = None) -> Axes:
    sites = view.results["patching"]["sites"]
    chosen = next(iter(sites)) if site is None else validate_choice("site", site, sites)
    return patching.plot_patching(view.results["patching"], chosen, ax)


def _circuit(view: View, ax: Axes) -> Axes:
    return patching.plot_circuit(view.results["circuit"], ax)


PATCHING_PANELS: dict[str, Callable[..., Axes]] = {"patching_map": _patching}
"""Panels of ``activation_patching`` by name; with a circuit there is CIRCUIT_PANELS too."""

CIRCUIT_PANELS: dict[str, Callable[..., Axes]] = {"circuit": _circuit}


def _cost(view: View, ax: Axes, measure: str = "kl") -> Axes:
    known = ("kl", "perplexity_ratio")
    return steering.plot_cost(view.results, validate_choice("measure", measure, known), ax)


STEERING_PANELS: dict[str, Callable[..., Axes]] = {
    "target": lambda view, ax: steering.plot_target(view.results, ax),
    "cost": _cost,
    "effect_by_cost": lambda view, ax: steering.plot_trade(view.results, ax),
}
"""Panels of ``steering`` by name."""

CORPUS_PANELS: dict[str, Callable[..., Axes]] = {
    "reach": lambda view, ax: corpus.plot_reach(view.results, ax),
    "copying": lambda view, ax: corpus.plot_copying(view.results, ax),
    "state_by_position": lambda view, ax: corpus.plot_state_by_position(view.results, ax),
    "corpus_cka": lambda view, ax: corpus.plot_cka(view.results, ax),
}
"""Panels of ``corpus_analysis`` by name."""


def _pair_statistic(
    view: View, ax: Axes, stream: str = "mixer", statistic: str = "mean_abs"
) -> Axes:
    section = tested_pairs(view.results)
    validate_choice("stream", stream, section)
    validate_choice("statistic", statistic, PAIR_STATISTICS)
    return plot_pairs(section, stream, statistic, ax)


LAYER_CORRELATION_PANELS: dict[str, Callable[..., Axes]] = {"pair_statistic": _pair_statistic}
"""Panel of ``layer_correlation_analyzer`` by name."""


def command_panels(results: Section) -> dict[str, Callable[..., Axes]]:
    """The panels of a command's results by name; none for those of the two analyses."""
    found = next((table for key, table in _BY_KEY if key in results), {})
    return {**found, **(CIRCUIT_PANELS if results.get("circuit") else {})}


_BY_KEY = (
    ("faithfulness", FAITHFULNESS_PANELS),
    ("input_attribution", TOKEN_SCORE_PANELS),
    ("direct_attribution", DIRECT_ATTRIBUTION_PANELS),
    ("layer_correlations", LAYER_CORRELATION_PANELS),
    ("readings", LONG_TEXT_PANELS),
    ("corpus", CORPUS_PANELS),
    ("patching", PATCHING_PANELS),
    ("by_coefficient", STEERING_PANELS),
    ("pairs", COMPARISON_PANELS),
)
