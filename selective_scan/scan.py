"""The scan and its states, in blocks of tokens, with a backward that recomputes states.

References and letters: the glossary of ``selective_scan``, which passes these functions on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from typing import Any, NamedTuple

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
from suite_plumbing.one_thread import one_thread
from suite_plumbing.precision import in_full_precision

# Tokens whose states are there at once: about _BLOCK * H * P * N floats, which stay near a CPU's
# second-level cache; also the distance between the checkpoints from which the backward pass
# recomputes the states. A CPU goes through a block token by token, all steps of one before the
# next where states are many: what a step reads then lies in the cache still.
_BLOCK = 16

# The same on an accelerator, where a step of a token would be a handful of tiny kernels: a block
# is run through in log2 of it passes (see `_accumulate`) of kernels that fill the device.
_DEVICE_BLOCK = 256

# Numbers of a state (b, H, P, N) up to which an operation on it takes one thread of a CPU less
# time than waking another would.
_FEW_STATES = 1 << 18

# Numbers of a state up to which those of a block of tokens stay in a second-level cache.
_FEW_STATES_A_BLOCK = 1 << 13


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
    decay = _passing_decay(operands, min(_block_size(h), length), h)
    with _threads_for(h):
        for block in _blocks(h, length):
            h_block = by_time[block]
            _fill_states(h_block, decay[: len(h_block)], operands, block, h)
            h = h_block[-1]
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
        blocks = _blocks(u, len(u))
        size, state_shape = blocks[0].stop, initial_state.shape
        checkpoints = initial_state.new_empty(len(blocks), *state_shape)
        states = initial_state.new_empty(size, *state_shape)
        decay = _passing_decay(operands, size, initial_state)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        h = initial_state
        with _threads_for(h):
            for block, checkpoint in zip(blocks, checkpoints, strict=True):
                count = block.stop - block.start
                h_block = states[:count]
                checkpoint.copy_(h)
                _fill_states(h_block, decay[:count], operands, block, checkpoint)
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
        operands, blocks = _Grouped(*tensors), _blocks(tensors[0], len(tensors[0]))
        asked = zip(tensors, [*ctx.needs_input_grad[:5], False], strict=True)
        empty: list[Any] = [torch.zeros_like(x) if need else None for x, need in asked]
        grads = _Grouped(*empty)
        size, state_shape = blocks[0].stop, checkpoints.shape[1:]
        states, grad_states = (checkpoints.new_empty(size + 1, *state_shape) for _ in range(2))
        decay_shape, decay = _decay_shape(operands), grad_states[:-1]
        # Where each state has a decay of its own, its gradient takes that one's place.
        if not _steps_by_token(states) or decay_shape != state_shape:
            decay = states.new_empty(size, *decay_shape)
        grad_states[0] = grad_final
        with _threads_for(grad_final):
            for block, checkpoint in zip(reversed(blocks), checkpoints.flip(0), strict=True):
                count = block.stop - block.start
                states[0], grad_states[count] = checkpoint, grad_states[0]
                _fill_states(states[1 : count + 1], decay[:count], operands, block, checkpoint)
                of_block = decay[:count], states[: count + 1], grad_states[: count + 1]
                _block_backward(operands, grads, block, *of_block, grad_y[block])
        return *grads[:5], grad_states[0].clone(), None


def _block_backward(operands, grads, block, decay, states, grad_states, grad_y):
    """Write the gradients of one block into those of ``grads`` that are asked for.

    With g_t = dL/dh_t = C_t dL/dy_t + a_{t+1} g_{t+1} and a_t = exp(delta_t A):
    dL/d(delta_t u_t) = g_t B_t,  dL/dB_t = g_t (delta_t u_t),  dL/dC_t = h_t dL/dy_t,
    dL/d(delta_t A) = a_t g_t h_{t-1}. See ``_walk_back``.
    """
    u, delta, A, B, C, _ = operands
    if grads.C is not None:
        grads.C[block] = _project(grad_y, states[1:])
    g, rate = _walk_back(decay, states, grad_states, grad_y, C[block])
    step = delta[block].unsqueeze(-1)
    if grads.B is not None:
        grads.B[block] = _project(u[block] * step, g)
    grad_x = _read_out(g, B[block])
    if grads.u is not None:
        torch.mul(grad_x, step, out=grads.u[block])
    rate = rate.sum(-2) if rate.shape[-2] > 1 else rate.squeeze(-2)
    rate = rate if A.shape[-1] > 1 else rate.sum(-1, True)
    if grads.A is not None:
        grads.A.add_((rate * step).sum((0, 1)))
    if grads.delta is not None:
        torch.add((grad_x * u[block]).sum(-1), _sum_states(rate.mul_(A)), out=grads.delta[block])


def _walk_back(decay, states, grad_states, grad_y, C):
    """From the last token of a block to its first: (g_t, a_t g_t h_{t-1}) of its tokens.

    ``states`` begins with the state before the block, and ``grad_states`` ends with what later
    tokens give: a g of the first token after the block. It then begins with that of this block. Of
    both the rest is where the results are written. ``decay`` may be where ``grad_states`` begins.
    """
    grad_y, C = grad_y.unsqueeze(-1), _over_heads(C)
    if not _steps_by_token(states):
        g = grad_y * C
        g[-1].add_(grad_states[-1])
        g = _accumulate_backwards(g, decay)
        torch.mul(decay[0], g[0], out=grad_states[0])
        return g, decay * g * states[:-1]
    tokens = zip(
        grad_states[:-1], grad_states[1:], states[:-1], states[1:], decay, grad_y, C, strict=True
    )
    for carried, g, before, rate, kept, of_y, read in reversed(list(tokens)):
        g.addcmul_(of_y, read)
        torch.mul(kept, g, out=carried)
        torch.mul(carried, before, out=rate)
    return grad_states[1:], states[1:]


def _fill_states(
    states: Tensor, decay: Tensor, operands: _Grouped, block: slice, h: Tensor
) -> None:
    """Write the states of a block that starts from state h, (tokens, b, G, R, P, N).

    Beside them exp(delta A) times what is carried over, (tokens, b, G, R, 1, N or 1).
    """
    steps, A = operands.delta[block][..., None, None], operands.A.unsqueeze(-2)
    x, B = operands.u[block].unsqueeze(-1) * steps, _over_heads(operands.B[block])
    carry = None if operands.carry is None else operands.carry[block].unsqueeze(-1)
    if not _steps_by_token(h):
        _decay(steps, A, carry, decay)
        torch.mul(x, B, out=states)[0].addcmul_(decay[0], h)
        _accumulate(states, decay)
        return
    if _block_stays_in_cache(h):
        _decay(steps, A, carry, decay)
        for state, kept in zip(torch.mul(x, B, out=states), decay, strict=True):
            h = state.addcmul_(kept, h)
        return
    carries = repeat(None, len(states)) if carry is None else carry
    for state, kept, *token in zip(states, decay, steps, carries, x, B, strict=True):
        step, carried, written, b = token
        _decay(step, A, carried, kept)
        h = torch.mul(written, b, out=state).addcmul_(kept, h)


def _decay(steps: Tensor, A: Tensor, carry: Tensor | None, out: Tensor) -> None:
    torch.mul(steps, A, out=out).exp_()
    if carry is not None:
        out.mul_(carry)


def _decay_shape(operands: _Grouped) -> tuple[int, ...]:
    """Of a token: (b, G, R, 1, N or 1)."""
    groups, heads, states = operands.A.shape
    return operands.delta.shape[1], groups, heads, 1, states


def _passing_decay(operands: _Grouped, count: int, h: Tensor) -> Tensor:
    """Room for the decays of a block of states like h, which nobody reads again: in the same place
    where they are made token by token."""
    shape = _decay_shape(operands)
    in_place = _steps_by_token(h) and not _block_stays_in_cache(h)
    return operands.u.new_empty(1 if in_place else count, *shape).expand(count, *shape)


def _blocks(x: Tensor, length: int) -> list[slice]:
    size = _block_size(x)
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _threads_for(h: Tensor) -> AbstractContextManager[None]:
    """What a scan of states (b, G, R, P, N) runs in: on a CPU one thread, unless they are many."""
    return one_thread() if _steps_by_token(h) and h.numel() <= _FEW_STATES else nullcontext()


def _steps_by_token(x: Tensor) -> bool:
    """Whether one token after the other is fastest: on a CPU, whose cache holds a block."""
    return x.device.type == "cpu"


def _block_stays_in_cache(h: Tensor) -> bool:
    """Whether states like h are so few that decays and what is written are made for a block at
    once: an operation costs more than its numbers do."""
    return h.numel() <= _FEW_STATES_A_BLOCK


def _block_size(x: Tensor) -> int:
    return _BLOCK if _steps_by_token(x) else _DEVICE_BLOCK


def _accumulate(x: Tensor, decay: Tensor) -> None:
    """x_t += decay_t x_{t-1} from the second on, in place, for an accelerator: by doubling.

    After a pass of step k, x_t holds what the last 2k tokens gave, and its decay what is kept over
    them. Products of decays alone, nothing is divided: as exact as token by token. Cost: log2 of
    the tokens passes over x.
    """
    kept, step = decay.clone(), 1
    while step < x.shape[0]:
        x[step:] += kept[step:] * x[:-step]
        kept[step:] = kept[step:] * kept[:-step]
        step *= 2


def _accumulate_backwards(g: Tensor, decay: Tensor) -> Tensor:
    """g_{t-1} + decay_t g_t from the last token to the first."""
    turned = g.flip(0)
    _accumulate(turned, decay.roll(-1, 0).flip(0))
    return turned.flip(0)


def _over_heads(x: Tensor) -> Tensor:
    """B or C (t, b, G, N) beside states: (t, b, G, 1, 1, N)."""
    return x[:, :, :, None, None, :]


def _sum_states(x: Tensor) -> Tensor:
    """Sum over the last axis: as a product, faster than torch's sum of few numbers."""
    return x @ x.new_ones(x.shape[-1])


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
