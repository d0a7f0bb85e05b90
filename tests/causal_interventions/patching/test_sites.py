"""Sites by name, and runs kept: what they hold is what the model computes."""

from typing import Any

import pytest
import torch
from patching_cases import random_pairs, runs_of

from benchmarks.family_models import make_model
from causal_interventions.patching.sites import (
    DEFAULT_SITES,
    SITES,
    Places,
    check_sites,
    layers_of_site,
    run_kept,
    site_edit,
    window_change,
)
from mamba_mixers.replay import EDITABLE, replay_mixer
from mamba_mixers.sites import find_mixers
from ssm_component_extractor import capture
from token_statistics.description import relative_error


@pytest.fixture(scope="module")
def model():
    return make_model("bamba")


def test_a_run_holds_what_a_capture_holds(model):
    ids = random_pairs()[0]
    with torch.no_grad():
        run = run_kept(model, ids, 2)
        logits = model(input_ids=ids, use_cache=False).logits[:, -2]
    captured = capture(model, ids, None, [0, 2])
    assert relative_error(run.logits, logits) <= 1e-5
    assert list(run.streams) == [0, 1, 2]
    for layer in (0, 2):
        parts = captured.components[layer]
        assert set(run.stages[layer]) == set(EDITABLE)
        for stage in ("u", "delta", "B", "C", "y", "gate"):
            assert relative_error(run.stages[layer][stage], getattr(parts, stage)) <= 1e-5
        assert relative_error(run.streams[layer], captured.block_inputs[layer]) <= 1e-5
        assert relative_error(run.outputs[layer], captured.block_outputs[layer]) <= 1e-5
        assert relative_error(run.states(layer, 1), parts.hidden_states[1]) <= 1e-5


@pytest.mark.parametrize("name", ["mamba3", "mamba3 of ranks"])
@torch.no_grad()
def test_a_state_of_mamba3_is_put_in_place_as_if_the_whole_memory_were(name):
    """The mixer goes on from the clean run's memory, theta and last write included, by itself."""
    model = make_model(name).double()
    runs, site = runs_of(model), find_mixers(model)[1]
    norm: Any = site.block.norm
    clean, corrupt = (norm(run.streams[1][:1]) for run in (runs.clean, runs.corrupt))
    for source, token in ((5, 5), (3, 6), (8, 2)):
        places = Places(*(torch.tensor([x]) for x in (0, token, 0, source)))
        edit = site_edit("state", site, runs.corrupt, runs.clean, places)
        found = replay_mixer(site, corrupt, edit=edit).output[:, token + 1 :]
        memory = replay_mixer(site, clean[:, : source + 1]).memory
        expected = replay_mixer(site, corrupt[:, token + 1 :], memory=memory).output
        assert relative_error(found, expected) <= 1e-10  # float64


def test_a_window_reaches_the_tokens_that_read_it(model):
    runs = runs_of(model)
    mixer = find_mixers(model)[0]
    own, other = (run.stages[0]["conv_input"] for run in (runs.corrupt, runs.clean))
    token = torch.tensor([5])
    places = Places(torch.tensor([0]), token, torch.tensor([0]), token)
    change = window_change(mixer, own[:1], other, places)[0]
    moved = change.abs().amax(1) > 0
    assert moved.tolist() == [False] * 6 + [True] * 3


def test_sites_are_checked(model):
    assert check_sites("state", False) == ("state",)
    assert check_sites(["u", "u", "y"], False) == ("u", "y")
    assert set(DEFAULT_SITES) | {"neurons"} == set(SITES)
    with pytest.raises(ValueError, match=r"site is 'h'.*residual.*state"):
        check_sites(["u", "h"], False)
    with pytest.raises(ValueError, match="sites is empty"):
        check_sites([], False)
    with pytest.raises(ValueError, match="site 'neurons' needs neurons="):
        check_sites("neurons", False)
    assert layers_of_site(model, "residual", {}) == [0, 1, 2]
    assert layers_of_site(model, "u", {}) == [0, 2]
    assert layers_of_site(model, "neurons", {2: [1]}) == [2]
