"""p-values of pairs against counting, and the tail beyond all draws against closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

from token_statistics.association import rejected_and_adjusted
from token_statistics.pair_significance import ShiftedPairs


def null_of(draws, effective=1.0):
    pairs = ShiftedPairs(np.full(draws[0].shape, effective))
    for number, draw in enumerate(draws):
        pairs.add(torch.from_numpy(np.abs(draw).astype(np.float32)), number)
    return pairs


def test_within_the_draws_p_is_counted():
    rng = np.random.default_rng(0)
    draws = rng.uniform(0, 1, (39, 20, 10))
    z = np.array([0.2, 0.5, 0.99])
    counted = [(1 + (draws >= value).sum()) / (1 + draws.size) for value in z]
    # Draws in the bin of a value, 1 / 8192 of the range, count as at least as far.
    assert null_of(draws).p_values(z) == pytest.approx(counted, abs=2 / 8192)


def test_beyond_the_draws_gaussian_data_have_a_gaussian_tail_and_heavy_ones_a_heavy_one():
    rng = np.random.default_rng(1)
    n = 1e6
    gaussian = null_of(rng.standard_normal((39, 40, 40)) / np.sqrt(n), n)
    beyond = gaussian.p_values(np.array([8.0]))[0]
    # The tail is extrapolated over eight decades: right to within a few of them, never large.
    assert 1e-22 < beyond < 1e-9
    assert 2 * stats.norm.sf(8.0) < beyond * 1e5
    heavy = null_of(np.clip(rng.standard_cauchy((39, 40, 40)) / np.sqrt(n), -1, 1), n)
    largest = heavy.largest
    p_values = heavy.p_values(np.array([1.1, 2.0]) * largest)
    # Of a Cauchy tail a tenth is left after ten times the distance.
    assert 1e-3 / 62_401 < p_values[1] < p_values[0] <= 1 / 62_401


def test_the_share_by_chance_is_that_of_the_first_draws():
    rng = np.random.default_rng(2)
    draws = rng.standard_normal((39, 10, 10)) / 20
    assert null_of(draws, 400.0).share_by_chance() <= 0.01
    strong = np.where(np.arange(100).reshape(10, 10) < 50, 0.9, 0.0)
    assert null_of([strong, *draws[1:]], 400.0).share_by_chance() > 0.1


def test_the_share_by_chance_is_that_of_sorted_p_values():
    rng = np.random.default_rng(3)
    draws = rng.standard_normal((39, 12, 10)) / 20
    draws[:2, :3] += 0.6
    nowhere = (np.empty(0, np.int64), np.empty(0, np.int64))
    null = null_of(draws, 400.0)
    z = np.abs(draws[:3].astype(np.float32)).astype(float) * 20.0
    shares = [rejected_and_adjusted(null.p_values(one), nowhere)[0] for one in z]
    assert null.share_by_chance() == pytest.approx(np.mean(shares), abs=1e-12)
    assert np.mean(shares) > 0.1
