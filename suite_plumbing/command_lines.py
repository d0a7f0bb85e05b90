"""What reading the options of any command shares, before torch and other large packages are loaded.

`analysis_options` and `step_options` have a function a command, which returns its options. A module
of the root calls it in its `main`, and, run as a script, hands it to `parse_first` before it
imports what takes seconds, so that `--help` and a wrong option are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from suite_plumbing.messages import quoted, shortened
from suite_plumbing.no_memory import one_line_without_memory
from suite_plumbing.options import refuse_both
from suite_plumbing.signals import end_at_once_on_signals

Argv = Sequence[str] | None
"""Arguments of a command; None is those of the process."""


def parse_first(options: Callable[[Argv], argparse.Namespace], argv: Argv = None) -> None:
    """Answer `--help` and refuse wrong options at once; return where there is work to do.

    Ends the process with argparse's statuses, 0 and 2, or with 2 and one line on stderr for a
    ValueError of `options`, as `run_main` would. Until `run_main` begins, a signal ends the process
    at once, memory that does not suffice for the libraries is one line, and no garbage is
    collected. Call it before torch is imported.
    """
    end_at_once_on_signals()
    one_line_without_memory()
    wait_passively()
    try:
        options(argv)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    # A fifth of the time of importing torch and transformers goes into looking for garbage.
    gc.disable()


def collect_garbage_again() -> None:
    """What `parse_first` has stopped goes on; what was imported until now is looked at no more."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def wait_passively() -> None:
    """Let torch's threads sleep soon while they wait, unless the environment says otherwise.

    By default OpenMP's threads spin for a while, which beside other work on the same cores makes
    small operations 30 to 100 times slower. To sleep at once costs every operation 100 microseconds
    where nothing else runs; GNU's threads spin for some microseconds first. Those of NumPy's
    OpenBLAS spin whatever one says: it gets one, since all large products are torch's. Read once,
    when torch and NumPy are loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def read_options(parser: argparse.ArgumentParser, argv: Argv) -> argparse.Namespace:
    """The options given; ValueError for two that exclude each other."""
    args = parser.parse_args(argv)
    refuse_both(args, "text", "texts_file")
    if getattr(args, "one_text", False) and args.texts_file is None:
        raise ValueError("--one-text is given without a --texts-file, which it is about")
    refuse_both(args, "debug", "quiet")
    return args


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, without the usage, and names the nearest option."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shortened(message, 400)}{self._meant(message)}\n")

    def _meant(self, message: str) -> str:
        """What may have been meant by an option that there is not."""
        unknown = [word for word in message.split() if word.startswith("--")]
        if "unrecognized arguments" not in message or not unknown:
            return "; --help shows every option"
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, 1)
        return f"; the nearest option is {near[0]}" if near else "; --help shows every option"


def new_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example, and whose errors are one line."""
    return _Parser(description=description, epilog=f"example: python {example}")


def add_number(parser: argparse.ArgumentParser, name: str, default: int, said: str) -> None:
    """A whole number N, whose help ends with its default."""
    said = f"{said} (default: {default})"
    parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=said)


def parse_numbers(name: str, listed: str) -> list[float]:
    """Numbers from "-1,0.5"; ValueError for anything else."""
    try:
        return [float(part) for part in listed.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name} is {quoted(listed)}; pass numbers, as in -1,0.5") from None


def parse_whole(name: str, value: str) -> int:
    """A whole number, or ValueError."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} is {quoted(value)}; pass a whole number, or mean") from None


def parse_widths(listed: str) -> list[int]:
    """Widths of windows from "128,512"; ValueError for anything but whole numbers."""
    try:
        return [int(part) for part in listed.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"windows is {quoted(listed)}; pass whole numbers, as in 128,512"
        ) from None
