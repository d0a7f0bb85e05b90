"""Tokens until half is left: closed forms, a loop over tokens, and where a text cannot say."""

import math

import numpy as np
import pytest

from ssm_measures.tokens_to_half import tokens_to_half


@pytest.mark.parametrize("half_life", [1, 5, 20])
def test_a_constant_delta_gives_the_half_life(half_life):
    delta = np.full((64, 1), 0.1)
    found = tokens_to_half([delta], np.array([math.log(2) / (half_life * 0.1)]))
    assert found.tolist() == [half_life]


def test_the_median_is_that_of_a_loop_over_tokens():
    rng = np.random.default_rng(0)
    delta, rate = rng.random((40, 1)) * 0.2, 1.3
    sums = np.cumsum(delta[:, 0]) * rate
    expected = next(
        lag for lag in range(1, 40)
        if np.mean([sums[s + lag] - sums[s] >= math.log(2) for s in range(40 - lag)]) >= 0.5
    )  # fmt: skip
    assert tokens_to_half([delta], np.array([rate])).tolist() == [expected]


def test_a_text_that_is_too_short_says_so():
    assert np.isinf(tokens_to_half([np.full((10, 1), 1e-3)], np.array([1.0]))).all()
