"""Maps of what a token takes from which earlier token, in one layer of a Mamba.

Every map is R[t, s] = sum over heads of q_t[h] alpha[h, t, s] k_s[h] (``attention_map``), and what
differs is the weights. ``alpha`` is the SSM's implicit attention [1]: y_t - D u_t = sum over
s <= t of alpha[t, s] u_s. It is signed and its rows do not sum to 1.

The full mixer adds what lies around the SSM, exactly [2]: with p the convolution's output before
SiLU, SiLU(p) = p sigmoid(p), x the convolution's input and z the gate,

    gated_t = SiLU(z_t) sum_j (alpha[t, j] + D [t = j]) sigmoid(p_j) (sum_i w_i x_{j-i} + b)

so that per channel gated = M x + c, M[t, s] = SiLU(z_t) sum_i (alpha[t, s+i] + D [t = s+i])
sigmoid(p_{s+i}) w_i, with c the part of the convolution's bias b. In Mamba-2 B and C pass a
convolution of their own, which is part of alpha, and the gated norm follows: its weight over the
token's root mean square multiplies SiLU(z_t). That is the exact linearisation at the data, the
root mean square being held: rows still sum to the gated output, but on other data it is another.

Maps of heads sum over their channels: in Mamba-1 a head is a channel, in Mamba-2 the P channels of
a head share its alpha. Weights are (b, l, H), or (b, l, d_inner) where channels differ.

Functions take ``SSMComponents`` of one text or of a left-padded batch; rows and columns of padding
are zero in maps. ``attention_measures`` measures what a map says. Letters are those of
``selective_scan``'s glossary.

References:
  [1] Ali, Zimerman & Wolf 2024, The Hidden Attention of Mamba Models
  [2] Zimerman, Ali & Wolf 2024, A Unified Implicit Attention Formulation for Gated-Linear RNNs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selective_scan.attention import attention_map, implicit_attention, magnitude_maps
from selective_scan.scan import half_life
from ssm_measures.components import SSMComponents
from suite_plumbing.arguments import LARGEST_INT, validate_int, whole_numbers
from suite_plumbing.precision import in_full_precision

MAX_HEAD_MAPS_GB = 1.0
"""Largest result of :func:`head_maps`, in GB of 1e9 bytes."""

# Heads whose states or folded keys are held at once: bounds memory, not the result.
HEADS_PER_PASS = 128


def mean_map(components: SSMComponents, *, absolute: bool = False) -> Tensor:
    """Mean over heads of alpha, or of |alpha| when ``absolute``: (b, l, l), zero for s > t.

    Cost: see :func:`selective_scan.attention_map`.
    """
    return attention_map(
        **kernel_of(components),
        query_weight=_at_tokens(components, 1 / components.delta.shape[2]),
        key_weight=_at_tokens(components, 1.0),
        absolute=absolute,
    )


def written_map(components: SSMComponents) -> Tensor:
    """Mean over channels of |alpha[t, s] u_s|: what query t really gets of source s, (b, l, l).

    Implicit attention alone is of gates: a token of u = 0 may have the largest alpha of a text, and
    gives nothing. No target is known here; `contribution_map` weighs by one. Padding is zero.
    """
    keep = components.attention_mask.unsqueeze(-1).to(components.u)
    return attention_map(**kernel_of(components), key_weight=components.u * keep, absolute=True)


def absolute_maps(components: SSMComponents) -> tuple[Tensor, Tensor]:
    """``mean_map`` of magnitudes and ``written_map``, from one product: (b, l, l) each."""
    mask = components.attention_mask.to(components.u)
    maps = magnitude_maps(**kernel_of(components), values=components.u * mask.unsqueeze(-1))
    pairs = mask.unsqueeze(2) * mask.unsqueeze(1)
    return maps[0] * pairs, maps[1] * pairs


def contribution_map(components: SSMComponents, grad_y: Tensor) -> Tensor:
    """First-order contribution of source s to a scalar f through query t: (b, l, l).

    R[t, s] = sum_c (df/dy_t)[c] alpha[h(c), t, s] u_s[c] over channels c and their heads h(c),
    ``grad_y`` (b, l, d_inner) being df/dy. Row t sums to sum_c (df/dy_t)[c] (y_t - D u_t)[c]
    exactly. Raises ValueError for another shape of grad_y.
    """
    return attention_map(**kernel_of(components), query_weight=grad_y, key_weight=components.u)


def direction_map(components: SSMComponents, out_weight: Tensor, direction: Tensor) -> Tensor:
    """Contribution of source s through query t along a direction of the residual stream: (b, l, l).

    R[t, s] = sum_c w[c] g_t[c] alpha[h(c), t, s] u_s[c] with w = W_out^T direction and g the
    components' ``gating``, SiLU(z) and in Mamba-2 the norm's factor; row t sums to
    direction . W_out(g_t (y_t - D u_t)). ``out_weight`` (d_model, d_inner) as in
    :class:`mamba_mixers.MixerParameters`, ``direction`` (d_model,), say of :func:`token_direction`.
    Exact for what this layer writes into the residual stream; what later layers make of it, and
    the final norm's division by the size of the stream, a factor for each token, are left out.
    """
    query_weight = components.gating * _channel_direction(out_weight, direction)
    return attention_map(
        **kernel_of(components), query_weight=query_weight, key_weight=components.u
    )


def token_direction(unembedding: Tensor, token: int, contrast: int | None = None) -> Tensor:
    """Direction of the residual stream that raises a token's logit, or that over a contrast's.

    ``unembedding`` (V, d_model) as from :func:`mamba_mixers.logit_directions`; returns (d_model,).
    Raises ValueError for a token that does not exist.
    """
    size = unembedding.shape[0]
    for name, value in (("token", token), ("contrast", contrast)):
        if value is not None and not 0 <= validate_int(name, value, -LARGEST_INT) < size:
            raise ValueError(f"{name} is {value}; the vocabulary has tokens 0 to {size - 1}")
    row = unembedding[token]
    return (row if contrast is None else row - unembedding[contrast]).detach()


def head_maps(components: SSMComponents, heads: Sequence[int] | None = None) -> Tensor:
    """alpha of chosen heads (for Mamba-1, channels), or of all: (b, heads, l, l).

    Raises ValueError for a head that does not exist, and for a result above MAX_HEAD_MAPS_GB,
    saying how large it would be and what to ask for instead. Cost: 4 l^2 bytes a head.
    """
    return implicit_attention(
        **kernel_of(components), heads=checked_heads(components, heads, components.delta.shape[2])
    )


def head_half_lives(components: SSMComponents) -> Tensor:
    """(H,) half-life in tokens of each head's slowest state, ln 2 / (mean delta * min_n |A|).

    The mean of delta is over the tokens of all texts. For Mamba-1 a head is a channel.
    """
    mean_delta = components.delta[components.attention_mask.bool()].mean(0)
    return half_life(mean_delta, components.A).amax(1)


LIMITED_SHARE = 0.25
"""A half-life above this share of the text's length, and how far attention reaches is the text's
doing: at a quarter, a kernel that falls by half-lives has 1/16 of its start left at the end, and
its mean lag is 18 % short of that in an endless text; beyond, it grows with the length."""


def limited_by_text(components: SSMComponents) -> tuple[bool, ...]:
    """For each text, whether the median half-life of its heads is above LIMITED_SHARE of its
    length.

    The lags of a memory kernel are then those of the text's length, and say how long the text is.
    """
    lengths = components.attention_mask.sum(1).tolist()
    return tuple(
        bool(head_half_lives(components.text(row)).median() > LIMITED_SHARE * length)
        for row, length in enumerate(lengths)
    )


def head_groups_by_half_life(components: SSMComponents, num_groups: int = 3) -> Tensor:
    """(H,) number of the group of each head: equal shares by half-life, 0 the shortest.

    ``num_groups`` 3 gives terciles; ties go by head number; sizes differ by at most 1. Raises
    ValueError unless 1 <= num_groups <= H.
    """
    half_lives = head_half_lives(components)
    count = validate_int("num_groups", num_groups, 1, len(half_lives))
    ranks = half_lives.argsort(stable=True).argsort()
    return ranks * count // len(half_lives)


def group_maps(components: SSMComponents, groups: Tensor, *, absolute: bool = False) -> Tensor:
    """Mean of alpha, or of |alpha|, over the heads of each group: (b, number of groups, l, l).

    ``groups`` (H,) numbers each head's group from 0 as :func:`head_groups_by_half_life`. Raises
    ValueError for another shape or a number that no head has. Cost: together that of
    :func:`mean_map`.
    """
    num_heads, counts = components.delta.shape[2], groups.bincount()
    if groups.shape != (num_heads,) or not bool((counts > 0).all()):
        raise ValueError(
            f"groups must give each of {num_heads} heads a group, numbered from 0 without gaps; "
            f"got shape {tuple(groups.shape)} with {counts.tolist()} heads a group"
        )
    delta, A, B, C, share = kernel_of(components).values()
    query, key = _at_tokens(components, 1.0), _at_tokens(components, 1.0)
    maps = []
    for group in range(len(counts)):
        heads = (groups == group).nonzero().flatten()
        B_heads, C_heads = (maps_by_head(x, heads, num_heads) for x in (B, C))
        weights = {
            "query_weight": None if query is None else query[..., heads] / len(heads),
            "key_weight": None if key is None else key[..., heads],
        }
        maps.append(
            attention_map(
                delta[..., heads],
                A[heads],
                B_heads,
                C_heads,
                **weights,
                absolute=absolute,
                own_share=None if share is None else share[..., heads],
            )
        )
    return torch.stack(maps, dim=1)


def kernel_of(parts: Any) -> dict[str, Any]:
    """What implicit attention is made of, by the names of `selective_scan`'s arguments, from a
    layer's components or its replay."""
    names = ("delta", "A", "B", "C", "own_share")
    return {name: getattr(parts, name) for name in names}


def _at_tokens(components: SSMComponents, value: float) -> Tensor | None:
    """A weight (b, l, H) of ``value`` at tokens and 0 at padding; None where there is none."""
    mask = components.attention_mask
    if bool(mask.all()):
        return None
    return (value * mask.to(components.delta)).unsqueeze(-1).expand_as(components.delta)


def maps_by_head(x: Tensor, heads: Tensor, num_heads: int) -> Tensor:
    """B or C of some heads: unchanged where all heads share one, else (b, l, heads, N)."""
    return x if x.dim() == 3 else x[:, :, heads // (num_heads // x.shape[2])]


@in_full_precision
def _channel_direction(out_weight: Tensor, direction: Tensor) -> Tensor:
    if direction.shape != out_weight.shape[:1]:
        raise ValueError(
            f"direction must be (d_model,) = ({out_weight.shape[0]},), got {tuple(direction.shape)}"
        )
    return direction.to(out_weight) @ out_weight


def checked_heads(
    components: SSMComponents, heads: Sequence[int] | None, num_heads: int
) -> list[int]:
    """Head numbers, checked, of which the maps are small enough to hold."""
    batch, length, _ = components.delta.shape
    numbers = range(num_heads) if heads is None else heads
    chosen = whole_numbers("heads", numbers, 0, num_heads - 1, empty=True)
    if not chosen:
        raise ValueError(f"heads is empty; choose among heads 0 to {num_heads - 1}")
    size = batch * len(chosen) * length**2 * components.delta.element_size() / 1e9
    if size > MAX_HEAD_MAPS_GB:
        raise ValueError(
            f"heads asks for {len(chosen)} maps of {length} x {length} tokens, {size:.1f} GB; the "
            f"limit is {MAX_HEAD_MAPS_GB} GB. Ask for at most "
            f"{int(MAX_HEAD_MAPS_GB / size * len(chosen))} heads, for a shorter text, or for "
            "means over heads (mean_map, group_maps) or one query (attention_row)"
        )
    return chosen
