"""Progress bars, logging and the seed of a run."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm
from transformers import logging as transformers_logging

from suite_plumbing.arguments import validate_int

T = TypeVar("T")


# What tqdm takes None for: shown on a terminal only.
_bars: dict[str, bool | None] = {"disable": None}


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (every device). `seed`: 0 to 2**32 - 1."""
    seed = validate_int("seed", seed, 0, 2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - scipy draws from the global generator by default
    torch.manual_seed(seed)


def configure_logging(debug: bool = False, quiet: bool = False) -> None:
    """Log to stderr: details with `debug`, warnings only with `quiet`, the course of work else."""
    if debug and quiet:
        raise ValueError("--debug and --quiet are both given; pass one of them")
    _bars["disable"] = True if quiet else None
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(
        level=level, format="%(levelname)s %(name)s: %(message)s", handlers=[_BesideBars()],
        force=True,
    )  # fmt: skip
    for name in ("matplotlib", "PIL", "fontTools", "httpx", "filelock", "fsspec", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if quiet or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


class _BesideBars(logging.StreamHandler):
    """Lines on stderr above a bar that is being drawn, not in the middle of it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as a line of its own."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def debug_logging(enabled: bool) -> Iterator[None]:
    """Log this suite's details while ``enabled``, to a handler of its own if there is none."""
    if not enabled:
        yield
        return
    root = logging.getLogger()
    level, handler = root.level, None if root.handlers else logging.StreamHandler()
    if handler is not None:
        root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.setLevel(level)
        if handler is not None:
            root.removeHandler(handler)


def progress(iterable: Iterable[T], **options: Any) -> Iterable[T]:
    """Show a tqdm bar on stderr while iterating, where that is a terminal; `options` are tqdm's.

    None is shown after `configure_logging(quiet=True)`, nor where there is nothing to do.
    """
    if isinstance(iterable, Sized) and len(iterable) == 0:
        return iterable
    return tqdm(iterable, **{"leave": False, **_bars, **options})
