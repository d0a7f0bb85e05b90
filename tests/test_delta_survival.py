"""Survival under the data's own delta is that of the loop, in every text by itself."""

import math

import numpy as np
import pytest
import torch

import delta_extraction as delta_survival
from delta_extraction import survival


def loop(deltas, A, lag):
    """Mean over states and tokens of the product of `lag` decays, by head."""
    A = A.double().numpy()
    kept = [
        [
            math.prod(math.exp(a * step) for step in delta[t - lag + 1 : t + 1, head])
            for head in range(len(A))
            for a in A[head]
        ]
        for delta in deltas
        for t in range(lag, len(delta))
    ]
    return np.mean(np.array(kept).reshape(len(kept), *A.shape), axis=(0, 2))


@pytest.mark.parametrize("block_size", [1, 1 << 17])
@pytest.mark.parametrize("states", [1, 3])
def test_shares_are_those_of_the_loop(monkeypatch, block_size, states):
    monkeypatch.setattr(delta_survival, "_BLOCK_SIZE", block_size)  # heads by 16, and all at once
    rng = np.random.default_rng(0)
    deltas = [rng.uniform(0.01, 0.3, (length, 20)) for length in (23, 5, 1)]
    A = -torch.from_numpy(rng.uniform(0.2, 4.0, (20, states)))
    found = survival(deltas, A, 256)
    assert found.lags == (1, 2, 4, 8, 16)
    for lag, shares in zip(found.lags, found.shares, strict=True):
        np.testing.assert_allclose(shares, loop(deltas, A, lag), rtol=1e-5)  # float32
    every = np.exp(np.concatenate(deltas)[:, :, None] * A.numpy()).mean(axis=(0, 2))
    np.testing.assert_allclose(found.kept, every, rtol=1e-6)  # float32


def test_lags_end_at_the_largest_asked_for_and_at_the_longest_text():
    delta, A = np.full((40, 2), 0.1), -torch.ones(2, 1)
    assert survival([delta], A, 8).lags == (1, 2, 4, 8)
    assert survival([delta[:8]], A, 8).lags == (1, 2, 4)
    alone = survival([delta[:1]], A, 8)
    assert alone.lags == ()
    assert alone.shares.shape == (0, 2)
    np.testing.assert_allclose(alone.kept, math.exp(-0.1), rtol=1e-6)  # float32


def test_what_has_all_but_vanished_is_nothing():
    found = survival([np.full((40, 1), 1.0)], torch.tensor([[-30.0]]), 16)
    np.testing.assert_allclose(found.shares[0], math.exp(-30), rtol=1e-5)  # float32
    assert found.shares[1:].max() == 0.0  # below 1e-26
