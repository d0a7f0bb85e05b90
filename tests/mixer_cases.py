"""Mamba-1 models, texts and checks that the tests of mixers share."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import VOCAB_SIZE, make_tiny_model
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from mamba_mixers.sites import find_mixers

# The suite's bounds on a replay: the rounding of each precision, grown over a layer's operations.
REPLAY_BOUND = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 1e-2}


def make_odd_model(bias: bool = True) -> MambaForCausalLM:
    """Sizes that are no power of two, a low rank of one, biases wherever there may be some."""
    return _with_random_weights(
        MambaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=20,
            num_hidden_layers=3,
            state_size=5,
            conv_kernel=3,
            time_step_rank=1,
            expand=3,
            use_bias=bias,
            use_conv_bias=bias,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def make_wide_model() -> MambaForCausalLM:
    """Two layers of mamba-130m's shape, with a small vocabulary."""
    return _with_random_weights(
        MambaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=768,
            num_hidden_layers=2,
            state_size=16,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _with_random_weights(config: MambaConfig) -> MambaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(config)
        # As in conftest: no two channels alike, no bias zero. Scaled by the width, so that the
        # activations of the wide model stay of order one.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.5 * config.hidden_size**-0.5 * torch.randn(parameter.shape))
    return model.eval()


MODELS: dict[str, Callable[[], MambaForCausalLM]] = {
    "tiny": make_tiny_model,
    "odd": make_odd_model,
    "odd without biases": lambda: make_odd_model(bias=False),
    "mamba-130m": make_wide_model,
}


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    return model.to(dtype)


def make_ids(length: int = 37, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB_SIZE, (batch, length), generator=generator)


def left_padded(ids: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The ids with row 0 whole and row 1 shorter by `padding` tokens, and the mask."""
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    padded = ids.clone()
    padded[1, padding:] = ids[1, : ids.shape[1] - padding]
    padded[1, :padding] = 0
    return padded, mask


def all_layers(model: nn.Module) -> list[int]:
    return list(find_mixers(model))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def assert_untouched(model: nn.Module) -> None:
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def doubled(wanted: str):
    """An edit that doubles one stage."""
    return lambda stage, x: 2 * x if stage == wanted else x
