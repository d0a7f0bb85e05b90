"""What the interactive token view of a report shows: texts, maps, series and neurons, packed.

Everything is read from the results and from the tensors beside them; what is chosen here is what
to show, never a number. Maps are packed by `packed_maps`; the rest is one deflated JSON.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from result_views.glossary import MEASURES, method_name
from result_views.report.packed_maps import pack_maps
from result_views.report.prediction_view import prediction_view
from result_views.report.tables import Cell, Column, Table, cell, shown, text_name
from suite_plumbing.result_reading import Section, entry_at, failure
from suite_plumbing.texts import readable_token

MAX_TEXTS = 12
"""More texts than this, and the first of them are in the view."""

MAX_TOKENS = 1024
"""Of a longer text, the first tokens are in the view: what they see is among them."""

LAYER_BYTES = 54_000
"""Packed size of the maps of one layer of one text that the number of levels is chosen for; the
lists of their largest entries, which are not rounded, come to about half as much again."""

TOP_TOKENS = 5
"""Tokens named for every neuron."""

# Maps in the order of the view: the first is shown first.
_MAPS = ("absolute", "attention", "contribution", "synthetic")

_SERIES = {
    "delta": ("ssm_components", "by_token", "delta"),
    "state_norm": ("ssm_components", "dynamics", "by_token", "state_norm"),
    "entropy": ("attention_data", "by_query", "entropy"),
    "strength": ("attention_data", "by_query", "strength"),
    "mean_distance": ("attention_data", "by_query", "mean_distance"),
}
"""By measure: step and keys, below the layer, of a value for every token."""

_SHORT = {
    "delta": "Δ", "state_norm": "state", "entropy": "entropy", "strength": "paid",
    "mean_distance": "distance",
}  # fmt: skip


def token_view(results: Section, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the view shows beside its maps: texts with series, kernels and neurons by layer."""
    layers = results["analysis_metadata"]["layer_indices"]
    names = _shown_texts(results)
    in_use = [
        name
        for name in _MAPS
        if any(f"{text}.layer_{layer}.{name}" in tensors for text in names for layer in layers)
    ]
    methods = results["analysis_metadata"].get("neuron_methods", ())
    return {
        "texts": [_text(results, tensors, text, layers) for text in names],
        "layers": layers,
        "maps": {name: MEASURES[name].name for name in in_use},
        "series": {name: _named(name) | {"short": _SHORT[name]} for name in _SERIES},
        "methods": {
            name: MEASURES[name].name if name in MEASURES else method_name(name) for name in methods
        },
    }


def view_maps(
    results: Section,
    tensors: Mapping[str, Tensor],
    watched: Callable[[list[str]], Iterable[str]] = list,
) -> dict[str, Any]:
    """Packed maps by text, layer and name; cost about 0.1 s for a map of 512 tokens.

    ``watched`` passes the texts on, one at a time, to whoever shows progress.
    """
    return {text: _maps(results, tensors, text) for text in watched(_shown_texts(results))}


def deflated_json(data: Any) -> str:
    """Data as JSON, deflated (zlib), in base64."""
    raw = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def neuron_tables(view: Mapping[str, Any], per_layer: int = 3) -> list[Table]:
    """The first neurons of every layer and method, a table a text, from `token_view`'s data."""
    columns = (
        Column("layer"), Column("neurons by", "", True), Column("neuron"),
        Column("importance", "importance"), Column("mean"), Column("kurtosis", "kurtosis"),
        Column("top tokens", "top_tokens", True),
    )  # fmt: skip
    tables = []
    for text in view["texts"]:
        rows = [
            (Cell(layer), Cell(view["methods"].get(method, method)), Cell(str(row[0])),
             cell(row[1]), cell(row[2]), cell(row[5]), Cell(_named_tokens(text, row[6])))
            for layer, part in text["layers"].items()
            for method, found in part["neurons"].items()
            for row in found[:per_layer]
        ]  # fmt: skip
        why = None if rows else "the step gave no neurons: see Checks"
        tables.append(Table(text["title"], columns, tuple(rows), "", why))
    return tables


def _named_tokens(text: Mapping[str, Any], tokens: Sequence[tuple[int, float]]) -> str:
    return ", ".join(
        f"“{_name(text, place)}” at {place}: {shown(value)}" for place, value in tokens
    )


def _name(text: Mapping[str, Any], place: int) -> str:
    if place in text["parts"]:
        return f"part of {text['parts'][place]}"
    return text["pieces"][place] or text["tokens"][place]


def _shown_texts(results: Section) -> list[str]:
    return list(results["individual_texts"])[:MAX_TEXTS]


def view_notes(results: Section, tensors: Mapping[str, Tensor]) -> list[str]:
    """What the view leaves out, and why."""
    texts = results["individual_texts"]
    notes = []
    if len(texts) > MAX_TEXTS:
        notes.append(f"The token view holds the first {MAX_TEXTS} of {len(texts)} texts.")
    if long := [name for name, part in texts.items() if len(part["tokens"]) > MAX_TOKENS]:
        notes.append(
            f"Of {', '.join(map(text_name, long))} the token view holds the first {MAX_TOKENS} "
            "tokens."
        )
    if not any(name.endswith(".absolute") for name in tensors):
        notes.append(
            "The tensors with the attention maps are not beside these results: the token view "
            "shows no map. The main analysis writes them as .safetensors."
        )
    return notes


def text_pieces(part: Mapping[str, Any]) -> list[str]:
    """The text cut at its tokens: what each token adds, together what was analysed of it.

    White space and characters that the tokenizer leaves out go with the next token. A token that
    ends inside a character (a byte of it) and a token outside the text (a special one) add nothing.
    Without offsets, of a tokenizer that gives none, the vocabulary's spelling is decoded.
    """
    tokens, offsets = part["tokens"], part.get("offsets")
    if offsets is None:
        return [readable_token(token, len(token) + 64) for token in tokens]
    pieces, end = [], 0
    for _, stop in offsets:
        pieces.append(part["text"][end:stop])
        end = max(end, stop)
    return pieces


def character_parts(part: Mapping[str, Any]) -> dict[int, str]:
    """By token, the character that it is a later part of: a token of one of its bytes."""
    offsets: list[tuple[int, int]] = part.get("offsets") or []
    end, parts = 0, {}
    for place, (start, stop) in enumerate(offsets):
        if start < stop <= end:
            parts[place] = part["text"][start:stop]
        end = max(end, stop)
    return parts


def analysed_text(part: Mapping[str, Any]) -> tuple[str, int]:
    """The part of a text that was analysed, and how many characters follow it."""
    text, offsets = part["text"], part.get("offsets")
    end = max((stop for _, stop in offsets), default=0) if offsets else len(text)
    return text[:end], len(text) - end


def _named(measure: str) -> dict[str, str]:
    return {"name": MEASURES[measure].name, "unit": MEASURES[measure].unit}


def _maps(results: Section, tensors: Mapping[str, Tensor], text: str) -> dict[str, Any]:
    """Packed maps of one text by layer and name, all with the same number of levels; "all" has
    what sources gave to predictions."""
    found = {
        (str(layer), name): tensors[key].float().numpy()[:MAX_TOKENS, :MAX_TOKENS]
        for layer in results["analysis_metadata"]["layer_indices"]
        for name in _MAPS
        if (key := f"{text}.layer_{layer}.{name}") in tensors
    }
    num_layers = max(len({layer for layer, _ in found}), 1)
    if (key := f"{text}.prediction_sources") in tensors:
        found["all", "predictions"] = tensors[key].float().numpy()
    packed = pack_maps({"/".join(key): values for key, values in found.items()},
                       LAYER_BYTES * num_layers)  # fmt: skip
    by_layer: dict[str, Any] = {}
    for key, part in packed.items():
        layer, name = key.split("/")
        by_layer.setdefault(layer, {})[name] = part.to_dict()
    return by_layer


def _text(
    results: Section, tensors: Mapping[str, Tensor], text: str, layers: Sequence[int]
) -> dict[str, Any]:
    part = results["individual_texts"][text]
    return {
        "name": text,
        "title": text_name(text),
        "pieces": text_pieces(part)[:MAX_TOKENS],
        "parts": character_parts(part),
        "tokens": part["tokens"][:MAX_TOKENS],
        "predictions": {
            name: values[:MAX_TOKENS] for name, values in part.get("predictions", {}).items()
        },
        "attributed": prediction_view(part, tensors, text),
        "layers": {str(layer): _layer(part["analysis"], tensors, text, layer) for layer in layers},
    }


def _layer(steps: Section, tensors: Mapping[str, Tensor], text: str, layer: int) -> dict[str, Any]:
    key = f"layer_{layer}"
    kernel = ("attention_data", key, "memory_kernel")
    lags = {name: entry_at(steps, *kernel, name) for name in ("mean_lag", "median_lag", "lag_90")}
    return {
        "series": {name: _series(steps, key, path) for name, path in _SERIES.items()},
        "kernel": [_four(x) for x in (entry_at(steps, *kernel, "kernel") or [[]])[0]],
        "lags": {name: _four(values[0]) for name, values in lags.items() if values},
        "neurons": _neurons(steps, tensors.get(f"{text}.{key}.gated"), key),
    }


def _series(steps: Section, key: str, path: Sequence[str]) -> list[float | None]:
    step, *keys = path
    texts = entry_at(steps, step, key, *keys) or [[]]
    return [_four(value) for value in texts[0][:MAX_TOKENS]]


def _four(value: Any) -> Any:
    """Four significant digits, one more than is shown."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


_NEURON_FIELDS = ("neuron", "importance", "mean", "std", "maximum", "kurtosis")


def _neurons(steps: Section, gated: Tensor | None, key: str) -> dict[str, list[list[Any]]]:
    """By method, a row a neuron: the fields above, and its top tokens as [token, activation]."""
    section = steps.get("neurons", {})
    if failure(section) is not None:
        return {}
    activations = None if gated is None else gated.float().numpy()
    return {
        method: [
            [*(_four(row.get(name)) for name in _NEURON_FIELDS),
             top_tokens(activations, row["neuron"])]
            for row in entry_at(by_layer, key, "top_neurons") or ()
        ]
        for method, by_layer in section.items()
    }  # fmt: skip


def top_tokens(activations: np.ndarray | None, neuron: int) -> list[list[float]]:
    """The tokens at which a neuron (l, d_inner) is largest in magnitude, with its activation."""
    if activations is None:
        return []
    values = activations[:MAX_TOKENS, neuron]
    order = np.argsort(-np.abs(values), kind="stable")[:TOP_TOKENS]
    largest = zip(order.tolist(), values[order].tolist(), strict=True)
    return [[token, float(f"{value:.3g}")] for token, value in largest]
