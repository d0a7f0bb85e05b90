"""A row of the overview: against the capture's own measures, closed forms, planted sinks."""

import math

import numpy as np
import pytest
import torch

from ssm_component_extractor import capture, recursive_dynamics
from ssm_measures.attention_maps import mean_map, written_map
from ssm_measures.attention_measures import memory_kernel, query_statistics, row_shares
from ssm_measures.layer_overview import (
    LEAST_HEADS,
    SINK_POSITIONS,
    heads_that_fit,
    layer_text,
    measured_heads,
    openness,
    sink_sums,
)
from tests.conftest import VOCAB_SIZE, make_tiny_model
from tests.hand_weighted import constant_half_life, half_life_of_each_head


@pytest.fixture(scope="module")
def parts():
    """Layer 2 of the tiny model on a text of 50 tokens."""
    ids = torch.randint(1, VOCAB_SIZE, (1, 50), generator=torch.Generator().manual_seed(0))
    return capture(make_tiny_model(), ids, None, [2]).components[2]


def test_over_all_heads_the_numbers_are_those_of_the_maps(parts):
    """The same quantities by the functions that the main analysis measures its layers with."""
    found = layer_text(parts, 1000)
    assert found.heads == tuple(range(64))
    absolute = mean_map(parts, absolute=True)
    queries = query_statistics(absolute, parts.attention_mask)
    dynamics = recursive_dynamics(parts)
    for value, expected in (
        (found.lag_90, memory_kernel(absolute, parts.attention_mask).lag_90[0]),
        (found.recent_share, queries.recent_share.mean()),
        (found.first_share, queries.first_share.mean()),
        (found.self_share, queries.self_share.mean()),
        (found.half_life, dynamics.half_life.median()),
        (found.write, dynamics.write_energy.mean()),
        (found.retain, dynamics.retain_energy[0, 1:].mean()),
    ):
        assert value == pytest.approx(float(expected), rel=1e-4)  # float32 sums over 64 heads
    np.testing.assert_allclose(found.shares, row_shares(written_map(parts))[0], atol=1e-6)


def test_some_heads_are_measured_as_if_they_were_all(parts):
    found = layer_text(parts, 8)
    assert found.heads == tuple(range(0, 64, 8))
    maps = torch.stack([head_map(parts, head) for head in found.heads]).mean(0)
    np.testing.assert_allclose(found.shares, row_shares(maps), atol=1e-6)
    assert found.half_life == layer_text(parts, 1000).half_life


def head_map(parts, head):
    """|alpha u| of one channel, token by token."""
    sums = parts.delta[0, :, head].cumsum(0)
    result = torch.zeros(50, 50)
    for t in range(50):
        for s in range(t + 1):
            decay = torch.exp(parts.A[head] * (sums[t] - sums[s]))
            alpha = (parts.C[0, t] * decay * parts.B[0, s]).sum() * parts.delta[0, s, head]
            result[t, s] = (alpha * parts.u[0, s, head]).abs()
    return result


@pytest.mark.parametrize("half_life", [2.0, 30.0])
def test_a_planted_half_life_is_found(half_life):
    ids = torch.randint(1, 6, (1, 64), generator=torch.Generator().manual_seed(1))
    parts = capture(constant_half_life(half_life), ids, None, [0]).components[0]
    found = layer_text(parts, 100)
    assert found.half_life == pytest.approx(half_life, rel=1e-3)
    assert found.tokens_to_half == half_life
    assert found.limited_by_text == (half_life > 16)


def test_heads_of_mamba_2_have_their_own():
    ids = torch.randint(1, 6, (1, 40), generator=torch.Generator().manual_seed(1))
    parts = capture(half_life_of_each_head([4.0, 5.0, 90.0]), ids, None, [0]).components[0]
    found = layer_text(parts, 100)
    assert found.half_life == pytest.approx(5.0, rel=1e-3)
    assert len(found.heads) == 3


def test_heads_are_spaced_evenly_and_alike_in_every_group():
    assert measured_heads(64, 1, 4).tolist() == [0, 16, 32, 48]
    assert measured_heads(12, 2, 4).tolist() == [0, 3, 6, 9]
    assert measured_heads(12, 4, 2).tolist() == [0, 3, 6, 9]  # one of each group at least
    assert measured_heads(5, 1, 9).tolist() == [0, 1, 2, 3, 4]
    assert heads_that_fit(512) == 24
    assert heads_that_fit(10**6) == LEAST_HEADS


def test_openness_is_in_standard_deviations_and_a_constant_head_says_nothing():
    delta = torch.tensor([[1.0, 7.0], [math.e, 7.0], [1.0, 7.0], [math.e, 7.0]])
    np.testing.assert_allclose(openness(delta), [-0.5, 0.5, -0.5, 0.5])


def test_a_sink_stands_beside_the_sources_after_it():
    shares = np.tril(np.ones((60, 60)))
    shares[:, 0] = 5.0
    shares /= shares.sum(1, keepdims=True)
    sums = sink_sums(shares)
    gains = sums[sums[:, 1] > 0]
    assert gains[0, 0] / gains[0, 1] == pytest.approx(5.0)
    np.testing.assert_allclose(gains[1:, 0], gains[1:, 1])
    assert len(sums) == SINK_POSITIONS + 1
    assert (sums[41:] == 0).all()  # fewer than 8 queries 12 tokens later
