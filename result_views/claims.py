"""Claims of results as a terminal, a report and a page show them: by verdict, supported first.

One line each; what was measured, and the rule, stand behind it. The claims of two analyses that
one report holds are counted together.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW_TWINS,
    TOO_LITTLE,
    VERDICTS,
    Finding,
    caveat,
    compared,
    number,
)

MEANINGS = {
    SUPPORTED: "its rule holds; where training could matter, above untrained twins of both kinds",
    ABOVE_CHANCE: "its rule holds on these texts; any model of this shape may show the same",
    NOT_SUPPORTED: "its rule does not hold, or untrained twins show as much",
    TOO_FEW_TWINS: "above every untrained twin, which are too few for a bound",
    TOO_LITTLE: "what its rule needs is not there",
}
"""By verdict, what it says of a claim."""

# By the beginning of the place in the results, without * and numbers: the figure that shows it.
_FIGURES = {
    "individual_texts.analysis.ssm_components": "ssm_analysis",
    "individual_texts.analysis.attention_data": "attention_analysis",
    "individual_texts.analysis.neuron_evolution": "neuron_evolution",
    "individual_texts.analysis.recursive_patterns.change": "recursive_state_vs_activation",
    "individual_texts.analysis": "correlation_analysis",
    "cross_text_analysis.correlation_patterns": "correlation_analysis",
    "cross_text_analysis": "consistency_analysis",
    "overview": "overview",
    "memory.causal_memory": "causal_memory",
    "memory.memory_kernel": "memory_effects",
    "memory.state": "memory_effects",
    "memory.delta_neurons": "ssm_neuron_correlations",
    "memory.neurons": "neuron_activation_patterns",
    "memory.recursive_patterns": "recursive_patterns",
    "memory.cross_layer_correlations": "cross_layer_correlations",
}


class ClaimGroup(NamedTuple):
    """Claims of one verdict."""

    verdict: str
    meaning: str
    findings: list[Finding]


def grouped(findings: Sequence[Finding]) -> list[ClaimGroup]:
    """The claims by verdict, supported first; within a verdict in their order."""
    groups = (
        ClaimGroup(verdict, MEANINGS[verdict], [one for one in findings if one.verdict == verdict])
        for verdict in VERDICTS
    )
    return [group for group in groups if group.findings]


def counts(findings: Sequence[Finding]) -> str:
    """How many claims were tried, and how many have each verdict; "" for none."""
    if not findings:
        return ""
    parts = (f"{len(group.findings)} {group.verdict}" for group in grouped(findings))
    return f"Of {len(findings)} claims tried: {'; '.join(parts)}."


def figure_of(path: str) -> str | None:
    """Name of the figure that shows what stands at a place in the results; None without one."""
    place = ".".join(key.removesuffix("[]") for key in path.split(".") if key != "*")
    return next((figure for start, figure in _FIGURES.items() if place.startswith(start)), None)


def claim_lines(findings: Sequence[Finding], width: int) -> list[str]:
    """The claims for a terminal: counts, a line each under its verdict, what is left open."""
    lines = textwrap.wrap(counts(findings), width)
    for group in grouped(findings):
        lines += ["", *textwrap.wrap(f"{group.verdict}: {group.meaning}", width)]
        lines += _rows(group.findings, width)
    note = caveat(findings)
    return [*lines, *(["", *textwrap.wrap(note, width)] if note else [])]


def _rows(findings: Sequence[Finding], width: int) -> list[str]:
    """Claim, value, what it is compared with: in columns, cut to the width."""
    if findings[0].value is None:
        right = [finding.reason or "" for finding in findings]
    else:
        right = [f"{number(one.value):>8}  {compared(one)}" for one in findings]
    left = min(max(len(one.claim) for one in findings), 58, width * 11 // 20)
    return [
        f"  {_cut(one.claim, left):<{left}}  {_parts(beside, width - left - 4)}".rstrip()
        for one, beside in zip(findings, right, strict=True)
    ]


def _parts(text: str, width: int) -> str:
    """As many whole parts, with "; " between them, as fit; the first one cut where it does not."""
    while len(text) > width and "; " in text:
        text = text.rpartition("; ")[0]
    return _cut(text, width)


def _cut(text: str, width: int) -> str:
    """The text cut behind a word, or within one that is long."""
    if len(text) <= width:
        return text
    kept = text[: width - 1]
    if text[width - 1] != " " and kept.rfind(" ") > width // 2:
        kept = kept[: kept.rfind(" ")]
    return f"{kept.rstrip(' ,')}…"
