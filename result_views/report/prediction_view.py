"""What the prediction view of a report shows: what made the likeliest token after each position.

Read from the sections ``prediction_parts`` and the tensors beside them; sums over the parts of a
layer or of a path are all that is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from result_views.report.tables import Cell, Column, Table, shown, text_name
from suite_plumbing.result_files import three_digits
from suite_plumbing.result_reading import Section

SECTION = "prediction_parts"


def prediction_view(
    part: Section, tensors: Mapping[str, Tensor], text: str
) -> dict[str, Any] | None:
    """Predicted tokens of one text with their logits, and what layers and paths gave, by position.

    None for results without; ``layers`` and ``paths`` are empty without the tensors.
    """
    if (found := part.get(SECTION)) is None:
        return None
    values = tensors.get(f"{text}.{SECTION}")
    layers, paths = zip(*found["parts"], strict=True)
    return {
        "token": found["token"],
        "logit": found["logit"],
        "layers": {} if values is None else _summed(values, layers),
        "paths": {} if values is None else _summed(values, paths),
    }


def _summed(values: Tensor, names: tuple[Any, ...]) -> dict[str, list[float | None]]:
    """By name, the sum (l,) of the parts (l, parts) that have it; three significant digits."""
    parts, keys = values.double().numpy(), np.array([str(name) for name in names])
    return {
        name: [three_digits(x) for x in parts[:, keys == name].sum(1).tolist()]
        for name in dict.fromkeys(keys.tolist())
    }


def prediction_table(results: Section) -> Table | None:
    """What each layer gave to the predicted logits by path; None for results without."""
    found = [part[SECTION] for part in results["individual_texts"].values() if SECTION in part]
    if not found:
        return None
    sizes: dict[str, dict[str, list[float]]] = {}
    for part in found:
        for (layer, path), size in zip(part["parts"], part["mean_magnitude"], strict=True):
            sizes.setdefault(str(layer), {}).setdefault(path, []).append(size)
    paths = list(dict.fromkeys(path for by_path in sizes.values() for path in by_path))
    rows = [
        (Cell(layer), *(Cell(shown(_mean(by_path.get(path)))) for path in paths))
        for layer, by_path in sizes.items()
    ]
    logits = [x for part in found for x in part["logit"]]
    note = (
        "Mean magnitude over the positions of a text, and over texts, of what each part gave to "
        f"the logit of the likeliest next token, which is {shown(_mean(logits))} on average."
    )
    columns = (Column("layer", "", True), *(Column(path) for path in paths))
    return Table("What gave the predicted logits, by layer and path", columns, tuple(rows), note)


def _mean(values: list[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


def prediction_notes(results: Section, tensors: Mapping[str, Tensor]) -> list[str]:
    """What the prediction view leaves out, and why; nothing of results without one."""
    texts = results["individual_texts"]
    found = {name: part[SECTION] for name, part in texts.items() if SECTION in part}
    if not found:
        return []
    notes = []
    if len(found) < len(texts):
        notes.append(f"Predictions are attributed in the first {len(found)} of {len(texts)} texts.")
    cut = [name for name, part in found.items() if part["num_tokens"] < len(texts[name]["tokens"])]
    if cut:
        length = found[cut[0]]["num_tokens"]
        notes.append(
            f"Of {', '.join(map(text_name, cut))} the predictions after the first {length} tokens "
            "are attributed."
        )
    if not any(name.endswith(".prediction_sources") for name in tensors):
        notes.append(
            "The tensors of the predictions are not beside these results: the prediction view "
            "names the predicted tokens alone."
        )
    return notes
