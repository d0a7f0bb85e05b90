"""What does bad input come to: one line that says what is wrong, or a traceback, a hang, a result?

Seeded random inputs of four kinds: command lines of every command through `main(argv)`, calls of
classes and pure functions with one argument spoilt, model folders with one file damaged, result
files damaged or edited. Each runs in a worker process with a limit of time and memory, and ends in
one of OUTCOMES. A result where the spoilt argument means nothing is a wrong acceptance.

    python benchmarks/fuzz.py --count 10000 --commands 300 --log fuzz.jsonl --save
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep_section
from benchmarks.fuzz_commands import command_line
from benchmarks.fuzz_inputs import Case, Stand, call, make_stand, model_folder, results_file
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.errors import AnalysisError

OUTCOMES = (
    "done", "refused in one line", "status 1", "traceback", "message too long",
    "wrong acceptance", "hang", "crash",
)  # fmt: skip
"""The first three are right; status 1 is an analysis that says what it cannot analyse."""

RIGHT = OUTCOMES[:3]

HEADING = "## Inputs that mean nothing"

ROOT = Path(__file__).resolve().parent.parent

LONGEST_MESSAGE = 600

TIMEOUT = 60
"""Seconds that one input may take; none needs a tenth of it."""

MEMORY = 12 << 30
"""Bytes of address space a worker may have; torch alone takes a third of it."""


class Outcome(NamedTuple):
    """What one input came to."""

    index: int
    kind: str
    what: str
    outcome: str
    message: str


# Inputs and their outcomes


KINDS: dict[str, Callable[[Stand, random.Random, Path], Case]] = {
    "command line": command_line,
    "call": call,
    "model folder": model_folder,
    "results file": results_file,
}


def case_of(stand: Stand, seed: int, index: int, folder: Path, kind: str | None = None) -> Case:
    """The input of this number; it depends on the seed and the number alone."""
    rng = random.Random(f"{seed}/{index}")
    makers = list(KINDS.values()) if kind is None else [KINDS[kind]]
    return makers[index % len(makers)](stand, rng, folder)


def outcome_of(case: Case) -> tuple[str, str]:
    """Run one input in this process: which of OUTCOMES, and what was said."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = case.run()
    except SystemExit as ending:
        return _of_status(ending.code, said.getvalue())
    except AnalysisError as error:
        return _of_message("status 1", str(error))
    except ValueError as error:
        return _of_message("refused in one line", str(error))
    except MemoryError as error:
        return "status 1", f"out of memory {error}"
    except BaseException:
        return "traceback", traceback.format_exc(limit=-4)
    if case.kind == "command line":
        return _of_ended(case, status, said.getvalue())
    return ("wrong acceptance", "") if case.must_refuse else ("done", "")


def _of_ended(case: Case, status: object, said: str) -> tuple[str, str]:
    outcome = _of_status(status, said)
    return ("wrong acceptance", "") if case.must_refuse and outcome[0] == "done" else outcome


def _of_status(status: object, said: str) -> tuple[str, str]:
    named = {0: "done", None: "done", 1: "status 1", 2: "refused in one line"}
    # Of argparse's, the usage goes before the line.
    errors = [line for line in said.splitlines() if "error:" in line] or [""]
    outcome = named.get(status if isinstance(status, int) else None, "traceback")
    return ("traceback", said) if "Traceback" in said else _of_message(outcome, errors[-1])


def _of_message(outcome: str, message: str) -> tuple[str, str]:
    if outcome == "done":
        return outcome, ""
    if len(message) > LONGEST_MESSAGE or "\n" in message.strip():
        return "message too long", message[:LONGEST_MESSAGE]
    return outcome, message


def _work(stand: Stand, seed: int, connection: Any) -> None:
    """Answer numbers of inputs with their outcomes until None comes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (index := connection.recv()) is not None:
        with tempfile.TemporaryDirectory(dir=stand.folder) as folder:
            case = case_of(stand, seed, index, Path(folder))
            connection.send(Outcome(index, case.kind, case.what, *outcome_of(case)))


class _Worker:
    """A process that runs inputs one by one, and is replaced when it hangs or dies."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.arguments = stand, seed
        self.start()

    def start(self) -> None:
        """Start the process; what it imports, it imports once, and it may start others."""
        context = multiprocessing.get_context("fork")
        self.connection, end = context.Pipe()
        self.process = context.Process(target=_work, args=(*self.arguments, end))
        self.process.start()
        end.close()

    def run(self, index: int) -> Outcome:
        """The outcome of one input."""
        self.connection.send(index)
        try:
            if self.connection.poll(TIMEOUT):
                return self.connection.recv()
            outcome = "hang"
        except (EOFError, ConnectionResetError):
            outcome = "crash"
        self.stop()
        self.start()
        kind = list(KINDS)[index % len(KINDS)]
        return Outcome(index, kind, "see the seed and the number", outcome, "")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def fuzz(count: int, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """The outcomes of ``count`` inputs from number ``first`` on; ValueError for a count below 1."""
    validate_int("count", count, 1)
    with tempfile.TemporaryDirectory() as folder:
        stand = make_stand(Path(folder))
        worker = _Worker(stand, seed)
        try:
            for index in range(first, first + count):
                yield worker.run(index)
        finally:
            worker.stop()


def fuzz_commands(count: int, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """The same of command lines alone, each run as a command in a process of its own."""
    validate_int("count", count, 1)
    with tempfile.TemporaryDirectory() as folder:
        stand = make_stand(Path(folder))
        for index in range(first, first + count):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                case = case_of(stand, seed, index, Path(own), "command line")
                yield Outcome(index, "real command", case.what, *_real_outcome(case, Path(own)))


def _real_outcome(case: Case, folder: Path) -> tuple[str, str]:
    script, *arguments = case.argv
    # What no shell can pass: half a surrogate pair.
    arguments = [one.encode("utf-8", "replace").decode() for one in arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "ignore", str(ROOT / script), *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=5 * TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hang", ""
    if done.returncode < 0:
        return "crash", done.stderr
    return _of_ended(case, done.returncode, done.stderr)


def report(outcomes: Sequence[Outcome], seed: int) -> str:
    """Counts by kind and outcome as a table, and every input that came to a wrong one."""
    kinds = sorted({one.kind for one in outcomes})
    counts = Counter((one.kind, one.outcome) for one in outcomes)
    lines = [
        HEADING, "",
        f"{len(outcomes)} inputs, seed {seed}. Made by `python benchmarks/fuzz.py`.", "",
        f"| input | {' | '.join(OUTCOMES)} |", f"|---|{'---:|' * len(OUTCOMES)}",
    ]  # fmt: skip
    for kind in kinds:
        cells = [str(counts[kind, outcome]) for outcome in OUTCOMES]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    wrong = [one for one in outcomes if one.outcome not in RIGHT]
    lines += ["", f"Wrong: {len(wrong)}."]
    for one in wrong[:40]:
        last = (one.message.strip().splitlines() or [""])[-1][:160]
        lines.append(f"- {one.index}, {one.outcome}: `{one.what[:160]}` {last}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run inputs and print their outcomes; status 1 if one of them is wrong."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "counts by kind and outcome, and every wrong one")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="inputs (1000)")
    parser.add_argument(
        "--commands", type=int, default=0, metavar="N",
        help="command lines that are run as commands, beside them (0)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all inputs (0)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument(
        "--log", metavar="FILE", help="keep outcomes there, and go on from those it holds"
    )
    parser.add_argument("--debug", action="store_true", help="print the tracebacks")
    args = parser.parse_args(argv)
    outcomes: list[Outcome] = []
    for one in _logged(args):
        outcomes.append(one)
        if args.debug and one.outcome not in RIGHT:
            print(one.index, one.outcome, one.what, one.message, sep="\n", flush=True)
    text = report(outcomes, args.seed)
    print(text)
    if args.save:
        keep_section(RESULTS_FOLDER / "robustness.md", text)
    return int(any(one.outcome not in RIGHT for one in outcomes))


def _logged(args: argparse.Namespace) -> Iterator[Outcome]:
    """All outcomes asked for: those of the log first, and the others as they come, into it."""
    log = None if args.log is None else Path(args.log)
    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    held = [Outcome(*json.loads(line)) for line in lines]
    yield from held
    num_commands = sum(one.kind == "real command" for one in held)
    runs = (
        (fuzz, args.count, len(held) - num_commands),
        (fuzz_commands, args.commands, num_commands),
    )
    for run, count, done in runs:
        for one in run(count - done, args.seed, args.first + done) if count > done else ():
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(one) + "\n")
            yield one


if __name__ == "__main__":
    raise SystemExit(main())
