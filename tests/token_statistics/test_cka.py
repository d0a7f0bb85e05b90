"""CKA against its definition and its invariances."""

import math

import numpy as np
import pytest
import reference

import analysis_utils as au

# Sums of a few hundred float64 terms of order 1, taken in another order than the reference's.
ROUNDING = 1e-12


def _rng(seed=0):
    return np.random.default_rng(seed)


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
