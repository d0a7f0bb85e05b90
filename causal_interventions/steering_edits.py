"""A model steered: a vector added at its site at every token, projected out, or channels scaled.

With x the site's value at a token, v the vector, c the coefficient:

    add        x + c v
    project    x - c (x . v) v / |v|^2: 1 takes the direction out, 2 mirrors it
    scale      c x in the channels where v is not 0

At the state x is h_t as a token reads it: y_t changes by C_t . (x' - h_t), and what is carried on
does not, so that a coefficient means the same at every token. A step size does not fall below 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from causal_interventions.interventions import Change, LayerEdit
from causal_interventions.steering_vectors import SteeringVector
from mamba_mixers.running import fast_scan
from mamba_mixers.stream_edits import edited_streams
from mamba_mixers.token_positions import state_before
from selective_scan.scan import scan_hidden_states
from suite_plumbing.arguments import validate_choice, validate_number

MODES = ("add", "project", "scale")
"""What is done with a vector."""

_STAGES = {"mixer": "output", "neurons": "gated", "delta": "delta", "state": "y"}


@contextmanager
def steered(
    model: nn.Module, vector: SteeringVector, coefficient: float, mode: str = "add"
) -> Iterator[nn.Module]:
    """Within this context the model is steered, with a cache or without, batched and padded.

    Contexts within each other add up, whatever their sites. Raises ValueError for an unknown mode
    and a coefficient that is no finite number. Cost: a pass over the site's tensor; at the state,
    project and scale rebuild the states of all tokens of a call, (b, l, d_inner, N).
    """
    number = validate_number("coefficient", coefficient)
    validate_choice("mode", mode, MODES)

    def changed(x: Tensor) -> Tensor:
        return moved(x, vector.values, number, mode)

    if vector.site == "residual":
        with fast_scan(model), edited_streams(model, {vector.layer: changed}):
            yield model
        return

    def change(x: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        if vector.site == "state":
            return x + _read_change(seen, vector.values, number, mode)
        return changed(x).clamp_min(0) if vector.site == "delta" else changed(x)

    edit = LayerEdit([Change(_STAGES[vector.site], change, 1)])
    with fast_scan(model, edits={vector.layer: edit}):
        yield model


def moved(x: Tensor, values: Tensor, coefficient: float, mode: str) -> Tensor:
    """x (..., *shape of values) steered: see the module."""
    v = values.to(x)
    if mode == "add":
        return x + coefficient * v
    if mode == "scale":
        return torch.where(v != 0, coefficient * x, x)
    axes = tuple(range(-v.dim(), 0))
    unit = v / v.norm()
    return x - coefficient * (x * unit).sum(axes, keepdim=True) * unit


def _read_change(
    seen: Mapping[str, Tensor], values: Tensor, coefficient: float, mode: str
) -> Tensor:
    """(b, l, d_inner) C_t . (h'_t - h_t) for the state that is read, h' in place of h."""
    u, C = seen["u"].to(seen["A"]), seen["C"]
    if mode == "add":
        difference = (coefficient * values.to(u)).expand(1, 1, *values.shape)
    else:
        h = _states(seen)
        difference = moved(h, values, coefficient, mode) - h
    C = (C if C.dim() == 4 else C[:, :, None]).to(difference)
    by_group = difference.unflatten(2, (C.shape[2], -1))
    return torch.einsum("blgn,blgcn->blgc", C, by_group.expand(*C.shape[:2], -1, -1, -1)).flatten(2)


def _states(seen: Mapping[str, Tensor]) -> Tensor:
    """(b, l, d_inner, N) h after every token at hand."""
    if bool((seen["carry"] != 1).any()):
        raise ValueError("a state that is reset can be added to, not projected or scaled")
    A = seen["A"]
    u, delta, B = seen["u"].to(A), seen["delta"], seen["B"].to(A)
    return scan_hidden_states(u, delta, A, B, state_before())
