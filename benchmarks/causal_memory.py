"""What a model's predictions owe to the first reading of a passage that is read again.

Rows of a text: a passage, other tokens, the passage again. Interventions in the state, beside the
same in an untrained twin:

    knockout   single sources of the first reading are hidden from all later tokens. What a token of
               the second reading needs is what followed its first occurrence, one token less than
               the distance of the readings back (the lag; the convolution of the mixers spreads it
               over four): KL there, beside the mean of the windows of lags of equal width around.
    reset      all state is erased right after the first reading, in every layer. Cost: change of
               the loss in the second reading. Memory is worth something in any text: in control
               rows, that begin with an unrelated passage and are the same from there on, the same
               reset costs that. The rest is recall, and is compared with the benefit, the loss of
               the second reading in the control rows minus that in the repeated ones: the same
               tokens at the same places, read once or twice.

On plain text: knockouts in each layer by the lag, beside the memory kernel, the mean of implicit
attention by the lag, with their rank agreement.

How to run (any plain text; the demo model is the default)::

    python benchmarks/causal_memory.py treasure_island.txt --save
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
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
from transformers import PreTrainedModel

from benchmarks.commands import RESULTS_FOLDER, add_book_options, benchmark_parser, keep
from benchmarks.passages import (
    AROUND,
    GAP,
    LAG,
    PASSAGE,
    REACH,
    SKIPPED,
    repeated_rows,
    spread_rows,
)
from causal_interventions.effects import intervention_effects
from causal_interventions.interventions import reset_state
from intervention_study import LayerLagMap, causal_memory_curve, layer_lag_map
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import untrained_twin
from ssm_component_extractor import capture
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.texts import read_book
from token_statistics.description import FloatArray
from token_statistics.intervals import MeanInterval, mean_interval

SECOND = slice(PASSAGE + GAP + SKIPPED - 1, 2 * PASSAGE + GAP - 1)  # queries of the second reading
MIN_PEAK_LAG = 16  # shorter lags are what any text needs, and no recall
PLAIN_LAG = 64  # largest lag on plain text
PLAIN_LENGTH = 256  # tokens of a plain text
RESULTS = RESULTS_FOLDER / "causal_memory.md"


class LagEffect(NamedTuple):
    """Knockouts of single sources of the first reading, at the lag of the second."""

    kl: MeanInterval
    """nats, mean over the window of lags"""
    gain: MeanInterval | None
    """over the mean of the windows around; None where that is 0"""
    peak: int
    """lag of the largest mean KL, from MIN_PEAK_LAG on"""


class ResetCost(NamedTuple):
    """What erasing the state after the first reading costs; nats a token, means over rows."""

    benefit: MeanInterval
    """loss of the second reading after an unrelated passage minus that after the first reading"""
    cost: MeanInterval
    """change of the loss in the second reading"""
    unrelated: MeanInterval
    """the same in the rows that begin with an unrelated passage"""
    recall: MeanInterval
    """cost minus unrelated"""
    share: float | None
    """recall over benefit; None where there is no benefit (its interval reaches 0)"""


def sources_of(count: int) -> list[int]:
    """Sources spread over the first reading, whose queries in the second count."""
    return np.unique(np.linspace(SKIPPED, PASSAGE - 1, count).round().astype(int)).tolist()


def knockout_curves(model: PreTrainedModel, rows: Tensor, num_sources: int) -> dict[str, Tensor]:
    """By layer, and "together": (rows, lags) mean KL over sources, every lag of a row."""
    layers, sources = model_layers(model, "all"), sources_of(num_sources)
    found: dict[str, list[Tensor]] = {}
    for row in progress(rows, desc="knockouts"):
        captured = capture(model, row[None], None, layers)
        for name, chosen in [*((str(layer), [layer]) for layer in layers), ("together", layers)]:
            curve = causal_memory_curve(
                model, captured, chosen, sources, len(row) - 1, kind="knockout"
            )
            found.setdefault(name, []).append(curve.mean_kl)
    return {name: torch.stack(curves) for name, curves in found.items()}


def lag_effect(curves: Tensor) -> LagEffect:
    """The effect at the true lag of curves (rows, lags)."""
    at_lag = _window(curves, LAG)
    around = np.mean([_window(curves, LAG + offset) for offset in AROUND], axis=0)
    peak = MIN_PEAK_LAG + int(curves[:, MIN_PEAK_LAG:].nanmean(0).nan_to_num(nan=-1.0).argmax())
    gain = estimate(at_lag / around, 0.0) if around.all() else None
    return LagEffect(estimate(at_lag, 0.0), gain, peak)


def _window(curves: Tensor, last: int) -> FloatArray:
    """(rows,) mean over the lags up to ``last`` that the convolution spreads one over."""
    return curves[:, last - REACH + 1 : last + 1].nanmean(1).double().numpy()


def unrelated_rows(rows: Tensor) -> Tensor:
    """The rows with the passage of the next row, the first after the last, in place of the first
    reading: what is read once there is read twice in ``rows``."""
    return torch.cat([rows.roll(-1, 0)[:, :PASSAGE], rows[:, PASSAGE:]], dim=1)


def reset_cost(model: PreTrainedModel, rows: Tensor) -> ResetCost:
    """Cost of a reset after the first reading, in repeated rows and in their control rows."""
    layers = model_layers(model, "all")
    edits = reset_state(PASSAGE, layers)
    costs: dict[str, list[float]] = {"repeated": [], "unrelated": []}
    benefits = []
    for row, other in progress(list(zip(rows, unrelated_rows(rows), strict=True)), desc="resets"):
        for name, ids in (("repeated", row), ("unrelated", other)):
            captured = capture(model, ids[None], None, layers[:1])
            change = intervention_effects(model, captured, edits).loss_change[0]
            costs[name].append(float(change[SECOND].mean()))
        benefits.append(float((_losses(model, other) - _losses(model, row))[SECOND].mean()))
    cost, plain, benefit = (np.array(x) for x in (costs["repeated"], costs["unrelated"], benefits))
    gained = estimate(benefit)
    share = float((cost - plain).mean() / benefit.mean()) if (gained.low or 0) > 0 else None
    return ResetCost(gained, estimate(cost), estimate(plain), estimate(cost - plain), share)


@torch.no_grad()
def _losses(model: PreTrainedModel, row: Tensor) -> Tensor:
    log_p = model(row[None, :-1], use_cache=False).logits[0].double().log_softmax(-1)
    return -log_p.gather(1, row[1:, None])[:, 0]


def plain_map(model: PreTrainedModel, ids: Sequence[int], num_texts: int) -> LayerLagMap:
    """Knockouts by layer and lag on plain text, 64 positions in all where the text allows."""
    layers = model_layers(model, "all")
    texts = spread_rows(ids, num_texts, min(PLAIN_LENGTH, len(ids)))
    captures = [capture(model, text[None], None, layers) for text in texts]
    return layer_lag_map(
        model, captures, layers, PLAIN_LAG, kind="knockout", num_positions=64 // num_texts
    )


def estimate(values: Iterable[float] | FloatArray, least: float = -np.inf) -> MeanInterval:
    """Mean and 95 % interval over rows, of what is ``least`` or more."""
    return mean_interval(list(values), least=least)


def lag_table(effects: Mapping[str, Mapping[str, LagEffect]]) -> list[str]:
    """A row a layer: KL at the lag, against the windows around, and where the peak is."""
    heads = [f"{name}: {what}" for name in effects for what in ("KL (nats)", "x around", "peak")]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for layer in next(iter(effects.values())):
        cells = [
            cell
            for by_layer in effects.values()
            for effect in (by_layer[layer],)
            for cell in (
                effect.kl.text(),
                effect.gain.text() if effect.gain else "0 around",
                str(effect.peak),
            )
        ]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return lines


def reset_table(costs: Mapping[str, ResetCost]) -> list[str]:
    """A row a model."""
    lines = [
        "| model | benefit | cost of the reset | cost after an unrelated passage | recall lost | "
        "of benefit |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        share = "no benefit" if cost.share is None else f"{cost.share:.0%}"
        cells = [interval.text() for interval in cost[:4]]
        lines.append(f"| {name} | {' | '.join(cells)} | {share} |")
    return lines


def agreement_table(maps: Mapping[str, LayerLagMap]) -> list[str]:
    """A row a layer: mean KL of the trained model by bin of lags, and agreements with kernels."""
    trained = next(iter(maps.values()))
    bins = [f"lag {b.first_lag} to {b.last_lag}" for b in trained.together.bins()]
    heads = [*bins, *(f"{name}: agreement with the kernel" for name in maps)]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for layer, curve in trained.by_layer.items():
        cells = [f"{b.kl:.2g}" for b in curve.bins()]
        cells += [_agreement(found.kernel_agreement[layer]) for found in maps.values()]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return lines


def _agreement(entry: Mapping[str, Any]) -> str:
    if entry["spearman"] is None:
        return entry["reason"]
    if entry["low"] is None:
        return f"{entry['spearman']:.2f}"
    return f"{entry['spearman']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def report(
    models: Mapping[str, PreTrainedModel], ids: Sequence[int], args: argparse.Namespace
) -> str:
    """All three measurements on every model, as Markdown."""
    count = args.passages
    rows = repeated_rows(ids, count)
    curves = {name: knockout_curves(model, rows, args.sources) for name, model in models.items()}
    effects = {
        name: {layer: lag_effect(values) for layer, values in by_layer.items()}
        for name, by_layer in curves.items()
    }
    costs = {name: reset_cost(model, rows) for name, model in models.items()}
    maps = {name: plain_map(model, ids, args.texts) for name, model in models.items()}
    lines = [
        f"Passages of {PASSAGE} tokens read again after {GAP} other tokens, {count} of them; "
        "intervals are 95 %, by resampling passages.",
        "",
        f"Knockouts of {len(sources_of(args.sources))} single sources of the first reading: KL on "
        f"the lags {LAG - REACH + 1} to {LAG}, against the {len(AROUND)} windows around, and "
        f"the lag of the largest mean KL (from {MIN_PEAK_LAG} on).",
        "",
        *lag_table(effects),
        "",
        "Reset of the state in every layer right after the first reading; nats a token of the "
        "second reading; benefit and control are of the same tokens after an unrelated passage.",
        "",
        *reset_table(costs),
        "",
        f"Plain text, {args.texts} texts of {PLAIN_LENGTH} tokens: mean KL (nats) of hiding one "
        "source in one layer, by lag, in the trained model, and Spearman over the lags with the "
        "layer's memory kernel, mean over texts with its 95 % interval.",
        "",
        *agreement_table(maps),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "three tables: knockouts, resets, plain text")
    add_book_options(parser)
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--sources", type=int, default=4, help="hidden in each passage, one by one")
    parser.add_argument("--texts", type=int, default=8, help="plain texts (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the twin's weights (default: 0)")
    args = parser.parse_args(argv)
    for name, least in (("passages", 2), ("sources", 1), ("texts", 1)):
        validate_int(name, getattr(args, name), least)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    ids = tokenizer(read_book(args.text), verbose=False)["input_ids"]
    models = {"trained": model, "untrained": untrained_twin(model, args.seed)}
    text = report(models, ids, args)
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
