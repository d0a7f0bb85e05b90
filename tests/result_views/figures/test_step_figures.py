"""The pictures of steps: columns over layers, pairs of layers, what is undefined in words."""

import numpy as np

from recursive_visualizer import figures_of
from result_views.figures.step_figures import figure_by_layer, figure_layer_correlations
from tests.figure_checks import assert_fits, words_of


def test_each_column_is_a_panel_over_layers():
    rows = [{"layer": layer, "half-life (tokens)": value, "share": None, "token": "a", "x": layer}
            for layer, value in ((0, 8.0), (6, 900.0))]  # fmt: skip
    figure = figure_by_layer("Delta by layer", rows)
    first, second, third = figure.axes[:3]
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[0, 8], [6, 900]])
    assert (first.get_ylabel(), first.get_yscale()) == ("half-life (tokens)", "log")
    assert "undefined" in " ".join(text.get_text() for text in second.texts)
    assert (third.get_ylabel(), third.get_yscale()) == ("x", "linear")


def test_the_caption_says_what_the_columns_are():
    rows = [{"layer": 0, "x": 1.0}]
    assert "A point a layer, mean over texts. Of x." in words_of(
        figure_by_layer("X", rows, "Of x.")
    )


def pair(value, layers=(0, 3)):
    test = {"value": value, "null_low": 0.0, "null_high": 0.1}
    return {"layers": list(layers), "mean_abs": test, "max_abs": test, "cka": test, "reason": None}


def test_pairs_of_layers_stand_beside_their_null_by_stream():
    results = {"layer_correlations": {
        "residual": {"layer_0_to_3": pair(0.3)},
        "mixer": {"layer_0_to_3": pair(0.05), "layer_3_to_6": pair(0.2, (3, 6))},
    }}  # fmt: skip
    (draw,) = figures_of(results).values()
    figure = draw(results)
    assert_fits(figure)
    assert figure.get_suptitle() == (
        "Mixers are correlated above their null in 1 of 2 pairs of successive layers"
    )
    inside, outside = [line for line in figure.axes[0].lines if line.get_marker() == "o"][::-1]
    np.testing.assert_array_equal(inside.get_xydata(), [[0, 0.05]])
    np.testing.assert_array_equal(outside.get_xydata(), [[1, 0.2]])


def test_one_stream_or_none_is_said():
    alone = {"layer_correlations": {"residual": {"layer_0_to_3": pair(0.3)}}}
    figure = figure_layer_correlations(alone)
    assert figure.get_suptitle().startswith("Residual streams are correlated above their null")
    assert len(figure.axes) == 3
    none = figure_layer_correlations({"layer_correlations": {}})
    assert "fewer than two layers" in words_of(none)
