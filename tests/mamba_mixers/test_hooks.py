"""Hooks see every call and leave no trace."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import MambaForCausalLM

from mamba_mixers.hooks import forward_hooks

IDS = torch.tensor([[5, 9, 2, 40, 17]])


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_forward_hooks_see_arguments_by_name_and_leave_the_logits_alone(
    tiny_model: MambaForCausalLM,
) -> None:
    before = tiny_model(IDS).logits
    seen: list[str] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen.append(f"{type(module).__name__} {sorted(kwargs)}")

    with forward_hooks([(tiny_model, hook), (tiny_model.lm_head, hook)]):
        during = tiny_model(input_ids=IDS, use_cache=False).logits
    assert seen == ["Linear []", "MambaForCausalLM ['input_ids', 'use_cache']"]
    assert torch.equal(before, during)
    assert hook_count(tiny_model) == 0


@pytest.mark.parametrize("error", [RuntimeError("in the forward"), KeyboardInterrupt()])
def test_forward_hooks_are_gone_after_an_exception_in_a_hook(
    tiny_model: MambaForCausalLM, error: BaseException
) -> None:
    def hook(*_: Any) -> None:
        raise error

    with (
        pytest.raises(type(error)),
        forward_hooks([(tiny_model.lm_head, hook), (tiny_model, hook)]),
    ):
        tiny_model(IDS)
    assert hook_count(tiny_model) == 0


def test_forward_hooks_are_gone_when_a_registration_in_the_middle_fails(
    tiny_model: MambaForCausalLM,
) -> None:
    def hook(*_: Any) -> None: ...

    not_a_module: Any = "mixer"
    with (
        pytest.raises(AttributeError),
        forward_hooks([(tiny_model, hook), (not_a_module, hook), (tiny_model.lm_head, hook)]),
    ):
        pytest.fail("the block must not be entered")
    assert hook_count(tiny_model) == 0

    def failing_iterable() -> Any:
        yield tiny_model, hook
        assert hook_count(tiny_model) == 1
        raise LookupError("layer 9")

    with pytest.raises(LookupError), forward_hooks(failing_iterable()):
        pytest.fail("the block must not be entered")
    assert hook_count(tiny_model) == 0
