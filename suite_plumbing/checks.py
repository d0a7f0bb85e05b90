"""Checks of what a user passes in that need the standard library alone: a choice, an integer.

Every refusal is a ValueError that names the argument, what came and what is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from operator import index as as_int
from typing import Any, TypeVar

from suite_plumbing.messages import quoted

T = TypeVar("T")

LISTED_LENGTH = 400
"""Characters that the names of what is allowed may take in a message."""

LARGEST_INT = sys.maxsize
"""What an integer may be at most where nothing else bounds it: 64 bits with their sign."""


def validate_choice(name: str, value: T, allowed: Iterable[T]) -> T:
    """Return `value` if it is one of `allowed`; else raise ValueError that lists them.

    Of more than fit a sentence it names the nearest.
    """
    known = list(allowed)
    # Compared one by one, and only with what can be equal: an array's == is an array.
    if not any(value is one or (isinstance(value, type(one)) and value == one) for one in known):
        raise ValueError(f"{name} is {quoted(value)}; it must be one of {_listed(value, known)}")
    return value


def _listed(value: object, known: Sequence[object]) -> str:
    """The names of what is allowed, or how many there are and those nearest to ``value``."""
    names = [str(one) for one in known]
    if len(", ".join(names)) <= LISTED_LENGTH:
        return ", ".join(names)
    near = get_close_matches(quoted(value, 40), names, n=5, cutoff=0.0)
    return f"{len(names)} names, of which the nearest are {', '.join(near)}"


def validate_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int within the bounds; bool and float are refused with a ValueError."""
    number = int_or_none(value)
    highest = LARGEST_INT if maximum is None else maximum
    if number is None or not minimum <= number <= highest:
        shown = maximum is not None or (number is not None and number > highest)
        upper = f" and at most {highest}" if shown else ""
        raise ValueError(
            f"{name} is {quoted(value)} ({type(value).__name__}); it must be an integer of at "
            f"least {minimum}{upper}"
        )
    return number


def int_or_none(value: Any) -> int | None:
    """`value` as an int if it is one of Python's, numpy's or torch's; None for bool and others."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    try:
        return as_int(value)
    except Exception:  # what an object's own __index__ raises
        return None
