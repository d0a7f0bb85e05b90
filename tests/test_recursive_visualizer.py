"""The six figures of a real run: what is on them, what failed, that they fit, and their files."""

import copy
import json
import xml.etree.ElementTree as ElementTree

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import recursive_visualizer as visualizer
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from recursive_visualizer import CORRECTED_FIGURES, main, write_figures
from suite_plumbing.result_reading import load_results
from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import make_tiny_model
from tests.figure_checks import assert_fits, stretched, words_of

STEPS = ("ssm_components", "attention_data", "neurons", "layer_activations", "layer_correlations",
         "recursive_patterns", "ssm_attention_correlations", "neuron_evolution")  # fmt: skip
CROSS_TEXT_STEPS = ("ssm_consistency", "attention_consistency", "neuron_consistency",
                    "correlation_patterns")  # fmt: skip
ERROR = {"error": {"type": "AnalysisError", "message": "the state is too flat"}}
STRANGE = "Let $x_1$ be <script>alert(1)</script> & \u0645\u0631\u062d\u0628\u0627 \U0001f642 $5"
LONG_WORD = "Donau" * 1000


def analysis_of(tokenizer, texts, layers):
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        make_tiny_model(), tokenizer=tokenizer, max_sequence_length=60
    )
    analyzer.analyze_recursive_ssm_attention_effects(list(texts), layers)
    return analyzer.analysis_


@pytest.fixture(scope="session")
def analysis(tiny_tokenizer):
    """Two texts of 60 tokens, three layers."""
    return analysis_of(tiny_tokenizer, EXAMPLE_TEXTS[:2], [0, 1, 3])


@pytest.fixture
def results(analysis):
    return json.loads(json.dumps(analysis.results))


def drawn(name, results, tensors=None):
    figure = CORRECTED_FIGURES[name]
    return figure(results, tensors) if name == "attention_analysis" else figure(results)


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title() == title)


@pytest.mark.parametrize("name", CORRECTED_FIGURES)
def test_each_figure_fits_its_page_and_says_n(analysis, results, name):
    figure = drawn(name, results, analysis.tensors)
    assert_fits(figure)
    counts = [len(text["tokens"]) for text in results["individual_texts"].values()]
    assert f"n = {sum(counts)} tokens of 2 texts." in words_of(figure)
    assert "not available" not in words_of(figure)
    assert all(ax.get_title() or ax.get_label() == "<colorbar>" for ax in figure.axes)


@pytest.mark.parametrize("name", CORRECTED_FIGURES)
def test_each_figure_of_many_layers_and_texts_fits_its_page(results, name):
    figure = drawn(name, stretched(results, 24, 10))
    assert_fits(figure)
    for ax in figure.axes:
        assert len(ax.get_xticks()) <= 16, ax.get_title()


def test_a_figure_of_400_texts_fits_its_page_and_says_how_many_are_named(results):
    many = stretched(results, 3, 400)
    for step in ("layer_correlations", "recursive_patterns"):
        many["individual_texts"]["text_7"]["analysis"][step] = ERROR
    figure = drawn("neuron_evolution", many)
    assert figure.get_figheight() < 16  # inches; 32 for a legend of all of them
    assert len(figure.legends[0].get_texts()) == 24
    assert "Of the 400 texts the first 24 are named." in words_of(figure)


def test_a_figure_that_fails_costs_itself_alone(results, tmp_path):
    def broken(_):
        raise TypeError("cannot be drawn")

    figures = {"broken": broken, "ssm_analysis": CORRECTED_FIGURES["ssm_analysis"]}
    with pytest.raises(TypeError, match="cannot be drawn"):
        write_figures(results, tmp_path, figures=figures)
    assert [path.name for path in tmp_path.iterdir()] == ["ssm_analysis.png"]
    failures = {}
    assert len(write_figures(results, tmp_path, figures=figures, failures=failures)) == 1
    assert failures == {"broken": {"error": {"type": "TypeError", "message": "cannot be drawn"}}}


def test_more_layers_than_panels_are_thinned_and_it_is_said(results):
    figure = visualizer.figure_state_vs_activation_change(stretched(results, 50, 1), scatters=True)
    assert sum(ax.get_title().startswith("layer ") for ax in figure.axes) == 17
    assert "17 of 50 layers are shown." in words_of(figure)


@pytest.fixture(scope="session")
def short_analysis(tiny_tokenizer):
    """One text of five tokens, two layers."""
    text = tiny_tokenizer.decode(tiny_tokenizer(EXAMPLE_TEXTS[0])["input_ids"][:5])
    found = analysis_of(tiny_tokenizer, [text], [0, 1])
    assert len(found.results["individual_texts"]["text_0"]["tokens"]) == 5
    return found


@pytest.mark.parametrize("name", CORRECTED_FIGURES)
def test_each_figure_of_one_text_of_five_tokens(short_analysis, name):
    figure = drawn(name, short_analysis.results, short_analysis.tensors)
    assert_fits(figure)
    assert "n = 5 tokens of 1 text." in words_of(figure)
    assert not figure.legends


def test_what_a_short_text_leaves_undefined_is_said(short_analysis):
    assert "a claim needs at least 40" in words_of(
        drawn("correlation_analysis", short_analysis.results)
    )
    assert "needs at least two texts" in words_of(
        drawn("consistency_analysis", short_analysis.results)
    )
    # Nothing to write where there is nothing to be consistent with.
    assert "consistency_analysis" not in visualizer.figures_of(short_analysis.results)


def test_the_numbers_are_those_of_the_results(results):
    figure = drawn("ssm_analysis", results)
    text = results["individual_texts"]["text_1"]["analysis"]["ssm_components"]
    medians = [layer["delta"]["median"] for layer in text.values()]
    line = panel(figure, "Step size Δ").lines[1]
    np.testing.assert_array_equal(line.get_xydata(), list(zip([0, 1, 3], medians, strict=True)))

    figure = drawn("correlation_analysis", results)
    pairs = results["individual_texts"]["text_0"]["analysis"]["layer_correlations"]["mixer"]
    (bar,) = panel(figure, "mean |r|, mixers").patches[:1]
    assert isinstance(bar, Rectangle)
    null = next(iter(pairs.values()))["mean_abs"]
    assert bar.get_y() == null["null_low"]
    assert bar.get_y() + bar.get_height() == pytest.approx(null["null_high"], rel=1e-12)


def test_maps_are_those_of_the_tensors(analysis, results):
    figure = drawn("attention_analysis", results, analysis.tensors)
    ax = panel(figure, "Mean α over heads\ntext 0, layer 3")
    expected = analysis.tensors["text_0.layer_3.attention"].numpy()
    lower = np.tril_indices(len(expected))
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array())[lower], expected[lower])
    without = drawn("attention_analysis", results)
    assert not any(ax.images for ax in without.axes)


def test_many_texts_are_named_as_far_as_there_is_room(results):
    figure = drawn("ssm_analysis", stretched(results, 3, 30))
    assert len(figure.legends[0].get_texts()) == 24
    assert "Of the 30 texts the first 24 are named." in words_of(figure)


def test_a_result_loaded_from_json_gives_the_same_figure(analysis, results):
    live, loaded = (
        panel(drawn("neuron_evolution", source), "Neurons of successive layers").lines
        for source in (analysis.results, results)
    )
    for a, b in zip(live, loaded, strict=True):
        np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


def test_a_text_that_failed_is_left_out_and_named(results):
    results["individual_texts"]["text_0"]["analysis"]["ssm_components"] = ERROR
    figure = drawn("ssm_analysis", results)
    assert "Without text 0: AnalysisError: the state is too flat." in words_of(figure)
    first = results["individual_texts"]["text_1"]["analysis"]["ssm_components"]["layer_0"]
    (line,) = panel(figure, "Step size Δ").lines
    assert np.asarray(line.get_ydata())[0] == first["delta"]["median"]


@pytest.mark.parametrize("failure", [ERROR, {"skipped": "needs neurons, which gave no result"}])
def test_figures_of_nothing_but_failures_say_so(results, failure):
    for text in results["individual_texts"].values():
        text["analysis"] = dict.fromkeys(STEPS, failure)
    results["cross_text_analysis"] = dict.fromkeys(CROSS_TEXT_STEPS, failure)
    reason = "too flat" if "error" in failure else "which gave no result"
    for name in CORRECTED_FIGURES:
        assert reason in words_of(drawn(name, results)), name


def test_one_step_that_failed_leaves_the_other_panels_whole(results):
    for text in results["individual_texts"].values():
        text["analysis"]["ssm_attention_correlations"] = ERROR
    figure = drawn("correlation_analysis", results)
    assert "too flat" in words_of(figure)
    assert panel(figure, "largest |r|, mixers").patches
    assert panel(figure, "Autocorrelation, residual stream").images


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_strange_texts_and_tokens_are_drawn_without_a_warning(analysis, results, tmp_path, kind):
    # Its panels are those of the other tests; the maps and the legend hold the texts.
    for text in results["individual_texts"].values():
        text["analysis"]["attention_data"] = ERROR
    for text in results["individual_texts"].values():
        text["text"] = STRANGE
        tokens = [
            "$x_1$",
            "<script>",
            "\u0645\u0631\u062d",
            "\U0001f642",
            "_a",
            "\\frac{",
            "\ufe0f",
            LONG_WORD,
        ]
        text["tokens"] = (tokens * len(text["tokens"]))[: len(text["tokens"])]
    figures = {"attention": visualizer.figure_attention_analysis}
    (path,) = write_figures(
        results, tmp_path, tensors=analysis.tensors, formats=[kind], figures=figures
    )
    if kind == "svg":
        labels = [element.text or "" for element in ElementTree.parse(path).iter()]
        written = [label for label in labels if "Let $x_1$ be <script>" in label]
        assert len(written) == 2  # once a text, in the legend
        assert any(label.endswith("<script>") for label in labels)
        # What the font lacks is named, not shown as a box that could be anything.
        assert any(r"\U0001f642" in label for label in labels)
        assert not any("\U0001f642" in label or "\u25a1" in label for label in labels)
        assert max(map(len, labels)) < 200


KINDS = ("png", "pdf", "svg")
ONE_FIGURE = {"consistency": visualizer.figure_consistency}


@pytest.fixture(scope="session")
def files(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return write_figures(analysis.results, folder, formats=KINDS, figures=ONE_FIGURE)


def test_each_format_holds_text_that_can_be_edited(files):
    png, pdf, svg = files
    assert [path.name for path in files] == [f"consistency.{kind}" for kind in KINDS]
    assert png.read_bytes().startswith(b"\x89PNG")
    width = int.from_bytes(png.read_bytes()[16:20], "big")  # of the header chunk
    assert width == 7.2 * 200
    assert b"/FontFile2" in pdf.read_bytes()  # an embedded TrueType font
    assert b"/Type3" not in pdf.read_bytes()
    assert ">Spread between texts, SSM</text>" in svg.read_text()


def test_files_are_the_same_whatever_the_users_style_which_stays(files, results, tmp_path):
    given = copy.deepcopy(results)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "savefig.dpi": 30}):
        settings = dict(matplotlib.rcParams)
        again = write_figures(results, tmp_path, formats=KINDS, figures=ONE_FIGURE)
        assert dict(matplotlib.rcParams) == settings
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]
    assert results == given


def test_figures_of_ones_own_are_given_tensors_if_they_take_them(results, tmp_path):
    seen = []

    def plain(given):
        seen.append((given,))
        return Figure()

    def with_tensors(given, tensors):
        seen.append((given, tensors))
        return Figure()

    tensors = {"x": torch.zeros(1)}
    figures = {"a": plain, "b": with_tensors}
    paths = write_figures(results, tmp_path, tensors=tensors, figures=figures)
    assert [path.name for path in paths] == ["a.png", "b.png"]
    assert seen == [(results,), (results, tensors)]


def test_bad_formats_and_folders_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match="format is 'gif'"):
        write_figures(results, tmp_path, formats=["gif"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output folder .* cannot be written"):
        write_figures(results, tmp_path / "file")


@pytest.fixture
def saved(analysis, tmp_path):
    path = tmp_path / "analysis_results.json"
    path.write_text(json.dumps(analysis.results))
    maps = {name: x.contiguous() for name, x in analysis.tensors.items() if "attention" in name}
    safetensors.torch.save_file(maps, path.with_suffix(".safetensors"))
    return path


def test_file_names_of_the_figures():
    assert list(CORRECTED_FIGURES) == [
        "ssm_analysis", "attention_analysis", "neuron_evolution", "correlation_analysis",
        "consistency_analysis", "recursive_state_vs_activation",
    ]  # fmt: skip


def test_command_draws_the_default_results(saved, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "corrected_mamba_analysis"
    folder.mkdir()
    for path in (saved, saved.with_suffix(".safetensors")):
        path.rename(folder / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(visualizer, "CORRECTED_FIGURES", ONE_FIGURE)
    monkeypatch.setattr(visualizer, "OVERVIEW_FIGURES", {})
    monkeypatch.setattr(visualizer, "finding_figures", lambda results: {})
    assert main(["--formats", "svg,png"]) == 0
    written = tmp_path / "recursive_analysis_plots"
    assert {path.name for path in written.iterdir()} == {"consistency.svg", "consistency.png"}
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_tensors_are_read_beside_the_results(saved, analysis):
    results, tensors = load_results(saved)
    assert results == analysis.results
    name = "text_1.layer_0.attention"
    assert torch.equal(tensors[name], analysis.tensors[name])
    assert len(tensors) == len(list(tensors))
    assert "text_9" not in tensors
    saved.with_suffix(".safetensors").unlink()
    assert load_results(saved)[1] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run the main analysis first"),
        ("{ not json", "is not strict JSON"),
        ('{"schema_version": "9.0"}', "has schema_version '9.0'"),
        ('{"a": 1}', "has schema_version None"),
        ("[1]", "has schema_version None"),
    ],
)
def test_command_refuses_files_that_are_no_results(tmp_path, capsys, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["individual_texts", "analysis_metadata"])
def test_command_refuses_results_that_were_cut(results, tmp_path, capsys, damage):
    del results[damage]
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(results))
    assert main([str(path), "--output-dir", str(tmp_path / "figures")]) == 2
    said = capsys.readouterr().err
    assert f"cut.json' lacks what is drawn from it (KeyError: '{damage}')" in said
    assert "run the analysis again" in said


def test_command_refuses_broken_tensors(saved, tmp_path, capsys):
    saved.with_suffix(".safetensors").write_bytes(b"broken")
    assert main([str(saved), "--output-dir", str(tmp_path / "out")]) == 2
    assert "tensors file" in capsys.readouterr().err


def opened_and_drawn(path):
    """What is said of a results file while all that it holds is shown; nothing if it can be."""
    try:
        opened = visualizer.Results.open(path)
        for name in CORRECTED_FIGURES:
            plt.close(opened.figure(name))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("part", ["individual_texts", "self_check", "cross_text_analysis"])
@pytest.mark.parametrize(
    "damage", [None, 5, [], "x", {"text_0": None}, {"text_0": {"analysis": 5}}]
)
def test_a_damaged_file_is_named_on_opening_or_drawing(results, tmp_path, part, damage):
    path = tmp_path / "analysis_results.json"
    path.write_text(json.dumps({**results, part: damage}))
    said = opened_and_drawn(path)
    assert "\n" not in said
    assert "analysis_results.json" in said or not said
    if part == "individual_texts":
        assert "was damaged, or edited by hand" in said
