"""The step runner: what a failure takes with it, and what it leaves."""

import pytest
import torch

from analysis_pipelines.step_runner import Step, run_steps
from suite_plumbing.errors import AnalysisError


def _raise(error):
    def run(*_):
        raise error

    return run


def test_steps_receive_the_inputs_and_what_they_need():
    steps = [
        Step("double", lambda x: 2 * x),
        Step("sum", lambda x, double: x + double, needs=("double",)),
    ]
    assert run_steps(steps, 3).results == {"double": 6, "sum": 9}


def test_a_failed_step_takes_its_dependents_only():
    steps = [
        Step("first", lambda _: 1),
        Step("broken", _raise(AnalysisError("no variance in layer 3"))),
        Step("after", lambda *_: 2, needs=("broken",)),
        Step("far", lambda *_: 3, needs=("after",)),
        Step("last", lambda _, first: first + 1, needs=("first",)),
    ]
    outcomes = run_steps(steps, None)
    assert outcomes.results == {"first": 1, "last": 2}
    error = {"type": "AnalysisError", "message": "no variance in layer 3"}
    assert outcomes.failures == {
        "broken": {"error": error},
        "after": {"skipped": "needs broken, which gave no result"},
        "far": {"skipped": "needs after, which gave no result"},
    }


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("on this device")])
def test_running_out_of_memory_is_recorded(error):
    outcomes = run_steps([Step("large", _raise(error)), Step("small", lambda _: 1)], None)
    assert outcomes.failures["large"]["error"]["type"] == type(error).__name__
    assert outcomes.results == {"small": 1}


def test_a_programming_error_goes_through():
    with pytest.raises(KeyError, match="typo"):
        run_steps([Step("wrong", _raise(KeyError("typo")))], None)


def test_memory_is_cleared_after_each_step_that_ran():
    calls = []
    steps = [
        Step("broken", _raise(AnalysisError("x"))),
        Step("skipped", lambda *_: 1, needs=("broken",)),
        Step("fine", lambda _: 1),
    ]
    run_steps(steps, None, after_each=lambda: calls.append(1))
    assert len(calls) == 2
