"""A slice of the fuzzer: no input may come to a traceback, a hang or a result it should not "
"have."""

import json
import time

import pytest

from benchmarks import fuzz


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
        words.append((fuzz._damage(path, rng), path.exists() and path.read_bytes()))
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
