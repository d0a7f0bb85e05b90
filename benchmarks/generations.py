"""Mamba-1, Mamba-2 and Mamba-3 of one size and one training: what does each do with its memory?

Models of the same depth and widths, with the demo model's tokenizer, are trained on the same rows
the texts given, several seeds of each; a quarter of the rows read their first half twice. On a text
that none was trained on: the loss, the overview's answers, what a passage and random tokens cost
when they are read again, and half-lives by layer. Intervals are over seeds.

How to run (plain texts; about 20 minutes on one core for three seeds; what is done is kept)::

    python benchmarks/generations.py frankenstein.txt emma.txt --held-out treasure_island.txt \
        --parts my_generations --save
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerBase,
)

from analysis_pipelines.overview import overview
from benchmarks.commands import (
    RESULTS_FOLDER,
    add_model_option,
    add_parts_option,
    benchmark_parser,
    keep,
    kept_part,
)
from demo_model.training_data import check_held_out
from mamba_mixers.mamba3 import Mamba3Config, Mamba3ForCausalLM
from mamba_mixers.running import fast_scan
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.texts import encode_texts, read_book

ROW = 192  # tokens of a training row
ROWS_PER_STEP = 8
PEAK_RATE = 3e-3  # learning rate, after the first tenth of the steps; it then falls to zero
WIDTH, LAYERS, STATES, HEAD = 64, 4, 32, 32
PASSAGE = 192  # tokens of a passage of the held-out text
PASSAGES = 6
AGAIN = 64  # tokens that are read twice in a recall task
RECALLS = 16
RESULTS = RESULTS_FOLDER / "generations.md"

Measures = dict[str, Any]


def _sizes(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "state_size": STATES, "expand": 2, "tie_word_embeddings": True, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _mamba1(vocab_size: int) -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(**_sizes(vocab_size)))


def _mamba2(vocab_size: int) -> Mamba2ForCausalLM:
    heads = 2 * WIDTH // HEAD
    options: dict[str, Any] = {"num_heads": heads, "head_dim": HEAD, "n_groups": 1}
    return Mamba2ForCausalLM(Mamba2Config(**_sizes(vocab_size), **options, chunk_size=64))


def _mamba3(vocab_size: int) -> Mamba3ForCausalLM:
    return Mamba3ForCausalLM(Mamba3Config(**_sizes(vocab_size), head_dim=HEAD))


GENERATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "Mamba-1": _mamba1,
    "Mamba-2": _mamba2,
    "Mamba-3": _mamba3,
}
"""By name, a fresh model of so many tokens."""


def training_row(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ROW tokens from somewhere in the texts; one row in four reads its first half twice."""
    start = rng.integers(0, len(ids) - ROW)
    row = ids[start : start + ROW]
    return np.tile(row[: ROW // 2], 2) if rng.random() < 0.25 else row


def train(model: Any, ids: np.ndarray, steps: int, seed: int) -> None:
    """Train in place on rows that the seed alone chooses: the same for every generation."""
    if len(ids) <= ROW:
        raise ValueError(f"the training texts have {len(ids)} tokens; a row has {ROW}")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.1)
    model.train()
    # The stock Mamba-1 would run a loop over tokens.
    with fast_scan(model) if isinstance(model, MambaForCausalLM) else nullcontext():
        for step in progress(range(steps), desc="training"):
            done = (step + 1) / steps
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * min(10 * done, (1 - done) / 0.9 + 1e-3)
            rows = np.stack([training_row(ids, rng) for _ in range(ROWS_PER_STEP)])
            batch = torch.from_numpy(rows)
            logits = model(input_ids=batch, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].mT, batch[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


@torch.no_grad()
def losses(model: Any, ids: Tensor) -> Tensor:
    """(b, l - 1) -ln p of every token but the first, nats."""
    with fast_scan(model):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")


def saved_by_reading_again(model: Any, parts: Tensor) -> float:
    """Nats a token that the second reading of each part (b, AGAIN) costs less than the first."""
    twice = losses(model, torch.cat([parts, parts], 1))
    return float(twice[:, : AGAIN - 1].mean() - twice[:, AGAIN:].mean())


def measure(model: Any, tokenizer: PreTrainedTokenizerBase, held_out: str) -> Measures:
    """What one trained model does on the held-out text."""
    ids = torch.tensor(tokenizer(held_out, verbose=False)["input_ids"])
    starts = np.linspace(0, len(ids) - PASSAGE, PASSAGES).astype(int)
    passages = torch.stack([ids[start : start + PASSAGE] for start in starts])
    recalled = np.linspace(0, len(ids) - AGAIN, RECALLS).astype(int)
    drawn = torch.Generator().manual_seed(0)
    texts = [str(tokenizer.decode(passage)) for passage in passages]
    encoded = encode_texts(tokenizer, texts, PASSAGE, vocab_size=model.config.vocab_size)
    seen = overview(model, encoded, tokenizer)
    rows = seen["layers"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(losses(model, passages).mean()),
        "passage": saved_by_reading_again(
            model, torch.stack([ids[start : start + AGAIN] for start in recalled])
        ),
        "random": saved_by_reading_again(
            model,
            torch.randint(1, model.config.vocab_size, (RECALLS, AGAIN), generator=drawn),
        ),
        "half_lives": [row["median_half_life"] for row in rows],
        "answers": [answer["sentence"] for answer in seen["answers"]],
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half the width of its 95 % interval (Student's t); inf for one seed."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return float(sample.mean()), float("inf")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(stats.t.ppf(0.975, len(sample) - 1) * error)


def shown(values: Sequence[float]) -> str:
    """Mean and half-width over seeds; the mean alone of one seed."""
    mean, half = interval(values)
    mean = round(mean, 2) + 0.0  # no minus before a zero
    return f"{mean:.2f} ± {half:.2f}" if np.isfinite(half) else f"{mean:.2f}"


def report(found: Mapping[str, Sequence[Measures]], steps: int) -> str:
    """The table and the answers of each generation's first seed."""
    seeds = len(next(iter(found.values())))
    lines = [
        f"{LAYERS} layers, d_model {WIDTH}, {STATES} states; {steps} steps of {ROWS_PER_STEP} rows "
        f"of {ROW} tokens, the same for all; mean over {seeds} seed(s) ± half of its 95 % interval "
        "(Student's t). Loss in nats a token on a text that none was trained on. Read again: nats "
        f"a token that {AGAIN} tokens cost less the second time, of that text and of tokens drawn "
        "at random. Half-lives in tokens, median of a layer's heads at the mean step (Mamba-3: the "
        "mean decay), geometric mean over seeds.",
        "",
        "| | parameters | loss | a passage read again | random tokens read again | half-lives by "
        "layer |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, runs in found.items():
        spans = np.exp(np.log([run["half_lives"] for run in runs]).mean(0))
        low, high = (f(np.array([r["half_lives"] for r in runs]), 0) for f in (np.min, np.max))
        by_layer = [
            f"{m:.3g} ({a:.3g} to {b:.3g})" for m, a, b in zip(spans, low, high, strict=True)
        ]
        columns = [shown([run[key] for run in runs]) for key in ("loss", "passage", "random")]
        cells = [name, f"{runs[0]['parameters']:,}", *columns, ", ".join(by_layer)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "In brackets the smallest and largest of the seeds. Answers, first seed of each:"]
    for name, runs in found.items():
        lines += ["", f"**{name}**", "", *(f"- {answer}" for answer in runs[0]["answers"])]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print the table; with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    steps, seeds = validate_int("steps", args.steps, 1), validate_int("seeds", args.seeds, 1)
    texts, held_out = [read_book(path) for path in args.texts], read_book(args.held_out)
    check_held_out(texts, held_out)
    tokenizer = load_tokenizer(args.model)
    ids = np.array(
        [i for text in texts for i in tokenizer(text, verbose=False)["input_ids"]], dtype=np.int64
    )

    def one(name: str, seed: int) -> Measures:
        torch.manual_seed(seed)
        model = GENERATIONS[name](len(tokenizer))
        train(model, ids, steps, seed)
        return measure(model, tokenizer, held_out)

    found = {
        name: [
            kept_part(args.parts, f"{name}_{steps}_{seed}", lambda n=name, s=seed: one(n, s))
            for seed in range(seeds)
        ]
        for name in GENERATIONS
    }
    text = report(found, steps)
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__, "a table and each generation's answers")
    parser.add_argument("texts", nargs="+", help="plain text files to train on")
    parser.add_argument("--held-out", required=True, help="a plain text to measure on")
    add_model_option(parser)
    add_parts_option(parser)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
