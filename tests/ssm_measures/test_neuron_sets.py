"""Neuron sets: statistics, concentration, profiles and the comparison of layers."""

import json
import math

import pytest
import torch
from conftest import make_tiny_tokenizer
from neuron_cases import long_set
from torch import Tensor

from ssm_measures.neuron_sets import (
    NeuronSet,
    importance_concentration,
    neuron_behavior,
    neuron_set,
)

IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def make_set(activations: Tensor | None = None, layer: int = 3, **details) -> NeuronSet:
    """Four neurons on two texts, the first left padded by two."""
    generator = torch.Generator().manual_seed(layer)
    if activations is None:
        activations = torch.randn(2, 6, 4, generator=generator)
    importance = torch.tensor([0.5, 2.0, 0.0, 2.0])
    maps = torch.zeros(2, 6, 6)
    method = details.pop("method", "rollout")
    return neuron_set(method, layer, activations, maps, importance, IDS, MASK, **details)


def test_statistics_are_over_tokens_without_padding():
    activations = torch.zeros(2, 6, 4)
    activations[0, :2] = 99.0
    activations[0, 4, 1] = 10.0
    activations[1, 0, 2] = -10.0
    found = make_set(activations)
    assert found.mean.tolist() == pytest.approx([0.0, 1.0, -1.0, 0.0])
    # Ten tokens, one of them 10 and the others 0: variance (81 + 9) / 9 = 10.
    assert found.std.tolist() == pytest.approx([0.0, math.sqrt(10), math.sqrt(10), 0.0], rel=1e-6)
    assert found.maximum.tolist() == [0.0, 10.0, 0.0, 0.0]
    assert found.maximum_at[1].tolist() == [0, 2]  # the third token of the text, not of the row
    # A single outlier among n = 10: n - 5 + 1 / (n - 1).
    assert float(found.kurtosis[1]) == pytest.approx(5 + 1 / 9, rel=1e-6)
    assert math.isnan(found.kurtosis[0])
    assert torch.equal(found.activations[0, :2], torch.zeros(2, 4))


def test_the_share_of_variance_kept_across_texts_in_closed_form():
    activations = torch.zeros(2, 6, 4)
    activations[0, :2] = 99.0  # padding
    activations[0, 2:, 0], activations[1, :, 0] = 1.0, -1.0  # tells the texts apart, nothing else
    activations[..., 1] = torch.tensor([1.0, -1.0]).repeat(3)  # the same in both texts
    # 1, 1, 0, 0 against 0 (6 times): 4 * 0.25 within; 10 tokens of mean 0.2: 2 - 10 * 0.04 in all.
    activations[0, 2:4, 2] = 1.0
    found = make_set(activations).within_text_share
    assert found[:3].tolist() == pytest.approx([0.0, 1.0, 1.0 / 1.6], abs=1e-7)
    assert math.isnan(found[3])  # constant
    alone = long_set(3, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    assert bool(alone.within_text_share.isnan().all())


def test_ranking_is_by_importance_with_ties_by_number():
    assert make_set().ranking.tolist() == [1, 3, 0, 2]
    table = make_set().to_dataframe()
    assert table["neuron"].tolist() == [1, 3, 0, 2]
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["importance"].tolist() == [2.0, 2.0, 0.5, 0.0]


def test_a_set_is_strict_json():
    for found in (make_set(), make_set(torch.zeros(2, 6, 4))):
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text)["top_neurons"][0]["neuron"] == 1


def test_a_single_token_has_no_spread():
    found = long_set(0, torch.ones(1, 3))
    assert torch.isnan(found.std).all()
    assert found.to_dict()["top_neurons"][0]["std"] is None


def test_concentration_of_equal_single_and_known_importance():
    equal = importance_concentration(torch.ones(100))
    assert equal["gini"] == pytest.approx(0.0, abs=1e-12)
    assert equal["participation"] == pytest.approx(1.0)
    assert equal["top_5_percent_share"] == pytest.approx(0.05)
    single = importance_concentration(torch.eye(100)[3])
    assert single["gini"] == pytest.approx(0.99)
    assert single["participation"] == pytest.approx(0.01)
    assert single["top_5_percent_share"] == 1.0
    # Mean absolute difference of {1, 3} over twice the mean: (2 * 2 / 4) / (2 * 2).
    assert importance_concentration(torch.tensor([3.0, 1.0]))["gini"] == pytest.approx(0.25)
    assert importance_concentration(torch.zeros(5))["gini"] is None


def test_behaviour_finds_the_strongest_tokens_of_either_sign_with_their_context():
    activations = torch.zeros(2, 6, 4)
    activations[0, 4, 1] = 3.0
    activations[1, 1, 1] = -5.0
    profile = neuron_behavior(
        make_set(activations), torch.zeros(3, 4), torch.zeros(20, 3), num_neurons=1, num_tokens=2
    ).profiles[0]
    assert profile.neuron == 1
    assert profile.statistics["rank"] == 1
    expected = [
        {"text": 1, "position": 1, "token": "10", "context": "9", "value": -5.0},
        {"text": 0, "position": 2, "token": "7", "context": "5 6", "value": 3.0},
    ]
    assert profile.top_tokens == expected


def test_behaviour_promotes_what_the_output_column_points_to():
    out_weight = torch.zeros(3, 4)
    out_weight[2, 1] = 2.0
    directions = torch.zeros(20, 3)
    directions[7, 2], directions[8, 2] = 1.0, -1.0
    profile = neuron_behavior(
        make_set(), out_weight, directions, make_tiny_tokenizer(), num_neurons=1, num_tokens=1
    ).profiles[0]
    tokens = make_tiny_tokenizer()
    assert profile.promoted == [{"token": tokens.decode([7]), "token_id": 7, "logit": 2.0}]
    assert profile.suppressed == [{"token": tokens.decode([8]), "token_id": 8, "logit": -2.0}]


def test_behaviour_is_strict_json():
    found = neuron_behavior(make_set(), torch.ones(3, 4), torch.eye(20, 3))
    assert len(json.loads(json.dumps(found.to_dict(), allow_nan=False))["neurons"]) == 4


def test_the_top_neurons_are_the_first_rows_of_the_table_and_of_the_summary():
    found = make_set(torch.ones(2, 6, 4))  # constant neurons have no kurtosis
    rows = found.top_neurons(2)
    table = found.to_dataframe().head(2).astype(object)
    assert rows == table.where(table.notna(), None).to_dict(orient="records")
    assert rows[0]["kurtosis"] is None
    assert found.to_dict()["top_neurons"] == found.top_neurons(4)
    json.dumps(rows, allow_nan=False)
