"""Sentences of the report: they follow the rows, and say so where nothing was found."""

from result_views.report.memory_report import _recursion, findings_table
from token_statistics.findings import Finding, undecided


def test_the_table_has_a_row_a_finding():
    found = Finding(
        "Memory is long", "mean lag", 0.12345, (0.1, 0.2), None, 7, "texts", "supported", None,
        "memory.delta", "the interval lies above 0",
    )  # fmt: skip
    rows = findings_table([found, undecided("It is short", "lag", "texts", "2 texts", "p")])
    assert rows[2] == (
        "| Memory is long | 0.123 | interval 0.1 to 0.2; n = 7 texts | supported | "
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
