"""The compiled scan against its uncompiled twin."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

import shutil

import pytest
import torch

from selective_scan import compiled as module
from selective_scan.compiled import compiled_scan
from selective_scan.scan import selective_scan, selective_scan_chunk


def _operands(length, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    u, delta = draw(2, length, 6), torch.nn.functional.softplus(draw(2, length, 6))
    A, B, C, state = -torch.rand(6, 3, generator=generator), *draw(2, 2, length, 3), draw(2, 6, 3)
    return [x.requires_grad_() for x in (u, delta, A, B, C, state)]


def _values_and_gradients(operands):
    *tensors, state = operands
    y, final = selective_scan_chunk(*tensors, initial_state=state)
    weight = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y, final, *torch.autograd.grad((y * weight).sum() + final.sum(), operands)]


@pytest.fixture
def interpreted(monkeypatch):
    """The blocks as written, not compiled: where there is no compiler the tests still run."""
    blocks = (module._forward_block, module._backward_block)
    monkeypatch.setattr(module, "_compiled_blocks", lambda: blocks)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/c++")


@pytest.mark.usefixtures("interpreted")
def test_values_and_gradients_are_those_of_the_uncompiled_scan():
    operands = _operands(24)
    expected = _values_and_gradients(operands)
    with compiled_scan():
        found = _values_and_gradients(operands)
    # Float32 rounding of 24 steps, summed in another order.
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_unsuited_calls_and_calls_after_the_context_run_uncompiled(monkeypatch):
    calls = []
    forward = module.CompiledScan.forward
    monkeypatch.setattr(
        module.CompiledScan, "forward", staticmethod(lambda *a: calls.append(1) or forward(*a))
    )
    *tensors, _ = _operands(16)
    *odd, _ = _operands(17)
    with compiled_scan():
        selective_scan(*odd)
        assert not calls
        selective_scan(*tensors)
        assert calls == [1]
    selective_scan(*tensors)
    assert calls == [1]


@pytest.mark.usefixtures("interpreted")
def test_second_derivatives_are_refused():
    *tensors, _ = _operands(8)
    with compiled_scan():
        y = selective_scan(*tensors)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(y.sum(), tensors, create_graph=True)


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    *tensors, _ = _operands(8)
    expected = selective_scan(*tensors)
    with compiled_scan():
        assert torch.equal(selective_scan(*tensors), expected)
    assert "runs uncompiled" in caplog.text
