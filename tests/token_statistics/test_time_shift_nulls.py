"""Time-shift nulls against naive loops, planted relations, and series that share nothing."""

import json

import numpy as np
import pytest
import torch
from defined import known
from series import ar1

from token_statistics.autocorrelation import (
    mean_autocorrelation,
)
from token_statistics.time_shift_nulls import (
    MIN_SHIFTS,
    NUM_SHIFTS,
    against_null,
    count_shifts,
    draw_shifts,
    fields_to_dict,
    shifted_rows,
    smallest_shift,
    spearman_permutation_test,
    spearman_shift_test,
    undefined,
    why_too_few,
    why_too_slow,
)


def test_rows_shift_within_each_text_as_roll_does():
    y = np.arange(7.0)
    rows = shifted_rows([3, 4], [1, 2])
    expected = np.concatenate([np.roll(y[:3], 1), np.roll(y[3:], 2)])
    np.testing.assert_array_equal(y[rows], expected)
    np.testing.assert_array_equal(shifted_rows([5], -2), np.roll(np.arange(5), -2))


@pytest.mark.parametrize("lengths", [[60], [500], [30, 41, 5], [2] * 6 + [80]])
def test_shifts_are_distinct_in_range_and_seeded(lengths):
    shifts = draw_shifts(lengths, NUM_SHIFTS, seed=3)
    assert len({tuple(shift) for shift in shifts.tolist()}) == len(shifts)
    assert len(shifts) == min(NUM_SHIFTS, count_shifts(lengths))
    for column, length in zip(shifts.T, lengths, strict=True):
        assert column.min() >= smallest_shift(length)
        assert column.max() <= length - smallest_shift(length)
    np.testing.assert_array_equal(shifts, draw_shifts(lengths, NUM_SHIFTS, seed=3))
    assert not np.array_equal(shifts, draw_shifts(lengths, NUM_SHIFTS, seed=4))


def test_a_text_of_one_token_stays_where_it_is():
    assert (draw_shifts([1, 60])[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([39], "39 tokens; a claim needs at least 40"),
        ([2] * 20, "1 distinct time shifts; a null needs at least 20"),
        ([40], None),
        ([10, 30], None),
    ],
)
def test_too_few_tokens_or_shifts_are_named(lengths, reason):
    assert why_too_few(lengths) == reason
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            draw_shifts(lengths)


def test_too_small_a_count_is_refused():
    with pytest.raises(ValueError, match=f"count is 5; a null needs at least {MIN_SHIFTS}"):
        draw_shifts([100], 5)


def test_thirty_nine_draws_span_a_95_percent_interval():
    draws = np.arange(1.0, 40.0)
    test = against_null(40.0, draws, 7)
    assert (test.null_low, test.null_high, test.null_mean) == (1.0, 39.0, 20.0)
    assert test.p_value == pytest.approx(2 / 40)  # beyond all 39 on one side: 2 (1 + 0) / (1 + 39)
    assert test.outside_null is True
    assert (test.n, test.num_draws) == (7, 39)
    middle = against_null(20.0, draws, 7)
    assert middle.p_value == 1.0
    assert middle.outside_null is False


def test_a_value_that_equals_every_draw_is_no_finding():
    # Equal up to rounding: the tie must count as "at least as far".
    assert against_null(0.3 + 1e-16, np.full(39, 0.3), 5).p_value == 1.0


def test_an_undefined_value_or_draw_has_a_reason():
    for test in (against_null(np.nan, np.ones(39), 5), against_null(1.0, [1.0, np.nan], 5)):
        assert test.value is None
        assert test.outside_null is None
        assert test.reason == "a side of the comparison has zero variance"


def test_a_planted_relation_is_found_and_a_broken_one_is_not():
    x = ar1(0.7, 350, 1, seed=9)[:, 0]
    lengths = [170, 180]
    tied = spearman_shift_test(x, torch.tensor(np.exp(x)), lengths)
    assert tied.value == pytest.approx(1.0)  # a monotone function: ranks agree
    assert tied.p_value == pytest.approx(2 / 200)
    assert tied.num_draws == 199
    assert known(spearman_shift_test(x, x[::-1].copy(), lengths).value) < 0.9


def test_autocorrelated_series_without_a_tie_are_rejected_as_rarely_as_promised():
    series = ar1(0.8, 400, 400, seed=10)
    tests = [
        spearman_shift_test(series[:, i], series[:, i + 200], [400], num_shifts=39, seed=i)
        for i in range(200)
    ]
    defined = [test for test in tests if test.p_value is not None]
    assert len(defined) > 150  # some pairs come out too slow for their text
    rejected = np.mean([known(test.p_value) <= 0.05 for test in defined])
    # 200 trials at 5 %: 5 % + 3 binomial standard errors is 9.6 %. An uncorrected t-test rejects
    # about 35 % of these.
    assert rejected <= 0.096


def test_slow_series_are_too_little_data_for_shifts():
    assert why_too_slow([5.0], [100]) is not None
    assert "worth 5; a null of time shifts needs 40 a text" in known(why_too_slow([5.0], [100]))
    assert why_too_slow([50.0], [1000]) is None
    assert why_too_slow([50.0], [500, 500]) is not None
    assert why_too_slow([90.0], [20] * 5) is None  # nearly independent tokens have no drift
    slow = ar1(0.97, 120, 2, seed=14)
    test = spearman_shift_test(slow[:, 0], slow[:, 1], [120])
    assert (test.value, "change so slowly" in known(test.reason)) == (None, True)


def test_tests_that_cannot_be_made_say_why():
    assert "39 tokens" in (spearman_shift_test(np.arange(39), np.arange(39), [39]).reason or "")
    constant = spearman_shift_test(np.ones(60), np.arange(60), [60])
    assert constant.reason == "one of the two series is constant"
    assert (constant.value, constant.n) == (None, 56)  # four tokens are warm-up
    assert spearman_permutation_test(np.arange(5), np.arange(5)).reason is not None
    assert spearman_permutation_test(np.ones(20), np.arange(20)).reason is not None


def test_permutations_find_a_relation_between_unordered_samples():
    x = np.random.default_rng(11).standard_normal(50)
    assert spearman_permutation_test(x, -(x**3)).value == pytest.approx(-1.0)
    assert spearman_permutation_test(x, -(x**3)).p_value == pytest.approx(2 / 1000)
    other = np.random.default_rng(12).standard_normal(50)
    assert spearman_permutation_test(x, other).outside_null is False


def test_results_are_strict_json():
    result = mean_autocorrelation(ar1(0.5, 40, 2, seed=13), [40], 3)
    test = undefined("no data", 3)
    assert json.loads(json.dumps(test.to_dict(), allow_nan=False))["reason"] == "no data"
    assert fields_to_dict(test)["n"] == 3
    assert json.dumps(result._asdict(), allow_nan=False)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, seed: spearman_shift_test(x, x, [60], seed=seed),
        lambda x, seed: spearman_permutation_test(x, x, seed=seed),
        lambda x, seed: mean_autocorrelation(x[:, None], [60], 4, seed=seed),
    ],
)
def test_no_seed_is_refused(draw):
    with pytest.raises(ValueError, match="seed is None"):
        draw(np.random.default_rng(15).standard_normal(60), None)
