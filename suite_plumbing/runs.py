"""One run of a command: its id, and what it holds until it ends."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


def new_run_id() -> str:
    """16 hexadecimal digits, drawn by the system: no seed gives two runs the same."""
    return secrets.token_hex(8)


@dataclass(eq=False)
class Run:
    """A run of a command."""

    id: str = field(default_factory=new_run_id)
    folders: set[str] = field(default_factory=set)
    """real paths of the output folders that are its own"""
    held: ExitStack = field(default_factory=ExitStack)
    """what is let go when it ends"""


_current: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def one_run() -> Iterator[Run]:
    """Within this context results have one run id, and folders stay claimed until its end."""
    run = Run()
    token = _current.set(run)
    try:
        with run.held:
            yield run
    finally:
        _current.reset(token)


def current_run() -> Run | None:
    """The run that this is part of; None where the suite is used from Python."""
    return _current.get()
