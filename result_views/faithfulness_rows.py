"""The faithfulness table of attributions as rows: a line a method, for CSV and for a terminal.

Reads what ``attribution_faithfulness`` writes; computes no statistic. Here too the names of its
measures and of the methods that the others are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from result_views.terminal_lines import terminal_table
from suite_plumbing.result_reading import Section

OTHER_TEXT = "delta_af_other_text"
"""delta_af with the tokens of another text in place of the baseline, by the same scores."""

CURVE_MEASURES = ("delta_af", OTHER_TEXT, "comprehensiveness", "sufficiency")

REFERENCES = ("occlusion", "knockout")
"""The methods that measure an effect; the others' agreement with them is reported."""

RIVALS = ("random", "recency", "rollout")
"""The methods that each method is compared with, text by text; the first two do not look at the
model."""


def faithfulness_rows(section: Section) -> list[dict[str, Any]]:
    """One flat row a method of a faithfulness table, the best delta_af first, undefined ones last.

    Of each estimate mean, ``_low`` and ``_high``; ``_p`` of the gains in delta_af.
    """
    rows = [_flat_row(name, method) for name, method in section["methods"].items()]
    return sorted(rows, key=lambda row: (row["delta_af"] is None, -(row["delta_af"] or 0.0)))


def _flat_row(name: str, method: Section) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name}
    for measure, estimate in method["measures"].items():
        row |= _cells(measure, estimate)
    for rival in RIVALS:
        gain = method["over"].get(rival, {}).get("delta_af")
        row |= _cells(f"delta_af_over_{rival}", gain)
        row[f"delta_af_over_{rival}_p"] = gain["p_value"] if gain else None
    for reference in REFERENCES:
        row |= _cells(f"spearman_{reference}", method["agreement"].get(reference))
    row["conservation_error_median"] = method["conservation_error"]["median"]
    row["conservation_error_max"] = method["conservation_error"]["max"]
    row["bias_share"] = method["bias_share"]
    last = method["randomised"][-1]["mean"] if method["randomised"] else None
    return row | {"spearman_all_layers_randomised": last, "reason": method["reason"]}


def _cells(name: str, estimate: Section | None) -> dict[str, float | None]:
    ends = ("mean", "low", "high")
    mean, low, high = (None if estimate is None else estimate[end] for end in ends)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


_HEADINGS = {
    "delta_af": "delta_af",
    OTHER_TEXT: "other text",
    "delta_af_over_random": "over random",
    "delta_af_over_recency": "over recency",
    "delta_af_over_recency_p": "p",
    "delta_af_over_rollout": "over rollout",
    "comprehensiveness": "compr.",
    "sufficiency": "suff.",
    "spearman_occlusion": "occlusion",
    "spearman_knockout": "knockout",
    "conservation_error_median": "conserv.",
    "spearman_all_layers_randomised": "randomised",
}


def format_rows(rows: Sequence[Section], width: int = 1000) -> str:
    """The rows for a terminal, one line a method; with 95 % intervals for the areas.

    Of columns that the width has no room for a last line says which they are.
    """
    heads = ["method", *_HEADINGS.values()]
    body = [[row["method"], *(_cell(row, name) for name in _HEADINGS)] for row in rows]
    return "\n".join(terminal_table(heads, body, width))


def _cell(row: Section, name: str) -> str:
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "-"
    if low is None or high is None or not name.startswith("delta_af"):
        return f"{value:.2g}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
