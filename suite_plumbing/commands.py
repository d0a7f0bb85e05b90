"""What all commands share: a job made of their options, exit statuses, results.

Bad input raises ValueError and ends a command with status 2; `AnalysisError`, running out of memory
and a file that cannot be written end it with status 1.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from suite_plumbing.bundled import DEMO_MODEL_PATH, model_place
from suite_plumbing.command_lines import collect_garbage_again
from suite_plumbing.errors import AnalysisError, is_out_of_memory
from suite_plumbing.memory_usage import one_heap
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.one_thread import fit_threads, threads_kept
from suite_plumbing.options import refuse_both
from suite_plumbing.output_folders import claim_output_dir
from suite_plumbing.progress import configure_logging, set_seed
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import write_json
from suite_plumbing.runs import one_run
from suite_plumbing.signals import STATUS, WORDS, Stop, stopping_on_signals
from suite_plumbing.texts import (
    EXAMPLE_TEXTS,
    EncodedText,
    check_texts,
    distinct_texts,
    encode_texts,
    read_texts_file,
    text_origins,
)


def texts_from_options(args: argparse.Namespace) -> list[str]:
    """Return the texts of `--text` or `--texts-file`, else EXAMPLE_TEXTS; both is a ValueError."""
    refuse_both(args, "text", "texts_file")
    if args.texts_file is not None:
        return check_texts(
            read_texts_file(args.texts_file, one_text=getattr(args, "one_text", False))
        )
    return check_texts(list(EXAMPLE_TEXTS) if args.text is None else args.text)


def announcement(args: argparse.Namespace) -> str:
    """What a command is about to analyse, in two lines: its model and its texts."""
    is_demo = Path(model_place(args.model)) == DEMO_MODEL_PATH
    model = "the bundled demo model (pass --model for another)" if is_demo else args.model
    given = args.text is not None or args.texts_file is not None
    texts = "the given texts" if given else "three built-in texts (pass --text or --texts-file)"
    return f"Model: {model}\nTexts: {texts}"


def run_main(function: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's body on its arguments and return its exit status.

    0: done. 1: AnalysisError, out of memory, or a file that could not be written (or what
    `function` returns for a run with failed steps). 2: bad input (ValueError; argparse exits with
    2 too). 130: interrupted; 143: terminated, raised as SystemExit; either way the stack is
    unwound first, so that unfinished files are removed. An error is one line on stderr; `--debug`
    adds the traceback. argv None is the command line. What a terminal cannot show is replaced.
    Other exceptions, programming errors, go through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    collect_garbage_again()
    one_heap()
    with stopping_on_signals() as stop, _showing_what_can_be_shown(), threads_kept():
        status = _status(function, arguments, stop)
    if stop.number is not None:
        status = _report(WORDS[stop.number], STATUS[stop.number], arguments)
        if stop.number == signal.SIGTERM:
            raise SystemExit(status)
    return status


def _status(function: Callable[[list[str]], int], arguments: list[str], stop: Stop) -> int:
    """Exit status of a command's body; what it raised once a signal came does not matter."""
    try:
        try:
            with one_run():
                status = function(arguments)
                sys.stdout.flush()  # a pipe that is closed is an error here, not at the very end
                return status
        finally:
            stop.close()
    except BaseException as error:
        if stop.number is not None:
            return STATUS[stop.number]
        if isinstance(error, KeyboardInterrupt):
            return _report("interrupted", 130, arguments)
        if isinstance(error, ValueError):
            return _report(f"error: {error}", 2, arguments)
        if isinstance(error, (AnalysisError, OSError)) or is_out_of_memory(error):
            return _report(f"error: {str(error) or type(error).__name__}", 1, arguments)
        raise


@contextmanager
def _showing_what_can_be_shown() -> Iterator[None]:
    """Print ? for what a terminal's encoding lacks: results are worth more than their spelling."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def _report(message: str, status: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    sys.stderr.write(" ".join(message.split()) + "\n")
    return status


class Job(NamedTuple):
    """What a command of the suite works on, after all of its options have been checked."""

    args: argparse.Namespace
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoded: list[EncodedText]
    layers: list[int]
    output_dir: Path
    command: list[str]
    """see `command_line`"""

    def of_distinct_texts(self) -> Job:
        """The same on the texts that are no earlier one again, which would be no more evidence."""
        return self._replace(encoded=distinct_texts(self.encoded))


def command_line(script: str, argv: Sequence[str]) -> list[str]:
    """A command as results record it: what a shell runs to make them again."""
    return ["python", script, *argv]


def job_from_options(
    args: argparse.Namespace, layers_of: Callable[..., list[int]], command: Sequence[str] = ()
) -> Job:
    """Check and load what the shared command-line options name, before anything runs."""
    configure_logging(args.debug, args.quiet)
    set_seed(args.seed)
    texts = texts_from_options(args)
    output_dir = claim_output_dir(args.output_dir)
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    fit_threads(model)
    tokenizer = load_tokenizer(args.model if args.tokenizer is None else args.tokenizer)
    encoded = encode_texts(
        tokenizer, texts, args.max_sequence_length, vocab_size=model.config.vocab_size
    )
    layers = layers_of(model, args.layers)
    return Job(args, model, tokenizer, encoded, layers, output_dir, list(command))


def write_step_results(job: Job, name: str, results: Mapping[str, Any]) -> Path:
    """Write a step's results as JSON into the job's folder, with schema version and provenance."""
    described = {
        "schema_version": SCHEMA_VERSION,
        "provenance": provenance(
            job.model, command=job.command, seed=job.args.seed, texts=text_origins(job.encoded)
        ),
    }
    return write_json(job.output_dir / name, {**results, **described})
