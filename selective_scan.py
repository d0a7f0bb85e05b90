"""Selective state space models as pure tensor functions: the scan, its states and its attention.

No model and no ``transformers`` in here: tensors in, tensors out, any device, any float dtype.

References
----------
[1] Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".
[2] Dao & Gu 2024, "Transformers are SSMs" (Mamba-2, SSD).
[3] Ali, Zimerman & Wolf 2024, "The Hidden Attention of Mamba Models".

Glossary (letters as in [1] and [2]; the heads form covers both)
----------------------------------------------------------------
b        batch
l        tokens; t is a query token, s a source token
H        heads. Mamba-1: H = d_inner, every channel is a head
P        head width ("headdim"). Mamba-1: P = 1
N        states per channel ("d_state")
G        groups of heads that share B and C; head j reads group j // (H / G)
u        (b, l, H, P)     input of the SSM (after convolution and SiLU)
delta    (b, l, H)        step size, after softplus (and clamp, where the family has one)
A        (H, N) or (H, 1) continuous-time decay rate, negative
B, C     (b, l, G, N)     input and output projections of the state
D        (H,) or (H, P)   skip connection
h        (b, l, H, P, N)  state after each token
y        (b, l, H, P)     output of the scan
alpha    (b, H, l, l)     implicit attention: y_t - D u_t = sum over s <= t of alpha[t, s] u_s

Every function also takes the shapes of [1] for Mamba-1, u (b, l, d_inner) and B, C (b, l, N), and
then returns y as (b, l, d_inner) and h as (b, l, d_inner, N).

The recurrence is that of [1], eq. 2, with the simplified discretisation B_bar = delta B that all
released models use:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t

Arithmetic is float32, or float64 when an input is float64; half precision is never used inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens that one pass over the states handles. The temporaries of a block, about
# _BLOCK * H * P * N floats, then stay in a CPU's second-level cache; also the distance
# between the checkpoints from which the backward pass recomputes the states.
_BLOCK = 16

# Heads whose queries and keys an attention map holds at once, and floats that a product of
# single heads may take before it is cut into fewer heads: both for a CPU's second-level cache.
_HEADS_PER_PASS = 128
_PRODUCT_FLOATS = 1 << 19


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
) -> Tensor:
    """Output y_t = C_t h_t + D u_t of the selective scan ([1], eq. 2; [2], eq. 1), from h = 0.

    ``carry`` (b, l) intervenes in the memory: token t takes over carry_t exp(delta_t A) h_{t-1}
    instead, so that 0 resets the state before the token; None is 1 everywhere. It is a constant:
    no gradient is taken to it.

    Shapes as in the glossary. Runs in float32 (float64 if an input is float64) and returns that
    dtype. Differentiable once in every argument. The backward pass recomputes the states block by
    block from checkpoints, so what is kept is the inputs and l / 16 states, never (l, H, P, N).

    Raises ValueError where shapes do not fit each other.
    Cost: O(b l H P N) time, an exponential and a few multiply-adds for each state.
    """
    return selective_scan_chunk(u, delta, A, B, C, D, carry=carry)[0]


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
) -> tuple[Tensor, Tensor]:
    """As :func:`selective_scan`, for one chunk of a longer text: (y, state after the last token).

    ``initial_state`` is h before the chunk, as the chunk before returned it: (b, H, P, N), or for
    Mamba-1 (b, d_inner, N); None means zero. Chunks then give what the whole text gives.
    """
    is_mamba1 = _check_operands(u, delta, A, B, C, initial_state)
    _check_skip(D, u)
    dtype = _compute_dtype(u, delta, A, B, C)
    if carry is not None and carry.shape != u.shape[:2]:
        raise ValueError(f"carry must be (b, l) = {tuple(u.shape[:2])}, got {tuple(carry.shape)}")
    operands = _group(u, delta, A, B, C, dtype, carry)
    scan = _SelectiveScan
    if _replacement is not None and carry is None and _replacement.is_suited(operands.u, A):
        scan = _replacement.function
    *tensors, carry = operands
    y, final = scan.apply(*tensors, _grouped_state(initial_state, operands), carry)
    y = y.transpose(0, 1).reshape(u.shape)
    if D is not None:
        skip = D.unsqueeze(-1) if D.dim() == 1 and not is_mamba1 else D
        y = y + skip.to(dtype) * u
    return y, _ungrouped_state(final, is_mamba1)


@torch.no_grad()
def scan_hidden_states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, initial_state: Tensor | None = None
) -> Tensor:
    """State h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t after every token.

    Returns (b, l, H, P, N), or (b, l, d_inner, N) for Mamba-1 shapes; detached. ``initial_state``
    as in :func:`selective_scan`. Raises ValueError where shapes do not fit each other.
    Cost: O(b l H P N) time; memory is the result and one block of decays.
    """
    is_mamba1 = _check_operands(u, delta, A, B, None, initial_state)
    dtype = _compute_dtype(u, delta, A, B)
    operands = _group(u, delta, A, B, None, dtype)
    h = _grouped_state(initial_state, operands)
    batch, groups, heads, width, states = h.shape
    length = u.shape[1]
    result = h.new_empty(batch, length, groups, heads, width, states)
    by_time = result.transpose(0, 1)
    for start in range(0, length, _BLOCK):
        block = slice(start, min(start + _BLOCK, length))
        _fill_states(by_time[block], _decay(operands, block), operands, block, h)
        h = by_time[block.stop - 1]
    result = result.flatten(2, 3)
    return result.squeeze(3) if is_mamba1 else result


@torch.no_grad()
def implicit_attention(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, heads: Sequence[int] | None = None
) -> Tensor:
    """Implicit attention alpha[t, s] = C_t exp(A (S_t - S_s)) delta_s B_s per head ([3], eq. 10).

    S is the cumulative sum of delta. Returns (b, heads, l, l): signed, zero for s > t; rows do not
    sum to 1. alpha applied to u gives y - D u. ``heads`` chooses heads (for Mamba-1, channels) by
    number, in that order; None takes all. Decays below 2e-19 count as 0.

    Raises ValueError where shapes do not fit or a head does not exist.
    Cost: l^2 / 2 multiply-adds for each head and state; memory is the result, 4 l^2 bytes a head
    in float32: for many heads see :func:`attention_map`.
    """
    _check_parameters(delta, A, B, C)
    heads = range(delta.shape[2]) if heads is None else heads
    chosen = _chosen_heads(heads, delta)
    B, C = _with_groups(B), _with_groups(C)
    group = chosen // (delta.shape[2] // B.shape[2])
    dtype = _compute_dtype(delta, A, B, C)
    batch, length, _ = delta.shape
    result = delta.new_zeros(batch, len(chosen), length, length, dtype=dtype)
    for row in range(batch):
        for start in range(0, len(chosen), _HEADS_PER_PASS):
            part = slice(start, start + _HEADS_PER_PASS)
            pairs = _pairs(delta[row], A, B[row], C[row], chosen[part], group[part], dtype)
            _add_causal_pairs(result[row, part], pairs, _product_by_head)
    return result


@torch.no_grad()
def attention_map(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    """Map R[t, s] = sum over heads of q_t[h] alpha[h, t, s] k_s[h], without building any alpha.

    ``query_weight`` q and ``key_weight`` k are (b, l, H); None means 1 / H for the query and 1 for
    the key, which gives the mean of alpha over heads. ``absolute`` sums |q alpha k| instead.
    Returns (b, l, l), zero for s > t.

    How: neighbouring segments of the text are merged into ever longer ones. Queries carry the
    decay since the start of their segment and keys that to the end of theirs, both at most 1, so
    that a merge is one matrix product of inner size H N, and nothing overflows. The decays of a
    segment are products of those of its halves; no cumulative sum loses precision on long texts.
    Decays below 2e-19 count as 0, or subnormal numbers would slow a CPU tenfold.

    Raises ValueError where shapes do not fit each other.
    Cost: l^2 H N multiply-adds, and about 2 l H N log2(l) multiplications; memory
    O(l) for each of the heads handled at a time, and the result.
    """
    _check_parameters(delta, A, B, C)
    _check_weights(delta, query_weight=query_weight, key_weight=key_weight)
    B, C = _with_groups(B), _with_groups(C)
    dtype = _compute_dtype(delta, A, B, C)
    batch, length, num_heads = delta.shape
    heads = torch.arange(num_heads, device=delta.device)
    group = heads // (num_heads // B.shape[2])
    product = _product_of_magnitudes if absolute else _product_over_heads
    result = delta.new_zeros(batch, length, length, dtype=dtype)
    for row in range(batch):
        query, query_scale = _unit_scale(query_weight, row, dtype)
        key, key_scale = _unit_scale(key_weight, row, dtype)
        for part in heads.split(_HEADS_PER_PASS):
            pairs = _pairs(delta[row], A, B[row], C[row], part, group[part], dtype, query, key)
            _add_causal_pairs(result[row], pairs, product)
        result[row] *= query_scale * key_scale
    return result if query_weight is not None else result.div_(num_heads)


@torch.no_grad()
def attention_row(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    query: int,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
) -> Tensor:
    """One row of :func:`attention_map`, (b, l): what one query token takes from every source.

    ``query`` counts tokens, from the end when negative. Raises ValueError for a token that does
    not exist and where shapes do not fit each other. Cost: O(b l H N), no l by l map.
    """
    _check_parameters(delta, A, B, C)
    _check_weights(delta, query_weight=query_weight, key_weight=key_weight)
    batch, length, num_heads = delta.shape
    if not -length <= query < length:
        raise ValueError(f"query is token {query}; the text has tokens 0 to {length - 1}")
    query %= length
    B, C = _with_groups(B), _with_groups(C)
    dtype = _compute_dtype(delta, A, B, C)
    repeat = num_heads // B.shape[2]
    weight = delta.new_full((batch, num_heads), 1 / num_heads, dtype=dtype)
    weight = weight if query_weight is None else query_weight[:, query].to(dtype)
    q = C[:, query].to(dtype).repeat_interleave(repeat, dim=1) * weight.unsqueeze(-1)
    rate, row = A.to(dtype), delta.new_zeros(batch, length, dtype=dtype)
    # Float64 for the sum: its float32 error would be amplified by the exponential.
    since = delta[:, : query + 1].double().flip(1).cumsum(1).flip(1).to(dtype)
    since = since - delta[:, : query + 1].to(dtype)
    for start in range(0, query + 1, _BLOCK):
        block = slice(start, min(start + _BLOCK, query + 1))
        decayed = torch.exp(since[:, block, :, None] * rate) * q.unsqueeze(1)
        keys = B[:, block].to(dtype).repeat_interleave(repeat, dim=2)
        by_head = (decayed * keys).sum(-1) * delta[:, block].to(dtype)
        by_head = by_head if key_weight is None else by_head * key_weight[:, block].to(dtype)
        row[:, block] = (by_head.abs() if absolute else by_head).sum(-1)
    return row


class _Replacement(NamedTuple):
    """Another autograd function for the scan, and whether it suits given u and A."""

    function: type[torch.autograd.Function]
    is_suited: Callable[[Tensor, Tensor], bool]


_replacement: _Replacement | None = None


@contextmanager
def scan_implementation(
    function: type[torch.autograd.Function], is_suited: Callable[[Tensor, Tensor], bool]
) -> Iterator[None]:
    """Within this context scans run by ``function`` where ``is_suited(u, A)``, in this process.

    It takes and returns what ``_SelectiveScan`` does.
    """
    global _replacement
    outer, _replacement = _replacement, _Replacement(function, is_suited)
    try:
        yield
    finally:
        _replacement = outer


class _SelectiveScan(torch.autograd.Function):
    """The scan without its D term, on grouped operands; keeps one state a block."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, initial_state, carry):
        operands = _Grouped(u, delta, A, B, C, carry)
        length = u.shape[0]
        num_blocks = -(-length // _BLOCK)
        checkpoints = initial_state.new_empty(num_blocks, *initial_state.shape)
        states = initial_state.new_empty(min(_BLOCK, length), *initial_state.shape)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        h = initial_state
        for index in range(num_blocks):
            block = slice(index * _BLOCK, min((index + 1) * _BLOCK, length))
            checkpoints[index] = h
            h_block = states[: block.stop - block.start]
            _fill_states(h_block, _decay(operands, block), operands, block, checkpoints[index])
            _read_out(h_block, C[block], out=y[block])
            h = h_block[-1]
        ctx.save_for_backward(u, delta, A, B, C, carry, checkpoints)
        return y, h.clone()

    @staticmethod
    def backward(ctx, grad_y, grad_final):
        # once_differentiable would not do: autograd.grad skips its error where no path through it
        # leads to the input asked for, and leaves the scan out of the second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "selective_scan is differentiable once: take its gradient without create_graph=True"
            )
        *tensors, checkpoints = ctx.saved_tensors
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
        buffer = u.new_empty(min(_BLOCK, length) + 1, *state_shape)
        carried = grad_final.clone()
        for index in reversed(range(checkpoints.shape[0])):
            block = slice(index * _BLOCK, min((index + 1) * _BLOCK, length))
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
    for t in reversed(range(1, g.shape[0])):
        g[t - 1].addcmul_(decay[t], g[t])
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
    for t in range(out.shape[0]):
        h = out[t].addcmul_(decay[t], h)


def _read_out(h: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over the states, h (t, b, G, R, P, N) with weights (t, b, G, N): (t, b, G, R, P)."""
    # A row times a transposed matrix is twice as fast as the matrix times a column.
    product = torch.matmul(weights.unsqueeze(-2), h.flatten(3, 4).mT).view(h.shape[:-1])
    return product if out is None else out.copy_(product)


def _project(x: Tensor, h: Tensor) -> Tensor:
    """Sum over heads and widths, x (t, b, G, R, P) with h (t, b, G, R, P, N): (t, b, G, N)."""
    return torch.matmul(x.flatten(3).unsqueeze(-2), h.flatten(3, 4)).squeeze(-2)


def _check_operands(u, delta, A, B, C=None, initial_state=None) -> bool:
    """Raise ValueError unless the shapes fit each other; True for the Mamba-1 shapes of [1]."""
    is_mamba1 = u.dim() == 3
    if not is_mamba1 and u.dim() != 4:
        raise ValueError(f"u must be (b, l, H, P) or (b, l, d_inner), got shape {tuple(u.shape)}")
    _check_parameters(delta, A, B, C)
    if delta.shape != u.shape[:3]:
        raise ValueError(
            f"delta must be (b, l, H) = {tuple(u.shape[:3])} to fit u, got {tuple(delta.shape)}"
        )
    if u.shape[1] == 0:
        raise ValueError("u has no tokens: its second dimension is 0")
    if initial_state is not None:
        batch, _, heads = delta.shape
        width = () if is_mamba1 else (u.shape[3],)
        expected = (batch, heads, *width, B.shape[-1])
        if tuple(initial_state.shape) != expected:
            raise ValueError(
                f"initial_state must be {expected} to fit u and B, got {tuple(initial_state.shape)}"
            )
    return is_mamba1


def _check_skip(D: Tensor | None, u: Tensor) -> None:
    """Raise ValueError unless D fits u; broadcasting would accept shapes that mean nothing."""
    heads = tuple(u.shape[2:3])
    allowed = (heads,) if u.dim() == 3 else (heads, tuple(u.shape[2:]))
    if D is not None and tuple(D.shape) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(f"D must be {expected} to fit u, got {tuple(D.shape)}")


def _check_weights(delta: Tensor, **weights: Tensor | None) -> None:
    """Raise ValueError unless every weight of queries or keys has the shape of delta."""
    for name, weight in weights.items():
        if weight is not None and weight.shape != delta.shape:
            raise ValueError(
                f"{name} must be (b, l, H) = {tuple(delta.shape)}, got {tuple(weight.shape)}"
            )


def _check_parameters(delta, A, B, C=None) -> None:
    """Raise ValueError unless delta, A, B and C fit each other."""
    if delta.dim() != 3:
        raise ValueError(f"delta must be (b, l, H), got shape {tuple(delta.shape)}")
    batch, length, heads = delta.shape
    if B.dim() not in (3, 4) or B.shape[:2] != delta.shape[:2]:
        raise ValueError(
            f"B must be (b, l, N) or (b, l, G, N) with b, l = {batch}, {length}, "
            f"got {tuple(B.shape)}"
        )
    if C is not None and C.shape != B.shape:
        raise ValueError(f"C must have the shape of B, {tuple(B.shape)}, got {tuple(C.shape)}")
    states, groups = B.shape[-1], B.shape[2] if B.dim() == 4 else 1
    if tuple(A.shape) not in ((heads, states), (heads, 1)):
        raise ValueError(
            f"A must be ({heads}, {states}) or ({heads}, 1) to fit delta and B, "
            f"got {tuple(A.shape)}"
        )
    if heads % groups:
        raise ValueError(f"{heads} heads cannot be shared by {groups} groups of B and C")


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any operand is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _group(u, delta, A, B, C, dtype, carry=None) -> _Grouped:
    """Put time first and split the heads into groups (views wherever torch allows)."""
    B, C = _with_groups(B), None if C is None else _with_groups(C)
    groups = B.shape[2]
    u = u.unsqueeze(-1) if u.dim() == 3 else u
    return _Grouped(
        u.to(dtype).transpose(0, 1).unflatten(2, (groups, -1)),
        delta.to(dtype).transpose(0, 1).unflatten(2, (groups, -1)),
        A.to(dtype).unflatten(0, (groups, -1)),
        B.to(dtype).transpose(0, 1),
        None if C is None else C.to(dtype).transpose(0, 1),
        None if carry is None else carry.to(dtype).mT[:, :, None, None, None],
    )


def _with_groups(x: Tensor) -> Tensor:
    """B or C as (b, l, G, N)."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _grouped_state(state: Tensor | None, operands: _Grouped) -> Tensor:
    """The state before the first token as (b, G, R, P, N); zeros for None."""
    _, batch, groups, heads, width = operands.u.shape
    shape = (batch, groups, heads, width, operands.B.shape[-1])
    if state is None:
        return operands.u.new_zeros(shape)
    return state.to(operands.u.dtype).reshape(shape)


def _ungrouped_state(h: Tensor, is_mamba1: bool) -> Tensor:
    """(b, G, R, P, N) as (b, H, P, N), or (b, d_inner, N) for Mamba-1."""
    h = h.flatten(1, 2)
    return h.squeeze(2) if is_mamba1 else h


class _Pairs(NamedTuple):
    """Queries and keys of some heads on one text, and the decay that each token brings."""

    query: Tensor  # (l, heads, N)
    key: Tensor  # (l, heads, N)
    decay: Tensor  # (l, heads, N or 1)


def _pairs(delta, A, B, C, heads, group, dtype, query_weight=None, key_weight=None) -> _Pairs:
    """Undecayed queries q_t C_t and keys k_s delta_s B_s of these heads on one text."""
    step = delta[:, heads].to(dtype)
    decay = _without_subnormals((step.unsqueeze(-1) * A[heads].to(dtype)).exp_())
    query, key = C[:, group].to(dtype), B[:, group].to(dtype)
    if query_weight is not None:
        query = query * query_weight[:, heads].unsqueeze(-1)
    step = step if key_weight is None else step * key_weight[:, heads]
    return _Pairs(query, key * step.unsqueeze(-1), decay)


def _add_causal_pairs(
    out: Tensor, pairs: _Pairs, product: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Add product(decayed queries, decayed keys) for all s <= t to ``out`` (..., l, l).

    ``product`` takes (m, w, heads, N) queries and (m, v, heads, N) keys and returns (..., m, w, v).
    Works in place on the queries and keys.
    """
    query, key, decay = pairs
    length = query.shape[0]
    own = product(query.unsqueeze(1), key.unsqueeze(1))[..., 0, 0]
    out.diagonal(dim1=-2, dim2=-1).add_(own)
    query.mul_(decay)
    width = 1
    while width < length:
        for start, stop, count in _mergers(length, width):
            left_keys = key[start:stop].unflatten(0, (count, -1))[:, :width]
            right_queries = query[start:stop].unflatten(0, (count, -1))[:, width:]
            target = _diagonal_blocks(out[..., start:stop, start:stop], count)
            target[..., width:, :width].add_(product(right_queries, left_keys))
            first = start // width
            last = first + 2 * count
            _damp(right_queries, decay[first:last:2].unsqueeze(1))
            _damp(left_keys, decay[first + 1 : last : 2].unsqueeze(1))
        merged = decay[0::2].clone()
        decay = _without_subnormals(_times(merged, decay[1::2]))
        width *= 2


def _mergers(length: int, width: int) -> list[tuple[int, int, int]]:
    """(start, stop, count) of the pairs of segments of this width: the full ones, the last one."""
    count = length // (2 * width)
    full = count * 2 * width
    mergers = [(0, full, count)] if count else []
    return mergers + ([(full, length, 1)] if length - full > width else [])


def _diagonal_blocks(x: Tensor, count: int) -> Tensor:
    """View of the ``count`` blocks on the diagonal of x (..., n, n), as (..., count, w, w)."""
    blocks = x.unflatten(-2, (count, -1)).unflatten(-1, (count, -1))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _times(merged: Tensor, right: Tensor) -> Tensor:
    """Multiply the decays of left segments by those of their right neighbours, if there."""
    merged[: right.shape[0]].mul_(right)
    return merged


def _damp(x: Tensor, decay: Tensor) -> None:
    """x *= decay in place, with what becomes negligible set to 0."""
    x.mul_(decay)
    _without_subnormals(x)


def _without_subnormals(x: Tensor) -> Tensor:
    """Set entries to 0, in place, whose product with one of their like would be subnormal."""
    smallest = 2 * torch.finfo(x.dtype).tiny ** 0.5
    return torch.ops.aten.hardshrink.out(x, smallest, out=x)


def _unit_scale(weight: Tensor | None, row: int, dtype: torch.dtype):
    """One text's weights divided by their largest magnitude, and that magnitude.

    Gradients as weights may be of any size; at unit scale the cut-off for decays suits them.
    """
    if weight is None:
        return None, 1.0
    scale = weight[row].abs().max().to(dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return weight[row].to(dtype) / scale, scale


def _product_over_heads(query: Tensor, key: Tensor) -> Tensor:
    """Sum over heads and states: (m, w, heads, N), (m, v, heads, N) -> (m, w, v)."""
    return torch.bmm(query.flatten(2), key.flatten(2).mT)


def _product_by_head(query: Tensor, key: Tensor) -> Tensor:
    """Sum over states: (m, w, heads, N), (m, v, heads, N) -> (heads, m, w, v)."""
    return torch.matmul(query.permute(2, 0, 1, 3), key.permute(2, 0, 3, 1))


def _product_of_magnitudes(query: Tensor, key: Tensor) -> Tensor:
    """Sum over heads of the magnitude of the sum over states, (m, w, v); a few heads at a time."""
    count, width, heads, _ = query.shape
    result = query.new_zeros(count, width, key.shape[1])
    step = max(1, _PRODUCT_FLOATS // result.numel())
    for start in range(0, heads, step):
        part = slice(start, start + step)
        result += _product_by_head(query[:, :, part], key[:, :, part]).abs_().sum(0)
    return result


def _chosen_heads(heads: Sequence[int], delta: Tensor) -> Tensor:
    """Head numbers as a tensor; ValueError for one that does not exist."""
    count = delta.shape[2]
    chosen = [int(head) for head in heads]
    if unknown := [head for head in chosen if not 0 <= head < count]:
        raise ValueError(f"heads names {unknown}; there are heads 0 to {count - 1}")
    return torch.tensor(chosen, dtype=torch.long, device=delta.device)
