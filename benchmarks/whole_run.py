"""The main analysis and its parts at the size of a real study: time, and memory above the model.

mamba-130m's shape with random weights, which is what speed and memory depend on; the tokenizer is
the demo model's. Five figures, each from a process of its own, the first the median of three:

- the whole analysis of one text, figures and result files included but not the report, after
  loading, in stock forward passes
- what each of nine further texts adds, against a run of one text
- peak memory above the model of the same with two texts, the default batch
- peak memory of a layer's mean map, and of that of magnitudes, for a long text

How to run::

    python benchmarks/whole_run.py --save        # a quarter of an hour on two cores
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()


from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.other_ways import random_operands
from benchmarks.speed import Bench, Row, Sizes, machine_facts, our_map, table
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.commands import run_main
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.models import load_tokenizer

RESULTS = RESULTS_FOLDER / "whole_run.md"
SMOKE = Sizes(32, 4, 16, 4, 2048)
LONG = 8  # a long text is this many times as long
FEW = 10  # texts of the run that further texts are told by
TIMED = ("analysis",)  # figures that are medians of RUNS processes
RUNS = 3


class Figure(NamedTuple):
    """What one process measured, and the bound that was aimed at."""

    work: str
    measure: Callable[[Sizes], tuple[float, float | None]]
    """the figure, and what it is to be divided by for the goal"""
    unit: str
    goal: float
    unit_of_goal: str
    other_way: str = "stock forward, F"


def texts(count: int, length: int) -> list[str]:
    """``count`` texts of at least ``length`` tokens from Python's own documentation."""
    return ["\n".join(list(topics.values())[i::count])[: 8 * length] for i in range(count)]


def analyzer(sizes: Sizes) -> CorrectedRecursiveSSMAttentionNeuronAnalyzer:
    """The analyzer with its defaults on a random model."""
    tokenizer = load_tokenizer(DEMO_MODEL_PATH)
    return CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        Bench(sizes, 1).model, max_sequence_length=sizes.length, tokenizer=tokenizer
    )


def whole_analysis(sizes: Sizes) -> tuple[float, float | None]:
    """Seconds of the analysis of one text with its figures and files; those of a stock forward."""
    ours, bench = analyzer(sizes), Bench(sizes, 3)
    (stock,) = bench.times(lambda: bench.stock_forward(sizes.length))
    start = time.perf_counter()
    analyse_and_write(ours, 1)
    return time.perf_counter() - start, stock


def further_texts(sizes: Sizes) -> tuple[float, float | None]:
    """Seconds that each further text of ten adds; those of a run of one."""
    ours = analyzer(sizes)
    seconds = []
    for count in (1, FEW):
        start = time.perf_counter()
        analyse_and_write(ours, count)
        seconds.append(time.perf_counter() - start)
    first, all_of_them = seconds
    return (all_of_them - first) / (FEW - 1), first


def memory_above_model(sizes: Sizes) -> tuple[float, float | None]:
    """Peak memory of two texts' analysis above what the loaded model takes, GB."""
    ours = analyzer(sizes)
    Bench(sizes, 1).stock_forward(2)  # loads the libraries' code
    tracker = MemoryTracker()
    analyse_and_write(ours, 2)
    return _grown(tracker), None


def map_memory(sizes: Sizes, absolute: bool) -> tuple[float, float | None]:
    """Peak memory of one layer's map of a long text, above its operands, GB."""
    length = LONG * sizes.length
    operands = random_operands(length, sizes.d_inner, sizes.d_state)
    our_map(random_operands(2, sizes.d_inner, sizes.d_state), absolute)
    tracker = MemoryTracker()
    our_map(operands, absolute)
    return _grown(tracker), None


def analyse_and_write(ours: CorrectedRecursiveSSMAttentionNeuronAnalyzer, count: int) -> None:
    """What the main command does after loading, all but its report."""
    with tempfile.TemporaryDirectory() as folder:
        ours.analyze_recursive_ssm_attention_effects(texts(count, ours.max_sequence_length))
        ours.visualize_analysis_results(folder)
        ours.save_analysis_results(Path(folder) / "analysis_results.json")


def _grown(tracker: MemoryTracker) -> float:
    stats = tracker.stats()
    if stats["reason"] or not tracker.peak_is_since_reset:
        raise OSError(f"the peak memory cannot be measured here: {stats['reason'] or 'no reset'}")
    return stats["peak_memory_usage"] - stats["baseline_memory_usage"]


FIGURES = {
    "analysis": Figure("analysis of a text, with figures and files", whole_analysis, "s", 3.5, "F"),
    "further": Figure(
        f"each further text of {FEW}", further_texts, "s", 1, "of the first", "a run of one text"
    ),
    "memory": Figure(
        "memory above the model, 2 texts", memory_above_model, "GB", 0.45, "GB"
    ),
    "mean_map": Figure(
        "memory of a mean map, long text", lambda sizes: map_memory(sizes, False), "GB", 4, "GB"
    ),
    "absolute_map": Figure(
        "memory of a map of magnitudes, long text",
        lambda sizes: map_memory(sizes, True), "GB", 4, "GB",
    ),
}  # fmt: skip


def measured(name: str, smoke: bool, runs: int = 1) -> Row:
    """One figure: of a fresh process, or the median of several."""
    figure = FIGURES[name]
    taken = [_of_a_process(name, smoke) for _ in range(runs)]
    in_unit = [ours / other if other else ours for ours, other in taken]
    middle = in_unit.index(statistics.median_low(in_unit))
    ours, other = taken[middle]
    return Row(
        figure.work, ours, other, figure.other_way, figure.unit, in_unit[middle],
        figure.unit_of_goal, figure.goal,
    )  # fmt: skip


def _of_a_process(name: str, smoke: bool) -> tuple[float, float | None]:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", name]
    command += ["--smoke"] if smoke else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"measuring {name} failed: {done.stderr.strip()}")
    ours, *other = (float(value) for value in done.stdout.split())
    return ours, other[0] if other else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; ``--save`` writes it with the machine's facts."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a figure")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does every row run?")
    parser.add_argument("--measure", choices=FIGURES, help="print one figure, in this process")
    args = parser.parse_args(argv)
    sizes = SMOKE if args.smoke else Sizes()
    if args.measure:
        ours, other = FIGURES[args.measure].measure(sizes)
        print(ours, *([] if other is None else [other]))
        return 0
    if args.smoke and args.save:
        raise ValueError("--smoke and --save are both given: tiny sizes are no result to keep")
    runs = 1 if args.smoke else RUNS
    rows = [measured(name, args.smoke, runs if name in TIMED else 1) for name in FIGURES]
    long = f"A long text has {LONG * sizes.length} tokens; a map is of one layer."
    facts = machine_facts(sizes, f"the analysis of a text: median of {runs}; the rest once")
    report = f"{facts}\n\n{long}\n\n{table(rows)}\n"
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
