"""How well the demo model predicts: bits per character of a book, and loss on a second reading.

Both measures are means of plain next-token losses.

How to run (the folder of a trained model, and a text it was not trained on)::

    python demo_model/evaluate.py --model demo_model treasure_island.txt
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mamba_mixers.running import fast_scan
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import configure_logging
from suite_plumbing.texts import read_book

WINDOW = 512  # tokens the model reads at a time when a whole book is scored
STRIDE = 256  # new tokens of each window; the others are context
PASSAGE = 64  # tokens of a passage that is read twice
GAP = 64  # tokens between its two readings
SKIPPED = 8  # tokens at the start of a reading that are left out: nothing yet tells it is a repeat


@dataclass(frozen=True)
class BookScore:
    """Loss of a model on one text."""

    tokens: int
    """Tokens scored: all but the first."""
    characters: int
    """Characters of the text."""
    loss: float
    """Mean negative log-likelihood per token, nats."""
    bits_per_character: float
    """Total negative log-likelihood in bits over the number of characters."""


@dataclass(frozen=True)
class RepeatScore:
    """Loss on the first and second reading of the same passages, nats per token."""

    passages: int
    """Number of passages averaged over."""
    first_reading: float
    """Mean loss on the passage as the first thing read."""
    second_reading: float
    """Mean loss on the passage when it comes again after the gap."""
    unrelated_reading: float
    """Mean loss on the passage after the same gap, with another passage read before the gap."""
    ratio: float
    """second_reading / first_reading; 1 is no memory of it, 0 perfect recall."""


@torch.no_grad()
def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given those before it, nats.

    ``ids`` (b, l) integers; returns (b, l - 1): entry t is the loss of token t + 1.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(ids.shape[0], -1)


def score_book(
    model: PreTrainedModel, ids: Tensor, characters: int, batch_size: int = 8
) -> BookScore:
    """Bits per character of a text read in windows of 512 tokens that advance by 256.

    Every token but the first is scored once: in the first window all of them, in later windows the
    last 256, which have at least 256 tokens of context. Bits per character = sum of the losses /
    (ln 2 * characters). ``ids`` (l,) are the text's tokens. Raises ValueError for fewer than two
    tokens. Cost: two forward passes over the text.
    """
    if ids.numel() < 2 or characters < 1:
        raise ValueError(
            f"the held-out text has {ids.numel()} tokens in {characters} characters; "
            "give one of at least two tokens"
        )
    total = token_losses(model, ids[None, :WINDOW]).double().sum().item()
    starts = list(range(STRIDE, ids.numel() - WINDOW + 1, STRIDE))
    for first in range(0, len(starts), batch_size):
        rows = torch.stack([ids[s : s + WINDOW] for s in starts[first : first + batch_size]])
        total += token_losses(model, rows)[:, -STRIDE:].double().sum().item()
    scored = WINDOW + STRIDE * len(starts)
    if scored < ids.numel():
        rest = ids.numel() - scored
        total += token_losses(model, ids[None, -(rest + STRIDE) :])[:, -rest:].double().sum().item()
    tokens = ids.numel() - 1
    return BookScore(tokens, characters, total / tokens, total / (math.log(2) * characters))


def score_repeats(model, ids: Tensor, *, passages: int = 256, batch_size: int = 16) -> RepeatScore:
    """Loss on the two readings of passages taken at even distances from a text.

    A sequence is passage (64 tokens), gap (the 64 tokens that follow it in the text), the passage
    again; the control puts the passage from half the text away in front of the same gap. Averaged
    over the last 56 tokens of the reading, all but the first 8, and over the passages.
    ``ids`` (l,) are the text's tokens. Raises ValueError when the text is shorter than two
    passages with their gaps.
    """
    span = PASSAGE + GAP
    if ids.numel() < 2 * span:
        raise ValueError(
            f"the held-out text has {ids.numel()} tokens; repeats need at least {2 * span}"
        )
    passages = min(passages, ids.numel() // span)
    starts = [index * (ids.numel() - span) // max(1, passages - 1) for index in range(passages)]
    pieces = torch.stack([ids[s : s + span] for s in starts])
    passage, gap = pieces[:, :PASSAGE], pieces[:, PASSAGE:]
    other = passage.roll(max(1, passages // 2), dims=0)
    repeated = torch.cat([passage, gap, passage], dim=1)
    control = torch.cat([other, gap, passage], dim=1)
    counted = PASSAGE - SKIPPED
    losses = torch.cat([token_losses(model, rows) for rows in repeated.split(batch_size)])
    unrelated = torch.cat([token_losses(model, rows) for rows in control.split(batch_size)])
    first = losses[:, SKIPPED - 1 : PASSAGE - 1].double().mean().item()
    second = losses[:, -counted:].double().mean().item()
    return RepeatScore(
        passages, first, second, unrelated[:, -counted:].double().mean().item(), second / first
    )


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> dict[str, dict[str, float]]:
    """Both scores of a model on a held-out text, as a JSON-ready dict ``{"book", "repeats"}``."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    model.eval()
    with fast_scan(model):
        book = score_book(model, ids, len(text))
        repeats = score_repeats(model, ids)
    return {"book": asdict(book), "repeats": asdict(repeats)}


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Score a saved model on a held-out text.")
    parser.add_argument("text", type=Path, metavar="FILE", help="text it was not trained on")
    parser.add_argument("--model", default=str(DEMO_MODEL_PATH), metavar="FOLDER")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    configure_logging(debug=args.debug)
    text = read_book(args.text)
    scores = evaluate(load_model(args.model, device="cpu"), load_tokenizer(args.model), text)
    print(json.dumps(scores, indent=1))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Print the scores of a saved model on a text as JSON; 0, or 2 for an unusable input."""
    return run_main(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
