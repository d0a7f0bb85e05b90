"""Torch's threads: one where waking others costs more than they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL_MODEL = 1 << 25
"""Parameters below which a model's analysis takes longer with more threads: small tensors."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this context torch computes in this thread alone, whatever number of threads it has.

    For many operations of some ten microseconds, one after the other: to wake a thread that sleeps
    takes longer than its share of one, and where other processes use the cores, much longer. The
    number is as before on leaving, whatever happened. It is this thread's; but one that computes
    for the first time meanwhile begins with it too, and keeps it.
    """
    if torch.get_num_threads() == 1:
        yield  # to set the number again would give it to all threads begun later
        return
    with threads_kept():
        torch.set_num_threads(1)
        yield


@contextmanager
def threads_kept() -> Iterator[None]:
    """Leave torch's number of threads as it was before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_threads(*models: nn.Module) -> None:
    """Take one thread where all models are small, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    sizes = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    if max(sizes) < SMALL_MODEL:
        torch.set_num_threads(1)
