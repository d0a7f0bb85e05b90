"""Analyses of texts on disk while others are still to come: what a stopped run goes on from.

A text that has been analysed leaves two files in a hidden folder of the output folder, each whole
or absent: its tensors and what the texts are compared by, then, as the sign that it is done, its
JSON. In memory stays what goes into the results' JSON; arrays are read one by one when asked for.
The folder says of which configuration its parts are, and is removed when the results are written.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.analysis_results import TextAnalysis
from analysis_pipelines.cross_text_steps import TextMeasures
from suite_plumbing.kept_values import VALUES_NAME, KeptValues
from suite_plumbing.messages import quoted
from suite_plumbing.provenance import provenance
from suite_plumbing.result_files import (
    StrPath,
    read_json,
    six_digits,
    to_jsonable,
    write_json,
    write_tensors,
)  # fmt: skip
from suite_plumbing.result_reading import Lazy, TensorFile
from suite_plumbing.texts import EncodedText, padding_id
from token_statistics.channel_correlations import PooledActivations

logger = logging.getLogger(__name__)

V = TypeVar("V")

PARTS_NAME = ".texts"
"""Folder of the parts in an output folder."""

_CONFIGURATION = "configuration.json"

_ARRAYS = ("ssm", "attention", "importance")


class TextParts:
    """The texts of one analysis that are done, as files in a folder."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder = folder
        self._digest = _digest(configuration)
        self._file = functools.lru_cache(maxsize=4)(TensorFile)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _CONFIGURATION, configuration)

    def within(self, name: str) -> TextParts:
        """Parts of another analysis of the same run, in a folder of their own within this one."""
        return TextParts(self.folder / name, {"part_of": self._digest, "name": name})

    def keep(self, index: int, found: TextAnalysis) -> TextAnalysis:
        """Write a text's analysis; what is returned reads its arrays from there."""
        arrays = {f"tensors/{name}": tensor for name, tensor in found.tensors.items()}
        arrays |= {} if found.measures is None else _measures_as_tensors(found.measures)
        if arrays:
            self._file.cache_clear()  # of a file that is written anew
            write_tensors(self._path(index, "safetensors"), arrays, finite=False)
        part = {
            "configuration": self._digest,
            "arrays": list(arrays),
            "measured": found.measures is not None,
            "sections": six_digits(found.sections),
            "neuron_rows": found.neuron_rows,
            "replay_errors": found.replay_errors,
            "failures": found.failures,
        }
        write_json(self._path(index, "json"), part)
        return self._analysis(index, to_jsonable(part))

    def values(self) -> KeptValues:
        """Single measurements of the run, kept beside its texts."""
        return KeptValues(self.folder / VALUES_NAME)

    def load(self, index: int) -> TextAnalysis | None:
        """A text's analysis; None where it was not kept, or its files were damaged since."""
        if not self._path(index, "json").is_file():
            return None
        try:
            part = read_json(self._path(index, "json"))
            found = self._analysis(index, part)
            if part["arrays"]:
                self._array(index, part["arrays"][-1])
        except (ValueError, LookupError, TypeError, OSError, SafetensorError) as error:
            logger.warning("text %d is analysed again: its part is damaged (%s)", index, error)
            return None
        return found if part["configuration"] == self._digest else None

    def load_all(self, number: int) -> dict[int, TextAnalysis]:
        """Those of the first `number` texts that were kept, by index."""
        loaded = ((index, self.load(index)) for index in range(number))
        found = {index: one for index, one in loaded if one is not None}
        if found:
            logger.info("%d of %d texts were kept by a run that was stopped", len(found), number)
        return found

    def remove(self) -> None:
        """Remove the folder: what is in it stands in the results now."""
        shutil.rmtree(self.folder)

    @contextmanager
    def announced(self, total: int) -> Iterator[None]:
        """Say, when the analysis within this context is stopped, what a next run can go on from."""
        try:
            yield
        except BaseException:
            kept = len(list(self.folder.glob("text_*.json")))
            if kept:
                logger.warning(
                    "%d of %d texts are kept: the same command with --resume goes on from them",
                    kept, total,
                )  # fmt: skip
            raise

    def _path(self, index: int, kind: str) -> Path:
        return self.folder / f"text_{index}.{kind}"

    def _array(self, index: int, name: str) -> Tensor:
        return self._file(self._path(index, "safetensors"))[name]

    def _analysis(self, index: int, part: Mapping[str, Any]) -> TextAnalysis:
        makers = {name: functools.partial(self._array, index, name) for name in part["arrays"]}
        prefix = "tensors/"
        sections = part["sections"]
        return TextAnalysis(
            sections=sections,
            tensors=Lazy(
                {name[len(prefix) :]: m for name, m in makers.items() if name.startswith(prefix)}
            ),
            neuron_rows=part["neuron_rows"],
            measures=_measures_from(makers, sections, part) if part["measured"] else None,
            replay_errors=part["replay_errors"],
            failures=part["failures"],
        )


def open_parts(output_dir: Path, configuration: Mapping[str, Any], resume: bool) -> TextParts:
    """The parts of a run that begins; with ``resume`` those of a stopped one are gone on from.

    Without, they are removed, and a warning says how many. Raises ValueError, naming what differs,
    for parts of another configuration.
    """
    folder = output_dir / PARTS_NAME
    configuration = to_jsonable(configuration)
    if resume and folder.is_dir():
        _check_same(read_json(folder / _CONFIGURATION), configuration, folder)
    elif folder.is_dir():
        kept = len(list(folder.glob("text_*.json")))
        if kept:
            logger.warning(
                "%d texts of a run that was stopped are discarded: --resume would go on from them",
                kept,
            )
        elif (folder / VALUES_NAME).exists():
            logger.warning("what a stopped run measured is discarded: --resume would go on from it")
        shutil.rmtree(folder)
    return TextParts(folder, configuration)


def configuration_of(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Any,
) -> dict[str, Any]:
    """Everything that the analysis of a text depends on, and nothing else.

    ``settings``: a dataclass, of which the command line stays out.
    """
    origin = provenance(model, seed=settings.seed)
    ids = json.dumps([text.input_ids for text in encoded])
    return {
        **{key: value for key, value in origin.items() if key not in ("run", "command")},
        "settings": {key: value for key, value in vars(settings).items() if key != "command"},
        "padding_id": padding_id(tokenizer),
        "texts": {
            "number": len(encoded),
            "sha256_of_ids": hashlib.sha256(ids.encode()).hexdigest(),
        },
    }


def _check_same(there: Any, here: Mapping[str, Any], folder: StrPath) -> None:
    differing = list(_differences(there, here))
    if differing:
        shown = "; ".join(differing[:3]) + ("; ..." if len(differing) > 3 else "")
        raise ValueError(
            f"the stopped run in {quoted(str(folder))} was of another configuration ({shown}): "
            "give what "
            "it was given, or leave out --resume to begin anew"
        )


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif there != here:
        yield f"{path} was {str(there)[:40]}, is {str(here)[:40]}"


def _digest(configuration: Mapping[str, Any]) -> str:
    text = json.dumps(to_jsonable(configuration), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _measures_as_tensors(measures: TextMeasures) -> dict[str, Tensor]:
    """Every array of a text's measures by its path, ``ssm/3/mean_delta`` for example."""
    arrays: dict[str, Any] = {}
    for kind in _ARRAYS:
        for layer, found in getattr(measures, kind).items():
            arrays |= {f"{kind}/{layer}/{name}": array for name, array in found.items()}
    for layer, pairs in measures.halves.items():
        for name, pair in pairs.items():
            arrays[f"halves/{layer}/{name}"] = np.stack(pair)
    for stream, pooled in measures.activations.items():
        for layer, part in pooled.items():
            arrays[f"activations/{stream}/{layer}"] = part.values
            arrays[f"lengths/{stream}/{layer}"] = np.array(part.lengths)
            if part.token_ids is not None:
                arrays[f"ids/{stream}/{layer}"] = np.concatenate(part.token_ids)
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _measures_from(
    makers: Mapping[str, Callable[[], Tensor]], sections: Mapping[str, Any], part: Mapping[str, Any]
) -> TextMeasures:
    """The inverse of `_measures_as_tensors`; each array is read when it is asked for."""

    def array(path: str) -> NDArray[Any]:
        return makers[path]().numpy()

    def pair(path: str) -> tuple[NDArray[Any], NDArray[Any]]:
        first, second = array(path)
        return first, second

    def pooled(path: str) -> PooledActivations:
        place = path.removeprefix("activations/")
        lengths = array(f"lengths/{place}").tolist()
        ids = None
        if f"ids/{place}" in makers:
            of_texts = np.split(array(f"ids/{place}"), np.cumsum(lengths)[:-1])
            ids = tuple(tuple(part.tolist()) for part in of_texts)
        return PooledActivations(array(path), tuple(lengths), ids)

    correlations = sections.get("layer_correlations")
    return TextMeasures(
        **{kind: _nested(makers, kind, array, int) for kind in _ARRAYS},
        halves=_nested(makers, "halves", pair, int),
        activations=_nested(makers, "activations", pooled, str, int),
        correlations=None if "layer_correlations" in part["failures"] else correlations,
        group=None,
    )


def _nested(
    names: Mapping[str, Any],
    kind: str,
    read: Callable[[str], V],
    outer: Callable[[str], Any],
    inner: Callable[[str], Any] = str,
) -> dict[Any, Lazy[Any, V]]:
    """{outer key: {inner key: what is read}} of the paths ``kind/outer/inner``."""
    makers: dict[Any, dict[Any, Callable[[], V]]] = {}
    for path in names:
        if path.startswith(f"{kind}/"):
            _, first, second = path.split("/", 2)
            makers.setdefault(outer(first), {})[inner(second)] = functools.partial(read, path)
    return {key: Lazy(found) for key, found in makers.items()}


def without_tensors(found: TextAnalysis) -> TextAnalysis:
    """The analysis of a text without what goes into no JSON and no comparison."""
    return replace(found, tensors={})
