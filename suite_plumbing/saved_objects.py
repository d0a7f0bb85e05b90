"""Result objects in files: a dataclass of tensors and plain values, whole, and back again.

A safetensors file, so that other tools read the tensors by their dotted names; the plain values are
JSON in its metadata.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from suite_plumbing.messages import quoted
from suite_plumbing.result_files import StrPath, write_atomically

T = TypeVar("T")

_KIND, _PLAIN = "kind", "plain"


def save_object(value: Any, path: StrPath) -> None:
    """Write a dataclass of tensors, plain values and further such dataclasses to one file.

    What is computed from the fields is not stored. Written whole or not at all; raises TypeError
    for a field that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    plain = _flattened(value, "", tensors)
    metadata = {_KIND: type(value).__name__, _PLAIN: json.dumps(plain)}
    with write_atomically(path, "wb") as handle:
        handle.write(save({name: x.contiguous() for name, x in tensors.items()}, metadata))


def load_object(kind: type[T], path: StrPath) -> T:
    """The object that `save_object` wrote, its tensors on the CPU.

    Raises ValueError for a file that holds none of this kind.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{quoted(str(path))} cannot be read: {error}") from error
    if metadata.get(_KIND) != kind.__name__:
        found = metadata.get(_KIND) or "no result object"
        raise ValueError(f"{quoted(str(path))} holds {found}; this reads {kind.__name__}")
    return _restored(kind, json.loads(metadata[_PLAIN]), "", tensors)


def _flattened(value: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The plain values by field; tensors go to ``tensors`` by dotted name."""
    plain: dict[str, Any] = {}
    for field in fields(value):
        name, content = f"{prefix}{field.name}", getattr(value, field.name)
        if isinstance(content, Tensor):
            tensors[name] = content.detach().cpu()
        elif is_dataclass(content):
            plain[field.name] = _flattened(content, f"{name}.", tensors)
        else:
            plain[field.name] = content
    return plain


def _restored(kind: Any, plain: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]):
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        if name in tensors:
            values[field.name] = tensors[name]
        elif is_dataclass(hints[field.name]):
            values[field.name] = _restored(
                hints[field.name], plain[field.name], f"{name}.", tensors
            )
        elif field.name in plain:
            values[field.name] = _as_tuples(plain[field.name])
    return kind(**values)


def _as_tuples(value: Any) -> Any:
    """JSON knows lists alone; the objects' own sequences are tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
