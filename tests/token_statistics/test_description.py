"""Descriptions of one set of samples against closed forms, scipy and naive loops."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

import analysis_utils as au

# Sums of a few hundred float64 terms of order 1, taken in another order than the reference's.
ROUNDING = 1e-12


def _rng(seed=0):
    return np.random.default_rng(seed)


def naive_autocorrelation(x, max_lag):
    length, channels = x.shape
    rho = np.zeros((max_lag + 1, channels))
    for c in range(channels):
        d = x[:, c] - x[:, c].mean()
        for k in range(max_lag + 1):
            rho[k, c] = sum(d[t] * d[t + k] for t in range(length - k)) / sum(d**2)
    return rho


def test_entropy_of_uniform_and_one_hot_weights():
    weights = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 5.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([math.log(4), 0.0], dtype=torch.float64)
    torch.testing.assert_close(au.entropy(weights), expected, rtol=ROUNDING, atol=ROUNDING)


def test_entropy_agrees_with_scipy_along_any_axis_and_ignores_scale():
    weights = _rng().random((5, 7, 3))
    expected = stats.entropy(weights, axis=1)
    np.testing.assert_allclose(au.entropy(weights, dim=1), expected, rtol=ROUNDING)
    np.testing.assert_allclose(au.entropy(1e-30 * weights, dim=1), expected, rtol=ROUNDING)


def test_entropy_keeps_the_dtype_and_marks_a_zero_row_undefined():
    result = au.entropy(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert result.dtype == torch.float32
    assert torch.isnan(result).tolist() == [True, False]
    assert au.entropy(np.array([1, 1])).dtype == torch.float64


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_entropy_refuses_what_is_no_weight(bad):
    with pytest.raises(ValueError, match="weights holds negative or non-finite"):
        au.entropy(torch.tensor([1.0, bad]))


def test_autocorrelation_equals_the_loop():
    x = _rng().normal(size=(37, 3)).cumsum(axis=0)
    for max_lag in (0, 5, 36):
        np.testing.assert_allclose(
            au.autocorrelation(x, max_lag), naive_autocorrelation(x, max_lag), atol=ROUNDING
        )


def test_autocorrelation_of_an_alternating_series_in_closed_form():
    x = torch.tensor([[1.0], [-1.0]] * 8)
    expected = [(-1) ** k * (16 - k) / 16 for k in range(16)]
    np.testing.assert_allclose(au.autocorrelation(x, 15)[:, 0], expected, atol=ROUNDING)


def test_autocorrelation_ignores_scale_and_offset():
    x = _rng().normal(size=(64, 2))
    # 1e-200 squared is below the smallest float64: the scale has to be taken out first.
    for scaled in (x * 1e-200, x * -3e100, x + 7.0):
        np.testing.assert_allclose(
            au.autocorrelation(scaled, 9), au.autocorrelation(x, 9), atol=ROUNDING
        )


def test_autocorrelation_is_undefined_without_variance():
    x = np.stack([np.full(10, 0.1), np.arange(10.0)], axis=1)
    rho = au.autocorrelation(x, 3)
    assert np.isnan(rho[:, 0]).all()
    assert np.isfinite(rho[:, 1]).all()
    assert np.isnan(au.autocorrelation(np.ones((1, 2)), 0)).all()


@pytest.mark.parametrize("max_lag", [-1, 10])
def test_autocorrelation_refuses_a_lag_outside_the_series(max_lag):
    with pytest.raises(ValueError, match=re.escape("for 10 tokens it must be 0..9")):
        au.autocorrelation(np.ones((10, 1)), max_lag)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_participation_ratio_equals_the_eigenvalues(shape):
    samples = _rng().normal(size=shape) * np.arange(1, shape[1] + 1)
    eigenvalues = np.linalg.eigvalsh(np.cov(samples.T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert au.participation_ratio(samples) == pytest.approx(expected, rel=1e-10)
    covariance = np.cov(samples.T)
    assert au.covariance_participation_ratio(covariance) == pytest.approx(expected, rel=1e-10)


def test_participation_ratio_counts_equal_directions_per_leading_index():
    simplex = np.eye(5)  # five points equally far apart span four equal directions
    line = np.outer(np.arange(5.0), np.arange(1.0, 6.0))
    ratios = au.participation_ratio(np.stack([simplex, line, np.ones((5, 5))]))
    np.testing.assert_allclose(ratios, [4.0, 1.0, np.nan], rtol=ROUNDING)
    assert au.covariance_participation_ratio(3.0 * np.eye(7)) == pytest.approx(7.0)
    assert np.isnan(au.participation_ratio(np.ones((1, 3))))


def test_kurtosis_of_known_distributions_and_edges():
    two_points = np.tile([1.0, -1.0], 50)
    outlier = np.eye(100)[0]
    x = np.stack([two_points, outlier, np.full(100, 0.1), two_points * 1e-90 + 1e-85], axis=1)
    # The last column keeps 11 of its 16 digits beside its mean.
    np.testing.assert_allclose(au.kurtosis(x), [-2.0, 95 + 1 / 99, np.nan, -2.0], rtol=1e-9)
    noise = _rng().normal(size=(60, 4))
    np.testing.assert_allclose(au.kurtosis(noise), stats.kurtosis(noise), atol=ROUNDING)


def test_relative_error_and_its_edges():
    assert au.relative_error(torch.tensor([3.0, 4.5]), np.array([3.0, 4.0])) == 0.1
    zero = np.zeros(2)
    assert au.relative_error(zero, zero) == 0.0
    assert au.relative_error([0.0, 1.0], zero) == math.inf
    assert math.isnan(au.relative_error([0.0, math.nan], zero))
    with pytest.raises(ValueError, match="they must agree"):
        au.relative_error(np.zeros(2), np.zeros((2, 1)))


def test_relative_error_resolves_float32_rounding_of_large_tensors():
    expected = torch.ones(1000, dtype=torch.float32)
    actual = expected.clone()
    actual[0] += 2**-23  # one ulp: a float32 norm of 1000 ones would still see it, in float64 exact
    assert au.relative_error(actual, expected) == pytest.approx(2**-23 / math.sqrt(1000), rel=1e-12)


def test_summarise_is_strict_json_whatever_comes():
    summary = au.summarise([1.0, 2.0, math.nan, 6.0, None, math.inf])
    assert summary == {
        "mean": 3.0,
        "std": pytest.approx(math.sqrt(7.0)),
        "min": 1.0,
        "lower_quartile": 1.5,
        "median": 2.0,
        "upper_quartile": 4.0,
        "max": 6.0,
        "n": 3,
        "num_undefined": 3,
    }
    for values in ([], [1.0], torch.tensor([math.nan])):
        json.dumps(au.summarise(values), allow_nan=False)
    assert au.summarise([4.0])["std"] is None
    assert au.summarise([])["mean"] is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1000])
def test_quartiles_of_a_summary_are_those_of_numpy(size):
    values = np.random.default_rng(size).standard_normal(size)
    found = au.summarise(values)
    names = ("lower_quartile", "median", "upper_quartile")
    quartiles = np.array([found[name] for name in names], dtype=float)
    # Rounding alone: numpy interpolates from whichever end is nearer.
    np.testing.assert_allclose(quartiles, np.quantile(values, (0.25, 0.5, 0.75)), rtol=1e-12)
