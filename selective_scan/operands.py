"""Operands of a selective scan: their shapes, checked, and the dtype to compute in.

Letters and shapes: the glossary of ``selective_scan``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_operands(u, delta, A, B, C=None, initial_state=None) -> bool:
    """Raise ValueError unless the shapes fit each other; True when u is flat, (b, l, d_inner)."""
    check_given(u=u)
    check_tensors(initial_state=initial_state)
    is_flat = u.dim() == 3
    if not is_flat and u.dim() != 4:
        raise ValueError(f"u must be (b, l, H, P) or (b, l, d_inner), got shape {tuple(u.shape)}")
    check_parameters(delta, A, B, C)
    fits = _holds_heads(u, delta) if is_flat else delta.shape == u.shape[:3]
    if not fits:
        wanted = f"H a divisor of {u.shape[2]}" if is_flat else f"H = {u.shape[2]}"
        raise ValueError(
            f"delta must be (b, l, H) to fit u, with b, l = {tuple(u.shape[:2])} and {wanted}; "
            f"got {tuple(delta.shape)}"
        )
    if u.shape[1] == 0:
        raise ValueError("u has no tokens: its second dimension is 0")
    if initial_state is not None:
        expected = (u.shape[0], *u.shape[2:], B.shape[-1])
        if tuple(initial_state.shape) != expected:
            raise ValueError(
                f"initial_state must be {expected} to fit u and B, got {tuple(initial_state.shape)}"
            )
    return is_flat


def check_skip(D: Tensor | None, u: Tensor, heads: int) -> None:
    """Raise ValueError unless D fits u; broadcasting would accept shapes that mean nothing."""
    check_tensors(D=D)
    allowed = dict.fromkeys([(heads,), tuple(u.shape[2:])])
    if D is not None and tuple(D.shape) not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(f"D must be {expected} to fit u, got {tuple(D.shape)}")


def check_own_share(own_share: Tensor | None, delta: Tensor) -> None:
    """Raise ValueError unless own_share has the shape of delta."""
    check_tensors(own_share=own_share)
    if own_share is not None and own_share.shape != delta.shape:
        raise ValueError(
            f"own_share must be (b, l, H) = {tuple(delta.shape)}, got {tuple(own_share.shape)}"
        )


def check_weights(delta: Tensor, **weights: Tensor | None) -> None:
    """Raise ValueError unless the weights of queries and keys are all (b, l, H) or (b, l, H P)."""
    check_tensors(**weights)
    widths = set()
    for name, weight in weights.items():
        if weight is None:
            continue
        if weight.dim() != 3 or not _holds_heads(weight, delta):
            raise ValueError(
                f"{name} must be (b, l, H) = {tuple(delta.shape)}, or (b, l, d_inner) with d_inner "
                f"a multiple of H; got {tuple(weight.shape)}"
            )
        widths.add(weight.shape[2])
    if len(widths) > 1:
        raise ValueError(
            f"{' and '.join(weights)} must have one width, got {' and '.join(map(str, widths))}"
        )


def _holds_heads(x: Tensor, delta: Tensor) -> bool:
    """Whether x (b, l, d_inner) has the tokens of delta (b, l, H) and equally wide heads."""
    return x.shape[:2] == delta.shape[:2] and x.shape[2] > 0 and x.shape[2] % delta.shape[2] == 0


def check_parameters(delta, A, B, C=None) -> None:
    """Raise ValueError unless delta, A, B and C fit each other."""
    check_given(delta=delta, A=A, B=B)
    check_tensors(C=C)
    if delta.dim() != 3:
        raise ValueError(f"delta must be (b, l, H), got shape {tuple(delta.shape)}")
    batch, length, heads = delta.shape
    if B.dim() not in (3, 4) or B.shape[:2] != delta.shape[:2]:
        raise ValueError(
            f"B must be (b, l, N) or (b, l, G, N) with b, l = {batch}, {length}, "
            f"got {tuple(B.shape)}"
        )
    if C is not None and C.shape != B.shape:
        raise ValueError(f"C must have the shape of B, {tuple(B.shape)}, got {tuple(C.shape)}")
    states, groups = B.shape[-1], B.shape[2] if B.dim() == 4 else 1
    if 0 in (heads, groups):
        raise ValueError(
            f"there are {heads} heads in delta and {groups} groups in B; need at least 1"
        )
    if tuple(A.shape) not in ((heads, states), (heads, 1)):
        raise ValueError(
            f"A must be ({heads}, {states}) or ({heads}, 1) to fit delta and B, "
            f"got {tuple(A.shape)}"
        )
    if heads % groups:
        raise ValueError(f"{heads} heads cannot be shared by {groups} groups of B and C")


def check_given(**tensors: Tensor | None) -> None:
    """Raise ValueError for a tensor that is None, and as :func:`check_tensors`."""
    for name, tensor in tensors.items():
        if tensor is None:
            raise ValueError(f"{name} is None; pass a tensor")
    check_tensors(**tensors)


def check_tensors(**tensors: Tensor | None) -> None:
    """Raise ValueError for an argument that is no tensor of real floating-point numbers, or None.

    A cast would drop an imaginary part, and take the codes of a quantised weight for its values.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is of type {type(tensor).__name__}; pass a tensor")
        if tensor is not None and not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is of dtype {dtype}; pass real floating-point numbers")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any operand is, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def with_groups(x: Tensor) -> Tensor:
    """B or C as (b, l, G, N)."""
    return x.unsqueeze(2) if x.dim() == 3 else x
