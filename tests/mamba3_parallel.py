"""Mamba-3 as its authors check their kernels: all tokens at once, by a matrix of scores.

Written after the torch references in the tests of state-spaces/mamba (`mamba3_siso_fwd_ref`,
`mamba3_MIMO_chunk_ref`; commit e9594ce of July 2026) and the `Mamba3` module around them, in their
letters: Q reads, K and V write, ADT is the logarithm of what a step leaves, Trap the share of the
trapezoid. It shares no step with the loop over tokens in `reference`, which has the recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class FinalStates(NamedTuple):
    """What the next chunk of a text begins with."""

    angle: Tensor
    """(b, H, S)"""
    ssm: Tensor
    """(b, H, P, N) with what the last token leaves for itself to be read later left out"""
    K: Tensor
    """(b, R, H, N) of the last token, turned"""
    V: Tensor
    """(b, R, H, P) of the last token"""


def parallel_mamba3(
    weights: Mapping[str, Tensor],
    u: Tensor,
    *,
    groups: int,
    rope_fraction: float,
    a_activation: str,
    A_floor: float,
    initial: FinalStates | None = None,
) -> tuple[Tensor, FinalStates]:
    """Output (b, l, d_model) of a mixer with these weights for u (b, l, d_model), in float64."""
    w = {name: value.double() for name, value in weights.items()}
    nheads, rank, d_state = w["B_bias"].shape
    d_inner = w["out_proj.weight"].shape[1]
    shared, angles = d_state * groups * rank, int(d_state * rope_fraction) // 2
    z, x, B, C, dd_dt, dd_A, trap, turn = (u.double() @ w["in_proj.weight"].mT).split(
        [d_inner, d_inner, shared, shared, nheads, nheads, nheads, angles], -1
    )
    rate = F.softplus(dd_A) if a_activation == "softplus" else _heavy_tail(dd_A)
    DT = F.softplus(dd_dt + w["dt_bias"])
    ADT = torch.clamp(-rate, max=-A_floor) * DT
    Trap = torch.sigmoid(trap)
    Q, K = (
        _normed(part.unflatten(-1, (rank, groups, d_state)), w[f"{name}_norm.weight"])
        .repeat_interleave(nheads // groups, 3)
        .add(w[f"{name}_bias"].transpose(0, 1))
        for part, name in ((C, "C"), (B, "B"))
    )
    V, Z = (
        torch.einsum("blhp,hrp->blrhp", part.unflatten(-1, (nheads, -1)), w.get(name, _ones(w)))
        for part, name in ((x, "mimo_x"), (z, "mimo_z"))
    )
    turned = torch.cumsum(torch.tanh(turn)[:, :, None] * math.pi * DT[..., None], 1)
    turned = turned if initial is None else turned + initial.angle[:, None]
    turned = turned - 2 * math.pi * torch.floor(turned / (2 * math.pi))
    shifted = F.pad((DT * (1 - Trap))[:, 1:], (0, 0, 0, 1))
    own = torch.einsum("blrhn,blshn,blh->blrsh", Q, K, shifted)
    rotate = _rotated_pairwise if rank == 1 and "mimo_x" not in w else _rotated_by_halves
    Q, K = rotate(Q, turned), rotate(K, turned)
    scaled = K * (DT * Trap + shifted)[:, :, None, :, None]
    left = ADT.cumsum(1)
    segments = left[:, :, None] - left[:, None]
    causal = torch.ones(u.shape[1], u.shape[1]).tril().bool()[None, :, :, None]
    decay = torch.exp(segments.masked_fill(~causal, -math.inf))
    out = torch.einsum("btrhn,bjshn,btjh,bjshp->btrhp", Q, scaled, decay, V)
    state = torch.zeros(len(u), nheads, V.shape[-1], d_state, dtype=torch.float64)
    if initial is not None:
        first = (DT * (1 - Trap))[:, 0, :, None, None]
        state = initial.ssm + first * torch.einsum("brhp,brhn->bhpn", initial.V, initial.K)
        out = out + torch.einsum("bhpn,btrhn,bth->btrhp", state, Q, torch.exp(left))
    out = out + w["D"][:, None] * V - torch.einsum("btrsh,btshp->btrhp", own, V)
    kept = torch.exp(left[:, -1:] - left)
    final = torch.exp(left[:, -1])[..., None, None] * state + torch.einsum(
        "btshn,btshp,bth->bhpn", scaled, V, kept
    )
    if "norm.weight" in w:
        out = _normed(out, w["norm.weight"].view(nheads, -1))
    gated = torch.einsum("btrhp,hrp->bthp", out * F.silu(Z), w.get("mimo_o", _ones(w)))
    states = FinalStates(turned[:, -1], final, K[:, -1], V[:, -1])
    return gated.flatten(2) @ w["out_proj.weight"].mT, states


def _ones(w: Mapping[str, Tensor]) -> Tensor:
    nheads, rank, _ = w["B_bias"].shape
    return torch.ones(nheads, rank, w["out_proj.weight"].shape[1] // nheads, dtype=torch.float64)


def _heavy_tail(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1 + x, 1 / (1 - x.clamp(max=0)))


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _turn(p: Tensor, q: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    return p * cos - q * sin, p * sin + q * cos


def _rotated_pairwise(x: Tensor, angle: Tensor) -> Tensor:
    """Neighbours turn; those beyond the angles' number by nothing."""
    p, q = x.unflatten(-1, (-1, 2)).unbind(-1)
    angle = F.pad(angle, (0, p.shape[-1] - angle.shape[-1]))
    return torch.stack(_turn(p, q, angle), -1).flatten(-2)


def _rotated_by_halves(x: Tensor, angle: Tensor) -> Tensor:
    """Halves turn with each other; with a rope fraction of 0.5 the first and third quarters."""
    parts = list(x.chunk(x.shape[-1] // angle.shape[-1], -1))
    middle = len(parts) // 2
    parts[0], parts[middle] = _turn(parts[0], parts[middle], angle)
    return torch.cat(parts, -1)
