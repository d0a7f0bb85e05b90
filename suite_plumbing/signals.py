"""Signals: a command that is interrupted or terminated ends with its status, wherever it stands.

A handler that raises is not enough: inside a weak reference's callback, a destructor or C code
Python drops what is raised, and the command goes on as if nothing had come. Here a signal is noted
first, and raised again until the stack has unwound. While modules are still being imported there is
nothing to unwind: the process ends at once.

Knows nothing but the standard library, so that it can stand before every other import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit statuses by signal, as shells give them."""

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

# Windows has none: there a signal is raised once.
_HAS_TIMER = hasattr(signal, "setitimer")

# Seconds after which a signal that was dropped is raised again.
_AGAIN = 0.05


class Interrupted(KeyboardInterrupt):
    """SIGINT came: unwinds the stack, so that unfinished files are removed."""


class Terminated(SystemExit):
    """SIGTERM came: as `Interrupted`."""


_ERRORS = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated}


def end_at_once_on_signals() -> None:
    """From now on a signal ends the process at once with its status and one line.

    For the time of the imports, before anything is written. `stopping_on_signals` takes over.
    """
    for number in _listened_to():
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, _: FrameType | None) -> None:
    os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
    os._exit(STATUS[signal.Signals(number)])


def _listened_to() -> list[signal.Signals]:
    """Signals that may be handled here: in the main thread those that were not set to be ignored,
    as ``nohup`` and shells do for what runs in the background."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in STATUS if signal.getsignal(number) is not signal.SIG_IGN]


class Stop:
    """Which signal came while a command ran, and how often it has to be raised."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._open = True

    def close(self) -> None:
        """The command's body is left: signals are noted from now on, and raised no more."""
        self._open = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Note the first signal, and raise it where it is not on its way already."""
        if self.number is None:
            self.number = signal.Signals(number)
            if self._open:
                self._keep_raising()
        if self._open and not _is_unwinding():
            raise _ERRORS[self.number](STATUS[self.number])

    def _keep_raising(self) -> None:
        if _HAS_TIMER:
            signal.signal(signal.SIGALRM, lambda *_: self.handle(self.number or 0, None))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)


def _is_unwinding() -> bool:
    """Whether code that runs now does so because one of the suite's signals passes through it."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, (Interrupted, Terminated)):
        error = error.__context__
    return error is not None


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """Within this context signals unwind the stack, again and again until `Stop.close`.

    Outside the main thread, where Python delivers no signals, nothing changes. What was set before
    is restored.
    """
    stop, hook = Stop(), sys.unraisablehook
    before: dict[int, Any] = {}

    def report(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, (Interrupted, Terminated)):
            hook(dropped)

    try:
        for number in _listened_to():
            before[number] = signal.getsignal(number)
            signal.signal(number, stop.handle)
        if before:
            sys.unraisablehook = report
            if _HAS_TIMER:
                before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
        yield stop
    finally:
        stop.close()
        if before and stop.number is not None and _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if before:
            sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
