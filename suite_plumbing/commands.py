"""Model-agnostic plumbing of the suite: models, tokenizers, texts, hooks, memory, command lines.

Nothing here knows what a Mamba is. Texts, layers, devices and numbers are checked in
`analysis_inputs`, models are loaded by `model_loading`, memory is measured by `memory_tracker`,
files of results are written by `result_files`; the rest of the suite imports the names of all four
from here. Bad input raises ValueError; data that cannot be analysed raises AnalysisError, the one
error of the suite that a pipeline records and goes on from.
"""

import argparse
import logging
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import logging as transformers_logging

from analysis_inputs import (
    DEFAULT_LAYERS,
    DTYPES,
    EXAMPLE_TEXTS,
    EncodedText,
    batches_by_length,
    check_texts,
    distinct_texts,
    encode_texts,
    pad_batch,
    padding_id,
    read_book,
    read_texts_file,
    repeated_texts,
    resolve_device,
    resolve_dtype,
    resolve_layer_indices,
    text_origins,
    validate_choice,
    validate_int,
)
from memory_tracker import MemoryTracker, is_out_of_memory
from model_loading import (
    execution_device,
    load_model,
    load_tokenizer,
    require_tokenizer,
    resolve_model,
)
from result_files import (
    DEMO_MODEL_PATH,
    SCHEMA_VERSION,
    SUITE_VERSION,
    StrPath,
    check_output_dir,
    finite_or_none,
    five_digits,
    provenance,
    read_json,
    six_digits,
    table_html,
    to_jsonable,
    weights_sha256,
    write_atomically,
    write_csv,
    write_json,
    write_tensors,
)

__all__ = [
    "COMMON_OPTIONS",
    "DEFAULT_LAYERS",
    "DEMO_MODEL_PATH",
    "DTYPES",
    "EXAMPLE_TEXTS",
    "FIGURE_FORMATS",
    "SCHEMA_VERSION",
    "SUITE_VERSION",
    "AnalysisError",
    "EncodedText",
    "MemoryTracker",
    "StrPath",
    "add_common_options",
    "announcement",
    "batches_by_length",
    "check_output_dir",
    "check_texts",
    "configure_logging",
    "distinct_texts",
    "encode_texts",
    "execution_device",
    "finite_or_none",
    "five_digits",
    "forward_hooks",
    "is_out_of_memory",
    "load_model",
    "load_tokenizer",
    "pad_batch",
    "padding_id",
    "parse_formats",
    "parse_layers",
    "progress",
    "provenance",
    "read_book",
    "read_json",
    "read_texts_file",
    "repeated_texts",
    "require_tokenizer",
    "resolve_device",
    "resolve_dtype",
    "resolve_layer_indices",
    "resolve_model",
    "run_main",
    "set_seed",
    "six_digits",
    "table_html",
    "text_origins",
    "texts_from_options",
    "to_jsonable",
    "validate_choice",
    "validate_int",
    "weights_sha256",
    "write_atomically",
    "write_csv",
    "write_json",
    "write_tensors",
]

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIGURE_FORMATS = ("png", "pdf", "svg")


class AnalysisError(RuntimeError):
    """Data that cannot be analysed, though the call was right: say what is undefined and why.

    A pipeline's step runner records it under the step's key and goes on with the other steps.
    """


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (every device). `seed`: 0 to 2**32 - 1."""
    seed = validate_int("seed", seed, 0, 2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - scipy draws from the global generator by default
    torch.manual_seed(seed)


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


def parse_layers(value: str) -> list[int] | str:
    """Read `--layers`: "all", or indices with commas between them, such as "0,3,-1"."""
    if value.strip().lower() == "all":
        return "all"
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"layers is {value!r}; write 'all' or indices like 0,3,6") from error


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
        "help": ".txt (one text a line), .jsonl (objects with a text field), or - for stdin",
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
        "help": "texts per forward pass (default: 2)",
    },
    "device": {"help": "cpu, cuda, cuda:1, ... (default: cuda where there is one)"},
    "dtype": {"choices": list(DTYPES), "default": "float32", "help": "default: float32"},
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


def texts_from_options(args: argparse.Namespace) -> list[str]:
    """Return the texts of `--text` or `--texts-file`, else EXAMPLE_TEXTS; both is a ValueError."""
    if args.text and args.texts_file:
        raise ValueError("--text and --texts-file are both given; pass one of them")
    if args.texts_file:
        return check_texts(read_texts_file(args.texts_file))
    return check_texts(args.text or list(EXAMPLE_TEXTS))


def announcement(args: argparse.Namespace) -> str:
    """What a command is about to analyse, in two lines: its model and its texts."""
    is_demo = Path(args.model) == DEMO_MODEL_PATH
    model = "the bundled demo model (pass --model for another)" if is_demo else args.model
    given = args.text or args.texts_file
    texts = "the given texts" if given else "three built-in texts (pass --text or --texts-file)"
    return f"Model: {model}\nTexts: {texts}"


def configure_logging(debug: bool = False, quiet: bool = False) -> None:
    """Log to stderr: details with `debug`, warnings only with `quiet`, the course of work else."""
    if debug and quiet:
        raise ValueError("--debug and --quiet are both given; pass one of them")
    _bars["disable"] = True if quiet else None
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)
    for name in ("matplotlib", "PIL", "fontTools", "httpx", "filelock", "fsspec", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if quiet or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def progress(iterable: Iterable[T], **options: Any) -> Iterable[T]:
    """Show a tqdm bar on stderr while iterating, where that is a terminal; `options` are tqdm's.

    None is shown after `configure_logging(quiet=True)`.
    """
    return tqdm(iterable, **{"leave": False, **_bars, **options})


# What tqdm takes None for: shown on a terminal only.
_bars: dict[str, bool | None] = {"disable": None}


def run_main(function: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's body on its arguments and return its exit status.

    0: done. 1: AnalysisError, out of memory, or a file that could not be written (or what
    `function` returns for a run with failed steps). 2: bad input (ValueError; argparse exits with
    2 too). 130: interrupted; 143: terminated. An error is one line on stderr; `--debug` adds the
    traceback. argv None is the command line. Other exceptions, programming errors, go through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _ending_on_sigterm():
            return function(arguments)
    except KeyboardInterrupt:
        return _report("interrupted", 130, arguments)
    except ValueError as error:
        return _report(f"error: {error}", 2, arguments)
    except Exception as error:
        if isinstance(error, (AnalysisError, OSError)) or is_out_of_memory(error):
            return _report(f"error: {str(error) or type(error).__name__}", 1, arguments)
        raise


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let a termination signal unwind the stack, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _report(message: str, status: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    sys.stderr.write(" ".join(message.split()) + "\n")
    return status
