"""What the neurons of a text's last token are made of: by path, and by the token it came from.

A neuron is g_t[c] times y_t[c], with g_t SiLU(z_t) and in Mamba-2 the gated norm's factor; and

    y_t = sum_{s < t} alpha[t, s] u_s + (alpha[t, t] + D) u_t,    u_s = sigma(p_s) p_s,
    p_s = sum_j kappa_j x_{s-j} + b

with x the convolution's input and kappa_j its tap of lag j. "state" is the first sum, "skip" the
second term by the convolution's own tap (j = 0), "convolution" the second term by its earlier taps,
"bias" all that b gives. Sources follow the taps: what passes tap j of token s came from token
s - j. sigma, g and alpha stand at their value, so that the shares sum to the neurons exactly.

Letters: the glossary of ``selective_scan``; the same numbers for every query at once are the maps
of ``full_mixer_maps``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mixers.stream_writes import MixerTrace
from mamba_mixers.weights import MixerParameters
from selective_scan.attention import attention_row_by_head
from suite_plumbing.precision import in_full_precision


class NeuronShares(NamedTuple):
    """The neurons (d_inner,) of a text's last token as sums over paths and sources."""

    state: Tensor
    """(l, d_inner) what came through the state, by source"""
    convolution: Tensor
    """(l, d_inner) what came through earlier taps of the convolution alone, by source; the last
    token's entry is 0"""
    skip: Tensor
    """(d_inner,) what the last token gave itself through the convolution's own tap"""
    bias: Tensor
    """(d_inner,) what the convolution's bias gave, by any path"""

    @property
    def neurons(self) -> Tensor:
        """(d_inner,) the sum of all: the gated output."""
        return self.state.sum(0) + self.convolution.sum(0) + self.skip + self.bias

    @property
    def by_source(self) -> Tensor:
        """(l, d_inner) all paths together; with ``bias`` they sum to the neurons."""
        total = self.state + self.convolution
        total[-1] += self.skip
        return total


@in_full_precision
def neuron_shares(trace: MixerTrace, parameters: MixerParameters) -> NeuronShares:
    """The neurons of the last token by path and source.

    Raises ValueError where ``parameters`` are another layer's, or the activation is not SiLU.
    Cost: one row of implicit attention for every head, O(l H N), and O(l d_inner K).
    """
    taps, b = _taps(trace, parameters), parameters.conv_bias
    b = torch.zeros_like(taps[0, 0]) if b is None else b.to(taps)
    exact, scanned = torch.ones_like(trace.u), torch.ones_like(trace.u)
    if parameters.conv_weight is not None:  # a Mamba-3 has no convolution
        exact, scanned = _gains(trace, taps.sum(0) + b)
    share = None if trace.own_share is None else trace.own_share[None]
    alpha = attention_row_by_head(
        trace.delta[None], trace.A, trace.B[None], trace.C[None], -1, own_share=share
    )[0]  # fmt: skip
    width = trace.u.shape[1] // alpha.shape[1]
    through_state = scanned * alpha.repeat_interleave(width, dim=1) * trace.gating
    skip = trace.D.repeat_interleave(width) if trace.skip is None else trace.skip
    now = through_state[-1] + exact[-1] * skip * trace.gating
    through_state[-1] = 0.0
    state, convolution = torch.zeros_like(through_state), torch.zeros_like(through_state)
    for lag, tap in enumerate(taps):
        state[: len(state) - lag] += (through_state * tap)[lag:]
        if 0 < lag < len(state):
            convolution[-1 - lag] = now * tap[-1]
    return NeuronShares(state, convolution, now * taps[0, -1], (through_state.sum(0) + now) * b)


def _taps(trace: MixerTrace, parameters: MixerParameters) -> Tensor:
    """(K, l, d_inner) kappa_j x_{s-j} at token s, by lag j; at most as many lags as tokens."""
    x = trace.conv_input
    if parameters.conv_weight is None:
        return x[None]
    weight = parameters.conv_weight.to(x)
    lags = min(weight.shape[1], len(x))
    return torch.stack(
        [F.pad(x, (0, 0, lag, 0))[: len(x)] * weight[:, -1 - lag] for lag in range(lags)]
    )


def _gains(trace: MixerTrace, p: Tensor) -> tuple[Tensor, Tensor]:
    """sigma(p) (l, d_inner), and the same for u as the scan rounds it, to the dtype of B."""
    gain, u = torch.sigmoid(p), trace.u
    if (gain * p - u).norm() > 1e-3 * u.norm():
        raise ValueError(
            "the trace and the parameters do not belong together: SiLU of the convolution of "
            "conv_input is not u. Pass the parameters of the same layer; an activation other than "
            "SiLU has no such shares"
        )
    rounded = torch.where(u == 0, 1.0, u.to(trace.B).to(u) / u.masked_fill(u == 0, 1.0))
    return gain, gain * rounded
