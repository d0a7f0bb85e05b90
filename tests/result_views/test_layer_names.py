"""Layers by name."""

import pytest

from result_views.layer_names import capitalised, layer_names


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([3], "layer 3"),
        ([5, 3], "layers 3 and 5"),
        ([2, 3, 4, 5], "layers 2 to 5"),
        ([1, 3, 5, 11, 9, 7], "odd layers 1 to 11"),
        ([0, 2, 4], "even layers 0 to 4"),
        ([0, 4, 7], "layers 0, 4 and 7"),
        ([0, 1, 2, 5, 6], "layers 0 to 2, 5 and 6"),
        ([3, 3], "layer 3"),
    ],
)
def test_names(layers, name):
    assert layer_names(layers) == name


def test_the_rest_of_a_sentence_keeps_its_letters():
    assert capitalised("layer 3 of |A|") == "Layer 3 of |A|"
    assert capitalised("") == ""
