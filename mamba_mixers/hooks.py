"""Forward hooks that are removed whatever happens; the only place that registers any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mamba_mixers.exclusive_use import acting_thread


@contextmanager
def forward_hooks(registrations: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Hold forward hooks (`with_kwargs=True`) on modules for the length of a `with` block.

    They see what this thread runs; another thread's calls of the same modules pass them by. All
    are removed at the end, also after an exception and when a registration in the middle fails.
    """
    with ExitStack() as stack:
        for module, hook in registrations:
            handle = module.register_forward_hook(_in_this_thread(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    thread = acting_thread()

    def of_this_thread(*call: Any) -> Any:
        return hook(*call) if acting_thread() == thread else None

    return of_this_thread
