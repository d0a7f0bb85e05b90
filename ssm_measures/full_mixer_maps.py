"""Maps of the full mixer: convolution and its bias, SiLU, gate and D around the implicit attention.

The definition, and what differs for Mamba-2, stand in `attention_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mixers.weights import MixerParameters
from selective_scan.attention import attention_map, attention_row, implicit_attention
from selective_scan.scan import selective_scan
from ssm_measures.attention_maps import HEADS_PER_PASS, checked_heads, maps_by_head
from ssm_measures.components import SSMComponents
from suite_plumbing.arguments import validate_int
from suite_plumbing.precision import in_full_precision


class MixerMap(NamedTuple):
    """A map of the full mixer, in which the convolution's bias has a share of its own."""

    tokens: Tensor
    """(b, l, l), or (b, heads, l, l): from token s at the convolution's input to token t"""
    bias: Tensor
    """(b, l), or (b, heads, l): from the convolution's bias to token t"""


class _MixerOperator(NamedTuple):
    """Some channels' map from x to the output before the gate, split by lag at the number of taps.

    Up to lag taps - 1: the entries themselves. From there on, x_s has passed the convolution: what
    it left in the state after token s + taps - 1 is one key, which decays like any other.
    """

    near: Tensor  # (taps, b, l, heads) entry of query t and source t - lag
    delta: Tensor  # (b, l, heads)
    A: Tensor  # (heads, N or 1)
    B: Tensor  # (b, l, heads, N): the key of source s lies at token s + taps - 1
    C: Tensor  # (b, l, heads, N)
    bias: Tensor  # (b, l, heads)

    def far(self, function: Callable[..., Tensor], *args: int, **options: Any) -> Tensor:
        """What ``function`` (a map, a row or head maps) gives from lag taps - 1 on, by source."""
        delay = len(self.near) - 1
        by_key = function(self.delta, self.A, self.B, self.C, *args, **options)
        return F.pad(by_key[..., delay:], (0, delay))


@in_full_precision
def full_mixer_map(
    components: SSMComponents,
    parameters: MixerParameters,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
) -> MixerMap:
    """Map of the whole mixer between in_proj and out_proj, exactly: sum_c q_t M[c, t, s] k_s.

    M of the module's docstring; ``query_weight`` and ``key_weight`` (b, l, d_inner) are for the
    gated output and for ``conv_input``; None means 1 / d_inner and 1, the mean over channels. With
    any q and with k = conv_input, row t of ``tokens`` plus ``bias`` sums to
    sum_c q_t[c] gated_t[c]. ``absolute`` sums magnitudes over channels, in ``bias`` too.
    Raises ValueError for weights of another shape, and for a mixer whose activation is not SiLU.
    Cost: one :func:`selective_scan.attention_map` (not one a tap) with every
    channel a head of its own, and O(b l d_inner N K).
    """
    batch, length, _ = components.delta.shape
    tokens = components.delta.new_zeros(batch, length, length)
    bias = components.delta.new_zeros(batch, length)
    for operator, query, key in _operators(components, parameters, query_weight, key_weight):
        far_key = _delayed(key, len(operator.near) - 1)
        part = operator.far(
            attention_map, query_weight=query, key_weight=far_key, absolute=absolute
        )
        for lag, entries in enumerate(operator.near):
            by_query = _over_heads(query * entries * _delayed(key, lag), absolute)
            part.diagonal(-lag, 1, 2).copy_(by_query[:, lag:])
        tokens += part
        bias += _over_heads(query * operator.bias, absolute)
    return MixerMap(tokens, bias)


@in_full_precision
def full_mixer_row(
    components: SSMComponents,
    parameters: MixerParameters,
    query: int,
    *,
    query_weight: Tensor | None = None,
    key_weight: Tensor | None = None,
    absolute: bool = False,
) -> MixerMap:
    """One row of :func:`full_mixer_map`: ``tokens`` (b, l) and ``bias`` (b,).

    ``query`` counts tokens, from the end when negative. Raises ValueError as the map does, and for
    a token that does not exist. Cost: O(b l H N K), no l by l map.
    """
    length = components.delta.shape[1]
    t = validate_int("query", query, -length, length - 1) % length
    tokens = components.delta.new_zeros(components.delta.shape[:2])
    bias = components.delta.new_zeros(len(tokens))
    for operator, weight, key in _operators(components, parameters, query_weight, key_weight):
        part = operator.far(
            attention_row,
            t,
            query_weight=weight,
            key_weight=_delayed(key, len(operator.near) - 1),
            absolute=absolute,
        )
        for lag, entries in enumerate(operator.near[: t + 1]):
            part[:, t - lag] = _over_heads(weight[:, t] * entries[:, t] * key[:, t - lag], absolute)
        tokens += part
        bias += _over_heads(weight[:, t] * operator.bias[:, t], absolute)
    return MixerMap(tokens, bias)


@in_full_precision
def full_mixer_head_maps(
    components: SSMComponents, parameters: MixerParameters, heads: Sequence[int] | None = None
) -> MixerMap:
    """M and c of the module's docstring for chosen channels: gated = M conv_input + c for each.

    ``heads`` numbers channels, which in Mamba-1 are the heads; ``tokens`` is (b, channels, l, l),
    ``bias`` (b, channels, l). Raises ValueError as :func:`head_maps`.
    """
    chosen = checked_heads(components, heads, components.u.shape[2])
    operator = _mixer_operator(components, parameters, torch.tensor(chosen))
    gate = components.gating[..., chosen].movedim(2, 1)
    tokens = operator.far(implicit_attention)
    for lag, entries in enumerate(operator.near):
        tokens.diagonal(-lag, 2, 3).copy_(entries.movedim(2, 1)[..., lag:])
    return MixerMap(tokens * gate.unsqueeze(-1), operator.bias.movedim(2, 1) * gate)


def _operators(
    components: SSMComponents,
    parameters: MixerParameters,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
) -> Iterator[tuple[_MixerOperator, Tensor, Tensor]]:
    """The operator, the query weight times the gating, and the key weight, by some channels."""
    shape = components.u.shape
    for name, weight in (("query_weight", query_weight), ("key_weight", key_weight)):
        if weight is not None and weight.shape != shape:
            raise ValueError(
                f"{name} must be (b, l, d_inner) = {tuple(shape)}, got {tuple(weight.shape)}"
            )
    mask = components.attention_mask.to(components.delta).unsqueeze(-1)
    gating = components.gating
    for heads in torch.arange(shape[2]).split(HEADS_PER_PASS):
        gate = gating[..., heads]
        query = gate / shape[2] if query_weight is None else gate * query_weight[..., heads]
        key = (mask if key_weight is None else key_weight[..., heads]).expand_as(gate)
        yield _mixer_operator(components, parameters, heads), query, key


def _mixer_operator(
    components: SSMComponents, parameters: MixerParameters, heads: Tensor
) -> _MixerOperator:
    """Follow x_s through the taps: the state that it leaves and what each query reads of it."""
    length, d_inner = components.u.shape[1:]
    head = heads // components.head_width
    delta, A = components.delta[..., head], components.A[head]
    D = components.channel_skip[..., heads]
    share = 1.0 if components.own_share is None else components.own_share[..., head]
    B, C = (maps_by_head(x, heads, d_inner) for x in (components.B, components.C))
    gain = _convolution_gain(components, parameters, heads)
    b_conv = 0.0 if parameters.conv_bias is None else parameters.conv_bias[heads]
    bias = delta.new_zeros(delta.shape)
    if parameters.conv_bias is not None:
        bias = selective_scan(gain * b_conv, delta, A, B, C, components.D[head])
    B, C = (x.unsqueeze(2) if x.dim() == 3 else x for x in (B, C))
    taps = gain.new_ones(len(heads), 1)  # a Mamba-3 has no convolution
    if parameters.conv_weight is not None:
        taps = parameters.conv_weight[heads].flip(1)[:, :length]
    decay = torch.exp(delta.unsqueeze(-1) * A)
    state = delta.new_zeros(*delta.shape, B.shape[-1])
    near = []
    for lag in range(taps.shape[1]):
        passed = gain[:, lag:] * taps[:, lag]
        state = state[:, : length - lag].mul_(decay[:, lag:])
        state.addcmul_((delta[:, lag:] * passed).unsqueeze(-1), B[:, lag:])
        read = (C[:, lag:] * state).sum(-1) * share
        near.append(F.pad(read + D * passed, (0, 0, lag, 0)))
    # The maps multiply a key by its delta, which is divided out here; the bound is for a delta
    # that softplus has rounded to 0, and changes no decay.
    step = delta.clamp_min(1e-30)
    keys = F.pad(state, (0, 0, 0, 0, length - state.shape[1], 0)) / step.unsqueeze(-1)
    return _MixerOperator(torch.stack(near), step, A, keys, C.expand_as(keys), bias)


def _convolution_gain(
    components: SSMComponents, parameters: MixerParameters, heads: Tensor
) -> Tensor:
    """sigmoid(p) (b, l, heads) with p the convolution's output, so that u = p sigmoid(p); 0 at
    padding."""
    mask = components.attention_mask.unsqueeze(-1)
    if parameters.conv_weight is None:
        return mask.to(components.u).expand(-1, -1, len(heads))
    weight = parameters.conv_weight[heads].unsqueeze(1)
    b_conv = None if parameters.conv_bias is None else parameters.conv_bias[heads]
    x = F.pad(components.conv_input[..., heads].mT, (weight.shape[2] - 1, 0))
    p = F.conv1d(x, weight, b_conv, groups=len(weight)).mT
    gain = torch.sigmoid(p) * mask
    u = components.u[..., heads]
    if (gain * p - u).norm() > 1e-3 * u.norm():
        raise ValueError(
            "components and parameters do not belong together: SiLU of the convolution of "
            "conv_input is not u. Pass the parameters of the same layer; an activation other than "
            "SiLU has no such map"
        )
    return gain


def _over_heads(by_head: Tensor, absolute: bool) -> Tensor:
    return (by_head.abs() if absolute else by_head).sum(-1)


def _delayed(x: Tensor, lag: int) -> Tensor:
    """x (b, l, heads) shifted to later tokens by ``lag``, zeros coming in."""
    return F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
