"""The figure of the overview: what is on the axes, filled or hollow, and what is missing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recursive_visualizer import figures_of
from result_views.figures import overview_figures as figures
from tests.figure_checks import assert_fits, words_of
from tests.overview_cases import layer_row, section, shift_test, untested

ERROR = {"error": {"type": "AnalysisError", "message": "it overflows"}}

ROWS = [
    layer_row(0),
    layer_row(1, 900.0, copying=shift_test(3.5, 0.01, (0.8, 1.2)), limited_by_text=True),
    layer_row(2, reset=untested("not erased")),
]  # fmt: skip


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def test_half_lives_and_lags_stand_at_their_layers(ax):
    figures.plot_half_life(ROWS, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 8], [1, 900], [2, 8]])
    lags = ax.lines[1:4]
    assert [line.get_markerfacecolor() for line in lags] == ["0.3", "white", "0.3"]
    assert ax.get_yscale() == "log"


def test_a_value_outside_its_null_is_filled(ax):
    figures.plot_tested(ROWS, "copying", ax, reference=1.0)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in points] == [1.1, 3.5, 1.1]
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False, True]
    bars = [(bar.get_y(), bar.get_height()) for bar in ax.patches]
    np.testing.assert_allclose(bars, [(0.8, 0.4)] * 3)


def test_a_value_is_filled_where_an_answer_may_rest_on_it(ax):
    """By its p over all layers and questions, not by where its own layer's null ends."""
    tests = [shift_test(3.454, 0.126, (-0.019, 2.608)), shift_test(0.5, 0.01, (-0.1, 0.1))]
    rows = section(*(layer_row(i, reset=test) for i, test in enumerate(tests)))["layers"]
    figures.plot_tested(rows, "reset", ax)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False]


def test_a_layer_that_was_not_tested_is_not_drawn(ax):
    figures.plot_tested(ROWS, "reset", ax)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [0, 1]


def test_where_no_layer_was_tested_the_reason_is_written(ax):
    figures.plot_tested([layer_row(0, reset=untested("a short text"))], "reset", ax)
    assert "a short text" in ax.texts[0].get_text()


def test_the_page_fits_and_says_the_answers():
    answer = {"sentence": "Layer 1 copies what followed a token: 3.5 times.", "said": True, "n": 9,
              "unit": "tokens", "interval": None,
              "path": "overview.layers[].copying"}  # fmt: skip
    results = {"overview": {**section(*ROWS), "answers": [answer]}, "individual_texts": {}}
    figure = figures.figure_overview(results)
    assert_fits(figure)
    assert "Layer 1 copies what followed a token: 3.5 times." in words_of(figure)
    assert figure.axes[1].get_title() == "Layer 1 copies what followed a token"


def test_results_without_an_overview_have_no_such_figure():
    assert "overview" not in figures_of({"cross_text_analysis": {}, "overview": ERROR})
    assert "overview" in figures_of({"cross_text_analysis": {}, "overview": section(*ROWS)})
