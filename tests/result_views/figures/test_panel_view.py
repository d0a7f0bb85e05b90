"""What single panels are drawn from: a chosen text or layer leaves that one alone."""

import pytest

from result_views.figures.panel_view import View, chosen_key

RESULTS = {
    "individual_texts": {
        f"text_{i}": {"analysis": {"step": {"layer_0": i, "layer_3": 10 + i}}} for i in range(2)
    },
    "memory": {"state": {"layer_0": 1, "layer_3": 2}},
    "reset": {"kind": "reset", "layers": {"layer_0": 1, "layer_3": 2}, "together": 3},
}


def test_everything_where_nothing_is_chosen():
    view = View(RESULTS, {}, None, None)
    assert view.texts("step") == {"text_0": {"layer_0": 0, "layer_3": 10},
                                  "text_1": {"layer_0": 1, "layer_3": 11}}  # fmt: skip
    assert view.memory("state") == {"layer_0": 1, "layer_3": 2}
    assert view.causal()["reset"]["layers"] == {"layer_0": 1, "layer_3": 2}


def test_a_chosen_text_and_layer_are_left_alone():
    view = View(RESULTS, {}, 1, 3)
    assert view.texts("step") == {"text_1": {"layer_3": 11}}
    assert view.memory("state") == {"layer_3": 2}
    assert view.causal()["reset"] == {"kind": "reset", "layers": {"layer_3": 2}, "together": 3}


def test_a_number_that_is_not_there_is_answered_with_those_that_are():
    assert chosen_key("text", 1, ["text_0", "text_1"]) == "text_1"
    with pytest.raises(ValueError, match="layer is 7; it must be one of 0, 3"):
        View(RESULTS, {}, None, 7).memory("state")
