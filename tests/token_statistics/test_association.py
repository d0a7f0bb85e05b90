"""The statistics against closed forms, invariances, scipy and naive float64 loops."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import reference
import torch
from scipy import signal, stats

import analysis_utils as au
from token_statistics.autocorrelation import autocorrelation_within_texts, effective_samples

# Sums of a few hundred float64 terms of order 1, taken in another order than the reference's.
ROUNDING = 1e-12


def _rng(seed=0):
    return np.random.default_rng(seed)


def _ar1(coefficient, length, channels, seed):
    """AR(1) series x_t = a x_{t-1} + noise, the first 500 steps dropped: stationary."""
    noise = _rng(seed).normal(size=(length + 500, channels))
    return signal.lfilter([1.0], [1.0, -coefficient], noise, axis=0)[500:]


def naive_autocorrelation(x, max_lag):
    length, channels = x.shape
    rho = np.zeros((max_lag + 1, channels))
    for c in range(channels):
        d = x[:, c] - x[:, c].mean()
        for k in range(max_lag + 1):
            rho[k, c] = sum(d[t] * d[t + k] for t in range(length - k)) / sum(d**2)
    return rho


def _spearman_by_scipy(x, y) -> float:
    return float(np.asarray(stats.spearmanr(x, y))[0])  # (statistic, p-value)


# Entropy


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


# Autocorrelation


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


# Shifts


# Pearson, effective sample size, p-values, false discovery rate


def test_pearson_matrix_equals_numpy_and_takes_tensors():
    x, y = _rng().normal(size=(50, 4)), _rng(1).normal(size=(50, 3))
    expected = np.corrcoef(x.T, y.T)[:4, 4:]
    np.testing.assert_allclose(au.pearson_matrix(x, y), expected, atol=ROUNDING)
    tensors = au.pearson_matrix(torch.tensor(x, requires_grad=True), torch.tensor(y))
    np.testing.assert_allclose(tensors, expected, atol=ROUNDING)


def test_pearson_matrix_of_a_small_spread_around_a_large_mean():
    x = _rng().normal(size=(200, 2))
    r = au.pearson_matrix(x + 1e6, -2.0 * x)
    # Adding 1e6 rounds x by 1e-10.
    np.testing.assert_allclose(np.diag(r), -1.0, atol=1e-9)
    assert np.abs(r).max() <= 1.0


def test_pearson_matrix_is_undefined_only_where_variance_is_zero():
    x = np.stack([np.full(9, 0.1), np.arange(9.0)], axis=1)
    r = au.pearson_matrix(x, x)
    assert np.isnan(r).tolist() == [[True, True], [True, False]]
    assert np.isnan(au.pearson_matrix(np.ones((1, 2)), np.ones((1, 2)))).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 1)), "x has 4 samples and y 5"),
        (np.ones(5), r"x has shape \(5,\)"),
        (np.ones((0, 2)), r"x has shape \(0, 2\)"),
        (np.full((5, 1), np.nan), "x holds nan or infinite"),
    ],
)
def test_pearson_matrix_refuses_bad_input(x, message):
    with pytest.raises(ValueError, match=message):
        au.pearson_matrix(x, np.arange(5.0)[:, None])


def _effective_samples(x, y, max_lag=None):
    """`effective_samples` of one text, every pair of columns."""
    lags = len(x) // 4 if max_lag is None else max_lag
    rho_x, rho_y = (autocorrelation_within_texts(v, [len(v)], lags) for v in (x, y))
    return effective_samples(rho_x, rho_y, len(x), pairs=True)


def test_effective_sample_size_equals_the_loop():
    x, y = _ar1(0.6, 60, 3, seed=0), _ar1(0.7, 60, 2, seed=1)
    rho_x, rho_y = naive_autocorrelation(x, 15), naive_autocorrelation(y, 15)
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


def test_pearson_p_values_equal_scipy():
    x, y = _rng().normal(size=(12, 3)), _rng(1).normal(size=(12, 2))
    p = au.pearson_p_values(au.pearson_matrix(x, y), 12)
    for i, j in itertools.product(range(3), range(2)):
        # scipy goes through the beta distribution: two routes, each good to about 1e-13.
        assert p[i, j] == pytest.approx(stats.pearsonr(x[:, i], y[:, j])[1], rel=1e-11)


def test_pearson_p_values_at_the_edges():
    p = au.pearson_p_values([1.0, -1.0, 0.0, 1.0, np.nan, 0.5], [9.0, 9.0, 9.0, 2.0, 9.0, np.nan])
    np.testing.assert_array_equal(p, [0.0, 0.0, 1.0, 1.0, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
        au.pearson_p_values([1.1], 9)


def test_p_values_of_independent_white_noise_are_uniform():
    x, y = _rng(1).normal(size=(200, 100)), _rng(2).normal(size=(200, 100))
    p = au.pearson_p_values(au.pearson_matrix(x, y), 200.0).ravel()
    # 10^4 pairs: the standard error of a share is at most 0.005; four of them.
    for level in (0.05, 0.25, 0.5, 0.75):
        assert (p < level).mean() == pytest.approx(level, abs=0.02)


def test_false_positives_of_autocorrelated_noise_stay_at_the_level():
    x, y = _ar1(0.9, 500, 100, seed=3), _ar1(0.9, 500, 100, seed=4)
    r = au.pearson_matrix(x, y)
    corrected = au.pearson_p_values(r, _effective_samples(x, y))
    # 10^4 pairs of 200 series: they share series, so the standard error is near 0.005.
    assert (corrected < 0.05).mean() == pytest.approx(0.05, abs=0.02)
    assert (au.pearson_p_values(r, 500) < 0.05).mean() > 0.4
    assert au.benjamini_hochberg(corrected).rejected.mean() < 0.001


def test_benjamini_hochberg_on_a_worked_example():
    # The example of the 1995 paper: 15 p-values, the first 4 rejected at 5 %.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    rejected, adjusted = au.benjamini_hochberg(p)
    assert rejected.tolist() == [True] * 4 + [False] * 11
    expected = [min(p[j] * 15 / (j + 1) for j in range(i, 15)) for i in range(15)]
    np.testing.assert_allclose(adjusted, expected, rtol=ROUNDING)


def test_benjamini_hochberg_keeps_undefined_entries_outside_the_family():
    rejected, adjusted = au.benjamini_hochberg(np.array([[0.04, np.nan], [0.03, np.nan]]))
    np.testing.assert_allclose(adjusted, [[0.04, np.nan], [0.04, np.nan]], rtol=ROUNDING)
    assert rejected.tolist() == [[True, False], [True, False]]
    assert not au.benjamini_hochberg([np.nan]).rejected.any()
    with pytest.raises(ValueError, match="q is 1"):
        au.benjamini_hochberg([0.1], q=1.0)


# CKA


@pytest.mark.parametrize(("p", "q"), [(3, 4), (40, 50)])
def test_cka_equals_the_definition_in_the_feature_and_the_gram_form(p, q):
    shared = _rng().normal(size=(15, 2))
    x = shared @ _rng(1).normal(size=(2, p)) + _rng(2).normal(size=(15, p)) + 3.0
    y = shared @ _rng(3).normal(size=(2, q)) + _rng(4).normal(size=(15, q)) - 1.0
    # The definition cancels the offsets only in its last sum.
    assert au.linear_cka(x, y) == pytest.approx(reference.debiased_cka(x, y), abs=1e-10)
    k, gram = ((v - v.mean(0)) @ (v - v.mean(0)).T for v in (x, y))
    biased = (k * gram).sum() / np.linalg.norm(k) / np.linalg.norm(gram)
    assert au.linear_cka(x, y, debiased=False) == pytest.approx(biased, abs=ROUNDING)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_is_one_for_rotated_scaled_and_shifted_copies(debiased):
    x = _rng().normal(size=(30, 8))
    rotation = np.linalg.qr(_rng(1).normal(size=(8, 8)))[0]
    for copy in (x, x @ rotation, 1e-9 * x, -5.0 * x @ rotation + 2.0):
        # The diagonal terms that debiasing takes out cost a few of the 16 digits.
        assert au.linear_cka(x, copy, debiased) == pytest.approx(1.0, abs=1e-10)


def test_debiased_cka_of_independent_wide_noise_is_about_zero_and_the_biased_is_not():
    x, y = _rng().normal(size=(50, 400)), _rng(1).normal(size=(50, 400))
    # The n (n - 3) / 2 pairs of samples give it a spread of about 1 / n.
    assert abs(au.linear_cka(x, y)) < 4 / 50
    assert au.linear_cka(x, y, debiased=False) > 0.8


def test_cka_is_undefined_without_variance_and_refused_for_few_samples():
    x = _rng().normal(size=(6, 2))
    assert math.isnan(au.linear_cka(np.full((6, 2), 0.1), x))
    # Orthogonal samples are all equally far apart: no structure is left after debiasing.
    assert math.isnan(au.linear_cka(np.eye(6), x))
    with pytest.raises(ValueError, match="have 3 samples; this CKA needs 4"):
        au.linear_cka(x[:3], x[:3])


# Ranks


def test_spearman_with_ties_equals_scipy():
    x, y = _rng().integers(0, 4, 40), _rng(1).integers(0, 4, 40)
    assert au.spearman(x, y) == pytest.approx(_spearman_by_scipy(x, y), abs=ROUNDING)
    columns = _rng(2).integers(0, 5, (40, 3))
    expected = [_spearman_by_scipy(x, column) for column in columns.T]
    np.testing.assert_allclose(au.spearman_matrix(x[:, None], columns)[0], expected, atol=ROUNDING)


def test_spearman_is_unchanged_by_monotone_maps_and_undefined_for_constants():
    x = _rng().normal(size=30)
    assert au.spearman(x, np.exp(x)) == pytest.approx(1.0, abs=ROUNDING)
    assert au.spearman(x, -(x**3)) == pytest.approx(-1.0, abs=ROUNDING)
    assert math.isnan(au.spearman(x, np.ones(30)))


def test_causal_spearman_is_the_mean_over_queries_and_reads_no_future():
    # 140 rows are three blocks; the first of them have ties.
    a, b = _rng().normal(size=(140, 140)), _rng(1).normal(size=(140, 140))
    a[:9] = np.round(2 * a[:9])
    rows = [_spearman_by_scipy(a[t, : t + 1], b[t, : t + 1]) for t in range(2, 140)]
    assert au.causal_spearman(a, b) == pytest.approx(np.mean(rows), abs=ROUNDING)
    assert au.causal_spearman(torch.tensor(a).tril(), b) == au.causal_spearman(a, b)


def test_causal_spearman_leaves_out_constant_rows_and_is_none_without_any_other():
    a = np.arange(16.0).reshape(4, 4)
    b = a.copy()
    b[3] = 1.0
    assert au.causal_spearman(a, b) == pytest.approx(1.0, abs=ROUNDING)
    assert au.causal_spearman(a, np.ones((4, 4))) is None
    assert au.causal_spearman(a[:2, :2], a[:2, :2]) is None
    with pytest.raises(ValueError, match="must be the same"):
        au.causal_spearman(a, a[:2, :2])


# Participation ratio, bootstrap, overlap, kurtosis, errors, summaries


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


def test_bootstrap_interval_of_a_gaussian_mean():
    values = _rng().normal(loc=2.0, size=400)
    low, high = au.bootstrap_interval(values, seed=1)
    half_width = 1.96 * values.std() / 20
    # 2000 resamples place a 2.5 % quantile to about 6 % of the half-width.
    assert low == pytest.approx(values.mean() - half_width, abs=0.2 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.2 * half_width)
    assert au.bootstrap_interval(values, seed=1) == (low, high)


def test_bootstrap_interval_of_equal_values_is_a_point_and_needs_two():
    assert au.bootstrap_interval(np.full(5, 3.0), np.median) == (3.0, 3.0)
    with pytest.raises(ValueError, match="values has 1 entries"):
        au.bootstrap_interval([1.0])


def test_hypergeometric_overlap_by_enumeration():
    chosen = {0, 1, 2}
    draws = [len(chosen & set(draw)) for draw in itertools.combinations(range(8), 4)]
    for overlap in range(4):
        expected, p_value = au.hypergeometric_overlap(overlap, 3, 4, 8)
        assert expected == pytest.approx(np.mean(draws))
        assert p_value == pytest.approx(np.mean(np.array(draws) >= overlap))
    with pytest.raises(ValueError, match="overlap 4"):
        au.hypergeometric_overlap(4, 3, 4, 8)


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
        "median": 2.0,
        "max": 6.0,
        "n": 3,
        "num_undefined": 3,
    }
    for values in ([], [1.0], torch.tensor([math.nan])):
        json.dumps(au.summarise(values), allow_nan=False)
    assert au.summarise([4.0])["std"] is None
    assert au.summarise([])["mean"] is None
