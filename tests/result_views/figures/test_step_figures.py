"""The picture of a step: each column of numbers over layers, what is undefined in words."""

import numpy as np

from result_views.figures.step_figures import figure_by_layer


def test_each_column_is_a_panel_over_layers():
    rows = [{"layer": layer, "half-life (tokens)": value, "share": None, "token": "a", "x": layer}
            for layer, value in ((0, 8.0), (6, 900.0))]  # fmt: skip
    figure = figure_by_layer("Delta by layer", rows)
    first, second, third = figure.axes[:3]
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[0, 8], [6, 900]])
    assert (first.get_ylabel(), first.get_yscale()) == ("half-life (tokens)", "log")
    assert "undefined" in " ".join(text.get_text() for text in second.texts)
    assert (third.get_ylabel(), third.get_yscale()) == ("x", "linear")
