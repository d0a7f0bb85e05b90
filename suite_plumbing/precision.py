"""The suite's own arithmetic keeps its precision, whatever the caller's mixed precision says.

Under ``torch.autocast`` products of float32 tensors are taken in half precision. A model's modules
run as their caller asked; what the suite computes from their values does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of device whose autocast is lifted."""


def autocast_dtypes() -> list[torch.dtype]:
    """Dtypes that ``torch.autocast`` casts to in this thread now; none as a rule."""
    on = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    return [torch.get_autocast_dtype(device) for device in on]


@contextmanager
def full_precision() -> Iterator[None]:
    """Within this context nothing is cast: ``torch.autocast`` is lifted on every device."""
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within this context tensors of floats are made, and drawn, in ``dtype`` unless they say."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function with :func:`full_precision` around every call."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with full_precision():
            return function(*args, **kwargs)

    return run
