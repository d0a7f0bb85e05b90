"""Cuts between layers: planted reading and none, the model's own code, bad input."""

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model

from causal_interventions.passing import passing
from mamba_mixers.sites import find_mixers
from ssm_component_extractor import capture

IDS = torch.tensor([[2, 1, 2, 3, 3, 1, 0, 2, 3, 2, 1, 1, 0, 3]])


def test_a_layer_that_reads_the_write_loses_it_and_no_other_direction_does_as_much():
    # So wide that no other direction is by chance the feature that is read.
    model = hand_weighted.two_layers(passes=True, width=64)
    found = passing(model, capture(model, IDS, None, [0, 1]), 0, 1)
    # All that layer 1 writes is what it reads there.
    assert found.cut == pytest.approx(1.0, abs=1e-6)
    assert len(found.directions) == 4
    assert found.cut is not None
    assert max(found.directions) < found.cut


def test_layers_that_only_share_their_input_pass_nothing():
    model = hand_weighted.two_layers(passes=False)
    found = passing(model, capture(model, IDS, None, [0, 1]), 0, 1)
    # 5e-6: the write is a part of the stream whose norm divides it.
    assert found.cut == pytest.approx(0.0, abs=1e-4)
    assert found.to_dict()["reason"] is None


@torch.no_grad()
def test_the_cut_is_what_the_models_own_code_gives():
    model, ids = make_tiny_model(), torch.arange(1, 25)[None]
    found = passing(model, capture(model, ids, None, [0, 1, 3]), 1, 3)
    outputs = []
    third = find_mixers(model)[3].mixer
    handle = third.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        model(ids)
        find_mixers(model)[1].mixer.out_proj.weight.zero_()
        model(ids)
    finally:
        handle.remove()
    clean, cut = outputs
    # Two float32 scans; the change is of order 0.1 of the output.
    assert found.cut == pytest.approx(float((cut - clean).norm() / clean.norm()), rel=1e-4)


def test_a_layer_that_writes_nothing_has_no_share_of_change():
    model = make_tiny_model()
    with torch.no_grad():
        find_mixers(model)[3].mixer.out_proj.weight.zero_()
    found = passing(model, capture(model, IDS, None, [0, 3]), 0, 3)
    assert (found.cut, found.directions, found.reason) == (None, (), "layer 3 writes nothing")


def test_directions_are_seeded():
    model = make_tiny_model()
    captured = capture(model, IDS, None, [0, 1])
    first, again, other = (passing(model, captured, 0, 1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.cut == other.cut
    assert first.directions != other.directions


@pytest.mark.parametrize("layer", [None, "1", 1.5, -1, True])
def test_layers_are_whole_numbers(layer):
    captured = capture(make_tiny_model(), torch.arange(2, 12)[None], None, [0, 1])
    with pytest.raises(ValueError, match="first is"):
        passing(make_tiny_model(), captured, layer, 1)


def test_bad_input_is_named():
    model = make_tiny_model()
    captured = capture(model, IDS, None, [0, 1])
    with pytest.raises(ValueError, match="layers are 1 and 0; the first must come before"):
        passing(model, captured, 1, 0)
    with pytest.raises(ValueError, match="num_directions is 0"):
        passing(model, captured, 0, 1, num_directions=0)
    with pytest.raises(ValueError, match="captured has 2 texts"):
        passing(model, capture(model, IDS.expand(2, -1), None, [0]), 0, 1)
