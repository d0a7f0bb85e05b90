"""Windows of texts: the tokens of a passage cut to a length, and batches of them by token budget.

A window's number holds its passage and the place of its first token, so that it is the same however
the corpus is shared out. Which windows give maps too is drawn from that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from ssm_measures.corpus_layer import CorpusBatch
from suite_plumbing.corpus_texts import Passage
from suite_plumbing.texts import tokenized
from token_statistics.kept_windows import window_hash

PLACES = 1 << 32
"""Numbers that the windows of one passage may have."""

BUFFERED = 32
"""Batches whose windows are sorted by length at a time."""

_MAPS, _IMPORTANCE = 101, 102  # apart from the seeds of other draws


class TextWindow(NamedTuple):
    """Consecutive tokens of a passage, which are read at once."""

    number: int
    """passage times PLACES plus the place of its first token"""
    document: int
    ids: tuple[int, ...]
    """at least 2"""

    @property
    def starts(self) -> bool:
        """Whether it begins its passage."""
        return self.number % PLACES == 0


class Unread(NamedTuple):
    """A passage that failed."""

    index: int
    place: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def windows_of(
    passage: Passage,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    vocabulary: int,
) -> list[TextWindow] | Unread:
    """The windows of a passage, disjoint, the last one shorter; one of a single token is left out.

    What cannot be read, tokenized or embedded comes back with the reason.
    """
    if passage.text is None:
        return Unread(passage.index, passage.place, passage.failure or "no text")
    try:
        ids = list(tokenized(tokenizer, passage.text, "it")["input_ids"])
    except ValueError as error:
        return Unread(passage.index, passage.place, str(error))
    if ids and max(ids) >= vocabulary:
        reason = f"token id {max(ids)} for a model that knows 0 to {vocabulary - 1}"
        return Unread(passage.index, passage.place, reason)
    return [
        TextWindow(
            passage.index * PLACES + start, passage.document, tuple(ids[start : start + length])
        )
        for start in range(0, len(ids), length)
        if len(ids) - start >= 2
    ]


def batched(windows: Iterable[TextWindow], budget: int) -> Iterator[list[TextWindow]]:
    """Batches of at most ``budget`` tokens with their padding, of windows of similar length.

    Windows are sorted by length within a buffer, so that what a batch holds depends on the windows
    before it in the same task and on nothing else. A longer window is a batch of its own.
    """
    buffer: list[TextWindow] = []
    held = 0
    for window in windows:
        buffer.append(window)
        held += len(window.ids)
        if held >= BUFFERED * budget:
            yield from _by_length(buffer, budget)
            buffer, held = [], 0
    yield from _by_length(buffer, budget)


def _by_length(windows: Sequence[TextWindow], budget: int) -> Iterator[list[TextWindow]]:
    batch: list[TextWindow] = []
    for window in sorted(windows, key=lambda w: (len(w.ids), w.number)):
        if batch and (len(batch) + 1) * len(window.ids) > budget:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def one_by_one(windows: Iterable[TextWindow]) -> Iterator[list[TextWindow]]:
    """Batches of one window, in order: how a stream is read whose state is carried."""
    return ([window] for window in windows)


def as_batch(windows: Sequence[TextWindow], maps_every: int, seed: int) -> CorpusBatch:
    """The tokens of windows, padded behind their ends by the token 0."""
    lengths = tuple(len(window.ids) for window in windows)
    ids = torch.zeros(len(windows), max(lengths), dtype=torch.int64)
    for row, window in enumerate(windows):
        ids[row, : lengths[row]] = torch.tensor(window.ids)
    mapped = (row for row, window in enumerate(windows) if gives_maps(window, maps_every, seed))
    return CorpusBatch(
        ids,
        lengths,
        tuple(window.number for window in windows),
        tuple(window.document for window in windows),
        tuple(mapped),
    )


def gives_maps(window: TextWindow, every: int, seed: int) -> bool:
    """Whether this window is one of those that give maps: one in ``every``, by hash."""
    return window_hash(seed + _MAPS, window.number) * every < 1


def gives_importance(window: TextWindow, every: int, seed: int) -> bool:
    """Whether it is one of those that give importance; ``every`` 0: none."""
    return every > 0 and window_hash(seed + _IMPORTANCE, window.number) * every < 1
