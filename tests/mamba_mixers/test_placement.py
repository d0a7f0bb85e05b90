"""Offloaded and quantised parameters: the same numbers as with the weights at hand."""

import sys
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import make_tiny_tokenizer
from torch import Tensor, nn

from attention_neurons import MambaAttentionNeurons
from attribution_faithfulness import randomisation_test
from benchmarks.family_models import make_model, ssm_layers
from causal_interventions.targets import resolve_target
from input_attribution import explain
from mamba_mixers.placement import (
    affine_of,
    bring_into_memory,
    linear_weight,
    parameters_at_hand,
)
from mamba_mixers.replay import replay_mixer
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.weights import bias_parameters, logit_directions, mixer_parameters
from ssm_component_extractor import capture
from suite_plumbing.models import execution_device
from suite_plumbing.provenance import provenance
from token_statistics.description import relative_error

FAMILIES = ("mamba", "zamba", "mamba2", "falcon_h1 normed")
"""One of each form, and one with multipliers."""


def make_ids() -> Tensor:
    return torch.randint(1, 64, (1, 8), generator=torch.Generator().manual_seed(0))


def offloaded(name: str, where: str, folder: Any) -> Any:
    model = make_model(name)
    device = torch.device("cpu")
    if where == "memory":
        cpu_offload(model, device)
    else:
        disk_offload(model, str(folder), device)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_offloaded_model_gives_the_same_numbers(name, where, tmp_path):
    whole, split, ids = make_model(name), offloaded(name, where, tmp_path), make_ids()
    assert execution_device(split) == torch.device("cpu")
    expected = capture(whole, ids, None, ssm_layers(name))
    found = capture(split, ids, None, ssm_layers(name))
    for layer, parts in found.components.items():
        assert parts.replay_error <= 1e-5  # float32
        for field in ("delta", "A", "B", "C", "D", "y", "gated", "mixer_output"):
            # The same operations on the same numbers.
            value = getattr(expected.components[layer], field)
            assert torch.equal(getattr(parts, field), value), field
        weights = mixer_parameters(find_mixers(split)[layer])
        for one, other in zip(weights, mixer_parameters(find_mixers(whole)[layer]), strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
    assert torch.equal(logit_directions(split), logit_directions(whole))
    with torch.no_grad(), fast_scan(split), fast_scan(whole):
        logits = [model(input_ids=ids, use_cache=False).logits for model in (split, whole)]
    assert torch.equal(*logits)


def test_what_is_randomised_of_an_offloaded_model_is_its_weights(tmp_path):
    found = []
    for model in (make_model("mamba"), offloaded("mamba", "disk", tmp_path)):
        text = explain(model, make_ids()[0], resolve_target("logit"))
        found.append(randomisation_test([text], ["gradient_x_input"])["gradient_x_input"])
    in_memory, on_disk = ([one.mean for one in estimates] for estimates in found)
    assert in_memory == on_disk
    assert max(in_memory) < 0.99  # of weights that were left as they are it is 1


def test_neurons_of_an_offloaded_model():
    model = make_model("mamba2")
    cpu_offload(model, torch.device("cpu"))
    neurons = MambaAttentionNeurons(model, tokenizer=make_tiny_tokenizer())
    data = neurons.extract_attention_vectors("the net held", [0, 1])
    found = neurons.create_mamba_neurons(data, "gradient_guided")
    assert bool(found[0].importance.isfinite().all())
    assert provenance(model)["model"]["weights_sha256"] is None
    with pytest.raises(UnsupportedModelError, match="biases of Mamba2ForCausalLM are offloaded"):
        bias_parameters(model)


def test_without_accelerate_an_offloaded_model_is_refused_with_advice(monkeypatch):
    model = make_model("mamba2")
    cpu_offload(model, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    site = find_mixers(model)[0]
    with pytest.raises(ImportError, match="pip install accelerate, or load the model without"):
        replay_mixer(site, torch.zeros(1, 4, 32))


def test_parameters_that_are_at_hand_are_left_alone():
    linear = nn.Linear(3, 2)
    before = linear.weight
    with parameters_at_hand(linear, None):
        assert linear.weight is before
    assert linear.weight is before


class EightBits(nn.Linear):
    """A linear layer of integers with one scale a row, quantising its inputs row by row too."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None)
        scale = source.weight.detach().abs().amax(1, keepdim=True) / 127
        integers = (source.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        y = ((x / step).round() @ self.weight.to(x.dtype).mT) * step * self.get_buffer("scale").mT
        return y if self.bias is None else y + self.bias


def test_a_quantised_layers_weight_is_what_it_multiplies_by():
    source = nn.Linear(6, 4)
    layer = EightBits(source)
    weight = linear_weight(layer)
    exact = layer.weight.float() * layer.get_buffer("scale")
    assert relative_error(weight, exact) <= 1e-6  # float32
    assert torch.equal(linear_weight(source), source.weight.detach())
    assert not weight.requires_grad


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_layers_in_eight_bits_are_replayed_by_calling_them(name):
    model = make_model(name)
    for site in find_mixers(model).values():
        for child in ("in_proj", "out_proj", "x_proj"):
            if hasattr(site.mixer, child):
                setattr(site.mixer, child, EightBits(getattr(site.mixer, child)))
    captured = capture(model, make_ids(), None, [0, 1])
    for layer, parts in captured.components.items():
        # Integers round in steps: rounding of float32 before a step can cross it.
        assert parts.replay_error <= 1e-2
        out = mixer_parameters(find_mixers(model)[layer]).out_weight
        assert relative_error(parts.gated @ out.mT, parts.mixer_output) <= 2e-2


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter: ``weight`` is that of the layer underneath."""

    def __init__(self, base: nn.Linear, curved: bool = False) -> None:
        super().__init__()
        self.base_layer, self.curved = base, curved
        self.down = nn.Linear(base.in_features, 3, bias=False)
        self.up = nn.Linear(3, base.out_features)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        return self.base_layer(x) + 2 * self.up(low.relu() if self.curved else low)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_what_adapted_modules_multiply_by(name):
    model, ids = make_model(name), make_ids()
    for site in find_mixers(model).values():
        site.mixer.out_proj = Adapted(site.mixer.out_proj)
    model.lm_head = Adapted(model.lm_head)
    captured = capture(model, ids, None, ssm_layers(name))
    for layer, parts in captured.components.items():
        weights = mixer_parameters(find_mixers(model)[layer])
        bias = 0.0 if weights.out_bias is None else weights.out_bias
        written = parts.gated @ weights.out_weight.mT + bias
        assert relative_error(written, parts.written) <= 1e-5  # float32
    head = model.lm_head
    exact = head.base_layer.weight + 2 * head.up.weight @ head.down.weight
    assert relative_error(affine_of(head).weight, exact.detach()) <= 1e-5
    bias = affine_of(head).bias
    assert bias is not None
    assert relative_error(bias, 2 * head.up.bias.detach()) <= 1e-4  # of a difference


def test_hooks_and_parametrizations_are_heard():
    linear = nn.Linear(5, 3)

    def tripled(module: nn.Module, args: Any, output: Any) -> Tensor:
        return 3 * output

    handle = linear.register_forward_hook(tripled)
    assert relative_error(affine_of(linear).weight, 3 * linear.weight.detach()) <= 1e-6
    handle.remove()
    assert torch.equal(affine_of(linear).weight, linear.weight.detach())
    normed: Any = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(2.0)
    assert relative_error(affine_of(normed).weight, normed.weight.detach()) <= 1e-6


def test_a_layer_that_is_not_linear_has_no_weight():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="a Adapted of the model is not linear"):
        affine_of(Adapted(nn.Linear(6, 4), curved=True))


def test_what_is_brought_into_memory_stays_and_can_be_written(tmp_path):
    whole, split, ids = make_model("mamba2"), offloaded("mamba2", "disk", tmp_path), make_ids()
    for model in (whole, split):
        block = find_mixers(model)[1].block
        bring_into_memory(block)
        assert not any(parameter.is_meta for parameter in block.parameters())
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.mul_(1.5)
    with torch.no_grad():
        logits = [model(input_ids=ids, use_cache=False).logits for model in (split, whole)]
    assert torch.equal(*logits)
