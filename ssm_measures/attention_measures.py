"""Measures of attention maps: how a query spreads its attention, how far back a layer reaches.

Maps (b, l, l) are causal: row t, a query, over sources s <= t. Most measures are of magnitudes, for
alpha is signed: pass the mean of |alpha| over heads, ``mean_map(components, absolute=True)`` of
``attention_maps``. ``mask`` (b, l) is 0 at padding. Letters are those of the glossary in
``selective_scan``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssm_measures.components import SSMComponents
from suite_plumbing.precision import in_full_precision
from suite_plumbing.result_files import finite_or_none, three_digits
from token_statistics.association import causal_spearman
from token_statistics.description import entropy, summarise

SYNTHETIC_TEMPERATURE = 0.1
"""Softmax temperature of the cosines, which are in [-1, 1], in :func:`synthetic_attention`."""

CONVOLUTION_REACH = 4
"""Tokens, the query included, that count as recent in :func:`query_statistics`."""


def row_shares(absolute_map: Tensor) -> Tensor:
    """Each row divided by its sum, so that it sums to 1: (..., l, l).

    A row of zeros (padding, or a token that takes nothing) stays zero. The map is non-negative.
    """
    total = absolute_map.sum(-1, keepdim=True)
    return torch.where(total > 0, absolute_map / total.clamp_min(1e-38), 0.0)


def row_stochastic(absolute_map: Tensor) -> Tensor:
    """As :func:`row_shares`, but a row of zeros becomes its token alone, so that every row sums
    to 1: a token that takes nothing from others keeps what it is."""
    shares = row_shares(absolute_map)
    empty = (absolute_map.sum(-1) == 0).to(shares)
    return shares + torch.diag_embed(empty)


def mixer_share(components: SSMComponents, stream: Tensor) -> Tensor:
    """The mixer's share w of the residual stream's norm, (b, l), in [0, 1]: what rollout mixes by.

    w_t = |o_t| / (|o_t| + |r_t|), o what the mixer adds and r the ``stream`` before the layer,
    (b, l, d_model); 0 where both are zero.
    """
    mixed = components.written.norm(dim=-1)
    total = mixed + stream.norm(dim=-1)
    return torch.where(total > 0, mixed / total.clamp_min(1e-38), 0.0)


def synthetic_attention(
    components: SSMComponents, temperature: float = SYNTHETIC_TEMPERATURE
) -> Tensor:
    """Attention from states alone: causal softmax of cos(h_t, h_s) / temperature, (b, l, l).

    h is the layer's state after a token, flattened over heads and states. Rows sum to 1 over
    s <= t; rows and columns of padding are zero. A zero state has no direction: its cosine with
    another counts as 0. It says which states look alike, not what is read from where: compare it
    with alpha (:func:`selective_scan.attention`). Raises ValueError for a temperature
    that is not positive. Cost: that of `SSMComponents.states`, the first time.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    gram = _state_gram(components)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    scale = norms.unsqueeze(1) * norms.unsqueeze(2)
    cosine = torch.where(scale > 0, gram / scale.clamp_min(1e-38), 0.0).clamp(-1, 1)
    keep = components.attention_mask.bool()
    visible = (keep.unsqueeze(1) & keep.unsqueeze(2)).tril()
    scores = (cosine / temperature).masked_fill(~visible, -math.inf)
    return scores.softmax(-1).masked_fill(~visible, 0.0)


def map_agreement(map_a: Tensor, map_b: Tensor, mask: Tensor) -> tuple[float | None, ...]:
    """Spearman per query over s <= t of two (b, l, l) maps, averaged over queries, for each text.

    In [-1, 1]; None for a text of fewer than 3 tokens or with constant rows only. Padding (mask 0)
    is left out. See :func:`analysis_utils.causal_spearman`.
    """
    return tuple(
        causal_spearman(a[keep][:, keep], b[keep][:, keep])
        for a, b, keep in zip(map_a, map_b, mask.bool(), strict=True)
    )


@dataclass(frozen=True, eq=False)
class QueryStatistics:
    """How each query spreads its attention over the sources; all (b, l), nan at padding.

    Of a non-negative map, normalised within each row; a row of zeros has strength 0 and leaves the
    rest undefined: nan.
    """

    entropy: Tensor
    """nats, in [0, ln(t + 1)]"""
    entropy_share: Tensor
    """entropy / ln(t + 1), in [0, 1]; nan at the first token, which has one source"""
    strength: Tensor
    """sum over the sources before normalisation, >= 0"""
    self_share: Tensor
    """share on the query itself, in [0, 1]"""
    first_share: Tensor
    """share on the text's first token"""
    recent_share: Tensor
    """share on the last four tokens, the query included: the convolution's reach"""
    mean_distance: Tensor
    """tokens, sum of (t - s) times share"""

    def to_dict(self) -> dict:
        """Summaries over tokens for JSON."""
        return {name: summarise(getattr(self, name)) for name in self.__dataclass_fields__}


@in_full_precision
def query_statistics(absolute_map: Tensor, mask: Tensor) -> QueryStatistics:
    """Entropy, strength, shares and distance of each row of a non-negative causal map (b, l, l).

    ``mask`` (b, l) is 0 at padding. Raises ValueError for negative entries. Cost: O(b l^2).
    """
    strength, shares = absolute_map.sum(-1), row_shares(absolute_map)
    undefined = (strength == 0) | (mask == 0)
    nats = entropy(absolute_map).to(strength)
    num_sources = mask.cumsum(1).clamp_min(1).to(strength)
    position = torch.arange(mask.shape[1], device=mask.device).to(strength)
    first = mask.long().argmax(1)
    values = {
        "entropy": nats,
        "entropy_share": (nats / num_sources.log()).clamp(max=1.0),  # 0 / 0 = nan with one source
        "self_share": shares.diagonal(dim1=1, dim2=2),
        "first_share": shares[torch.arange(len(mask)), :, first],
        "recent_share": shares.triu(1 - CONVOLUTION_REACH).sum(-1),
        "mean_distance": position - shares @ position,
    }
    values = {name: x.masked_fill(undefined, math.nan) for name, x in values.items()}
    return QueryStatistics(strength=strength.masked_fill(mask == 0, math.nan), **values)


_KERNEL_SHOWN = 0.999
"""Share of a memory kernel that its JSON holds: lags beyond would only make it long."""


@dataclass(frozen=True, eq=False)
class MemoryKernel:
    """How a layer's attention falls off with the lag k = t - s, for each text."""

    kernel: Tensor
    """(b, l) mean over t of |alpha[t, t-k]|, divided by its sum over k; 0 beyond the text; nan
    for a text without any attention"""
    mean_lag: tuple[float, ...]
    """tokens, sum of k times kernel; nan where the kernel is"""
    median_lag: tuple[float, ...]
    """tokens, smallest k by which half of the kernel has passed"""
    lag_90: tuple[float, ...]
    """tokens, smallest k by which 90 % of the kernel has passed"""

    def to_dict(self) -> dict:
        """Lags for JSON, one entry a text, and the kernel up to the lag by which 99.9 % of it has
        passed; None where undefined."""
        lags = ("mean_lag", "median_lag", "lag_90")
        return {
            **{name: [finite_or_none(x) for x in getattr(self, name)] for name in lags},
            "kernel": [_without_tail(row) for row in self.kernel],
        }


def _without_tail(kernel: Tensor) -> list[float | None]:
    if kernel.isnan().any():
        return [None] * len(kernel)
    end = int((kernel.double().cumsum(0) < _KERNEL_SHOWN).sum()) + 1
    return [three_digits(share) for share in kernel[:end].tolist()]


def memory_kernel(absolute_map: Tensor, mask: Tensor) -> MemoryKernel:
    """Memory kernel of a map of magnitudes (b, l, l): its mean along each diagonal, normalised.

    At lag k the mean is over the l - k queries that have such a source, so that long lags count
    the fewer queries they have as much as short ones. ``mask`` (b, l) is 0 at padding.
    """
    return kernel_of_sums(lag_sums(absolute_map, mask), absolute_map.dtype)


class LagSums(NamedTuple):
    """What a map of magnitudes adds up to at each lag 0, 1, ..., of which means are made."""

    sums: Tensor
    """(b, lags) float64, over the queries that have a source at that lag"""
    queries: Tensor
    """(b, lags) how many those are"""


def lag_sums(absolute_map: Tensor, mask: Tensor) -> LagSums:
    """Sums along the diagonals of a map of magnitudes (b, l, l), with the queries behind them.

    ``mask`` (b, l) is 0 at padding.
    """
    length = absolute_map.shape[1]
    sums = torch.stack(
        [absolute_map.diagonal(-k, 1, 2).sum(-1) for k in range(length)], dim=1
    ).double()
    queries = mask.sum(1, keepdim=True) - torch.arange(length, device=mask.device)
    return LagSums(sums, queries.clamp_min(0))


def pooled_lags(parts: Sequence[LagSums]) -> LagSums:
    """Sums and queries of one or more texts (b = 1 each) together, as far as the longest reaches.

    A text that is too short for a lag has no query there, and no say.
    """
    longest = max(part.sums.shape[1] for part in parts)

    def added(name: str) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        return torch.stack([pad(row, (0, longest - row.shape[1])) for row in rows]).sum(0)

    return LagSums(added("sums"), added("queries"))


def kernel_of_sums(found: LagSums, dtype: torch.dtype = torch.float32) -> MemoryKernel:
    """Memory kernel, in ``dtype``, of sums by lag: of the mean over the queries of each lag."""
    queries = found.queries
    means = torch.where(queries > 0, found.sums / queries.clamp_min(1), 0.0)
    return kernel_of_means(means, dtype)


def kernel_of_means(means: Tensor, dtype: torch.dtype = torch.float32) -> MemoryKernel:
    """Memory kernel, in ``dtype``, of the mean magnitudes at lags 0, 1, ... (b, lags), float64."""
    kernel = means / means.sum(1, keepdim=True)
    passed = kernel.cumsum(1)
    return MemoryKernel(
        kernel.to(dtype),
        tuple((kernel * torch.arange(means.shape[1])).sum(1).tolist()),
        *(tuple(_first_lag(row, share) for row in passed) for share in (0.5, 0.9)),
    )


def _first_lag(passed: Tensor, share: float) -> float:
    # The tolerance is for the rounding of a sum of up to thousands of shares.
    reached = (passed >= share - 1e-9).nonzero()
    return float(reached[0]) if len(reached) else math.nan


@in_full_precision
def _state_gram(components: SSMComponents) -> Tensor:
    """Inner products of the states of every two tokens, (b, l, l)."""
    if components.states.gram is not None:
        return components.states.gram
    h = components.hidden_states.flatten(2)
    return h @ h.mT
