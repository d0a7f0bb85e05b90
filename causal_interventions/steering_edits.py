"""A model steered: a vector added at its site at every token, projected out, or channels scaled.

With x the site's value at a token, v the vector, c the coefficient:

    add        x + c v
    project    x - c (x . v) v / |v|^2: 1 takes the direction out, 2 mirrors it
    scale      c x in the channels where v is not 0

At the state x is h_t as a token reads it: y_t changes by C_t . (x' - h_t), and what is carried on
does not, so that a coefficient means the same at every token. A Mamba-3's state is steered in the
frame of the token that reads it, in which numbers mean the same at every token. A step size does
not fall below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from causal_interventions.interventions import Change, LayerEdit
from causal_interventions.steering_vectors import SteeringVector
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers
from mamba_mixers.stream_edits import counted_calls, edited_streams
from mamba_mixers.token_positions import Turned, state_before, token_positions, turned_by
from selective_scan.scan import scan_hidden_states
from ssm_measures.states import unrotated
from suite_plumbing.arguments import validate_choice, validate_int, validate_number

MODES = ("add", "project", "scale")
"""What is done with a vector."""

_STAGES = {"mixer": "output", "neurons": "gated", "delta": "delta", "state": "y"}


@contextmanager
def steered(
    model: nn.Module,
    vector: SteeringVector,
    coefficient: float,
    mode: str = "add",
    start: int = 0,
) -> Iterator[nn.Module]:
    """Within this context the model is steered, with a cache or without, batched and padded.

    From token ``start`` on, counted from the first real one of each row through prompt and
    generation; tokens before it, and texts that do not reach it, stay as they are. Contexts within
    each other add up, whatever their sites. Raises ValueError for an unknown mode, a coefficient
    that is no finite number, and a start that is no whole number from 0 on; with a start, too, for
    a cache that was filled outside, whose tokens nobody counted. Cost: a pass over the site's
    tensor; at the state, project and scale rebuild the states of all tokens of a call,
    (b, l, d_inner, N).
    """
    number = validate_number("coefficient", coefficient)
    validate_choice("mode", mode, MODES)
    first = validate_int("start", start, 0)

    def changed(x: Tensor) -> Tensor:
        return _from_token(first, x, moved(x, vector.values, number, mode))

    if vector.site == "residual":
        with _steered_stream(model, vector.layer, changed, first):
            yield model
        return

    def change(x: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        if vector.site == "state":
            return _from_token(first, x, x + _read_change(seen, vector.values, number, mode))
        return changed(x).clamp_min(0) if vector.site == "delta" else changed(x)

    edit = LayerEdit([Change(_STAGES[vector.site], change, 1)])
    with fast_scan(model, edits={vector.layer: edit}):
        yield model


@contextmanager
def _steered_stream(
    model: nn.Module, layer: int, changed: Callable[[Tensor], Tensor], start: int
) -> Iterator[None]:
    with ExitStack() as stack:
        if start:
            # Without a change: an edited mixer is one whose tokens are counted.
            counting = {next(iter(find_mixers(model))): LayerEdit([])}
            stack.enter_context(fast_scan(model, edits=counting))
            stack.enter_context(counted_calls(model))
        else:
            stack.enter_context(fast_scan(model))
        stack.enter_context(edited_streams(model, {layer: changed}))
        yield


def _from_token(start: int, x: Tensor, changed: Tensor) -> Tensor:
    """x (b, l, ...), changed from token ``start`` of each row on; from 0 padding too."""
    if start == 0:
        return changed
    acts = token_positions(x) >= start
    return torch.where(acts.view(*acts.shape, *[1] * (x.dim() - 2)), changed, x)


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
    C = C if C.dim() == 4 else C[:, :, None]
    turned = turned_by()
    C = _turned_back(C, turned)
    if mode == "add":
        difference = (coefficient * values.to(u)).expand(1, 1, *values.shape)
    else:
        h = _turned_back(_states(seen), turned)
        difference = moved(h, values, coefficient, mode) - h
    C = C.to(difference)
    by_group = difference.unflatten(2, (C.shape[2], -1))
    return torch.einsum("blgn,blgcn->blgc", C, by_group.expand(*C.shape[:2], -1, -1, -1)).flatten(2)


def _states(seen: Mapping[str, Tensor]) -> Tensor:
    """(b, l, d_inner, N) h after every token at hand."""
    if bool((seen["carry"] != 1).any()):
        raise ValueError("a state that is reset can be added to, not projected or scaled")
    A = seen["A"]
    u, delta, B = seen["u"].to(A), seen["delta"], seen["B"].to(A)
    return scan_hidden_states(u, delta, A, B, state_before(), own_share=seen.get("own_share"))


def _turned_back(x: Tensor, turned: Turned | None) -> Tensor:
    """x (b, l, heads or channels, N), of a Mamba-3 in the frame of the token that reads it."""
    if turned is None:
        return x
    theta = turned.angle.repeat_interleave(x.shape[2] // turned.angle.shape[2], 2)
    return unrotated(x, theta.expand(len(x), *theta.shape[1:]), turned.halves)
