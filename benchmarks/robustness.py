"""Is work lost? Signals at random moments, full disks and memory limits, and what is left of a run.

Runs the main and the memory command on the demo model in processes of their own, each stopped in
one of three ways, and looks at what it left:

- signals: SIGINT or SIGTERM after a random share of the time that a run takes, imports included.
  Right: status 130 or 143 with one line, or 0 where the run had ended; no half file, JSON and
  tensors of one run, and the next run clears what is left
- full disks: no file can grow beyond a random size (a limit of the process, which writes of every
  kind meet as they meet a full disk). Right: status 1, whole files only
- memory limits: the address space may be no larger than a random share of what a run takes.
  Right: status 1 with one line, or 0 where it was enough; whole files only. Libraries that end the
  process themselves (OpenBLAS does) are counted apart: then the next run has to clear what is left

How to run::

    python benchmarks/robustness.py --signals 40 --disks 20 --limits 20 --log runs.jsonl --save
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

# The suite is flat: its folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep_section
from suite_plumbing.checks import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.result_reading import load_results

ROOT = Path(__file__).resolve().parent.parent

RESULTS = RESULTS_FOLDER / "robustness.md"

COMMANDS = {
    "main": (["corrected_recursive_ssm_attention_analyzer.py"], "analysis_results.json"),
    "memory": (
        [
            "run_memory_recursion_analysis.py",
            "--num-positions",
            "2",
            "--ablate",
            "3",
            "--twins",
            "0",
        ],
        "memory_recursion_results.json",
    ),
}
"""Script with options, and results file, of the commands that are tried."""

SMALL = ["--layers", "0,6", "--max-sequence-length", "48", "--quiet"]
"""Options of a run: seconds, most of them imports."""

_HANGS = 1200
"""Seconds after which a run is taken to hang, and killed."""

_ENDED_BY = ("OpenBLAS", "libgomp", "terminate called")
"""Words on stderr of libraries that end a process without leaving it a last word."""


class Usual(NamedTuple):
    """A run that nothing stops."""

    seconds: float
    address_space: int
    """bytes, the most"""


@dataclass(frozen=True)
class Outcome:
    """How a run that was stopped ended."""

    way: str
    command: str
    status: int
    faults: tuple[str, ...]
    """what is not as it should be; empty where all is"""


def run(
    command: str,
    folder: Path,
    limit: Callable[[], None] | None = None,
    after: tuple[float, int] | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[int, str]:
    """Status and stderr of a command; ``limit`` is called in its process before it starts.

    ``after``: seconds, and the signal that is sent then. ``watch`` is given the process's id, again
    and again while it runs.
    """

    def prepare() -> None:
        # Behind a shell's & an interrupt is ignored, which a process inherits.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if limit is not None:
            limit()

    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *COMMANDS[command][0], *SMALL,
         "--output-dir", str(folder)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        preexec_fn=prepare,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"},
    )  # fmt: skip
    if after is not None:
        try:
            process.wait(after[0])
        except subprocess.TimeoutExpired:
            send_once_heard(process, after[1])
    while watch is not None and process.poll() is None:
        watch(process.pid)
        time.sleep(0.05)
    try:
        _, said = process.communicate(timeout=_HANGS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    return process.returncode, said


def send_once_heard(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal as soon as the process has a handler for it, or not if it ends before.

    While the interpreter itself is starting there is none, and the system would end the process.
    """
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if hears(Path(f"/proc/{process.pid}/status").read_text(), number):
                process.send_signal(number)
                return
        time.sleep(0.01)


def hears(status: str, number: int) -> bool:
    """Whether the text of a /proc/PID/status says that this signal has a handler."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.M)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def usual_run(command: str) -> Usual:
    """How long a run takes, and its largest address space as the Linux kernel counts it."""
    largest = 0

    def watch(process: int) -> None:
        nonlocal largest
        with contextlib.suppress(OSError):
            largest = max(largest, peak_address_space(Path(f"/proc/{process}/status").read_text()))

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        status, said = run(command, Path(name) / "out", watch=watch)
    if status:
        raise ValueError(
            f"the {command} command ends with status {status} by itself: {said[-200:]}"
        )
    return Usual(time.monotonic() - start, largest)


def peak_address_space(status: str) -> int:
    """Bytes of VmPeak in the text of a /proc/PID/status; 0 where there is none."""
    found = re.search(r"^VmPeak:\s*(\d+) kB", status, re.M)
    return 1024 * int(found[1]) if found else 0


def faults_of(
    command: str, folder: Path, status: int, said: str, allowed: Sequence[int]
) -> list[str]:
    """What is wrong with how a run ended and with what it left in its folder."""
    faults = []
    if status not in allowed:
        faults.append(f"status {status}")
    if "Traceback" in said or "Exception ignored" in said:
        faults.append("traceback")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    faults += [f"leftover {name}" for name in names if name.endswith((".tmp", ".lock"))]
    results = folder / COMMANDS[command][1]
    if results.is_file():
        try:
            load_results(results)
        except ValueError as error:
            faults.append(str(error))
    elif any(name.endswith((".png", ".html", ".md")) for name in names):
        faults.append("pages without results")
    return faults


def stopped_by_a_signal(command: str, usual: Usual, draw: random.Random) -> Outcome:
    """A run that a signal meets at a random moment, and what the next run makes of its folder."""
    number = draw.choice((signal.SIGINT, signal.SIGTERM))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        moment = draw.uniform(0.0, usual.seconds)
        status, said = run(command, folder, after=(moment, number))
        faults = faults_of(command, folder, status, said, (0, 128 + number))
        next_status, _ = run(command, folder)
        faults += faults_of(command, folder, next_status, "", (0,))
        faults += [f"leftover {path.name}" for path in folder.glob(".*")]
    return Outcome(number.name, command, status, tuple(faults))


def on_a_full_disk(command: str, _: Usual, draw: random.Random) -> Outcome:
    """A run that can write no file beyond a random size."""
    size = int(10 ** draw.uniform(2, 5.5))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with tempfile.TemporaryDirectory() as name:
        status, said = run(command, Path(name) / "out", limit)
        faults = faults_of(command, Path(name) / "out", status, said, (1,))
    return Outcome("full disk", command, status, tuple(faults))


def in_little_memory(command: str, usual: Usual, draw: random.Random) -> Outcome:
    """A run whose address space is limited to a share of what it takes."""
    size = int(draw.uniform(0.2, 1.0) * usual.address_space)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    with tempfile.TemporaryDirectory() as name:
        folder, way = Path(name) / "out", "memory limit"
        status, said = run(command, folder, limit)
        faults = faults_of(command, folder, status, said, (0, 1))
        if by := next((words for words in _ENDED_BY if words in said), None):
            way = f"memory limit, ended by a library ({by})"
            status_then, _ = run(command, folder)
            faults = faults_of(command, folder, status_then, "", (0,))
            faults += [f"leftover {path.name}" for path in folder.glob(".*")]
        if faults:
            faults.append((said.strip().splitlines() or [""])[-1][:80])
    return Outcome(way, command, status, tuple(faults))


WAYS = {"signals": stopped_by_a_signal, "disks": on_a_full_disk, "limits": in_little_memory}
"""By option: a run that is stopped in one way, (command, what a run takes, random numbers)."""


def tried(counts: Mapping[str, int], seed: int, log: Path | None = None) -> Iterator[Outcome]:
    """The outcomes of so many runs of each way; those that the log holds are not made again.

    A run depends on the seed, its way and its number, and on how long a run takes here and now.
    """
    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    held = dict(map(json.loads, lines))
    usual: dict[str, Usual] = {}
    for name, count in counts.items():
        for number in range(count):
            command, key = list(COMMANDS)[number % len(COMMANDS)], f"{seed}/{name}/{number}"
            if key not in held:
                if command not in usual:
                    usual[command] = usual_run(command)
                held[key] = astuple(WAYS[name](command, usual[command], random.Random(key)))
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps([key, held[key]]) + "\n")
            way, command, status, faults = held[key]
            yield Outcome(way, command, status, tuple(faults))


def report(outcomes: Sequence[Outcome]) -> str:
    """A table of ways and statuses, and every fault."""
    counts = Counter((one.way, one.command, one.status, bool(one.faults)) for one in outcomes)
    lines = ["## Runs that are stopped", "", "| how | command | status | runs | faults |"]
    lines.append("|---|---|---|---|---|")
    for way, command, status in sorted({key[:3] for key in counts}):
        good, bad = (counts[(way, command, status, faulty)] for faulty in (False, True))
        lines.append(f"| {way} | {command} | {status} | {good + bad} | {bad} |")
    lines += ["", "Status 0 of a limit: it was enough; of a signal: the run had ended before."]
    faults = [
        f"- {one.way}, {one.command}: {'; '.join(one.faults)}" for one in outcomes if one.faults
    ]
    return "\n".join([*lines, "", *(faults or ["No faults."])])


def main(argv: Sequence[str] | None = None) -> int:
    """Stop runs in every way and print the table; exit status 1 where one left a fault."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "how runs that are stopped end, and what they leave")
    for name in WAYS:
        parser.add_argument(f"--{name}", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--log", metavar="FILE", help="keep outcomes there, and go on from those it holds"
    )
    args = parser.parse_args(argv)
    counts = {name: validate_int(name, getattr(args, name), 0) for name in WAYS}
    log = None if args.log is None else Path(args.log)
    outcomes: list[Outcome] = []
    for one in tried(counts, args.seed, log):
        outcomes.append(one)
        print(one, flush=True)
    print(report(outcomes))
    if args.save:
        keep_section(RESULTS, report(outcomes))
    return 1 if any(one.faults for one in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
