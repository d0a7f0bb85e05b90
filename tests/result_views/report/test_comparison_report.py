"""Table and section of a comparison: numbers of the results, best matches, what is undefined."""

from comparison_results import comparison

from analysis_pipelines.comparison_readings import MAP_MEASURES
from result_views.report.comparison_report import (
    MEASURE_NAMES,
    TABLE_COLUMNS,
    comparison_rows,
    comparison_section,
)


def test_every_measure_has_a_name():
    assert tuple(MEASURE_NAMES) == MAP_MEASURES


def test_rows_are_layers_of_each_model_beside_the_other():
    rows = comparison_rows(comparison())
    assert [(row["model"], row["layer"], row["attention"], row["other_model"]) for row in rows] == [
        ("a", 0, "implicit", "b"),
        ("a", 1, "implicit", "b"),
        ("b", 0, "softmax", "a"),
        ("b", 1, None, "a"),
    ]
    assert all(set(row) <= set(TABLE_COLUMNS) for row in rows)
    assert (rows[0]["n"], rows[0]["num_texts"]) == (50, 2)
    assert (rows[1]["entropy_share"], rows[1]["first_share_text_std"]) == (0.2, 0.5)


def test_best_matches_are_of_the_row_and_of_the_column():
    rows = comparison_rows(comparison())
    assert (rows[0]["agrees_with"], rows[0]["agreement"]) == ("layer_0.softmax", 0.61)
    best = rows[2]
    assert (best["agrees_with"], best["windowed"]) == ("layer_1.implicit", 0.5)
    assert (best["agreement"], best["agreement_lag_only"]) == (0.62, 0.42)
    assert best["agreement_other_text"] is None
    assert (best["windowed_null_low"], best["windowed_null_high"]) == (0.0, 0.3)
    assert (rows[0]["most_alike_layer"], rows[0]["cka"]) == (0, 0.9)
    assert (rows[3]["most_alike_layer"], rows[3]["cka"], rows[3]["cka_null_high"]) == (0, 0.8, 0.1)
    assert "agrees_with" not in rows[3]


def test_undefined_pairs_leave_no_match():
    results = comparison()
    pair = results["pairs"][0]
    pair["agreement"]["windowed"]["value"] = [[None], [None]]
    pair["cka"]["value"] = [[None, None], [None, None]]
    rows = comparison_rows(results)
    assert not any("agrees_with" in row or "most_alike_layer" in row for row in rows)
    text = comparison_section(results | {"table": rows})
    assert "| 0, implicit | none | undefined |" in text


def test_the_section_says_what_was_compared_and_every_number():
    text = comparison_section(comparison())
    assert "`a` (A, 2 layers); `b` (B, 2 layers). Every model read the same 50 tokens" in text
    assert "Largest replay error of `a`: 1e-07, within the tolerance of 1e-05." in text
    assert "- Undecided: Layers are alike. No twins | none." in text
    assert "| attention spread evenly |  | 0.25 |" in text
    assert "| b | layer 0, softmax | 0.3 ± 0.5 | 1.3 ± 0.5 |" in text
    row = (
        "| 1, implicit | layer 0, softmax | 0.62 | 0.42 | undefined | 0.5 (0 to 0.3) | 0 "
        "| 0.05 (0 to 0.1) |"
    )
    assert row in text
    assert "± is the standard deviation over texts" in text


def test_pieces_a_missing_null_and_a_bad_replay_are_said():
    results = comparison()
    results["unit"] = "pieces"
    results["self_check"]["replay_error"]["a"] = 0.5
    cka = results["pairs"][0]["cka"]
    cka["reason"] = "12 tokens; a claim needs at least 40"
    cka["null_low"] = cka["null_high"] = [[None, None], [None, None]]
    text = comparison_section(results | {"table": comparison_rows(results)})
    assert "Their tokens differ: everything is over the pieces" in text
    assert "replay error of `a`: 0.5, **beyond** the tolerance" in text
    assert "No null: 12 tokens; a claim needs at least 40." in text
    assert "0.9 (none)" in text
