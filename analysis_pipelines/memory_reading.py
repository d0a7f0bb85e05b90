"""Texts as the memory analysis reads them: one capture each, in memory or from files.

Its steps pass over all texts, layer after layer, for the model and for every twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ssm_component_extractor import capture_each, capture_texts, captures_or_raise
from ssm_measures.components import Capture
from ssm_measures.kept_captures import captures_kept
from suite_plumbing.texts import EncodedText


@dataclass(frozen=True)
class Reading:
    """How texts are read, by the model and by each twin alike."""

    encoded: Sequence[EncodedText]
    layers: Sequence[int]
    batch_size: int
    pad_token_id: int
    folder: Path | None = None
    """where captures are kept; None: in memory"""


@contextmanager
def captured_by(
    model: PreTrainedModel, reading: Reading, name: str = "model"
) -> Iterator[Sequence[Capture]]:
    """One capture a text, without padding, for as long as the context is open.

    Kept under ``name`` in the reading's folder, if it has one: see `captures_kept`.
    """
    encoded, layers = reading.encoded, reading.layers
    size, pad = reading.batch_size, reading.pad_token_id
    if reading.folder is None:
        yield capture_texts(model, encoded, layers, batch_size=size, pad_token_id=pad)
        return
    found = capture_each(model, encoded, layers, batch_size=size, pad_token_id=pad)
    with captures_kept(reading.folder / name, captures_or_raise(found)) as captures:
        yield captures
