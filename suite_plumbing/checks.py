"""Checks of what a user passes in that need the standard library alone: a choice, an integer.

Every refusal is a ValueError that names the argument, what came and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import index as as_int
from typing import Any, TypeVar

T = TypeVar("T")


def validate_choice(name: str, value: T, allowed: Iterable[T]) -> T:
    """Return `value` if it is one of `allowed`; else raise ValueError that lists them."""
    known = list(allowed)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")
    return value


def validate_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int within the bounds; bool and float are refused with a ValueError."""
    number = int_or_none(value)
    if number is None or number < minimum or (maximum is not None and number > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(
            f"{name} is {value!r} ({type(value).__name__}); it must be an integer of at least "
            f"{minimum}{upper}"
        )
    return number


def int_or_none(value: Any) -> int | None:
    """`value` as an int if it is one of Python's, numpy's or torch's; None for bool and others."""
    if isinstance(value, bool):
        return None
    try:
        return as_int(value)  # numpy's bool has no index
    except TypeError:
        return None
