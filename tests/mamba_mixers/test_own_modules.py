"""Mixers and norms known by their parameters and by what they compute."""

from typing import Any

import pytest
import torch
from own_model_cases import WIDTH, Mamba, Mamba2, Scale
from torch import Tensor, nn
from transformers import JambaConfig, JambaForCausalLM

from mamba_mixers.own_modules import OwnMamba1, OwnMamba2, own_kind, own_mixer, rms_epsilon
from mamba_mixers.sites import UnsupportedModelError


def test_a_mixer_is_known_by_the_names_of_its_parameters():
    assert own_kind(Mamba(WIDTH)) == "Mamba1"
    assert own_kind(Mamba2(WIDTH)) == "Mamba2"
    assert own_kind(Mamba2(WIDTH, rmsnorm=False)) == "Mamba2"
    assert own_kind(nn.Linear(2, 2)) is None
    more: Any = Mamba(WIDTH)
    more.dt_layernorm = nn.LayerNorm(3)
    assert own_kind(more) is None


def test_a_mixer_that_norms_its_coefficients_is_none_of_these():
    config = JambaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_experts=1,
        attn_layer_period=8, attn_layer_offset=7, num_attention_heads=2, num_key_value_heads=2,
        use_mamba_kernels=False, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    assert not any(own_kind(module) for module in JambaForCausalLM(config).modules())


def test_the_module_beside_a_mixer_holds_its_parameters():
    first, second = Mamba(WIDTH), Mamba2(WIDTH, norm_before_gate=True)
    beside: Any = own_mixer(first, "core"), own_mixer(second, "core")
    assert (type(beside[0]), type(beside[1])) == (OwnMamba1, OwnMamba2)
    for ours, theirs in zip(beside, (first, second), strict=True):
        assert {id(p) for p in ours.parameters()} == {id(p) for p in theirs.parameters()}
    norm = beside[1].norm
    assert (beside[1].n_groups, norm.group_size, norm.norm_before_gate) == (2, WIDTH, True)
    assert norm.variance_epsilon == 1e-5


def with_shape(mixer: Any, name: str, *shape: int) -> Any:
    parts = name.split(".")
    owner = mixer.get_submodule(".".join(parts[:-1]))
    setattr(owner, parts[-1], nn.Parameter(torch.zeros(shape)))
    return mixer


@pytest.mark.parametrize(
    "mixer",
    [
        with_shape(Mamba(WIDTH), "x_proj.weight", 9, 24),
        with_shape(Mamba(WIDTH), "A_log", 24),
        with_shape(Mamba(WIDTH), "conv1d.weight", 24, 24, 3),
        with_shape(Mamba2(WIDTH), "D", 24),  # one for each channel
        with_shape(Mamba2(WIDTH), "in_proj.weight", 96, WIDTH),
        with_shape(Mamba2(WIDTH), "A_log", 4, 5),
    ],
)
def test_other_shapes_are_refused(mixer):
    with pytest.raises(UnsupportedModelError, match=r"core has the parameters of mamba_ssm's Mamba"
                                                    r"\d, but not their shapes"):  # fmt: skip
        own_mixer(mixer, "core")


@torch.no_grad()
def test_each_text_of_a_padded_batch_passes_the_users_forward_by_itself():
    theirs = Mamba(WIDTH)
    x = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    found = own_mixer(theirs, "core")(x, mask)
    assert torch.equal(found[0, 2:], theirs(x[:1, 2:])[0])
    assert torch.equal(found[1, :4], theirs(x[1:, :4])[0])
    assert not bool(found[0, :2].any())


def drawn(width: int = WIDTH) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return 0.01 * torch.randn(1, 5, width, generator=draw, dtype=torch.float64)


@torch.no_grad()
def test_a_norm_is_known_by_what_it_computes():
    x, norm = drawn(), Scale(WIDTH).double()
    norm.weight.normal_()
    assert rms_epsilon(norm, x, norm(x), 1e-10) == 1e-6
    nameless: Any = Scale(WIDTH).double()
    nameless.weight.normal_()
    y = nameless(x)
    del nameless.eps
    assert rms_epsilon(nameless, x, y, 1e-10) == 1e-6  # the one of the usual numbers that fits
    other = nn.LayerNorm(WIDTH, bias=False).double()
    assert rms_epsilon(other, x, other(x), 1e-10) is None
    assert rms_epsilon(nn.LayerNorm(WIDTH).double(), x, x, 1e-10) is None
    assert rms_epsilon(nn.Linear(WIDTH, 3, bias=False).double(), x, x[..., :3], 1e-10) is None
