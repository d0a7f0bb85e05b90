"""Part files: one a task, written whole, checked when they are read, merged in order of tasks.

A part holds sums, which add up in float64 in the order of the tasks, so that the merged bits do not
depend on who computed which task when; largest values, of which the largest counts; and kept
windows, which have rules of their own. Its JSON, with the digest of everything else, is one of its
tensors: a part is one file, there or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis_pipelines.corpus.plan import Plan
from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.result_files import write_tensors
from suite_plumbing.result_reading import TensorFile
from token_statistics.kept_windows import merged_arrays

LARGEST = "largest/"
"""Names of what is no sum but a largest value."""

WINDOWS = "windows/"
"""Names of kept windows: windows/LAYER/KIND/FIELD."""

_ABOUT = "about"

_MAX_LISTED = 1000  # failures of a part that are listed; all are counted


class DamagedPart(ValueError):
    """A part file that does not hold what was written."""


class OtherPart(ValueError):
    """A part file of another configuration or task."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one task found, or several merged."""

    arrays: dict[str, np.ndarray]
    counts: dict[str, int]
    """passages, windows, tokens and the like"""
    failures: list[dict[str, Any]]
    """of what could not be read, in order of passages; at most 1000 a task"""


def write_part(plan: Plan, task: int, part: Part) -> None:
    """Write a task's part: the whole file or none of it."""
    about = {
        "configuration": plan.digest,
        "task": task,
        "counts": part.counts,
        "failures": part.failures[:_MAX_LISTED],
        "sha256": _digest(part.arrays),
    }
    text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in part.arrays.items()}
    path = plan.part_path(task)
    write_tensors(path, {**tensors, _ABOUT: text}, run_id=plan.digest[:16], finite=False)


def read_part(plan: Plan, task: int) -> Part:
    """A task's part; raises DamagedPart or OtherPart, naming the file."""
    path = plan.part_path(task)
    try:
        file = TensorFile(path)
        about = json.loads(file[_ABOUT].numpy().tobytes())
        arrays = {name: file[name].numpy() for name in file if name != _ABOUT}
        digest, known = about["sha256"], about["configuration"]
        part = Part(arrays, about["counts"], about["failures"])
    except Exception as error:  # safetensors, JSON and torch raise many kinds for bad bytes
        raise DamagedPart(_damaged(path.name, reason_of(error))) from error
    if (known, about["task"]) != (plan.digest, task):
        raise OtherPart(
            f"part {quoted(path.name)} is of another configuration or task than this run: move it "
            "away, or name another folder"
        )
    if digest != _digest(arrays):
        raise DamagedPart(_damaged(path.name, "its numbers are not those that were written"))
    return part


def _damaged(name: str, reason: str) -> str:
    return f"part {quoted(name)} is damaged ({reason}): the same command computes it again"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def merge_parts(parts: Iterator[Part], seed: int = 0) -> Part:
    """Parts as one, in the order in which they come; memory that of two parts."""
    merged: Part | None = None
    for part in parts:
        merged = part if merged is None else _merged(merged, part, seed)
    if merged is None:
        raise ValueError("there are no parts to merge")
    return merged


def _merged(a: Part, b: Part, seed: int) -> Part:
    arrays: dict[str, np.ndarray] = {}
    names = [*a.arrays, *(name for name in b.arrays if name not in a.arrays)]
    for layer in sorted({_window_layer(name) for name in names if name.startswith(WINDOWS)}):
        sides = [side for part in (a, b) if (side := _windows(part.arrays, layer))]
        arrays |= {f"{WINDOWS}{layer}/{k}": x for k, x in merged_arrays(sides, seed).items()}
    for name in names:
        # A task without any text of some kind has no sums of it.
        sides = [part.arrays[name] for part in (a, b) if name in part.arrays]
        if name.startswith(LARGEST):
            arrays[name] = np.maximum(sides[0], sides[-1])
        elif not name.startswith(WINDOWS):
            arrays[name] = sides[0] if len(sides) == 1 else sides[0] + sides[1]
    counts = {name: a.counts[name] + b.counts[name] for name in a.counts}
    failures = sorted([*a.failures, *b.failures], key=lambda one: one["index"])
    return Part(arrays, counts, failures)


def _window_layer(name: str) -> int:
    return int(name.split("/")[1])


def _windows(arrays: Mapping[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    prefix = f"{WINDOWS}{layer}/"
    return {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}


def windows_by_layer(part: Part, layers: Sequence[int]) -> dict[int, dict[str, np.ndarray]]:
    """The kept windows of each layer, by ``kind/field``."""
    return {layer: _windows(part.arrays, layer) for layer in layers}


def sums_of(part: Part, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, without that beginning."""
    return {k[len(prefix) :]: x for k, x in part.arrays.items() if k.startswith(prefix)}
