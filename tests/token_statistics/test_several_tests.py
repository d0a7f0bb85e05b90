"""The largest of several statistics: p by hand, the rate of false findings, what is undefined."""

import numpy as np
import pytest

from token_statistics.several_tests import largest_of_all_bounds, largest_of_all_p


def test_p_counts_the_draws_whose_largest_is_as_far():
    draws = np.array([[0.0, 0.0], [1.0, 20.0], [2.0, -20.0], [3.0, 0.0]])
    scaled = (draws - draws.mean(0)) / draws.std(0)
    value = np.array([2.5, 100.0])
    own = (value - draws.mean(0)) / draws.std(0)
    by_hand = [(1 + sum(row.max() >= x for row in scaled)) / 5 for x in own]
    np.testing.assert_allclose(largest_of_all_p(value, draws), by_hand)


def test_scales_of_the_statistics_do_not_matter():
    rng = np.random.default_rng(0)
    draws, values = rng.normal(size=(99, 5)), rng.normal(size=5)
    scale, offset = np.array([1.0, 1e-6, 1e6, 3.0, 1.0]), np.arange(5.0)
    np.testing.assert_allclose(
        largest_of_all_p(values, draws),
        largest_of_all_p(values * scale + offset, draws * scale + offset),
    )


def test_some_of_24_is_found_by_chance_no_more_often_than_asked():
    rng = np.random.default_rng(1)
    found = [
        np.nanmin(largest_of_all_p(rng.standard_t(3, 24), rng.standard_t(3, (99, 24)))) <= 0.05
        for _ in range(400)
    ]
    # 5 % of 400 is 20, with a standard deviation of 4.4: 34 is three of them above.
    assert sum(found) <= 34


def test_what_has_no_spread_or_is_not_finite_is_undefined_alone():
    draws = np.random.default_rng(2).normal(size=(50, 3))
    draws[:, 1] = 1.0
    p = largest_of_all_p([9.0, 9.0, np.nan], draws)
    assert p[0] == pytest.approx(1 / 51)
    assert np.isnan(p[1:]).all()
    assert np.isnan(largest_of_all_p([1.0], np.empty((0, 1)))).all()


def test_draws_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"draws has shape \(4, 2\); pass \(draws, 3\)"):
        largest_of_all_p([1.0, 2.0, 3.0], np.zeros((4, 2)))


@pytest.mark.parametrize("count", [19, 50, 99, 140])
def test_a_value_lies_above_the_bound_where_its_p_is_small_enough(count):
    rng = np.random.default_rng(count)
    draws = rng.normal(size=(count, 3)) * [1.0, 1e-3, 50.0] + [0.0, 1.0, -9.0]
    for value in np.linspace(-1, 5, 40):
        values = draws.mean(0) + value * draws.std(0)
        low, high = largest_of_all_bounds(values, draws)
        np.testing.assert_array_equal(values > high, largest_of_all_p(values, draws) <= 0.05)
        np.testing.assert_array_equal(values < low, largest_of_all_p(-values, -draws) <= 0.05)


def test_bounds_of_a_value_that_is_one_of_its_draws():
    """A tie counts as reached: the value is not above the bound."""
    draws = np.arange(19.0)[:, None]
    assert largest_of_all_bounds([18.0], draws)[1] >= 18.0
    assert largest_of_all_bounds([18.0], draws)[1] == pytest.approx(18.0)


def test_too_few_draws_have_no_finite_bound():
    low, high = largest_of_all_bounds([9.0, np.nan], np.random.default_rng(0).normal(size=(18, 2)))
    assert (low[0], high[0]) == (-np.inf, np.inf)
    assert np.isnan([low[1], high[1]]).all()
