"""What every result object of a layer can do: one line, a table, a figure, a file and back."""

from __future__ import annotations

from html import escape
from typing import Any, TypeVar

import pandas as pd

from suite_plumbing.result_files import StrPath, table_html
from suite_plumbing.saved_objects import load_object, save_object

T = TypeVar("T", bound="ShownObject")

SHOWN_ROWS = 20
"""Rows of a table that a notebook shows."""


class ShownObject:
    """A dataclass with ``_line()`` and ``to_dataframe()``: its repr, its HTML and its files."""

    def _line(self) -> str:
        raise NotImplementedError

    def to_dataframe(self) -> pd.DataFrame:
        """The object as a table."""
        raise NotImplementedError

    def save(self, path: StrPath) -> None:
        """Write all fields to one safetensors file, which ``load`` reads."""
        save_object(self, path)

    @classmethod
    def load(cls: type[T], path: StrPath) -> T:
        """What ``save`` wrote; raises ValueError for another file."""
        return load_object(cls, path)

    def __repr__(self) -> str:
        return f"<{self._line()}>"

    def _repr_html_(self) -> str:
        table = self.to_dataframe()
        more = f"<p>The first {SHOWN_ROWS} of {len(table)} rows.</p>"
        shown = table_html(table.head(SHOWN_ROWS))
        return f"<p>{escape(self._line())}</p>{shown}{more if len(table) > SHOWN_ROWS else ''}"


def named_layer(layer: int | None) -> str:
    """The layer as part of a line."""
    return "a layer" if layer is None else f"layer {layer}"


def sizes(**values: Any) -> str:
    """Sizes as part of a line: "20 tokens, d_inner 512"."""
    return ", ".join(
        f"{value} {name}" if name in ("tokens", "texts", "neurons") else f"{name} {value}"
        for name, value in values.items()
    )


def per_token(
    layer: int | None,
    tokens: tuple[tuple[str, ...], ...] | None,
    mask: Any,
    columns: dict[str, Any],
) -> pd.DataFrame:
    """One row a token without padding: text, layer, position, token, and columns of (b, l)."""
    keep = mask.bool()
    texts = [row for row, count in enumerate(keep.sum(1).tolist()) for _ in range(count)]
    places = [place for count in keep.sum(1).tolist() for place in range(count)]
    named = {} if tokens is None else {"token": [token for text in tokens for token in text]}
    values = {name: column[keep].double().numpy() for name, column in columns.items()}
    return pd.DataFrame({"text": texts, "layer": layer, "position": places, **named, **values})
