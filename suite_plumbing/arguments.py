"""What a user passes in besides texts: devices, dtypes and layers; `checks` has the rest.

All of it is checked before any model runs. Every refusal is a ValueError that names the argument,
what came and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suite_plumbing.checks import LARGEST_INT, int_or_none, validate_choice, validate_int
from suite_plumbing.messages import quoted, reason_of, shortened
from suite_plumbing.options import DTYPE_NAMES

__all__ = [
    "DEFAULT_LAYERS",
    "DTYPES",
    "LARGEST_INT",
    "int_or_none",
    "numpy_rng",
    "resolve_device",
    "resolve_dtype",
    "resolve_layer_indices",
    "torch_rng",
    "validate_choice",
    "validate_int",
    "validate_number",
    "whole_numbers",
]

DEFAULT_LAYERS = (0, 3, 6, 9, 12)

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def whole_numbers(
    name: str, value: Any, minimum: int, maximum: int | None = None, *, empty: bool = False
) -> list[int]:
    """One whole number, or a list, an array or a tensor (k,) of them, as a list within the bounds.

    Raises ValueError for none at all, unless `empty` allows it, and for anything else.
    """
    single = int_or_none(value)
    if single is not None and getattr(value, "ndim", 0) == 0:
        return [validate_int(name, single, minimum, maximum)]
    listed = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
        validate_int(name, listed, minimum, maximum)
    numbers = [validate_int(name, number, minimum, maximum) for number in listed]
    if not numbers and not empty:
        raise ValueError(f"{name} is empty; pass a whole number, or a list of them")
    return numbers


def validate_number(name: str, value: Any, *, above: float | None = None) -> float:
    """Return `value` as a finite float, larger than ``above``; ValueError for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    is_real = isinstance(value, (Real, Tensor)) and not isinstance(value, (bool, np.bool_))
    if is_real and isinstance(value, Tensor):
        is_real = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    try:
        number = float(value) if is_real else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (above is not None and number <= above):
        allowed = "a finite number" if above is None else f"a number above {above:g}"
        raise ValueError(
            f"{name} is {quoted(value)} ({type(value).__name__}); it must be {allowed}"
        )
    return number


def numpy_rng(seed: int) -> np.random.Generator:
    """numpy's generator of this seed; ValueError for a seed that is no whole number from 0 on.

    None is refused: it would give another result each time.
    """
    return np.random.default_rng(validate_int("seed", seed, 0))


def torch_rng(seed: int) -> torch.Generator:
    """torch's generator of this seed, on the CPU; ValueError as :func:`numpy_rng`."""
    return torch.Generator().manual_seed(validate_int("seed", seed, 0))


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a usable torch device; None is "cuda" where there is one, else "cpu"."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("tensors there have no values")
    except Exception as error:
        # Of torch's messages, some of them paragraphs, the first sentence.
        reason = shortened(reason_of(error).split(". ")[0], 120)
        raise ValueError(
            f"device {quoted(device)} cannot be used here ({reason}); pass 'cpu', or 'cuda' where "
            "torch "
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
    if not isinstance(layer_indices, Iterable) or getattr(layer_indices, "ndim", 1) != 1:
        raise ValueError(f"layer_indices is {quoted(layer_indices)}; pass a list, 'all' or None")
    chosen = [_resolve_layer(entry, known, num_layers) for entry in layer_indices]
    if not chosen:
        raise ValueError("layer_indices is empty; name at least one layer, 'all' or None")
    for layer in chosen:
        if chosen.count(layer) > 1:
            raise ValueError(
                f"layer {layer} is named twice in layer_indices {quoted(layer_indices)}"
            )
    return sorted(chosen)


def _default_layers(known: Sequence[int]) -> list[int]:
    if set(DEFAULT_LAYERS) <= set(known):
        return list(DEFAULT_LAYERS)
    positions = np.linspace(0, len(known) - 1, num=min(5, len(known)))
    return [known[round(position)] for position in positions]


def _resolve_layer(entry: Any, known: Sequence[int], num_layers: int) -> int:
    number = int_or_none(entry)
    if number is None:
        raise ValueError(
            f"layer_indices holds {quoted(entry)} ({type(entry).__name__}), not an integer"
        )
    if not -num_layers <= number < num_layers:
        raise ValueError(
            f"layer {number} is out of range: the model has {num_layers} layers, 0 to "
            f"{num_layers - 1} (or -{num_layers} to -1 from the end)"
        )
    layer = number % num_layers
    if layer not in known:
        raise ValueError(f"layer {layer} cannot be analysed; those that can are {list(known)}")
    return layer
