"""Changes of a model that threads share: one thread at a time makes them, and it alone meets them.

While one thread has replaced forwards of a model, or hooks on it, others that enter here wait for
it; one that calls the model directly runs it as it is. Changes can be undone in any order.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_MAKING_LOCKS = threading.Lock()
_CHANGING = threading.Lock()  # own models replace forwards in passes that threads run at once
_acting = threading.local()

Forward = Callable[..., Any]
M = TypeVar("M", bound=nn.Module)


@contextmanager
def exclusive_use(model: nn.Module) -> Iterator[None]:
    """Within this context no other thread holds this model: it waits until this one is through.

    A thread may enter again. A model and its parts count as one by their first leaf module, which
    a backbone shares with the model around it.
    """
    with _lock_of(model):
        yield


def acting_thread() -> int:
    """The thread that runs this, or the one on whose behalf: see :func:`acting_for`."""
    return getattr(_acting, "thread", None) or threading.get_ident()


@contextmanager
def acting_for(thread: int) -> Iterator[None]:
    """Within this context this thread counts as that one: autograd's own threads compute a layer
    again on behalf of the one that asked for a gradient."""
    before = getattr(_acting, "thread", None)
    _acting.thread = thread
    try:
        yield
    finally:
        _acting.thread = before


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Give this one module a ``forward`` of its own in this thread; its class stays as it is.

    In any other thread the module runs what it ran before. Undone on leaving, whatever happened,
    and also where another replacement was put on top meanwhile.
    """
    with _CHANGING:
        replacement = _Replacement(module, forward)
        module.forward = replacement
    try:
        yield
    finally:
        with _CHANGING:
            replacement.undo(module)


def copy_of(model: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy of a model that runs what the model itself runs, also when it is made inside of
    `replaced_forward`; ``memo`` as in `copy.deepcopy`. Waits while another thread holds the model.
    """
    with exclusive_use(model):
        copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        while isinstance(top := vars(module).get("forward"), _Replacement):
            top.undo(module)
    return copied


def forward_in_place(module: nn.Module) -> Forward | None:
    """What this thread put in place of the module's ``forward`` last; None for nothing."""
    top: Any = vars(module).get("forward")
    while isinstance(top, _Replacement):
        if top.thread == acting_thread():
            return top.forward
        top = top.below
    return None


class _Replacement:
    """A module's ``forward`` for one thread, on top of what the module had."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self.forward = forward
        self.below: Forward = module.forward
        self.is_own = "forward" in vars(module)
        self.thread: int | None = acting_thread()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_here = self.thread == acting_thread()
        return (self.forward if is_here else self.below)(*args, **kwargs)

    def undo(self, module: nn.Module) -> None:
        # Under what cannot be lifted off, a forward that somebody else put on top, it does nothing.
        self.thread = None
        top: Any = vars(module).get("forward")
        if top is self:
            if self.is_own:
                module.forward = self.below
            else:
                del module.forward
            return
        while isinstance(top, _Replacement) and top.below is not self:
            top = top.below
        if isinstance(top, _Replacement):
            top.below, top.is_own = self.below, self.is_own


def _lock_of(model: nn.Module) -> Any:
    leaf = next(module for module in model.modules() if not any(True for _ in module.children()))
    with _MAKING_LOCKS:
        return _LOCKS.setdefault(leaf, threading.RLock())
