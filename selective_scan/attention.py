"""Implicit attention of a selective SSM: exact, of single heads or summed over all of them.

References and letters: the glossary of ``selective_scan``, which passes these functions on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selective_scan.merging import (
    SummedPairs,
    diagonal_blocks,
    passes,
    segments_to_merge,
    without_subnormals,
)
from selective_scan.operands import (
    check_given,
    check_own_share,
    check_parameters,
    check_weights,
    compute_dtype,
    with_groups,
)
from suite_plumbing.arguments import LARGEST_INT, validate_int, whole_numbers
from suite_plumbing.messages import quoted
from suite_plumbing.precision import in_full_precision

# Heads whose queries and keys an attention map holds at once, and floats that a product of
# single heads may take before it is cut into fewer heads: both for a CPU's second-level cache.
_HEADS_PER_PASS = 64

_PRODUCT_FLOATS = 1 << 18

# Sources that a row of attention takes at once.
_BLOCK = 16

_Reduce = Callable[[Tensor, Tensor | None], Tensor]


@torch.no_grad()
@in_full_precision
def implicit_attention(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    heads: Sequence[int] | None = None,
    *,
    own_share: Tensor | None = None,
) -> Tensor:
    """Implicit attention alpha[t, s] = C_t exp(A (S_t - S_s)) delta_s B_s per head ([3], eq. 10).

    S is the cumulative sum of delta. Returns (b, heads, l, l): signed, zero for s > t; rows do not
    sum to 1. alpha applied to u gives y - D u. ``heads`` chooses heads (for Mamba-1, channels) by
    number, in that order; None takes all. ``own_share`` (b, l, H) multiplies the diagonal (see the
    glossary). Decays below 2e-19 count as 0.

    Raises ValueError where shapes do not fit or a head does not exist.
    Cost: l^2 / 2 multiply-adds for each head and state; memory is the result, 4 l^2 bytes a head
    in float32: for many heads see :func:`attention_map`.
    """
    check_given(C=C)
    check_parameters(delta, A, B, C)
    check_own_share(own_share, delta)
    heads = range(delta.shape[2]) if heads is None else heads
    chosen = _chosen_heads(heads, delta)
    B, C = with_groups(B), with_groups(C)
    group = chosen // (delta.shape[2] // B.shape[2])
    dtype = compute_dtype(delta, A, B, C)
    batch, length, _ = delta.shape
    result = delta.new_zeros(batch, len(chosen), length, length, dtype=dtype)
    for row in range(batch):
        for start in range(0, len(chosen), _HEADS_PER_PASS):
            part = slice(start, start + _HEADS_PER_PASS)
            operands = delta[row], A, B[row], C[row], chosen[part], group[part], dtype
            pairs = _pairs(*operands, own_share=_row(own_share, row))
            _add_causal_pairs(result[row, part], pairs, _each_head)
    return result


@torch.no_grad()
@in_full_precision
def attention_map(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
    own_share: Tensor | None = None,
) -> Tensor:
    """Map R[t, s] = sum over heads of q_t[h] alpha[h, t, s] k_s[h], without building any alpha.

    ``query_weight`` q and ``key_weight`` k are (b, l, H), or both (b, l, d_inner) for heads of
    several channels: the sum is then over channels, each with the alpha of its head. None means
    1 / H (1 / d_inner) for the query and 1 for the key, which gives the mean of alpha.
    ``absolute`` sums |q alpha k| instead. ``own_share`` (b, l, H) multiplies the diagonal of alpha
    (see the glossary). Returns (b, l, l), zero for s > t.

    How: neighbouring segments of the text are merged into ever longer ones. Queries carry the
    decay since the start of their segment and keys that to the end of theirs, both at most 1, so
    that a merge is one matrix product of inner size H N, and nothing overflows. The decays of a
    segment are products of those of its halves; no cumulative sum loses precision on long texts.
    Decays below 2e-19 count as 0, or subnormal numbers would slow a CPU tenfold.

    Raises ValueError where shapes do not fit each other.
    Cost: l^2 H N multiply-adds (l^2 H (N + P) for weights of channels), and about 2 l H N log2(l)
    multiplications; memory O(l) for each of the heads handled at a time, and the result.
    """
    check_given(C=C)
    check_parameters(delta, A, B, C)
    check_own_share(own_share, delta)
    check_weights(delta, query_weight=query_weight, key_weight=key_weight)
    B, C = with_groups(B), with_groups(C)
    dtype = compute_dtype(delta, A, B, C)
    batch, length, num_heads = delta.shape
    group = torch.arange(num_heads, device=delta.device) // (num_heads // B.shape[2])
    reduce = _sum_of_magnitudes if absolute else _sum
    result = delta.new_zeros(batch, length, length, dtype=dtype)
    for row in range(batch):
        weights = _Weights.of_text(row, num_heads, dtype, absolute, query_weight, key_weight)
        share = _row(own_share, row)
        if not absolute and not weights.of_channels:
            _add_sums(result[row], delta[row], A, B[row], C[row], group, weights, share)
        else:
            for start in range(0, num_heads, _HEADS_PER_PASS):
                part = slice(start, start + _HEADS_PER_PASS)
                operands = delta[row], A, B[row], C[row], part, group[part], dtype, weights
                pairs = _pairs(*operands, own_share=share)
                _add_causal_pairs(result[row], pairs, reduce)
        result[row] *= weights.scale
    return result


@torch.no_grad()
@in_full_precision
def magnitude_maps(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    values: Tensor,
    *,
    own_share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean over heads of |alpha[t, s]|, and over channels of |alpha[t, s] v_s|: (b, l, l) each.

    ``values`` v (b, l, H), or (b, l, d_inner) for heads of several channels. The numbers of two
    calls of :func:`attention_map`, ``absolute`` and with v as the ``key_weight`` of one, from one
    product. Raises ValueError and costs as there; the second map half a pass more over products.
    """
    check_given(C=C)
    check_parameters(delta, A, B, C)
    check_own_share(own_share, delta)
    check_weights(delta, key_weight=values)
    B, C = with_groups(B), with_groups(C)
    dtype = compute_dtype(delta, A, B, C)
    batch, length, num_heads = delta.shape
    group = torch.arange(num_heads, device=delta.device) // (num_heads // B.shape[2])
    result = delta.new_zeros(batch, 2, length, length, dtype=dtype)
    for row in range(batch):
        unit, scale = _at_unit_scale(values[row], num_heads, dtype)
        weight = unit.abs().mean(-1, keepdim=True).transpose(0, 1).contiguous()  # (H, l, 1)
        for start in range(0, num_heads, _HEADS_PER_PASS):
            part = slice(start, start + _HEADS_PER_PASS)
            operands = delta[row], A, B[row], C[row], part, group[part], dtype
            pairs = _pairs(*operands, own_share=_row(own_share, row))
            pairs = pairs._replace(channels=(weight[part], weight[part]))
            _add_causal_pairs(result[row], pairs, _magnitudes_and_weighted)
        result[row] /= num_heads
        result[row, 1] *= scale
    return result[:, 0], result[:, 1]


@torch.no_grad()
@in_full_precision
def decayed_products(
    query: Tensor, key: Tensor, decay: Tensor, *, absolute: bool = False
) -> Tensor:
    """Map R[t, s] = sum of q_t k_s times the decays of tokens s + 1 to t, for s < t: (b, l, l).

    ``query`` and ``key`` (b, l, H, N), at most about 1, are overwritten; ``decay`` (b, l, H, N) or
    (b, l, H, 1), from 0 to 1. ``absolute`` sums magnitudes over heads H. The core of
    :func:`attention_map`, for queries and keys that are more than C and delta B: the diagonal and
    what lies above it are zero. Cost: as there.
    """
    batch, length = query.shape[:2]
    result = query.new_zeros(batch, length, length)
    for row in range(batch):
        if not absolute:
            buffers = query[row].contiguous(), key[row].contiguous(), decay[row].clone()
            SummedPairs(result[row], *buffers).add()
            continue
        # (heads, l, N): see _Pairs.
        q, k, d = (x[row].transpose(0, 1) for x in (query, key, decay))
        d = without_subnormals(d.contiguous())
        pairs = _Pairs(q.new_zeros(q.shape[:2]), q.mul_(d), k, d)
        _add_causal_pairs(result[row], pairs, _sum_of_magnitudes)
    return result


@torch.no_grad()
@in_full_precision
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
    own_share: Tensor | None = None,
) -> Tensor:
    """One row of :func:`attention_map`, (b, l): what one query token takes from every source.

    ``query`` counts tokens, from the end when negative. Raises ValueError for a token that does
    not exist and where shapes do not fit each other. Cost: O(b l H N), no l by l map.
    """
    check_given(C=C)
    check_parameters(delta, A, B, C)
    check_own_share(own_share, delta)
    check_weights(delta, query_weight=query_weight, key_weight=key_weight)
    query = _query_number(query, delta)
    row = delta.new_zeros(delta.shape[:2], dtype=compute_dtype(delta, A, B, C))
    weight = _row_weights(query, delta.shape[2], row.dtype, query_weight, key_weight, absolute)
    for block, by_head in _row_blocks(delta, A, B, C, query, own_share):
        by_head = by_head.abs() if absolute else by_head
        row[:, block] = (by_head * weight(block)).sum(-1)
    return row


@torch.no_grad()
@in_full_precision
def attention_row_by_head(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    query: int,
    *,
    own_share: Tensor | None = None,
) -> Tensor:
    """alpha[h, query, s] of every head (for Mamba-1, channel): (b, l, H), zero for s > query.

    ``query``, ``own_share`` and what is raised: as :func:`attention_row`. Cost: O(b l H N).
    """
    check_given(C=C)
    check_parameters(delta, A, B, C)
    check_own_share(own_share, delta)
    query = _query_number(query, delta)
    row = delta.new_zeros(delta.shape, dtype=compute_dtype(delta, A, B, C))
    for block, by_head in _row_blocks(delta, A, B, C, query, own_share):
        row[:, block] = by_head
    return row


def _query_number(query: int, delta: Tensor) -> int:
    length = delta.shape[1]
    query = validate_int("query", query, -LARGEST_INT)
    if not -length <= query < length:
        raise ValueError(f"query is token {query}; the text has tokens 0 to {length - 1}")
    return query % length


def _row_blocks(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, query: int, own_share: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """alpha of one query, by blocks of sources: (b, sources, H)."""
    num_heads = delta.shape[2]
    B, C = with_groups(B), with_groups(C)
    dtype = compute_dtype(delta, A, B, C)
    repeat = num_heads // B.shape[2]
    q = C[:, query].to(dtype).repeat_interleave(repeat, dim=1)
    rate = A.to(dtype)
    # Float64 for the sum and its difference: the exponential would amplify a float32 error.
    steps = delta[:, : query + 1].double()
    since = (steps.flip(1).cumsum(1).flip(1) - steps).to(dtype)
    for start in range(0, query + 1, _BLOCK):
        block = slice(start, min(start + _BLOCK, query + 1))
        # An exponential that underflows takes five times as long; e^-80 is nothing beside rounding.
        exponents = (since[:, block, :, None] * rate).clamp_min_(-80.0)
        decayed = exponents.exp_() * q.unsqueeze(1)
        keys = B[:, block].to(dtype).repeat_interleave(repeat, dim=2)
        by_head = (decayed * keys).sum(-1) * delta[:, block].to(dtype)
        if own_share is not None and block.stop == query + 1:
            by_head[:, -1] *= own_share[:, query].to(dtype)
        yield block, by_head


def _row_weights(
    query: int,
    num_heads: int,
    dtype: torch.dtype,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    absolute: bool,
) -> Callable[[slice], Tensor | float]:
    """A function from sources to sum over the channels of a head of q_t k_s, (b, sources, H)."""

    def by_channel(weight: Tensor) -> Tensor:
        weight = weight.to(dtype).unflatten(-1, (num_heads, -1))
        return weight.abs() if absolute else weight

    q = None if query_weight is None else by_channel(query_weight[:, query, None])

    def of_sources(block: slice) -> Tensor | float:
        if key_weight is None:
            return 1 / num_heads if q is None else q.sum(-1)
        k = by_channel(key_weight[:, block])
        return k.mean(-1) / num_heads if q is None else (q * k).sum(-1)

    return of_sources


def _row(x: Tensor | None, row: int) -> Tensor | None:
    return None if x is None else x[row]


class _Weights(NamedTuple):
    """One text's weights of queries and keys at unit scale: of heads, of channels, or none."""

    query: Tensor | None  # (l, H), or (l, H, P) of channels
    key: Tensor | None  # as the query's
    of_channels: bool
    scale: Tensor | float  # what the map has to be multiplied by

    @classmethod
    def of_text(cls, row, num_heads, dtype, absolute, query_weight, key_weight) -> _Weights:
        """Magnitudes where ``absolute``; channels are summed where one side alone has weights."""
        query, query_scale = _unit_scale(query_weight, row, num_heads, dtype)
        key, key_scale = _unit_scale(key_weight, row, num_heads, dtype)
        query, key = (x.abs() if absolute and x is not None else x for x in (query, key))
        scale = query_scale * key_scale
        if query is None:
            scale = scale / num_heads / (1 if key is None else key.shape[-1])
        elif key is not None and key.shape[-1] > 1:
            return cls(query, key, True, scale)
        query, key = (
            x if x is None else x[..., 0] if x.shape[-1] == 1 else x.sum(-1) for x in (query, key)
        )
        return cls(query, key, False, scale)


class _Pairs(NamedTuple):
    """Queries and keys of some heads on one text, and the decay that each token brings."""

    own: Tensor  # (heads, l) what a token takes from itself
    query: Tensor  # (heads, l, N) decayed by its own token
    key: Tensor  # (heads, l, N)
    decay: Tensor  # (heads, l, N or 1)
    channels: tuple[Tensor, ...] = ()  # none, or weights of queries and of keys, (heads, l, P)


def _pairs(
    delta, A, B, C, heads, group, dtype, weights: _Weights | None = None, *, own_share
) -> _Pairs:
    """Queries q_t C_t exp(delta_t A) and keys k_s delta_s B_s of these heads on one text."""

    def shared(x: Tensor) -> Tensor:
        """B or C (l, G, N) as (heads, l, N)."""
        x = x.to(dtype)
        return (x.expand(-1, len(group), -1) if x.shape[1] == 1 else x[:, group]).transpose(0, 1)

    # Contiguous, for what is made from it takes over the order in memory.
    step = delta[:, heads].to(dtype).T.contiguous()
    decay = torch.exp(step.unsqueeze(-1) * A[heads].to(dtype).unsqueeze(1))
    without_subnormals(decay)
    own = step * (B.to(dtype) * C.to(dtype)).sum(-1)[:, group].T
    if own_share is not None:
        own = own * own_share[:, heads].to(dtype).T
    query = decay * shared(C)
    q, k = (None, None) if weights is None else (weights.query, weights.key)
    if weights is not None and weights.of_channels and q is not None and k is not None:
        channels = q[:, heads].transpose(0, 1), k[:, heads].transpose(0, 1)
        own = own * (channels[0] * channels[1]).sum(-1)
        return _Pairs(own, query, step.unsqueeze(-1) * shared(B), decay, channels)
    if q is not None:
        own, query = own * q[:, heads].T, query.mul_(q[:, heads].T.unsqueeze(-1))
    if k is not None:
        own, step = own * k[:, heads].T, step * k[:, heads].T
    return _Pairs(own, query, step.unsqueeze(-1) * shared(B), decay)


def _add_sums(
    out: Tensor, delta, A, B, C, group: Tensor, weights: _Weights, own_share: Tensor | None
) -> None:
    """Add sum over heads of q_t alpha[t, s] k_s of one text to ``out`` (l, l)."""
    rate, B, C = (x.to(out) for x in (A, B, C))
    written = delta.to(out) if weights.key is None else delta.to(out) * weights.key
    own = written * (B * C).sum(-1)[:, group]
    own = own if weights.query is None else own * weights.query
    own = own if own_share is None else own * own_share.to(out)
    out.diagonal().add_(own.sum(1))
    pairs, shape = None, (C.shape[2], A.shape[1])
    for part in passes(len(group), C.shape[2], _HEADS_PER_PASS):
        pairs = SummedPairs.of_heads(out, part.stop - part.start, *shape, pairs)
        keys, queries = (x if x.shape[1] == 1 else x[:, group[part]] for x in (B, C))
        step = delta[:, part].to(out).unsqueeze(2)
        torch.mul(step, rate[part], out=pairs.decay).exp_()
        torch.mul(written[:, part].unsqueeze(2), keys, out=pairs.key)
        pairs.query.copy_(queries)
        if weights.query is not None:
            pairs.query.mul_(weights.query[:, part].unsqueeze(2))
        pairs.add()


def _add_causal_pairs(out: Tensor, pairs: _Pairs, reduce: _Reduce) -> None:
    """Add the products of decayed queries and keys for all s <= t to ``out`` (..., l, l).

    ``reduce`` takes products (heads, ...) and weights of their keys, and returns them without
    heads, or with what ``out`` has in their place. Works in place on the queries and keys.
    """
    own, query, key, decay, channels = pairs
    length = query.shape[1]
    out.diagonal(dim1=-2, dim2=-1).add_(reduce(own, channels[1][..., 0] if channels else None))
    width = 1
    while width < length:
        for start, stop, count in segments_to_merge(length, width):
            halves = (slice(width, None), slice(None, width))
            right_queries, left_keys, *weights = (
                x[:, start:stop].unflatten(1, (count, -1))[:, :, half]
                for x, half in zip((query, key, *channels), halves * 2, strict=False)
            )
            target = diagonal_blocks(out[..., start:stop, start:stop], count)
            _add_products(target[..., width:, :width], right_queries, left_keys, weights, reduce)
            first, last = start // width, start // width + 2 * count
            # The first segment of a text is never a right one again, the last never a left one.
            begin, end = int(start == 0), count - int(stop == length)
            _damp(right_queries[:, begin:], decay[:, first:last:2].unsqueeze(2)[:, begin:])
            _damp(left_keys[:, :end], decay[:, first + 1 : last : 2].unsqueeze(2)[:, :end])
        merged = decay[:, 0::2].clone()
        decay = without_subnormals(_times(merged, decay[:, 1::2]))
        width *= 2


def _add_products(
    target: Tensor,
    query: Tensor,
    key: Tensor,
    weights: list[Tensor],
    reduce: _Reduce,
) -> None:
    """Add reduce(query key^T), (heads, m, w, N) by (heads, m, v, N), to ``target`` (..., m, w, v).

    ``weights`` of channels, (heads, m, w, P) and (heads, m, v, P), multiply each head's by their
    product. A few heads at a time where they are summed, so that their products stay in a cache.
    """
    heads, count, width, _ = query.shape
    size = count * width * key.shape[2]
    step = heads if reduce is _each_head else min(heads, max(1, _PRODUCT_FLOATS // size))
    buffer = query.new_empty(step * count, width, key.shape[2])
    for start in range(0, heads, step):
        part = slice(start, start + step)
        of_heads = query[part].flatten(0, 1), key[part].flatten(0, 1).mT
        products = torch.bmm(*of_heads, out=buffer[: len(of_heads[0])])
        by_head = products.unflatten(0, (-1, count))
        if reduce is _magnitudes_and_weighted:
            target[0].add_(by_head.abs_().sum(0))
            target[1].add_(by_head.mul_(weights[1][part].mT).sum(0))
            continue
        if weights:
            by_head *= torch.matmul(weights[0][part], weights[1][part].mT)
        target.add_(reduce(by_head, None))


def _sum(by_head: Tensor, _: Tensor | None) -> Tensor:
    return by_head.sum(0)


def _sum_of_magnitudes(by_head: Tensor, _: Tensor | None) -> Tensor:
    return by_head.abs_().sum(0)


def _magnitudes_and_weighted(by_head: Tensor, key_weight: Tensor | None) -> Tensor:
    magnitudes = by_head.abs_()
    total = magnitudes.sum(0)
    weighted = magnitudes if key_weight is None else magnitudes.mul_(key_weight)
    return torch.stack([total, weighted.sum(0)])


def _each_head(by_head: Tensor, _: Tensor | None) -> Tensor:
    return by_head


def _times(merged: Tensor, right: Tensor) -> Tensor:
    """Multiply the decays of left segments by those of their right neighbours, if there."""
    merged[:, : right.shape[1]].mul_(right)
    return merged


def _damp(x: Tensor, decay: Tensor) -> None:
    """x *= decay in place, with what becomes negligible set to 0."""
    x.mul_(decay)
    without_subnormals(x)


def _unit_scale(weight: Tensor | None, row: int, num_heads: int, dtype: torch.dtype):
    """One text's weights (l, H, P) divided by their largest magnitude, and that magnitude.

    Gradients as weights may be of any size; at unit scale the cut-off for decays suits them.
    """
    return (None, 1.0) if weight is None else _at_unit_scale(weight[row], num_heads, dtype)


def _at_unit_scale(weight: Tensor, num_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max().to(dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return weight.to(dtype).unflatten(-1, (num_heads, -1)) / scale, scale


def _chosen_heads(heads: Sequence[int], delta: Tensor) -> Tensor:
    """Head numbers as a tensor; ValueError for one that does not exist."""
    count = delta.shape[2]
    chosen = whole_numbers("heads", heads, -LARGEST_INT, empty=True)
    if unknown := [head for head in chosen if not 0 <= head < count]:
        raise ValueError(f"heads names {quoted(unknown)}; there are heads 0 to {count - 1}")
    return torch.tensor(chosen, dtype=torch.long, device=delta.device)
