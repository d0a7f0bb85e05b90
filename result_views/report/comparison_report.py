"""A comparison of models as a table and as a section of a report, from its results alone.

Every sentence and row is made from numbers of the results of ``model_comparison``; a claim that
they do not support is reported as not found, or undecided. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from result_views.checks import replay_line
from result_views.report.markdown import markdown_table
from token_statistics.findings import Finding, number, sentence

Row = Mapping[str, Any]

MEASURE_NAMES = {
    "entropy_share": "entropy (share of ln(t+1))",
    "first_share": "on the first token",
    "self_share": "on itself",
    "mean_distance": "mean distance",
    "kernel_mean_lag": "kernel, mean lag",
    "kernel_median_lag": "kernel, median lag",
    "kernel_lag_90": "kernel, 90 % lag",
}
"""Measures of a map, as ``analysis_pipelines.comparison_readings.MAP_MEASURES``, for people."""

_AGREEMENT = (
    "agrees_with", "agreement", "agreement_text_std", "agreement_lag_only",
    "agreement_other_text", "windowed", "windowed_null_low", "windowed_null_high",
)  # fmt: skip

_LIKENESS = ("most_alike_layer", "cka", "cka_text_std", "cka_null_low", "cka_null_high")

TABLE_COLUMNS = (
    "model", "layer", "attention", "num_texts", "n",
    *(f"{name}{end}" for name in MEASURE_NAMES for end in ("", "_text_std")),
    "other_model", *_AGREEMENT, *_LIKENESS,
)  # fmt: skip
"""Columns of ``comparison_rows``."""


def comparison_rows(results: Row) -> list[dict[str, Any]]:
    """One row for each model, layer, attention of it, and other model; None where undefined.

    ``n`` is in tokens (or pieces) of all texts; ``..._text_std`` is over texts. ``agrees_with``:
    the other model's attention of the largest windowed agreement, with its numbers;
    ``most_alike_layer`` likewise by CKA. The largest of many values is above the null of a single
    pair more often than that null says.
    """
    rows = []
    for place, pair in enumerate(results["pairs"]):
        for side in (0, 1):
            rows += _rows_of(results, place, side, pair["models"][side], pair["models"][1 - side])
    return rows


def comparison_section(results: Row) -> str:
    """The comparison as Markdown: what was compared, findings, measures, and every pair."""
    parts = [
        "## Models side by side",
        "",
        *_compared(results),
        *(f"- {sentence(Finding.from_dict(row))}" for row in results["findings"]),
        "",
        "### Attention by layer",
        "",
        *_measures(results),
    ]
    for pair in results["pairs"]:
        parts += _pair(results, pair)
    return "\n".join([*parts, "### How to read this", "", *_notes(results)]) + "\n"


def _rows_of(results: Row, place: int, side: int, name: str, other: str) -> list[dict[str, Any]]:
    pair, model = results["pairs"][place], results["models"][name]
    rows = []
    for layer in model["layers"]:
        prefix = f"layer_{layer}."
        sites = [site for site in model["sites"] if site.startswith(prefix)]
        for site in sites or [None]:
            rows.append(
                {
                    "model": name,
                    "layer": layer,
                    "attention": None if site is None else site.removeprefix(prefix),
                    "num_texts": len(results["texts"]),
                    "n": pair["cka"]["n"],
                    **_measured(results, name, site),
                    "other_model": other,
                    **_best_agreement(pair["agreement"], side, site),
                    **_most_alike(pair["cka"], side, layer),
                }
            )
    return rows


def _measured(results: Row, name: str, site: str | None) -> dict[str, Any]:
    if site is None:
        return {}
    found = results["attention"][name][site]
    return {
        f"{measure}{end}": found[measure][key]
        for measure in MEASURE_NAMES
        for end, key in (("", "value"), ("_text_std", "text_std"))
    }


def _best_agreement(agreement: Row, side: int, site: str | None) -> dict[str, Any]:
    if site is None:
        return {}
    index = agreement["sites"][side].index(site)
    windowed, causal = agreement["windowed"], agreement["causal"]
    best = _largest(_line(windowed["value"], side, index))
    if best is None:
        return {}
    at = {
        "agreement": (causal, "value"),
        "agreement_text_std": (causal, "text_std"),
        "agreement_lag_only": (causal, "lag_only"),
        "agreement_other_text": (causal, "other_text"),
        "windowed": (windowed, "value"),
        "windowed_null_low": (windowed, "null_low"),
        "windowed_null_high": (windowed, "null_high"),
    }
    found = {name: _line(part[key], side, index)[best] for name, (part, key) in at.items()}
    return {"agrees_with": agreement["sites"][1 - side][best], **found}


def _most_alike(cka: Row, side: int, layer: int) -> dict[str, Any]:
    index = cka["layers"][side].index(layer)
    best = _largest(_line(cka["value"], side, index))
    if best is None:
        return {}
    keys = {"cka": "value", "cka_text_std": "text_std", "cka_null_low": "null_low",
            "cka_null_high": "null_high"}  # fmt: skip
    found = {name: _line(cka[key], side, index)[best] for name, key in keys.items()}
    return {"most_alike_layer": cka["layers"][1 - side][best], **found}


def _line(matrix: Sequence[Sequence[Any]], side: int, index: int) -> list[Any]:
    """A row of the matrix for its first model, a column for its second."""
    return list(matrix[index]) if side == 0 else [row[index] for row in matrix]


def _largest(values: Sequence[float | None]) -> int | None:
    defined = [(value, -i) for i, value in enumerate(values) if value is not None]
    return -max(defined)[1] if defined else None


def _compared(results: Row) -> list[str]:
    models = "; ".join(
        f"`{name}` ({one['class']}, {one['num_layers']} layers)"
        for name, one in results["models"].items()
    )
    texts = results["texts"]
    unit = results["unit"]
    what = (
        "The models have the same tokens."
        if unit == "tokens"
        else "Their tokens differ: everything is over the pieces of the texts that begin and end "
        "with tokens of every model, activations and queries averaged within a piece."
    )
    lines = [
        f"{models}. Every model read the same {sum(text['num_pieces'] for text in texts)} {unit} "
        f"of {len(texts)} text(s). {what}",
        "",
    ]
    check = results["self_check"]
    for name, error in check["replay_error"].items():
        if error is not None:
            limit = check["replay_tolerance"][name]
            lines += [replay_line(error, limit, f"`{name}`", beyond="**beyond**"), ""]
    return lines


def _measures(results: Row) -> list[str]:
    uniform = results["uniform"]
    body = [["attention spread evenly", "", *(number(uniform[name]) for name in MEASURE_NAMES)]]
    for name, sites in results["attention"].items():
        for site, found in sites.items():
            cells = [_with_spread(found[measure]) for measure in MEASURE_NAMES]
            body.append([name, site.replace("_", " ").replace(".", ", "), *cells])
    return markdown_table(["model", "attention", *MEASURE_NAMES.values()], body)


def _with_spread(found: Row) -> str:
    if found["text_std"] is None:
        return number(found["value"])
    return f"{number(found['value'])} ± {number(found['text_std'])}"


def _pair(results: Row, pair: Row) -> list[str]:
    a, b = pair["models"]
    body = []
    for row in results["table"]:
        if (row["model"], row["other_model"]) != (a, b):
            continue
        cells = {name: row.get(name) for name in (*_AGREEMENT, *_LIKENESS)}
        layer = f"{row['layer']}" + (f", {row['attention']}" if row["attention"] else "")
        body.append(
            [
                layer,
                (cells["agrees_with"] or "none").replace("_", " ").replace(".", ", "),
                number(cells["agreement"]),
                number(cells["agreement_lag_only"]),
                number(cells["agreement_other_text"]),
                _with_null(cells, "windowed"),
                "none" if cells["most_alike_layer"] is None else str(cells["most_alike_layer"]),
                _with_null(cells, "cka"),
            ]
        )
    table = markdown_table(
        [f"layer of {a}", f"agrees best with, of {b}", "agreement", "from the lag alone",
         "with another text", "windowed (null)", "most alike layer", "CKA (null)"],
        body,
    )  # fmt: skip
    reason = pair["cka"]["reason"]
    return [f"### {a} and {b}", "", *table, *([f"No null: {reason}.", ""] if reason else [])]


def _with_null(cells: Row, name: str) -> str:
    low, high = cells[f"{name}_null_low"], cells[f"{name}_null_high"]
    null = "none" if low is None else f"{number(low)} to {number(high)}"
    return f"{number(cells[name])} ({null})"


def _notes(results: Row) -> list[str]:
    unit = results["unit"]
    return [
        f"Distances and lags are in {unit}; ± is the standard deviation over texts. Agreement is "
        "the rank correlation of what a query takes from its sources, averaged over queries. From "
        "the lag alone: one of the two maps replaced by its own mean over queries at each lag, "
        "relative to attention spread evenly. With another "
        "text: the second model's map is of another text, which keeps what position and distance "
        "give. Windowed: over the same lags for every query; its null, 95 % interval, gives each "
        "query another's attention by lag. The null of CKA shifts the tokens of one side. Of each "
        "layer the best match is shown, the largest of many values, against the null of a single "
        "pair. Two models that read the same tokens exceed both nulls without any training: only "
        "the comparison with untrained twins can show more."
    ]
