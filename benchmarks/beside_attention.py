"""The demo model beside a GPT-NeoX trained here: is their attention alike, and are their layers?

A small GPT-NeoX with the demo model's tokenizer is trained on the texts given; then both read
passages of a text that neither was trained on, and so do untrained twins of both. The trained
GPT-NeoX is not kept. With the demo model's own training texts (their Gutenberg numbers stand in
its model card) the two have read the same.

How to run (plain texts; about ten minutes on two cores)::

    python benchmarks/beside_attention.py frankenstein.txt emma.txt \
        --held-out treasure_island.txt --save
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from benchmarks.commands import RESULTS_FOLDER, add_model_option, benchmark_parser, keep
from demo_model.training_data import check_held_out
from mamba_mixers.untrained_twins import ENOUGH_TWINS
from model_comparison import compare_models
from result_views.report.comparison_report import comparison_section
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress, set_seed
from suite_plumbing.texts import read_book

ROW = 256  # tokens of a training row
ROWS_PER_STEP = 8
PEAK_RATE = 2e-3  # learning rate, after the first tenth of the steps; it then falls to zero
PASSAGE = 900  # characters of a passage
RESULTS = RESULTS_FOLDER / "beside_attention.md"


def small_neox(vocab_size: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX of 4 layers, d_model 128 and 4 heads, as its initialisation leaves it."""
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.name_or_path = "small GPT-NeoX"
    return GPTNeoXForCausalLM(config)


def train(model: GPTNeoXForCausalLM, ids: np.ndarray, steps: int, seed: int) -> list[float]:
    """Train on random rows of a text's ids; the loss of each step, nats per token."""
    if len(ids) <= ROW:
        raise ValueError(f"the training texts have {len(ids)} tokens; a row has {ROW}")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.1)
    losses = []
    model.train()
    for step in progress(range(steps), desc="training"):
        done = (step + 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(10 * done, (1 - done) / 0.9 + 1e-3)
        starts = rng.integers(0, len(ids) - ROW, ROWS_PER_STEP)
        rows = torch.from_numpy(np.stack([ids[start : start + ROW] for start in starts]))
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def ids_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Token ids of the texts, one after the other."""
    ids = [i for text in texts for i in tokenizer(text, verbose=False)["input_ids"]]
    return np.array(ids, dtype=np.int64)


def passages(text: str, count: int) -> list[str]:
    """``count`` passages of a text, spread over it, each beginning with a word."""
    if len(text) < 2 * count * PASSAGE:
        raise ValueError(
            f"the held-out text has {len(text)} characters; {count} passages spread over it need "
            f"{2 * count * PASSAGE}. Give a longer text or fewer --passages"
        )
    starts = np.linspace(0, len(text) - 2 * PASSAGE, count).astype(int)
    words = [text.index(" ", start) + 1 for start in starts]
    return [text[start : start + PASSAGE] for start in words]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, print the section; with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    steps = validate_int("steps", args.steps, 1)
    set_seed(args.seed)
    texts, held_out = [read_book(path) for path in args.texts], read_book(args.held_out)
    check_held_out(texts, held_out)
    chosen = passages(held_out, validate_int("passages", args.passages, 1))
    mamba, tokenizer = load_model(args.model, device="cpu"), load_tokenizer(args.model)
    neox = small_neox(mamba.config.vocab_size)
    losses = train(neox, ids_of(tokenizer, texts), steps, args.seed)
    results = compare_models(
        [mamba, neox],
        chosen,
        tokenizers=[tokenizer] * 2,
        max_sequence_length=ROW,
        num_twins=args.twins,
        seed=args.seed,
    )
    last = losses[-max(1, steps // 20) :]
    report = (
        f"A GPT-NeoX trained for {steps} steps of {ROWS_PER_STEP} rows of {ROW} tokens on "
        f"{len(texts)} text(s), to a loss of {np.mean(last):.2f} nats per token (mean of the last "
        f"{len(last)} steps), beside the demo model, on {len(chosen)} passages of a text that "
        f"neither was trained on.\n\n{comparison_section(results)}"
    )
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(__doc__, "a section of a report")
    parser.add_argument("texts", nargs="+", help="plain text files to train the GPT-NeoX on")
    parser.add_argument("--held-out", required=True, help="a plain text to compare the two on")
    add_model_option(parser)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--twins", type=int, default=ENOUGH_TWINS)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
