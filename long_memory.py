"""A long text read through: exact memory from chunk to chunk, in bounded computer memory.

The text goes through the model in chunks, each mixer starting from the memory that the chunk before
left (``mamba_mixers.fast_scan``, ``memories``), so that the losses are those of the whole text read
at once. What a layer's state does along the way is accumulated: beyond 4 bytes a token for the
losses and a few numbers a chunk, nothing grows with the text.

How much that memory is worth: the same tokens predicted from windows that each start from an empty
memory. With windows of w tokens, token t is predicted from the tokens of the window that holds
t - 1, which are ((t - 1) mod w) + 1 tokens, and in the whole text from all t tokens before it. So
every reading predicts every token of the text but the first, once.

Letters: the glossary of ``selective_scan``. From a shell: ``python long_memory.py book.txt``.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import long_memory_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(long_memory_options)

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mamba_mixers.replay import MixerMemory, MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import model_layers
from recursive_visualizer import write_figures
from result_views.report.markdown import markdown_table
from result_views.terminal_lines import terminal_table, wrapped
from selective_scan.attention import attention_map
from selective_scan.scan import half_life, scan_hidden_states
from ssm_measures.attention_maps import kernel_of
from ssm_measures.attention_measures import MemoryKernel, kernel_of_means
from suite_plumbing.arguments import validate_int, whole_numbers
from suite_plumbing.commands import command_line, run_main
from suite_plumbing.messages import quoted
from suite_plumbing.model_inputs import token_ids
from suite_plumbing.models import execution_device, load_model, load_tokenizer
from suite_plumbing.one_thread import fit_threads
from suite_plumbing.output_folders import claim_output_dir
from suite_plumbing.progress import configure_logging, progress
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    finite_or_none,
    write_csv,
    write_json,
    written_together,
)
from suite_plumbing.texts import read_book, tokenized
from token_statistics.description import summarise
from token_statistics.intervals import mean_interval

CHUNK_SIZE = 512

KERNEL_EVERY = 8
"""A memory kernel is measured in one chunk of so many: its map costs more than the chunk itself."""

WINDOWS = (128, 512, 2048)

BLOCK = 2048
"""Tokens that differences between readings are averaged over before they are resampled."""

# Tokens, over the windows of a pass, and tokens whose states are held at once: both bound memory.
_TOKENS_PER_PASS = 4096

_STATES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class LayerReading:
    """What one layer's memory did along a text of ``num_chunks`` chunks."""

    state_norm: Tensor
    """(chunks,) L2 norm of h_t over channels and states, mean over the chunk's tokens"""
    survival: Tensor
    """(chunks,) mean over channels and states of exp(A sum of delta over the chunk), in (0, 1):
    what is left after the chunk of what the state held before it"""
    mean_delta: Tensor
    """(H,) mean over all tokens"""
    selectivity: float | None
    """share of the variance of delta that lies between tokens of one channel, in [0, 1]; None if
    delta is one constant"""
    half_life: Tensor
    """(H, N or 1) ln 2 / (mean delta |A|), tokens"""
    kernel: MemoryKernel
    """of lags below the chunk size: mean over queries and sources of the same chunk, over the
    chunks that were measured"""

    def to_dict(self) -> dict[str, Any]:
        """Summaries for JSON; state norm and survival by chunk."""
        return {
            "state_norm": self.state_norm.tolist(),
            "survival": self.survival.tolist(),
            "mean_delta": summarise(self.mean_delta),
            "selectivity": self.selectivity,
            "half_life": summarise(self.half_life.max(1).values),
            "kernel": self.kernel.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Reading:
    """A text read through."""

    chunk_size: int
    loss: Tensor
    """(l - 1,) -ln p(token t | all before it) for t = 1 .. l - 1, nats, float32"""
    layers: dict[int, LayerReading]
    memories: dict[int, MixerMemory]
    """by layer, after the last token: the text can be read on from here"""


@torch.no_grad()
def read_through(
    model: PreTrainedModel,
    input_ids: Tensor | Sequence[int],
    *,
    chunk_size: int = CHUNK_SIZE,
    layers: Sequence[int] = (),
    kernel_every: int = KERNEL_EVERY,
) -> Reading:
    """Read token ids (l,) through, and measure the memory of ``layers`` along the way.

    Chunks change the result by rounding alone. Raises ValueError for fewer than 2 ids, ids that the
    model does not know, a layer without an SSM, and UnsupportedModelError for a model with
    attention. Cost: the forward pass, for each layer measured another scan, and in one of
    ``kernel_every`` chunks its attention map; memory that of one chunk, 4 bytes a token and two
    numbers a layer and chunk.
    """
    ids = _checked_ids(model, input_ids)
    chunk_size = validate_int("chunk_size", chunk_size, 2)
    kernel_every = validate_int("kernel_every", kernel_every, 1)
    sums = {layer: _ChunkSums() for layer in (model_layers(model, list(layers)) if layers else [])}
    memories: dict[int, MixerMemory] = {}
    # Made at once: small tensors kept among the large ones of each chunk scatter the heap.
    loss = torch.empty(len(ids) - 1, dtype=torch.float32)
    with_kernel = True

    def observe(layer: int, replay: MixerReplay) -> None:
        if layer in sums:
            sums[layer].add(replay, with_kernel)

    with fast_scan(model, observe=observe, memories=memories):
        starts = range(0, len(ids), chunk_size)
        for number, start in enumerate(progress(starts, desc="chunks")):
            with_kernel = number % kernel_every == 0
            chunk = ids[start : start + chunk_size]
            part = chunk[None].to(execution_device(model))
            logits = model(input_ids=part, use_cache=False, return_dict=True).logits
            following = ids[None, start + 1 : start + 1 + len(chunk)]
            loss[start : start + following.shape[1]] = _losses(logits, following)[0]
    return Reading(
        chunk_size,
        loss,
        {layer: part.result(chunk_size) for layer, part in sums.items()},
        memories,
    )


@torch.no_grad()
def window_losses(model: PreTrainedModel, input_ids: Tensor | Sequence[int], width: int) -> Tensor:
    """(l - 1,) losses as ``Reading.loss``, of the text read in windows of ``width`` tokens.

    Each window starts from an empty memory; its last token predicts the first of the next. Raises
    ValueError as :func:`read_through`, and for a width below 1. Cost: the forward pass.
    """
    ids = _checked_ids(model, input_ids)
    width = validate_int("width", width, 1)
    following = ids.roll(-1)
    whole = len(ids) // width * width
    parts = [*ids[:whole].view(-1, width).split(max(1, _TOKENS_PER_PASS // width))]
    parts += [ids[None, whole:]] if whole < len(ids) else []
    losses, start = [], 0
    with fast_scan(model):
        for rows in progress(parts, desc=f"windows of {width}"):
            part = rows.to(execution_device(model))
            logits = model(input_ids=part, use_cache=False, return_dict=True).logits
            stop = start + rows.numel()
            losses.append(_losses(logits, following[start:stop].view(rows.shape)).flatten())
            start = stop
    return torch.cat(losses)[:-1]  # nothing follows the last token


def compare_readings(
    whole: Tensor, windows: Mapping[int, Tensor], *, block: int = BLOCK, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a reading: mean loss, perplexity, and what the reading loses against the whole text.

    ``windows``: losses by width, of the same tokens as ``whole`` (l - 1,). ``difference``: mean
    loss minus that of the whole text, nats, > 0 where memory beyond the window helps; ``low``,
    ``high``: its 95 % interval over blocks of ``block`` successive tokens, whose means are taken
    as independent; None with fewer than 5 whole blocks, with the ``reason``.
    """
    rows = [_reading("whole text", None, whole)]
    blocked = len(whole) // block * block
    for width, losses in sorted(windows.items()):
        if losses.shape != whole.shape:
            raise ValueError(
                f"windows[{width}] has {len(losses)} losses, whole {len(whole)}; they must be of "
                "the same tokens"
            )
        change = losses.double() - whole.double()
        means = change[:blocked].view(-1, block).mean(1) if blocked else change.new_empty(0)
        _, low, high, count, reason = mean_interval(means, seed=seed)
        reason = f"blocks of {block} tokens: {reason}" if reason else None
        row = _reading(f"windows of {width}", width, losses)
        rows.append(row | {"difference": float(change.mean()), "low": low, "high": high,
                           "num_blocks": count, "reason": reason})  # fmt: skip
    return rows


def loss_by_context(losses: Tensor, width: int | None = None) -> list[dict[str, Any]]:
    """Mean loss by the number of tokens that a token is predicted from: 1, 2, 3 to 4, 5 to 8, ...

    ``width`` of the windows, None for the whole text. ``first``, ``last``: tokens of context, both
    in the bin; ``loss`` nats; ``num_tokens``. In the whole text each number of tokens occurs once,
    so that a bin holds other tokens than the bins of windows do: compare bins of the windows.
    """
    context = torch.arange(len(losses)) + 1
    context = context if width is None else (context - 1) % width + 1
    longest, rows, first, last = int(context.max()), [], 1, 1
    while first <= longest:
        chosen = losses[(context >= first) & (context <= last)].double()
        rows.append({"first": first, "last": min(last, longest), "loss": float(chosen.mean()),
                     "num_tokens": len(chosen)})  # fmt: skip
        first, last = last + 1, 2 * last
    return rows


def loss_along(losses: Tensor, block: int = BLOCK) -> list[float]:
    """Mean loss of each block of ``block`` tokens, the last one shorter."""
    return [float(part.double().mean()) for part in losses.split(block)]


class _ChunkSums:
    """What a layer leaves behind chunk by chunk."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.survival: list[float] = []
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float32)
        self.kernel_sums = self.kernel_counts = torch.zeros(0, dtype=torch.float64)
        self.A = torch.zeros((), dtype=torch.float32)

    def add(self, replay: MixerReplay, with_kernel: bool) -> None:
        """Take in one chunk, b = 1."""
        self.A = replay.A
        self._add_delta(replay.delta[0].double())
        self.norms.append(self._mean_norm(replay))
        steps = replay.delta[0].double().sum(0)
        self.survival.append(float(torch.exp(steps[:, None] * replay.A.double()).mean()))
        if with_kernel:
            self._add_kernel(replay)

    def _add_delta(self, delta: Tensor) -> None:
        """Mean and sum of squares about it, merged chunk by chunk (Chan et al. 1979)."""
        n, mean = len(delta), delta.mean(0)
        total = self.count + n
        apart = mean - self.mean
        squares = (delta - mean).square().sum(0) + apart.square() * self.count * n / total
        self.mean, self.squares = self.mean + apart * n / total, self.squares + squares
        self.count = total

    def _mean_norm(self, replay: MixerReplay) -> float:
        total, state = 0.0, replay.state_before
        for part in torch.arange(replay.u.shape[1]).split(_STATES_AT_ONCE):
            u, delta, B = (x[:, part] for x in (replay.u.float(), replay.delta, replay.B))
            share = None if replay.own_share is None else replay.own_share[:, part]
            operands = u, delta, replay.A, B, state
            h = scan_hidden_states(*operands, own_share=share)
            total += float(h[0].flatten(1).norm(dim=1).double().sum())
            state = (h if share is None else scan_hidden_states(*operands))[:, -1]
        return total / replay.u.shape[1]

    def _add_kernel(self, replay: MixerReplay) -> None:
        absolute = attention_map(**kernel_of(replay), absolute=True)[0]
        length = len(absolute)
        sums = torch.stack([absolute.diagonal(-k).double().sum() for k in range(length)])
        counts = torch.arange(length, 0, -1, dtype=torch.float64)
        if len(self.kernel_sums) == 0:
            self.kernel_sums, self.kernel_counts = sums.new_zeros(2, length)
        # The text's last chunk may be shorter: it has no pairs of the longest lags.
        self.kernel_sums[:length] += sums.cpu()
        self.kernel_counts[:length] += counts

    def result(self, chunk_size: int) -> LayerReading:
        means = self.kernel_sums / self.kernel_counts
        apart = self.count * (self.mean - self.mean.mean()).square().sum()
        within = self.squares.sum()
        spread = float(within + apart)
        return LayerReading(
            torch.tensor(self.norms, dtype=torch.float32),
            torch.tensor(self.survival, dtype=torch.float32),
            self.mean.float().cpu(),
            float(within) / spread if spread > 0 else None,
            half_life(self.mean, self.A.double()).float().cpu(),
            kernel_of_means(means[None]),
        )


def _losses(logits: Tensor, following: Tensor) -> Tensor:
    """(b, l) -ln p of the following tokens, of logits (b, l or l + 1, V)."""
    kept = logits[:, : following.shape[1]].float()
    return F.cross_entropy(kept.mT, following.to(kept.device), reduction="none").cpu()


def _checked_ids(model: PreTrainedModel, input_ids: Tensor | Sequence[int]) -> Tensor:
    ids = token_ids("input_ids", input_ids, model.config.vocab_size)
    if len(ids) != 1 or ids.shape[1] < 2:
        raise ValueError(
            f"input_ids has shape {tuple(ids.shape)}; pass the ids of one text, at least 2 of them"
        )
    return ids[0]


def _reading(name: str, width: int | None, losses: Tensor) -> dict[str, Any]:
    mean = float(losses.double().mean())
    nothing = dict.fromkeys(("difference", "low", "high", "num_blocks", "reason"))
    return {"reading": name, "width": width, "num_tokens": len(losses), "loss": mean,
            "perplexity": finite_or_none(math.exp(min(mean, 700.0))), **nothing}  # fmt: skip


def long_memory(
    model: PreTrainedModel,
    input_ids: Tensor | Sequence[int],
    *,
    layers: Sequence[int] = (),
    windows: Sequence[int] = WINDOWS,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON of one text read through and in windows: readings, losses, memory by layer.

    ``readings``: :func:`compare_readings`. ``by_context`` and ``along``, by reading: mean loss by
    tokens of context and by block of ``BLOCK`` tokens. ``layers``: ``LayerReading`` by layer.
    Windows as long as the text are left out. Raises and costs as :func:`read_through` and
    :func:`window_losses`.
    """
    ids = _checked_ids(model, input_ids)
    widths = whole_numbers("windows", windows, 1)
    seed = validate_int("seed", seed, 0)
    whole = read_through(model, ids, chunk_size=chunk_size, layers=layers)
    losses = {width: window_losses(model, ids, width) for width in widths if width < len(ids)}
    named = {"whole text": (whole.loss, None)}
    named |= {f"windows of {width}": (loss, width) for width, loss in losses.items()}
    return {
        "num_tokens": len(ids),
        "chunk_size": chunk_size,
        "block": BLOCK,
        "readings": compare_readings(whole.loss, losses, seed=seed),
        "by_context": {name: loss_by_context(loss, width) for name, (loss, width) in named.items()},
        "along": {name: loss_along(loss) for name, (loss, _) in named.items()},
        "layers": {f"layer_{layer}": part.to_dict() for layer, part in whole.layers.items()},
    }


def readings_table(readings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The readings as lines of a Markdown table."""
    return markdown_table(_HEADS, [_reading_cells(row) for row in readings])[:-1]


_HEADS = ["reading", "loss (nats)", "perplexity", "minus the whole text (nats)", "95 % interval"]


def _lines(readings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The readings for a terminal; why there is no interval stands below them."""
    cells = [_reading_cells({**row, "reason": None}) for row in readings]
    heads = [*_HEADS[:3], "minus the whole", "95 % interval"]
    reasons = dict.fromkeys(row["reason"] for row in readings if row["reason"])
    return [*terminal_table(heads, cells), *wrapped(f"No interval: {why}." for why in reasons)]


def _reading_cells(row: Mapping[str, Any]) -> list[str]:
    change, ends = "", row["reason"] or ""
    if row["difference"] is not None:
        change = f"{row['difference']:+.4f}"
    if row["low"] is not None:
        ends = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [row["reading"], f"{row['loss']:.4f}", f"{row['perplexity']:.3f}", change, ends]


def main(argv: Sequence[str] | None = None) -> int:
    """Read a book through and in windows; print the table, write JSON and CSV."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = long_memory_options(argv)
    configure_logging(args.debug, args.quiet)
    text, folder = read_book(args.book), claim_output_dir(args.output_dir)
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    fit_threads(model)
    tokenizer = load_tokenizer(args.model if args.tokenizer is None else args.tokenizer)
    book = tokenized(tokenizer, text, f"book {quoted(args.book)}")
    ids = list(book["input_ids"])[: args.max_tokens]
    if len(ids) < 2:
        raise ValueError(
            f"book {quoted(args.book)} has {len(ids)} token(s); losses need at least 2"
        )
    layers = model_layers(model, args.layers)
    results = long_memory(
        model, ids, layers=layers, windows=args.windows, chunk_size=args.chunk_size, seed=args.seed
    )
    results["schema_version"] = SCHEMA_VERSION
    command = command_line("long_memory.py", argv)
    results["provenance"] = provenance(model, command=command, seed=args.seed)
    with written_together():
        path = write_json(folder / "long_memory.json", results)
        write_csv(folder / "readings.csv", results["readings"])
    write_figures(results, folder, formats=args.formats)
    print("\n".join(_lines(results["readings"])))
    print(f"Wrote {path}, readings.csv and its figure beside it.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
