"""What stands on the axes of the memory panels: the numbers of the results and their nulls."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from result_views.figures import memory_panels as panels

ERROR = {"error": {"type": "AnalysisError", "message": "too flat"}}


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def said(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def null_test(value):
    return {"value": value, "null_low": -0.5, "null_high": 0.5, "reason": "too few"}


def test_columns_by_layer(ax):
    rows = [{"layer": 0, "a": 1.0, "b": None}, {"layer": 4, "a": 2.0, "b": 3.0}]
    assert panels.plot_by_layer(rows, {"a": "A", "b": "B"}, "t", "tokens", ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 1], [4, 2]])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [np.nan, 3])
    assert ax.get_ylabel() == "tokens"


def test_a_test_by_layer_is_hollow_within_its_null(ax):
    section = {"layer_0": {"x": null_test(0.9)}, "layer_2": {"x": null_test(0.1)}}
    panels.plot_tests_by_layer(section, ("x",), "t", "ρ", ax)
    points = ax.collections[-1]
    np.testing.assert_array_equal(points.get_offsets(), [[0, 0.9], [2, 0.1]])
    filled = points.get_facecolors()[:, :3].tolist()
    assert filled[1] == [1, 1, 1]
    assert filled[0] != [1, 1, 1]


def test_curves_by_lag_with_all_layers_together(ax):
    curve = {"mean_kl": [0.0, 0.2, 0.1]}
    section = {"reset": {"layers": {"layer_0": curve}, "together": {"mean_kl": [0.5, 0.4, 0.3]}}}
    panels.plot_causal(section, "reset", ax)
    # A KL of 0 has no place on a logarithmic axis.
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 0.2, 0.1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.5, 0.4, 0.3])


def test_pairs_stand_below_the_diagonal_and_their_nulls_above_it(ax):
    pairs = {
        "layer_0_to_3": {"layers": [0, 3], "max_abs": null_test(0.7), "reason": None},
        "layer_3_to_6": {"layers": [3, 6], "max_abs": null_test(0.4), "reason": None},
    }
    panels.plot_pair_heatmap({"mixer": pairs}, "mixer", "max_abs", ax)
    shown = ax.images[0].get_array()
    assert (shown[1, 0], shown[2, 1]) == (0.7, 0.4)
    assert shown[0, 1] == shown[1, 2] == 0.5
    assert shown.mask[0, 0]
    assert shown.mask[2, 0]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2]])  # within its null


def test_autocorrelation_lies_on_the_nulls_of_all_layers(ax):
    def layer(mean, edge):
        series = {"lags": [1, 2], "mean": mean, "null_low": [-edge] * 2, "null_high": [edge] * 2}
        return {"mixer": {"autocorrelation": series}}

    section = {"layer_0": layer([0.5, 0.2], 0.1), "layer_3": layer([0.4, 0.1], 0.3)}
    panels.plot_autocorrelation(section, "mixer", ax)
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[1, 0.4], [2, 0.1]])
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-0.3, 0.3)


def test_autocorrelation_leaves_out_a_silent_layer(ax):
    series = {"lags": [1, 2], "mean": [0.5, 0.2], "null_low": [-0.1, -0.2], "null_high": [0.1, 0.2]}
    none = {"lags": [], "mean": [], "null_low": [], "null_high": []}
    section = {
        f"layer_{i}": {"mixer": {"autocorrelation": one}} for i, one in enumerate((none, series))
    }
    panels.plot_autocorrelation(section, "mixer", ax)
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-0.2, 0.2)


DRAWN = [
    lambda section, ax: panels.plot_activation(section, "rollout", ax),
    lambda section, ax: panels.plot_tests_by_layer(section, ("x",), "t", "y", ax),
    lambda section, ax: panels.plot_autocorrelation(section, "mixer", ax),
    panels.plot_survival,
    panels.plot_kernel,
    lambda section, ax: panels.plot_pair_heatmap(section, "mixer", "cka", ax),
    panels.plot_rank_correlations,
    lambda section, ax: panels.plot_causal(section, "reset", ax),
    lambda section, ax: panels.plot_causal_map(section, "knockout", ax),
]


@pytest.mark.parametrize("draw", DRAWN)
def test_a_failed_step_is_named_in_its_panel(draw, ax):
    draw(ERROR, ax)
    assert "too flat" in said(ax)


def test_a_test_that_is_undefined_everywhere_says_why(ax):
    panels.plot_tests_by_layer({"layer_0": {"x": null_test(None)}}, ("x",), "t", "ρ", ax)
    assert "too few" in said(ax)
