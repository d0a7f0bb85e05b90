"""Sentences of the report: they follow the rows, and say so where nothing was found."""

from findings import Finding, undecided
from memory_report import _findings_table


def test_the_table_has_a_row_a_finding():
    found = Finding(
        "Memory is long", "mean lag", 0.12345, (0.1, 0.2), None, 7, "texts", "supported", None,
        "memory.delta", "the interval lies above 0",
    )  # fmt: skip
    rows = _findings_table([found, undecided("It is short", "lag", "texts", "2 texts", "p")])
    assert rows[2] == (
        "| Memory is long | 0.123 | interval 0.1 to 0.2; n = 7 texts | supported | "
        "the interval lies above 0 |"
    )
    assert rows[3] == "| It is short |  |  | too little data |  |"
