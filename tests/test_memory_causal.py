"""Causal memory over a set of texts: by position, texts too short, random positions beside."""

import math

import pytest
import torch
from conftest import make_tiny_model

from intervention_study import CausalMemoryCurve
from memory_causal import by_position, causal_memory
from ssm_component_extractor import capture


def text_of(model, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return capture(model, torch.randint(1, 64, (1, length), generator=generator), None, [0, 2])


def test_each_position_has_its_mean_and_its_late_share():
    kl = torch.tensor([[math.nan, 3.0, 1.0, 1.0, 1.0], [math.nan, 0.0, 0.0, 0.0, 0.0]]).double()
    curve = CausalMemoryCurve("knockout", (0,), ((0, 1), (0, 2)), kl, kl)
    found = by_position(curve)
    assert found["kl"] == [1.5, 0.0]
    assert found["late_share"] == [2 / 6, None]


def test_texts_too_short_are_left_out_and_named():
    model = make_tiny_model()
    captures = [text_of(model, 5), text_of(model, 40)]
    found = causal_memory(model, captures, [0, 2], num_positions=3)
    assert found["texts"] == ["text_1"]
    assert found["max_lag"] == 19
    for kind in ("reset", "knockout"):
        part = found[kind]
        assert list(part["layers"]) == ["layer_0", "layer_2"]
        assert {text for text, _ in part["together"]["positions"]} == {1}
        assert len(part["layers"]["layer_2"]["kl"]) == len(part["together"]["positions"])
    assert set(causal_memory(model, captures[:1], [0], num_positions=3)) == {"reason"}


def test_positions_agree_with_the_curve_and_random_ones_stand_beside():
    model = make_tiny_model()
    found = causal_memory(model, [text_of(model, 60)], [0], num_positions=2)["reset"]
    curve = found["layers"]["layer_0"]
    # Every position has every lag, so that the two orders of averaging agree but for rounding.
    mean = sum(curve["mean_kl"]) / len(curve["mean_kl"])
    assert sum(curve["kl"]) / len(curve["kl"]) == pytest.approx(mean, rel=1e-9)
    beside = found["random_positions"]
    assert beside["num_positions"] == 2
    assert [entry["first_lag"] for entry in beside["bins"]] == [
        entry["first_lag"] for entry in found["together"]["bins"]
    ]
