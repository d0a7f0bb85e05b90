"""Measures of the memory analysis: the state along a text."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tiny_model

from analysis_pipelines.memory_steps import state_along_text
from ssm_component_extractor import capture, recursive_dynamics


def dynamics(norm, write, retain, ratio=2.0):
    tensors = {"state_norm": norm, "write_energy": write, "retain_energy": retain}
    given = {name: torch.tensor([values]) for name, values in tensors.items()}
    return SimpleNamespace(**given, state_participation_ratio=(ratio,))


def test_a_state_that_grows_and_one_that_has_stopped():
    norm = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 6.0, 6.0]
    found = state_along_text(dynamics(norm, [9.0] + [1.0] * 7, [0.0] + [3.0] * 7))
    assert found["norm_by_quarter"] == [1, 2, 3, 6]
    assert (found["last_over_first"], found["last_over_third"]) == (6, 2)
    # The first token retains nothing and is left out of the means.
    assert (found["write"], found["retain"], found["retained_share"]) == (1, 3, 0.75)
    assert found["reason"] is None


def test_short_and_empty_states_have_a_reason():
    short = state_along_text(dynamics([1.0] * 3, [1.0] * 3, [1.0] * 3, math.nan))
    assert short["retained_share"] is None
    assert short["participation_ratio"] is None
    assert "3 tokens" in short["reason"]
    zero = state_along_text(dynamics([0.0] * 4, [0.0] * 4, [0.0] * 4))
    assert zero["last_over_first"] is None
    assert zero["reason"] == "a state is zero"


def test_the_norm_is_that_of_the_states():
    model = make_tiny_model()
    parts = capture(model, torch.arange(1, 13)[None], None, [1]).components[1]
    found = state_along_text(recursive_dynamics(parts))
    norms = parts.hidden_states[0].double().flatten(1).norm(dim=1)
    # float32 norms against float64 ones.
    assert found["norm_by_quarter"][3] == pytest.approx(float(norms[9:].mean()), rel=1e-5)
