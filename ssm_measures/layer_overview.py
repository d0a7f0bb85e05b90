"""What one layer does with its memory on one text, in a few numbers: the row of an overview.

Everything is measured from the operands of the layer's scan, and nothing of a text's size is kept
but one number a token. What takes a map (l, l) is measured over some of the heads, evenly
spaced, as many as a text's length allows: the results say how many; in Mamba-1 a head is a channel.
Letters are those of the glossary in ``selective_scan``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from selective_scan.attention import implicit_attention, magnitude_maps
from selective_scan.operands import with_groups
from selective_scan.scan import half_life, scan_hidden_states
from ssm_measures.attention_maps import LIMITED_SHARE, kernel_of
from ssm_measures.attention_measures import CONVOLUTION_REACH, memory_kernel, row_shares
from ssm_measures.tokens_to_half import tokens_to_half
from token_statistics.description import FloatArray

MAP_ROWS = 12_288
"""Heads times tokens of a map: at 512 tokens maps are averaged over 24 heads, of mamba-130m's 1,536
channels every 64th. More would cost more than the forward pass."""

LEAST_HEADS = 16

SINK_NEIGHBOURS = 8
"""Tokens after a source with which its attention is compared."""

SINK_POSITIONS = 128
"""Sources up to this one, the first left out, take the first token's place in its null."""

_HEAD_SINK = 0.5  # a head whose first token takes half of its attention holds the sink

_SINK_LAG = SINK_NEIGHBOURS + 4  # from a source to the first query that counts

_QUERIES_LEAST = 8  # queries behind a source's mean

LEAST_FOR_SINK = _SINK_LAG + _QUERIES_LEAST
"""Tokens of the shortest text that says how much the first one is read."""


class ScanOperands(Protocol):
    """What a scan reads, of one text: (1, l, ...) as in ``selective_scan``'s glossary."""

    @property
    def u(self) -> Tensor:
        """(1, l, d_inner) SSM input"""
        ...

    @property
    def delta(self) -> Tensor:
        """(1, l, H) step size"""
        ...

    @property
    def A(self) -> Tensor:
        """(H, N), or (H, 1): decay rates"""
        ...

    @property
    def B(self) -> Tensor:
        """(1, l, N), or with groups (1, l, G, N)"""
        ...

    @property
    def C(self) -> Tensor:
        """of B's shape"""
        ...

    @property
    def own_share(self) -> Tensor | None:
        """(1, l, H) in Mamba-3; None elsewhere"""
        ...


class Operands(NamedTuple):
    """The operands of some heads of a layer, on one text."""

    u: Tensor
    """(1, l, channels of these heads)"""
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    own_share: Tensor | None = None


class LayerText(NamedTuple):
    """One layer on one text; floats are means over tokens and heads unless said otherwise."""

    half_life: float
    """tokens, median over heads and states, at the mean delta"""
    tokens_to_half: float
    """tokens until half is left of the slowest state of a head by delta as it is, median over heads
    of the median over tokens; inf where the text is too short to say"""
    lag_90: float
    """tokens, smallest lag by which 90 % of |alpha| has passed; nan without attention"""
    limited_by_text: bool
    """whether the half-life of a head's slowest state, median over heads, is above LIMITED_SHARE of
    the text, so that lags are the text's doing"""
    recent_share: float
    """share of |alpha| on the last four tokens, the query included"""
    first_share: float
    """share of |alpha| on the first token"""
    self_share: float
    """share of |alpha| on the query itself"""
    write: float
    """L2 norm of delta B u over the heads measured"""
    retain: float
    """L2 norm of exp(delta A) h before the token, over the same"""
    openness: FloatArray
    """(l,) mean over heads of ln delta in standard deviations of each head over the text"""
    shares: FloatArray
    """(l, l) each query's share of contributions |alpha u| by source; not to be kept"""
    sink_sums: FloatArray
    """(positions, 2) |alpha| share that later queries pay to a source, the first token's first, and
    to those after it: see `sink_sums`"""
    sink_heads: tuple[int, ...]
    """heads, of those measured, of which the first token takes half of the attention"""
    heads: tuple[int, ...]
    """those measured in what takes a map"""


@torch.no_grad()
def layer_text(scan: ScanOperands, max_heads: int) -> LayerText:
    """The measures of one layer on one text, b = 1, without padding.

    ``max_heads``: see `heads_that_fit`. Cost: two maps of magnitudes and one scan of so many heads,
    and the logarithm of their delta.
    """
    heads = measured_heads(scan.delta.shape[2], with_groups(scan.B).shape[2], max_heads)
    some = operands_of(scan, heads)
    absolute, written = magnitude_maps(**kernel_of(some), values=some.u)
    mask = torch.ones(absolute.shape[:2], dtype=torch.long, device=absolute.device)
    write, retain = energies(some)
    half_lives = half_life(scan.delta[0].mean(0), scan.A)
    slowest = float(half_lives.amax(1).median())
    shares = row_shares(absolute)[0].double().cpu().numpy()
    first, itself, recent = _mean_shares(shares)
    return LayerText(
        half_life=float(half_lives.median()),
        tokens_to_half=_median_tokens_to_half(some),
        lag_90=memory_kernel(absolute.cpu(), mask.cpu()).lag_90[0],
        limited_by_text=slowest > LIMITED_SHARE * scan.delta.shape[1],
        recent_share=recent,
        first_share=first,
        self_share=itself,
        write=write,
        retain=retain,
        openness=openness(some.delta[0]).cpu().numpy(),
        shares=row_shares(written)[0].double().cpu().numpy(),
        sink_sums=sink_sums(shares),
        sink_heads=_sink_heads(some, heads) if first >= 0.1 else (),
        heads=tuple(heads.tolist()),
    )


def heads_that_fit(length: int) -> int:
    """Heads whose maps of a text of so many tokens may be measured."""
    return max(LEAST_HEADS, MAP_ROWS // length)


def measured_heads(num_heads: int, num_groups: int, max_heads: int) -> Tensor:
    """Numbers of at most so many heads, as many of every group, evenly spaced within it."""
    size = num_heads // num_groups
    if size == 1 and num_groups > max_heads:  # groups of one head: some of them
        return (torch.arange(max_heads) * num_groups) // max_heads
    count = max(1, min(size, max_heads // num_groups))
    within = (torch.arange(count) * size) // count
    return (torch.arange(num_groups)[:, None] * size + within).flatten()


def operands_of(scan: ScanOperands, heads: Tensor) -> Operands:
    """The operands of these heads, float32 unless float64; B and C of all groups stay."""
    heads = heads.to(scan.delta.device)
    u = scan.u.unflatten(2, (scan.delta.shape[2], -1))[:, :, heads].flatten(2)
    B, C = (_of_heads(x, heads, scan.delta.shape[2]) for x in (scan.B, scan.C))
    share = None if scan.own_share is None else scan.own_share[:, :, heads]
    return Operands(u, scan.delta[:, :, heads], scan.A[heads], B, C, share)


def _of_heads(x: Tensor, heads: Tensor, num_heads: int) -> Tensor:
    """B or C, of these heads alone where each has one of its own."""
    return x[:, :, heads] if x.dim() == 4 and x.shape[2] == num_heads else x


def _median_tokens_to_half(some: Operands) -> float:
    """Of the slowest state of each head, median over heads; inf where half of them keep longer."""
    rates = some.A.abs().amin(1).double().cpu().numpy()
    return float(np.median(tokens_to_half([some.delta[0].double().cpu().numpy()], rates)))


def energies(some: Operands) -> tuple[float, float]:
    """Mean over tokens of |delta B u| and of |exp(delta A) h before|, L2 over heads and states.

    The second over the tokens after the first. Cost: one scan.
    """
    width = some.u.shape[2] // some.delta.shape[2]
    h = scan_hidden_states(*some[:4], own_share=some.own_share)[0].unflatten(1, (-1, width))
    decay = torch.exp(some.delta[0].unsqueeze(-1) * some.A).unsqueeze(2)
    kept = decay[1:] * h[:-1]
    new = torch.cat([h[:1], h[1:] - kept])
    write, retain = (x.flatten(1).norm(dim=1) for x in (new, kept))
    return float(write.mean()), float(retain.mean()) if len(retain) else 0.0


def openness(delta: Tensor) -> Tensor:
    """(l,) mean over heads of ln delta (l, H) in standard deviations of each head; 0 for a head
    that does not vary: > 0 writes and forgets more than usual."""
    logs = delta.double().log()
    centred = logs - logs.mean(0)
    scale = centred.square().mean(0).sqrt()
    varies = scale > 1e-9 * logs.abs().amax(0).clamp_min(1)
    return torch.where(varies, centred / scale.clamp_min(1e-300), 0.0).mean(1)


def sink_sums(shares: FloatArray) -> FloatArray:
    """How much a source is read beside those after it: (SINK_POSITIONS + 1, 2), 0 for none.

    Row p of the (l, l) ``shares``: sum over queries t >= p + 12 of the share on source p, and of
    the mean share on sources p + 1 to p + SINK_NEIGHBOURS. Row 0 is the first token. Sums of texts
    add up.
    """
    length = len(shares)
    found = np.zeros((SINK_POSITIONS + 1, 2))
    for source in range(min(SINK_POSITIONS + 1, length)):
        start = source + _SINK_LAG
        if length - start >= _QUERIES_LEAST:
            after = shares[start:, source + 1 : source + 1 + SINK_NEIGHBOURS]
            found[source] = shares[start:, source].sum(), after.mean(1).sum()
    return found


def _sink_heads(some: Operands, heads: Tensor) -> tuple[int, ...]:
    """Of these heads, those whose first token takes half of the attention of later queries."""
    found = []
    for start in range(0, len(heads), 16):
        chosen = range(start, min(start + 16, len(heads)))
        maps = implicit_attention(**kernel_of(some), heads=chosen)[0].abs()
        share = row_shares(maps)[:, SINK_NEIGHBOURS:, 0].mean(1)
        found += heads[start : start + 16][(share >= _HEAD_SINK).cpu()].tolist()
    return tuple(found)


def _mean_shares(shares: FloatArray) -> tuple[float, float, float]:
    """Shares on the first token, on the query, on the last four with it: means over queries that
    attend to anything, nan for none."""
    attend = shares.any(axis=1)
    if not attend.any():
        return math.nan, math.nan, math.nan
    recent = np.triu(shares, 1 - CONVOLUTION_REACH).sum(1)
    first, itself = shares[:, 0], shares.diagonal()
    return float(first[attend].mean()), float(itself[attend].mean()), float(recent[attend].mean())
