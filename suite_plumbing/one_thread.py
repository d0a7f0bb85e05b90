"""Work in the calling thread alone, where torch's other threads cost more than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this context torch computes in this thread alone, whatever number of threads it has.

    For many operations of some ten microseconds, one after the other: to wake a thread that sleeps
    takes longer than its share of one, and where other processes use the cores, much longer. The
    number is as before on leaving, whatever happened. It is this thread's; but one that computes
    for the first time meanwhile begins with it too, and keeps it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
