"""The one error that a pipeline records and goes on from, which others count as such, and what
becomes of those that other libraries raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from suite_plumbing.messages import reason_of
from suite_plumbing.no_memory import says_no_memory


def is_recoverable(error: Exception) -> bool:
    """Whether an analysis goes on after this error: data that cannot be analysed, or no memory."""
    return isinstance(error, AnalysisError) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, CUDA's, or a library's own words.

    For the CPU neither torch nor oneDNN has an exception of its own.
    """
    return isinstance(error, torch.OutOfMemoryError) or says_no_memory(error)


@contextmanager
def reading(what: str, advice: str = "") -> Iterator[None]:
    """Within this context whatever a loader raises becomes one ValueError that begins with `what`
    and ends with `advice`.

    Which exceptions other libraries raise for a damaged file changes with their versions; those of
    parsers written in Rust are not even of class Exception. Interrupts and running out of memory
    go through.
    """
    try:
        yield
    except BaseException as error:
        from_loader = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not from_loader or is_out_of_memory(error):
            raise
        raise ValueError(f"{what}: {reason_of(error)}{advice and f'; {advice}'}") from error


class AnalysisError(RuntimeError):
    """Data that cannot be analysed, though the call was right: say what is undefined and why.

    A pipeline's step runner records it under the step's key and goes on with the other steps.
    """


def failure_of(error: Exception) -> dict[str, Any]:
    """The record that something that failed leaves in the results."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}
