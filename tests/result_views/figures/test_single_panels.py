"""Single panels by name: of a layer, a text, a stretch of tokens; wrong choices are answered."""

import inspect
import json

import numpy as np
import pytest

from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from recursive_visualizer import Results
from result_views.figures import command_panels, single_panels
from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import make_tiny_model
from tests.figure_checks import assert_fits, words_of


@pytest.fixture(scope="module")
def main(tiny_tokenizer):
    """Two texts of 50 tokens, two layers."""
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        make_tiny_model(), tokenizer=tiny_tokenizer, max_sequence_length=50
    )
    found = analyzer.analyze_recursive_ssm_attention_effects(list(EXAMPLE_TEXTS[:2]), [0, 3])
    return Results(json.loads(json.dumps(found)), found.tensors)


@pytest.fixture(scope="module")
def memory(tiny_tokenizer):
    analyzer = MemoryRecursionNeuronAnalyzer(
        make_tiny_model(), tokenizer=tiny_tokenizer, max_sequence_length=50, num_positions=2,
        num_ablations=3,
    )  # fmt: skip
    found = analyzer.analyze_memory_recursion_effects(list(EXAMPLE_TEXTS[:2]), [0, 3])
    return Results(json.loads(json.dumps(found)))


@pytest.mark.parametrize(
    "name", [*single_panels.MAIN_PANELS, *single_panels.OVERVIEW_PANELS, "claims"]
)
def test_each_panel_of_the_main_analysis_is_drawn_alone_and_fits(main, name):
    figure = main.figure(name)
    assert_fits(figure)
    assert figure.axes[0].get_title()


@pytest.mark.parametrize("name", [*single_panels.MEMORY_PANELS, "claims"])
def test_each_panel_of_the_memory_analysis_is_drawn_alone_and_fits(memory, name):
    figure = memory.figure(name)
    assert_fits(figure)
    assert "is not in these results" not in words_of(figure)


def test_a_map_of_chosen_tokens_is_that_part_of_the_tensor(main):
    ax = main.figure("attention_map", layer=3, text=1, tokens=(10, 30)).axes[0]
    assert ax.get_title() == "Mean α over heads, text 1, layer 3"
    expected = main.tensors["text_1.layer_3.attention"].numpy()[10:30, 10:30]
    lower = np.tril_indices(20)
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array())[lower], expected[lower])
    assert [label.get_text().split()[0] for label in ax.get_yticklabels()][:2] == ["10", "12"]


def test_a_chosen_layer_and_text_leave_one_line(main):
    (line,) = main.figure("synthetic_agreement", text=1, layer=3).axes[0].lines[:-1]
    section = main["individual_texts"]["text_1"]["analysis"]["attention_data"]["layer_3"]
    np.testing.assert_array_equal(line.get_xydata(), [[3, section["agreement_with_synthetic"][0]]])


def test_texts_are_named_where_they_are_drawn(main):
    (legend,) = main.figure("change_correlation").legends
    assert [text.get_text() for text in legend.get_texts()] == ["text 0", "text 1"]
    assert not main.figure("change_correlation", text=0).legends
    assert not main.figure("memory_kernel").legends


def test_a_chosen_kind_and_layer_of_causal_memory(memory):
    ax = memory.figure("causal_curve", kind="knockout", layer=3).axes[0]
    assert ax.get_title() == "One source hidden"
    curves = memory["memory"]["causal_memory"]["knockout"]
    drawn = np.asarray(ax.lines[0].get_ydata())
    known = np.array([x or np.nan for x in curves["layers"]["layer_3"]["mean_kl"]])
    np.testing.assert_array_equal(drawn, known)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("attention_map", {"layer": 11}, "layer is 11; it must be one of 0, 3"),
        ("attention_map", {"text": 9}, "text is 9; it must be one of 0, 1"),
        ("attention_map", {"tokens": (40, 60)}, r"tokens is \(40, 60\); expected"),
        ("attention_map", {"colour": 1}, "'colour'; it must be one of text, layer, tokens"),
        ("memory_kernel", {"layer": 1}, "layer is 1; it must be one of 0, 3"),
        ("neuron_cka", {"method": "mean"}, "method is 'mean'"),
        ("pair_statistic", {"stream": "both"}, "stream is 'both'"),
        ("ssm_analysis", {"layer": 0}, "figure 'ssm_analysis' takes no choices"),
        ("heads", {}, r"figure is 'heads'; it must be one of \d+ names, of which the nearest"),
    ],
)
def test_wrong_names_and_choices_are_answered(main, name, choices, message):
    with pytest.raises(ValueError, match=message):
        main.figure(name, **choices)


def test_a_map_without_its_tensor_says_which(main):
    with pytest.raises(ValueError, match=r"needs tensor 'text_0\.layer_3\.attention'"):
        Results(dict(main)).figure("attention_map")


def test_panels_and_figures_have_names_apart(main, memory):
    for results in (main, memory):
        assert not set(results.figure_names) & set(results.panel_names)
    assert "attention_map" in main.panel_names
    assert not set(command_panels.LONG_TEXT_PANELS) & {"long_memory"}


def test_every_function_of_a_panel_has_a_name():
    tables = (single_panels.MAIN_PANELS, single_panels.MEMORY_PANELS)
    for module in (single_panels.panels, single_panels.neuron_panels):
        for name, draw in inspect.getmembers(module, inspect.isfunction):
            if draw.__module__ == module.__name__ and name.startswith("plot_text_spread"):
                continue  # two panels of its own
            if draw.__module__ == module.__name__ and name.startswith("plot_"):
                known = {key.removeprefix("neuron_") for key in {**tables[0], **tables[1]}}
                assert name.removeprefix("plot_").removeprefix("neuron_") in known, name
