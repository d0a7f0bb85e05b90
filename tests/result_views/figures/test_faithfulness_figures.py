"""Figure of faithfulness: intervals, the null of random orders, curves, and what is missing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from result_views.figures import faithfulness_figures as figures
from result_views.figures.faithfulness_figures import figure_faithfulness


def estimate(mean: float, half: float | None = 0.5) -> dict:
    interval = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": interval[0], "high": interval[1], "num_texts": 3}


def method(mean, randomised=(), **more):
    return {
        "measures": dict.fromkeys(("delta_af", "comprehensiveness", "sufficiency"), estimate(mean)),
        "over": {"random": {"delta_af": estimate(mean - 0.25)}},
        "agreement": {"occlusion": estimate(0.3)},
        "most_first": [1.0, 0.5, 0.0],
        "least_first": [1.0, 1.0, 0.0],
        "randomised": list(randomised),
        **more,
    }


@pytest.fixture
def section():
    return {
        "methods": {
            "rollout": method(1.0, [estimate(0.9), estimate(0.1)]),
            "random": method(0.25, agreement={}),
            "mamba_lrp": method(3.0),
        },
        "fractions": [0.0, 0.5, 1.0],
        "target": {"name": "logit"},
        "baseline": "mean",
        "num_texts": 3, "num_tokens": 30, "num_random": 4,
    }  # fmt: skip


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def said(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def test_methods_stand_by_their_area_with_intervals_on_that_of_random_orders(section, ax):
    figures.plot_delta_af(section, ax)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["MambaLRP", "rollout", "random"]
    points = ax.lines[-1]
    np.testing.assert_array_equal(points.get_xydata(), [[3, 0], [1, 1], [0.25, 2]])
    (null,) = ax.patches
    assert (null.get_x(), null.get_width()) == (-0.25, 1.0)
    segments = ax.collections[0].get_segments()
    np.testing.assert_array_equal(segments[0][:, 0], [2.5, 3.5])
    assert ax.get_xlabel() == "logit"


def test_areas_with_another_baseline_stand_below_the_first(section, ax):
    for one, mean in zip(section["methods"].values(), (4.0, 0.5, 2.0), strict=True):
        one["measures"] = {**one["measures"], "delta_af_other_text": estimate(mean)}
    figures.plot_delta_af(section, ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["baseline: mean", "another text's tokens"]
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [2.0, 4.0, 0.5])


def test_an_area_of_a_single_text_has_no_interval(section, ax):
    for one in section["methods"].values():
        one["measures"]["delta_af"] = estimate(1.0, half=None)
    figures.plot_delta_af(section, ax)
    assert not ax.patches
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [1, 1, 1])


def test_gains_leave_out_the_rival_itself(section, ax):
    figures.plot_gain_over_random(section, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["MambaLRP", "rollout"]
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [2.75, 0.75])


def test_curves_of_both_orders(section, ax):
    figures.plot_curves(section, ax)
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"] * 3
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0, 1], [0.5, 1], [1, 0]])
    assert ax.lines[-1].get_color() == "0.5"  # random orders


def test_randomisation_by_number_of_layers(section, ax):
    figures.plot_randomisation(section, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.9], [2, 0.1]])
    for one in section["methods"].values():
        one["randomised"] = []
    other = Figure().subplots()
    figures.plot_randomisation(section, other)
    assert "was not run" in said(other)


def test_agreement_leaves_a_gap_for_a_method_without_it(section, ax):
    figures.plot_agreement(section, ax)
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), [0.3, 0.3, np.nan])


def test_the_same_figure_of_either_command(section):
    alone = {"faithfulness": section, "provenance": {"model": {"id": "m"}}}
    texts = {"text_0": {"text": "a b", "tokens": ["a", "b"]}}
    within = {
        "individual_texts": texts,
        "cross_text_analysis": {"attribution_faithfulness": section},
    }
    for results in (alone, within):
        figure = figure_faithfulness(results)
        np.testing.assert_array_equal(figure.axes[0].lines[-1].get_xdata(), [3, 1, 0.25])
        assert "3 texts, 30 tokens; 4 random orders a text." in figure.texts[-1].get_text()


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ({"individual_texts": {}, "cross_text_analysis": {}}, "faithfulness was not measured"),
        ({"faithfulness": {"error": {"type": "AnalysisError", "message": "flat"}}}, "flat"),
    ],
)
def test_what_was_not_measured_is_said(results, reason):
    figure = figure_faithfulness(results)
    assert all(reason in said(ax) for ax in figure.axes)
