"""Gradients led back block by block are those of the whole graph, in every family."""

from typing import Any

import pytest
import torch
from conftest import make_tiny_model

from benchmarks.family_models import ALL_MODELS, make_model
from mamba_mixers.block_gradients import kept_blocks
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import blocks_of, find_mixers


def tiny_ids(length: int = 9) -> torch.Tensor:
    return torch.randint(1, 50, (1, length), generator=torch.Generator().manual_seed(0))


def value_of(model, ids):
    return model(input_ids=ids, use_cache=False, return_dict=True).logits.logsumexp(-1).sum()


def of_the_whole_graph(model, ids):
    """By layer: the gradient in the scan's output."""
    replays = {}
    with fast_scan(model, observe=replays.__setitem__):
        value = value_of(model, ids)
        found = torch.autograd.grad(value, [replay.y for replay in replays.values()])
    return dict(zip(replays, found, strict=True))


def block_by_block(model, ids, first=0):
    """The same gradients in y from the last layer to the first, and the layers that were left."""
    replays, found, seen = {}, {}, []
    with (
        fast_scan(model, observe=replays.__setitem__),
        kept_blocks(model) as blocks,
    ):
        value = value_of(model, ids)
        assert not any(replay.y.requires_grad for replay in replays.values())
        replays.clear()
        (gradient,) = torch.autograd.grad(value, blocks.end)

        def inside(layer):
            return [replays.pop(layer).y] if layer in replays else []

        for layer, grads in blocks.lead_back(gradient, first, inside):
            seen.append(layer)
            found |= dict(zip([layer], grads, strict=False))
    return found, seen


@pytest.mark.parametrize("name", ALL_MODELS)
def test_gradients_are_those_of_the_whole_graph(name):
    model, ids = make_model(name), tiny_ids()
    expected = of_the_whole_graph(model, ids)
    found, seen = block_by_block(model, ids)
    assert seen == list(reversed(range(len(blocks_of(model)))))
    assert set(found) == set(expected) == set(find_mixers(model))
    for layer, grad in expected.items():
        # The same operations on the same numbers; sums of branches in another order, float32.
        torch.testing.assert_close(
            found[layer], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max())
        )


def test_it_ends_at_the_first_layer_asked_for():
    found, seen = block_by_block(make_tiny_model(), tiny_ids(), first=2)
    assert seen == [3, 2]
    assert set(found) == {2, 3}


def test_what_a_hook_does_between_blocks_is_on_the_way():
    model, ids = make_tiny_model(), tiny_ids()
    plain, _ = block_by_block(model, ids)

    def tripled(block, args, output: Any) -> Any:
        return 3 * output

    with_hook = model.backbone.layers[1].register_forward_hook(tripled)
    expected = of_the_whole_graph(model, ids)
    found, _ = block_by_block(model, ids)
    with_hook.remove()
    for layer, grad in expected.items():
        torch.testing.assert_close(found[layer], grad, rtol=1e-4, atol=1e-6)
    # Led back without the factor, layers before the hook would have a third of it.
    assert not torch.allclose(found[0], plain[0], rtol=0.1)


def test_the_model_is_as_before_and_a_context_without_a_pass_has_no_end():
    model = make_tiny_model()
    with kept_blocks(model) as blocks, pytest.raises(RuntimeError, match="no forward pass"):
        _ = blocks.end
    assert not any("forward" in vars(module) for module in model.modules())
