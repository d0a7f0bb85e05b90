"""Tables of the report against the results they are read from."""

import pytest
from report_cases import HOSTILE_TEXTS, analysed

from result_views.checks import failures
from result_views.glossary import MEASURES
from result_views.report.tables import (
    Cell,
    cell,
    cross_text_tables,
    memory_table,
    null_cell,
    overview_table,
    provenance_table,
    replay_table,
    shown,
    text_tables,
    texts_table,
)
from tests.overview_cases import layer_row, section, shift_test


@pytest.fixture(scope="module")
def results():
    return analysed(HOSTILE_TEXTS[:2], layers=(0, 2), max_length=40).results


def by_title(tables):
    return {table.title: table for table in tables}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.123456, "0.123"), (1234.6, "1,235"), (12, "12"), (-0.00001234, "-1.23e-05"),
     (1778176, "1,778,176"), ("a", "a")],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value, text):
    assert shown(value) == text


def test_a_value_stands_beside_its_null():
    test = {"value": 0.5, "null_low": -0.1, "null_high": 0.2}
    assert null_cell(test) == Cell("0.5", "-0.1 to 0.2", True)
    assert null_cell({**test, "value": 0.15}).outside is False
    assert null_cell({"value": None, "reason": "one token"}) == Cell("– (one token)")
    assert null_cell(None) == Cell("–")


def test_what_lies_below_the_null_of_a_magnitude_is_not_bold():
    below = {"value": 0.0355, "null_low": 0.0529, "null_high": 0.107}
    assert null_cell(below).outside is True
    assert null_cell(below, one_sided=True).outside is False
    assert null_cell({**below, "value": 0.2}, one_sided=True).outside is True


def test_a_table_and_its_figure_give_the_same_verdicts(results):
    test = {"value": 0.01, "null_low": 0.05, "null_high": 0.1}
    pair = {"layers": [0, 2], "reason": None, **dict.fromkeys(("mean_abs", "max_abs", "cka"), test)}
    step = {"from_layer": 0, "to_layer": 2, "cka": 0.0355, "cka_null_mean": 0.0529,
            "cka_null_max": 0.107, "cka_p_value": 0.81}  # fmt: skip
    part = results["individual_texts"]["text_0"]
    steps = {**part["analysis"], "layer_correlations": {"mixer": {"layer_0_to_2": pair}},
             "neuron_evolution": {"rollout": {"transitions": [step]}}}  # fmt: skip
    changed = {**results, "individual_texts": {"text_0": {**part, "analysis": steps}}}
    tables = by_title(text_tables(changed, "text_0"))
    assert not any(one.outside for one in tables["From layer to layer"].rows[0])
    assert not any(one.outside for one in tables["Neurons from layer to layer"].rows[0])
    assert "Bold: above it" in tables["From layer to layer"].note
    assert "Bold: above it" in tables["Neurons from layer to layer"].note


def test_layers_are_those_of_the_results(results):
    table = text_tables(results, "text_0")[0]
    assert [row[0].text for row in table.rows] == ["0", "2"]
    steps = results["individual_texts"]["text_0"]["analysis"]
    columns = [column.label for column in table.columns]
    found = dict(zip(columns, table.rows[1], strict=True))
    delta = steps["ssm_components"]["layer_2"]["delta"]["mean"]
    assert found["mean Δ"] == cell(delta)
    lag = steps["attention_data"]["layer_2"]["memory_kernel"]["median_lag"][0]
    assert found["kernel: median lag, tokens"] == cell(lag)


def test_every_row_fills_its_columns_and_every_measure_is_known(results):
    tables = [
        *text_tables(results, "text_0"), *cross_text_tables(results), replay_table(results),
        provenance_table(results), texts_table(results),
    ]  # fmt: skip
    for table in tables:
        assert table.failure is None, table.title
        assert table.rows, table.title
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
        for column in table.columns:
            assert not column.measure or column.measure in MEASURES


def test_a_failed_step_is_a_table_that_says_why(results):
    part = results["individual_texts"]["text_0"]
    failed = {"error": {"type": "AnalysisError", "message": "no <room>"}}
    steps = {**part["analysis"], "recursive_patterns": failed, "attention_data": failed}
    broken = {**results, "individual_texts": {"text_0": {**part, "analysis": steps}}}
    tables = by_title(text_tables(broken, "text_0"))
    assert tables["Over time"].failure == "AnalysisError: no <room>"
    layers = tables["Memory and attention by layer"]
    assert "attention_data: AnalysisError: no <room>" in layers.note
    row = dict(zip([column.label for column in layers.columns], layers.rows[0], strict=True))
    assert row["strength"].text == "–"
    assert row["mean Δ"].text != "–"


def test_a_period_stands_beside_its_null_and_is_missed_in_older_results(results):
    part = results["individual_texts"]["text_0"]
    patterns = part["analysis"]["recursive_patterns"]
    series = patterns["layer_0"]["autocorrelation"]
    swing = {"period": 7.02, "power": 5.0, "power_null_high": 1.5, "rise": 9.0,
             "rise_null_high": 2.1, "reason": None}  # fmt: skip
    without = {name: value for name, value in series.items() if name != "rhythm"}
    for given, shown_as in (
        ({**series, "rhythm": swing}, Cell("7.02", "power rises x 9, null up to 2.1")),
        ({**series, "rhythm": {**swing, "period": None}}, Cell("–")),
        (without, Cell("–")),
    ):
        layer = {**patterns["layer_0"], "autocorrelation": given}
        steps = {**part["analysis"], "recursive_patterns": {**patterns, "layer_0": layer}}
        texts = {"text_0": {**part, "analysis": steps}}
        table = by_title(text_tables({**results, "individual_texts": texts}, "text_0"))["Over time"]
        row = dict(zip([column.label for column in table.columns], table.rows[0], strict=True))
        assert row["period, tokens"] == shown_as


def test_what_was_not_run_is_not_shown(results):
    assert "Neurons against ablation" not in by_title(text_tables(results, "text_0"))
    assert "Faithfulness of attributions" not in by_title(cross_text_tables(results))


def test_ablation_and_faithfulness_where_they_were_run(results):
    part = results["individual_texts"]["text_0"]
    agreement = {"spearman": 0.9, "p_value": 0.01, "null_95": 0.7, "n": 8, "reason": None}
    zero = {**agreement, "spearman": 0.5}
    check = {"layer_0": {"agreement": {"gradient_guided": agreement}, "by_value": {
        "mean": {"agreement": {"gradient_guided": agreement}},
        "zero": {"agreement": {"gradient_guided": zero}},
        "other_text": {"reason": "no other text to take values from"}}}}  # fmt: skip
    steps = {**part["analysis"], "neuron_ablation": check}
    mean = {"mean": 2.0, "low": 1.0, "high": 3.0}
    gain = {**mean, "p_value": 0.04}
    method = {"measures": {"delta_af": mean, "delta_af_other_text": {**mean, "mean": 1.5}},
              "over": {"random": {"delta_af": mean}, "recency": {"delta_af": gain}},
              "conservation_error": {"median": 1e-7}}  # fmt: skip
    cross = {**results["cross_text_analysis"],
             "attribution_faithfulness": {"methods": {"mamba_lrp": method}}}  # fmt: skip
    more = {**results, "individual_texts": {"text_0": {**part, "analysis": steps}},
            "cross_text_analysis": cross}  # fmt: skip
    ablation = by_title(text_tables(more, "text_0"))["Neurons against ablation"]
    assert ablation.rows[0][2:4] == (
        Cell("0.9", "-0.7 to 0.7", True), Cell("0.5", "-0.7 to 0.7", False)
    )  # fmt: skip
    assert ablation.rows[0][4].text == "– (not measured)"
    faithful = by_title(cross_text_tables(more))["Faithfulness of attributions"]
    assert faithful.rows[0][:3] == (
        Cell("mamba-lrp"), Cell("2", "1 to 3"), Cell("1.5", "1 to 3")
    )  # fmt: skip
    assert faithful.rows[0][4:6] == (Cell("2", "1 to 3"), Cell("0.04"))
    assert faithful.rows[0][6] == Cell("–")


def test_failures_are_found_wherever_they_stand():
    results = {
        "self_check": {
            "without_result": {
                "text_1": {"neurons": {"skipped": "needs attention"}},
                "cross_text_analysis": {
                    "ssm_consistency": {"error": {"type": "E", "message": "m"}}
                },
            }
        }
    }
    assert failures(results) == [
        ("text_1.neurons", "skipped: needs attention"),
        ("cross_text_analysis.ssm_consistency", "E: m"),
    ]


def test_memory_by_layer_or_why_not():
    rows = [{"layer": 3, "mean_delta": 0.5, "reset_kl": None}]
    table = memory_table({"memory_by_layer": rows})
    assert [entry.text for entry in table.rows[0][:2]] == ["3", "0.5"]
    assert memory_table({}).failure == "the memory analysis has no table by layer"


def test_pairs_of_too_few_tokens_give_the_reason(results):
    part = results["individual_texts"]["text_0"]
    pair = {"enough_tokens": False, "reason": "5 tokens"}
    steps = {**part["analysis"], "layer_correlations": {"mixer": {"layer_0_to_2": pair}}}
    broken = {**results, "individual_texts": {"text_0": {**part, "analysis": steps}}}
    table = by_title(text_tables(broken, "text_0"))["From layer to layer"]
    assert [entry.text for entry in table.rows[0]][:3] == ["0 to 2", "mixers", "– (5 tokens)"]


def overview_of(*rows):
    table = overview_table({"overview": section(*rows)})
    assert table is not None
    return table


def test_the_overview_is_bold_where_its_answers_may_rest():
    """Not where a value lies outside the null of its own layer alone."""
    alone, found = shift_test(3.454, 0.126, (-0.019, 2.608)), shift_test(0.5, 0.01)
    table = overview_of(layer_row(9, reset=alone), layer_row(11, reset=found))
    column = [one.label for one in table.columns].index("state erased alone, nats a token")
    cells = [row[column] for row in table.rows]
    assert [(one.text, one.outside) for one in cells] == [("3.45", False), ("0.5", True)]
    assert "over all layers and all questions" in table.note


def test_times_of_the_overview_say_of_which_state_and_what_limits_them():
    rows = layer_row(0, lag_90=83.0, limited_by_text=True, tokens_to_half=61.0), layer_row(1)
    table = overview_of(*rows)
    labels = [one.label for one in table.columns]
    assert labels[1:3] == [
        "median state: half-life, tokens",
        "slowest state: until half is left, tokens",
    ]
    lags = [row[labels.index("90 % lag, tokens")] for row in table.rows]
    assert lags == [Cell("83", "limited by the text"), Cell("20")]
    assert "slowest state, median over heads, is above a quarter" in table.note
    assert "slowest state, median" not in overview_of(layer_row(1)).note
