"""Lines of other libraries that say nothing to a user of the suite, and those alone.

`transformers` advises to install CUDA kernels for Mamba's scan, where the suite has its own, and
shows a bar of weights that a folder gives in an instant. Levels, handlers and all other lines stay
as the user has set them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from transformers import logging as transformers_logging

_ADVISING = (
    "mamba", "mamba2", "falcon_mamba", "jamba", "zamba", "zamba2", "bamba", "falcon_h1",
    "granitemoehybrid",
)  # fmt: skip

ADVISERS = (
    "transformers.integrations.hub_kernels",
    *(f"transformers.models.{name}.modeling_{name}" for name in _ADVISING),
)
"""Loggers that advise kernels: the first from transformers 5 on, the others in 4."""

_ADVICE = re.compile(
    r"`\w+` is falling back to its reference PyTorch implementation"
    r"|The fast path is not available because one of `"
    r"|The fast path for \w+ will be used when running the model on a GPU"
)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return _ADVICE.match(record.getMessage()) is None


def silence_kernel_advice() -> None:
    """Keep the advice to install kernels from all handlers, from now on; again changes nothing."""
    for name in ADVISERS:
        logging.getLogger(name).addFilter(_is_no_advice)


@contextmanager
def loading_bar_on_terminals() -> Iterator[None]:
    """Within this context `transformers` shows no bar, unless stderr is a terminal."""
    if sys.stderr.isatty() or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    hub_had_none = are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        if hub_had_none:
            disable_progress_bars()
