"""What a run has measured so far, value by value in a file, from which a stopped run goes on.

Steps that pass over all texts one after another keep each measurement under a name of its own. A
file is appended to: a line that a kill cut in half is measured again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

V = TypeVar("V")

VALUES_NAME = "values.jsonl"
"""File of the values in the folder of a run's parts."""


class KeptValues:
    """Values by name, of lists, dicts with string keys, strings and numbers, in a file of lines."""

    def __init__(self, path: Path, within: str = "", known: dict[str, Any] | None = None) -> None:
        self.path = path
        self._within = within
        self._known = dict(_read(path)) if known is None else known

    def part(self, name: str) -> KeptValues:
        """The same file, for values that belong to a part of the run: one of several models."""
        return KeptValues(self.path, f"{self._within}{name}/", self._known)

    def of(self, name: str, make: Callable[[], V]) -> V:
        """The value of this name; made and appended if it is not there.

        Either way it has passed through JSON, whose floats are exact, so that a run that goes on
        has what one has that does not.
        """
        name = self._within + name
        if name not in self._known:
            line = json.dumps([name, make()], default=_plain)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            self._known[name] = json.loads(line)[1]
        return self._known[name]

    def __len__(self) -> int:
        return len(self._known)


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's, and an object as its dict."""
    return value.to_dict() if hasattr(value, "to_dict") else value.item()


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines:
        try:
            name, value = json.loads(line)
        except ValueError:
            continue
        yield name, value
    if lines and lines[-1]:  # cut in half: what follows begins a line of its own
        with path.open("ab") as file:
            file.write(b"\n")


_current: ContextVar[KeptValues | None] = ContextVar("kept values", default=None)


def kept(name: str, make: Callable[[], V]) -> V:
    """``make()``, or what an earlier run kept under this name; outside of `keeping` ``make()``."""
    store = _current.get()
    return make() if store is None else store.of(name, make)


def kept_tensor(tensor: Tensor) -> list[Any]:
    """A tensor as a value that can be kept."""
    return [str(tensor.dtype).removeprefix("torch."), tensor.tolist()]


def tensor_kept(value: list[Any]) -> Tensor:
    """The inverse of :func:`kept_tensor`."""
    return torch.tensor(value[1], dtype=getattr(torch, value[0]))


@contextmanager
def keeping(store: KeptValues | None) -> Iterator[None]:
    """Within this context `kept` keeps; None: it does not."""
    token = _current.set(store)
    try:
        yield
    except BaseException:
        if store is not None and len(store):
            logger.warning(
                "%d measurements are kept: the same command with --resume goes on from them",
                len(store),
            )
        raise
    finally:
        _current.reset(token)


@contextmanager
def keeping_part(name: str) -> Iterator[None]:
    """Within this context values are kept apart, as those of a part of the run."""
    store = _current.get()
    token = _current.set(None if store is None else store.part(name))
    try:
        yield
    finally:
        _current.reset(token)
