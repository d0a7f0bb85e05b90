"""The scan and its states, in blocks of tokens, with a backward that recomputes states.

References and letters: the glossary of ``selective_scan``, which passes these functions on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from selective_scan.operands import (
    check_given,
    check_operands,
    check_own_share,
    check_skip,
    check_tensors,
    compute_dtype,
    with_groups,
)
from suite_plumbing.precision import in_full_precision

# Tokens that one pass over the states handles. The temporaries of a block, about
# _BLOCK * H * P * N floats, then stay in a CPU's second-level cache; also the distance
# between the checkpoints from which the backward pass recomputes the states.
_BLOCK = 16

# The same on an accelerator, where a step of a token would be a handful of tiny kernels: a block
# is run through in log2 of it passes (see `_accumulate`) of kernels that fill the device.
_DEVICE_BLOCK = 256


class _Grouped(NamedTuple):
    """The operands with time first and heads split into (groups, heads per group).

    Time first makes every time step one contiguous piece of memory.
    """

    u: Tensor  # (l, b, G, R, P)
    delta: Tensor  # (l, b, G, R)
    A: Tensor  # (G, R, N or 1)
    B: Tensor  # (l, b, G, N)
    C: Tensor | None  # (l, b, G, N)
    carry: Tensor | None  # (l, b, 1, 1, 1)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    carry: Tensor | None = None,
    own_share: Tensor | None = None,
) -> Tensor:
    """Output y_t = C_t h_t + D u_t of the selective scan ([1], eq. 2; [2], eq. 1), from h = 0.

    ``carry`` (b, l) intervenes in the memory: token t takes over carry_t exp(delta_t A) h_{t-1}
    instead, so that 0 resets the state before the token; None is 1 everywhere. It is a constant:
    no gradient is taken to it. ``own_share`` (b, l, H): see the glossary.

    Shapes as in the glossary. Runs in float32 (float64 if an input is float64) and returns that
    dtype. Differentiable once in every argument. The backward pass recomputes the states block by
    block from checkpoints, so what is kept is the inputs and l / 16 states, never (l, H, P, N).

    Raises ValueError where shapes do not fit each other.
    Cost: O(b l H P N) time, an exponential and a few multiply-adds for each state.
    """
    return selective_scan_chunk(u, delta, A, B, C, D, carry=carry, own_share=own_share)[0]


@in_full_precision
def selective_scan_chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    carry: Tensor | None = None,
    own_share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`selective_scan`, for one chunk of a longer text: (y, state after the last token).

    ``initial_state`` is h before the chunk, as the chunk before returned it: (b, H, P, N), or for
    a flat u (b, d_inner, N); None means zero. Chunks then give what the whole text gives. With
    ``own_share`` the state is what the next token takes over: all that was written.
    """
    check_given(C=C)
    is_flat = check_operands(u, delta, A, B, C, initial_state)
    check_skip(D, u, delta.shape[2])
    dtype = compute_dtype(u, delta, A, B, C)
    check_tensors(carry=carry)
    if carry is not None and carry.shape != u.shape[:2]:
        raise ValueError(f"carry must be (b, l) = {tuple(u.shape[:2])}, got {tuple(carry.shape)}")
    operands = _group(u, delta, A, B, C, dtype, carry)
    scan = _SelectiveScan
    other = _chosen.replacement
    if other is not None and carry is None and other.is_suited(operands.u, A):
        scan = other.function
    *tensors, carry = operands
    y, final = scan.apply(*tensors, _grouped_state(initial_state, operands), carry)
    y = y.transpose(0, 1).reshape(u.shape)
    if own_share is not None:
        check_own_share(own_share, delta)
        y = y - _by_channel(_unread(own_share, delta, B, C).to(dtype), u) * u
    if D is not None:
        y = y + _skip_weights(D, u).to(dtype) * u
    return y, _ungrouped_state(final, is_flat)


@torch.no_grad()
@in_full_precision
def scan_hidden_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    initial_state: Tensor | None = None,
    *,
    own_share: Tensor | None = None,
) -> Tensor:
    """State h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t after every token.

    Returns (b, l, H, P, N), or (b, l, d_inner, N) for a flat u; detached. ``initial_state``
    as in :func:`selective_scan_chunk`. With ``own_share`` it is h_t without what the token leaves
    to the next one. Raises ValueError where shapes do not fit each other.
    Cost: O(b l H P N) time; memory is the result and one block of decays.
    """
    is_flat = check_operands(u, delta, A, B, None, initial_state)
    dtype = compute_dtype(u, delta, A, B)
    operands = _group(u, delta, A, B, None, dtype)
    h = _grouped_state(initial_state, operands)
    batch, groups, heads, width, states = h.shape
    length = u.shape[1]
    result = h.new_empty(batch, length, groups, heads, width, states)
    by_time = result.transpose(0, 1)
    size = _block_size(h)
    for start in range(0, length, size):
        block = slice(start, min(start + size, length))
        _fill_states(by_time[block], _decay(operands, block), operands, block, h)
        h = by_time[block.stop - 1]
    if own_share is not None:
        check_own_share(own_share, delta)
        later = ((1 - own_share) * delta).to(dtype).transpose(0, 1).unflatten(2, (groups, -1))
        unread = (operands.u * later.unsqueeze(-1)).transpose(0, 1).unsqueeze(-1)
        result -= unread * operands.B.transpose(0, 1)[:, :, :, None, None, :]
    return result.flatten(2, 4) if is_flat else result.flatten(2, 3)


def _unread(own_share: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """(b, l, H) what a token does not yet read of itself: (1 - own_share) delta (C B)."""
    product = (with_groups(B) * with_groups(C)).sum(-1)
    by_head = product.repeat_interleave(delta.shape[2] // product.shape[2], dim=2)
    return (1 - own_share) * delta * by_head


def _by_channel(x: Tensor, u: Tensor) -> Tensor:
    """x (b, l, H) with the channel axes of u."""
    return x.unsqueeze(-1) if u.dim() == 4 else x.repeat_interleave(u.shape[2] // x.shape[2], 2)


def half_life(mean_delta: Tensor, A: Tensor) -> Tensor:
    """Tokens after which half of a state is left, ln 2 / (mean delta |A|), at the mean step size.

    ``mean_delta`` (H,), ``A`` (H, N or 1): (H, N or 1), > 0. The slowest state of a head is
    ``half_life(...).amax(1)``.
    """
    return math.log(2) / (mean_delta[:, None] * A.abs())


class _Replacement(NamedTuple):
    """Another autograd function for the scan, and whether it suits given u and A."""

    function: type[torch.autograd.Function]
    is_suited: Callable[[Tensor, Tensor], bool]


class _Chosen(threading.local):
    """What scans of this thread run by."""

    replacement: _Replacement | None = None


_chosen = _Chosen()


@contextmanager
def scan_implementation(
    function: type[torch.autograd.Function], is_suited: Callable[[Tensor, Tensor], bool]
) -> Iterator[None]:
    """Within this context scans run by ``function`` where ``is_suited(u, A)``, in this thread.

    It takes and returns what ``_SelectiveScan`` does.
    """
    outer, _chosen.replacement = _chosen.replacement, _Replacement(function, is_suited)
    try:
        yield
    finally:
        _chosen.replacement = outer


class _SelectiveScan(torch.autograd.Function):
    """The scan without its D term, on grouped operands; keeps one state a block."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, initial_state, carry):
        operands = _Grouped(u, delta, A, B, C, carry)
        length = u.shape[0]
        size = _block_size(u)
        num_blocks = -(-length // size)
        checkpoints = initial_state.new_empty(num_blocks, *initial_state.shape)
        states = initial_state.new_empty(min(size, length), *initial_state.shape)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        h = initial_state
        for index in range(num_blocks):
            block = slice(index * size, min((index + 1) * size, length))
            checkpoints[index] = h
            h_block = states[: block.stop - block.start]
            _fill_states(h_block, _decay(operands, block), operands, block, checkpoints[index])
            _read_out(h_block, C[block], out=y[block])
            h = h_block[-1]
        ctx.save_for_backward(u, delta, A, B, C, carry, checkpoints)
        return y, h.clone()

    @staticmethod
    @in_full_precision
    def backward(ctx, grad_y, grad_final):
        # once_differentiable would not do: autograd.grad skips its error where no path through it
        # leads to the input asked for, and leaves the scan out of the second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "selective_scan is differentiable once: take its gradient without create_graph=True"
            )
        *tensors, checkpoints = ctx.saved_tensors
        # Finite, so that a state that forgets at once (A = -inf) has a gradient, of 0.
        tensors[2] = tensors[2].clamp_min(torch.finfo(tensors[2].dtype).min)
        operands = _Grouped(*tensors)
        u, delta, A, B, C = tensors[:5]
        length, state_shape = u.shape[0], checkpoints.shape[1:]
        grads = _Grouped(
            torch.empty_like(u),
            torch.empty_like(delta),
            torch.zeros_like(A),
            torch.empty_like(B),
            torch.empty_like(C),
            None,
        )
        size = _block_size(u)
        buffer = u.new_empty(min(size, length) + 1, *state_shape)
        carried = grad_final.clone()
        for index in reversed(range(checkpoints.shape[0])):
            block = slice(index * size, min((index + 1) * size, length))
            count = block.stop - block.start
            decay = _decay(operands, block)
            buffer[0] = checkpoints[index]
            states = buffer[: count + 1]
            _fill_states(states[1:], decay, operands, block, states[0])
            carried = _block_backward(operands, grads, block, decay, states, grad_y[block], carried)
        return *grads[:5], carried, None


def _block_backward(operands, grads, block, decay, states, grad_y, carried):
    """Write the gradients of one block into ``grads``; return the gradient of its first state.

    With g_t = dL/dh_t = C_t dL/dy_t + a_{t+1} g_{t+1} and a_t = exp(delta_t A):
    dL/d(delta_t u_t) = g_t B_t,  dL/dB_t = g_t (delta_t u_t),  dL/dC_t = h_t dL/dy_t,
    dL/d(delta_t A) = a_t g_t h_{t-1}.
    """
    u, delta, A, B, C, _ = operands
    x = u[block] * delta[block].unsqueeze(-1)
    g = grad_y.unsqueeze(-1) * C[block][:, :, :, None, None, :]
    g[-1].add_(carried)
    g = _accumulate_backwards(g, decay)
    carried = decay[0] * g[0]
    grads.C[block] = _project(grad_y, states[1:])
    grads.B[block] = _project(x, g)
    grad_x = _read_out(g, B[block])
    rate = g.mul_(states[:-1]).sum(-2) if g.shape[-2] > 1 else g.mul_(states[:-1]).squeeze(-2)
    rate = (
        rate.mul_(decay.squeeze(-2)) if A.shape[-1] > 1 else rate.sum(-1, True) * decay.squeeze(-2)
    )
    grads.u[block] = grad_x * delta[block].unsqueeze(-1)
    grads.delta[block] = (grad_x * u[block]).sum(-1) + (rate * A).sum(-1)
    grads.A.add_((rate * delta[block].unsqueeze(-1)).sum((0, 1)))
    return carried


def _decay(operands: _Grouped, block: slice) -> Tensor:
    """exp(delta A) of a block, (tokens, b, G, R, 1, N or 1), times what is carried over."""
    decay = (operands.delta[block].unsqueeze(-1) * operands.A).exp_()
    if operands.carry is not None:
        decay *= operands.carry[block]
    return decay.unsqueeze(-2)


def _fill_states(out: Tensor, decay: Tensor, operands: _Grouped, block: slice, h: Tensor) -> None:
    """Write the states of a block that starts from state h into ``out`` (tokens, b, G, R, P, N)."""
    x = operands.u[block] * operands.delta[block].unsqueeze(-1)
    torch.mul(x.unsqueeze(-1), operands.B[block][:, :, :, None, None, :], out=out)
    out[0].addcmul_(decay[0], h)
    _accumulate(out, decay)


def _steps_by_token(x: Tensor) -> bool:
    """Whether one token after the other is fastest: on a CPU, whose cache holds a block."""
    return x.device.type == "cpu"


def _block_size(x: Tensor) -> int:
    return _BLOCK if _steps_by_token(x) else _DEVICE_BLOCK


def _accumulate(x: Tensor, decay: Tensor) -> None:
    """x_t += decay_t x_{t-1} from the second on, in place.

    On an accelerator by doubling: after a pass of step k, x_t holds what the last 2k tokens gave,
    and its decay what is kept over them. Products of decays alone, nothing is divided: as exact as
    token by token. Cost there: log2 of the tokens passes over x.
    """
    if _steps_by_token(x):
        for t in range(1, x.shape[0]):
            x[t].addcmul_(decay[t], x[t - 1])
        return
    kept, step = decay.clone(), 1
    while step < x.shape[0]:
        x[step:] += kept[step:] * x[:-step]
        kept[step:] = kept[step:] * kept[:-step]
        step *= 2


def _accumulate_backwards(g: Tensor, decay: Tensor) -> Tensor:
    """g_{t-1} += decay_t g_t from the last token to the first."""
    if _steps_by_token(g):
        for t in reversed(range(1, g.shape[0])):
            g[t - 1].addcmul_(decay[t], g[t])
        return g
    turned = g.flip(0)
    _accumulate(turned, decay.roll(-1, 0).flip(0))
    return turned.flip(0)


def _read_out(h: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over the states, h (t, b, G, R, P, N) with weights (t, b, G, N): (t, b, G, R, P)."""
    # A row times a transposed matrix is twice as fast as the matrix times a column.
    product = torch.matmul(weights.unsqueeze(-2), h.flatten(3, 4).mT).view(h.shape[:-1])
    return product if out is None else out.copy_(product)


def _project(x: Tensor, h: Tensor) -> Tensor:
    """Sum over heads and widths, x (t, b, G, R, P) with h (t, b, G, R, P, N): (t, b, G, N)."""
    return torch.matmul(x.flatten(3).unsqueeze(-2), h.flatten(3, 4)).squeeze(-2)


def _group(u, delta, A, B, C, dtype, carry=None) -> _Grouped:
    """Put time first and split the heads into groups (views wherever torch allows)."""
    B, C = with_groups(B), None if C is None else with_groups(C)
    groups = B.shape[2]
    u = u.unflatten(2, (delta.shape[2], -1)) if u.dim() == 3 else u
    return _Grouped(
        u.to(dtype).transpose(0, 1).unflatten(2, (groups, -1)),
        delta.to(dtype).transpose(0, 1).unflatten(2, (groups, -1)),
        A.to(dtype).unflatten(0, (groups, -1)),
        B.to(dtype).transpose(0, 1),
        None if C is None else C.to(dtype).transpose(0, 1),
        None if carry is None else carry.to(dtype).mT[:, :, None, None, None],
    )


def _grouped_state(state: Tensor | None, operands: _Grouped) -> Tensor:
    """The state before the first token as (b, G, R, P, N); zeros for None."""
    _, batch, groups, heads, width = operands.u.shape
    shape = (batch, groups, heads, width, operands.B.shape[-1])
    if state is None:
        return operands.u.new_zeros(shape)
    return state.to(operands.u.dtype).reshape(shape)


def _ungrouped_state(h: Tensor, is_flat: bool) -> Tensor:
    """(b, G, R, P, N) as (b, H, P, N), or as (b, d_inner, N)."""
    return h.flatten(1, 3) if is_flat else h.flatten(1, 2)


def _skip_weights(D: Tensor, u: Tensor) -> Tensor:
    """D with the channel axes of u: one number a head is that of each of its channels."""
    if u.dim() == 3:
        return D.repeat_interleave(u.shape[2] // len(D))
    return D.unsqueeze(-1) if D.dim() == 1 else D
