"""Correlations of all neighbouring layers over a corpus, beside numpy.corrcoef a pair.

Made-up activations of mamba-130m's shape: what all layers share plus something of each one's own,
drawn batch by batch from a seed, so that neither way keeps the tokens for the other. Ours: one pass
over the corpus with `token_statistics.streamed_correlations`, which gives r of every pair of
channels, nulls by time-shifts, effective sample sizes, false-discovery rate, lags and CKA. The
other way: all tokens of two layers at hand, numpy.corrcoef of them, for each pair: r alone. Each
way runs in a process of its own, and its peak memory is the most that process held above its
imports; making the activations is not timed.

How to run (on a machine that does nothing else)::

    python benchmarks/layer_correlations.py --save
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from torch import Tensor

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from suite_plumbing.arguments import validate_choice, validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.memory_usage import MemoryTracker
from token_statistics.streamed_correlations import StreamedCorrelations

RESULTS = RESULTS_FOLDER / "layer_correlations.md"
BATCH = 2000  # tokens of a batch
SEGMENT = 500  # tokens of a text


class Sizes(NamedTuple):
    """How much is correlated."""

    layers: int
    d_model: int
    tokens: int


def batches(sizes: Sizes, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """By layer (BATCH, d_model), batch by batch; the same whichever layers are asked for."""
    for start in range(0, sizes.tokens, BATCH):
        shape = min(BATCH, sizes.tokens - start), sizes.d_model

        def drawn(number: int, shape: tuple[int, int] = shape, start: int = start) -> Tensor:
            generator = torch.Generator().manual_seed(1000 * start + number)
            return torch.randn(shape, generator=generator)

        shared = drawn(999)
        yield {layer: shared + drawn(layer) for layer in layers}


def streamed(sizes: Sizes) -> dict[str, Any]:
    """Our way over the whole corpus: seconds, and mean |r| of every pair."""
    layers = list(range(sizes.layers))
    sums = StreamedCorrelations(list(itertools.pairwise(layers)))
    seconds = 0.0
    for batch in batches(sizes, layers):
        started = time.perf_counter()
        count = len(batch[layers[0]])
        lengths = [min(SEGMENT, count - i) for i in range(0, count, SEGMENT)]
        sums.update(batch, lengths)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    found = sums.results()
    seconds += time.perf_counter() - started
    return {
        "seconds": seconds,
        "mean_abs": [result.values["mean_abs"] for result in found.values()],
    }


def with_corrcoef(sizes: Sizes) -> dict[str, Any]:
    """The other way: numpy.corrcoef of two layers at a time, all tokens at hand."""
    seconds, means = 0.0, []
    for pair in itertools.pairwise(range(sizes.layers)):
        parts = list(batches(sizes, pair))
        x, y = (np.concatenate([part[layer].numpy() for part in parts]) for layer in pair)
        del parts
        started = time.perf_counter()
        r = np.corrcoef(x, y, rowvar=False)[: sizes.d_model, sizes.d_model :]
        means.append(float(np.abs(r).mean()))
        seconds += time.perf_counter() - started
    return {"seconds": seconds, "mean_abs": means}


WAYS = {"streamed": streamed, "corrcoef": with_corrcoef}


def run_way(name: str, sizes: Sizes) -> dict[str, Any]:
    """Run one way in a process of its own: its results with ``peak_gb``, above the imports."""
    command = [sys.executable, __file__, "--way", name, *(str(size) for size in sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the {name} way ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(sizes: Sizes, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Markdown of both ways."""
    apart = np.abs(np.subtract(ours["mean_abs"], theirs["mean_abs"])).max()
    ratio = theirs["seconds"] / ours["seconds"]
    return "\n".join(
        [
            f"{sizes.layers} layers of d_model {sizes.d_model}, {sizes.layers - 1} neighbouring "
            f"pairs, {sizes.tokens:,} tokens in texts of {SEGMENT}; {torch.get_num_threads()} "
            f"thread(s). Mean |r| of the two ways differs by {apart:.1e} at most.",
            "",
            "| way | seconds | peak memory | gives |",
            "|---|---|---|---|",
            f"| one pass over the corpus | {ours['seconds']:.0f} | {ours['peak_gb']:.2f} GB | r of "
            "every pair of channels, 39 time-shifts, 17 lags, effective samples, false-discovery "
            "rate, debiased CKA |",
            f"| numpy.corrcoef a pair | {theirs['seconds']:.0f} ({ratio:.2f} x) | "
            f"{theirs['peak_gb']:.2f} GB | r of every pair of channels |",
            "",
            "Peak memory is above what the process holds after its imports. Making the activations "
            "is not in the seconds.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a way")
    parser.add_argument("sizes", nargs="*", type=int, help="layers, d_model and tokens")
    parser.add_argument("--way", help="run this way alone and print JSON: streamed or corrcoef")
    args = parser.parse_args(argv)
    if len(args.sizes) not in (0, 3):
        raise ValueError(f"sizes is {args.sizes}; give layers, d_model and tokens, or none of them")
    sizes = Sizes(*(validate_int("sizes", size, 2) for size in args.sizes or (24, 768, 100_000)))
    if args.way:
        way = WAYS[validate_choice("way", args.way, WAYS)]
        tracker = MemoryTracker(torch.device("cpu"))
        found = way(sizes)
        memory = tracker.stats()
        peak = memory["peak_memory_usage"] - memory["baseline_memory_usage"]
        print(json.dumps({**found, "peak_gb": peak}))
        return 0
    text = report(sizes, *(run_way(name, sizes) for name in WAYS))
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
