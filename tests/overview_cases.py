"""Sections of an overview by hand, for the tests of its answers and of its figure."""

from typing import Any

from analysis_pipelines.overview_questions import marked, together


def shift_test(
    value: float | None,
    p: float | None = 0.01,
    null: tuple[float, float] = (-0.1, 0.1),
    **more: Any,
) -> dict[str, Any]:
    return {"value": value, "p_value": p, "null_mean": sum(null) / 2, "null_low": null[0],
            "null_high": null[1], "n": 40, "unit": "predictions", "num_texts": 3,
            "num_draws": 99, "interval": None, "reason": None, "share": 0.05, "late": value,
            "texts_above": 3, "n_of_kind": 25, **more}  # fmt: skip


def untested(reason="too short"):
    return {**shift_test(None, None), "null_low": None, "null_high": None, "reason": reason}


def layer_row(layer: int, half_life: float = 8.0, **tests: Any) -> dict[str, Any]:
    nothing = {"copying": shift_test(1.1, 0.4, (0.8, 1.2), null_mean=1.0),
               "reset": shift_test(0.001, 0.5, (-0.01, 0.01)),
               "sink": shift_test(1.0, 0.5, (0.5, 1.5), null_mean=1.0, heads=[]),
               "gate": {"space_leading": shift_test(0.05, 0.6), "digits": untested()}}  # fmt: skip
    return {"layer": layer, "median_half_life": half_life, "tokens_to_half": None, "lag_90": 20.0,
            "limited_by_text": False, "recent_share": 0.3, "first_share": 0.01, "self_share": 0.1,
            "write": 1.0, "retain": 2.0, "heads_measured": 64, **nothing, **tests}  # fmt: skip


def section(*rows, all_states=None):
    all_states = all_states or shift_test(0.0, 0.6, (-0.01, 0.01))
    questions = together(rows, all_states)
    layers, all_states = marked(rows, all_states, questions["level"])
    return {"layers": layers, "all_states": all_states, "num_texts": 3, "num_independent": 2,
            "num_tokens": 300, "longest": 120, "questions": questions}  # fmt: skip
