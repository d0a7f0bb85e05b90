"""The options that all commands share, spelled once; they need the standard library alone.

A command line is read, and refused, before torch and the other large packages are loaded: see
`step_options` and `analysis_options`, which have the options of each command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.checks import validate_choice, validate_int
from suite_plumbing.messages import quoted

T = TypeVar("T")

DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")

STEP_OPTIONS = (
    "model", "tokenizer", "text", "texts_file", "one_text", "layers", "max_sequence_length",
    "batch_size", "device", "dtype", "output_dir", "seed", "debug", "quiet",
)  # fmt: skip
"""The shared options that every step's command has."""

FIGURE_FORMATS = ("png", "pdf", "svg")


def parse_layers(value: str) -> list[int] | str:
    """Read `--layers`: "all", or indices with commas between them, such as "0,3,-1"."""
    if value.strip().lower() == "all":
        return "all"
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"layers is {quoted(value)}; write 'all' or indices like 0,3,6") from error


def parse_formats(value: str) -> list[str]:
    """Read `--formats`: png, pdf and svg, with commas between them, each at most once."""
    names = [part.strip().lower() for part in value.split(",")]
    for name in names:
        validate_choice("format", name, FIGURE_FORMATS)
    return list(dict.fromkeys(names))


def _option_type(function: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse show the message of a ValueError, which it would replace by one of its own."""

    def convert(value: str) -> T:
        try:
            return function(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _int_option(name: str, minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    def convert(value: str) -> int:
        number = int(value) if value.strip().lstrip("+-").isdigit() else value
        return validate_int(name, number, minimum, maximum)

    return _option_type(convert)


COMMON_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "default": str(DEMO_MODEL_PATH),
        "metavar": "NAME_OR_PATH",
        "help": "model folder or hub name (default: the bundled demo model)",
    },
    "text": {"action": "append", "help": "text to analyse; may be given several times"},
    "texts_file": {
        "metavar": "FILE",
        "help": ".txt (one text a line), .jsonl (objects with a text field), either gzipped too, "
        "or - for stdin",
    },
    "one_text": {"action": "store_true", "help": "read the --texts-file as one text"},
    "tokenizer": {
        "metavar": "NAME_OR_PATH",
        "help": "folder or hub name of the tokenizer (default: the one beside the model's weights)",
    },
    "layers": {
        "type": _option_type(parse_layers),
        "metavar": "0,3,6|all",
        "help": "layers to analyse; -1 is the last (default: 0,3,6,9,12 or five evenly spaced)",
    },
    "max_sequence_length": {
        "type": _int_option("max-sequence-length", 2),
        "default": 512,
        "metavar": "TOKENS",
        "help": "longer texts are cut (default: 512)",
    },
    "batch_size": {
        "type": _int_option("batch-size", 1),
        "default": 2,
        "metavar": "N",
        "help": "texts per forward pass at most; long ones go alone (default: 2)",
    },
    "device": {"help": "cpu, cuda, cuda:1, ... (default: cuda where there is one)"},
    "dtype": {"choices": list(DTYPE_NAMES), "default": "float32", "help": "default: float32"},
    "output_dir": {"metavar": "FOLDER", "help": "where results go (made if need be)"},
    "formats": {
        "type": _option_type(parse_formats),
        "default": ["png"],
        "metavar": "png,pdf,svg",
        "help": "file formats of the figures (default: png)",
    },
    "seed": {
        "type": _int_option("seed", 0, 2**32 - 1),
        "default": 0,
        "metavar": "N",
        "help": "seed of all random draws (default: 0)",
    },
    "debug": {"action": "store_true", "help": "log details; show the traceback of an error"},
    "quiet": {"action": "store_true", "help": "log warnings and errors only, no progress bars"},
}
"""Arguments of `add_argument` by destination; `texts_file` is spelled `--texts-file`."""


def add_common_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the suite's shared options, all of them or those named ("texts_file", "seed", ...).

    A module gives its own default by `parser.set_defaults(output_dir=...)`.
    """
    for name in names or COMMON_OPTIONS:
        key = validate_choice("option", name.replace("-", "_"), COMMON_OPTIONS)
        parser.add_argument(f"--{key.replace('_', '-')}", **COMMON_OPTIONS[key])


def refuse_both(args: argparse.Namespace, first: str, second: str) -> None:
    """Raise ValueError where two options that exclude each other are both given."""
    # An empty string was given too: it is what a script's empty variable leaves.
    if not any(getattr(args, name, None) in (None, False) for name in (first, second)):
        names = [f"--{name.replace('_', '-')}" for name in (first, second)]
        raise ValueError(f"{' and '.join(names)} are both given; pass one of them")
