"""Train the demo model: a small Mamba language model with a byte-level BPE tokenizer.

How to run (UTF-8 text files; README.md beside this file names the books of the shipped model)::

    python demo_model/train.py book1.txt book2.txt --held-out other.txt --output-dir my_model

Training stops after ``--tokens`` tokens or ``--minutes`` minutes, whichever comes first, and the
learning rate falls to zero over the last ``--decay-share`` of that. A checkpoint is written every
``--checkpoint-minutes``; the same command started again goes on from it with the same data. At the
end the model is scored on the held-out text (evaluate.py) and model, tokenizer and
``training_log.json`` are written to the output folder.

A share of the rows holds passages that come again after a gap, so that the model learns to use
its state as a memory of what it has read, which ordinary prose asks for only now and then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from torch import Tensor
from transformers import MambaForCausalLM, PreTrainedTokenizerFast

from demo_model.checkpoint import Progress, load_checkpoint, save_checkpoint
from demo_model.evaluate import evaluate
from demo_model.fresh_model import build_model
from demo_model.training_data import (
    LONG_ROW,
    check_held_out,
    encode_text,
    train_tokenizer,
    training_rows,
)
from mamba_mixers.running import fast_scan
from selective_scan.compiled import compiled_scan
from suite_plumbing.commands import run_main
from suite_plumbing.progress import configure_logging
from suite_plumbing.result_files import check_output_dir, write_json
from suite_plumbing.texts import read_book

logger = logging.getLogger(__name__)

WARMUP_STEPS = 50

# A worker's pipe, and the gradients it leaves in shared memory.
Worker = tuple[Connection, list[Tensor]]


def build_optimizer(model: MambaForCausalLM, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not A_log, D, biases, norms or convolution filters."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and not name.endswith("A_log")
        (matrices if is_matrix else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def learning_rate(share_done: float, step: int, peak: float, decay_share: float) -> float:
    """Warm up over 50 steps, stay at ``peak``, fall as 1 - sqrt over the last ``decay_share``."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    into_decay = (share_done - (1.0 - decay_share)) / decay_share
    return peak * warm * (1.0 - math.sqrt(min(1.0, max(0.0, into_decay))))


def share_done(progress: Progress, tokens: int, minutes: float | None) -> float:
    """Share of the run that is over, by tokens or by time, whichever is further."""
    by_time = progress.seconds / (60 * minutes) if minutes else 0.0
    return max(by_time, progress.tokens / tokens)


def add_gradients(model: MambaForCausalLM, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Add the gradient of mean(weights * loss) over the predictions to ``.grad``.

    ``rows`` (rows, length + 1) are tokens, ``weights`` (rows, length) those of the predictions.
    Returns the unweighted mean loss of each row (rows,), nats per token.
    """
    ids = torch.from_numpy(rows)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    (torch.from_numpy(weights) * losses).mean().backward()
    return losses.detach().mean(dim=1).numpy()


@contextmanager
def training_scan(model: MambaForCausalLM, compiled: bool) -> Iterator[None]:
    """The model runs with the suite's scan, which is compiled when asked for."""
    with fast_scan(model), compiled_scan() if compiled else nullcontext():
        yield


def serve_gradients(
    model: MambaForCausalLM, grads: list[Tensor], pipe: Connection, compiled: bool = False
) -> None:
    """Answer rows and weights from the pipe with losses, gradients left in ``grads``; None ends."""
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    with training_scan(model, compiled):
        while (part := pipe.recv()) is not None:
            for grad in grads:
                grad.zero_()
            pipe.send(add_gradients(model, *part))


def _worker_main(
    model: MambaForCausalLM, grads: list[Tensor], pipe: Connection, compiled: bool
) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    serve_gradients(model, grads, pipe, compiled)


@contextmanager
def gradient_workers(model: MambaForCausalLM, count: int, compiled: bool) -> Iterator[list[Worker]]:
    """``count`` processes that share the model's weights and each take a part of every step.

    The scan is a long row of small operations; on them a process for each core, joined once a
    step, is about twice as fast as threads that are joined at every operation.
    """
    context = torch.multiprocessing.get_context("spawn")
    workers, processes = [], []
    try:
        for _ in range(count):
            model.share_memory()
            grads = [torch.zeros_like(p).share_memory_() for p in model.parameters()]
            ours, theirs = context.Pipe()
            arguments = (model, grads, theirs, compiled)
            process = context.Process(target=_worker_main, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers.append((ours, grads))
            processes.append(process)
        yield workers
    finally:
        for process in processes:
            process.terminate()
            process.join()


def train_step(
    model: MambaForCausalLM,
    optimizer: torch.optim.AdamW,
    rows: np.ndarray,
    weights: np.ndarray,
    workers: Sequence[Worker] = (),
) -> np.ndarray:
    """One AdamW step on ``rows`` (rows, length + 1); the loss of each row before it (rows,).

    What is minimised is the mean over the predictions weighted by ``weights`` (rows, length).
    Workers take equal parts of the rows. Raises ValueError when the loss is not finite.
    """
    count = len(workers) + 1
    weights = weights / weights.mean()
    parts = list(zip(np.split(rows, count), np.split(weights, count), strict=True))
    for (pipe, _), part in zip(workers, parts[1:], strict=True):
        pipe.send(part)
    losses = [add_gradients(model, *parts[0])]
    sums = [p.grad for p in model.parameters() if p.grad is not None]
    for pipe, grads in workers:
        losses.append(pipe.recv())
        for total, grad in zip(sums, grads, strict=True):
            total.add_(grad)
    row_losses = np.concatenate(losses)
    if not np.isfinite(row_losses).all():
        raise ValueError("the training loss is no longer finite; start again with a smaller --lr")
    for total in sums:
        total.div_(count)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return row_losses


def train(
    model: MambaForCausalLM,
    optimizer: torch.optim.AdamW,
    tokens: np.ndarray,
    progress: Progress,
    args: argparse.Namespace,
    save: Callable[[], None],
) -> None:
    """Take steps until the run is over, with progress lines and checkpoints on the way."""
    started = time.monotonic() - progress.seconds
    saved = reported = time.monotonic()
    tokens_reported = progress.tokens
    counts = np.bincount(tokens, minlength=model.config.vocab_size)
    parallel = gradient_workers(model, args.workers - 1, args.compile)
    with parallel as workers, training_scan(model, args.compile):
        while (done := share_done(progress, args.tokens, args.minutes)) < 1.0:
            rate = learning_rate(done, progress.step, args.lr, args.decay_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = training_rows(
                tokens, counts, progress.step, args.batch_tokens,
                seed=args.seed, repeat_share=args.repeat_share,
            )  # fmt: skip
            losses = train_step(model, optimizer, rows.tokens, rows.weights, workers)
            progress.count(rows.weights.size, losses, rows.kinds)
            now = time.monotonic()
            progress.seconds = now - started
            if now - reported > args.report_seconds:
                speed = (progress.tokens - tokens_reported) / (now - reported)
                logger.info("%s  lr %.5f  %.0f tokens/s", progress, rate, speed)
                reported, tokens_reported = now, progress.tokens
            if now - saved > 60 * args.checkpoint_minutes:
                save()
                saved = now
    save()


def run(args: argparse.Namespace) -> None:
    """The whole job: data, tokenizer, training from the start or a checkpoint, scores, files."""
    check_options(args)
    folder = check_output_dir(args.output_dir)
    texts = [read_book(path) for path in args.texts]
    held_out = read_book(args.held_out)
    check_held_out(texts, held_out)
    if args.workers > 1:
        torch.set_num_threads(1)  # a core for each process
    tokenizer = train_tokenizer(texts, args.vocab_size)
    pieces = [encode_text(tokenizer, text) for text in texts]
    tokens = np.concatenate(pieces)
    logger.info("%d texts, %d tokens", len(texts), len(tokens))
    model = build_model(len(tokenizer), args.hidden_size, args.layers, args.seed)
    optimizer = build_optimizer(model, args.lr, args.weight_decay)
    progress, path, run_id = Progress(), folder / "checkpoint.safetensors", _run_id(tokens, args)
    if path.exists():
        progress = load_checkpoint(path, model, optimizer, run_id)
        logger.info("going on from %s", progress)
    train(
        model, optimizer, tokens, progress, args,
        lambda: save_checkpoint(path, model, optimizer, progress, run_id),
    )  # fmt: skip
    scores = evaluate(model, tokenizer, held_out)
    _save_model(folder, model, tokenizer)
    names = [Path(path).name for path in args.texts]
    data = [
        {"name": name, "characters": len(text), "tokens": len(piece), "sha256": _sha256(text)}
        for name, text, piece in zip(names, texts, pieces, strict=True)
    ]
    log = {"training": asdict(progress), "options": _options(args), "texts": data, **scores}
    packages = ("torch", "transformers", "tokenizers", "numpy")
    log["versions"] = {package: version(package) for package in packages}
    write_json(folder / "training_log.json", log)
    logger.info("wrote %s", folder)


def _save_model(folder: Path, model: MambaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what the Auto classes load: float32 safetensors and a fast tokenizer."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name that transformers 4 knows as well; 5 writes its new one.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _options(args: argparse.Namespace) -> dict[str, float | int | None]:
    """The options that decide the weights, without paths and what only concerns the machine."""
    return {name: getattr(args, name) for name in LIMITS if name not in _OF_THE_MACHINE}


def _run_id(tokens: np.ndarray, args: argparse.Namespace) -> str:
    """Digest of the data and of the options that a resumed run has to share: all but its length."""
    fixed = {k: v for k, v in _options(args).items() if k not in ("tokens", "minutes")}
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(tokens).tobytes())
    return digest.hexdigest()


LIMITS: dict[str, tuple[float, float]] = {
    "tokens": (1, 1e12),
    "minutes": (0.01, 1e6),
    "decay_share": (0.01, 1),
    "lr": (1e-6, 1),
    "weight_decay": (0, 10),
    "repeat_share": (0, 1),
    "batch_tokens": (LONG_ROW, 1e6),
    "seed": (0, 2**32 - 1),
    "vocab_size": (257, 65536),
    "hidden_size": (16, 4096),
    "layers": (1, 128),
    "workers": (1, 256),
    "checkpoint_minutes": (0, 1e6),
    "report_seconds": (0, 1e6),
}
"""Smallest and largest value of each numeric option."""

_OF_THE_MACHINE = ("workers", "checkpoint_minutes", "report_seconds")


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for a numeric option outside its limits, naming both."""
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {value:g}; it must be from {low:g} to {high:g}")
    if args.batch_tokens % (LONG_ROW * args.workers):
        raise ValueError(
            f"--batch-tokens is {args.batch_tokens}; it must be a multiple of {LONG_ROW} times "
            f"--workers, {LONG_ROW * args.workers}"
        )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description="Train a small Mamba language model on text files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("texts", type=Path, nargs="+", metavar="FILE", help="UTF-8 text to train on")
    add("--held-out", type=Path, required=True, metavar="FILE", help="text to score on only")
    add("--output-dir", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    add("--tokens", type=int, default=12_000_000, help="tokens to read")
    add("--minutes", type=float, help="stop after this time, if the tokens are not read before")
    add(
        "--decay-share", type=float, default=0.25, help="last share of the run: learning rate falls"
    )
    add("--lr", type=float, default=1.5e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.1, help="AdamW's, on matrices only")
    add("--repeat-share", type=float, default=0.25, help="share of the rows with repeats")
    add("--batch-tokens", type=int, default=2048, help="tokens a step")
    add("--workers", type=int, default=2, help="processes, at most one a core")
    add("--seed", type=int, default=0, help="of weights and data order")
    add("--vocab-size", type=int, default=2048, help="tokens of the tokenizer")
    add("--hidden-size", type=int, default=128, help="d_model; d_inner is twice that")
    add("--layers", type=int, default=13, help="Mamba blocks")
    add("--checkpoint-minutes", type=float, default=5, help="minutes between checkpoints")
    add("--report-seconds", type=float, default=20, help="seconds between progress lines")
    compiling = "compile the scan: twice as fast, but it takes about a minute to begin with"
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help=compiling)
    add("--debug", action="store_true", help="log details; show the traceback of an error")
    return parser.parse_args(argv)


def _main(argv: list[str]) -> int:
    args = parse_arguments(argv)
    configure_logging(debug=args.debug)
    run(args)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Train, score and save; 0, or 2 with one line on stderr when an input cannot be used."""
    return run_main(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
