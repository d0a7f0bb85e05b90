"""What a Mamba-3 mixer makes of its input, and its recurrence in chunks of matrix products.

References and letters beyond the glossary of ``selective_scan``
----------------------------------------------------------------
[1] Mamba-3 (Lahoti et al. 2026), as in ``mamba_ssm.modules.mamba3``.

R          ranks: 1 in SISO; in MIMO each head writes and reads R vectors a token
S          pairs of states that turn; the others stand still
dt         (b, l, H)  softplus(dd_dt + dt_bias)
decay      (b, l, H)  -A_t dt_t > 0 with A_t = -max(f(dd_A), A_floor): nats by which the state falls
lam        (b, l, H)  sigmoid(trap): share of the trapezoid that a token reads of itself
theta      (b, l, H, S)  running sum of pi tanh(angle) dt, modulo 2 pi
b, c       (b, l, H, R, N)  RMSNorm(B) + B_bias and RMSNorm(C) + C_bias, turned by theta
v          (b, l, H, R, P)  x, in MIMO x * mimo_x

The recurrence, of each head:

    h_t = e^{-decay_t} (h_{t-1} + (1 - lam_t) dt_t sum_r b_{t-1,r} v_{t-1,r})
          + lam_t dt_t sum_r b_{t,r} v_{t,r},    y_{t,r} = c_{t,r} h_t + D v_{t,r}

What token t brings to token t - 1's vectors, (1 - lam_t) dt_t, can be written at t - 1 already,
for it decays by t as what was there does: token s then writes ``write_s`` = lam_s dt_s +
(1 - lam_{s+1}) dt_{s+1}, of which it reads ``own_s`` = lam_s dt_s itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mixers.families import at_least_float32
from mamba_mixers.sites import UnsupportedModelError

# Rows of the square matrices that a chunk makes, tokens times ranks.
_CHUNK = 64

A_ACTIVATIONS = ("softplus", "heavy_tail")
"""What dd_A passes on its way to the decay: of mamba_ssm 2.3.2, and of its later versions."""


class Mamba3Inputs(NamedTuple):
    """What the recurrence of one mixer reads, in float32 unless the model is float64."""

    x: Tensor
    """(b, l, d_inner)"""
    z: Tensor
    """(b, l, d_inner) the gate before SiLU"""
    b: Tensor
    """(b, l, H, R, N) turned"""
    c: Tensor
    """(b, l, H, R, N) turned"""
    decay: Tensor
    """(b, l, H)"""
    write: Tensor
    """(b, l, H); at the last token what it reads itself"""
    own: Tensor
    """(b, l, H)"""
    entry: Tensor
    """(b, H) what the first token writes of the token before it"""
    angle: Tensor
    """(b, l, H, S) theta"""


def mamba3_inputs(mixer: Any, hidden_states: Tensor, angle: Tensor | None = None) -> Mamba3Inputs:
    """Project (b, l, d_model), without padding or with zeros there; ``angle`` (b, H, S) is theta of
    the token before, None at a text's start.

    A token of zeros turns nothing and writes nothing, so that a text behind padding is the text.
    """
    heads = len(mixer.dt_bias)
    ranks, states = mixer.B_bias.shape[1:]
    shared = ranks * mixer.num_bc_heads * states
    sizes = [mixer.d_inner, mixer.d_inner, shared, shared, *[heads] * 3, mixer.num_rope_angles]
    parts = at_least_float32(mixer.in_proj(hidden_states)).split(sizes, dim=-1)
    z, x, B, C, dd_dt, dd_A, trap, turn = parts
    dt = F.softplus(dd_dt + mixer.dt_bias)
    decay = _rates(mixer, dd_A) * dt
    share = torch.sigmoid(trap)
    theta = _angles(turn, dt, angle)
    later = (1 - share) * dt
    own = share * dt
    b, c = (
        rotated(_by_head(norm(part), bias), theta, interleaved=not mixer.is_mimo)
        for part, norm, bias in (
            (B.unflatten(-1, (ranks, -1, states)), mixer.B_norm, mixer.B_bias),
            (C.unflatten(-1, (ranks, -1, states)), mixer.C_norm, mixer.C_bias),
        )
    )
    write = own + F.pad(later[:, 1:], (0, 0, 0, 1))
    return Mamba3Inputs(x, z, b, c, decay, write, own, later[:, 0], theta)


def heavy_tail(x: Tensor) -> Tensor:
    """1 + x for x >= 0 and 1 / (1 - x) below: positive, without an exponential."""
    return torch.where(x >= 0, 1 + x, (1 - x.clamp_max(0)).reciprocal())


def _rates(mixer: Any, dd_A: Tensor) -> Tensor:
    """-A (b, l, H), at least A_floor."""
    activation = getattr(mixer, "a_activation", None)
    if activation not in A_ACTIVATIONS:
        raise UnsupportedModelError(
            f"a {type(mixer).__name__} does not say what its decay rates pass: set its "
            f"a_activation to one of {', '.join(A_ACTIVATIONS)}"
        )
    rates = F.softplus(dd_A) if activation == "softplus" else heavy_tail(dd_A)
    return rates.clamp_min(mixer.A_floor)


def _angles(turn: Tensor, dt: Tensor, before: Tensor | None) -> Tensor:
    """theta (b, l, H, S), summed in float64: of thousands of turns the rest is what counts."""
    steps = math.pi * torch.tanh(turn).unsqueeze(2) * dt.unsqueeze(-1)
    total = steps.double().cumsum(1)
    total = total if before is None else total + before.double().unsqueeze(1)
    return torch.remainder(total, 2 * math.pi).to(dt.dtype)


def _by_head(x: Tensor, bias: Tensor) -> Tensor:
    """x (b, l, R, G, N) of groups, for the H / G heads of each in turn, plus bias (H, R, N)."""
    heads = bias.shape[0]
    return x.transpose(2, 3).repeat_interleave(heads // x.shape[3], dim=2) + bias


def rotated(x: Tensor, angle: Tensor, *, interleaved: bool) -> Tensor:
    """x (b, l, H, R, N) with pairs of its entries turned by angle (b, l, H, S).

    Pair i is (2 i, 2 i + 1), or, not interleaved, (i, i + N / 2); (p, q) becomes
    (p cos - q sin, p sin + q cos).
    """
    cos, sin = angle.cos().unsqueeze(3), angle.sin().unsqueeze(3)
    pairs, half = angle.shape[-1], x.shape[-1] // 2
    if interleaved:
        p, q = x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
        turned = torch.stack([p * cos - q * sin, p * sin + q * cos], -1).flatten(-2)
        return torch.cat([turned, x[..., 2 * pairs :]], -1)
    p, q = x[..., :pairs], x[..., half : half + pairs]
    still = x[..., pairs:half], x[..., half + pairs :]
    return torch.cat([p * cos - q * sin, still[0], p * sin + q * cos, still[1]], -1)


def by_rank(mixer: Any, name: str, x: Tensor) -> Tensor:
    """x (b, l, d_inner) as (b, l, H, R, P), in MIMO times ``mimo_x`` or ``mimo_z`` (H, R, P)."""
    x = x.unflatten(-1, (len(mixer.dt_bias), -1)).unsqueeze(3)
    return x * getattr(mixer, name) if mixer.is_mimo else x


def chunked_scan(inputs: Mamba3Inputs, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """c h of every token and rank (b, l, H, R, P), and the state after the last (b, H, P, N).

    ``state`` is what the first token takes over. A chunk's tokens read each other by a matrix
    (c b) times what is left of what was written, and what was before by the state at its start.
    Differentiable. Cost: l H R (chunk (N + P) + 2 N P) multiply-adds, as matrix products.
    """
    b, c, v = (x.transpose(1, 2) for x in (inputs.b, inputs.c, v))  # (b, H, l, R, ...)
    size = max(1, _CHUNK // b.shape[3])
    outputs = []
    for start in range(0, b.shape[2], size):
        part = slice(start, start + size)
        decay, write, own = (x[:, part] for x in (inputs.decay, inputs.write, inputs.own))
        vectors = b[:, :, part], c[:, :, part], v[:, :, part]
        y, state = _chunk(*vectors, decay, write, own, state)
        outputs.append(y)
    return torch.cat(outputs, 2).transpose(1, 2), state


def _chunk(b, c, v, decay, write, own, state):
    """One chunk: b, c (b, H, t, R, N), v (b, H, t, R, P), steps (b, t, H), state (b, H, P, N)."""
    tokens, ranks = b.shape[2:4]
    # In float64, for the exponential of a difference would amplify the rounding of the sums.
    fallen = decay.double().cumsum(1).transpose(1, 2)
    write, own = write.transpose(1, 2), own.transpose(1, 2)
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=b.device).triu()
    gaps = (fallen.unsqueeze(3) - fallen.unsqueeze(2)).masked_fill(later, math.inf)
    weights = torch.exp(-gaps).to(b.dtype) * write.unsqueeze(2) + torch.diag_embed(own)
    queries, keys, values = (x.flatten(2, 3) for x in (c, b, v))
    scores = (queries @ keys.mT).unflatten(3, (tokens, ranks)).unflatten(2, (tokens, ranks))
    y = (scores * weights[:, :, :, None, :, None]).flatten(4, 5).flatten(2, 3) @ values
    since = torch.exp(-fallen).to(b.dtype).repeat_interleave(ranks, 2).unsqueeze(3)
    y = y + since * (queries @ state.mT)
    left = torch.exp(fallen - fallen[:, :, -1:]).to(b.dtype) * write
    kept = (values * left.repeat_interleave(ranks, 2).unsqueeze(3)).mT @ keys
    state = torch.exp(-fallen[:, :, -1]).to(b.dtype)[:, :, None, None] * state + kept
    return y.unflatten(2, (tokens, ranks)), state
