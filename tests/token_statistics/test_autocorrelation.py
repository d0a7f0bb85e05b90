"""Autocorrelation within texts, its null, and the effective number of samples."""

import itertools

import numpy as np
import pytest
import reference
from scipy import signal
from series import ar1

from token_statistics.autocorrelation import (
    autocorrelation_within_texts,
    effective_samples,
    mean_autocorrelation,
)
from token_statistics.description import autocorrelation


def _rng(seed=0):
    return np.random.default_rng(seed)


def _ar1(coefficient, length, channels, seed):
    """AR(1) series x_t = a x_{t-1} + noise, the first 500 steps dropped: stationary."""
    noise = _rng(seed).normal(size=(length + 500, channels))
    return signal.lfilter([1.0], [1.0, -coefficient], noise, axis=0)[500:]


def naive_autocorrelation(x, lengths, max_lag):
    """Loops over texts, tokens and lags; the mean is over all tokens."""
    x = np.asarray(x, dtype=np.float64)
    mean, result = x.mean(axis=0), np.zeros((max_lag + 1, x.shape[1]))
    start = 0
    for length in lengths:
        for lag in range(max_lag + 1):
            for t in range(length - lag):
                result[lag] += (x[start + t] - mean) * (x[start + t + lag] - mean)
        start += length
    return result / ((x - mean) ** 2).sum(axis=0)


def _effective_samples(x, y, max_lag=None):
    """`effective_samples` of one text, every pair of columns."""
    lags = len(x) // 4 if max_lag is None else max_lag
    rho_x, rho_y = (autocorrelation_within_texts(v, [len(v)], lags) for v in (x, y))
    return effective_samples(rho_x, rho_y, len(x), pairs=True)


def test_effective_sample_size_equals_the_loop():
    x, y = _ar1(0.6, 60, 3, seed=0), _ar1(0.7, 60, 2, seed=1)
    rho_x, rho_y = (naive_autocorrelation(v, [60], 15) for v in (x, y))
    n_eff = _effective_samples(x, y)
    for i, j in itertools.product(range(3), range(2)):
        inflation = 1 + 2 * sum(rho_x[k, i] * rho_y[k, j] for k in range(1, 16))
        assert n_eff[i, j] == pytest.approx(min(60, max(2, 60 / max(inflation, 1))), rel=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.9, 0.9), (0.8, 0.5), (0.5, 0.0)])
def test_effective_sample_size_of_ar1_series_in_closed_form(a, b):
    n = 4000
    x, y = _ar1(a, n, 30, seed=0), _ar1(b, n, 30, seed=1)
    closed = n * (1 - a * b) / (1 + a * b)
    # Estimated autocorrelations: about 8 % bias and spread at a = b = 0.9, less for the others.
    assert np.median(_effective_samples(x, y)) == pytest.approx(closed, rel=0.08)


def test_effective_sample_size_stays_between_two_and_n():
    walk = np.repeat(np.arange(2.0), 20)[:, None]
    alternating = np.tile([1.0, -1.0], 20)[:, None]
    assert _effective_samples(alternating, alternating, max_lag=39)[0, 0] >= 2
    assert _effective_samples(walk, alternating)[0, 0] == 40
    assert _effective_samples(walk, walk)[0, 0] >= 2
    assert np.isnan(_effective_samples(np.ones((8, 1)), walk[:8] + np.eye(8)[:, :1]))[0, 0]


def naive_mean_autocorrelation(x, lengths, lags, order=None):
    """Loops as above, with each text's own mean; `order` permutes the pooled tokens."""
    x = np.asarray(x, dtype=np.float64)
    x = x if order is None else x[order]
    total, variance, start = np.zeros((len(lags), x.shape[1])), np.zeros(x.shape[1]), 0
    for length in lengths:
        part = x[start : start + length] - x[start : start + length].mean(axis=0)
        variance += (part**2).sum(axis=0)
        for i, lag in enumerate(lags):
            for t in range(length - lag):
                total[i] += part[t] * part[t + lag]
        start += length
    return (total / variance).mean(axis=1)


@pytest.mark.parametrize("lengths", [[50], [17, 33], [20, 1, 29]])
def test_autocorrelation_does_not_reach_across_texts(lengths):
    x = ar1(0.6, 50, 3, seed=1)
    expected = naive_autocorrelation(x, lengths, 9)
    # An FFT of 50 float64 values rounds at 1e-15 or so.
    np.testing.assert_allclose(autocorrelation_within_texts(x, lengths, 9), expected, atol=1e-12)


def test_one_text_has_the_autocorrelation_and_sample_size_of_analysis_utils():
    x, y = ar1(0.8, 120, 4, seed=2), ar1(0.7, 120, 3, seed=3)
    rho_x, rho_y = (autocorrelation_within_texts(v, [120], 30) for v in (x, y))
    np.testing.assert_allclose(rho_x, autocorrelation(x, 30), atol=1e-12)  # same sums, reordered
    expected = reference.effective_sample_size(x, y, 30)
    np.testing.assert_allclose(effective_samples(rho_x, rho_y, 120, pairs=True), expected)
    paired = effective_samples(rho_x[:, :3], rho_y, 120, pairs=False)
    np.testing.assert_allclose(paired, np.diag(expected[:3]))


def test_a_channel_without_variance_is_nan():
    rho = autocorrelation_within_texts(np.ones((10, 1)), [10], 3)
    assert np.isnan(rho).all()
    assert np.isnan(effective_samples(rho, rho, 10, pairs=True)).all()


def test_mean_autocorrelation_and_its_shuffles_equal_the_loops():
    x, lengths = ar1(0.5, 40, 3, seed=4), [25, 15]
    result = mean_autocorrelation(x, lengths, 5, num_shuffles=39, seed=8)
    np.testing.assert_allclose(result.mean, naive_mean_autocorrelation(x, lengths, result.lags))
    rng = np.random.default_rng(8)
    orders = [np.concatenate([rng.permutation(25), 25 + rng.permutation(15)]) for _ in range(39)]
    draws = [naive_mean_autocorrelation(x, lengths, result.lags, order) for order in orders]
    np.testing.assert_allclose(result.null_mean, np.mean(draws, axis=0), atol=1e-12)
    np.testing.assert_allclose(result.null_low, np.min(draws, axis=0), atol=1e-12)
    np.testing.assert_allclose(result.null_high, np.max(draws, axis=0), atol=1e-12)


def test_memory_time_of_series_whose_memory_is_known():
    noise = np.random.default_rng(5).standard_normal((2000, 8))
    # A moving sum of four terms is correlated up to lag 3 and not at lag 4.
    moving = np.sum([np.roll(noise, k, axis=0) for k in range(4)], axis=0)
    assert mean_autocorrelation(moving, [2000], 10).memory_time == 4
    slow = np.linspace(0.0, 1.0, 200)[:, None]
    assert mean_autocorrelation(slow, [200], 10).memory_time is None


def test_white_noise_has_no_memory_and_alternation_is_below_the_null():
    noise = mean_autocorrelation(ar1(0.0, 300, 20, seed=6), [300], 8)
    inside = [low <= rho <= high for low, rho, high in zip(
        noise.null_low, noise.mean, noise.null_high, strict=True
    )]  # fmt: skip
    # Eight lags at 95 % each: two or more outside happen in 6 % of the seeds; this is not one.
    assert sum(inside) >= 7
    signs = np.where(np.arange(100) % 2 == 0, 1.0, -1.0)[:, None]
    alternating = mean_autocorrelation(signs, [100], 4)
    assert (alternating.memory_time, alternating.first_lag_below) == (1, 1)


def test_autocorrelation_that_is_undefined_has_a_reason():
    assert mean_autocorrelation(np.ones((20, 2)), [20], 4).reason is not None
    single = mean_autocorrelation(np.ones((1, 2)), [1], 4)
    assert (single.lags, single.memory_time, single.reason) == ((), None, "a text has one token")
    # Each text is constant: nothing varies in time, though the texts differ.
    steps = np.repeat([0.0, 1.0], 10)[:, None]
    assert mean_autocorrelation(steps, [10, 10], 4).mean == ()
    with pytest.raises(ValueError, match="max_lag is 0"):
        mean_autocorrelation(np.ones((20, 2)), [20], 0)
    with pytest.raises(ValueError, match="num_shuffles is 10"):
        mean_autocorrelation(np.ones((20, 2)), [20], 2, num_shuffles=10)
