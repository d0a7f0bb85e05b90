"""The ways that the benchmarks compare the suite with: the stock token loop, and published manners.

Each gives the numbers that the suite gives (a test holds this) for the operands of one Mamba-1
layer. They are written as their originals work, not to be slow: vectorised as far as those are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Operands(NamedTuple):
    """One layer's SSM on one text, in the shapes of the Mamba paper."""

    u: Tensor  # (1, l, d_inner)
    delta: Tensor  # (1, l, d_inner)
    A: Tensor  # (d_inner, N)
    B: Tensor  # (1, l, N)
    C: Tensor  # (1, l, N)


def random_operands(length: int, d_inner: int, d_state: int) -> Operands:
    """Operands as Mamba's initialisation gives them: A = -1..-N, delta from 0.001 to 0.1."""
    generator = torch.Generator().manual_seed(0)
    exponent = torch.rand(1, length, d_inner, generator=generator)
    return Operands(
        u=torch.randn(1, length, d_inner, generator=generator),
        delta=10 ** (2 * exponent - 3),
        A=-torch.arange(1.0, d_state + 1).repeat(d_inner, 1),
        B=torch.randn(1, length, d_state, generator=generator),
        C=torch.randn(1, length, d_state, generator=generator),
    )


def token_loop_states(operands: Operands) -> Tensor:
    """All states (1, l, d_inner, N) by the stock mixer's loop, which itself keeps the last only.

    As there, decays and writes of the whole text are made at once, (b, d_inner, l, N) each.
    """
    u, delta, A, B, _ = operands
    decay = torch.exp(A[None, :, None, :] * delta.mT[..., None])
    written = delta.mT[..., None] * B[:, None] * u.mT[..., None]
    h = torch.zeros_like(decay[:, :, 0])
    states = []
    for t in range(u.shape[1]):
        h = decay[:, :, t] * h + written[:, :, t]
        states.append(h)
    return torch.stack(states, 1)


def dense_states(operands: Operands) -> Tensor:
    """All states by summing over sources with a decay for every channel, state and pair of tokens.

    The manner of TransformerLens' ``compute_ssm_state``: h_t = sum_s decay[t, s] delta_s B_s u_s.
    """
    u, delta, _, B, _ = operands
    written = (delta * u).mT[:, :, None, :] * B.mT[:, None]  # (1, d_inner, N, l)
    return torch.einsum("bdnts,bdns->btdn", _dense_decay(operands), written)


def dense_map(operands: Operands, absolute: bool = False) -> Tensor:
    """Mean over channels (1, l, l) of alpha, or of its magnitude, by a matrix for each channel.

    The manner of TransformerLens' ``compute_ssm_effective_attention``.
    """
    _, delta, _, B, C = operands
    by_state = C.mT[:, None, :, :, None] * _dense_decay(operands) * B.mT[:, None, :, None, :]
    alpha = (by_state * delta.mT[:, :, None, None, :]).sum(2)
    return (alpha.abs() if absolute else alpha).mean(1)


def _dense_decay(operands: Operands) -> Tensor:
    """exp(A (S_t - S_s)) for s <= t, else 0: (1, d_inner, N, l, l)."""
    total = operands.delta.mT.cumsum(-1)
    since = total[..., :, None] - total[..., None, :]
    exponent = operands.A[None, :, :, None, None] * since[:, :, None]
    future = torch.ones_like(since[0, 0], dtype=torch.bool).triu(1)
    return torch.exp(exponent.masked_fill(future, -torch.inf))


def row_by_row_map(operands: Operands, absolute: bool = False) -> Tensor:
    """Mean map (1, l, l) of alpha, or of its magnitude, a query at a time over all its sources."""
    _, delta, A, B, C = (x[0] if x.dim() == 3 else x for x in operands)
    total = delta.cumsum(0)
    result = delta.new_zeros(1, len(delta), len(delta))
    for t in range(len(delta)):
        decay = torch.exp((total[t] - total[: t + 1])[:, :, None] * A)  # (t + 1, d_inner, N)
        if absolute:
            by_channel = torch.einsum("sdn,sn->sd", decay, C[t] * B[: t + 1])
            row = (by_channel * delta[: t + 1]).abs().sum(1)
        else:
            row = torch.einsum("sdn,n,sn,sd->s", decay, C[t], B[: t + 1], delta[: t + 1])
        result[0, t, : t + 1] = row / delta.shape[1]
    return result
