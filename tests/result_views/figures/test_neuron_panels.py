"""Panels of neurons: each method beside its null, what has none left out, what texts share."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from result_views.figures import neuron_panels as panels


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def rectangles(ax):
    """Lower and upper end of every bar."""
    boxes = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    return [(round(box.y0, 9), round(box.y1, 9)) for box in boxes]


def null_test(value, low, high, reason=None):
    return {"value": value, "null_low": low, "null_high": high, "reason": reason}


def evolution():
    step = {"rms_ratio": 2.0, "cka_p_value": 0.05, "reason": None,
            "attention_agreement": null_test(0.5, -0.25, 0.25)}  # fmt: skip
    return {
        "rollout": {
            "rms": {"layer_0": 0.5, "layer_2": 1.0},
            "concentration": {
                "layer_0": {"top_5_percent_share": 0.25},
                "layer_2": {"top_5_percent_share": None},
            },
            "transitions": [
                {"from_layer": 0, "to_layer": 2, "cka": 0.75, "cka_null_mean": 0.125,
                 "cka_null_max": 0.25, **step},
            ],
        }
    }  # fmt: skip


def test_neurons_across_layers(ax):
    panels.plot_neuron_cka({"text_0": evolution()}, "rollout", ax)
    assert rectangles(ax) == [(0.125, 0.25)]
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0, 0.75]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0→2"]
    assert ax.get_title() == "CKA of successive layers,\nrollout"


def test_agreement_of_attention_beside_its_null(ax):
    panels.plot_attention_agreement({"text_0": evolution()}, "rollout", ax)
    assert rectangles(ax) == [(-0.25, 0.25)]
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0, 0.5]])
    assert ax.get_title() == "Agreement of attention,\nrollout"


def test_a_neuron_cka_below_the_mean_of_its_null_is_no_finding(ax):
    section = evolution()
    section["rollout"]["transitions"][0]["cka"] = 0.0
    panels.plot_neuron_cka({"text_0": section}, "rollout", ax)
    _, outside, inside = ax.lines
    assert len(outside.get_xdata()) == 0
    np.testing.assert_array_equal(inside.get_xydata(), [[0, 0.0]])


def test_magnitude_and_concentration_of_neurons(ax):
    panels.plot_neuron_magnitude({"text_0": evolution()}, "rollout", ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0.5], [2, 1.0]])
    other = Figure().subplots()
    panels.plot_neuron_concentration({"text_0": evolution()}, "rollout", other)
    np.testing.assert_array_equal(other.lines[0].get_ydata(), [0.25, np.nan])
    assert np.asarray(other.lines[1].get_ydata()).tolist() == [
        0.05,
        0.05,
    ]  # what equal importance would give


def test_agreement_and_cka_of_all_methods_stand_in_one_panel(ax):
    without = evolution()["rollout"]
    step = without["transitions"][0]
    none = {**step, "cka": None, "reason": "no null",
            "attention_agreement": null_test(None, None, None, "no null")}  # fmt: skip
    section = {**evolution(), "gradient_guided": {**without, "transitions": [none]}}
    panels.plot_neuron_transitions({"text_0": section}, ax)
    assert [text.get_text() for text in ax.texts] == ["rollout,\nagreement", "rollout,\nCKA"]
    drawn = [line.get_xydata().tolist() for line in ax.lines[1:]]
    assert drawn[0] == [[0, 0.5], [2, 0.75]]
    assert rectangles(ax)[0] == (-0.25, 0.25)
    assert rectangles(ax)[2] == (0.125, 0.25)


def test_no_method_with_a_null_gives_the_reason(ax):
    section = evolution()
    section["rollout"]["transitions"][0] |= {
        "cka": None, "reason": "no null", "attention_agreement": null_test(None, None, None),
    }  # fmt: skip
    panels.plot_neuron_transitions({"text_0": section}, ax)
    assert "no null" in ax.texts[0].get_text()


def test_shared_neurons_are_outlined_where_chance_is_not_excluded(ax):
    found = {"top_n": 20, "mean_overlap": 9.0, "expected_overlap": 1.5, "largest_p_value": 0.001,
             "mean_spearman": 0.5, "reason": None}  # fmt: skip
    section = {"layer_0": {"rollout": found, "gradient_guided": {**found, "largest_p_value": 0.5}}}
    panels.plot_neuron_overlap(section, ax)
    (chance,) = (line for line in ax.lines if line.get_color() == "0.6")
    assert np.asarray(chance.get_ydata()).tolist() == [1.5, 1.5]
    filled, hollow = (line for line in ax.lines if line is not chance and np.size(line.get_ydata()))
    assert (filled.get_ydata(), hollow.get_ydata()) == ([9.0], [9.0])
    assert to_hex(hollow.get_markerfacecolor()) == "#ffffff" != to_hex(filled.get_color())
    assert ax.get_ylabel() == "neurons on both lists, of 20"
    other = Figure().subplots()
    panels.plot_neuron_rank_agreement(section, other)
    drawn = [line for line in other.lines if np.size(line.get_ydata())]
    assert [np.asarray(line.get_ydata()).tolist() for line in drawn] == [[0.5], [0.5], [0, 0]]
    assert [line.get_fillstyle() for line in drawn[:2]] == ["left"] * 2  # no null is measured


def test_a_neuron_cka_without_a_null_is_neither_filled_nor_hollow(ax):
    section = evolution()
    section["rollout"]["transitions"][0] |= {
        "cka": 0.93, "cka_null_mean": None, "cka_null_max": None, "reason": "30 tokens",
    }  # fmt: skip
    panels.plot_neuron_transitions({"text_0": section}, ax)
    _, filled, hollow, without = ax.lines
    np.testing.assert_array_equal(filled.get_xydata(), [[0, 0.5]])
    assert len(hollow.get_xdata()) == 0
    np.testing.assert_array_equal(without.get_xydata(), [[2, 0.93]])
