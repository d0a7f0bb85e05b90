"""What a step's command found, for a terminal: a line a layer, numbers with their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from result_views.report.tables import shown
from result_views.terminal_lines import terminal_table

Row = Mapping[str, Any]


def step_lines(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Rows as a table of text: the keys as heads, numbers to three digits on the right.

    Columns that the width (default: the terminal's) has no room for are left out, the last first,
    and a line says which.
    """
    if not rows:
        return []
    heads = list(rows[0])
    return terminal_table(heads, [[_cell(row[head]) for head in heads] for row in rows], width)


def over_texts(
    by_text: Sequence[Mapping[str, Row]], columns: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """One row a layer: means over texts of what stands at a path in each text's part of a layer.

    ``by_text``: sections by ``layer_3``; ``columns``: head, path. None where no text has a number.
    """
    rows = []
    for key in by_text[0]:
        row: dict[str, Any] = {"layer": int(key.removeprefix("layer_"))}
        for head, path in columns.items():
            values = [value for text in by_text if (value := _at(text[key], path)) is not None]
            row[head] = sum(values) / len(values) if values else None
        rows.append(row)
    return rows


def _at(part: Any, path: Sequence[str]) -> float | None:
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    if isinstance(part, (list, tuple)):  # of a batch of one text
        part = part[0] if part else None
    return float(part) if isinstance(part, (int, float)) else None


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, (int, str)) else shown(value)
