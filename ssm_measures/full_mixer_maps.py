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
from selective_scan.merging import SummedPairs, passes
from selective_scan.operands import compute_dtype
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
    it left in the state after token s + taps - 1 is one key, which decays like any other. Keys are
    numbered by that token; before the first there is none, and they are 0. All are weighed by
    source.
    """

    near: list[Tensor]  # by lag (b, l - lag, heads) entry of source s and query s + lag
    delta: Tensor  # (b, l, heads)
    A: Tensor  # (heads, N or 1)
    buffers: _Buffers
    C: Tensor  # (b, l, heads or 1, N)

    def far(self, function: Callable[..., Tensor], *args: int, **options: Any) -> Tensor:
        """What ``function`` (a row or head maps) gives from lag taps - 1 on, by source."""
        delay = len(self.near) - 1
        # These functions multiply a key by its delta, which is divided out here; the bound is for
        # a delta that softplus has rounded to 0, and changes no decay.
        step = self.delta.clamp_min(1e-30)
        B = self.buffers.key / step.unsqueeze(-1)
        by_key = function(step, self.A, B, self.C.expand_as(B), *args, **options)
        return F.pad(by_key[..., delay:], (0, delay))

    def add_map(self, by_key: Tensor, query: Tensor, absolute: bool) -> None:
        """Add sum_c q_t M to ``by_key`` (b, l, l + taps - 1), whose column is s + taps - 1."""
        length, delay = query.shape[1], len(self.near) - 1
        for lag, entries in enumerate(self.near):
            by_query = query[:, lag:] * entries
            by_key[..., delay:].diagonal(-lag, 1, 2).add_(_over_heads(by_query, absolute))
        if absolute:
            queries, keys = query.unsqueeze(-1) * self.C, self.buffers.key.clone()
            far = decayed_products(queries, keys, self.buffers.decay, absolute=True)
            by_key[..., :length] += far
        else:
            self.buffers.add_sums(by_key[..., :length], query.unsqueeze(-1), self.C)


class _Buffers:
    """What an operator of some channels holds of every token, channel and state; used again for
    the next channels."""

    def __init__(self, like: Tensor, delay: int, states: int, rates: int) -> None:
        batch, length, heads = like.shape
        self._by_key = like.new_zeros(batch, length + delay, heads, states)
        self.state = self._by_key[:, delay:]
        """(b, l, heads, N) what a source leaves, by source"""
        self.key = self._by_key[:, :length]
        """(b, l, heads, N) the same ``delay`` tokens on; 0 for the first"""
        self.decay = like.new_empty(batch, length, heads, rates)
        self._sums: list[SummedPairs] = []

    def add_sums(self, out: Tensor, query: Tensor, C: Tensor) -> None:
        """Add the products with the queries, summed over heads, to ``out`` (b, l, l), the same
        one every time; overwrites keys and decays."""
        if not self._sums:
            queries = torch.empty_like(self.key, memory_format=torch.contiguous_format)
            operands = zip(out, queries, self.key, self.decay, strict=True)
            self._sums = [SummedPairs(*of_text) for of_text in operands]
        for row, sums in enumerate(self._sums):
            torch.mul(query[row], C[row], out=sums.query)
            sums.add()


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
    gain = _convolution_gain(components, parameters)
    query = _query(components, query_weight)
    key = _key(components, key_weight)
    q, k = (x.abs().max().clamp_min(torch.finfo(x.dtype).tiny) for x in (query, key))
    batch, length, _ = query.shape
    passed = _passed(gain, parameters, key / k)
    delay = len(passed) - 1
    dtype = compute_dtype(*(getattr(components, name) for name in ("delta", "A", "B", "C", "u")))
    by_key = query.new_zeros(batch, length, length + delay, dtype=dtype)
    scaled = query / q
    for heads, operator in _operators(components, passed):
        operator.add_map(by_key, scaled[..., heads], absolute)
    bias = _over_heads(query * _biases(components, parameters, gain), absolute)
    return MixerMap(by_key[..., delay:] * (q * k), bias)


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
    query_weight = _query(components, query_weight)
    key = _key(components, key_weight)
    for heads, operator in _operators(components, _passed(gain, parameters, key)):
        weight = query_weight[..., heads]
        part = operator.far(attention_row, t, query_weight=weight, absolute=absolute)
        for lag, entries in enumerate(operator.near[: t + 1]):
            part[:, t - lag] = _over_heads(weight[:, t] * entries[:, t - lag], absolute)
        tokens += part
    by_channel = _biases(components, parameters, gain)[:, t]
    return MixerMap(tokens, _over_heads(query_weight[:, t] * by_channel, absolute))


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
    operator = _mixer_operator(components, torch.tensor(chosen), _passed(gain, parameters, None))
    bias = _biases(components, parameters, gain)[..., chosen].movedim(2, 1)
    gate = components.gating[..., chosen].movedim(2, 1)
    tokens = operator.far(implicit_attention)
    for lag, entries in enumerate(operator.near):
        tokens.diagonal(-lag, 2, 3).copy_(entries.movedim(2, 1))
    return MixerMap(tokens * gate.unsqueeze(-1), bias * gate)


def _operators(
    components: SSMComponents, passed: Sequence[Tensor]
) -> Iterator[tuple[slice, _MixerOperator]]:
    """Some channels and their operator, weighed by source; the next one overwrites its buffers."""
    buffers = None
    for heads in passes(components.u.shape[2], components.B.shape[-1], HEADS_PER_PASS):
        if buffers is not None and buffers.key.shape[2] != heads.stop - heads.start:
            buffers = None
        operator = _mixer_operator(components, heads, passed, buffers)
        buffers = operator.buffers
        yield heads, operator


def _query(components: SSMComponents, weight: Tensor | None) -> Tensor:
    """(b, l, d_inner) the query weight of the output before the gate."""
    gating = components.gating
    _check_weight("query_weight", weight, gating)
    return gating / gating.shape[2] if weight is None else gating * weight


def _key(components: SSMComponents, weight: Tensor | None) -> Tensor:
    """(b, l, d_inner) the weight of sources; without one, 0 at padding."""
    _check_weight("key_weight", weight, components.u)
    mask = components.attention_mask.to(components.u).unsqueeze(-1)
    return mask.expand_as(components.u) if weight is None else weight


def _check_weight(name: str, weight: Tensor | None, like: Tensor) -> None:
    if weight is not None and weight.shape != like.shape:
        raise ValueError(
            f"{name} must be (b, l, d_inner) = {tuple(like.shape)}, got {tuple(weight.shape)}"
        )


def _passed(gain: Tensor, parameters: MixerParameters, key: Tensor | None) -> list[Tensor]:
    """By tap, the last first, (b, l - lag, d_inner) by source: what of it is in u ``lag`` tokens
    on, as far as the text goes, times its weight."""
    length = gain.shape[1]
    if parameters.conv_weight is None:  # a Mamba-3 has no convolution
        return [gain if key is None else gain * key]
    taps = [gain[:, lag:] * w for lag, w in enumerate(parameters.conv_weight.flip(1).T[:length])]
    return taps if key is None else [x.mul_(key[:, : x.shape[1]]) for x in taps]


def _mixer_operator(
    components: SSMComponents,
    heads: slice | Tensor,
    passed: Sequence[Tensor],
    buffers: _Buffers | None = None,
) -> _MixerOperator:
    """Follow x_s through the taps: the state that it leaves and what each query reads of it.

    ``passed`` as :func:`_passed`, of all channels.
    """
    length, d_inner = components.u.shape[1:]
    numbers = torch.arange(d_inner)[heads]
    head = heads if components.head_width == 1 else numbers // components.head_width
    delta, A, D = (
        components.delta[..., head],
        components.A[head],
        components.channel_skip[..., heads],
    )
    share = 1.0 if components.own_share is None else components.own_share[..., head]
    B, C = (maps_by_head(x, numbers, d_inner) for x in (components.B, components.C))
    B, C = (x.unsqueeze(2) if x.dim() == 3 else x for x in (B, C))
    if buffers is None:
        like = delta.new_empty(delta.shape, dtype=compute_dtype(delta, A, B, C, *passed))
        buffers = _Buffers(like, len(passed) - 1, B.shape[-1], A.shape[-1])
    torch.mul(delta.unsqueeze(-1), A, out=buffers.decay).exp_()
    near = []
    for lag, by_source in enumerate(x[..., heads] for x in passed):
        written = delta[:, lag:] * by_source
        state = buffers.state[:, : length - lag]
        if lag == 0:
            torch.mul(written.unsqueeze(-1), B, out=state)
            read = (B * C).sum(-1) * written * share
        else:
            state.mul_(buffers.decay[:, lag:]).addcmul_(written.unsqueeze(-1), B[:, lag:])
            read = _read(C[:, lag:], state)
        near.append(read.addcmul_(D.to(read), by_source.to(read)))
    return _MixerOperator(near, delta, A, buffers, C)


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
