"""One rule says where a value stands beside its null: both ends of a signed one, the upper else."""

import math

import pytest

from result_views.beside_nulls import (
    INSIDE,
    NO_NULL,
    OUTSIDE,
    neuron_cka_test,
    standing,
    standing_of,
)


@pytest.mark.parametrize(
    ("value", "signed", "magnitude"),
    [(0.3, OUTSIDE, OUTSIDE), (0.2, INSIDE, INSIDE), (-0.1, INSIDE, INSIDE),
     (-0.2, OUTSIDE, INSIDE), (None, None, None), (math.nan, None, None)],
)  # fmt: skip
def test_below_the_null_is_outside_for_a_signed_statistic_alone(value, signed, magnitude):
    assert standing(value, -0.1, 0.2) == signed
    assert standing(value, -0.1, 0.2, one_sided=True) == magnitude


def test_without_the_ends_that_count_there_is_no_null():
    assert standing(0.9, None, None) == standing(0.9, math.nan, 0.2) == NO_NULL
    assert standing(0.9, None, 0.2, one_sided=True) == OUTSIDE
    assert standing(0.9, 0.1, None, one_sided=True) == NO_NULL


def test_a_test_says_itself_that_only_above_counts():
    test = {"value": -0.5, "null_low": -0.1, "null_high": 0.2}
    assert standing_of(test) == OUTSIDE
    assert standing_of({**test, "one_sided": True}) == standing_of(test, one_sided=True) == INSIDE
    assert standing_of({"value": None, "reason": "one token"}) is None


def test_a_neuron_cka_below_the_mean_of_its_null_is_inside():
    step = {"cka": 0.0355, "cka_null_mean": 0.0529, "cka_null_max": 0.107, "reason": None}
    assert standing_of(neuron_cka_test(step)) == INSIDE
    assert standing_of(neuron_cka_test({**step, "cka": 0.2})) == OUTSIDE
