"""What a user passes in besides texts: choices, integers, devices, dtypes and layers.

All of it is checked before any model runs. Every refusal is a ValueError that names the argument,
what came and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index as as_int
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


DEFAULT_LAYERS = (0, 3, 6, 9, 12)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def validate_choice(name: str, value: T, allowed: Iterable[T]) -> T:
    """Return `value` if it is one of `allowed`; else raise ValueError that lists them."""
    known = list(allowed)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")
    return value


def validate_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int within the bounds; bool and float are refused with a ValueError."""
    number = _int_or_none(value)
    if number is None or number < minimum or (maximum is not None and number > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(
            f"{name} is {value!r} ({type(value).__name__}); it must be an integer of at least "
            f"{minimum}{upper}"
        )
    return number


def _int_or_none(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return as_int(value)
    except TypeError:
        return None


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a usable torch device; None is "cuda" where there is one, else "cpu"."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("tensors there have no values")
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        # Of torch's messages, some of them paragraphs, the first sentence.
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}); pass 'cpu', or 'cuda' where torch "
            "sees a GPU"
        ) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the torch dtype of that name; None is float32, in which replay is exact to 1e-5."""
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return validate_choice("dtype", dtype, DTYPES.values())
    return DTYPES[validate_choice("dtype", dtype, DTYPES)]


def resolve_layer_indices(
    layer_indices: Sequence[int] | str | None, available: Sequence[int], num_layers: int
) -> list[int]:
    """Return the layers to analyse, ascending, as indices from 0.

    layer_indices: a list (negatives count from the end), "all" = every one of `available`, or
    None = [0, 3, 6, 9, 12] where all of these are available, else five evenly spaced ones (fewer
    where the model has fewer).
    available: the layers that hold what is analysed; num_layers: the model's depth.
    Raises ValueError for an empty list, an entry that is not an int (bool included), one out of
    range, one named twice, and a layer that is not available (the message lists those that are).
    """
    known = sorted(available)
    if not known:
        raise ValueError(f"none of the model's {num_layers} layers can be analysed")
    if layer_indices is None:
        return _default_layers(known)
    if isinstance(layer_indices, str):
        validate_choice("layer_indices", layer_indices, ["all"])
        return known
    if not isinstance(layer_indices, Iterable):
        raise ValueError(f"layer_indices is {layer_indices!r}; pass a list, 'all' or None")
    chosen = [_resolve_layer(entry, known, num_layers) for entry in layer_indices]
    if not chosen:
        raise ValueError("layer_indices is empty; name at least one layer, 'all' or None")
    for layer in chosen:
        if chosen.count(layer) > 1:
            raise ValueError(f"layer {layer} is named twice in layer_indices {layer_indices!r}")
    return sorted(chosen)


def _default_layers(known: Sequence[int]) -> list[int]:
    if set(DEFAULT_LAYERS) <= set(known):
        return list(DEFAULT_LAYERS)
    positions = np.linspace(0, len(known) - 1, num=min(5, len(known)))
    return [known[round(position)] for position in positions]


def _resolve_layer(entry: Any, known: Sequence[int], num_layers: int) -> int:
    number = _int_or_none(entry)
    if number is None:
        raise ValueError(f"layer_indices holds {entry!r} ({type(entry).__name__}), not an integer")
    if not -num_layers <= number < num_layers:
        raise ValueError(
            f"layer {number} is out of range: the model has {num_layers} layers, 0 to "
            f"{num_layers - 1} (or -{num_layers} to -1 from the end)"
        )
    layer = number % num_layers
    if layer not in known:
        raise ValueError(f"layer {layer} cannot be analysed; those that can are {list(known)}")
    return layer
