"""What a report says, before it is HTML or Markdown: read and checked from the results.

Findings, tables, texts, checks and provenance. Sentences are made from the results' numbers by one
rule each; none is written down beforehand.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from result_views.answers import ShownAnswer, shown_answers
from result_views.checks import check_sentence, failures
from result_views.claims import ClaimGroup, counts, grouped
from result_views.glossary import method_name
from result_views.report.prediction_view import prediction_notes, prediction_table
from result_views.report.tables import (
    Table,
    cross_text_tables,
    memory_table,
    overview_table,
    provenance_table,
    replay_table,
    shown,
    text_name,
    text_tables,
    texts_table,
)
from result_views.report.token_view import analysed_text, view_notes
from suite_plumbing.messages import quoted
from suite_plumbing.result_reading import Section, entry_at, failure
from token_statistics.findings import Finding, caveat

_NEEDED = ("individual_texts", "analysis_metadata", "self_check", "provenance")

NO_PREDICTIONS = "These results do not say what made each prediction."


class ReportSection(NamedTuple):
    """A part of the report, in every form that has it."""

    key: str
    """of its body in the template and in `result_views.report.markdown`"""
    title: str
    short: str
    """in the page's bar"""


SECTIONS = (
    ReportSection("answers", "Answers", "Answers"),
    ReportSection("tokens", "What each token attends to", "Tokens"),
    ReportSection("predictions", "What made each prediction", "Predictions"),
    ReportSection("neurons", "Neurons", "Neurons"),
    ReportSection("findings", "Claims", "Claims"),
    ReportSection("layers", "Tables", "Tables"),
    ReportSection("figures", "Figures", "Figures"),
    ReportSection("checks", "Checks and limits", "Checks"),
    ReportSection("reproduce", "Reproduce", "Reproduce"),
    ReportSection("measures", "What the numbers are", "Measures"),
)
"""In order, for the page and for Markdown, which has headings of its own where a part is split; the
tokens are to be pointed at, and stand on the page alone."""


@dataclass(frozen=True)
class TextPart:
    """One text of the report."""

    title: str
    text: str
    """what was analysed of it"""
    rest: int
    """characters that follow, not analysed"""
    tables: list[Table]


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report says in words and tables."""

    title: str
    summary: list[str]
    """sentences: what was analysed, whether it can be trusted, how many findings hold"""
    answers: list[ShownAnswer]
    overview: Table | None
    """by layer, over all layers; None without an overview"""
    predictions: Table | None
    """by layer and path; None where no prediction was attributed"""
    claims: list[ClaimGroup]
    """of all findings, those of the memory analysis among them"""
    claim_counts: str
    """how many were tried, and have each verdict; empty for none"""
    findings_note: str
    """why there are none, or how they are to be read; may be empty"""
    memory_claims: frozenset[str]
    """those of them that the memory analysis tried"""
    memory: Table | None
    """by layer; None without a memory analysis"""
    texts: list[TextPart]
    together: list[Table]
    replay: Table
    check: str
    """whether the replayed mixers agree with the model"""
    failures: list[tuple[str, str]]
    """steps without a result: where, why"""
    limits: list[str]
    provenance: Table
    text_lengths: Table
    command: str | None
    """that makes the results again; None where they were made from Python"""


def check_results(results: Any, name: str = "results", of_text: Sequence[str] = ()) -> None:
    """Raise ValueError for what is not the JSON of an analysis, naming the key it lacks.

    ``of_text``: keys that every text has to have.
    """
    top = results if isinstance(results, Mapping) else {}
    lacking = [key for key in _NEEDED if not isinstance(top.get(key), Mapping)]
    if not lacking and not isinstance(top["analysis_metadata"].get("layer_indices"), list):
        lacking = ["analysis_metadata.layer_indices"]
    if not lacking:
        lacking = [
            f"individual_texts.{text}.{key}"
            for text, part in top["individual_texts"].items()
            for key in of_text
            if not isinstance(part, Mapping) or key not in part
        ]
    if lacking:
        raise ValueError(
            f"{name}: {', '.join(lacking[:3])} is missing; this is not the JSON of an analysis, "
            "or it is damaged: run the analysis again"
        )


def check_tensors(results: Section, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for attention maps whose size is not that of the text in the results."""
    for key in tensors:
        text, _, kind = key.partition(".layer_")
        if not kind.endswith(".absolute"):
            continue
        length = len(results["individual_texts"].get(text, {}).get("tokens", ()))
        if tuple(tensors[key].shape) != (length, length):
            raise ValueError(
                f"tensor {quoted(key)} has shape {tuple(tensors[key].shape)}, and {text} has "
                f"{length} "
                "tokens in the results: the two files are of different runs"
            )


def report_content(
    results: Section, tensors: Mapping[str, Tensor] | None = None, memory: Section | None = None
) -> ReportContent:
    """The content of the report on these results; raises ValueError where they are damaged.

    ``memory``: results of the memory analysis, which add findings and a table.
    """
    check_results(results, of_text=("text", "tokens", "analysis"))
    check_tensors(results, tensors or {})
    if memory is not None:
        check_results(memory, "memory results", ("text",))
        if not isinstance(memory.get("memory"), Mapping):
            raise ValueError(
                "memory results: memory is missing; pass the memory_recursion_results.json that "
                "run_memory_recursion_analysis.py writes"
            )
    found = findings_of(results)
    remembered = [] if memory is None else findings_of(memory)
    return ReportContent(
        title=f"What {_model_name(results)} does with its memory",
        summary=_summary(results, [*found, *remembered]),
        answers=shown_answers(results),
        overview=overview_table(results),
        predictions=prediction_table(results),
        claims=grouped([*found, *remembered]),
        claim_counts=counts([*found, *remembered]),
        findings_note=caveat([*found, *remembered])
        if found or remembered
        else "These results hold no findings.",
        memory_claims=frozenset(finding.claim for finding in remembered),
        memory=None if memory is None else memory_table(memory),
        texts=[
            TextPart(text_name(name), *analysed_text(part), text_tables(results, name))
            for name, part in results["individual_texts"].items()
        ],
        together=cross_text_tables(results),
        replay=replay_table(results),
        check=check_sentence(results),
        failures=failures(results),
        limits=_limits(results, tensors or {}, memory),
        provenance=provenance_table(results),
        text_lengths=texts_table(results),
        command=_command(results),
    )


def findings_of(results: Section) -> list[Finding]:
    """The findings in results; raises ValueError for those of another version of the suite."""
    try:
        return [Finding.from_dict(row) for row in results.get("findings", ())]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"the findings of the results cannot be read ({error}): they are damaged or of "
            "another version; run the analysis again"
        ) from error


def _model_name(results: Section) -> str:
    return str(entry_at(results, "provenance", "model", "id") or "an unnamed model")


def _summary(results: Section, found: list[Finding]) -> list[str]:
    texts = results["individual_texts"]
    tokens = sum(len(part["tokens"]) for part in texts.values())
    layers = ", ".join(map(str, results["analysis_metadata"]["layer_indices"]))
    lines = [
        f"{len(texts)} {'text' if len(texts) == 1 else 'texts'}, {shown(tokens)} tokens; "
        f"layers {layers}.",
        check_sentence(results),
    ]
    if lacking := failures(results):
        lines.append(
            f"{len(lacking)} {'step' if len(lacking) == 1 else 'steps'} gave no result: see Checks."
        )
    return [*lines, counts(found)] if found else lines


def _command(results: Section) -> str | None:
    origin = results["provenance"]
    arguments = entry_at(origin, "run", "command") or origin.get("command")
    return shlex.join(map(str, arguments)) if arguments else None


def _limits(results: Section, tensors: Mapping[str, Tensor], memory: Section | None) -> list[str]:
    return [
        "Numbers and verdicts are of this model on these texts.",
        *_cuts(results),
        *view_notes(results, tensors),
        *prediction_notes(results, tensors),
        *_neuron_notes(results),
        *_other_model(results, memory),
        *(
            ["The suite's files differed from its commit when these results were made."]
            if entry_at(results, "provenance", "suite", "git_modified")
            else []
        ),
    ]


def _cuts(results: Section) -> list[str]:
    origins = results["provenance"].get("texts", {})
    return [
        f"{text_name(name)} was cut to its first {shown(origin['num_tokens'])} of "
        f"{shown(origin['num_tokens_before_truncation'])} tokens."
        for name, origin in origins.items()
        if origin.get("truncated")
    ]


def _neuron_notes(results: Section) -> list[str]:
    """Each remark that a neuron method left, once, with the layers it is about."""
    notes: dict[tuple[str, str], set[str]] = {}
    for part in results["individual_texts"].values():
        section = part["analysis"].get("neurons", {})
        for method, by_layer in section.items() if failure(section) is None else ():
            for layer, found in by_layer.items():
                if found.get("note"):
                    notes.setdefault((method, found["note"]), set()).add(layer.replace("_", " "))
    return [
        f"Neurons by {method_name(method)}, {', '.join(sorted(layers))}: {note}."
        for (method, note), layers in notes.items()
    ]


def _other_model(results: Section, memory: Section | None) -> list[str]:
    if memory is None:
        return []
    notes = []
    models = [entry_at(part, "provenance", "model", "weights_sha256") for part in (results, memory)]
    if models[0] != models[1]:
        notes.append("The memory analysis is of another model than the rest of this report.")
    texts = [
        [part.get("text") for part in found["individual_texts"].values()]
        for found in (results, memory)
    ]
    if texts[0] != texts[1]:
        notes.append("The memory analysis is of other texts than the rest of this report.")
    return notes
