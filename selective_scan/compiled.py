"""The selective scan compiled by ``torch.compile``: for training, and other long runs on a CPU.

About twice as fast as the blocks of ``selective_scan``, whose twin it is, but the compiler takes
some ten seconds for each new shape and has to be there. The blocks are written without
in-place operations, so that the compiler can fuse a block into one loop; states are (b, N, d) in
here, so that this loop runs over channels side by side.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from selective_scan.scan import scan_implementation
from suite_plumbing.precision import in_full_precision

logger = logging.getLogger(__name__)


# Tokens of a block: the code of a block is unrolled, and compiling it takes time in proportion.
BLOCK = 8


@contextmanager
def compiled_scan() -> Iterator[None]:
    """Within this context ``selective_scan`` runs compiled, forward and backward.

    For Mamba-1 operands (P = 1, one group) of a length that is a multiple of 8; any other call
    runs as usual. Nothing else changes: same values up to rounding, differentiable once. Without
    a C++ compiler nothing is compiled, and a warning says so.
    """
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        logger.warning("no C++ compiler was found: the scan runs uncompiled, about half as fast")
        yield
        return
    with scan_implementation(CompiledScan, _is_suited):
        yield


def _is_suited(u: Tensor, A: Tensor) -> bool:
    length, _, groups, _, width = u.shape
    return length % BLOCK == 0 and groups == 1 and width == 1 and A.shape[-1] > 1


@cache
def _compiled_blocks() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two block functions, compiled when first called, not when this module is imported."""
    forward = torch.compile(_forward_block, dynamic=False)
    return forward, torch.compile(_backward_block, dynamic=False)


class CompiledScan(torch.autograd.Function):
    """As ``selective_scan``'s own function on grouped operands, (l, b, 1, R, 1) and so on.

    ``carry`` is None: calls with it run uncompiled.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, initial_state, carry):
        inputs = u[:, :, 0, :, 0], delta[:, :, 0], B[:, :, 0], C[:, :, 0]
        rate, h = A[0].mT.contiguous(), initial_state[:, 0, :, 0].mT.contiguous()
        blocks = list(zip(*(x.contiguous().split(BLOCK) for x in inputs), strict=True))
        forward_block, _ = _compiled_blocks()
        checkpoints, outputs = [], []
        for u_block, delta_block, B_block, C_block in blocks:
            checkpoints.append(h)
            y, h = forward_block(h, u_block, delta_block, rate, B_block, C_block)
            outputs.append(y)
        ctx.save_for_backward(u, delta, A, B, C, torch.stack(checkpoints))
        return torch.cat(outputs)[:, :, None, :, None], h.mT[:, None, :, None].contiguous()

    @staticmethod
    @in_full_precision
    def backward(ctx, grad_y, grad_final):
        if torch.is_grad_enabled():
            raise RuntimeError("the compiled scan is differentiable once: no create_graph=True")
        u, delta, A, B, C, checkpoints = ctx.saved_tensors
        inputs = u[:, :, 0, :, 0], delta[:, :, 0], B[:, :, 0], C[:, :, 0], grad_y[:, :, 0, :, 0]
        blocks = list(zip(*(x.contiguous().split(BLOCK) for x in inputs), strict=True))
        rate = A[0].mT.clamp_min(torch.finfo(A.dtype).min).contiguous()
        carried = grad_final[:, 0, :, 0].mT.contiguous()
        grad_A = torch.zeros_like(rate)
        _, backward_block = _compiled_blocks()
        grads = []
        for h, (u_block, delta_block, B_block, C_block, grad_block) in zip(
            checkpoints.flip(0), reversed(blocks), strict=True
        ):
            *of_block, grad_rate, carried = backward_block(
                h, u_block, delta_block, rate, B_block, C_block, grad_block, carried
            )
            grads.append(of_block)
            grad_A += grad_rate
        grad_u, grad_delta, grad_B, grad_C = (torch.cat(x[::-1]) for x in zip(*grads, strict=True))
        return (
            grad_u[:, :, None, :, None],
            grad_delta[:, :, None],
            grad_A.mT[None],
            grad_B[:, :, None],
            grad_C[:, :, None],
            carried.mT[:, None, :, None],
            None,
        )


def _forward_block(h, u, delta, A, B, C):
    """Outputs (t, b, d) and last state (b, N, d) of a block that starts from state h; A (N, d)."""
    outputs = []
    for t in range(BLOCK):
        h = torch.exp(delta[t][:, None, :] * A) * h
        h = h + (delta[t] * u[t])[:, None, :] * B[t][:, :, None]
        outputs.append((h * C[t][:, :, None]).sum(1))
    return torch.stack(outputs), h


def _backward_block(h, u, delta, A, B, C, grad_y, carried):
    """Gradients of u, delta, B, C, A and of the block's first state (see ``selective_scan``)."""
    states, decays = [h], []
    for t in range(BLOCK):
        decays.append(torch.exp(delta[t][:, None, :] * A))
        written = (delta[t] * u[t])[:, None, :] * B[t][:, :, None]
        states.append(decays[t] * states[t] + written)
    grads, grad_A = [], torch.zeros_like(A)
    for t in reversed(range(BLOCK)):
        x = delta[t] * u[t]
        g = carried + grad_y[t][:, None, :] * C[t][:, :, None]
        grad_C = (grad_y[t][:, None, :] * states[t + 1]).sum(2)
        grad_B = (x[:, None, :] * g).sum(2)
        grad_x = (g * B[t][:, :, None]).sum(1)
        carried = g * decays[t]
        rate = carried * states[t]
        grad_A = grad_A + (rate * delta[t][:, None, :]).sum(0)
        grad_delta = grad_x * u[t] + (rate * A).sum(1)
        grads.append((grad_x * delta[t], grad_delta, grad_B, grad_C))
    return *(torch.stack(x[::-1]) for x in zip(*grads)), grad_A, carried  # noqa: B905
