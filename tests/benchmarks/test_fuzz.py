"""A slice of the fuzzer: no input may come to a traceback, a hang or a result it should not "
"have."""

import json
import time

import pytest

from benchmarks import fuzz, fuzz_commands, fuzz_inputs


def test_a_slice_of_the_inputs_comes_to_no_wrong_outcome():
    found = list(fuzz.fuzz(24, seed=1))
    assert [one.index for one in found] == list(range(24))
    assert len({one.kind for one in found}) == 4
    assert [one for one in found if one.outcome not in fuzz.RIGHT] == []


def test_every_wrong_outcome_is_seen():
    def of(run, kind="call", must=False):
        return fuzz.outcome_of(fuzz.Case(kind, "", run, must))[0]

    def says(message):
        raise ValueError(message)

    assert of(lambda: 1) == "done"
    assert of(lambda: 1, must=True) == "wrong acceptance"
    assert of(lambda: says("one line")) == "refused in one line"
    assert of(lambda: says("a" * 601)) == "message too long"
    assert of(lambda: says("two\nlines")) == "message too long"
    assert of(lambda: {}["key"]) == "traceback"
    assert of(lambda: 0, "command line") == "done"
    assert of(lambda: 2, "command line") == "refused in one line"
    assert of(lambda: 7, "command line") == "traceback"


def test_an_input_that_hangs_or_dies_is_counted_and_the_next_one_runs(monkeypatch):
    def case_of(stand, seed, index, folder):
        acts = (lambda: 1, lambda: time.sleep(60), lambda: fuzz.os._exit(3), lambda: 1)
        return fuzz.Case("call", "", acts[index])

    monkeypatch.setattr(fuzz, "case_of", case_of)
    monkeypatch.setattr(fuzz, "make_stand", lambda folder: fuzz.Stand(folder, folder, folder))
    monkeypatch.setattr(fuzz, "TIMEOUT", 2)
    assert [one.outcome for one in fuzz.fuzz(4)] == ["done", "hang", "crash", "done"]


def test_inputs_depend_on_the_seed_and_the_number_alone(tmp_path):
    path = tmp_path / "a.json"
    words = []
    for _ in range(2):
        path.write_text(json.dumps({"a": {"b": [1, 2]}, "c": 5}))
        rng = fuzz.random.Random("0/3")
        words.append((fuzz_inputs._damage(path, rng), path.exists() and path.read_bytes()))
    assert words[0] == words[1]


def test_the_report_counts_and_names_what_is_wrong():
    outcomes = [
        fuzz.Outcome(0, "call", "f(x)", "done", ""),
        fuzz.Outcome(1, "call", "f(y)", "traceback", "Traceback\nKeyError: 5"),
    ]
    text = fuzz.report(outcomes, 3)
    assert "2 inputs, seed 3." in text
    assert "| call | 1 | 0 | 0 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "- 1, traceback: `f(y)` KeyError: 5" in text
    with pytest.raises(ValueError, match="count is 0"):
        next(fuzz.fuzz(0))


def test_a_run_goes_on_from_its_log(monkeypatch, tmp_path, capsys):
    def case_of(stand, seed, index, folder, kind=None):
        ran.append(index)
        return fuzz.Case("call", f"number {index}", lambda: 1, argv=("x.py",))

    ran: list[int] = []
    monkeypatch.setattr(fuzz, "case_of", case_of)
    monkeypatch.setattr(fuzz, "make_stand", lambda folder: fuzz.Stand(folder, folder, folder))
    monkeypatch.setattr(fuzz, "_real_outcome", lambda case, folder: ("done", ""))
    log = str(tmp_path / "log.jsonl")
    assert fuzz.main(["--count", "2", "--log", log]) == 0
    assert fuzz.main(["--count", "3", "--commands", "2", "--log", log]) == 0
    held = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [one[0] for one in held] == [0, 1, 2, 0, 1]
    assert ran == [0, 1]  # in this process: of the commands alone
    text = capsys.readouterr().out
    assert "5 inputs, seed 0." in text
    assert "| real command | 2 | 0" in text


def test_every_command_is_tried_and_an_empty_value_may_not_be_taken(tmp_path):
    scripts = {path.stem for path in fuzz.ROOT.glob("*.py")} - {"utils", "analysis_utils"}
    assert {name for name in scripts if "main(" in (fuzz.ROOT / f"{name}.py").read_text()} == set(
        fuzz_commands.COMMANDS
    )
    stand = fuzz.Stand(tmp_path, tmp_path, tmp_path / "results.json")
    (tmp_path / "model.safetensors").touch()
    cases = [fuzz.case_of(stand, 3, i, tmp_path, "command line") for i in range(300)]
    assert len({case.argv[0] for case in cases}) == len(fuzz_commands.COMMANDS)
    assert any(case.must_refuse for case in cases)
    assert all("" in case.argv for case in cases if case.must_refuse)
    empty = fuzz.Case("command line", "", lambda: 0, must_refuse=True)
    assert fuzz.outcome_of(empty)[0] == "wrong acceptance"
