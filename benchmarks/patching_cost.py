"""What exact patching costs at mamba-130m's shape: every layer and token of one pair, by site.

Random weights: the cost does not depend on them. Beside each site stand the stock forward passes of
the same text that its time is worth, and what as many whole forward passes as there are layers and
tokens would take, which is how patching is done where the layers before the patch are run again.

How to run (some minutes a site on two cores)::

    python benchmarks/patching_cost.py --sites residual,state --save
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from causal_interventions.patching.exact import PairRuns, pair_runs, patched_values
from causal_interventions.patching.pairs import text_pairs
from causal_interventions.patching.sites import check_sites
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import num_layers
from result_views.report.markdown import markdown_table
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.memory_usage import MemoryTracker

SHAPE: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}

RESULTS = RESULTS_FOLDER / "patching_cost.md"


def model_of_shape(shape: dict[str, Any]) -> Any:
    """A Mamba of this shape with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MambaForCausalLM(MambaConfig(**shape)).eval()


def one_pair(model: Any, length: int) -> PairRuns:
    """Runs of a text and its twin that differ at their first token, so that every token counts."""
    ids = torch.arange(1, 1 + length) % model.config.vocab_size
    twin = ids.clone()
    twin[0] = 0
    return pair_runs(model, text_pairs(model, None, ids, twin, (1, 2)), "logit_difference", 1)


def seconds(work: Callable[[], Any]) -> float:
    """Of one run."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


@torch.no_grad()
def cost_rows(model: Any, length: int, sites: Sequence[str]) -> list[list[str]]:
    """One row a site: seconds, stock forwards worth, and against whole forwards."""
    runs = one_pair(model, length)
    ids = runs.clean.input_ids

    def forward() -> Any:
        return model(input_ids=ids, use_cache=False)

    def fast_forward() -> Any:
        with fast_scan(model):
            return forward()

    places = num_layers(model) * length
    stock, fast = (min(seconds(run) for _ in range(3)) for run in (forward, fast_forward))
    rows = [["stock forward", f"{stock:.3f}", "1", ""], ["forward with the suite's scan",
            f"{fast:.3f}", f"{fast / stock:.2f}", ""]]  # fmt: skip
    for site in sites:
        taken = seconds(lambda site=site: patched_values(model, runs, site))
        rows.append([f"{site}: {places} patches", f"{taken:.1f}", f"{taken / stock:.0f}",
                     f"{places * stock / taken:.1f}"])  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Time the sites; print the table."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _options(argv)
    sites = check_sites(args.sites.split(","), has_neurons=False)
    shape = SHAPE if args.layers is None else {**SHAPE, "num_hidden_layers": args.layers}
    model = model_of_shape(shape | ({"hidden_size": args.width} if args.width else {}))
    memory = MemoryTracker()
    head = ["work", "seconds", "stock forwards", "times as fast as a whole stock forward a patch"]
    table = markdown_table(head, cost_rows(model, args.tokens, sites))
    lines = [
        f"{num_layers(model)} layers, width {model.config.hidden_size}, {args.tokens} tokens, "
        f"float32, {torch.get_num_threads()} threads.", "", *table,
        f"Peak memory: {memory.stats()['peak_memory_usage']} GB ({memory.stats()['source']}).",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.save:
        keep(RESULTS, "\n".join(lines))
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, "seconds by site, beside forward passes")
    parser.add_argument("--sites", default="residual,mixer,state,window", help="by commas")
    parser.add_argument("--tokens", type=int, default=64, help="length of the text")
    parser.add_argument("--layers", type=int, help="fewer, to try it out (default: 24)")
    parser.add_argument("--width", type=int, help="narrower, to try it out (default: 768)")
    args = parser.parse_args(argv)
    validate_int("tokens", args.tokens, 2)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
