"""Tables and sentences as lines of a terminal: no line is wider than it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from result_views.answers import terminal_width


def terminal_table(
    heads: Sequence[str], body: Sequence[Sequence[str]], width: int | None = None
) -> list[str]:
    """A table of text, each cell on the right of its column.

    Columns that the width (default: the terminal's) has no room for are left out, the last first,
    and a line says which.
    """
    width = terminal_width() if width is None else width
    rows = [heads, *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kept = len(heads)
    while kept > 1 and sum(widths[:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    lines = [
        "  ".join(cell.rjust(size) for cell, size in zip(row[:kept], widths[:kept], strict=True))
        for row in rows
    ]
    left_out = [f"Not shown: {', '.join(heads[kept:])}."] if kept < len(heads) else []
    return [*lines, *wrapped(left_out, width)]


def wrapped(sentences: Iterable[str], width: int | None = None, indent: str = "") -> list[str]:
    """Each sentence on lines of the width (default: the terminal's), the later ones indented."""
    width = terminal_width() if width is None else width
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, width, subsequent_indent=indent)
    ]
