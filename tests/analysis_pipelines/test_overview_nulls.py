"""Tests as results hold them: what is undefined says why, and groups of texts weigh as one."""

import numpy as np
import pytest

from analysis_pipelines.overview_nulls import (
    Sample,
    all_beside_nulls,
    one_a_group,
    ratio_over_texts,
    untested,
)
from token_statistics.intervals import mean_interval
from token_statistics.several_tests import largest_of_all_bounds, largest_of_all_p

SAMPLE = Sample(40, "predictions", 3)


def test_value_p_and_bounds_are_those_of_all_statistics_together():
    draws = np.random.default_rng(0).normal(size=(199, 10))
    values = np.array([0.0, 1.0, 2.3, 9.0, *[0.0] * 6])
    tests = all_beside_nulls(values, draws, SAMPLE)
    p, (low, high) = largest_of_all_p(values, draws), largest_of_all_bounds(values, draws)
    for i, test in enumerate(tests):
        assert (test["value"], test["p_value"]) == (values[i], p[i])
        assert (test["null_low"], test["null_high"]) == (low[i], high[i])
        assert (test["n"], test["unit"], test["num_texts"]) == SAMPLE
    # One layer's own 95 % leaves out a value that some layer of four often has by chance.
    assert tests[2]["value"] > np.quantile(draws[:, 2], 0.975)
    assert tests[2]["value"] < tests[2]["null_high"]


def test_a_ratio_to_nothing_is_no_test():
    draws = np.random.default_rng(0).normal(size=(30, 2))
    draws[3, 1] = np.nan
    first, second = all_beside_nulls(np.array([1.0, 1.0]), draws, SAMPLE)
    assert first["value"] == 1.0
    assert second == untested("the layer gives nothing to compare with", SAMPLE)


def test_draws_that_are_all_alike_are_the_null():
    (test,) = all_beside_nulls(np.array([0.5]), np.full((30, 1), 0.5), SAMPLE)
    assert (test["null_low"], test["null_high"], test["p_value"]) == (0.5, 0.5, None)


def test_a_group_counts_once():
    np.testing.assert_array_equal(one_a_group([1.0, 3.0, 5.0], [7, 7, 2]), [2.0, 5.0])
    assert one_a_group([np.inf, 1.0], [0, 0])[0] == np.inf


def test_an_interval_needs_five_groups():
    sums = np.random.default_rng(0).lognormal(size=(5, 2))
    low, high = ratio_over_texts(sums, positive=True) or (0.0, 0.0)
    assert 0 < low < sums[:, 0].sum() / sums[:, 1].sum() < high
    assert ratio_over_texts(sums[:4]) is None
    assert ratio_over_texts(np.zeros((5, 2)), positive=True) is None
    costs = np.stack([[-1.0, 2, 3, 1, 4], np.ones(5)], axis=1)
    assert ratio_over_texts(costs) == pytest.approx(mean_interval(costs[:, 0])[1:3])
