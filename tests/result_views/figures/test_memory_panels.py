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
    _, filled, hollow = ax.lines
    np.testing.assert_array_equal(filled.get_xydata(), [[0, 0.9]])
    np.testing.assert_array_equal(hollow.get_xydata(), [[2, 0.1]])
    assert (filled.get_markerfacecolor(), hollow.get_markerfacecolor()) == (
        filled.get_color(), "white",
    )  # fmt: skip


def test_a_test_by_layer_without_a_null_is_no_finding(ax):
    bare = {"value": 0.9, "null_low": None, "null_high": None, "reason": "too few"}
    panels.plot_tests_by_layer({"layer_0": {"x": bare}}, ("x",), "t", "ρ", ax)
    _, filled, _, without = ax.lines
    assert len(filled.get_xdata()) == 0
    np.testing.assert_array_equal(without.get_xydata(), [[0, 0.9]])


def test_a_mean_magnitude_below_its_null_is_hollow(ax):
    section = {"layer_0": {"mean_abs": null_test(-0.9)}}
    panels.plot_tests_by_layer(section, ("mean_abs",), "t", "ρ", ax)
    _, filled, hollow = ax.lines
    assert (len(filled.get_xdata()), len(hollow.get_xdata())) == (0, 1)


def test_a_pair_below_its_null_or_without_one_is_no_finding(ax):
    bare = {**null_test(0.7), "null_low": None, "null_high": None}
    pairs = {
        "layer_0_to_3": {"layers": [0, 3], "cka": null_test(-0.7), "reason": None},
        "layer_3_to_6": {"layers": [3, 6], "cka": bare, "reason": None},
    }
    panels.plot_pairs({"mixer": pairs}, "mixer", "cka", ax)
    _, filled, hollow, without = ax.lines
    assert len(filled.get_xdata()) == 0
    np.testing.assert_array_equal(hollow.get_xydata(), [[0, -0.7]])
    np.testing.assert_array_equal(without.get_xydata(), [[1, 0.7]])


def test_curves_by_lag_with_all_layers_together(ax):
    curve = {"mean_kl": [0.0, 0.2, 0.1]}
    section = {"reset": {"layers": {"layer_0": curve}, "together": {"mean_kl": [0.5, 0.4, 0.3]}}}
    panels.plot_causal(section, "reset", ax)
    # A KL of 0 has no place on a logarithmic axis.
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 0.2, 0.1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.5, 0.4, 0.3])


def test_pairs_that_were_compared_stand_beside_their_nulls(ax):
    pairs = {
        "layer_0_to_3": {"layers": [0, 3], "max_abs": null_test(0.7), "reason": None},
        "layer_3_to_6": {"layers": [3, 6], "max_abs": null_test(0.4), "reason": None},
    }
    panels.plot_pairs({"mixer": pairs}, "mixer", "max_abs", ax)
    assert [(bar.get_y(), bar.get_height()) for bar in ax.patches] == [(-0.5, 1.0)] * 2
    _, filled, hollow = ax.lines
    np.testing.assert_array_equal(filled.get_xydata(), [[0, 0.7]])
    np.testing.assert_array_equal(hollow.get_xydata(), [[1, 0.4]])  # within its null
    assert hollow.get_markerfacecolor() == "white"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0→3", "3→6"]


def series_of(mean):
    edges = {"null_low": [-0.1] * len(mean), "null_high": [0.1] * len(mean)}
    lags = list(range(1, len(mean) + 1))
    reason = None if mean else "every channel is silent"
    return {"mixer": {"autocorrelation": {"lags": lags, "mean": mean, "reason": reason, **edges}}}


def test_autocorrelation_of_all_layers_marks_what_lies_within_the_null(ax):
    section = {"layer_0": series_of([0.5, 0.05]), "layer_3": series_of([-0.4, 0.2])}
    panels.plot_autocorrelation(section, "mixer", ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0.5, 0.05], [-0.4, 0.2]])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0]])
    assert not ax.texts


def test_autocorrelation_hatches_a_silent_layer_and_says_why(ax):
    panels.plot_autocorrelation(
        {"layer_0": series_of([]), "layer_3": series_of([0.5, 0.2])}, "mixer", ax
    )
    assert ax.images[0].get_array().mask[0].all()
    assert said(ax) == "every channel is silent"
    assert [patch.get_hatch() for patch in ax.patches] == ["////"]


def test_activation_of_methods_side_by_side_from_zero(ax):
    rms = {"median": 2.0, "lower_quartile": 1.0, "upper_quartile": 4.0}
    part = {m: {"text_0": {"activation_rms": rms}} for m in ("rollout", "attention_weighted")}
    panels.plot_activation({"layer_0": part, "layer_5": part}, list(part), ax)
    first, second = (np.asarray(line.get_xydata()) for line in ax.lines)
    assert first[:, 1].tolist() == second[:, 1].tolist() == [2.0, 2.0]
    assert (first[:, 0] < second[:, 0]).all()
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0][:, 1], [1, 4])
    assert ax.get_ylim()[0] == 0


def test_texts_are_thin_beside_their_mean(ax):
    section = {"layer_0": {"text_0": {"r": 1.0}, "text_1": {"r": 3.0}},
               "layer_2": {"text_0": {"r": 2.0}, "text_1": {"r": None}}}  # fmt: skip
    panels.plot_by_text(section, {"r": "rank"}, "Rank", "r", ax)
    *texts, mean = ax.lines
    np.testing.assert_array_equal(texts[0].get_xydata(), [[0, 1], [2, 2]])
    np.testing.assert_array_equal(mean.get_ydata(), [2, np.nan])


def test_untrained_models_are_dashed_beside_a_tested_value(ax):
    section = {"layer_0": {"x": null_test(0.9)}}
    panels.plot_tests_by_layer(section, ("x",), "t", "ρ", ax, twins=[[0.2, 0.7]])
    dashed = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == [0.2, 0.7]


def test_intervals_are_a_band_and_few_texts_have_none(ax):
    def section(low, high):
        bins = [{"first_lag": lag, "last_lag": lag + 2, "kl_low": low, "kl_high": high}
                for lag in (0, 3)]  # fmt: skip
        together = {"mean_kl": [2.0] * 6, "bins": bins}
        return {"reset": {"layers": {}, "together": together}}

    panels.plot_causal(section(1.0, 4.0), "reset", ax)
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 0].min(), corners[:, 0].max()) == (1, 4)
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1.0, 4.0)
    other = Figure().subplots()
    panels.plot_causal(section(None, None), "reset", other)
    assert not other.collections


def test_an_interval_that_begins_at_0_leaves_the_axes_below(ax):
    bins = [{"first_lag": lag, "last_lag": lag, "kl": 1e-3, "kl_low": low, "kl_high": 2e-3}
            for lag, low in ((1, 0.0), (2, 5e-4), (3, None))]  # fmt: skip
    panels.plot_causal_bins({"reset": {"together": {"bins": bins, "positions": [[0, 1]]}}},
                            "reset", ax)  # fmt: skip
    ends = [path.vertices[:, 1].tolist() for path in ax.collections[0].get_paths()]
    assert ends[:2] == [[0.0, 2e-3], [5e-4, 2e-3]]
    assert ax.get_ylim()[0] > 1e-4  # the 0 does not stretch a logarithmic axis


DRAWN = [
    lambda section, ax: panels.plot_activation(section, ["rollout"], ax),
    lambda section, ax: panels.plot_tests_by_layer(section, ("x",), "t", "y", ax),
    lambda section, ax: panels.plot_autocorrelation(section, "mixer", ax),
    panels.plot_survival,
    panels.plot_kernel,
    lambda section, ax: panels.plot_pairs(section, "mixer", "cka", ax),
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
