"""What exact patching costs at mamba-130m's shape: every layer and token of one pair, by site.

Random weights: the cost does not depend on them. Beside each site stand the stock forward passes of
the same text that its time is worth, and what as many whole forward passes as there are layers and
tokens would take, which is how patching is done where the layers before the patch are run again.
Where TransformerLens is installed, its residual patching of the same model and pair stands below,
of some places spread over layers and tokens, with how far its values are from ours.

How to run (a minute and a half a site on two cores)::

    python benchmarks/patching_cost.py --sites residual,state --save
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.transformer_lens_patching import (
    is_at_hand,
    measured_memory,
    patched_by_transformer_lens,
    spread_places,
    version,
)
from causal_interventions.patching.exact import PairRuns, pair_runs, patched_values
from causal_interventions.patching.pairs import text_pairs
from causal_interventions.patching.sites import check_sites
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import num_layers
from result_views.report.markdown import markdown_table
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main

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


class Costs(NamedTuple):
    """What was timed, and the values of the patched runs."""

    rows: list[list[str]]
    stock: float
    """seconds of a stock forward pass"""
    values: dict[str, Tensor]
    """by site, (layers, tokens)"""


HEAD = [
    "work", "seconds", "stock forwards", "times as fast as a whole stock forward a patch",
    "GB above the model",
]  # fmt: skip


@torch.no_grad()
def site_costs(model: Any, runs: PairRuns, sites: Sequence[str]) -> Costs:
    """One row a site: seconds, stock forwards worth, against whole forwards, peak memory."""
    ids = runs.clean.input_ids

    def forward() -> Any:
        return model(input_ids=ids, use_cache=False)

    def fast_forward() -> Any:
        with fast_scan(model):
            return forward()

    places = num_layers(model) * ids.shape[1]
    stock, fast = (min(seconds(run) for _ in range(3)) for run in (forward, fast_forward))
    rows = [["stock forward", f"{stock:.3f}", "1", "", ""], ["forward with the suite's scan",
            f"{fast:.3f}", f"{fast / stock:.2f}", "", ""]]  # fmt: skip
    found: dict[str, Tensor] = {}
    for site in sites:

        def patch(site: str = site) -> None:
            found[site] = patched_values(model, runs, site)[0]

        taken, memory = measured_memory(lambda patch=patch: seconds(patch))
        rows.append([f"{site}: {places} patches", f"{taken:.1f}", f"{taken / stock:.0f}",
                     f"{places * stock / taken:.1f}", gigabytes(memory)])  # fmt: skip
    return Costs(rows, stock, found)


def gigabytes(memory: float | None) -> str:
    """For a cell of the table."""
    return "" if memory is None else f"{memory:.2f}"


def beside_transformer_lens(
    model: Any, runs: PairRuns, costs: Costs, count: int
) -> tuple[list[list[str]], str]:
    """Its row, and a sentence on the agreement; no row, and why, where there is nothing beside it.

    It changes the model in place, so that this comes last.
    """
    if not is_at_hand():
        return [], "TransformerLens is not installed here: nothing beside it."
    if "residual" not in costs.values:
        return [], "TransformerLens: beside the site residual alone, which was not asked for."
    ours = costs.values["residual"]
    layers, length = ours.shape
    places = spread_places(layers, length, count)
    theirs = patched_by_transformer_lens(model, runs, places)
    each, count = theirs.seconds / len(places), len(places)
    row = [
        f"TransformerLens {version()}, residual: {count} of {ours.numel()} patches",
        f"{theirs.seconds:.1f}", f"{theirs.seconds / costs.stock:.0f}",
        f"{costs.stock / each:.2f}", gigabytes(theirs.memory),
    ]  # fmt: skip
    same = torch.stack([ours[place] for place in places])
    apart = float((theirs.values - same).abs().max())
    span = abs(float(runs.clean_value - runs.corrupt_value))
    said = (
        f"TransformerLens: {each:.3f} s a patch after {theirs.preparing:.1f} s of wrapping and "
        f"caching, that is {each * ours.numel():.0f} s for all {ours.numel()}. Its values and "
        f"ours at these {count} places differ by at most {apart:.1e}, clean and corrupt runs by "
        f"{span:.3g}."
    )
    return [row], said


def main(argv: Sequence[str] | None = None) -> int:
    """Time the sites; print the table."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _options(argv)
    sites = check_sites(args.sites.split(","), has_neurons=False)
    shape = SHAPE if args.layers is None else {**SHAPE, "num_hidden_layers": args.layers}
    model = model_of_shape(shape | ({"hidden_size": args.width} if args.width else {}))
    runs = one_pair(model, args.tokens)
    costs = site_costs(model, runs, sites)
    rows, said = beside_transformer_lens(model, runs, costs, args.their_patches)
    lines = [
        f"{model.config.num_hidden_layers} layers, width {model.config.hidden_size}, "
        f"{args.tokens} tokens, float32, {torch.get_num_threads()} threads.", "",
        *markdown_table(HEAD, costs.rows + rows), said,
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
    parser.add_argument("--their-patches", type=int, default=20, metavar="N", help="places that "
                        "TransformerLens patches where it is installed (default: 20)")  # fmt: skip
    args = parser.parse_args(argv)
    validate_int("tokens", args.tokens, 2)
    validate_int("their-patches", args.their_patches, 1)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
