"""Results read back: a run's JSON with its tensors, and the sections of its texts and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import safe_open
from torch import Tensor

from suite_plumbing.errors import is_recoverable
from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.paths import StrPath, user_path
from suite_plumbing.provenance import SCHEMA_VERSION
from suite_plumbing.result_files import RUN_KEY, beside, read_json

K = TypeVar("K")
V = TypeVar("V")

Section = Mapping[str, Any]
"""what a step left in the results"""

Sections = Mapping[str, Section]
"""one step's sections, by text"""

RUN_ID = ("provenance", "run", "id")
"""path of the run's id in results"""

Tensors = Mapping[str, Tensor]


def read(results: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What stands at a path of nested results, by the keys that its wildcards stand for.

    ``path``: keys with dots between them; * is every key of a dict. {"text_0.layer_3": value} for
    two wildcards, {"": value} for none. What is not there is left out: a step that failed has no
    such keys.
    """
    found: list[tuple[tuple[str, ...], Any]] = [((), results)]
    for key in path.split("."):
        nested = [(names, part) for names, part in found if isinstance(part, Mapping)]
        if key == "*":
            found = [((*names, k), v) for names, part in nested for k, v in part.items()]
        else:
            found = [(names, part[key]) for names, part in nested if key in part]
    return {".".join(names): value for names, value in found}


def entry_at(sections: Mapping[str, Any], *path: str) -> Any:
    """What stands at a path of keys, or None where a step left something else there."""
    entry: Any = sections
    for name in path:
        if not isinstance(entry, Mapping) or name not in entry:
            return None
        entry = entry[name]
    return entry


def run_mark(results: Mapping[str, Any]) -> str:
    """A comment of HTML, and of Markdown, that says which run a page is of; empty for none."""
    run_id = entry_at(results, *RUN_ID)
    return f"<!-- {RUN_KEY}: {run_id} -->" if run_id is not None else ""


def text_sections(results: Section, step: str) -> dict[str, Section]:
    """One step's section of every text, by text; a text without it has a section that says so."""
    missing = {"skipped": f"{step} is not in these results"}
    texts = results.get("individual_texts", {})
    return {name: text["analysis"].get(step, missing) for name, text in texts.items()}


def cross_text_section(results: Section, step: str) -> Section:
    """One section of the cross-text analysis, or one that says that it is not there."""
    missing = {"skipped": f"{step} is not in these results"}
    return results.get("cross_text_analysis", {}).get(step, missing)


def failure(section: Section) -> str | None:
    """Why a section holds no result: its error or the reason it was skipped; None if it has one."""
    if not section:
        return "no results"
    if "error" in section:
        return f"{section['error']['type']}: {section['error']['message']}"
    if "skipped" in section:
        return f"skipped: {section['skipped']}"
    return section["reason"] if set(section) == {"reason"} else None


def usable(sections: Sections) -> dict[str, Section]:
    """The sections that hold a result."""
    return {text: section for text, section in sections.items() if failure(section) is None}


def why_none(sections: Sections) -> str | None:
    """The first failure among the sections; None if all hold a result."""
    if not sections:
        return "no texts"
    return next((why for why in map(failure, sections.values()) if why is not None), None)


def layers_of(section: Section) -> list[tuple[int, Any]]:
    """What a section keyed by "layer_3" holds, by number of layer, ascending."""
    prefix = "layer_"
    numbered = [
        (int(key[len(prefix) :]), part) for key, part in section.items() if key.startswith(prefix)
    ]
    return sorted(numbered, key=lambda pair: pair[0])


def all_layers(sections: Sections) -> list[int]:
    """Every layer of the usable sections, ascending."""
    found = usable(sections).values()
    return sorted({layer for section in found for layer, _ in layers_of(section)})


def load_results(path: StrPath) -> tuple[dict[str, Any], Tensors]:
    """Results of an analysis from JSON, and the tensors beside it (none: an empty dict).

    Raises ValueError for a file that is missing, not strict JSON, or of another schema version, and
    for tensors that cannot be read or that another run wrote.
    """
    path = user_path(path, "results file")
    if not path.is_file():
        raise ValueError(
            f"there is no results file {quoted(str(path))}; run the main analysis first: "
            "python corrected_recursive_ssm_attention_analyzer.py, or name another file"
        )
    results = read_json(path)
    version = results.get("schema_version") if isinstance(results, dict) else None
    if str(version).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise ValueError(
            f"results file {quoted(str(path))} has schema_version {quoted(version)}; this version "
            f"draws {quoted(SCHEMA_VERSION)}: run the analysis again"
        )
    return results, _read_tensors(beside(path, ".safetensors"), entry_at(results, *RUN_ID))


@contextmanager
def drawing_from(path: StrPath) -> Iterator[None]:
    """Within this context results are a file's: what they lack is that file's fault.

    Figures and reports read what the suite wrote and look for nothing else, so that in a file cut
    or edited by hand they find keys missing, or of another kind: a ValueError that names the file.
    """
    try:
        yield
    except Exception as error:
        # What is said of formats, folders and disks holds whatever the file is like.
        if isinstance(error, (ValueError, OSError)) or is_recoverable(error):
            raise
        raise ValueError(
            f"results file {quoted(str(path))} lacks what is drawn from it "
            f"({reason_of(error)}): it was damaged, or edited by hand; run the analysis again"
        ) from error


class Lazy(Mapping[K, V], Generic[K, V]):
    """A mapping whose values are made each time they are asked for, and not kept."""

    def __init__(self, makers: Mapping[K, Callable[[], V]]) -> None:
        self._makers = makers

    def __getitem__(self, key: K) -> V:
        return self._makers[key]()

    def __iter__(self) -> Iterator[K]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = tuple(self._file.keys())
        self.run_id: str | None = (self._file.metadata() or {}).get(RUN_KEY)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_tensors(path: Path, run_id: str | None) -> Tensors:
    if not path.is_file():
        return {}
    advice = "remove it to draw the figures without attention maps, or run the main analysis again"
    try:
        tensors = TensorFile(path)
    except Exception as error:
        raise ValueError(
            f"tensors file {quoted(str(path))} cannot be read ({reason_of(error)}); {advice}"
        ) from error
    if None not in (run_id, tensors.run_id) and run_id != tensors.run_id:
        raise ValueError(
            f"tensors file {quoted(str(path))} is of run {tensors.run_id}, the results beside it "
            "are of "
            f"run {run_id}; {advice}"
        )
    return tensors
