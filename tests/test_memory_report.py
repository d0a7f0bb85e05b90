"""Sentences of the report: they follow the rows, and say so where nothing was found."""

from memory_report import _claim_sentence, number


def row(**fields):
    given = {"claim": "Memory is long", "statistic": "mean lag", "rule": "r", "value": 0.12345,
             "low": 0.1, "high": 0.2, "bounds": "interval", "n": 7, "unit": "texts",
             "verdict": "supported", "reason": None}  # fmt: skip
    return {**given, **fields}


def test_a_sentence_carries_its_number_and_its_bounds():
    assert _claim_sentence(row()) == (
        "- **Found**: Memory is long. Mean lag: 0.123 (interval 0.1 to 0.2; n = 7 texts)."
    )


def test_what_is_not_found_is_said():
    refused = _claim_sentence(row(verdict="not supported", bounds="null"))
    assert refused.startswith("- **Not found**: Memory is long. Mean lag: 0.123 (null 0.1 to 0.2")
    reason = "2 texts"
    open_ = row(verdict="too little data", value=None, low=None, high=None, reason=reason)
    assert _claim_sentence(open_) == "- **Undecided**: Memory is long. 2 texts."


def test_numbers():
    assert [number(x) for x in (None, 3, 0.00012345, 1234.5)] == [
        "undefined", "3", "0.000123", "1.23e+03",
    ]  # fmt: skip
