"""The figures of the memory analysis: of a run, of many layers, and of steps that all failed."""

import json

import numpy as np
import pytest

from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from recursive_visualizer import figures_of, write_figures
from result_views.figures.memory_figures import MEMORY_FIGURES
from result_views.figures.memory_panels import plot_by_text
from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import make_tiny_model
from tests.figure_checks import assert_fits, stretched, words_of

FAILED = {
    "analysis_metadata": {"layer_indices": [0], "neuron_methods": ["rollout"]},
    "individual_texts": {"text_0": {"text": "a b", "tokens": ["a", "b"]}},
    "memory_by_layer": [],
    "memory": {"state": {"error": {"type": "AnalysisError", "message": "too flat"}}},
}


def test_six_figures_with_titles_and_the_origin_of_the_data():
    assert len(MEMORY_FIGURES) == 6
    for draw in MEMORY_FIGURES.values():
        figure = draw(FAILED)
        assert figure.get_suptitle()
        caption = figure.texts[-1].get_text().replace("\n", " ")
        assert "n\u00a0=\u00a02 tokens of 1 text" in caption


def test_steps_without_results_are_named_in_their_panels():
    figure = MEMORY_FIGURES["memory_effects"](FAILED)
    said = " ".join(text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts)
    assert "too flat" in said
    assert "memory_kernel is not in these results" in said


def test_files_are_written_by_name(tmp_path):
    names = {"causal_memory": MEMORY_FIGURES["causal_memory"]}
    (path,) = write_figures(FAILED, tmp_path, figures=names)
    assert path.name == "causal_memory.png"


@pytest.fixture(scope="module")
def results(tiny_tokenizer):
    """Two texts of 50 tokens, two layers."""
    analyzer = MemoryRecursionNeuronAnalyzer(
        make_tiny_model(), tokenizer=tiny_tokenizer, max_sequence_length=50, num_positions=2,
        num_ablations=3,
    )  # fmt: skip
    found = analyzer.analyze_memory_recursion_effects(list(EXAMPLE_TEXTS[:2]), [0, 3])
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("name", [*MEMORY_FIGURES, "findings"])
@pytest.mark.parametrize("num_layers", [2, 24])
def test_each_figure_fits_its_page_at_2_and_at_24_layers(results, name, num_layers):
    given = results if num_layers == 2 else stretched(results, num_layers, 2)
    figure = figures_of(given)[name](given)
    assert_fits(figure)
    assert "n = 100 tokens of 2 texts." in words_of(figure)
    for ax in figure.axes:
        assert len(ax.get_xticks()) <= 16, ax.get_title()


def test_the_memory_page_says_where_the_texts_end_a_kernel(results):
    def words(*limited):
        rows = [{**row, "kernel_limited_by_text": row["layer"] in limited}
                for row in results["memory_by_layer"]]  # fmt: skip
        return words_of(MEMORY_FIGURES["memory_effects"]({**results, "memory_by_layer": rows}))

    assert "longer texts would give more in layer 3." in words(3)
    assert "longer texts would give more in every layer." in words(0, 3)
    assert "longer texts" not in words()


def test_a_text_that_lacks_a_value_takes_none_of_the_mean_away(results):
    state = results["memory"]["state"]
    lacking = {
        layer: {**texts, "text_1": {**texts["text_1"], "last_over_first": None}}
        for layer, texts in state.items()
    }
    ax = plot_by_text(lacking, {"last_over_first": "ratio"}, "", "")
    expected = [texts["text_0"]["last_over_first"] for texts in state.values()]
    assert np.asarray(ax.lines[-1].get_ydata()) == pytest.approx(expected)


def test_causal_memory_of_one_kind_alone_is_drawn_and_the_other_named(results):
    alone = {"reset": results["memory"]["causal_memory"]["reset"]}
    (draw,) = figures_of(alone).values()
    figure = draw(alone)
    assert "knockout was not measured" in words_of(figure)
    kl = [bin["kl"] for bin in alone["reset"]["together"]["bins"]]
    assert any(
        np.asarray(line.get_ydata()).tolist() == kl for ax in figure.axes for line in ax.lines
    )


def test_a_kind_that_was_not_measured_has_no_column(results):
    knockout = results["memory"]["causal_memory"]["knockout"]
    alone = {name: part for name, part in knockout.items() if name != "random_positions"}
    figure = MEMORY_FIGURES["causal_memory"]({"knockout": alone})
    assert_fits(figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [
        "One source hidden", "One source hidden, all layers together",
        "Causal memory and memory kernel",
    ]  # fmt: skip
    assert "random" not in words_of(figure)
    assert "reset was not measured." in words_of(figure)


def test_pairs_of_layers_stand_beside_the_sum_of_both_alone(results):
    causal = results["memory"]["causal_memory"]
    pair = {"kind": "reset", "layer_a": 0, "layer_b": 3, "kl_a": 0.1, "kl_b": 0.2,
            "kl_together": 0.7}  # fmt: skip
    given = {"reset": causal["reset"], "pairs": [pair, {**pair, "kl_together": 0.0}]}
    figure = MEMORY_FIGURES["causal_memory"](given)
    assert_fits(figure)
    (ax,) = [ax for ax in figure.axes if "two layers at once" in ax.get_title()]
    lines = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in ax.lines}
    assert lines == {"sum of both alone": [pytest.approx(0.3)], "both at once": [0.7]}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0, 3"]
