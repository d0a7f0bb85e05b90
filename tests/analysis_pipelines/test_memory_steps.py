"""Measures of the memory analysis: the state along a text."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

import math
from types import SimpleNamespace

import hand_weighted
import numpy as np
import pytest
import torch
from conftest import make_tiny_model

from analysis_pipelines.memory_claims import passing_claim
from analysis_pipelines.memory_steps import (
    LayerKernel,
    MemoryInputs,
    MemorySettings,
    TextAttention,
    kernels_of,
    passing_step,
    state_along_text,
)
from attention_neurons import layer_parameters
from ssm_component_extractor import capture, recursive_dynamics
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import LagSums
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
    # No more than 3 whatever the layer does: what three tokens say of its rank is their number.
    assert (
        state_along_text(dynamics([1.0] * 3, [1.0] * 3, [1.0] * 3))["participation_ratio"] is None
    )
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


def kernels(model, *lengths, layer=0):
    return TextAttention(
        [
            kernels_of(capture(model, torch.ones(1, length, dtype=torch.long), None, [layer]))
            for length in lengths
        ]
    ).to_dict()[f"layer_{layer}"]


def test_a_short_text_cuts_no_other_and_has_no_say_beyond_its_end():
    model = hand_weighted.constant_half_life(6.0)
    alone, mixed = kernels(model, 120), kernels(model, 120, 3, 120, 5)
    assert (mixed["length"], len(mixed["kernel"])) == (120, 120)
    # Lags 0 to 4 are the same in every text; float32 maps.
    for name in ("mean_lag", "median_lag", "lag_90"):
        assert mixed["pooled"][name] == pytest.approx(alone["pooled"][name], rel=1e-4)
    assert mixed["kernel"] == pytest.approx(alone["kernel"], rel=1e-4)
    assert sum(mixed["kernel"]) == pytest.approx(1.0, rel=1e-6)
    short = mixed["by_text"]["text_1"]
    assert short["mean_lag"] < 1 < mixed["by_text"]["text_0"]["mean_lag"]
    assert (short["limited_by_text"], mixed["limited_by_text"]) == (True, False)


def test_the_pooled_kernel_is_the_mean_over_all_queries_that_have_the_lag():
    model = make_tiny_model()
    lengths, found = (9, 14), []
    for i, length in enumerate(lengths):
        ids = torch.arange(1 + i, 1 + i + length)[None]
        found.append(capture(model, ids, None, [1]))
    joined = TextAttention([kernels_of(one) for one in found]).to_dict()["layer_1"]
    maps = [mean_map(one.components[1], absolute=True)[0].double() for one in found]
    means = [
        np.mean([float(one[t, t - k]) for one in maps for t in range(k, len(one))])
        for k in range(max(lengths))
    ]
    # float32 sums along the diagonals.
    assert joined["kernel"] == pytest.approx([x / sum(means) for x in means], rel=1e-6)
    assert joined["pooled"]["mean_lag"] == pytest.approx(
        sum(k * x for k, x in enumerate(means)) / sum(means)
    )


def test_lags_that_only_the_text_ends_are_called_that():
    slow = hand_weighted.constant_half_life(300.0)
    assert kernels(slow, 120, 40)["limited_by_text"] is True
    # Half-lives of 6 in a text of 20, and of 20: too short for them, and long enough.
    assert kernels(hand_weighted.constant_half_life(6.0), 20, 20)["limited_by_text"] is True
    assert kernels(hand_weighted.constant_half_life(6.0), 20, 80)["limited_by_text"] is False
    # The median half-life is short, and the attention spreads over all of the text.
    lags = LagSums(
        torch.ones(1, 60).double() * torch.arange(60, 0, -1), torch.arange(60, 0, -1)[None]
    )
    even = TextAttention([{0: LayerKernel(lags, slow=False)}]).to_dict()["layer_0"]
    assert even["pooled"]["lag_90"] == 53
    assert even["limited_by_text"] is even["by_text"]["text_0"]["limited_by_text"] is True


@pytest.mark.parametrize(("passes", "verdict"), [(True, ABOVE_CHANCE), (False, NOT_SUPPORTED)])
def test_passing_is_found_where_it_was_planted_and_not_where_layers_share_an_input(passes, verdict):
    # So wide that none of the other directions is by chance the feature that is read.
    model = hand_weighted.two_layers(passes=passes, width=256)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 4, (1, 20), generator=generator) for _ in range(6)]
    captures = [capture(model, text, None, [0, 1]) for text in texts]
    parameters = layer_parameters(model, [0, 1])
    inputs = MemoryInputs(model, captures, [], parameters, MemorySettings([0, 1]))
    found = passing_claim(passing_step(inputs))
    assert found.verdict == verdict
    assert found.n == 1  # a pair of layers is one trial, in however many texts
