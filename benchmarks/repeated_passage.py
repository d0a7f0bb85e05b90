"""Does implicit attention find a passage that is read a second time? Trained model and its twin.

A passage of a text is read, then other tokens, then the passage again. What a token of the second
reading needs is what followed its first occurrence, one token less than the distance of the two
readings back; the convolution of the mixers spreads that over the last four tokens. For each layer:
the share of attention that second-reading queries pay to that window of lags, beside the mean share
of the windows of equal width around it; the same in the twin, the same architecture with fresh
weights.

How to run (any plain text; the demo model is the default)::

    python benchmarks/repeated_passage.py treasure_island.txt --save
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.commands import RESULTS_FOLDER, add_book_options, benchmark_parser, keep
from benchmarks.passages import AROUND, GAP, LAG, PASSAGE, REACH, SKIPPED, repeated_rows
from causal_interventions.neuron_effects import target_gradients
from causal_interventions.targets import Target, resolve_target
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import untrained_twin
from ssm_component_extractor import capture
from ssm_measures.attention_maps import contribution_map, mean_map
from ssm_measures.attention_measures import row_shares
from ssm_measures.components import Capture
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.texts import read_book
from token_statistics.intervals import MeanInterval, mean_interval

RESULTS = RESULTS_FOLDER / "repeated_passage.md"


class LagShare(NamedTuple):
    """Share of attention on the true lag in one layer, mean over passages."""

    share: float
    """on the window of lags, in [0, 1]"""
    around: float
    """mean over the windows beside it"""
    gain: MeanInterval
    """share / around, with its 95 % interval over passages"""


def lag_shares(absolute_map: Tensor) -> tuple[float, float]:
    """Share on the true lag's window and mean share of its neighbours, of one (l, l) map."""
    rows = row_shares(absolute_map)[PASSAGE + GAP + SKIPPED - 1 : -1]
    queries = torch.arange(PASSAGE + GAP + SKIPPED - 1, absolute_map.shape[0] - 1)

    def share(first_lag: int) -> float:
        lags = torch.arange(first_lag - REACH + 1, first_lag + 1)
        sources = queries[:, None] - lags
        return float(rows.gather(1, sources.clamp_min(0)).sum(1).mean())

    return share(LAG), float(np.mean([share(LAG + offset) for offset in AROUND]))


def measured(model: PreTrainedModel, rows: Tensor) -> dict[str, dict[int, LagShare]]:
    """Shares by kind of map and layer: mean |alpha|, and |contribution| to the next tokens."""
    layers = model_layers(model, "all")
    target = resolve_target("loss")
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in progress(rows, desc="passages"):
        captured = capture(model, row[None], None, layers)
        for kind, layer, absolute in _maps(model, captured, target):
            by_layer = found.setdefault(kind, {})
            by_layer.setdefault(layer, []).append(lag_shares(absolute))
    return {
        kind: {layer: _summary(np.array(pairs)) for layer, pairs in by_layer.items()}
        for kind, by_layer in found.items()
    }


def _maps(
    model: PreTrainedModel, captured: Capture, target: Target
) -> Iterator[tuple[str, int, Tensor]]:
    gradients = target_gradients(model, captured, captured.layers, target)
    for layer, parts in captured.components.items():
        yield "attention", layer, mean_map(parts, absolute=True)[0]
        yield "contribution", layer, contribution_map(parts, gradients.grad_y[layer])[0].abs()


def _summary(pairs: np.ndarray) -> LagShare:
    """``pairs`` (passages, 2): share and around."""
    gains = pairs[:, 0] / pairs[:, 1]
    share, around = pairs.mean(0).tolist()
    return LagShare(share, around, mean_interval(gains, least=0.0))


def table(results: dict[str, dict[str, dict[int, LagShare]]]) -> str:
    """Markdown: a row a layer; for each model and kind of map the share, and its gain."""
    columns = [(name, kind) for name, kinds in results.items() for kind in kinds]
    lines = [
        "| layer | " + " | ".join(f"{name}: {kind}" for name, kind in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for layer in results[columns[0][0]][columns[0][1]]:
        cells = (_cell(results[name][kind][layer]) for name, kind in columns)
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(share: LagShare) -> str:
    return f"{share.share:.2%}, x{share.gain.text('.2f')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a layer")
    add_book_options(parser)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the twin's weights (default: 0)")
    args = parser.parse_args(argv)
    count = validate_int("passages", args.passages, 2)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    ids = tokenizer(read_book(args.text), verbose=False)["input_ids"]
    rows = repeated_rows(ids, count)
    results = {
        "trained": measured(model, rows),
        "untrained": measured(untrained_twin(model, args.seed), rows),
    }
    title = (
        f"Share of attention on the {REACH} lags up to {LAG}, of queries in the "
        f"second reading of {count} passages of {PASSAGE} tokens, {GAP} tokens after the first; "
        f"x: against the {len(AROUND)} windows around, with 95 % interval over passages."
    )
    report = f"{title}\n\n{table(results)}\n"
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
