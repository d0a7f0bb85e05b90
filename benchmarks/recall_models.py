"""Small Mamba-1 and Mamba-2 models trained on tasks of recall: minutes of one core each.

Two layers of width 48 with 16 states a channel, one model for each family, task and seed, fresh
rows in every step, until one batch after another is answered. A seed has initial weights and rows
of its own. A model is saved as soon as it is trained and found again by the next run, with its
training log beside it. ``recall_circuit.py`` asks for them.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from causal_interventions.patching.tasks import task_rows
from mamba_mixers.running import fast_scan
from suite_plumbing.result_files import write_json

VOCABULARY = 32

ITEMS = {"recall": 6, "mqar": 6, "copying": 8, "passkey": 16}
"""Things to remember, by task."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 16,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip

FAMILIES = {
    "mamba": lambda: transformers.MambaConfig(**COMMON),
    "mamba2": lambda: transformers.Mamba2Config(
        **COMMON, num_heads=6, head_dim=16, n_groups=1, chunk_size=32
    ),
}
"""Configurations by family."""

ROWS = 64

PEAK_RATE = 4e-3

WARMUP = 50

ENOUGH = 0.995
"""Accuracy over the last batches at which training ends."""

LAST_BATCHES = 20

MAX_STEPS = 2500

HELD_OUT_SEED = 10**6
"""Rows of this seed on are never trained on: a step's seed is its number, and 10,000 more for each
seed of the model."""


def fresh_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model as it is before training, by its seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()


def train(family: str, task: str, *, seed: int = 0, max_steps: int | None = None) -> tuple:
    """The trained model and its log: steps, seconds, accuracy on held-out rows."""
    model, start = fresh_model(family, seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    right: list[float] = []
    # The stock code of Mamba-2 is matrix products; that of Mamba-1 is a loop over tokens.
    with fast_scan(model) if family == "mamba" else nullcontext():
        for step in range(MAX_STEPS if max_steps is None else max_steps):
            for group in optimizer.param_groups:
                group["lr"] = PEAK_RATE * min(1.0, (step + 1) / WARMUP)
            right.append(_step(model, optimizer, task, step + 10_000 * seed))
            if step > WARMUP and sum(right[-LAST_BATCHES:]) / LAST_BATCHES >= ENOUGH:
                break
    seconds = time.monotonic() - start
    log = {"family": family, "task": task, "seed": seed, "steps": len(right), "seconds": seconds}
    return model.eval(), log | {"accuracy": accuracy(model, task), "course": right[::50]}


def _step(model: Any, optimizer: torch.optim.Optimizer, task: str, rows_seed: int) -> float:
    """One step of training; the share of last tokens that were predicted before it."""
    rows = task_rows(task, ROWS, items=ITEMS[task], vocabulary=VOCABULARY, seed=rows_seed)
    logits = model(input_ids=rows.input_ids, use_cache=False).logits
    known = rows.following >= 0
    optimizer.zero_grad()
    F.cross_entropy(logits[known], rows.following[known]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return _share_right(logits, rows.following)


def _share_right(logits: Tensor, following: Tensor) -> float:
    return float((logits[:, -1].argmax(-1) == following[:, -1]).float().mean())


@torch.no_grad()
def accuracy(model: Any, task: str, count: int = 512) -> float:
    """Share of held-out texts whose last answer is predicted."""
    rows = task_rows(task, count, items=ITEMS[task], vocabulary=VOCABULARY, seed=HELD_OUT_SEED)
    with fast_scan(model):
        return _share_right(model(input_ids=rows.input_ids, use_cache=False).logits, rows.following)


def trained_model(folder: Path, family: str, task: str, seed: int = 0, **options: Any) -> tuple:
    """The model of a seed below 100 and its log, from this folder; trained first where it is not
    there."""
    place = folder / (f"{family}_{task}_{seed}" if seed else f"{family}_{task}")
    if not (place / "training_log.json").exists():
        model, log = train(family, task, seed=seed, **options)
        model.save_pretrained(place)
        write_json(place / "training_log.json", log)
    log = json.loads((place / "training_log.json").read_text(encoding="utf-8"))
    return AutoModelForCausalLM.from_pretrained(place).eval(), log
