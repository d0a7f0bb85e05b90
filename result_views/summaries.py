"""Results of an analysis as a notebook shows them and as a run ends: tables read from the results.

``Results`` is the result dict itself; what it adds is a view, from the live run or from its files
alike: ``Results.open("corrected_mamba_analysis/analysis_results.json")``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from result_views.answers import answer_lines, terminal_width
from result_views.checks import check_line, failure_lines
from result_views.claims import claim_lines, counts
from suite_plumbing.result_reading import entry_at
from token_statistics.findings import Finding, compared, number

Row = Mapping[str, Any]

_COLUMNS = {
    "replay_error": ("ssm_components", "replay_error"),
    "mean_delta": ("ssm_components", "delta", "mean"),
    "median_half_life": ("ssm_components", "dynamics", "half_life", "median"),
    "median_spectral_radius": ("ssm_components", "dynamics", "spectral_radius", "median"),
    "mean_state_norm": ("ssm_components", "dynamics", "state_norm", "mean"),
    "attention_entropy_share": ("attention_data", "statistics", "entropy_share", "mean"),
    "attention_mean_distance": ("attention_data", "statistics", "mean_distance", "mean"),
    "residual_norm": ("layer_activations", "residual_norm", "mean"),
    "change_correlation": ("recursive_patterns", "change_correlation", "value"),
    "change_null_low": ("recursive_patterns", "change_correlation", "null_low"),
    "change_null_high": ("recursive_patterns", "change_correlation", "null_high"),
}
"""Columns of the main analysis's table: step, and the path within its section of a layer."""


def layer_rows(results: Row) -> list[dict[str, Any]]:
    """Main numbers of every text and layer of the main analysis, one row each."""
    return [
        {"text": text, "layer": layer}
        | {
            name: entry_at(part["analysis"], step, f"layer_{layer}", *path)
            for name, (step, *path) in _COLUMNS.items()
        }
        for text, part in results.get("individual_texts", {}).items()
        for layer in results["analysis_metadata"]["layer_indices"]
    ]


def finding_frame(results: Row) -> pd.DataFrame:
    """Verdict, claim, value and what it is compared with, of every finding."""
    return pd.DataFrame(_finding_cells(row) for row in results.get("findings", ()))


def _finding_cells(row: Row) -> dict[str, str]:
    finding = Finding.from_dict(row)
    known = finding.value is not None
    return {
        "verdict": finding.verdict,
        "claim": finding.claim,
        "value": number(finding.value) if known else "",
        "compared with": compared(finding) if known else finding.reason or "",
    }


_NOT_TIMED = "without loading the model, figures and report"


def check_lines(results: Row) -> list[str]:
    """What was analysed, whether the replay agrees, and every step without a result."""
    texts = results["provenance"]["texts"].values()
    layers = ", ".join(map(str, results["analysis_metadata"]["layer_indices"]))
    seconds = results["provenance"]["run"].get("seconds")
    twins = " and its untrained twins" if any(results.get("untrained_twins", {}).values()) else ""
    took = "" if seconds is None else f"; {seconds:.1f} s for the analysis{twins}, {_NOT_TIMED}"
    return [
        f"{len(texts)} text(s), {sum(text['num_tokens'] for text in texts)} tokens, "
        f"layers {layers}{took}.",
        check_line(results),
        *failure_lines(results),
    ]


def run_summary(results: Row, files: Sequence[str], *, claims: bool = True) -> str:
    """The end of a run for a terminal: answers, check, claims by verdict, where files are.

    Without ``claims`` they are counted alone.
    """
    width = terminal_width()
    findings = [Finding.from_dict(row) for row in results.get("findings", ())]
    tried = claim_lines(findings, width) if claims else textwrap.wrap(counts(findings), width)
    tried = ["", *tried, ""] if findings else []
    answers = [*answer_lines(results, width), ""] if results.get("overview") else []
    checks = [line for one in check_lines(results) for line in textwrap.wrap(one, width)]
    return "\n".join([*answers, *checks, *tried, *files])


def text_table(frame: pd.DataFrame, most: int = 62) -> list[str]:
    """A table of strings as lines of text, columns aligned on the left, cells cut at `most`."""
    rows = [list(frame.columns), *frame.to_numpy().tolist()]
    cells = [[str(x) if len(str(x)) <= most else f"{str(x)[: most - 1]}…" for x in r] for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
