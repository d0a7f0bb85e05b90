"""Measures of the memory analysis: the state along a text."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

import math
from types import SimpleNamespace

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model

from analysis_pipelines.memory_claims import passing_claim
from analysis_pipelines.memory_steps import (
    MemoryInputs,
    MemorySettings,
    TextAttention,
    kernels_of,
    passing_step,
    state_along_text,
)
from attention_neurons import layer_parameters
from ssm_component_extractor import capture, recursive_dynamics
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED


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


def test_kernels_compare_at_the_length_of_the_shortest_text():
    model = hand_weighted.constant_half_life(6.0)

    def kernels(*lengths):
        return TextAttention(
            [
                kernels_of(capture(model, torch.ones(1, length, dtype=torch.long), None, [0]))
                for length in lengths
            ]
        ).to_dict()["layer_0"]

    mixed, short = kernels(40, 120), kernels(40, 40)
    assert mixed["length"] == 40
    # A kernel's start is the same in a longer text; float32 maps.
    assert mixed["mean_lag"]["mean"] == pytest.approx(short["mean_lag"]["mean"], rel=1e-4)
    assert sum(mixed["kernel"]) == pytest.approx(1.0, rel=1e-6)
    own = [text["mean_lag"] for text in mixed["by_text"].values()]
    assert own[1] > 1.02 * own[0]
    assert mixed["limited_by_text"] is False
    assert kernels(20, 40)["limited_by_text"] is True


@pytest.mark.parametrize(("passes", "verdict"), [(True, ABOVE_CHANCE), (False, NOT_SUPPORTED)])
def test_passing_is_found_where_it_was_planted_and_not_where_layers_share_an_input(passes, verdict):
    model = hand_weighted.two_layers(passes=passes)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 4, (1, 20), generator=generator) for _ in range(6)]
    captures = [capture(model, text, None, [0, 1]) for text in texts]
    parameters = layer_parameters(model, [0, 1])
    inputs = MemoryInputs(model, captures, [], parameters, MemorySettings([0, 1]))
    found = passing_claim(passing_step(inputs))
    assert found.verdict == verdict
    assert found.n == 6
