"""The table of untrained models that are said to do something."""

from benchmarks.untrained_answers import TESTED, main, table


def test_models_are_counted_once_and_questions_each():
    rows = {"fresh weights": [(), ("copying", "gate"), ("gate",)], "permuted weights": [(), (), ()]}
    lines = table(rows).splitlines()
    assert TESTED == ("copying", "reset", "context", "gate", "sink")
    assert lines[2] == "| fresh weights | 2 of 3 | 1 | 0 | 0 | 2 | 0 |"
    assert lines[3] == "| permuted weights | 0 of 3 | 0 | 0 | 0 | 0 | 0 |"


def test_the_command_tries_both_kinds(capsys):
    assert main(["--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| fresh weights | 0 of 1 |" in out
    assert "| permuted weights | 0 of 1 |" in out
