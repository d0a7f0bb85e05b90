"""The statistics against closed forms, invariances, scipy and naive float64 loops."""

import itertools
import math

import numpy as np
import pytest
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


def _spearman_by_scipy(x, y) -> float:
    return float(np.asarray(stats.spearmanr(x, y))[0])  # (statistic, p-value)


# Entropy


# Autocorrelation


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


def test_hypergeometric_overlap_by_enumeration():
    chosen = {0, 1, 2}
    draws = [len(chosen & set(draw)) for draw in itertools.combinations(range(8), 4)]
    for overlap in range(4):
        expected, p_value = au.hypergeometric_overlap(overlap, 3, 4, 8)
        assert expected == pytest.approx(np.mean(draws))
        assert p_value == pytest.approx(np.mean(np.array(draws) >= overlap))
    with pytest.raises(ValueError, match="overlap 4"):
        au.hypergeometric_overlap(4, 3, 4, 8)
