"""Measures of attention maps: closed forms, float64 loops, padding, and what is undefined."""

import math

import hand_weighted
import pytest
import reference
import torch
from conftest import make_tiny_model

from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import (
    map_agreement,
    memory_kernel,
    query_statistics,
    row_shares,
    row_stochastic,
    synthetic_attention,
)

LENGTH = 12


def ones(length: int = LENGTH) -> torch.Tensor:
    return torch.ones(1, length, dtype=torch.int64)


def causal(map_: torch.Tensor) -> torch.Tensor:
    return map_.tril().unsqueeze(0)


def padded_components(padding: int = 9):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (2, 30), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return capture(make_tiny_model(), ids, mask, [1]).components[1]


def test_statistics_of_uniform_attention():
    found = query_statistics(causal(torch.ones(LENGTH, LENGTH, dtype=torch.float64)), ones())
    sources = torch.arange(1, LENGTH + 1, dtype=torch.float64)
    expected = {
        "entropy": sources.log(),
        "strength": sources,
        "self_share": 1 / sources,
        "first_share": 1 / sources,
        "recent_share": (4 / sources).clamp(max=1),
        "mean_distance": (sources - 1) / 2,
    }
    for name, values in expected.items():
        # A few float64 roundings.
        torch.testing.assert_close(getattr(found, name)[0], values, rtol=0, atol=1e-12)
    assert math.isnan(found.entropy_share[0, 0])
    assert found.entropy_share[0, 1:].tolist() == pytest.approx([1.0] * (LENGTH - 1), abs=1e-12)


def test_statistics_of_attention_to_one_token():
    to_self = query_statistics(torch.eye(LENGTH).unsqueeze(0), ones())
    assert torch.equal(to_self.self_share, torch.ones(1, LENGTH))
    assert torch.equal(to_self.mean_distance, torch.zeros(1, LENGTH))
    assert torch.equal(to_self.entropy, torch.zeros(1, LENGTH))
    first = torch.zeros(LENGTH, LENGTH)
    first[:, 0] = 3.0
    to_first = query_statistics(causal(first), ones())
    assert torch.equal(to_first.first_share, torch.ones(1, LENGTH))
    assert to_first.mean_distance[0].tolist() == list(range(LENGTH))
    assert to_first.strength[0].tolist() == [3.0] * LENGTH


def test_a_query_without_attention_has_strength_zero_and_nothing_else():
    empty = causal(torch.ones(LENGTH, LENGTH))
    empty[0, 5] = 0.0
    found = query_statistics(empty, ones())
    assert found.strength[0, 5] == 0.0
    for name in ("entropy", "self_share", "first_share", "recent_share", "mean_distance"):
        assert math.isnan(getattr(found, name)[0, 5])
        assert torch.isfinite(getattr(found, name)[0, 6:]).all()
    assert found.to_dict()["entropy"]["num_undefined"] == 1


def test_padding_is_in_no_statistic():
    components = padded_components()
    absolute = mean_map(components, absolute=True)
    batched = query_statistics(absolute, components.attention_mask)
    kernel = memory_kernel(absolute, components.attention_mask)
    alone = components.text(1)
    single = query_statistics(mean_map(alone, absolute=True), alone.attention_mask)
    for name in vars(single):
        values = getattr(batched, name)[1]
        assert torch.isnan(values[:9]).all()
        # The suite's bound for a padded batch against one text at a time.
        torch.testing.assert_close(
            values[9:], getattr(single, name)[0], rtol=1e-5, atol=1e-6, equal_nan=True
        )
    alone_kernel = memory_kernel(mean_map(alone, absolute=True), alone.attention_mask)
    torch.testing.assert_close(kernel.kernel[1, :21], alone_kernel.kernel[0], rtol=1e-5, atol=1e-7)
    assert torch.equal(kernel.kernel[1, 21:], torch.zeros(9))
    assert kernel.mean_lag[1] == pytest.approx(alone_kernel.mean_lag[0], rel=1e-5)
    assert kernel.lag_90[1] == alone_kernel.lag_90[0]


def test_memory_kernel_of_a_planted_half_life_is_geometric():
    model = hand_weighted.constant_half_life(3.0)
    ids = torch.randint(0, 6, (1, 40), generator=torch.Generator().manual_seed(0))
    components = capture(model, ids, None, [0]).components[0]
    found = memory_kernel(mean_map(components, absolute=True), components.attention_mask)
    expected = 2.0 ** (-torch.arange(40) / 3)
    expected = expected / expected.sum()
    # Float32 weights and 39 tokens of decay.
    torch.testing.assert_close(found.kernel[0], expected, rtol=1e-4, atol=1e-8)
    lags = torch.arange(40)
    assert found.mean_lag[0] == pytest.approx(float((lags * expected).sum()), rel=1e-4)
    passed = expected.cumsum(0)
    assert found.median_lag[0] == int((passed >= 0.5).nonzero()[0]) == 2
    assert found.lag_90[0] == int((passed >= 0.9).nonzero()[0]) == 9


def test_memory_kernel_of_no_attention_is_undefined():
    found = memory_kernel(torch.zeros(1, 5, 5), ones(5))
    assert torch.isnan(found.kernel).all()
    assert found.to_dict() == {
        "mean_lag": [None],
        "median_lag": [None],
        "lag_90": [None],
        "kernel": [[None] * 5],
    }


def test_memory_kernel_counts_each_lag_by_the_queries_that_have_it():
    found = memory_kernel(causal(torch.ones(6, 6)), ones(6))
    assert found.kernel[0].tolist() == pytest.approx([1 / 6] * 6, rel=1e-6)


def test_synthetic_attention_is_the_softmax_of_cosines():
    components = padded_components(0)
    actual = synthetic_attention(components, 0.25)
    for row in range(2):
        expected = reference.cosine_attention(components.hidden_states[row], 0.25)
        # Float32 cosines (1e-7) over the temperature.
        torch.testing.assert_close(actual[row].double(), expected, rtol=1e-4, atol=1e-6)


def test_padding_is_in_no_synthetic_attention():
    rows = synthetic_attention(padded_components())[1].sum(-1)
    assert torch.equal(rows[:9], torch.zeros(9))
    assert rows[9:].tolist() == pytest.approx([1.0] * 21, abs=1e-5)


def test_a_state_of_zero_is_like_no_other():
    # Nothing is written before the first marked token: those states are zero.
    ids = torch.tensor([[1, 3, 2, 4]])
    components = capture(hand_weighted.write_at_marked(2), ids, None, [0]).components[0]
    actual = synthetic_attention(components, 1.0)[0]
    assert actual[1].tolist() == [0.5, 0.5, 0.0, 0.0]
    # cos = 0 with the two zero states, 1 with itself.
    weights = torch.tensor([1.0, 1.0, math.e, 0.0]) / (2 + math.e)
    assert actual[2].tolist() == pytest.approx(weights.tolist(), rel=1e-5)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature is 0"):
        synthetic_attention(padded_components(), 0.0)


def test_rows_of_shares_sum_to_one_or_are_empty():
    map_ = causal(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)))
    map_[0, 3] = 0.0
    expected = torch.ones(6)
    expected[3] = 0.0
    torch.testing.assert_close(row_shares(map_).sum(-1)[0], expected)
    stochastic = row_stochastic(map_)[0]
    torch.testing.assert_close(stochastic.sum(-1), torch.ones(6))
    assert stochastic[3].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_tiny_rows_keep_their_shares():
    tiny = causal(torch.full((4, 4), 1e-30))
    torch.testing.assert_close(row_shares(tiny)[0, 3], torch.full((4,), 0.25))


def test_agreement_is_one_with_itself_and_leaves_padding_out():
    map_ = causal(torch.rand(9, 9, generator=torch.Generator().manual_seed(0)))
    assert map_agreement(map_, map_, ones(9)) == (pytest.approx(1.0, abs=1e-12),)
    mask = ones(9)
    mask[0, :4] = 0
    noise = map_.clone()
    noise[0, :, :4] = 7.0
    assert map_agreement(noise, map_, mask) == (pytest.approx(1.0, abs=1e-12),)
    assert map_agreement(map_[:, :2, :2], map_[:, :2, :2], ones(2)) == (None,)
