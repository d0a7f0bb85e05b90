"""Captures of texts in files of a folder, read array by array, so that memory holds none of them.

What passes over all texts, layer after layer, needs of a capture a few arrays at a time. A capture
that was kept looks like any other; what is asked of it is read from its file and let go.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from safetensors import safe_open
from torch import Tensor

from ssm_measures.components import Capture, SSMComponents
from suite_plumbing.result_files import write_tensors
from suite_plumbing.result_reading import Lazy

T = TypeVar("T")


class ReadEach(Sequence[T]):
    """A sequence whose entries are made each time they are asked for, and not kept."""

    def __init__(self, number: int, read: Callable[[int], T]) -> None:
        self._number, self._read = number, read

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._number))]
        return self._read(range(self._number)[index])


@dataclass(frozen=True, eq=False)
class _Outline:
    """What of a kept capture stays in memory."""

    input_ids: Tensor
    attention_mask: Tensor
    components: dict[int, dict[str, Any]]
    """by layer: the fields that are no tensors"""
    tensors: dict[int, list[str]]
    """by layer: names of the fields that are"""
    streams: list[int]
    """layers with a residual stream"""


@contextmanager
def captures_kept(
    folder: Path, captures: Iterable[tuple[int, Capture]]
) -> Iterator[Sequence[Capture]]:
    """Captures by number, written into a folder as they come, which is removed at the end.

    What another run left there is removed first. Memory: token ids, and one capture while it is
    written; on disk what the captures would have held. Raises OSError where the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        outlines = {index: _written(_file(folder, index), one) for index, one in captures}
        yield ReadEach(len(outlines), lambda index: _read(_file(folder, index), outlines[index]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _file(folder: Path, index: int) -> Path:
    return folder / f"capture_{index}.safetensors"


def _written(path: Path, captured: Capture) -> _Outline:
    """Write a capture's arrays; what of it stays in memory."""
    tensors: dict[str, Tensor] = {}
    names: dict[int, list[str]] = {}
    rest: dict[int, dict[str, Any]] = {}
    for layer, parts in captured.components.items():
        values = {field.name: getattr(parts, field.name) for field in fields(parts)}
        own = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        tensors |= {f"{layer}/{name}": value for name, value in own.items()}
        names[layer] = list(own)
        rest[layer] = {name: value for name, value in values.items() if name not in own}
    for layer, stream in captured.block_outputs.items():
        tensors |= {f"{layer}/before": captured.block_inputs[layer], f"{layer}/after": stream}
    write_tensors(path, tensors, finite=False)
    streams = list(captured.block_outputs)
    # Cloned: a text of a batch is a view, which would keep the whole batch.
    ids, mask = captured.input_ids.clone(), captured.attention_mask.clone()
    return _Outline(ids, mask, rest, names, streams)


def _read(path: Path, outline: _Outline) -> Capture:
    """The capture of a file, of which nothing has been read yet."""
    streams = {
        name: Lazy({layer: partial(_tensor, path, f"{layer}/{name}") for layer in outline.streams})
        for name in ("before", "after")
    }
    makers = {layer: partial(_components, path, outline, layer) for layer in outline.components}
    return Capture(
        outline.input_ids, outline.attention_mask, Lazy(makers), streams["before"], streams["after"]
    )


def _components(path: Path, outline: _Outline, layer: int) -> SSMComponents:
    given = dict(outline.components[layer])
    given |= {name: _tensor(path, f"{layer}/{name}") for name in outline.tensors[layer]}
    return SSMComponents(**given)


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        # Cloned: the file's own place in memory is aligned otherwise, which can round otherwise.
        return file.get_tensor(name).clone()
