"""Work on layers that do not need each other, side by side on a processor's cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import torch

from suite_plumbing.one_thread import threads_kept
from suite_plumbing.precision import in_full_precision

X = TypeVar("X")
Y = TypeVar("Y")


def side_by_side(function: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """``[function(item) for item in items]``, as many at a time as torch has threads here.

    Each in a thread of its own, in which torch computes alone: what is done of a layer is mostly
    many short operations, whose parts are too small to be shared. With one thread, or one item, it
    is the plain loop. The first item that fails, in their order, raises its error when those begun
    have ended; the others are not begun. Gradients are kept or not as in this thread, and
    autocast, which threads do not share, is lifted in all of them. ``function`` may not run a
    model that this thread has entered: it would wait for it for ever.
    """
    items, function = list(items), in_full_precision(function)
    count = min(torch.get_num_threads(), len(items))
    if count < 2:
        return [function(item) for item in items]
    run = partial(_with_gradients, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    with (
        threads_kept(),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        jobs = [pool.submit(copy_context().run, run, function, item) for item in items]
        try:
            return [job.result() for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)


def by_layer(function: Callable[[int], Y], layers: Iterable[int]) -> dict[int, Y]:
    """``{layer: function(layer)}``, layers `side_by_side`."""
    layers = list(layers)
    return dict(zip(layers, side_by_side(function, layers), strict=True))


def _with_gradients(enabled: bool, inference: bool, function: Callable[[X], Y], item: X) -> Y:
    # A thread begins with gradients, whatever the one that made it has.
    with torch.inference_mode(inference), torch.set_grad_enabled(enabled):
        return function(item)
