"""What stands on the axes of the figure of a comparison: its numbers, nulls, and reasons."""

import numpy as np
import pytest
from comparison_results import comparison
from matplotlib.figure import Figure

from recursive_visualizer import write_figures
from result_views.figures import comparison_figures as figures


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def said(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def test_kernels_of_every_site_beside_even_attention(ax):
    figures.plot_kernels(comparison(), "a", ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.7, 0.3])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.6, 0.4])
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [0.55, 0.45])
    assert ax.lines[2].get_color() == "black"
    assert (ax.get_title(), ax.get_xlabel(), ax.get_yscale()) == ("a", "lag (tokens)", "log")


def test_a_share_of_zero_has_no_place_on_a_logarithmic_axis(ax):
    figures.plot_kernels(comparison(), "b", ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, np.nan])
    assert ax.lines[0].get_linestyle() == "--"


def test_no_attention_at_all_is_said(ax):
    results = comparison()
    results["attention"]["b"]["layer_0.softmax"]["kernel"] = [None, None]
    figures.plot_kernels(results, "b", ax)
    assert "no layer attends" in said(ax)


def test_measures_by_depth_with_spread_and_what_even_attention_has(ax):
    figures.plot_by_depth(comparison(), "mean_distance", ax)
    mamba, neox = (container.lines[0] for container in ax.containers)
    np.testing.assert_allclose(mamba.get_xydata(), [[0, 3.1], [1, 3.2]])
    np.testing.assert_allclose(neox.get_xydata(), [[0, 3.3]])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a, implicit", "b, softmax"]
    (bars,) = ax.containers[1].lines[2]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [2.8, 3.8])
    assert ax.lines[-1].get_ydata()[0] == 0.25
    assert ax.get_ylabel() == "tokens"


def test_pairs_are_cells_and_those_within_the_null_are_crossed(ax):
    figures.plot_agreement(comparison()["pairs"][0], ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.2], [0.5]])
    np.testing.assert_array_equal(ax.lines[-1].get_xydata(), [[0, 0]])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0i", "1i"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer of b", "layer of a")


def test_cka_of_every_two_layers(ax):
    figures.plot_cka(comparison()["pairs"][0], ax)
    shown = ax.images[0].get_array()
    assert (shown[0, 1], shown.mask[1, 1]) == (0.8, True)
    np.testing.assert_array_equal(ax.lines[-1].get_xydata(), [[0, 1]])


def test_pairs_without_a_null_are_asked_and_not_left_as_if_above_it(ax):
    pair = comparison()["pairs"][0]
    pair["agreement"]["windowed"] |= {"null_high": [[None], [None]]}
    figures.plot_agreement(pair, ax)
    (asked,) = ax.lines
    assert (asked.get_marker(), len(asked.get_xdata())) == ("$?$", 2)


def test_a_pair_without_values_says_why(ax):
    pair = comparison()["pairs"][0]
    pair["cka"] |= {"value": [[None, None], [None, None]], "reason": "too few tokens"}
    figures.plot_cka(pair, ax)
    assert "too few tokens" in said(ax)


def test_one_figure_with_title_caption_and_all_panels(tmp_path):
    results = comparison()
    figure = figures.figure_comparison(results)
    assert figure.get_suptitle() == (
        "Mean distance of attention over its layers, tokens: a 3.1 to 3.2; b 3.3"
    )
    caption = figure.texts[-1].get_text().replace("\n", " ")
    assert "Model a and b; n\u00a0=\u00a050 tokens of 2 texts." in caption
    panels = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert panels == ["a", "b", "Entropy", "Attention on the first token", "Mean distance",
                      "Agreement of attention", "CKA of layers"]  # fmt: skip
    (path,) = write_figures(results, tmp_path, figures=figures.COMPARISON_FIGURES)
    assert path.name == "model_comparison.png"
