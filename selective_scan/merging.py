"""Sums over all pairs of tokens, each decayed by the tokens between, by merging segments of a text.

Neighbouring segments are merged into ever longer ones. Queries carry the decay since the start of
their segment and keys that to the end of theirs, both at most 1, so that a merge is one matrix
product, and nothing overflows. The decays of a segment are products of those of its halves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_COLUMNS = 1024
"""Heads times N whose sums are taken at once: for a CPU's second-level cache."""


class _Merger(NamedTuple):
    """Views into the buffers of one merge of neighbouring segments, ``count`` pairs at once."""

    target: Tensor  # (count, w, w) what right queries take from left keys
    query: Tensor  # (count, w, columns)
    key: Tensor  # (count, columns, w)
    damped: tuple[tuple[Tensor, Tensor], ...]  # queries and keys, each with the decay to come


class _Level(NamedTuple):
    """All merges to one width of segments, and how their decays come from those before."""

    mergers: list[_Merger]
    left: Tensor  # decays of left segments, and of their right neighbours
    right: Tensor
    merged: Tensor  # their products
    alone: tuple[Tensor, Tensor] | None  # decay of a last segment without a neighbour: to, from


class SummedPairs:
    """Sums over some columns of q_t k_s times the decays of tokens s + 1 to t, for all s < t.

    Of the buffers ``query`` and ``key`` (l, heads, N), each entry at most about 1, and ``decay``
    (l, heads, N or 1), from 0 to 1, of what they hold when ``add`` is called: it adds the sums over
    heads and N to ``out`` (l, l), overwrites the buffers, and leaves them to be filled again. For
    many heads, a few at a time: to make buffers, and views into them, for each few would cost as
    much as their sums. Cost of ``add``: l^2 / 2 multiply-adds, and about 2 log2(l)
    multiplications, for each of heads and N.
    """

    def __init__(self, out: Tensor, query: Tensor, key: Tensor, decay: Tensor) -> None:
        self.query, self.key, self.decay = query, key, decay
        self._levels: list[_Level] = []
        width, length = 1, len(out)
        while width < length:
            level = self._level(out, decay, width)
            self._levels.append(level)
            decay, width = level.merged, 2 * width

    @classmethod
    def of_heads(
        cls, out: Tensor, heads: int, states: int, decay_states: int, earlier: SummedPairs | None
    ) -> SummedPairs:
        """With buffers of its own, or ``earlier`` again where it has as many heads."""
        if earlier is not None and earlier.query.shape[1] == heads:
            return earlier
        sizes = states, states, decay_states
        return cls(out, *(out.new_empty(len(out), heads, size) for size in sizes))

    def add(self) -> None:
        """Add the sums to ``out``; the buffers are overwritten."""
        without_subnormals(self.decay)
        without_subnormals(self.query.mul_(self.decay))
        for mergers, left, right, merged, alone in self._levels:
            for target, query, key, damped in mergers:
                target.add_(torch.matmul(query, key))
                for x, decay in damped:
                    without_subnormals(x.mul_(decay))
            torch.mul(left, right, out=merged[: len(right)])
            if alone is not None:
                alone[0].copy_(alone[1])
            without_subnormals(merged)

    def _level(self, out: Tensor, decay: Tensor, width: int) -> _Level:
        length, pairs = len(out), len(decay) // 2
        merged = decay.new_empty(len(decay) - pairs, *decay.shape[1:])
        mergers = [
            self._merger(out, decay, width, *one) for one in segments_to_merge(length, width)
        ]
        alone = (merged[pairs], decay[-1]) if len(decay) % 2 else None
        return _Level(mergers, decay[: 2 * pairs : 2], decay[1::2], merged, alone)

    def _merger(
        self, out: Tensor, decay: Tensor, width: int, start: int, stop: int, count: int
    ) -> _Merger:
        query, key = (x[start:stop].unflatten(0, (count, -1)) for x in (self.query, self.key))
        query, key = query[:, width:], key[:, :width]
        target = diagonal_blocks(out[start:stop, start:stop], count)[:, width:, :width]
        first = start // width
        left, right = (decay[i : first + 2 * count : 2].unsqueeze(1) for i in (first, first + 1))
        # The first segment of a text is never a right one again, the last one never a left one.
        begin, end = int(start == 0), count - int(stop == len(out))
        damped = ((query[begin:], left[begin:]), (key[:end], right[:end]))
        damped = tuple(pair for pair in damped if len(pair[0]))
        query, key = (x.view(*x.shape[:2], -1) for x in (query, key))
        return _Merger(target, query, key.mT, damped)


def passes(num_heads: int, states: int, most: int) -> list[slice]:
    """Heads in passes of at most ``most``, and of fewer where each has many states."""
    size = max(1, min(most, _COLUMNS // states))
    return [slice(i, min(i + size, num_heads)) for i in range(0, num_heads, size)]


def segments_to_merge(length: int, width: int) -> list[tuple[int, int, int]]:
    """(start, stop, count) of the pairs of segments of this width: the full ones, the last one."""
    count = length // (2 * width)
    full = count * 2 * width
    mergers = [(0, full, count)] if count else []
    return mergers + ([(full, length, 1)] if length - full > width else [])


def diagonal_blocks(x: Tensor, count: int) -> Tensor:
    """View of the ``count`` blocks on the diagonal of x (..., n, n), as (..., count, w, w)."""
    blocks = x.unflatten(-2, (count, -1)).unflatten(-1, (count, -1))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def without_subnormals(x: Tensor) -> Tensor:
    """Set entries to 0, in place, whose product with one of their like would be subnormal."""
    smallest = 2 * torch.finfo(x.dtype).tiny ** 0.5
    return torch.ops.aten.hardshrink.out(x, smallest, out=x)
