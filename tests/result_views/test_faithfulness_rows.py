"""Rows of the faithfulness table: order, cells, and what is undefined."""

from result_views.faithfulness_rows import faithfulness_rows, format_rows


def estimate(mean, p_value=None):
    low, high = (None, None) if mean is None else (mean - 1, mean + 1)
    return {"mean": mean, "low": low, "high": high, "num_texts": 3, "p_value": p_value}


def method(mean, reason=None):
    names = ("delta_af", "delta_af_other_text", "comprehensiveness", "sufficiency")
    return {
        "measures": dict.fromkeys(names, estimate(mean)),
        "over": {"recency": {"delta_af": estimate(0.5, 0.25)}},
        "agreement": {"knockout": estimate(0.125)},
        "conservation_error": {"median": None, "max": None},
        "bias_share": None,
        "randomised": [estimate(0.5), estimate(0.0)],
        "reason": reason,
    }


def test_methods_are_ordered_and_undefined_ones_come_last():
    section = {"methods": {"a": method(None, "ranks nothing"), "b": method(-1.0), "c": method(2.0)}}
    rows = faithfulness_rows(section)
    assert [row["method"] for row in rows] == ["c", "b", "a"]
    assert (rows[0]["delta_af_low"], rows[0]["delta_af_high"]) == (1.0, 3.0)
    assert rows[0]["delta_af_over_recency_p"] == 0.25
    assert rows[0]["delta_af_over_rollout"] is rows[0]["delta_af_over_rollout_p"] is None
    assert rows[0]["spearman_all_layers_randomised"] == 0.0
    assert rows[2]["reason"] == "ranks nothing"


def test_lines_hold_intervals_of_areas_and_a_dash_for_what_is_undefined():
    lines = format_rows(faithfulness_rows({"methods": {"a": method(None), "c": method(2.0)}}))
    head, best, worst = lines.splitlines()
    assert head.split()[:2] == ["method", "delta_af"]
    assert "2.00 [1.00, 3.00]" in best
    assert worst.split()[:2] == ["a", "-"]
