"""Speed and memory of the suite beside the stock or naive way, in one run, on mamba-130m's shape.

The weights are random: speed does not depend on their values. Machines are noisy: both ways run by
turns in one process, medians are quoted, and a ratio tells more than a time. Memory is the peak
above what the operands take, each way in a process of its own.

How to run::

    python benchmarks/speed.py                        # every row: a quarter of an hour on two cores
    python benchmarks/speed.py --rows forward,states
    python benchmarks/speed.py --save                 # also writes benchmarks/results/speed.md
"""

from __future__ import annotations

import argparse
import copy
import datetime
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
import transformers
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from analysis_pipelines.overview import text_facts
from analysis_pipelines.prediction_parts import MAX_TOKENS
from analysis_pipelines.predictions import chosen_logits, final_stream, maps_of_logits
from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.other_ways import (
    Operands,
    dense_map,
    dense_states,
    random_operands,
    row_by_row_map,
    token_loop_states,
)
from benchmarks.transformer_lens_patching import bridged, cached_streams, is_at_hand, version
from mamba_mixers.mamba3 import Mamba3Config, Mamba3ForCausalLM
from mamba_mixers.recording import kept_streams
from mamba_mixers.running import fast_scan
from mamba_mixers.weights import logits_of_stream
from selective_scan.attention import attention_map
from selective_scan.scan import scan_hidden_states
from ssm_component_extractor import capture
from ssm_measures.layer_overview import heads_that_fit
from suite_plumbing.arguments import DEFAULT_LAYERS, validate_choice, validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.progress import configure_logging, set_seed

logger = logging.getLogger(__name__)

RESULTS = RESULTS_FOLDER / "speed.md"


class Sizes(NamedTuple):
    """What is measured on: mamba-130m's shape unless it is a smoke run."""

    length: int = 512
    layers: int = 24
    hidden: int = 768
    d_state: int = 16
    vocabulary: int = 50280
    dense_length: int = 128  # tokens at which a matrix for each channel and state fits in memory
    short_length: int = 64  # tokens at which the stock backward pass ends
    growth: int = 8  # the growth rows compare length with growth * length
    far_growth: int = 32  # as growth, where memory allows it
    growth_backward: int = 4  # as growth, where activations are kept: 10 GB at 2048 tokens

    @property
    def d_inner(self) -> int:
        """Channels of a layer."""
        return 2 * self.hidden


SMOKE = Sizes(24, 4, 16, 4, 50, 12, 8, 2, 3, 2)
"""Sizes that show only that every row runs."""


class Row(NamedTuple):
    """One line of the table: the suite's figure, another way's, and what was aimed at."""

    work: str
    ours: float
    other: float | None
    other_way: str
    unit: str
    """of ours and other: s or GB"""
    measured: float
    """the figure that has a goal"""
    unit_of_goal: str
    """of measured and goal: F is the stock forward pass, h the states' own size"""
    goal: float | None
    """upper bound of ``measured``; None where there is none"""

    @property
    def gain(self) -> float | None:
        """How many times less ours takes; None where the other figure is ours of a shorter text."""
        return (
            None if self.other is None or self.unit_of_goal == "linear" else self.other / self.ours
        )

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.measured <= self.goal


class Bench:
    """The model, its input and a layer's operands, made when first used; and how to time."""

    def __init__(self, sizes: Sizes, runs: int, include_hopeless: bool = False) -> None:
        self.sizes, self.runs, self.include_hopeless = sizes, runs, include_hopeless
        self._operands: dict[int, Operands] = {}

    @cached_property
    def model(self) -> MambaForCausalLM:
        """A random model without gradients of its parameters, in eval mode."""
        sizes = self.sizes
        config = MambaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            state_size=sizes.d_state,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        set_seed(0)
        return MambaForCausalLM(config).eval().requires_grad_(False)

    @cached_property
    def mamba3(self) -> Mamba3ForCausalLM:
        """A random Mamba-3 of as many layers and channels, with eight times the states."""
        sizes = self.sizes
        head = min(64, sizes.d_inner)
        config = Mamba3Config(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            state_size=8 * sizes.d_state,
            head_dim=head,
        )
        set_seed(0)
        return Mamba3ForCausalLM(config).eval().requires_grad_(False)

    def ids(self, length: int) -> Tensor:
        """Random token ids (1, length)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.sizes.vocabulary, (1, length), generator=generator)

    def operands(self, length: int) -> Operands:
        """Operands of one layer, made once: making them is no part of what is timed."""
        if length not in self._operands:
            sizes = self.sizes
            self._operands[length] = random_operands(length, sizes.d_inner, sizes.d_state)
        return self._operands[length]

    def times(self, *ways: Callable[[], Any], runs: int | None = None) -> list[float]:
        """Median seconds of each way, run by turns so that a slow moment hits them alike."""
        taken: list[list[float]] = [[] for _ in ways]
        for _ in range(runs or self.runs):
            for seconds, way in zip(taken, ways, strict=True):
                start = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - start)
        return [statistics.median(seconds) for seconds in taken]

    @torch.no_grad()
    def stock_forward(self, length: int) -> Tensor:
        """The model's own forward pass, as transformers runs it on this device."""
        return self.model(self.ids(length), use_cache=False).logits

    def fast_forward(self, length: int) -> Tensor:
        """The forward pass with the suite's scan."""
        with fast_scan(self.model):
            return self.stock_forward(length)

    def captured(self, length: int):
        """Five layers with their replay check, as every analysis starts."""
        layers = [layer for layer in DEFAULT_LAYERS if layer < self.sizes.layers]
        return capture(self.model, self.ids(length), None, layers)

    def stock_backward(self, length: int) -> Tensor:
        """Gradient of the largest last logit with respect to the embeddings, (1, l, d_model)."""
        x = self.model.get_input_embeddings()(self.ids(length)).detach().requires_grad_()
        f = self.model(inputs_embeds=x, use_cache=False).logits[0, -1].max()
        return torch.autograd.grad(f, x)[0]

    def fast_backward(self, length: int) -> Tensor:
        """The same gradient with the suite's scan."""
        with fast_scan(self.model):
            return self.stock_backward(length)


def forward_rows(bench: Bench) -> list[Row]:
    """A forward pass with our scan, in stock forward passes."""
    length = bench.sizes.length
    stock, ours = bench.times(
        lambda: bench.stock_forward(length), lambda: bench.fast_forward(length)
    )
    return [_in_stock_passes("forward with our scan", ours, stock, 0.5)]


def mamba3_rows(bench: Bench) -> list[Row]:
    """Mamba-3's own forward pass, as deep and wide, beside Mamba-1's with our scan."""
    length = bench.sizes.length
    mamba1, ours = bench.times(
        lambda: bench.fast_forward(length), lambda: bench.mamba3(input_ids=bench.ids(length))
    )
    way = "Mamba-1 with our scan"
    return [Row("Mamba-3's own forward", ours, mamba1, way, "s", ours / mamba1, "M", None)]


def streams_rows(bench: Bench) -> list[Row]:
    """The residual stream before every layer, kept, beside TransformerLens where it is at hand."""
    if not is_at_hand():
        return []
    ids, bridge = bench.ids(bench.sizes.length), bridged(copy.deepcopy(bench.model))

    @torch.no_grad()
    def kept() -> object:
        with fast_scan(bench.model), kept_streams(bench.model) as streams:
            bench.model(ids, use_cache=False)
        return streams

    ours, theirs = bench.times(kept, lambda: cached_streams(bridge, ids))
    way = f"TransformerLens {version()}"
    work = "residual streams of all layers, and logits"
    return [Row(work, ours, theirs, way, "s", ours / theirs, "of it", None)]


def capture_rows(bench: Bench) -> list[Row]:
    """A capture of five layers, in stock forward passes."""
    length = bench.sizes.length
    stock, ours = bench.times(lambda: bench.stock_forward(length), lambda: bench.captured(length))
    return [_in_stock_passes("capture of 5 layers, replay checked", ours, stock, 0.7)]


def overview_rows(bench: Bench) -> list[Row]:
    """The overview of one text, all layers with a reset of each, in stock forward passes."""
    length = bench.sizes.length
    ids = bench.ids(length)[0].tolist()
    pieces, heads = [f" {token}" for token in ids], heads_that_fit(length)
    stock, ours = bench.times(
        lambda: bench.stock_forward(length), lambda: text_facts(bench.model, ids, pieces, heads)
    )
    return [_in_stock_passes("overview of a text, all layers", ours, stock, 0.7)]


def predictions_rows(bench: Bench) -> list[Row]:
    """What made each prediction, as the main analysis reads a text, in stock forward passes."""
    length = bench.sizes.length
    ids = bench.ids(length)[0].tolist()

    def read() -> object:
        stream = final_stream(bench.model, ids)
        chosen = chosen_logits(logits_of_stream(bench.model, stream)[:MAX_TOKENS])
        return maps_of_logits(bench.model, ids[:MAX_TOKENS], stream[:MAX_TOKENS], chosen)

    stock, ours = bench.times(lambda: bench.stock_forward(length), read)
    most = min(length, MAX_TOKENS)
    return [_in_stock_passes(f"what made the first {most} predictions", ours, stock, 0.5)]


def _in_stock_passes(work: str, ours: float, stock: float, goal: float) -> Row:
    return Row(work, ours, stock, "stock forward, F", "s", ours / stock, "F", goal)


def states_rows(bench: Bench) -> list[Row]:
    """All states of one layer: time against the stock loop, time and memory against dense sums."""
    sizes = bench.sizes
    whole, short = bench.operands(sizes.length), bench.operands(sizes.dense_length)
    # More runs where one takes a moment only.
    ours, loop = bench.times(
        lambda: our_states(whole), lambda: token_loop_states(whole), runs=5 * bench.runs
    )
    short_ours, dense = bench.times(lambda: our_states(short), lambda: dense_states(short))
    peak, loop_peak = (peak_memory_gb(way, sizes) for way in ("our_states", "token_loop_states"))
    size = sizes.length * sizes.d_inner * sizes.d_state * 4 / 1e9
    at = f"{sizes.dense_length} tokens"
    return [
        Row("all states of a layer", ours, loop, "stock token loop", "s", ours, "s", 0.05),
        # A tenth for the decays of a block of tokens.
        Row("- peak memory", peak, loop_peak, "stock token loop", "GB", peak / size, "h", 1.1),
        Row(f"- at {at}", short_ours, dense, "per channel", "s", short_ours / dense, "of it", None),
        _memory_row(f"- peak memory at {at}", "our_states_short", "dense_states", sizes, None),
    ]


def mean_map_rows(bench: Bench) -> list[Row]:
    """The mean map of one layer against the row-by-row way."""
    return _map_rows(bench, "mean map of a layer", False, 0.25)


def absolute_map_rows(bench: Bench) -> list[Row]:
    """The mean map of magnitudes against the row-by-row way."""
    return _map_rows(bench, "mean map of magnitudes", True, 0.6)


def _map_rows(bench: Bench, work: str, absolute: bool, goal: float) -> list[Row]:
    operands = bench.operands(bench.sizes.length)
    (ours,) = bench.times(lambda: our_map(operands, absolute), runs=5 * bench.runs)
    # Half a minute at 512 tokens: once is enough.
    (naive,) = bench.times(lambda: row_by_row_map(operands, absolute), runs=1)
    return [Row(work, ours, naive, "row by row", "s", ours, "s", goal)]


def dense_map_rows(bench: Bench) -> list[Row]:
    """Both maps at a short length against a matrix for each channel, in time and peak memory."""
    sizes, rows = bench.sizes, []
    operands = bench.operands(sizes.dense_length)
    for absolute, name in ((False, "mean map"), (True, "mean map of magnitudes")):
        ours, dense = bench.times(
            lambda absolute=absolute: our_map(operands, absolute),
            lambda absolute=absolute: dense_map(operands, absolute),
        )
        work = f"{name}, {sizes.dense_length} tokens"
        rows.append(Row(work, ours, dense, "per channel", "s", ours / dense, "of it", 1 / 100))
        suffix = "_absolute" if absolute else ""
        ways = f"our_map{suffix}", f"dense_map{suffix}"
        rows.append(_memory_row("- peak memory", *ways, sizes, 1 / 20))
    return rows


def _memory_row(work: str, ours: str, other: str, sizes: Sizes, goal: float | None) -> Row:
    peak, other_peak = peak_memory_gb(ours, sizes), peak_memory_gb(other, sizes)
    return Row(work, peak, other_peak, "per channel", "GB", peak / other_peak, "of it", goal)


def backward_rows(bench: Bench) -> list[Row]:
    """Forward and backward pass, in stock forward passes, and beside stock at a short length."""
    length, short = bench.sizes.length, bench.sizes.short_length
    stock, ours = bench.times(
        lambda: bench.stock_forward(length), lambda: bench.fast_backward(length)
    )
    short_stock, short_ours = bench.times(
        lambda: bench.stock_backward(short), lambda: bench.fast_backward(short)
    )
    work, ratio = f"- {short} tokens", short_ours / short_stock
    rows = [
        _in_stock_passes("forward and backward", ours, stock, 1.3),
        Row(work, short_ours, short_stock, "stock both ways", "s", ratio, "of it", None),
    ]
    if bench.include_hopeless:
        (full,) = bench.times(lambda: bench.stock_backward(length), runs=1)
        work = f"- {length} tokens"
        rows.append(Row(work, ours, full, "stock both ways", "s", ours / full, "of it", None))
    return rows


def growth_rows(bench: Bench) -> list[Row]:
    """Cost of a longer text over what growth in proportion to its tokens would give."""
    sizes = bench.sizes
    far = (sizes.growth, sizes.far_growth)
    works = {
        "forward with our scan": (bench.fast_forward, far),
        "capture of 5 layers": (bench.captured, (sizes.growth,)),
        "all states of a layer": (lambda n: our_states(bench.operands(n)), far),
        "forward and backward": (bench.fast_backward, (sizes.growth_backward,)),
    }
    rows = []
    for name, function, factor in [(n, f, x) for n, (f, factors) in works.items() for x in factors]:
        longer = factor * sizes.length
        bench.operands(longer)
        short, long = bench.times(
            lambda function=function: function(sizes.length),
            lambda function=function, longer=longer: function(longer),
        )
        work, other = f"{name}, {longer} tokens", f"ours, {sizes.length} tokens"
        rows.append(Row(work, long, short, other, "s", long / short / factor, "linear", 1.15))
    return rows


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "forward": forward_rows,
    "mamba3": mamba3_rows,
    "streams": streams_rows,
    "capture": capture_rows,
    "overview": overview_rows,
    "predictions": predictions_rows,
    "states": states_rows,
    "mean_map": mean_map_rows,
    "absolute_map": absolute_map_rows,
    "dense_map": dense_map_rows,
    "backward": backward_rows,
    "growth": growth_rows,
}


def our_states(operands: Operands) -> Tensor:
    """All states (1, l, d_inner, N)."""
    return scan_hidden_states(*operands[:4])


def our_map(operands: Operands, absolute: bool = False) -> Tensor:
    """Mean map (1, l, l) of alpha, or of its magnitude."""
    return attention_map(*operands[1:], absolute=absolute)


MEASURED: dict[str, tuple[Callable[[Operands], Tensor], str]] = {
    "our_states": (our_states, "length"),
    "token_loop_states": (token_loop_states, "length"),
    "our_states_short": (our_states, "dense_length"),
    "dense_states": (dense_states, "dense_length"),
    "our_map": (our_map, "dense_length"),
    "dense_map": (dense_map, "dense_length"),
    "our_map_absolute": (lambda operands: our_map(operands, True), "dense_length"),
    "dense_map_absolute": (lambda operands: dense_map(operands, True), "dense_length"),
}
"""What ``--measure`` can measure the memory of, and which of the sizes is its length."""


def measured_bytes(way: str, sizes: Sizes) -> int:
    """Peak memory of one way above what this process held before, in bytes.

    Meant for a fresh process: freed memory that a process keeps would hide a peak.
    """
    function, length = MEASURED[way]
    operands = random_operands(getattr(sizes, length), sizes.d_inner, sizes.d_state)
    function(random_operands(2, sizes.d_inner, sizes.d_state))  # loads the libraries' code
    tracker = MemoryTracker()
    result = function(operands)
    stats = tracker.stats()
    if stats["reason"] or not tracker.peak_is_since_reset:
        raise OSError(f"the peak memory cannot be measured here: {stats['reason'] or 'no reset'}")
    # A result too small for the kernel's count of pages is still there.
    grown = round(1e9 * (stats["peak_memory_usage"] - stats["baseline_memory_usage"]))
    return max(grown, result.nbytes)


def peak_memory_gb(way: str, sizes: Sizes) -> float:
    """:func:`measured_bytes` in a process of its own, in GB of 1e9 bytes."""
    validate_choice("measure", way, MEASURED)
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", way]
    command += ["--smoke"] if sizes == SMOKE else ["--length", str(sizes.length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"measuring the memory of {way} failed: {done.stderr.strip()}")
    return int(done.stdout) / 1e9


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| work | ours | other way | other / ours | measured | goal | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = "" if row.other is None else f"{row.other_way}: {_figure(row.other)} {row.unit}"
        ratio = "" if row.gain is None else f"{_figure(row.gain)} x"
        goal = "" if row.goal is None else f"≤ {_figure(row.goal)} {row.unit_of_goal}"
        met = {None: "", True: "yes", False: "no"}[row.is_met]
        lines.append(
            f"| {row.work} | {_figure(row.ours)} {row.unit} | {other} | {ratio} | "
            f"{_figure(row.measured)} {row.unit_of_goal} | {goal} | {met} |"
        )
    return "\n".join(lines)


def _figure(value: float) -> str:
    """Three significant digits; all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine_facts(sizes: Sizes, runs: str) -> str:
    """What the figures depend on, as a Markdown list; ``runs`` says how often each was taken."""
    facts = {
        "processor": _processor(),
        "cores, threads used": f"{os.cpu_count()}, {torch.get_num_threads()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "model": f"random weights, {sizes.layers} layers, d_model {sizes.hidden}, d_inner "
        f"{sizes.d_inner}, d_state {sizes.d_state}, {sizes.length} tokens, float32",
        "runs": runs,
        "date": datetime.date.today().isoformat(),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; ``--save`` writes it with the machine's facts."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    configure_logging(args.debug)
    sizes = SMOKE if args.smoke else Sizes(length=args.length, layers=args.layers)
    if args.measure:
        print(measured_bytes(args.measure, sizes))
        return 0
    names = [validate_choice("rows", name, ROWS) for name in args.rows.split(",")]
    runs = validate_int("runs", args.runs, 1)
    if args.smoke and args.save:
        raise ValueError("--smoke and --save are both given: tiny sizes are no result to keep")
    bench, rows = Bench(sizes, runs, args.include_hopeless), []
    for name in names:
        logger.info("measuring %s", name)
        rows += ROWS[name](bench)
    taken = f"median of {runs} (of {5 * runs} for one layer); row by row once"
    text = f"{machine_facts(sizes, taken)}\n\n{table(rows)}\n"
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__, "a table: a row a kind of work")
    parser.add_argument(
        "--rows", default=",".join(ROWS), metavar="NAME,...", help=f"of {', '.join(ROWS)}"
    )
    parser.add_argument("--length", type=_at_least(16), default=512, help="tokens (default: 512)")
    parser.add_argument("--layers", type=_at_least(1), default=24, help="default: 24")
    parser.add_argument("--runs", type=_at_least(1), default=3, help="of each way (default: 3)")
    parser.add_argument(
        "--include-hopeless", action="store_true", help="run the stock backward at full length too"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does every row run?")
    parser.add_argument("--measure", choices=MEASURED, help="print one way's peak memory in bytes")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least this."""

    def convert(value: str) -> int:
        number = int(value)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{value} is less than {minimum}")
        return number

    return convert


if __name__ == "__main__":
    raise SystemExit(main())
