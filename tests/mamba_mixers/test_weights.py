"""Weights as analyses read them."""

import torch
from mixer_cases import (
    in_dtype,
    make_odd_model,
)

from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import bias_parameters, mixer_parameters


def test_mixer_parameters_are_the_weights_around_the_scan():
    for model in (make_odd_model(), make_odd_model(bias=False)):
        site = find_mixers(in_dtype(model, torch.bfloat16))[1]
        weights, state = mixer_parameters(site), site.mixer.state_dict()
        assert weights.conv_weight is not None
        assert torch.equal(weights.conv_weight, state["conv1d.weight"].squeeze(1).float())
        assert torch.equal(weights.out_weight, state["out_proj.weight"].float())
        for value, key in ((weights.conv_bias, "conv1d.bias"), (weights.out_bias, "out_proj.bias")):
            if key not in state:
                assert value is None
            else:
                assert value is not None
                assert torch.equal(value, state[key].float())
        assert not weights.out_weight.requires_grad


def test_bias_parameters_are_the_additive_constants():
    names = set(bias_parameters(make_odd_model()))
    of_layer_0 = {name.removeprefix("backbone.layers.0.") for name in names if ".0." in name}
    assert of_layer_0 == {
        f"mixer.{part}.bias" for part in ("in_proj", "conv1d", "dt_proj", "out_proj")
    }
    assert len(names) == 3 * 4
