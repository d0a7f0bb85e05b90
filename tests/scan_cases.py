"""Operands of selective scans that the tests share."""

from typing import Any

import torch
from torch import Tensor

# A block is 16 tokens, a segment of a map a power of two: one token, both sides of each border,
# and lengths whose last segment is short.
LENGTHS = (1, 2, 15, 16, 17, 33, 100)


# The suite's bounds: rounding of float32 (1e-7) and of float64 (2e-16), grown over the tokens.
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}


DTYPES = tuple(BOUND)


# heads, width, groups, states, states of A (1: one rate for all states of a head, as Mamba-2)
SHAPES = {
    "mamba1": (6, 1, 1, 4, 4),
    "mamba2": (6, 3, 2, 4, 1),
    "groups": (6, 3, 3, 5, 5),
    "one": (1, 1, 1, 1, 1),
}


def make_operands(
    shape: str = "groups",
    length: int = 33,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Operands in heads form, with decays exp(delta A) from about 0.2 to 0.98 a token."""
    heads, width, groups, states, rates = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    operands = {
        "u": normal(batch, length, heads, width),
        "delta": torch.nn.functional.softplus(normal(batch, length, heads) - 1),
        "A": -torch.exp(normal(heads, rates) - 1),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(heads),
    }
    return {name: x.to(dtype) for name, x in operands.items()}


def make_mamba1_operands(**options) -> dict[str, Any]:
    """The same numbers in the shapes of the Mamba paper: u (b, l, d_inner), B and C (b, l, N)."""
    axis = {"u": 3, "B": 2, "C": 2}
    operands = make_operands("mamba1", **options)
    return {name: x.squeeze(axis[name]) if name in axis else x for name, x in operands.items()}


def initial_state_for(operands: dict[str, Any], seed: int = 1) -> Tensor:
    batch, _, heads, width = operands["u"].shape
    generator = torch.Generator().manual_seed(seed)
    size = (batch, heads, width, operands["B"].shape[-1])
    state = torch.randn(size, generator=generator, dtype=torch.float64)
    return state.to(operands["u"].dtype)


def without(operands: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: x for name, x in operands.items() if name not in names}
