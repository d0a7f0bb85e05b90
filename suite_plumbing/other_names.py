"""The same argument by other names: text or texts, layer or layers, in every method of the suite.

The signatures that the suite was founded on name them differently from class to class; those stay,
and by keyword these do as well. What is said of an argument names it as it was given.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

R = TypeVar("R")


def also_named(**names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """A method that takes arguments by these keywords too: keyword, name in its signature.

    Raises TypeError, as Python does, where an argument is given twice. A ValueError of the method
    that names an argument names the keyword that it came by.
    """

    def decorated(method: Callable[..., R]) -> Callable[..., R]:
        parameters = inspect.signature(method).parameters
        if unknown := set(names.values()) - set(parameters):
            raise TypeError(f"{method.__name__} has no {', '.join(sorted(unknown))}")

        @functools.wraps(method)
        def called(*args: Any, **kwargs: Any) -> R:
            given: dict[str, str] = {}
            for keyword, name in names.items():
                if keyword in kwargs:
                    if name in kwargs:
                        raise TypeError(
                            f"{method.__name__}() got {keyword} and {name}, which are the same"
                        )
                    kwargs[name] = kwargs.pop(keyword)
                    given[name] = keyword
            try:
                return method(*args, **kwargs)
            except ValueError as error:
                _name_as_given(error, given)
                raise

        return called

    return decorated


def _name_as_given(error: ValueError, given: Mapping[str, str]) -> None:
    """Change an error's sentence: name in the signature, keyword that the argument came by.

    A name that is a word of English too, such as text, is one only where the sentence begins.
    """
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return
    for name, keyword in given.items():
        where = rf"\b{name}\b" if "_" in name else rf"^{name}\b"
        error.args = (re.sub(where, keyword, error.args[0]),)
