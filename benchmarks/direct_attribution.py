"""Does direct attribution name the token that a prediction was copied from, and the total effect?

A passage of a text is read, then other tokens, then the passage again. What predicts the next token
of the second reading stands at one place of the first: the token that followed there. Three
questions, each of the trained model and, but for the last, of untrained twins:

1. the share of the next token's logit, among sources further back than the convolution reaches,
   that comes from that token, beside the places around it;
2. whether it stands before all other sources (AUC), by direct attribution, by implicit attention
   and by MambaLRP;
3. how far what a source gave directly through a layer foretells what the logit loses without it
   (R2, Spearman), by layer.

``--cost`` instead measures the seconds of one attribution beside a stock forward pass.

How to run (any plain text; the demo model is the default)::

    python benchmarks/direct_attribution.py treasure_island.txt --save
"""

from __future__ import annotations

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

import numpy as np
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from analysis_pipelines.predictions import prediction_maps
from benchmarks.commands import RESULTS_FOLDER, add_book_options, benchmark_parser, keep
from benchmarks.passages import GAP, LAG, PASSAGE, REACH, SKIPPED, repeated_rows, spread_rows
from causal_interventions.explained import explain
from causal_interventions.logit_parts import LogitParts, logit_parts
from causal_interventions.targets import resolve_target
from causal_interventions.total_effects import Agreement, agreement, source_effects
from input_attribution import attribute
from mamba_mixers.sites import find_mixers
from mamba_mixers.stream_writes import record_writes
from mamba_mixers.untrained_twins import untrained_twin
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.texts import read_book
from token_statistics.intervals import MeanInterval, mean_interval

RESULTS = RESULTS_FOLDER / "direct_attribution.md"

AROUND = 16
"""Places on either side of the true one that its share is compared with."""

RANKED = {"direct attribution": None, "implicit attention": "hidden_attention",
          "MambaLRP": "mamba_lrp"}  # fmt: skip
"""Ways to rank sources, with their method in ``input_attribution``."""

TEXT_LENGTH = 64
"""Tokens of a text on which sources are knocked out."""


class Copied(NamedTuple):
    """What the second readings of passages say, each with its interval over passages."""

    share: MeanInterval
    """of |value| over all sources more than REACH tokens back, at the true source"""
    gain: MeanInterval
    """that share over its mean at the places around"""
    of_logit: MeanInterval
    """signed value of the true source over the logit"""
    auc: dict[str, MeanInterval]
    """by way of ranking"""


def copied(model: PreTrainedModel, rows: Tensor, queries: Sequence[int]) -> Copied:
    """Shares over all queries of the second reading, and AUC at some of them."""
    shares, gains, of_logit = [], [], []
    aucs: dict[str, list[float]] = {name: [] for name in RANKED}
    for row in progress(rows, desc="passages"):
        following = torch.cat([row[1:], row[:1]])
        found = prediction_maps(model, row[None], following)
        places = range(PASSAGE + GAP + SKIPPED - 1, len(row) - 1)
        of_query = [_shares(found.sources[t], t) for t in places]
        shares.append(np.mean([at for at, _ in of_query]))
        gains.append(shares[-1] / np.mean([around for _, around in of_query]))
        true = torch.tensor([float(found.sources[t, t - LAG]) for t in places])
        of_logit.append(float(true.sum() / found.logits[list(places)].sum()))
        for name, ranks in _rankings(model, row, queries, found.sources).items():
            aucs[name].append(float(np.mean(ranks)))
    intervals = {name: mean_interval(x, least=0.0, largest=1.0) for name, x in aucs.items()}
    shared = mean_interval(shares, least=0.0, largest=1.0)
    return Copied(shared, mean_interval(gains, least=0.0), mean_interval(of_logit), intervals)


def _shares(values: Tensor, t: int) -> tuple[float, float]:
    """Share of |value| at the true source, and its mean over the places around."""
    far = values[: t - REACH + 1].abs()
    far = far / far.sum()
    near = [t - LAG + k for k in range(-AROUND, AROUND + 1) if k and t - LAG + k >= 0]
    return float(far[t - LAG]), float(far[near].mean())


def _rankings(
    model: PreTrainedModel, row: Tensor, queries: Sequence[int], sources: Tensor
) -> dict[str, list[float]]:
    """By way of ranking, for each query the AUC of the true source against all others."""
    found: dict[str, list[float]] = {name: [] for name in RANKED}
    for t in queries:
        target = resolve_target("logit", token=int(row[t + 1]))
        explained = explain(model, row[: t + 1], target)
        for name, method in RANKED.items():
            scores = sources[t, : t + 1] if method is None else attribute(explained, method).scores
            found[name].append(auc(scores, t - LAG))
    return found


def auc(scores: Tensor, true: int) -> float:
    """Share of the other entries that lie below the true one; half of those that equal it."""
    others = torch.cat([scores[:true], scores[true + 1 :]])
    below, equal = (others < scores[true]).sum(), (others == scores[true]).sum()
    return float(below + equal / 2) / len(others)


def foretold(model: PreTrainedModel, rows: Tensor) -> dict[int | str, Agreement]:
    """By layer and for all together: direct effects of sources against total ones."""
    direct: dict[int, list[Tensor]] = {layer: [] for layer in find_mixers(model)}
    total: dict[int, list[Tensor]] = {layer: [] for layer in find_mixers(model)}
    for row in progress(rows, desc="texts"):
        ids, parts = row[None], logit_parts(model, row[None])
        writes = record_writes(model, ids)
        for layer in direct:
            direct[layer].append(_by_source(parts, layer, len(row)))
            total[layer].append(source_effects(model, ids, writes, layer, parts.token))
    joined = {layer: (torch.cat(direct[layer]), torch.cat(total[layer])) for layer in direct}
    everything = [torch.cat(column) for column in zip(*joined.values(), strict=True)]
    by_layer = {layer: agreement(*columns) for layer, columns in joined.items()}
    return {**by_layer, "all": agreement(*everything)}


def _by_source(parts: LogitParts, layer: int, length: int) -> Tensor:
    values = torch.zeros(length, dtype=torch.float64)
    for part in parts.parts:
        if part.layer == layer and isinstance(part.source, int):
            values[part.source] += part.value
    return values


def cost(model: PreTrainedModel, length: int, repeats: int = 5) -> tuple[float, float]:
    """Seconds of one attribution, and of a stock forward pass: the least of some repeats."""
    ids = torch.arange(length)[None] % model.config.vocab_size

    @torch.no_grad()
    def stock() -> Any:
        return model(input_ids=ids, use_cache=False)

    return _seconds(lambda: logit_parts(model, ids), repeats), _seconds(stock, repeats)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def like_mamba_130m() -> PreTrainedModel:
    """A model of mamba-130m's shape with random weights."""
    return MambaForCausalLM(MambaConfig(hidden_size=768, num_hidden_layers=24)).eval()


def copied_table(found: dict[str, Copied]) -> list[str]:
    """A row a model: shares, gain and AUC, with 95 % intervals over passages."""
    heads = ["model", "share", "over around", "of the logit", *(f"AUC, {name}" for name in RANKED)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in found.items():
        cells = [row.share.text(".2%"), f"x{row.gain.text('.2f')}", row.of_logit.text(".2%")]
        cells += [row.auc[way].text(".3f") for way in RANKED]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def foretold_table(found: dict[int | str, Agreement]) -> list[str]:
    """A row a layer: Spearman and R2 of direct against total effects of sources."""
    lines = ["| layer | Spearman | R2 | sources |", "|---|---|---|---|"]
    for layer, row in found.items():
        cells = ["" if x is None else f"{x:.3f}" for x in (row.spearman, row.r2)]
        lines.append(f"| {layer} | {cells[0]} | {cells[1]} | {row.count} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "two tables: a row a model, a row a layer")
    add_book_options(parser)
    parser.add_argument("--passages", type=int, default=16, help="read twice (default: 16)")
    parser.add_argument("--texts", type=int, default=8, help="whose sources are taken away")
    parser.add_argument("--queries", type=int, default=4, help="of a passage, for the AUC")
    parser.add_argument("--twins", type=int, default=3, help="untrained ones (default: 3)")
    parser.add_argument("--cost", action="store_true", help="measure seconds instead")
    args = parser.parse_args(argv)
    for name in ("passages", "texts", "queries"):
        validate_int(name, getattr(args, name), 2)
    model = load_model(args.model)
    if args.cost:
        print("\n".join(_cost_lines(model)))
        return 0
    ids = load_tokenizer(args.model)(read_book(args.text), verbose=False)["input_ids"]
    rows = repeated_rows(ids, args.passages)
    places = np.linspace(PASSAGE + GAP + SKIPPED, rows.shape[1] - 2, args.queries).astype(int)
    models = {"trained": model} | {
        f"untrained {seed}": untrained_twin(model, seed) for seed in range(args.twins)
    }
    found = {name: copied(each, rows, places.tolist()) for name, each in models.items()}
    agreed = foretold(model, spread_rows(ids, args.texts, TEXT_LENGTH))
    report = "\n".join([_title(args), "", *copied_table(found), "", _second_title(args), "",
                        *foretold_table(agreed)])  # fmt: skip
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


def _title(args: Any) -> str:
    return (
        f"Second readings of {args.passages} passages of {PASSAGE} tokens, {GAP} tokens after the "
        f"first. Share of |value| of the true next token's logit at the token {LAG} back that it "
        f"is a copy of, among sources more than {REACH - 1} back; over around: over the mean of "
        f"the {2 * AROUND} places around; of the logit: the signed sums. AUC: the true source "
        f"against all other sources, {args.queries} queries a passage. 95 % intervals over "
        "passages. Published AUC on a copying task, other models: LaTIM 98, hidden attention 84, "
        "MambaLRP 40."
    )


def _second_title(args: Any) -> str:
    return (
        f"What each source gave the likeliest token's logit through a layer's mixer, directly, "
        f"against what the logit loses without it (later layers reading the changed stream); the "
        f"last token of {args.texts} texts of {TEXT_LENGTH} tokens."
    )


def _cost_lines(model: PreTrainedModel, length: int = 512) -> list[str]:
    lines = []
    for name, each in (("the given model", model), ("mamba-130m's shape", like_mamba_130m())):
        seconds, stock = cost(each, length)
        lines.append(
            f"{name}, {length} tokens: attribution {seconds:.3f} s, stock forward {stock:.3f} s, "
            f"{seconds / stock:.2f} of it"
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
