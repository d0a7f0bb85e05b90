"""Means with intervals: coverage, equal values, few samples, signs counted one by one."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from token_statistics import intervals
from token_statistics.intervals import (
    mean_interval,
    positive_mean_p,
    ratio_interval,
    sign_flip_p,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def naive_bootstrap_t(sample, num_resamples, seed):
    """The definition, a resample at a time, from the same draws."""
    draws = rng(seed).integers(0, len(sample), (num_resamples, len(sample)))
    t = []
    for rows in draws:
        drawn = sample[rows]
        error = max(drawn.std(ddof=1), 0.1 * sample.std(ddof=1)) / math.sqrt(len(sample))
        t.append((drawn.mean() - sample.mean()) / error)
    error = sample.std(ddof=1) / math.sqrt(len(sample))
    ordered = sorted(t)
    beyond = round(0.025 * num_resamples)
    return sample.mean() - ordered[-beyond] * error, sample.mean() - ordered[beyond - 1] * error


def test_the_interval_is_its_definition():
    sample = rng().exponential(size=12)
    found = mean_interval(sample, seed=3)
    low, high = naive_bootstrap_t(sample, 2000, 3)
    assert (found.value, found.n, found.reason) == (pytest.approx(sample.mean()), 12, None)
    # The same draws, in another order of operations.
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_blocks_change_nothing(monkeypatch):
    sample, seed = rng().normal(size=30), 1
    whole = mean_interval(sample, seed=seed), sign_flip_p(sample, seed=seed)
    monkeypatch.setattr(intervals, "_BLOCK", 300)
    assert (mean_interval(sample, seed=seed), sign_flip_p(sample, seed=seed)) == whole


@pytest.mark.parametrize(
    ("draw", "mean", "n", "least"),
    [
        ("normal", 0.0, 5, 0.93),
        ("normal", 0.0, 10, 0.93),
        ("exponential", 1.0, 5, 0.90),
        ("exponential", 1.0, 10, 0.91),
        ("lognormal", math.exp(0.5), 5, 0.86),
        ("lognormal", math.exp(0.5), 20, 0.89),
    ],
)
def test_intervals_hold_the_mean_as_often_as_they_say(draw, mean, n, least):
    samples = getattr(rng(n), draw)(size=(1000, n))
    found = [mean_interval(sample, num_resamples=1000) for sample in samples]
    coverage = np.mean([one.low <= mean <= one.high for one in found])
    # 1000 samples: a standard error of 0.7 % at 95 %, 1 % at 90 %; least lies 2 to 4 below.
    assert least <= coverage <= 0.975


def test_equal_values_are_a_point():
    assert mean_interval([0.1] * 7) == (pytest.approx(0.1), *[pytest.approx(0.1)] * 2, 7, None)


def test_few_values_have_no_interval():
    assert mean_interval([]) == (None, None, None, 0, "n = 0; an interval needs 5")
    assert mean_interval([1.0, 2.0, 3.0, 6.0]) == (3.0, None, None, 4, "n = 4; an interval needs 5")
    assert mean_interval([1.0, 2.0, 3.0, 6.0, 7.0]).low is not None


def test_a_value_apart_from_equal_ones_has_a_wide_interval():
    found = mean_interval([0.0] * 5 + [1.0])
    # A third of the resamples leave it out: their mean is 1/6 too low, at a tenth of the error.
    assert found.high == pytest.approx(1 / 6 + 10 / 6)
    assert found.low < 0 < found.high


def test_means_and_intervals_scale_with_the_values():
    sample = rng().normal(size=9)
    one, scaled = mean_interval(sample), mean_interval(1e-9 * sample + 5.0)
    # 5 keeps 7 of the digits of 1e-9.
    assert scaled.low == pytest.approx(5 + 1e-9 * one.low, abs=1e-15)


def test_signs_are_counted_one_by_one():
    sample = rng().normal(0.4, size=9)
    sums = [np.dot(signs, sample) for signs in itertools.product((1, -1), repeat=9)]
    assert sign_flip_p(sample) == pytest.approx(np.mean(np.array(sums) >= sample.sum() - 1e-12))
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == 1 / 32
    assert sign_flip_p([-1.0] * 5) == 1.0
    assert sign_flip_p([0.0] * 5) == 1.0
    assert math.isnan(sign_flip_p([]))


def test_drawn_signs_agree_with_counted_ones(monkeypatch):
    sample = rng(4).normal(0.3, size=14)
    exact = sign_flip_p(sample)
    monkeypatch.setattr(intervals, "_EXACT_FLIPS", 13)
    # A share of 9,999 draws: a standard error of at most 0.5 %.
    assert sign_flip_p(sample) == pytest.approx(exact, abs=0.02)


def test_sign_flips_of_symmetric_noise_are_uniform():
    p = [sign_flip_p(sample) for sample in rng().normal(size=(400, 9))]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_a_long_left_tail_is_not_taken_for_a_positive_mean():
    samples = 1 - rng(2).exponential(size=(500, 10))
    flipped = np.mean([sign_flip_p(sample) <= 0.05 for sample in samples])
    both = np.mean([positive_mean_p(sample, num_resamples=1000) <= 0.025 for sample in samples])
    assert flipped > 0.09  # which is why it does not decide alone
    assert both <= 0.08  # 6 % and two standard errors


def test_p_of_a_mean_is_small_where_it_is_far_above_zero():
    assert positive_mean_p(rng().normal(3, size=12)) <= 0.001
    assert positive_mean_p(rng().normal(-3, size=12)) > 0.99
    assert positive_mean_p([2.0] * 6) == 1 / 64
    assert math.isnan(positive_mean_p([]))


def test_an_interval_ends_where_the_measure_does_and_nowhere_else():
    skewed = [1e-4, 1e-4, 2e-4, 1e-4, 5e-2, 1e-4]
    whole, cut = mean_interval(skewed), mean_interval(skewed, least=0.0)
    assert whole.low < 0  # type: ignore[operator]
    assert cut == whole._replace(low=0.0)
    high = [1 - x for x in skewed]
    assert mean_interval(high, least=-1.0, largest=1.0) == mean_interval(high)._replace(high=1.0)
    assert mean_interval(skewed, least=-1.0, largest=1.0) == whole


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="values holds 1 entries that are not finite"):
        mean_interval([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="confidence is 95"):
        mean_interval([1.0] * 5, confidence=95)


def test_a_ratio_and_its_interval_are_of_the_sums():
    """Point inside the interval, above 0; units that all have the ratio leave a point."""
    a, b = np.array([0.1, 30.0, 1.0, 0.5, 2.0]), np.array([1.0, 3.0, 2.0, 1.0, 0.2])
    found = ratio_interval(a, b, positive=True)
    assert found.value == pytest.approx(a.sum() / b.sum())
    assert 0 < found.low < found.value < found.high
    # The mean of the ratios, 4.3, has an interval that ends below 0: another quantity.
    assert mean_interval(a / b).low < 0
    same = ratio_interval(3 * b, b, positive=True)
    assert (same.low, same.high) == (pytest.approx(3.0), pytest.approx(3.0))


def test_the_interval_of_a_ratio_does_not_hang_on_units():
    a, b = rng(3).lognormal(size=(2, 8))
    one, scaled = ratio_interval(a, b, positive=True), ratio_interval(7 * a, 2 * b, positive=True)
    assert scaled.high == pytest.approx(3.5 * one.high)
    linear = ratio_interval(a, np.ones(8))
    assert linear[:3] == pytest.approx(mean_interval(a)[:3])


@pytest.mark.parametrize(("n", "least"), [(5, 0.86), (20, 0.89)])
def test_intervals_of_ratios_hold_it_as_often_as_they_say(n, least):
    draws, held = rng(n), 0
    for _ in range(300):
        b = draws.lognormal(0, 0.5, n)
        found = ratio_interval(3 * b * draws.lognormal(0, 0.5, n), b, positive=True)
        held += found.low <= 3 * math.exp(0.125) <= found.high
    # 300 samples: a standard error of 1.6 % at 91 %; least lies 1.5 to 3 below.
    assert least <= held / 300 <= 0.985


def test_ratios_that_have_no_interval_say_why():
    assert ratio_interval([1.0] * 4, [2.0] * 4)[:4] == (0.5, None, None, 4)
    assert ratio_interval([1.0], [0.0]).reason == "there is nothing to divide by"
    assert ratio_interval([0.0] * 6, [1.0] * 6, positive=True)[:3] == (0.0, None, None)
    with pytest.raises(ValueError, match="3 numerators came with 2 denominators"):
        ratio_interval([1.0] * 3, [1.0] * 2)
