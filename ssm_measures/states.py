"""What a layer's states measure: norms, steps, what is kept, and inner products over tokens.

One scan gives them all, some heads at a time, so that the states (b, l, d_inner, d_state) are never
there as a whole. Pure tensors; letters are those of the glossary in ``selective_scan``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selective_scan.operands import compute_dtype, with_groups
from selective_scan.scan import scan_hidden_states
from suite_plumbing.precision import in_full_precision
from token_statistics.description import covariance_participation_ratio, participation_ratio

# Numbers in the states of the heads that are worked on at once: 4 MB in float32.
_BLOCK_SIZE = 1 << 20

# Rows of a Gram matrix that are computed at once, up to their end.
_GRAM_ROWS = 128


@dataclass(frozen=True, eq=False)
class StateMeasures:
    """One layer's states on a batch of texts; entries at padding mean nothing."""

    norm: Tensor
    """(b, l) |h_t|, L2 over channels and states"""
    step: Tensor
    """(b, l) |h_t - h_{t-1}|, the state before the first column being 0"""
    retained: Tensor
    """(b, l) |exp(delta_t A) h_{t-1}|: what is kept of the state; 0 at the first token"""
    participation_ratio: tuple[float, ...]
    """per text: that of the states over tokens (see analysis_utils), from 1 to l - 1; nan for one
    token or a constant state"""
    gram: Tensor | None
    """(b, l, l) inner products h_t . h_s; None where it would be larger than the states are"""


@torch.no_grad()
@in_full_precision
def measure_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    mask: Tensor,
    *,
    own_share: Tensor | None = None,
    turned: Callable[[Tensor, slice], Tensor] = lambda h, channels: h,
) -> StateMeasures:
    """Measures of the states that these operands of a scan give; u (b, l, d_inner).

    ``own_share`` as in the glossary. ``turned`` (states of some channels, which) puts them into the
    frame in which they are compared across tokens: in Mamba-3 see :func:`unrotated`.

    ``mask`` (b, l) is 0 at padding, which counts in no participation ratio. States are
    float32 unless the operands are float64, their products and sums float64. Cost: one scan, and
    l^2 d_inner d_state multiply-adds; memory 8 l^2 bytes a text and a few blocks of 4 to 8 MB.
    """
    keep = mask.bool()
    batch, length, d_inner = u.shape
    squares = torch.zeros(3, batch, length, dtype=torch.float64)
    is_long = length > d_inner * B.shape[-1]
    gram = None if is_long else squares.new_zeros(batch, length, length)
    for heads, channels, group in _blocks(u, delta, with_groups(B)):
        share = None if own_share is None else own_share[..., heads]
        h = scan_hidden_states(
            u[..., channels], delta[..., heads], A[heads], group, own_share=share
        )
        h = turned(h, channels)
        squares += _squares(h, delta[..., heads], A[heads])
        if gram is not None:
            _add_lower(gram, h.flatten(2).double())
    if gram is not None:
        _mirror(gram)
    if gram is None:
        h = scan_hidden_states(u, delta, A, B, own_share=own_share)
        ratios = _of_states(turned(h, slice(None)).flatten(2), keep)
    else:
        ratios = tuple(_of_gram(*text) for text in zip(gram, keep, strict=True))
    dtype = compute_dtype(u, delta, A, B)
    norm, step, retained = squares.sqrt_().to(dtype)
    return StateMeasures(norm, step, retained, ratios, None if gram is None else gram.to(dtype))


def _row_blocks(length: int) -> list[slice]:
    return [slice(i, min(i + _GRAM_ROWS, length)) for i in range(0, length, _GRAM_ROWS)]


def _add_lower(gram: Tensor, states: Tensor) -> None:
    """Add the inner products of states (b, l, K) to the blocks of gram on and below its diagonal.

    Of a symmetric matrix the others need not be computed: see `_mirror`.
    """
    for rows in _row_blocks(states.shape[1]):
        gram[:, rows, : rows.stop].baddbmm_(states[:, rows], states[:, : rows.stop].mT)


def _mirror(gram: Tensor) -> None:
    """Write the blocks above the diagonal from those below it."""
    for rows in _row_blocks(gram.shape[1]):
        gram[:, : rows.start, rows] = gram[:, rows, : rows.start].mT


def unrotated(h: Tensor, angle: Tensor, halves: bool) -> Tensor:
    """States h (b, l, channels, N) turned back by theta (b, l, channels, pairs).

    With ``halves`` state i turns with i + N / 2, else 2 i with 2 i + 1. What a token's C reads of
    h when it has turned by theta, it reads of this as it is: numbers mean the same at every token.
    """
    theta = angle.to(h.dtype)
    cos, sin, pairs = theta.cos(), theta.sin(), theta.shape[-1]
    first, second = (
        (slice(pairs), slice(h.shape[-1] // 2, h.shape[-1] // 2 + pairs))
        if halves
        else (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    )
    result = h.clone()
    result[..., first] = h[..., first] * cos + h[..., second] * sin
    result[..., second] = h[..., second] * cos - h[..., first] * sin
    return result


def _blocks(u: Tensor, delta: Tensor, B: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Heads, their channels and their B, of one group each and not more than fit a block."""
    batch, length, num_heads = delta.shape
    width, group_size = u.shape[2] // num_heads, num_heads // B.shape[2]
    count = max(1, _BLOCK_SIZE // (batch * length * width * B.shape[3]))
    for group in range(B.shape[2]):
        end = (group + 1) * group_size
        for start in range(group * group_size, end, count):
            heads = slice(start, min(start + count, end))
            channels = slice(heads.start * width, heads.stop * width)
            yield heads, channels, B[:, :, group]


def _squares(h: Tensor, delta: Tensor, A: Tensor) -> Tensor:
    """Squared norm, step and retained state of h (b, l, channels, N): (3, b, l) in float64."""
    width = h.shape[2] // delta.shape[2]
    result = torch.zeros(3, *h.shape[:2], dtype=torch.float64)
    result[0] = _squared(h)
    result[1, :, 0] = result[0, :, 0]
    result[1, :, 1:] = _squared(h[:, 1:] - h[:, :-1])
    decay = torch.exp_(delta[:, 1:, :, None] * A)
    by_head = h[:, :-1].unflatten(2, (-1, width))
    result[2, :, 1:] = _squared(decay.unsqueeze(3) * by_head)
    return result


def _squared(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(2), dim=2).double().square_()


def _of_gram(gram: Tensor, rows: Tensor) -> float:
    """Participation ratio of the states of these tokens from their inner products (l, l)."""
    raw = gram[rows][:, rows]
    mean = raw.mean(dim=0)
    centred = raw - mean - mean[:, None] + mean.mean()
    # What float32 rounds is no variance: 1e-7 squared.
    varies = centred.trace() > 1e-14 * raw.trace()
    return float(covariance_participation_ratio(centred)) if varies else math.nan


def _of_states(h: Tensor, keep: Tensor) -> tuple[float, ...]:
    """Participation ratios of the states (b, l, K) of each text, more tokens than K."""
    return tuple(
        float(participation_ratio(states[rows])) if int(rows.sum()) > 1 else math.nan
        for states, rows in zip(h, keep, strict=True)
    )
