"""The figures of the memory analysis, from results whose steps all failed and by their names."""

from memory_figures import MEMORY_FIGURES
from recursive_visualizer import write_figures

FAILED = {
    "analysis_metadata": {"layer_indices": [0], "neuron_methods": ["rollout"]},
    "individual_texts": {"text_0": {"text": "a b", "tokens": ["a", "b"]}},
    "memory_by_layer": [],
    "memory": {"delta": {"error": {"type": "AnalysisError", "message": "too flat"}}},
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
