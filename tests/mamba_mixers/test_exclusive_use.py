"""Threads that share a model: each gets its own numbers, and the model is left as it was."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from mixer_cases import assert_untouched, doubled, logits_of, make_ids
from torch import Tensor, nn

from causal_interventions.explained import explain
from causal_interventions.interventions import hide_source
from causal_interventions.targets import resolve_target
from input_attribution import attribute
from mamba_mixers.exclusive_use import (
    acting_for,
    acting_thread,
    exclusive_use,
    replaced_forward,
)
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.running import fast_scan
from selective_scan.scan import scan_implementation, selective_scan
from ssm_component_extractor import capture


class Times(nn.Module):
    """x times two, three, ...: which forward ran can be read off."""

    def forward(self, *x: int) -> int:
        return 2 * x[0]


def times(factor: int) -> Callable[..., int]:
    return lambda x: factor * x


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


def test_a_replacement_is_this_threads_alone():
    module = Times()
    with replaced_forward(module, times(3)):
        assert module(1) == 3
        assert in_another_thread(lambda: module(1)) == 2
    assert module(1) == 2
    assert "forward" not in vars(module)


@pytest.mark.parametrize("first_out", [0, 1, 2])
def test_replacements_are_undone_in_any_order(first_out):
    module = Times()
    contexts = [replaced_forward(module, times(factor)) for factor in (3, 5, 7)]
    for context in contexts:
        context.__enter__()
    assert module(1) == 7
    contexts.pop(first_out).__exit__(None, None, None)
    assert module(1) == (5 if first_out == 2 else 7)
    for context in contexts:
        context.__exit__(None, None, None)
    assert module(1) == 2
    assert "forward" not in vars(module)


def test_a_forward_that_somebody_else_put_on_top_stays_and_reaches_the_modules_own():
    module = Times()
    with replaced_forward(module, times(3)):
        inner = module.forward
        vars(module)["forward"] = lambda x: 10 * inner(x)
        assert module(1) == 30
    assert module(1) == 20


def test_a_modules_own_forward_of_an_instance_comes_back():
    module = Times()
    own = times(11)
    vars(module)["forward"] = own
    with replaced_forward(module, times(3)):
        assert module(1) == 3
    assert vars(module)["forward"] is own


def test_a_thread_acts_for_another():
    mine = acting_thread()
    module = Times()

    def on_behalf() -> tuple[int, int, int]:
        with acting_for(mine):
            during = module(1)
        return during, module(1), acting_thread()

    with replaced_forward(module, times(3)):
        during, after, other = in_another_thread(on_behalf)
    assert (during, after) == (3, 2)
    assert other != mine


def test_a_backbone_and_its_model_are_held_together():
    model = make_tiny_model()
    order: list[str] = []

    def second() -> None:
        with exclusive_use(model.backbone):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with exclusive_use(model), exclusive_use(model):
            waiting = pool.submit(second)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            order.append("first")
        waiting.result(timeout=60)
    assert order == ["first", "second"]


def test_hooks_hear_this_thread_alone():
    module, heard = Times(), []
    with forward_hooks([(module, lambda *call: heard.append(call[1]))]):
        module(1)
        in_another_thread(lambda: module(2))
    assert heard == [(1,)]


def test_a_models_own_call_in_another_thread_runs_the_model_as_it_is():
    model, ids = make_tiny_model(), make_ids()
    expected = logits_of(model, ids)
    with fast_scan(model, edits={1: doubled("delta")}):
        edited = logits_of(model, ids)
        other = in_another_thread(lambda: logits_of(model, ids))
    assert torch.equal(other, expected)
    assert not torch.allclose(edited, expected, atol=1e-3)
    assert_untouched(model)


def test_threads_that_record_edit_and_attribute_get_their_own_numbers():
    model = make_tiny_model()
    texts = [make_ids(length=24, batch=1, seed=seed) for seed in range(4)]
    target = resolve_target("logit")

    def deltas(ids: Tensor) -> Tensor:
        return capture(model, ids, None, [0, 3]).components[3].delta

    def relevance(ids: Tensor) -> Tensor:
        return attribute(explain(model, ids[0], target), "mamba_lrp").scores

    def hidden(ids: Tensor) -> Tensor:
        with fast_scan(model, edits=hide_source(5, [0, 2])):
            return logits_of(model, ids)

    jobs = [(f, ids) for ids in texts for f in (deltas, relevance, hidden)]
    expected = [f(ids) for f, ids in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = [job.result(timeout=300) for job in [pool.submit(f, ids) for f, ids in jobs * 2]]
    for one, other in zip(found, expected * 2, strict=True):
        assert torch.equal(one, other)  # the same operations on the same numbers
    assert_untouched(model)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_one_intervention_serves_models_of_two_threads():
    edit = hide_source(3, [0])
    models, ids = [make_tiny_model(seed) for seed in (0, 1)], make_ids(batch=1)

    def edited(model: Any) -> Tensor:
        with fast_scan(model, edits=edit):
            return logits_of(model, ids)

    expected = [edited(model) for model in models]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(edited, models * 8))
    for one, other in zip(found, expected * 8, strict=True):
        assert torch.equal(one, other)


def test_an_error_in_one_thread_leaves_the_model_to_the_next():
    model, ids = make_tiny_model(), make_ids()

    def failing() -> None:
        with fast_scan(model, edits={0: doubled("y")}):
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        in_another_thread(failing)
    assert_untouched(model)
    with fast_scan(model):
        logits_of(model, ids)


def test_the_scans_implementation_is_chosen_by_thread():
    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, initial_state, carry):
            return torch.zeros_like(u), initial_state

    generator = torch.Generator().manual_seed(0)
    u, delta = torch.rand(2, 1, 3, 2, generator=generator)
    B = torch.rand(1, 3, 4, generator=generator)

    def scan() -> Tensor:
        return selective_scan(u, delta, -torch.ones(2, 4), B, B)

    plain = scan()
    with scan_implementation(Other, lambda u, A: True):
        assert not bool(scan().any())
        assert torch.equal(in_another_thread(scan), plain)
    assert torch.equal(scan(), plain)


def test_threads_wait_and_do_not_share_a_lock_across_models():
    one, other = make_tiny_model(), make_tiny_model(1)
    entered = threading.Event()

    def enter() -> None:
        with exclusive_use(other):
            entered.set()

    with exclusive_use(one):
        in_another_thread(enter)
    assert entered.is_set()
