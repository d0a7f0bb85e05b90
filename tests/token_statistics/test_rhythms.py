"""Planted periods are named, and noise that is white or slow in any way has none."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false

import numpy as np
import pytest
from reference import bartlett_spectrum
from series import ar1

from token_statistics.autocorrelation import mean_autocorrelation
from token_statistics.rhythms import MIN_LAGS, rhythm

LAGS = 32


def rhythm_of(x):
    return mean_autocorrelation(x, [len(x)], LAGS, num_shuffles=99).rhythm


def swinging(period, seed=0, length=300, channels=16):
    """A sine of this period in each channel, at a phase of its own, on AR(1) noise of variance 4/3.

    The sine has three eighths of the noise's variance.
    """
    phases = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, channels)
    sine = np.sin(2.0 * np.pi * np.arange(length)[:, None] / period + phases)
    return sine + ar1(0.5, length, channels, seed + 1)


def moving_sum(terms, length, channels, seed):
    noise = np.random.default_rng(seed).standard_normal((length + terms, channels))
    return sum(noise[i : i + length] for i in range(terms))


@pytest.mark.parametrize("period", [2, 3, 5, 8, 12, 16])
def test_a_planted_period_is_named(period):
    found = rhythm_of(swinging(period))
    # Frequencies lie 1 / 1024 apart: half a step is period^2 / 2048, 1 % at 16; the slope of the
    # noise under the peak moves it by as much again.
    assert found.period == pytest.approx(period, rel=0.02)
    assert found.reason is None
    assert found.power > found.power_null_high
    assert found.rise > found.rise_null_high


def test_one_channel_of_a_short_text_suffices_for_a_clear_rhythm():
    x = np.sin(2.0 * np.pi * np.arange(60) / 4.0)[:, None] + 0.5 * ar1(0.0, 60, 1, seed=1)
    assert rhythm_of(x).period == pytest.approx(4.0, rel=0.02)  # resolution 1 / 30 of a cycle


def test_a_pattern_that_repeats_has_its_period_or_a_harmonic():
    found = rhythm_of(np.tile(np.random.default_rng(1).standard_normal((5, 4)), (20, 1)))
    # Any shape of five tokens has power at periods 5 and 5 / 2 alone.
    assert min(abs(found.period - 5.0), abs(found.period - 2.5)) < 0.05


SLOW = {
    "white": lambda n, p, seed: ar1(0.0, n, p, seed),
    "AR(1) 0.5": lambda n, p, seed: ar1(0.5, n, p, seed),
    "AR(1) 0.95": lambda n, p, seed: ar1(0.95, n, p, seed),
    "mixture": lambda n, p, seed: np.hstack([ar1(0.9, n, p, seed), ar1(0.0, n, p, seed + 99)]),
    "sum of 2 tokens": lambda n, p, seed: moving_sum(2, n, p, seed),
    "sum of 4 tokens": lambda n, p, seed: moving_sum(4, n, p, seed),
    "sum of 8 tokens": lambda n, p, seed: moving_sum(8, n, p, seed),
}


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("noise", SLOW)
def test_noise_without_a_period_has_no_rhythm(noise, channels):
    found = [rhythm_of(SLOW[noise](120, channels, seed)) for seed in range(30)]
    # 30 trials at 5 %: 5 or more happen in 1.6 % of seed sets; this is not one.
    assert sum(r.period is not None for r in found) <= 4
    assert all(r.reason for r in found if r.period is None)


def test_slow_change_is_told_from_noise():
    slow, white = (rhythm_of(ar1(phi, 300, 16, seed=3)) for phi in (0.8, 0.0))
    assert "rises with frequency no more" in slow.reason
    assert slow.power > slow.power_null_high
    assert (white.rise, "shuffled tokens" in white.reason) == (None, True)


def test_powers_and_rises_are_those_of_the_loops():
    rng = np.random.default_rng(4)
    rho, shuffled = np.array([-0.4, 0.5, -0.3, 0.2, 0.0, 0.1]), 0.1 * rng.standard_normal((39, 6))
    found = rhythm(rho, shuffled)
    assert found.power == pytest.approx(bartlett_spectrum(rho, 1.0 / found.period), rel=1e-12)
    grid = [step / 192 for step in range(32, 97)]  # 1 / 6 to 1 / 2, 32 steps of 1 / 6 / 32

    def largest(row):
        powers = [bartlett_spectrum(row, f) for f in grid]
        rises = [power / min(powers[: i + 1]) for i, power in enumerate(powers)]
        return max(powers[32:]), max(rises[32:])

    nulls = np.quantile([largest(row) for row in shuffled], 0.95, axis=0, method="weibull")
    np.testing.assert_allclose((found.power_null_high, found.rise_null_high), nulls, rtol=1e-9)
    assert found.rise == pytest.approx(largest(rho)[1], rel=1e-9)


def test_too_few_lags_and_a_series_without_change_have_reasons():
    short = rhythm(np.full(MIN_LAGS - 1, 0.5), np.zeros((39, MIN_LAGS - 1)))
    assert (short.period, short.reason) == (None, "3 lags; a rhythm needs at least 4")
    assert mean_autocorrelation(np.ones((20, 2)), [20], 4).rhythm.reason is not None
