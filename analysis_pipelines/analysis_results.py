"""Results of the main analysis: how they are put together, checked and written.

The JSON is nested by text and step, with its statistics at six significant digits; tensors and a
table of neurons go beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from analysis_pipelines.cross_text_steps import TextMeasures
from attention_neurons import NEURON_METHODS, AttentionData
from causal_interventions.neuron_effects import ablation_rows
from mamba_mixers.replay_check import replay_check
from ssm_measures.components import Capture
from ssm_measures.neuron_sets import NeuronSet
from suite_plumbing.output_folders import owning
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    beside,
    six_digits,
    to_jsonable,
    write_csv,
    write_json,
    write_tensors,
    written_together,
)
from suite_plumbing.result_reading import RUN_ID, Lazy, entry_at
from suite_plumbing.texts import EncodedText, text_origins
from token_statistics.findings import Finding, judged, twins_section

METHODS_USED = (
    "ssm_extraction", "implicit_attention", "synthetic_attention", "neuron_creation",
    "correlation_analysis",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Settings:
    """How an analysis is run."""

    layers: list[int]
    batch_size: int = 2
    seed: int = 0
    num_ablations: int = 0
    """random neurons of each layer whose ablation checks the neuron methods; 0: no check"""
    num_twins: int = 0
    """untrained twins of each kind that are analysed beside the model; 0: none"""
    faithfulness: bool = False
    """whether attributions to input tokens are measured by perturbing the texts"""
    command: Sequence[str] | None = None
    """command line, for the provenance"""


@dataclass(frozen=True, eq=False)
class TextAnalysis:
    """What the steps found on one text, ready to be written."""

    sections: dict[str, Any]
    """by step, strict JSON"""
    tensors: Mapping[str, Tensor]
    """delta, attention maps, neurons: what is too large for JSON"""
    neuron_rows: list[dict[str, Any]]
    """the most important neurons of every layer and method"""
    measures: TextMeasures | None
    """what the cross-text analysis compares; None where the capture failed"""
    replay_errors: dict[str, float]
    """by layer"""
    failures: dict[str, dict[str, Any]]
    """by step"""


@dataclass(frozen=True, eq=False)
class Analysis:
    """A whole analysis: strict JSON, the tensors that go beside it, and a table of neurons."""

    results: dict[str, Any]
    tensors: Mapping[str, Tensor]
    neuron_rows: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TwinResults:
    """The analysis of an untrained twin, on the same texts."""

    kind: str
    """in `twin_bounds.TWIN_KINDS`"""
    seed: int
    """of its weights"""
    results: dict[str, Any]
    findings: list[Finding]
    """its key findings, in the order of the model's"""


def with_findings(
    analysis: Analysis, findings: Sequence[Finding], twins: Sequence[TwinResults] = ()
) -> Analysis:
    """The analysis with its findings, beside those of untrained twins and beside each other.

    Adds ``findings``, rows of `Finding.to_dict`, and with twins ``untrained_twins``: by kind their
    seeds, the value of every claim in each of them, and the first one's cross-text analysis.
    """
    by_kind: dict[str, list[TwinResults]] = {}
    for twin in twins:
        by_kind.setdefault(twin.kind, []).append(twin)
    found = {kind: {twin.seed: twin.findings for twin in of} for kind, of in by_kind.items()}
    verdicts = judged(findings, {kind: list(of.values()) for kind, of in found.items()})
    results = dict(analysis.results)
    results["findings"] = [finding.to_dict() for finding in verdicts]
    if twins:
        results["untrained_twins"] = {
            kind: {**part, "cross_text_analysis": by_kind[kind][0].results["cross_text_analysis"]}
            for kind, part in twins_section(findings, found).items()
        }
    return replace(analysis, results=to_jsonable(results))


def with_overview(analysis: Analysis, section: Mapping[str, Any]) -> Analysis:
    """The analysis with its overview before its other sections; one that failed is in the check."""
    rest = dict(analysis.results)
    if "error" in section:
        lost = {**rest["self_check"]["without_result"], "overview": dict(section)}
        rest["self_check"] = {**rest["self_check"], "without_result": lost}
    first = {name: rest.pop(name) for name in ("schema_version", "analysis_metadata")}
    return replace(analysis, results={**first, "overview": dict(section), **rest})


def with_predictions(
    analysis: Analysis, section: Mapping[str, Any], name: str = "predictions"
) -> Analysis:
    """The analysis with a section ``name`` of each text, by text; a failure is in the check."""
    rest = dict(analysis.results)
    if "error" in section:
        lost = {**rest["self_check"]["without_result"], name: dict(section)}
        rest["self_check"] = {**rest["self_check"], "without_result": lost}
        return replace(analysis, results=rest)
    texts = {
        text: {**part, name: section[text]} if text in section else part
        for text, part in rest["individual_texts"].items()
    }
    return replace(analysis, results={**rest, "individual_texts": texts})


def with_tensors(analysis: Analysis, more: Mapping[str, Tensor]) -> Analysis:
    """The analysis with more tensors; those that are read from disk when asked for stay there."""
    if isinstance(analysis.tensors, dict):
        return replace(analysis, tensors={**analysis.tensors, **more})
    readers = {key: partial(analysis.tensors.__getitem__, key) for key in analysis.tensors}
    readers |= {key: partial(more.__getitem__, key) for key in more}
    return replace(analysis, tensors=Lazy(readers))


def write_analysis(analysis: Analysis, path: Path, stale: Iterable[Path] = ()) -> Path:
    """Write an analysis as ``path`` (JSON), its tensors and its table of neurons beside it, and
    of ablated neurons where there are any.

    All of them or none: see `written_together`, also for ``stale``. Tensors and table of an earlier
    run do not stay beside an analysis that has none. Returns ``path``. Raises ValueError where
    another run has the folder.
    """
    tensors, table, ablation = (
        beside(path, ending) for ending in (".safetensors", "_neurons.csv", "_ablation.csv")
    )
    with owning(path.parent), written_together([tensors, table, ablation, *stale]):
        if analysis.tensors:
            write_tensors(tensors, analysis.tensors, entry_at(analysis.results, *RUN_ID))
        if analysis.neuron_rows:
            write_csv(table, analysis.neuron_rows)
        if ablated := _ablated_neurons(analysis.results):
            write_csv(ablation, ablated)
        return write_json(path, analysis.results)


def _ablated_neurons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a text, layer and ablated neuron."""
    texts = results.get("individual_texts", {})
    return [
        {"text": int(name[5:]), **row}
        for name, part in texts.items()
        for row in ablation_rows(part.get("analysis", {}).get("neuron_ablation", {}))
    ]


def text_tensors(
    captured: Capture,
    attention: AttentionData | None,
    neurons: dict[str, dict[int, NeuronSet]] | None,
) -> dict[str, Tensor]:
    """``layer_3.delta`` (l, H), ``.gated``, attention maps (l, l), importance (d_inner,)."""
    tensors = {}
    for layer, parts in captured.components.items():
        tensors[f"layer_{layer}.delta"] = parts.delta[0]
        tensors[f"layer_{layer}.gated"] = parts.gated[0]
    if attention is not None:
        tensors.update({name: maps[0] for name, maps in attention.tensors().items()})
    for method, by_layer in (neurons or {}).items():
        for layer, found in by_layer.items():
            tensors[f"layer_{layer}.importance.{method}"] = found.importance
    return tensors


def neuron_rows(neurons: dict[str, dict[int, NeuronSet]] | None) -> list[dict[str, Any]]:
    """Rows of the neuron table: the most important ones of every method and layer."""
    return [
        {"method": method, "layer": layer, **row}
        for method, by_layer in (neurons or {}).items()
        for layer, found in by_layer.items()
        for row in found.top_neurons()
    ]


def assemble(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    texts: Sequence[TextAnalysis],
    cross_text: dict[str, Any],
    settings: Settings,
    seconds: float,
    lost: Mapping[str, Any] | None = None,
) -> Analysis:
    """The nested result of all texts, with self-check and provenance beside it.

    ``lost``: failures of cross-text steps that left a result all the same. The tensors of texts
    that were kept on disk are read from there when they are asked for.
    """
    origin = provenance(
        model,
        command=settings.command,
        seed=settings.seed,
        texts=text_origins(encoded),
    )
    origin["run"]["seconds"] = seconds
    results = {
        "schema_version": SCHEMA_VERSION,
        "analysis_metadata": {
            "layer_indices": settings.layers,
            "num_texts": len(encoded),
            "methods_used": list(METHODS_USED),
            "neuron_methods": list(NEURON_METHODS),
        },
        "self_check": _self_check(model, texts, {**cross_text, **(lost or {})}),
        "individual_texts": {
            f"text_{i}": {
                "text": text.text,
                "tokens": text.tokens,
                "offsets": text.offsets,
                "analysis": six_digits(found.sections),
            }
            for i, (text, found) in enumerate(zip(encoded, texts, strict=True))
        },
        "cross_text_analysis": six_digits(cross_text),
        "provenance": origin,
    }
    return Analysis(
        to_jsonable(results),
        _all_tensors(texts),
        [{"text": i, **row} for i, text in enumerate(texts) for row in text.neuron_rows],
    )


def _all_tensors(texts: Sequence[TextAnalysis]) -> Mapping[str, Tensor]:
    places = {
        f"text_{i}.{name}": (text.tensors, name)
        for i, text in enumerate(texts)
        for name in text.tensors
    }
    if all(isinstance(text.tensors, dict) for text in texts):
        return {key: tensors[name] for key, (tensors, name) in places.items()}
    return Lazy(
        {key: partial(tensors.__getitem__, name) for key, (tensors, name) in places.items()}
    )


def without_repeats(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without the texts that are an earlier one again, for findings to count."""
    origins = results["provenance"]["texts"]
    texts = results["individual_texts"]
    kept = {name: part for name, part in texts.items() if "same_as" not in origins[name]}
    return {**results, "individual_texts": kept}


def _self_check(
    model: PreTrainedModel, texts: Sequence[TextAnalysis], cross_text: Mapping[str, Any]
) -> dict[str, Any]:
    """How well the replayed mixers reproduce the model's own, and every step without a result."""
    failures = {f"text_{i}": text.failures for i, text in enumerate(texts) if text.failures}
    if failed := {
        name: part for name, part in cross_text.items() if {"error", "skipped"} & {*part}
    }:
        failures["cross_text_analysis"] = failed
    return {
        **replay_check(model, {f"text_{i}": one.replay_errors for i, one in enumerate(texts)}),
        "without_result": failures,
    }
