"""Whether an exception says that memory ran out, and one line for it while modules are loaded.

Knows the standard library alone, so that it can stand before every other import.
"""

from __future__ import annotations

import errno
import sys
from types import TracebackType

_WORDS = (
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "could not create a primitive",  # oneDNN
    "could not create a memory",
    "bad_alloc",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "can't start new thread",  # no memory for its stack
    "failed to map segment from shared object",
)
"""What libraries say in a plain RuntimeError, or an ImportError, where memory ran out."""


def says_no_memory(error: BaseException) -> bool:
    """Whether an exception is Python's own of running out of memory, or has a library's words."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, ImportError)) and any(
        words in str(error) for words in _WORDS
    )


def one_line_without_memory() -> None:
    """From now on an exception that nothing catches is one line where memory ran out.

    For the imports, and for what `run_main` itself cannot do without memory; what a command raises
    it catches. The status is 1 either way.
    """
    sys.excepthook = _said


def _said(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if says_no_memory(error):
        sys.stderr.write("error: out of memory\n")
    elif isinstance(error, SystemError):  # C code that failed and set no exception
        sys.stderr.write(
            f"error: a library failed without a reason, as for lack of memory: {error}\n"
        )
    else:
        sys.__excepthook__(kind, error, trace)
