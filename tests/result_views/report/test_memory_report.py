"""Sentences of the report: they follow the rows, and say so where nothing was found."""

from result_views.report.memory_report import (
    _cell,
    _curves,
    _delta,
    _delta_interventions,
    _passed_on,
    _recursion,
    findings_table,
)
from token_statistics.findings import Finding, undecided


def test_the_table_has_a_row_a_finding():
    found = Finding(
        "Memory is long", "mean lag", 0.12345, (0.1, 0.2), None, 7, "texts", "not supported", None,
        "memory.delta", "the interval lies above 0",
    )  # fmt: skip
    rows = findings_table([found, undecided("It is short", "lag", "texts", "2 texts", "p")])
    assert rows[2] == (
        "| Memory is long | 0.123 | interval 0.1 to 0.2; n = 7 texts | not supported | "
        "the interval lies above 0 |"
    )
    assert rows[3] == "| It is short |  |  | too little data |  |"


def test_a_swing_stands_beside_its_null_and_only_where_there_is_one():
    series = {"lags": [1, 2], "mean": [-0.3, 0.1], "null_low": [-0.1, -0.1],
              "null_high": [0.05, 0.05], "memory_time": 1}  # fmt: skip
    swing = {"period": 4.02, "rise": 12.3, "rise_null_high": 2.5}
    said = _recursion({"mixer": {"autocorrelation": {**series, "rhythm": swing}}})
    assert said.endswith("a period of 4.02 tokens (power rises 12.3 times; null: up to 2.5).")
    for none in ({**series, "rhythm": {**swing, "period": None}}, series):
        assert _recursion({"mixer": {"autocorrelation": none}}).endswith("its null at lag 1.")


def interventions(*changes):
    return _delta_interventions({"frozen": {"loss_change": list(changes)}})


def test_a_loss_that_falls_in_every_text_is_a_finding():
    assert interventions(-0.2, -0.1).endswith("-0.2 to -0.1: the loss is lower in every text.")
    assert interventions(0.1, 0.2).endswith("0.1 to 0.2: it costs in every text.")
    assert interventions(-0.1, 0.2).endswith("it costs in some texts, and gains in others.")
    assert interventions(1e-5, -1e-6).endswith("no change of 0.001 nats a token.")


def test_what_is_no_effect_and_what_the_text_limits_is_said():
    row = {"knockout_kl": 2e-8, "reset_kl": 0.5, "tokens_to_half": None, "kernel_mean_lag": 31.0,
           "kernel_limited_by_text": True}  # fmt: skip
    assert _cell(row, "knockout_kl") == "below 0.0001"
    assert _cell(row, "reset_kl") == "0.5"
    assert _cell(row, "tokens_to_half") == "more than the texts show"
    assert _cell(row, "kernel_mean_lag") == "31 (limited by the text)"
    assert _cell({**row, "kernel_limited_by_text": False}, "kernel_mean_lag") == "31"


def test_a_mean_magnitude_below_its_null_is_not_found_and_a_rho_below_is():
    row = {f"{name}{end}": value for name in ("delta_activation", "delta_memory")
           for end, value in (("", -0.5), ("_low", -0.1), ("_high", 0.2))}  # fmt: skip
    activation, memory = _delta(row).split("; ")
    assert activation.endswith("(null -0.1 to 0.2: not found)")
    assert memory.endswith("(null -0.1 to 0.2).")


def test_cuts_stand_beside_other_directions():
    text = {"layers": [0, 3], "cut": 0.25, "directions": [0.1, 0.2], "reason": None}
    nothing = {"layers": [0, 3], "cut": None, "directions": [], "reason": "layer 3 writes nothing"}
    lines = _passed_on({"layer_0_to_3": {"text_0": text, "text_1": nothing}})
    assert lines[2] == (
        "- Layer 0 to 3: without what the first writes, the second mixer's output changes by 0.25 "
        "to 0.25 of its norm in 1 text(s), through layers between too; where it writes in random "
        "directions, without that by 0.1 to 0.2."
    )
    assert _passed_on({"layer_0_to_3": {"text_0": nothing}}) == []
    assert _passed_on({"reason": "needs at least two layers"}) == []


def causal_part(low, high, reason, p):
    entry = {"first_lag": 1, "last_lag": 2, "kl": 0.1, "kl_low": low, "kl_high": high,
             "loss_change": 0.2, "reason": reason}  # fmt: skip
    agreement = {"spearman": 0.5, "low": low, "high": high, "num_lags": 4, "falling": 0.4,
                 "reason": reason}  # fmt: skip
    return {
        "together": {"bins": [entry], "positions": [[0, 3], [0, 9], [2, 5]]},
        "kernel_agreement": {"layer_4": agreement},
        "random_positions": {"bins": [{"baseline_kl": 0.3, "p_value": p}]},
    }


def test_causal_curves_say_of_how_many_texts_and_why_there_is_no_interval():
    few = "2 independent texts; an interval needs 5"
    said = "\n".join(_curves("Reset", causal_part(None, None, few, None)))
    assert said.startswith("Reset, all layers together, 3 positions of 2 text(s):")
    assert "| 1 to 2 | 0.1 |  | 0.2 | 0.3 |  |" in said
    assert f"No interval and no p: {few}." in said
    assert "over 4 lags 0.5 (no interval); with a curve that only falls 0.4" in said
    known = "\n".join(_curves("Reset", causal_part(0.05, 0.6, None, 0.03)))
    assert "| 1 to 2 | 0.1 | 0.05 to 0.6 | 0.2 | 0.3 | 0.03 |" in known
    assert "0.5 (interval 0.05 to 0.6)" in known
    assert "No interval" not in known
