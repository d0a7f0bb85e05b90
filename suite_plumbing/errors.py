"""The one error that a pipeline records and goes on from, and which others count as such."""

from __future__ import annotations

import torch


def is_recoverable(error: Exception) -> bool:
    """Whether an analysis goes on after this error: data that cannot be analysed, or no memory."""
    return isinstance(error, AnalysisError) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, CUDA's, or torch's on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch has none of its own for the CPU: plain RuntimeErrors of its allocator and of oneDNN.
    said = ("DefaultCPUAllocator", "could not create a primitive", "could not create a memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


class AnalysisError(RuntimeError):
    """Data that cannot be analysed, though the call was right: say what is undefined and why.

    A pipeline's step runner records it under the step's key and goes on with the other steps.
    """
