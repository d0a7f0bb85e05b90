"""Maps of the full mixer against the product of its matrices."""

import pytest
import reference
import torch
from conftest import make_tiny_model
from defined import known
from map_cases import BOUND, captured_layer, error, make_mixer, reference_alpha

from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import mixer_parameters
from ssm_component_extractor import capture
from ssm_measures import full_mixer_maps
from ssm_measures.attention_maps import contribution_map
from ssm_measures.full_mixer_maps import full_mixer_head_maps, full_mixer_map, full_mixer_row


# Around the convolution's width (3 taps), and on both sides of a block of 16 tokens.
@pytest.mark.parametrize("length", [1, 2, 3, 4, 17, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_full_mixer_head_maps_are_the_product_of_the_mixers_matrices(length, bias):
    components, parameters = make_mixer(length, bias=bias)
    M, c = reference.full_mixer_operator(
        reference_alpha(components)[0],
        components.D,
        components.gate[0],
        components.conv_input[0],
        known(parameters.conv_weight),
        parameters.conv_bias,
    )
    maps = full_mixer_head_maps(components, parameters)
    assert error(maps.tokens[0], M) < BOUND[torch.float64]
    torch.testing.assert_close(maps.bias[0], c, rtol=0, atol=1e-10)
    chosen = full_mixer_head_maps(components, parameters, heads=[5, 1])
    torch.testing.assert_close(chosen.tokens, maps.tokens[:, [5, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", list(BOUND))
def test_full_mixer_operator_gives_the_gated_output(dtype):
    components, parameters = make_mixer(50, batch=2, dtype=dtype)
    maps = full_mixer_head_maps(components, parameters)
    x = components.conv_input.movedim(2, 1).unsqueeze(-1)
    gated = (maps.tokens @ x).squeeze(-1) + maps.bias
    assert error(gated, components.gated.movedim(2, 1)) < BOUND[dtype]


@pytest.mark.parametrize("layer", [0, 3])
def test_full_mixer_map_of_a_real_model_sums_to_its_gated_output(layer):
    components, parameters = captured_layer(layer, padding=6)
    weight = torch.randn(components.gated.shape, generator=torch.Generator().manual_seed(1))
    maps = full_mixer_map(
        components, parameters, query_weight=weight, key_weight=components.conv_input
    )
    expected = (weight * components.gated).sum(-1) * components.attention_mask
    actual = (maps.tokens.sum(-1) + maps.bias) * components.attention_mask
    assert error(actual, expected) < BOUND[torch.float32]


def test_full_mixer_map_of_a_float64_model_is_float64():
    model = make_tiny_model().double()
    ids = torch.randint(1, 64, (1, 20), generator=torch.Generator().manual_seed(0))
    components = capture(model, ids, None, [1]).components[1]
    parameters = mixer_parameters(find_mixers(model)[1])
    maps = full_mixer_map(components, parameters, key_weight=components.conv_input)
    assert maps.tokens.dtype == maps.bias.dtype == torch.float64
    # transformers rounds u to float32 (6e-8) on its way into the scan, whatever the model's dtype.
    assert error(maps.tokens.sum(-1) + maps.bias, components.gated.mean(-1)) < 1e-6
    assert contribution_map(components, components.y).dtype == torch.float64


def test_full_mixer_map_and_row_sum_the_head_maps():
    components, parameters = make_mixer(21)
    heads = full_mixer_head_maps(components, parameters)
    for absolute in (False, True):
        expected = heads.tokens.abs() if absolute else heads.tokens
        from_bias = heads.bias.abs() if absolute else heads.bias
        maps = full_mixer_map(components, parameters, absolute=absolute)
        torch.testing.assert_close(maps.tokens, expected.mean(1), rtol=0, atol=1e-10)
        torch.testing.assert_close(maps.bias, from_bias.mean(1), rtol=0, atol=1e-10)
        for query in (0, 1, 2, 20, -3):
            row = full_mixer_row(components, parameters, query, absolute=absolute)
            torch.testing.assert_close(row.tokens, maps.tokens[:, query], rtol=0, atol=1e-10)
            torch.testing.assert_close(row.bias, maps.bias[:, query], rtol=0, atol=1e-10)


def test_maps_in_passes_of_heads_are_the_same(monkeypatch):
    components, parameters = make_mixer(12)
    whole = full_mixer_map(components, parameters, absolute=True)
    monkeypatch.setattr(full_mixer_maps, "HEADS_PER_PASS", 2)
    parts = full_mixer_map(components, parameters, absolute=True)
    torch.testing.assert_close(parts.tokens, whole.tokens, rtol=0, atol=1e-12)


def test_a_delta_of_zero_has_a_full_mixer_map():
    components, parameters = make_mixer(9)
    components.delta[0, 4] = 0.0
    alpha = reference_alpha(components)[0]
    M, _ = reference.full_mixer_operator(
        alpha, components.D, components.gate[0], components.conv_input[0],
        known(parameters.conv_weight), parameters.conv_bias,
    )  # fmt: skip
    maps = full_mixer_head_maps(components, parameters)
    assert error(maps.tokens[0], M) < BOUND[torch.float64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_its_maps_and_no_others(dtype):
    model = make_tiny_model().to(dtype)
    ids = torch.arange(2, 22)[None]
    parts = capture(model, ids, None, [0, 1]).components
    weights = {layer: mixer_parameters(site) for layer, site in find_mixers(model).items()}
    found = known(full_mixer_map(parts[0], weights[0]).tokens)
    assert bool(found.isfinite().all())
    with pytest.raises(ValueError, match="do not belong together"):
        full_mixer_map(parts[0], weights[1])
