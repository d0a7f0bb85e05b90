"""Results of a comparison of models: what was read of every text and pair, as strict JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis_pipelines.comparison_findings import findings_on
from analysis_pipelines.comparison_readings import (
    KERNEL_LAGS,
    MAP_MEASURES,
    MapReadings,
    PairValues,
    Shifts,
    Subject,
    map_measures,
    num_pieces,
)
from analysis_pipelines.shared_pieces import Pieces
from mamba_mixers.replay_check import REPLAY_TOLERANCE, replay_tolerance
from mamba_mixers.untrained_twins import ENOUGH_TWINS
from result_views.report.comparison_report import comparison_rows
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    finite_or_none,
    to_jsonable,
)
from suite_plumbing.texts import (
    EncodedText,
)
from token_statistics.findings import over_run
from token_statistics.layer_likeness import (
    MIN_SOURCES,
    over_texts,
    plain,
    window_size,
    with_null,
)
from token_statistics.text_groups import group_means
from token_statistics.time_shift_nulls import against_null, undefined
from token_statistics.twin_bounds import FRESH


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that the results are written from."""

    subjects: list[Subject]
    encoded: dict[str, list[EncodedText]]
    pieces: list[dict[str, Pieces]]
    shifts: Shifts
    found: MapReadings
    twins: dict[str, list[MapReadings]]
    """by kind"""

    @property
    def num_pieces(self) -> list[int]:
        """Pieces of every text."""
        return [num_pieces(one) for one in self.pieces]

    @property
    def groups(self) -> Sequence[int]:
        """Group of related texts of every text."""
        return self.shifts.groups

    def samples(self, counts: Sequence[int]) -> int:
        """The counts of every text added up, those of a group as one: their mean."""
        return round(float(np.sum(group_means([[n] for n in counts], self.groups))))


def comparison_results(
    compared: Comparison, seed: int, command: Sequence[str] | None
) -> dict[str, Any]:
    """The results of a comparison as strict JSON: see ``model_comparison.compare_models``."""
    subjects, found = compared.subjects, compared.found
    tokens = compared.samples(compared.num_pieces)
    pairs = list(found.pairs.items())
    verdicts = [
        finding
        for place, (pair, values) in enumerate(pairs)
        for finding in findings_on(
            pair,
            place,
            values,
            {kind: [twin.pairs[pair] for twin in of] for kind, of in compared.twins.items()},
            tokens,
            compared.groups,
        )
    ]
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "unit": "tokens" if _are_tokens(compared.pieces) else "pieces",
        "models": {one.name: _described(one) for one in subjects},
        "texts": [_text(compared, index) for index in range(len(compared.pieces))],
        "num_twins": len(compared.twins[FRESH]),
        "attention": {one.name: _attention(one, compared) for one in subjects},
        "uniform": even_attention(compared.num_pieces),
        "pairs": [_pair(pair, values, compared) for pair, values in pairs],
        "findings": [finding.to_dict() for finding in over_run(verdicts)],
        "self_check": _self_check(compared),
    }
    results["table"] = comparison_rows(results)
    return to_jsonable(results | {"provenance": _provenance(compared, seed, command)})


def _are_tokens(pieces: Sequence[Mapping[str, Pieces]]) -> bool:
    return all(one.are_tokens for aligned in pieces for one in aligned.values())


def _described(subject: Subject) -> dict[str, Any]:
    return {
        "class": type(subject.model).__name__,
        "num_layers": subject.num_layers,
        "layers": subject.layers,
        "sites": [str(site) for site in subject.sites],
        "max_tokens": subject.max_tokens,
    }


def _text(compared: Comparison, index: int) -> dict[str, Any]:
    """What every model read of a text, and how many of its own tokens that was."""
    encodings = {name: texts[index] for name, texts in compared.encoded.items()}
    aligned = compared.pieces[index]
    covered = next(iter(aligned.values())).num_characters
    return {
        "text": next(iter(encodings.values())).text,
        "num_characters_read": covered,
        "num_pieces": compared.num_pieces[index],
        "num_tokens": {name: len(one.groups) for name, one in aligned.items()},
        "num_tokens_before_truncation": {
            name: one.num_tokens_before_truncation for name, one in encodings.items()
        },
    }


def _attention(subject: Subject, compared: Comparison) -> dict[str, Any]:
    """By site: each measure with its spread and that of twins of each kind, and the kernel."""
    name, groups = subject.name, compared.groups
    tokens = compared.samples(compared.num_pieces)
    by_text = compared.found.measures[name]
    mean, spread = over_texts(list(by_text), groups)
    untrained = {
        kind: [over_texts(list(twin.measures[name]), groups)[0] for twin in of]
        for kind, of in compared.twins.items()
    }
    kernel, kernel_spread = over_texts(list(compared.found.kernels[name]), groups)
    sections = {}
    for i, site in enumerate(subject.sites):
        measures = {
            measure_name: {
                "value": finite_or_none(mean[i, k]),
                "text_std": finite_or_none(spread[i, k]),
                "num_texts": int(np.isfinite(by_text[:, i, k]).sum()),
                "n": tokens,
                "untrained": {
                    kind: _beside_twins(mean[i, k], [twin[i, k] for twin in of], tokens)
                    for kind, of in untrained.items()
                },
            }
            for k, measure_name in enumerate(MAP_MEASURES)
        }
        kernels = {"kernel": plain(kernel[i : i + 1])[0],
                   "kernel_text_std": plain(kernel_spread[i : i + 1])[0]}  # fmt: skip
        sections[str(site)] = measures | kernels
    return sections


def _beside_twins(value: float, twins: Sequence[float], n: int) -> dict[str, Any]:
    """A measure beside the same of untrained twins of one kind, two-sided."""
    if len(twins) < ENOUGH_TWINS:
        return undefined(f"{len(twins)} untrained twins; a null needs {ENOUGH_TWINS}", n).to_dict()
    return against_null(value, np.array(twins), n).to_dict()


def even_attention(counts: Sequence[int]) -> dict[str, Any]:
    """The measures of attention that is the same for every token of the past, mean over texts."""
    ones = [torch.ones(n, n, dtype=torch.float32) for n in counts]
    shares = [one.tril() / torch.arange(1, len(one) + 1)[:, None] for one in ones]
    found = [map_measures(one) for one in shares]
    lags = min(KERNEL_LAGS, *(len(kernel) for _, kernel in found))
    mean, _ = over_texts([np.array([values]) for values, _ in found])
    return {
        **{name: finite_or_none(x) for name, x in zip(MAP_MEASURES, mean[0], strict=True)},
        "kernel": np.mean([kernel[:lags] for _, kernel in found], axis=0).tolist(),
    }


def _pair(pair: tuple[str, str], values: PairValues, compared: Comparison) -> dict[str, Any]:
    by_name = {one.name: one for one in compared.subjects}
    lengths, reason, groups = compared.num_pieces, compared.shifts.reason, compared.groups
    queries = compared.samples([length - window_size(length) for length in lengths])
    causal, spread = over_texts(values.causal, groups)
    other = over_texts(values.other_text)[0] if values.other_text else np.full_like(causal, np.nan)
    cka = with_null(values.cka, values.cka_draws, compared.samples(lengths), reason, groups)
    return {
        "models": list(pair),
        "agreement": {
            "sites": [[str(site) for site in by_name[name].sites] for name in pair],
            "causal": {
                "value": plain(causal),
                "text_std": plain(spread),
                "lag_only": plain(over_texts(values.lag_only, groups)[0]),
                "other_text": plain(other),
                "n": compared.samples([max(0, n - MIN_SOURCES + 1) for n in lengths]),
                "num_texts": len(values.causal),
                "num_other_texts": len(values.other_text),
            },
            "windowed": with_null(values.windowed, values.windowed_draws, queries, reason, groups),
        },
        "cka": {"layers": [by_name[name].layers for name in pair], **cka},
    }


def _self_check(compared: Comparison) -> dict[str, Any]:
    errors = compared.found.replay_errors
    tolerances = {
        one.name: replay_tolerance(one.model)
        if any(site.kind == "implicit" for site in one.sites)
        else REPLAY_TOLERANCE.get(one.model.dtype, 1e-2)
        for one in compared.subjects
    }
    return {
        "replay_error": errors,
        "replay_tolerance": tolerances,
        "replay_agrees": all(e is None or e <= tolerances[name] for name, e in errors.items()),
    }


def _provenance(compared: Comparison, seed: int, command: Sequence[str] | None) -> dict[str, Any]:
    """As of any result, with what is particular to each model under ``models``."""
    subjects = compared.subjects
    origins = {one.name: provenance(one.model, command=command, seed=seed) for one in subjects}
    own = ("model", "dtype", "device")
    models = {name: {key: origin.pop(key) for key in own} for name, origin in origins.items()}
    texts = {f"text_{i}": {"num_tokens": count} for i, count in enumerate(compared.num_pieces)}
    return {
        **next(iter(origins.values())),
        "model": {"id": " and ".join(models)},
        "models": models,
        "texts": texts,
    }
