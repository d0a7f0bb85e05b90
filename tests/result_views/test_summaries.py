"""Results as a notebook and a terminal show them: from the live run and from its files alike."""

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from recursive_visualizer import Results
from result_views.summaries import check_lines, finding_frame, layer_rows, run_summary, text_table
from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import make_tiny_model
from token_statistics.findings import ABOVE_CHANCE, Finding

ERROR = {"error": {"type": "AnalysisError", "message": "the state is <b>flat</b> for $5"}}
STRANGE = "Let $x_1$ be <script>alert(1)</script>"


@pytest.fixture(scope="session")
def runs(tiny_tokenizer, tmp_path_factory):
    """Each analysis once: its results as returned, and as opened from its file."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"tokenizer": tiny_tokenizer, "max_sequence_length": 48}
    main = CorrectedRecursiveSSMAttentionNeuronAnalyzer(make_tiny_model(), **options)
    found = main.analyze_recursive_ssm_attention_effects(list(EXAMPLE_TEXTS[:2]), [0, 3])
    main.save_analysis_results(folder / "main.json")
    memory = MemoryRecursionNeuronAnalyzer(
        make_tiny_model(), **options, num_positions=2, num_ablations=3
    )
    kept = memory.analyze_memory_recursion_effects(list(EXAMPLE_TEXTS[:2]), [0, 3])
    path = memory.save_analysis_results(folder)
    return {
        "main": (found, Results.open(folder / "main.json")),
        "memory": (kept, Results.open(path)),
    }


def data_of(figure: Figure) -> list[np.ndarray]:
    """Every number that is drawn: lines, images, bars, bands and points."""
    found = []
    for ax in figure.axes:
        found += [np.asarray(line.get_xydata(), float) for line in ax.lines]
        found += [
            np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan) for image in ax.images
        ]
        found += [
            np.array([p.get_bbox().bounds for p in ax.patches if isinstance(p, Rectangle)], float)
        ]
        found += [path.vertices for part in ax.collections for path in part.get_paths()]
        found += [np.ma.filled(part.get_offsets(), np.nan) for part in ax.collections]
    return found


@pytest.mark.parametrize("name", ["main", "memory"])
def test_figures_of_one_run_are_the_same_from_the_live_object_and_from_the_files(runs, name):
    live, opened = runs[name]
    assert live.figure_names == opened.figure_names
    for figure in live.figure_names:
        ours, theirs = (data_of(one.figure(figure)) for one in (live, opened))
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=figure)


@pytest.mark.parametrize("name", ["main", "memory"])
def test_a_notebook_shows_the_same_tables_of_both(runs, name):
    live, opened = runs[name]
    assert live == opened
    assert live._repr_html_() == opened._repr_html_()
    assert live.to_dataframe().equals(opened.to_dataframe())
    assert "Largest replay error" in live._repr_html_()
    assert all(f"<code>{figure}</code>" in live._repr_html_() for figure in live.figure_names)


def test_printed_results_are_a_page_and_not_megabytes(runs):
    for live, _ in runs.values():
        assert len(repr(live).splitlines()) < 60
        assert "Largest replay error" in repr(live)
        assert live.figure_names[0] in repr(live)


def test_results_are_the_dict_that_json_holds(runs):
    live, opened = runs["main"]
    assert json.loads(json.dumps(live)) == opened
    assert live.tensors["text_0.layer_3.delta"].shape == (48, 64)
    assert set(opened.tensors) == set(live.tensors)


def test_table_of_the_main_analysis_has_a_row_a_text_and_layer(runs):
    frame = runs["main"][0].to_dataframe()
    assert frame[["text", "layer"]].to_numpy().tolist() == [
        ["text_0", 0], ["text_0", 3], ["text_1", 0], ["text_1", 3]
    ]  # fmt: skip
    layer = runs["main"][0]["individual_texts"]["text_1"]["analysis"]["ssm_components"]["layer_3"]
    assert frame["median_half_life"].iloc[3] == layer["dynamics"]["half_life"]["median"]
    assert not frame["attention_mean_distance"].isna().any()


def test_table_of_the_memory_analysis_is_its_own(runs):
    live = runs["memory"][0]
    assert live.to_dataframe()["layer"].tolist() == [0, 3]
    assert live.to_dataframe()["mean_delta"].tolist() == [
        row["mean_delta"] for row in live["memory_by_layer"]
    ]


def test_a_step_that_failed_leaves_empty_cells_and_is_named_as_it_is(runs):
    results = json.loads(json.dumps(runs["main"][0]))
    results["individual_texts"]["text_0"]["analysis"]["attention_data"] = ERROR
    results["self_check"]["without_result"] = {"text_0": {"attention_data": ERROR}}
    rows = layer_rows(results)
    assert rows[0]["attention_mean_distance"] is None
    assert rows[2]["attention_mean_distance"] is not None
    shown = Results(results)._repr_html_()
    assert "text_0.attention_data: AnalysisError: the state is &lt;b&gt;flat&lt;/b&gt;" in shown
    assert "<b>flat" not in shown
    # Both classes keep a notebook from reading $ as mathematics.
    assert shown.startswith('<div class="tex2jax_ignore mathjax_ignore">')
    assert "Without result: text_0.attention_data: AnalysisError" in run_summary(results, [])


def test_a_step_that_failed_in_the_memory_analysis_is_named(runs):
    results = json.loads(json.dumps(runs["memory"][0]))
    results["self_check"]["without_result"] = {
        "neurons": ERROR,
        "delta": {"skipped": "needs state"},
    }
    summary = run_summary(results, [])
    assert "Without result: neurons: AnalysisError: the state is" in summary
    assert "Without result: delta: skipped: needs state" in summary


def test_the_end_of_a_run_is_claims_by_verdict_and_the_files(runs):
    live = runs["memory"][0]
    lines = run_summary(live, ["Report: r.md"]).splitlines()
    assert lines[0].startswith("2 text(s), 96 tokens, layers 0, 3; ")
    timed = " ".join(lines[:2])
    assert re.search(r"; \d+\.\d s for the analysis, without loading the model, figures", timed)
    beside = {**live, "untrained_twins": {"fresh weights": {"seeds": [1000]}}}
    assert " s for the analysis and its untrained twins, without" in check_lines(beside)[0]
    for row in live["findings"]:
        # Claims are cut behind a word.
        cut = [re.split("…|  ", line[2:])[0] if line[:2] == "  " else "" for line in lines]
        (at,) = (i for i, words in enumerate(cut) if words and row["claim"].startswith(words))
        heading = next(line for line in reversed(lines[:at]) if not line.startswith("  "))
        assert (
            heading.startswith(f"{row['verdict']}: ")
            or row["verdict"] in lines[lines.index(heading) - 1]
        )
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "Report: r.md"


def test_findings_stand_in_a_table_with_what_they_are_compared_with():
    finding = Finding(
        STRANGE, "share", 0.75, None, (0.0, 0.25), 4, "layers", ABOVE_CHANCE, None, "x"
    )
    open_ = Finding(
        "Other", "rho", None, None, None, 0, "texts", "too little data", "no texts", "x"
    )
    results = {"findings": [finding.to_dict(), open_.to_dict()]}
    rows = finding_frame(results).to_dict(orient="records")
    assert rows[0]["value"] == "0.75"
    assert rows[0]["compared with"] == "null 0 to 0.25; n = 4 layers"
    assert rows[1]["compared with"] == "no texts"
    assert finding_frame({}).empty
    lines = text_table(finding_frame(results), most=12)
    assert "  Let $x_1$ b…  " in lines[1]
    assert lines[1].index("0.75") == lines[0].index("value")


def test_an_unknown_figure_names_the_known_ones(runs):
    with pytest.raises(ValueError, match=r"figure is 'overvew'; .* the nearest are overview,"):
        runs["main"][0].figure("overvew")
    with pytest.raises(ValueError, match="results hold the keys"):
        Results({"x": 1}).figure("ssm_analysis")
