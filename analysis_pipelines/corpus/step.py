"""The step: one task's texts read, summed and written as one part.

``analyse(data, rank, world_size, plan=plan)`` is a plain function, which any engine may call in any
process: it reads every world_size-th passage, adds to sums, and writes one part. It needs nothing
from other tasks and gives them nothing. A batch never crosses a task, and every worker computes
with the same number of threads, so that a part has the same bits whoever computes it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.corpus.parts import (
    LARGEST,
    WINDOWS,
    DamagedPart,
    Part,
    read_part,
    write_part,
)
from analysis_pipelines.corpus.plan import Plan, Settings
from analysis_pipelines.corpus.windows import (
    TextWindow,
    Unread,
    as_batch,
    batched,
    gives_importance,
    one_by_one,
    windows_of,
)
from attention_neurons import NEURON_METHODS, attention_data, layer_parameters
from causal_interventions.targets import resolve_target
from mamba_mixers.recording import observing_streams, record_layers
from mamba_mixers.replay import MixerMemory, MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import model_layers
from ssm_component_extractor import capture
from ssm_measures.copying import earlier_tokens
from ssm_measures.corpus_layer import BLOCKS, CorpusBatch, LayerSums, TokensOfBatch
from ssm_measures.corpus_maps import MapSums, text_of
from suite_plumbing.corpus_texts import Passage, passages, whole_documents
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import execution_device, load_model, load_tokenizer
from token_statistics.corpus_pairs import PairsOfLayers
from token_statistics.kept_windows import KeptWindows, Window

logger = logging.getLogger(__name__)

REPLAY_EVERY = 100
"""The replay is compared with the model's own forward in one batch of so many, and in the first."""

COUNTS = ("passages", "documents", "windows", "tokens", "short", "failures", "mapped", "batches")


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Reader(NamedTuple):
    """What reads a corpus."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: tuple[int, ...]


@functools.lru_cache(maxsize=1)
def loaded(model: str, tokenizer: str, device: str | None, dtype: str) -> Loaded:
    """A model and its tokenizer, kept for as long as no other is asked for."""
    return Loaded(
        load_model(model, device=_own_device(device), dtype=dtype), load_tokenizer(tokenizer)
    )


def reader_of(settings: Settings) -> Reader:
    """The model of these settings, loaded once a process."""
    found = loaded(settings.model, settings.tokenizer, settings.device, settings.dtype)
    return Reader(*found, tuple(model_layers(found.model, list(settings.layers))))


def _own_device(wanted: str | None) -> str | None:
    """Of several GPUs a process takes the one of its local rank."""
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
    several = torch.cuda.is_available() and torch.cuda.device_count() > 1
    if rank is None or not several or wanted not in (None, "cuda"):
        return wanted
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within this context torch computes with so many threads, which decide over last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def analyse(
    data: Iterable[Passage] | None,
    rank: int,
    world_size: int,
    *,
    plan: Plan,
    watch: Callable[[], None] = lambda: None,
) -> Path:
    """Write the part of task ``rank`` of ``world_size``; where it is there, nothing is done.

    ``data``: the task's passages; None: those of the plan's texts. ``watch`` is called before every
    batch and may raise to stop. Raises ValueError for another number of tasks than the plan's,
    OtherPart for a part of another configuration in the place, and AnalysisError once more than the
    plan's ``max_failures`` passages of this task have failed. Memory: that of the sums and of one
    batch.
    """
    settings = plan.settings
    if world_size != settings.tasks:
        raise ValueError(
            f"world_size is {world_size}, the run in {plan.folder} has {settings.tasks} tasks; the "
            "number of tasks of a folder never changes"
        )
    path = plan.part_path(rank)
    if path.is_file() and _is_whole(plan, rank):
        return path
    read = whole_documents if settings.carry else passages
    given = read(settings.source, rank, world_size) if data is None else data
    with threads(settings.threads), torch.no_grad():
        write_part(plan, rank, _part(given, settings, watch))
    return path


def _is_whole(plan: Plan, task: int) -> bool:
    try:
        read_part(plan, task)
    except DamagedPart as error:
        logger.warning("%s", error)
        return False
    return True


def _part(given: Iterable[Passage], settings: Settings, watch: Callable[[], None]) -> Part:
    reader = reader_of(settings)
    sums = TaskSums(reader, settings)
    windows = sums.windows_of(given)
    budget = settings.batch_tokens
    batches = one_by_one(windows) if settings.carry else batched(windows, budget)
    for number, batch in enumerate(batches):
        watch()
        sums.add(batch, check=number % REPLAY_EVERY == 0)
    return sums.part()


@dataclass
class _Seen:
    """What one forward pass showed of the streams between layers."""

    streams: dict[int, Tensor] = field(default_factory=dict)

    def take(self, layer: int, stream: Tensor) -> None:
        """Keep a stream until the pass ends."""
        self.streams[layer] = stream


class TaskSums:
    """The sums of one task, from its first batch to its part."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self.reader, self.settings = reader, settings
        self.failures: list[Unread] = []
        self.counts = dict.fromkeys(COUNTS, 0)
        self._last_document = -1
        size, longest = reader.model.config.vocab_size, settings.max_sequence_length
        self.tokens = {
            "token_counts": np.zeros(size), "token_loss": np.zeros(size),
            "token_predicted": np.zeros(size), "position_counts": np.zeros(longest),
            "position_loss": np.zeros(longest), "position_predicted": np.zeros(longest),
            "block_tokens": np.zeros(BLOCKS), "block_loss": np.zeros(BLOCKS),
            "block_predicted": np.zeros(BLOCKS),
        }  # fmt: skip
        self.layers: dict[int, LayerSums] = {}
        self.maps = {layer: MapSums(size, longest) for layer in reader.layers}
        self.windows: dict[int, KeptWindows] = {}
        self.errors = np.zeros(len(reader.layers))
        self.pairs: PairsOfLayers | None = None
        self.importance: dict[str, np.ndarray] = {}
        self._memories: dict[int, MixerMemory] | None = {} if settings.carry else None

    def windows_of(self, given: Iterable[Passage]) -> Iterator[TextWindow]:
        """The windows of passages, counted; AnalysisError once too many passages have failed."""
        model, tokenizer, _ = self.reader
        length = self.settings.max_sequence_length
        for passage in given:
            self.counts["passages"] += 1
            self.counts["documents"] += passage.start == 0
            found = windows_of(passage, tokenizer, length, model.config.vocab_size)
            if isinstance(found, Unread):
                self._failed(found)
                continue
            self.counts["short"] += not found
            yield from found

    def _failed(self, failure: Unread) -> None:
        self.failures.append(failure)
        self.counts["failures"] += 1
        logger.info("passage %d (%s): %s", *failure)
        if self.counts["failures"] > self.settings.max_failures:
            raise AnalysisError(
                f"{self.counts['failures']} texts of one task cannot be read, the last being "
                f"{failure.place}: {failure.reason}; --max-failures {self.settings.max_failures} "
                "allows no more"
            )

    def add(self, windows: Sequence[TextWindow], *, check: bool) -> None:
        """Read a batch and add it to all sums. Cost: one forward pass and what is summed of it."""
        settings = self.settings
        batch = as_batch(windows, settings.maps_every, settings.seed)
        tokens = batch.by_token()
        if self._memories is not None and windows[0].starts:
            self._memories.clear()
        logits, streams = self._read(batch, tokens)
        self._add_losses(logits, batch)
        self._add_tokens(tokens)
        if streams:
            self._add_pairs(streams, batch)
        if check and self._memories is None:
            self._check_replay(batch)
        for window in windows:
            if gives_importance(window, settings.importance_every, settings.seed):
                self._add_importance(window)
        self.counts["batches"] += 1
        self.counts["windows"] += len(windows)
        self.counts["tokens"] += sum(batch.lengths)
        self.counts["mapped"] += len(batch.mapped)

    def _read(self, batch: CorpusBatch, tokens: TokensOfBatch) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits, and the streams behind the layers where some of the windows give pairs."""
        model, _, layers = self.reader
        known = {
            row: earlier_tokens(batch.ids[row, : batch.lengths[row]].tolist())
            for row in batch.mapped
        }
        seen = _Seen()

        def observe(layer: int, replay: MixerReplay) -> None:
            if layer in self.maps:
                self._add_layer(layer, replay, batch, tokens)
                for row, pairs in known.items():
                    text = text_of(replay, row, batch.lengths[row])
                    ids = batch.ids[row, : batch.lengths[row]].numpy()
                    self.maps[layer].add(text, ids, pairs, batch.documents[row] % BLOCKS)

        watched = list(layers) if batch.mapped else []
        with (
            fast_scan(model, observe=observe, memories=self._memories),
            observing_streams(model, watched, seen.take),
        ):
            ids = batch.ids.to(execution_device(model))
            logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
        return logits, seen.streams

    def _add_layer(
        self, layer: int, replay: MixerReplay, batch: CorpusBatch, tokens: TokensOfBatch
    ) -> None:
        neurons = replay.gated.shape[2]
        if layer not in self.layers:
            size, longest = self.reader.model.config.vocab_size, self.settings.max_sequence_length
            self.layers[layer] = LayerSums(replay.delta.shape[2], neurons, size, longest)
            self.windows[layer] = KeptWindows(neurons, self.settings.seed)
        self.layers[layer].add(replay, batch, tokens)
        values = replay.gated.float().cpu().numpy()
        for row, length in enumerate(batch.lengths):
            ids = batch.ids[row, :length].numpy()
            number, document = batch.numbers[row], batch.documents[row]
            self.windows[layer].add(Window(number, document, ids, values[row, :length]))

    def _add_losses(self, logits: Tensor, batch: CorpusBatch) -> None:
        """Losses of every token but a window's first, by the token, its position, its block."""
        for row, length in enumerate(batch.lengths):
            following = batch.ids[row, 1:length]
            kept = logits[row, : length - 1].float()
            loss = F.cross_entropy(kept, following.to(kept.device), reduction="none")
            values = loss.double().cpu().numpy()
            block = np.full(len(values), batch.documents[row] % BLOCKS)
            places = {
                "token": following.numpy(), "position": np.arange(1, length), "block": block,
            }  # fmt: skip
            for kind, numbers in places.items():
                size = len(self.tokens[f"{kind}_loss"])
                self.tokens[f"{kind}_loss"] += np.bincount(numbers, values, size)
                self.tokens[f"{kind}_predicted"] += np.bincount(numbers, minlength=size)

    def _add_tokens(self, tokens: TokensOfBatch) -> None:
        for name, numbers in (
            ("token_counts", tokens.ids), ("position_counts", tokens.position),
            ("block_tokens", tokens.block),
        ):  # fmt: skip
            self.tokens[name] += np.bincount(numbers, minlength=len(self.tokens[name]))

    def _add_pairs(self, streams: dict[int, Tensor], batch: CorpusBatch) -> None:
        layers = self.reader.layers
        if self.pairs is None:
            width = streams[layers[0]].shape[2]
            longest, seed = self.settings.max_sequence_length, self.settings.seed
            self.pairs = PairsOfLayers(len(layers), width, longest, seed)
        for row in batch.mapped:
            length = batch.lengths[row]
            chosen = [streams[layer][row, :length][:, self.pairs.chosen] for layer in layers]
            self.pairs.add(chosen, batch.numbers[row])

    def _check_replay(self, batch: CorpusBatch) -> None:
        model, _, layers = self.reader
        records = record_layers(model, list(layers), batch.ids.to(execution_device(model)))
        found = [float(records[layer].replay_error.max()) for layer in layers]
        self.errors = np.maximum(self.errors, found)

    def _add_importance(self, window: TextWindow) -> None:
        """Importance of every neuron by the three methods, as shares of the layer's, one window."""
        model, _, layers = self.reader
        with torch.enable_grad():
            captured = capture(model, torch.tensor([window.ids]), None, list(layers))
            data = attention_data(captured, layer_parameters(model, list(layers)))
            target = resolve_target("loss", None)
            for name, make in NEURON_METHODS.items():
                for layer, neurons in make(data, model, target).items():
                    found = neurons.importance.detach().double().cpu()
                    share = (found / found.sum().clamp_min(1e-300)).numpy()
                    for power in (1, 2):
                        key = f"layer_{layer}/importance_{name}_{power}"
                        self.importance[key] = self.importance.get(key, 0.0) + share**power
        count = self.importance.get("importance_windows", np.zeros(1))
        self.importance["importance_windows"] = count + 1

    def part(self) -> Part:
        """All of it by name."""
        arrays: dict[str, np.ndarray] = dict(self.tokens)
        arrays[f"{LARGEST}replay_error"] = self.errors
        for layer, maps in self.maps.items():
            arrays |= {f"layer_{layer}/{name}": x for name, x in maps.sums.items()}
        for layer, sums in self.layers.items():
            arrays |= {f"layer_{layer}/{name}": x for name, x in sums.arrays().items()}
            kept = self.windows[layer].arrays()
            arrays |= {f"{WINDOWS}{layer}/{name}": x for name, x in kept.items()}
        if self.pairs is not None:
            arrays |= {f"pairs/{name}": x for name, x in self.pairs.sums.items()}
        counts = {name: int(value) for name, value in self.counts.items()}
        return Part(arrays | self.importance, counts, [f.to_dict() for f in self.failures])
