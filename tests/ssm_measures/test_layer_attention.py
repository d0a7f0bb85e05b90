"""Attention of captured layers: what its JSON, tables, tensors and lines say."""

import json

import pytest
import torch
from conftest import make_tiny_model

from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import mixer_parameters
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.layer_attention import attention_data, layer_attention

LAYERS = [0, 1, 3]


@pytest.fixture(scope="module")
def captured():
    ids = torch.randint(1, 64, (1, 30), generator=torch.Generator().manual_seed(0))
    model = make_tiny_model()
    sites = find_mixers(model)
    parameters = {layer: mixer_parameters(sites[layer]) for layer in LAYERS}
    return capture(model, ids, None, LAYERS), parameters


def test_layer_attention_is_strict_json_with_values_by_query(captured):
    found = layer_attention(captured[0].components[1])
    section = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(section["by_query"]["entropy"][0]) == 30
    strength = float(found.absolute[0, 7].sum())
    assert section["by_query"]["strength"][0][7] == float(f"{strength:.3g}")
    assert -1 <= section["agreement_with_synthetic"][0] <= 1


def test_data_hold_every_layer_with_its_number_maps_and_table(captured):
    data = attention_data(*captured)
    assert list(data.layers) == LAYERS
    assert data.layer(3).layer == 3
    expected = mean_map(captured[0].components[3])
    torch.testing.assert_close(data.tensors()["layer_3.attention"], expected, rtol=0, atol=0)
    table = data.to_dataframe()
    assert table["layer"].tolist() == [layer for layer in LAYERS for _ in range(30)]
    assert repr(data) == "<AttentionData of layers 0, 1, 3: 30 tokens>"
    with pytest.raises(ValueError, match="layer"):
        data.layer(2)
