"""What a corpus costs: against the model's own forward pass, as it grows, and after SIGKILL.

One thread and one process measure the factor: windows of the book through the stock forward pass,
and through the step of `corpus_analysis` with everything it sums at its default shares. Growth
reads the same texts over and over in one task, in a process of its own: its time and peak memory.
Times are of the CPU, of one thread, which other work on the machine changes little.
Then the command itself with 1, 2 and 3 workers, and killed with all its workers half way and given
again: the results' bytes, without their provenance, are compared.

How to run (any plain text; the demo model is the default)::

    python benchmarks/corpus.py book.txt --windows 64 --growth 1000,10000 --runs
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

from analysis_pipelines.corpus.plan import Settings, open_plan
from analysis_pipelines.corpus.step import TaskSums, analyse, reader_of, threads
from analysis_pipelines.corpus.windows import TextWindow, as_batch, batched
from benchmarks.commands import add_book_options, benchmark_parser, keep
from mamba_mixers.sites import model_layers
from suite_plumbing.bundled import SUITE_DIR
from suite_plumbing.commands import run_main
from suite_plumbing.corpus_texts import Source, passages
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.models import load_model
from suite_plumbing.texts import read_book

RESULTS = SUITE_DIR / "benchmarks" / "results" / "corpus.md"

WIDTH = 256

SHORT = 128
"""Tokens, at most, of the texts of growth."""


def settings_of(model: str, source: Source, layers: Sequence[int], **changed: Any) -> Settings:
    """The command's own defaults over this corpus."""
    usual = Settings(source, model, model, tuple(layers), max_sequence_length=WIDTH)
    return replace(usual, **changed)


def windows_of_book(settings: Settings, number: int) -> list[TextWindow]:
    """The first whole windows of a corpus."""
    sums = TaskSums(reader_of(settings), settings)
    found = [w for w in sums.windows_of(passages(settings.source)) if len(w.ids) == WIDTH]
    if len(found) < number:
        raise ValueError(f"the book has {len(found)} windows of {WIDTH} tokens; {number} are asked")
    return found[:number]


@torch.no_grad()
def factor_to_stock(settings: Settings, number: int) -> dict[str, float]:
    """CPU seconds a window of the stock forward pass and of the step, one thread, and their ratio.

    The step reads the same batches, checks the replay and takes importance as often as a run does.
    """
    reader = reader_of(settings)
    batches = list(batched(windows_of_book(settings, number), settings.batch_tokens))
    inputs = [as_batch(batch, settings.maps_every, settings.seed).ids for batch in batches]
    with threads(1):
        reader.model(inputs[0], use_cache=False)
        started = time.process_time()
        for ids in inputs:
            reader.model(ids, use_cache=False)
        stock = (time.process_time() - started) / number
        TaskSums(reader, settings).add(batches[0], check=False)
        sums = TaskSums(reader, settings)
        started = time.process_time()
        for i, batch in enumerate(batches):
            sums.add(batch, check=i % 100 == 0 and i > 0)
        step = (time.process_time() - started) / number
    return {"stock": stock, "step": step, "factor": step / stock}


def growth(model: str, book: str, number: int) -> dict[str, float]:
    """CPU seconds and peak memory (MB) of one task over so many short texts, in this process."""
    words = read_book(book).split()
    texts = [" ".join(words[i : i + 60]) for i in range(0, 60 * 100, 60)]
    layers = model_layers(load_model(model), None)
    source = Source(texts=tuple(texts[i % len(texts)] for i in range(number)))
    settings = settings_of(model, source, layers, tasks=1, max_sequence_length=SHORT)
    reader_of(settings)
    with tempfile.TemporaryDirectory() as folder:
        plan = open_plan(Path(folder), settings, "benchmark", "cpu")
        tracker, started = MemoryTracker(), time.process_time()
        analyse(None, 0, 1, plan=plan)
        return {
            "texts": number,
            "seconds": time.process_time() - started,
            "peak": 1000 * (tracker.stats()["peak_memory_usage"] or float("nan")),
        }


def command_of(book: str, model: str, folder: Path, workers: int) -> list[str]:
    """The command over the book in four tasks."""
    return [
        sys.executable, str(SUITE_DIR / "corpus_analysis.py"), "--texts-file", book, "--one-text",
        "--model", model, "--max-sequence-length", str(WIDTH), "--tasks", "4", "--quiet",
        "--workers", str(workers), "--output-dir", str(folder),
    ]  # fmt: skip


def killed_half_way(command: list[str], folder: Path) -> int:
    """Start the command, kill it and all its workers once the first part is there; parts kept."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((folder / "parts").glob("part_*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list((folder / "parts").glob("part_*.safetensors")))


def digest_of_results(folder: Path) -> str:
    """Of corpus_results.json without its provenance."""
    results = json.loads((folder / "corpus_results.json").read_text())
    del results["provenance"]
    return hashlib.sha256(json.dumps(results).encode()).hexdigest()


def same_bits(book: str, model: str) -> list[dict[str, Any]]:
    """One row a run: workers, what happened to it, the digest of its results."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for workers, kill in ((1, False), (2, False), (3, False), (2, True)):
            folder = Path(place) / f"{workers}{kill}"
            command = command_of(book, model, folder, workers)
            kept = killed_half_way(command, folder) if kill else None
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            what = f"killed, {kept} of 4 parts kept" if kill else "whole"
            rows.append({"workers": workers, "what": what, "digest": digest_of_results(folder)})
    return rows


def report(
    factor: dict[str, float], grown: Sequence[dict[str, float]], runs: Sequence[dict[str, Any]]
) -> str:
    """The tables as Markdown."""
    lines = [
        f"A window of {WIDTH} tokens, one thread: stock forward {factor['stock']:.3f} s of CPU, "
        f"the step {factor['step']:.3f} s: {factor['factor']:.2f} stock forwards.",
    ]  # fmt: skip
    if grown:
        lines += ["", "| texts | CPU s | s a thousand | peak MB |", "|---|---|---|---|"]
        lines += [
            f"| {int(g['texts']):,} | {g['seconds']:.1f} | {1000 * g['seconds'] / g['texts']:.2f} "
            f"| {g['peak']:.0f} |"
            for g in grown
        ]  # fmt: skip
    if runs:
        lines += ["", "| workers | run | results |", "|---|---|---|"]
        lines += [f"| {r['workers']} | {r['what']} | {r['digest'][:16]} |" for r in runs]
    return "\n".join(lines)


def grown_apart(model: str, book: str, number: int) -> dict[str, float]:
    """`growth` in a process of its own."""
    command = [sys.executable, __file__, book, "--model", model, "--measure", str(number)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(re.findall(r"^\{.*\}$", done.stdout, re.M)[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "the factor and two tables: growth, runs")
    add_book_options(parser)
    parser.add_argument("--windows", type=int, default=64, help="of the factor (default: 64)")
    parser.add_argument("--growth", default="", help="numbers of texts, such as 1000,10000")
    parser.add_argument("--runs", action="store_true", help="also the command, killed and whole")
    parser.add_argument("--measure", type=int, help="print the growth of so many texts as JSON")
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(json.dumps(growth(args.model, args.text, args.measure)))
        return 0
    layers = model_layers(load_model(args.model), None)
    source = Source(files=(str(Path(args.text).resolve()),), one_text=True)
    settings = settings_of(args.model, source, layers)
    factor = factor_to_stock(settings, args.windows)
    numbers = [int(n) for n in args.growth.split(",") if n]
    grown = [grown_apart(args.model, args.text, number) for number in numbers]
    runs = same_bits(args.text, args.model) if args.runs else []
    text = report(factor, grown, runs)
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
