"""What a run over a corpus was asked for, stored with its parts and compared with them.

Whatever decides over a number is in the configuration: the model by its weights, the texts by a
fingerprint, the tasks, the seed. What does not (workers, the engine, how many failures are borne)
is not, so that a run may go on with more workers than it began with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suite_plumbing.corpus_texts import Source
from suite_plumbing.messages import quoted
from suite_plumbing.result_files import read_json, to_jsonable, write_json

PLAN_NAME = "corpus_plan.json"

PARTS_NAME = "parts"

DEFAULT_TASKS = 16

FORMAT = 1
"""Of the part files: parts of another format are parts of another configuration."""


@dataclass(frozen=True)
class Settings:
    """What every process of a run is given."""

    source: Source
    model: str
    tokenizer: str
    layers: tuple[int, ...]
    tasks: int = DEFAULT_TASKS
    max_sequence_length: int = 512
    batch_tokens: int = 1024
    """tokens of a batch, padding included; a longer window is a batch of its own"""
    maps_every: int = 4
    """one in so many windows, by the hash of its number, gives maps, states and pairs"""
    importance_every: int = 64
    """one in so many gives the importance of neurons by three methods, which takes a gradient; 0:
    none"""
    carry: bool = False
    """documents are read as one stream: each window starts from the memory of the one before"""
    seed: int = 0
    threads: int = 1
    device: str | None = None
    dtype: str = "float32"
    max_failures: int = 100


@dataclass(frozen=True)
class Plan:
    """Settings with the folder that a run writes to and the digest of its configuration."""

    settings: Settings
    folder: Path
    digest: str

    def part_path(self, task: int) -> Path:
        """Where the part of a task goes."""
        return self.folder / PARTS_NAME / f"part_{task:05d}.safetensors"

    def missing(self) -> list[int]:
        """Tasks whose part is not there."""
        return [t for t in range(self.settings.tasks) if not self.part_path(t).is_file()]


def configuration(settings: Settings, weights: str, device: str) -> dict[str, Any]:
    """What decides over the numbers, for JSON; ``weights`` is the digest of the model's."""
    left_out = ("source", "model", "device", "max_failures")
    found = {name: x for name, x in asdict(settings).items() if name not in left_out}
    found |= {"format": FORMAT, "weights_sha256": weights, "device": device.split(":")[0]}
    return to_jsonable(found | {"texts": settings.source.described()})


def stored_tasks(folder: Path) -> int | None:
    """Number of tasks of the run that this folder holds; None where it holds none."""
    path = folder / PLAN_NAME
    return int(read_json(path)["configuration"]["tasks"]) if path.is_file() else None


def open_plan(folder: Path, settings: Settings, weights: str, device: str) -> Plan:
    """The plan of a run that begins, or goes on, in this folder.

    Raises ValueError, naming what differs, where the folder holds a run of another configuration.
    """
    asked = configuration(settings, weights, device)
    path = folder / PLAN_NAME
    if path.is_file():
        there = read_json(path).get("configuration")
        if differing := list(_differences(there, asked)):
            shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
            raise ValueError(
                f"output folder {quoted(str(folder))} holds a run of another configuration "
                f"({shown}): give what it was given, or name another folder"
            )
    else:
        write_json(path, {"configuration": asked, "digest": digest_of(asked)})
    (folder / PARTS_NAME).mkdir(exist_ok=True)
    return Plan(settings, folder, digest_of(asked))


def digest_of(asked: dict[str, Any]) -> str:
    """SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif there != here:
        yield f"{path} was {str(there)[:40]}, is {str(here)[:40]}"
