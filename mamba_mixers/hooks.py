"""Forward hooks that are removed whatever happens; the only place that registers any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_hooks(registrations: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Hold forward hooks (`with_kwargs=True`) on modules for the length of a `with` block.

    All are removed at the end, also after an exception and when a registration in the middle fails.
    """
    with ExitStack() as stack:
        for module, hook in registrations:
            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
