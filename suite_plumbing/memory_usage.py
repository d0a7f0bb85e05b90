"""How much memory an analysis takes, measured on the device that it runs on."""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch


class MemoryTracker:
    """Measured memory use of this process (CPU) or of torch on one CUDA device, in GB (1e9 bytes).

    On CUDA: bytes held by torch's allocator. On the CPU: the resident set, whose peak the Linux
    kernel keeps and lets us reset; where it cannot be reset the peak is that of the whole process
    so far, and `source` says so. Where nothing can be measured the figures are None, with a reason.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = torch.device("cpu") if device is None else torch.device(device)
        self.cleanup_count = 0
        self.reset()

    def reset(self) -> None:
        """Start anew: the peak and the baseline from now on, no clean-ups counted."""
        self.cleanup_count = 0
        self.peak_is_since_reset = _reset_peak(self.device)
        self.baseline_bytes = _memory_bytes(self.device)[0]

    def cleanup(self) -> None:
        """Collect recent garbage, give unused memory back to the device or system, and count it.

        Recent, because a full collection looks at all of torch and takes a fifth of a second.
        """
        gc.collect(1)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _give_back_freed_pages()
        self.cleanup_count += 1

    def stats(self) -> dict[str, Any]:
        """Return `peak_memory_usage`, `current_memory_usage`, `baseline_memory_usage` (GB or None).

        Beside them `cleanup_count`, `source` (what was measured) and `reason` (of a None).
        """
        current, peak, source = _memory_bytes(self.device)
        if source and not self.peak_is_since_reset:
            source += "; the peak is that of the process's whole life"
        return {
            "peak_memory_usage": _gigabytes(peak),
            "current_memory_usage": _gigabytes(current),
            "baseline_memory_usage": _gigabytes(self.baseline_bytes),
            "cleanup_count": self.cleanup_count,
            "source": source,
            "reason": None if source and current is not None else _NO_MEMORY_REASON,
        }


def one_heap() -> None:
    """Let all threads of this process take memory from one heap, where the C library is glibc.

    By default a thread has one of its own, and pages that it freed there serve no other thread. For
    the beginning of a process: heaps that there are stay.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # in malloc.h


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc, which alone has these functions; None elsewhere."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def _give_back_freed_pages() -> None:
    """What was freed between blocks still in use stays with the process until glibc is told."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


_NO_MEMORY_REASON = "this system shows no current resident set (/proc/self/status)"


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e9


def _memory_bytes(device: torch.device) -> tuple[int | None, int | None, str | None]:
    """Current and peak bytes, and what they are measures of; None for what cannot be measured."""
    if device.type == "cuda":
        current, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return current, peak, "torch.cuda allocator"
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        current, peak = (int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        return None, *_peak_from_resource_usage()
    # The kernel batches its counts, so that the peak may lag behind the current figure.
    return current, max(current, peak), "resident set (/proc/self/status)"


def _peak_from_resource_usage() -> tuple[int | None, str | None]:
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None, None
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "resident set (getrusage)"


def _reset_peak(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
