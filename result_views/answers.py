"""The answers of an analysis's overview, as a terminal, a report and a page show them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from result_views.beside_nulls import OUTSIDE, standing_of
from suite_plumbing.result_reading import Section, failure

WIDTH = 80
"""Columns that lines fit where the terminal does not say how many it has."""

WIDEST = 120
"""Columns of a wider terminal that are used: longer lines do not read well."""


class ShownAnswer(NamedTuple):
    """One answer."""

    sentence: str
    said: bool
    """whether something is claimed"""
    basis: str
    """what it rests on: n, in how many independent texts, the interval over texts where there is
    one, p over all questions"""
    path: str
    """where its numbers stand in the results"""


def shown_answers(results: Section) -> list[ShownAnswer]:
    """The answers in the results, those that claim something first; none without an overview."""
    rows = _overview(results).get("answers", ())
    ordered = sorted(rows, key=lambda row: not row["said"])
    return [ShownAnswer(row["sentence"], row["said"], _basis(row), row["path"]) for row in ordered]


def overview_rows(results: Section) -> list[Section]:
    """One row a layer, over all layers of the model; none without an overview."""
    return list(_overview(results).get("layers", ()))


def is_above_chance(test: Section) -> bool:
    """Whether an answer may rest on a test of the overview: by its p over all layers and questions,
    and by its interval over texts. Of results that do not say, whether it lies outside its null."""
    if "above_chance" in test:
        return bool(test["above_chance"])
    return standing_of(test) == OUTSIDE


def terminal_width() -> int:
    """Columns of the terminal, WIDTH where there is none, at most WIDEST."""
    return max(40, min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDEST))


def answer_lines(results: Section, width: int = WIDTH) -> list[str]:
    """The answers for a terminal, wrapped: * for what is said, - for what may not be."""
    return [
        line
        for one in shown_answers(results)
        for line in textwrap.wrap(
            one.sentence, width, initial_indent="* " if one.said else "- ", subsequent_indent="  "
        )
    ]


def _overview(results: Section) -> Mapping[str, Any]:
    section = results.get("overview", {})
    return section if isinstance(section, Mapping) and failure(section) is None else {}


def _basis(row: Section) -> str:
    texts = row.get("num_texts")
    among = f" in {texts} independent text{'s' * (texts != 1)}" if texts else ""
    parts = [f"n = {row['n']:,} {row['unit']}{'' if row['unit'] == 'texts' else among}"]
    if row["interval"] is not None:
        low, high = row["interval"]
        whose = f" (layer {row['layers'][0]})" if len(row.get("values", ())) > 1 else ""
        parts.append(f"95 % over texts {low:.2g} to {high:.2g}{whose}")
    if row.get("adjusted_p") is not None:
        parts.append(f"p {row['adjusted_p']:.2g} over {row['num_questions']} questions")
    return "; ".join(parts)
