"""Results of a comparison as `model_comparison` writes them, small and made by hand."""

from __future__ import annotations

from typing import Any

from result_views.report.comparison_report import MEASURE_NAMES, comparison_rows
from token_statistics.findings import undecided


def matrices(value: list[list[float | None]], high: float, **more: Any) -> dict[str, Any]:
    """A tested statistic: every null from 0 to `high`."""

    def all_of(x: float) -> list[list[float]]:
        return [[x] * len(row) for row in value]

    return {
        "value": value, "text_std": all_of(0.01), "null_mean": all_of(high / 2),
        "null_low": all_of(0.0), "null_high": all_of(high), "p_value": all_of(0.05),
        "n": 50, "num_texts": 2, "num_draws": 39, "reason": None, **more,
    }  # fmt: skip


def measures(value: float, kernel: list[float]) -> dict[str, Any]:
    """All measures of a site, numbered from `value`."""
    return {
        name: {"value": value + i, "text_std": 0.5, "num_texts": 2, "n": 50, "untrained": None}
        for i, name in enumerate(MEASURE_NAMES)
    } | {"kernel": kernel}


def comparison() -> dict[str, Any]:
    """A Mamba of two layers beside a hybrid of two: layer 0 attends, layer 1 does not."""
    results: dict[str, Any] = {
        "unit": "tokens",
        "provenance": {
            "model": {"id": "a and b"},
            "texts": {"text_0": {"num_tokens": 20}, "text_1": {"num_tokens": 30}},
        },
        "models": {
            "a": {"class": "A", "num_layers": 2, "layers": [0, 1],
                  "sites": ["layer_0.implicit", "layer_1.implicit"]},
            "b": {"class": "B", "num_layers": 2, "layers": [0, 1], "sites": ["layer_0.softmax"]},
        },
        "texts": [{"num_pieces": 20}, {"num_pieces": 30}],
        "attention": {
            "a": {
                "layer_0.implicit": measures(0.1, [0.7, 0.3]),
                "layer_1.implicit": measures(0.2, [0.6, 0.4]),
            },
            "b": {"layer_0.softmax": measures(0.3, [0.5, 0.0])},
        },
        "uniform": {**dict.fromkeys(MEASURE_NAMES, 0.25), "kernel": [0.55, 0.45]},
        "pairs": [
            {
                "models": ["a", "b"],
                "agreement": {
                    "sites": [["layer_0.implicit", "layer_1.implicit"], ["layer_0.softmax"]],
                    "causal": {
                        "value": [[0.61], [0.62]], "text_std": [[0.01], [0.02]],
                        "lag_only": [[0.41], [0.42]], "other_text": [[0.31], [None]],
                    },
                    "windowed": matrices([[0.2], [0.5]], 0.3),
                },
                "cka": matrices([[0.9, 0.8], [0.05, None]], 0.1, layers=[[0, 1], [0, 1]]),
            }
        ],
        "findings": [
            undecided("Layers are alike", "CKA", "tokens", "no twins | none", "p").to_dict()
        ],
        "self_check": {
            "replay_error": {"a": 1e-7, "b": None},
            "replay_tolerance": {"a": 1e-5, "b": 1e-5},
        },
    }  # fmt: skip
    return results | {"table": comparison_rows(results)}
