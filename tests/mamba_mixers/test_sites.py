"""Mixers are found where they sit; models without one are refused in a sentence that helps."""

from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from mixer_cases import make_ids
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from benchmarks.family_models import ALL_MODELS, family_of, make_model, ssm_layers
from mamba_mixers.families import FAMILIES
from mamba_mixers.recording import record_layers
from mamba_mixers.sites import (
    UnsupportedModelError,
    blocks_of,
    find_mixers,
    model_family,
    num_layers,
)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_blocks_are_the_models_layers_in_order(name):
    model = make_model(name)
    blocks = blocks_of(model)
    assert len(blocks) == num_layers(model) == model.config.num_hidden_layers
    for layer, site in find_mixers(model).items():
        assert site.layer == layer
        assert site.block is blocks[layer]
        assert any(module is site.mixer for module in site.block.modules())
    assert list(find_mixers(model)) == ssm_layers(name)
    assert model_family(model).model_type == family_of(name)


@pytest.mark.parametrize("function", [find_mixers, num_layers, blocks_of, model_family])
def test_an_encoder_is_refused(function):
    encoder = BertModel(
        BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                   intermediate_size=8)
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="BertModel cannot be analysed: none of its"):
        function(encoder)


def test_the_sentence_names_what_looks_alike_and_the_families():
    class ForgetGate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(nn.Linear(1, 1).weight)

    with pytest.raises(UnsupportedModelError, match="its ForgetGate layers have an A_log") as error:
        find_mixers(nn.ModuleList([ForgetGate()]))
    for family in ("mamba2 (Mamba2Mixer)", "granitemoehybrid (GraniteMoeHybridMambaLayer)"):
        assert family in str(error.value)


def test_mixers_are_found_with_their_layers():
    model = make_tiny_model()
    sites = find_mixers(model)
    assert list(sites) == [0, 1, 2, 3]
    assert num_layers(model) == 4
    for layer, site in sites.items():
        assert site.layer == layer
        assert site.block is model.backbone.layers[layer]
        assert site.mixer is model.backbone.layers[layer].mixer
        assert site.family.model_type == "mamba"
    assert list(find_mixers(model.backbone)) == [0, 1, 2, 3]


def test_a_subclass_of_a_mixer_is_found_and_replayed():
    model, ids = make_tiny_model(), make_ids()
    mixer = find_mixers(model)[2].mixer
    mixer.__class__ = type("TunedMixer", (type(mixer),), {})
    assert list(find_mixers(model)) == [0, 1, 2, 3]
    assert float(record_layers(model, [2], ids)[2].replay_error.max()) <= 1e-5


def test_a_class_of_the_same_name_but_another_structure_is_not_taken():
    class MambaMixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.A_log = nn.Parameter(torch.zeros(4, 2))

    with pytest.raises(UnsupportedModelError, match="MambaMixer layers have an A_log"):
        find_mixers(nn.ModuleList([MambaMixer()]))


def make_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_delta_net() -> Qwen3NextForCausalLM:
    """Gated DeltaNet: its layers have an A_log and a convolution, and are no selective SSM."""
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=8, shared_expert_intermediate_size=8,
            layer_types=["linear_attention", "full_attention"],
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("function", [find_mixers, num_layers])
def test_models_without_a_selective_ssm_are_refused(function):
    with pytest.raises(
        UnsupportedModelError, match="none of its layers is a selective SSM"
    ) as gpt2:
        function(make_gpt2())
    with pytest.raises(UnsupportedModelError, match="GatedDeltaNet layers have an A_log") as delta:
        function(make_delta_net())
    for error in (gpt2, delta):
        for family in FAMILIES:
            assert f"{family.model_type} ({family.mixer_class})" in str(error.value)


def two_mixers_in_a_layer() -> Any:
    model: Any = make_tiny_model()
    model.backbone.layers[1].second = make_tiny_model(1).backbone.layers[0].mixer
    return model


def one_mixer_for_two_layers() -> Any:
    model: Any = make_tiny_model()
    model.backbone.layers[2].mixer = model.backbone.layers[0].mixer
    return model


def one_block_for_all_layers() -> Any:
    model: Any = make_tiny_model()
    model.backbone.layers = nn.ModuleList([model.backbone.layers[0]] * 3)
    return model


def with_adapter_on_delta():
    model: Any = make_tiny_model()
    step = model.backbone.layers[1].mixer.dt_proj
    step.base_layer = nn.Linear(step.in_features, step.out_features)  # as PEFT's layers have
    return model


class PeftModel(nn.Module):
    """Stands in for the wrapper of that name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model


def compiled_in_place() -> Any:
    model = make_tiny_model()
    model.compile()  # compiles when first called
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_mixers_in_a_layer, "layer 1 has more than one mixer"),
        (one_mixer_for_two_layers, "one mixer serves layers 0 and 2"),
        (one_block_for_all_layers, "one mixer serves layers 0 and 1"),
        (with_adapter_on_delta, r"dt_proj of layer 1 has an adapter.*merge_and_unload\(\)"),
        (lambda: PeftModel(make_tiny_model()), r"get_base_model\(\)"),
        (lambda: nn.DataParallel(make_tiny_model()), r"pass model\.module"),
        (lambda: torch.compile(make_tiny_model()), "_orig_mod"),
        (compiled_in_place, r"compiled in place by compile\(\)"),
    ],
)
# torch.compile imports a part of torch that warns.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("function", [find_mixers, blocks_of])
def test_what_is_not_one_mixer_a_layer_or_is_wrapped_is_refused(function, make, message):
    with pytest.raises(UnsupportedModelError, match=message):
        function(make())
