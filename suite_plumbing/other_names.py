"""The same argument by other names: text or texts, layer or layers, in every method of the suite.

The signatures that the suite was founded on name them differently from class to class; those stay,
and by keyword these do as well.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


def also_named(**names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A method that takes arguments by these keywords too: keyword, name in its signature.

    Raises TypeError, as Python does, where an argument is given twice.
    """

    def decorated(method: Callable[..., R]) -> Callable[..., R]:
        parameters = inspect.signature(method).parameters
        if unknown := set(names.values()) - set(parameters):
            raise TypeError(f"{method.__name__} has no {', '.join(sorted(unknown))}")

        @functools.wraps(method)
        def called(*args: Any, **kwargs: Any) -> R:
            for keyword, name in names.items():
                if keyword in kwargs:
                    if name in kwargs:
                        raise TypeError(
                            f"{method.__name__}() got {keyword} and {name}, which are the same"
                        )
                    kwargs[name] = kwargs.pop(keyword)
            return method(*args, **kwargs)

        return called

    return decorated
