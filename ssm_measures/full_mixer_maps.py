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
from selective_scan.attention import attention_row, decayed_products, implicit_attention
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
    decay: Tensor  # (b, l, heads, N or 1)
    keys: Tensor  # (b, l - taps + 1, heads, N) by source; of source s at token s + taps - 1
    C: Tensor  # (b, l, heads or 1, N)

    def far(self, function: Callable[..., Tensor], *args: int, **options: Any) -> Tensor:
        """What ``function`` (a row or head maps) gives from lag taps - 1 on, by source."""
        delay = len(self.near) - 1
        # These functions multiply a key by its delta, which is divided out here; the bound is for
        # a delta that softplus has rounded to 0, and changes no decay.
        step = self.delta.clamp_min(1e-30)
        B = F.pad(self.keys, (0, 0, 0, 0, delay, 0)) / step.unsqueeze(-1)
        by_key = function(step, self.A, B, self.C.expand_as(B), *args, **options)
        return F.pad(by_key[..., delay:], (0, delay))

    def add_map(self, tokens: Tensor, query: Tensor, key: Tensor, absolute: bool) -> None:
        """Add sum_c q_t M k_s to ``tokens`` (b, l, l); weights (b, l, heads)."""
        delay, length = len(self.near) - 1, query.shape[1]
        q, k = (x.abs().max().clamp_min(torch.finfo(x.dtype).tiny) for x in (query, key))
        far = decayed_products(
            (query[:, delay:] / q).unsqueeze(-1) * self.C[:, delay:],
            self.keys * (key[:, : length - delay] / k).unsqueeze(-1),
            self.decay[:, delay:],
            absolute=absolute,
        )
        tokens[:, delay:, : length - delay] += far * (q * k)
        for lag, entries in enumerate(self.near):
            by_query = query[:, lag:] * entries[:, lag:] * key[:, : length - lag]
            tokens.diagonal(-lag, 1, 2).add_(_over_heads(by_query, absolute))


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
    gain = _convolution_gain(components, parameters)
    for operator, query, key in _operators(components, parameters, gain, query_weight, key_weight):
        operator.add_map(tokens, query, key, absolute)
    by_channel = _biases(components, parameters, gain)
    bias = _over_heads(_query(components, query_weight, slice(None)) * by_channel, absolute)
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
    gain = _convolution_gain(components, parameters)
    for operator, weight, key in _operators(components, parameters, gain, query_weight, key_weight):
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
    by_channel = _biases(components, parameters, gain)[:, t]
    weight = _query(components, query_weight, slice(None))[:, t]
    return MixerMap(tokens, _over_heads(weight * by_channel, absolute))


@in_full_precision
def full_mixer_head_maps(
    components: SSMComponents, parameters: MixerParameters, heads: Sequence[int] | None = None
) -> MixerMap:
    """M and c of the module's docstring for chosen channels: gated = M conv_input + c for each.

    ``heads`` numbers channels, which in Mamba-1 are the heads; ``tokens`` is (b, channels, l, l),
    ``bias`` (b, channels, l). Raises ValueError as :func:`head_maps`.
    """
    chosen = checked_heads(components, heads, components.u.shape[2])
    gain = _convolution_gain(components, parameters)
    operator = _mixer_operator(components, parameters, torch.tensor(chosen), gain)
    bias = _biases(components, parameters, gain)[..., chosen].movedim(2, 1)
    gate = components.gating[..., chosen].movedim(2, 1)
    tokens = operator.far(implicit_attention)
    for lag, entries in enumerate(operator.near):
        tokens.diagonal(-lag, 2, 3).copy_(entries.movedim(2, 1)[..., lag:])
    return MixerMap(tokens * gate.unsqueeze(-1), bias * gate)


def _operators(
    components: SSMComponents,
    parameters: MixerParameters,
    gain: Tensor,
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
    for heads in torch.arange(shape[2]).split(HEADS_PER_PASS):
        query = _query(components, query_weight, heads)
        key = (mask if key_weight is None else key_weight[..., heads]).expand_as(query)
        yield _mixer_operator(components, parameters, heads, gain), query, key


def _query(components: SSMComponents, query_weight: Tensor | None, heads: Tensor | slice) -> Tensor:
    """(b, l, heads) the query weight of the output before the gate."""
    gate = components.gating[..., heads]
    return gate / components.u.shape[2] if query_weight is None else gate * query_weight[..., heads]


def _mixer_operator(
    components: SSMComponents, parameters: MixerParameters, heads: Tensor, gain: Tensor
) -> _MixerOperator:
    """Follow x_s through the taps: the state that it leaves and what each query reads of it."""
    length, d_inner = components.u.shape[1:]
    head, gain = heads // components.head_width, gain[..., heads]
    delta, A = components.delta[..., head], components.A[head]
    D = components.channel_skip[..., heads]
    share = 1.0 if components.own_share is None else components.own_share[..., head]
    B, C = (maps_by_head(x, heads, d_inner) for x in (components.B, components.C))
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
        read = _read(C[:, lag:], state) * share
        near.append(F.pad(read + D * passed, (0, 0, lag, 0)))
    return _MixerOperator(torch.stack(near), delta, A, decay, state, C)


def _read(C: Tensor, state: Tensor) -> Tensor:
    """(b, l, heads) of C (b, l, heads or 1, N) and states (b, l, heads, N)."""
    # A row times a transposed matrix is faster than the matrix times a column.
    return (C @ state.mT).squeeze(2) if C.shape[2] == 1 else (C * state).sum(-1)


def _biases(components: SSMComponents, parameters: MixerParameters, gain: Tensor) -> Tensor:
    """(b, l, d_inner) what the convolution's bias gives to y."""
    if parameters.conv_bias is None:
        return torch.zeros_like(components.u)
    operands = (getattr(components, name) for name in ("delta", "A", "B", "C", "D"))
    return selective_scan(gain * parameters.conv_bias, *operands)


def _allowed_error(u: Tensor) -> float:
    """Of u beside what it is rebuilt from: a step of the dtype that the mixer rounded it to."""
    is_bfloat16 = bool((u.bfloat16().to(u) == u).all())
    return torch.finfo(torch.bfloat16).eps if is_bfloat16 else 1e-3


def _convolution_gain(components: SSMComponents, parameters: MixerParameters) -> Tensor:
    """sigmoid(p) (b, l, d_inner) with p the convolution's output, so that u = p sigmoid(p); 0 at
    padding."""
    mask = components.attention_mask.unsqueeze(-1)
    if parameters.conv_weight is None:
        return mask.to(components.u).expand_as(components.u)
    weight = parameters.conv_weight.unsqueeze(1)
    x = F.pad(components.conv_input.mT, (weight.shape[2] - 1, 0))
    p = F.conv1d(x, weight, parameters.conv_bias, groups=len(weight)).mT
    gain = torch.sigmoid(p) * mask
    u = components.u
    if (gain * p - u).norm() > _allowed_error(u) * u.norm():
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
