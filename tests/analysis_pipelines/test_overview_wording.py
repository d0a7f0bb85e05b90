"""Numbers and layers in sentences."""

import math

import pytest

from analysis_pipelines import overview_wording as wording
from tests.overview_cases import shift_test


@pytest.mark.parametrize(
    ("word", "one"),
    [("copy", "copies"), ("hold", "holds"), ("have", "has"), ("close", "closes")],
)
def test_verbs(word, one):
    assert wording.verb(word, [3]) == one
    assert wording.verb(word, [3, 3]) == one
    assert wording.verb(word, [3, 4]) == word


def test_lists_and_extents():
    assert wording.listed([0.531], ".2g") == "0.53"
    assert wording.listed([1.0, 2.0, 3.0], ".0f") == "1, 2 and 3"
    assert wording.listed([4.0, 1.0, 2.0, 3.0], ".0f") == "1 to 4"
    assert wording.extent([-0.7, -0.4], "+.1f") == "-0.4 to -0.7"
    assert wording.extent([0.41, 0.42], ".1f") == "0.4"


def test_chance_of_several_tests():
    tests = [shift_test(1.0, null=(-0.2, 0.1)), shift_test(1.0, null=(-0.1, 0.3))]
    assert wording.chance(tests, ".1f") == "-0.2 to 0.3"


def test_tokens_to_two_digits():
    assert wording.tokens([342.0, 1523.0]) == "340 to 1,500"
    assert wording.tokens([7.98, 8.04]) == "8"
    assert wording.two_digits(math.inf) == "inf"
    assert wording.mean([1.0, 2.0]) == 1.5
