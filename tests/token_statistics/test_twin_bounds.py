"""Bounds from twins: on the statistic's own scale, and seldom exceeded by another twin."""

# A bound is None only where there is none: pyright is told not to mind here.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false

import json
import math

import numpy as np
import pytest
from scipy import stats

from token_statistics.twin_bounds import SCALES, BesideTwins, beside_twins_of


def test_the_bound_is_the_prediction_interval():
    found = beside_twins_of("k", 0.4, [0.5, 0.2])
    # mean 0.35, s 0.2121, t 63.66 at one degree of freedom: 0.35 + 63.66 * 0.2121 * sqrt(1.5).
    assert found.bound == pytest.approx(0.35 + 63.6567 * 0.212132 * math.sqrt(1.5), rel=1e-5)
    t = (0.4 - 0.35) / (0.212132 * math.sqrt(1.5))
    assert found.p_value == pytest.approx(stats.t.sf(t, 1), rel=1e-5)
    assert (found.n, found.low, found.high, found.exceeded) == (2, 0.2, 0.5, False)


@pytest.mark.parametrize("count", [2, 5, 19])
def test_another_twin_seldom_exceeds_the_bound(count):
    rng = np.random.default_rng(count)
    found = [beside_twins_of("k", row[0], row[1:]) for row in rng.normal(size=(3000, count + 1))]
    # 1 in 200: 15 of 3,000 expected, 30 is four standard deviations off.
    assert sum(one.exceeded for one in found) <= 30
    below = np.mean([one.p_value <= 0.05 for one in found])
    assert below == pytest.approx(0.05, abs=0.016)  # four standard errors


@pytest.mark.parametrize(("scale", "n"), [("share", 20), ("share", 200), ("correlation", 60)])
def test_bounds_stay_within_the_range_of_the_statistic(scale, n):
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(1000):
        row = rng.beta(12, 2, size=6)
        found = beside_twins_of("k", row[0], row[1:], scale=scale, n=n)
        assert found.bound is None or max(row[1:]) <= found.bound <= 1
        exceeded += found.exceeded and found.bound is not None
    assert exceeded <= 15  # 5 of 1,000 expected; 15 is over four standard deviations off


def test_a_bound_that_no_value_exceeds_is_none():
    # Kendall's W of three twins near 1: on its own scale the bound lies beyond the end.
    found = beside_twins_of("k", 1.0, [0.9, 0.7, 0.95], scale="share", n=12)
    assert (found.bound, found.exceeded) == (None, True)
    assert beside_twins_of("k", 0.9, [0.9, 0.7, 0.95], scale="share", n=12).exceeded is False
    reached = beside_twins_of("k", 1.0, [0.9, 0.7, 1.0], scale="share", n=12)
    assert (reached.bound, reached.exceeded) == (1.0, False)
    many = beside_twins_of("k", 0.99, np.linspace(0.3, 0.5, 19), scale="share", n=100)
    assert 0.5 < many.bound < 0.99


def test_one_twin_gives_no_bound():
    found = beside_twins_of("k", 0.4, [0.3])
    assert (found.bound, found.exceeded, found.p_value) == (None, True, 0.5)
    assert beside_twins_of("k", 0.3, [0.3]).exceeded is False  # a tie is not above


def test_equal_twins_have_the_p_of_their_number():
    found = beside_twins_of("k", 0.4, [0.3] * 9)
    assert (found.bound, found.exceeded, found.p_value) == (0.3, True, 0.1)
    assert beside_twins_of("k", 0.3, [0.3] * 9).p_value == 1.0


def test_shares_spread_at_least_as_independent_places_do():
    # No hit in 5 places of any twin says little about the next: at n = 5 all 5 may come.
    few = beside_twins_of("k", 1.0, [0.0] * 5, scale="share", n=5)
    assert (few.bound, few.exceeded) == (None, True)
    assert few.p_value > 0.01
    many = beside_twins_of("k", 1.0, [0.0] * 19, scale="share", n=200)
    assert 0 < many.bound < 0.2
    assert many.p_value < 0.001


def test_scales_and_their_inverses():
    for name, scale in SCALES.items():
        for x in (0.2, 0.5, 0.9):
            assert scale.back(float(scale.forth(np.array(x), 30)), 30) == pytest.approx(x), name
    share, correlation = (SCALES[name].forth(np.array(1.0), 9) for name in ("share", "correlation"))
    assert share == pytest.approx(math.log(9.5 / 0.5))
    assert correlation == pytest.approx(math.atanh(0.9))
    assert SCALES["ratio"].forth(np.array(2.0), 1) == pytest.approx(math.log(2))


def test_rounding_at_the_end_of_a_range_is_no_error():
    found = beside_twins_of("k", 1 + 1e-15, [0.1, 0.2, -1e-16], scale="share", n=9)
    assert (found.low, found.bound) == (0.0, pytest.approx(found.bound))


def test_no_value_has_the_twins_alone():
    found = beside_twins_of("k", None, [0.1, 0.2], num_above_chance=2)
    assert (found.p_value, found.exceeded, found.num_above_chance) == (None, False, 2)
    assert BesideTwins.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "log"}, "scale is 'log'; it must be one of linear, correlation, share, ratio"),
        ({"twins": []}, "twins is empty"),
        ({"n": 0}, "n is 0"),
        ({"value": 1.5, "scale": "share"}, r"hold \[1.5\], outside \[0.0, 1.0\]"),
        ({"value": 0.0, "scale": "ratio"}, r"hold \[0.0\], outside \[0.0, inf\]"),
        ({"twins": [math.nan]}, "twins or value hold"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message):
    given = {"value": 0.5, "twins": [0.1, 0.2], **arguments}
    with pytest.raises(ValueError, match=message):
        beside_twins_of("k", **given)
