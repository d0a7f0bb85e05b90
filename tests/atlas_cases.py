"""Contents of an atlas made by hand: two layers of three neurons, with text that is no HTML."""

from __future__ import annotations

from typing import Any

PIECES = [" the", " cat", "<b>", '"', "\n", " sat", "</script>", " Tom"]


def made_contents() -> dict[str, Any]:
    """What `atlas_contents` gives, of made-up numbers."""
    return {
        "about": {"model": "<i>tiny</i>", "windows": 12, "tokens": 3456, "documents": 3,
                  "loss": 2.5, "levels": 9, "peak": 19, "one_text": False},
        "pieces": PIECES,
        "tokens": [
            [i, 100 - i, 1.0 + i, [-1.0 - i / 10, -2.0], [0.5 + i, None]]
            for i in range(len(PIECES))
        ],
        "layers": {"0": _layer(0), "5": _layer(5)},
    }  # fmt: skip


def _layer(layer: int) -> dict[str, Any]:
    summary = {"delta": 0.01, "half_life": 12.0 + layer, "lag_90": 31.0, "first_share": 0.1,
               "copying": 1.5 + layer, "copying_chance": 1.1}  # fmt: skip
    return {"summary": summary, "neurons": [_neuron(layer, i) for i in range(3)]}


def _neuron(layer: int, i: int) -> dict[str, Any]:
    context = [2.0 - i / 4, 1, [0, 7, 2, 6, 5], 1 + i, "jskba"]
    return {
        "s": [0.1, 1.0, 30.0 - i, 0.05 * (i + 1), 0.01, 10.0 + layer + i],
        "i": [0.01, 0.02, 0.03],
        "p": [[i, 7], [5, 3]],
        "c": {"highest": [context], "lowest": [], "drawn": [context]},
    }
