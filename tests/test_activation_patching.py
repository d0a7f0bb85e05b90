"""The class and its command: what they give, refuse and write."""

import json

import pytest
import torch
from conftest import make_tiny_tokenizer
from mamba3_cases import make_mamba3
from patching_cases import random_pairs
from safetensors.torch import load_file

from activation_patching import ActivationPatching, main
from benchmarks.family_models import make_model
from benchmarks.recall_models import fresh_model
from causal_interventions.patching.metrics import METRICS
from causal_interventions.patching.sites import DEFAULT_SITES
from causal_interventions.patching.tasks import task_pairs
from suite_plumbing.step_options import PATCHING_METRICS, PATCHING_SITES


@pytest.fixture(scope="module")
def patching():
    return ActivationPatching(make_model("mamba"))


@pytest.fixture(scope="module")
def task():
    return task_pairs("recall", 6, items=3, vocabulary=16, seed=1)


def test_options_name_what_there_is():
    assert PATCHING_SITES == DEFAULT_SITES
    assert set(PATCHING_METRICS) == set(METRICS)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_gives_tables_of_layers_and_tokens(patching, task, direction):
    found = patching.patch(
        task.clean, task.corrupt, task.answers, sites=("state", "residual"), direction=direction
    )
    assert found.effect["state"].shape == (2, 7)
    # The value's token is where the texts differ: before layer 0 its stream alone does it all.
    start, end = (1.0, 0.0) if direction == "denoising" else (0.0, 1.0)
    at = found.at("residual", task.roles["value"])[0]
    assert at.value == pytest.approx(start, abs=1e-3)
    assert found.effect["residual"].loc[0, 6] == pytest.approx(end, abs=1e-6)
    assert found.control["state"].shape == (2, 7)
    assert found.reason is None
    assert patching.result_ is found


def test_a_mamba3_is_patched_at_all_sites_that_it_has(task):
    patching = ActivationPatching(make_model("mamba3"))
    given = (task.clean, task.corrupt, task.answers)
    found = patching.patch(*given, control=False)
    assert list(found.effect) == [site for site in DEFAULT_SITES if site != "window"]
    assert all(bool(table.notna().all().all()) for table in found.effect.values())
    estimated = patching.attribution(*given, sites=DEFAULT_SITES)
    assert list(estimated.nodes.effect) == list(found.effect)
    with pytest.raises(ValueError, match="'window' is that of a convolution, which a Mamba-3"):
        patching.patch(*given, sites=("state", "window"))


def test_a_mamba3_with_norms_of_ranks_is_patched_without_its_state(task):
    patching = ActivationPatching(make_mamba3("mimo normed, with MLPs"))
    given = (task.clean, task.corrupt, task.answers)
    assert "state" not in patching.patch(*given, control=False).effect
    with pytest.raises(ValueError, match="'state' of a Mamba-3 with a norm on each rank's output"):
        patching.patch(*given, sites="state")


def test_neurons_metrics_and_positions_can_be_chosen(patching, task):
    found = patching.patch(
        task.clean, task.corrupt, task.answers, sites="neurons", neurons={1: [0, 3]}, metric="kl",
        position=-2, control=False,
    )  # fmt: skip
    assert found.layers == {"neurons": [1]}
    assert found.reason == "no control was asked for"
    same = patching.patch(
        task.clean, task.corrupt, task.answers, sites="neurons", neurons={1: [0, 3]}, metric="kl",
        position=5, control=False,
    )  # fmt: skip
    assert found.effect["neurons"].equals(same.effect["neurons"])
    one = patching.patch(task.clean[0], task.corrupt[0], task.answers[0], sites="u")
    assert one.reason == "one pair has no unrelated one"


def test_pairs_in_parts_give_the_same(patching, task, monkeypatch):
    whole = patching.patch(task.clean, task.corrupt, task.answers, sites="state", control=False)
    monkeypatch.setattr("activation_patching._NUMBERS_KEPT", 1)
    parts = patching.patch(task.clean, task.corrupt, task.answers, sites="state", control=False)
    # Batches of other rows round otherwise.
    assert float((whole.patched["state"] - parts.patched["state"]).abs().max()) <= 1e-4


def test_attribution_stands_beside_exact_patching(task):
    patching = ActivationPatching(fresh_model("mamba"))  # small weights: nearly linear
    given = (task.clean, task.corrupt, task.answers)
    exact = patching.patch(*given, sites=("mixer", "state"), control=False)
    found = patching.attribution(*given, sites=("mixer", "state"), steps=8)
    agreement = found.agreement(exact)
    assert set(agreement) == {"mixer", "state"}
    assert all(rho is not None and rho > 0.9 for rho in agreement.values())
    assert found.edge_effect.shape == (3, 3)
    assert found.neuron_effect(0).shape == (96,)
    curve = patching.circuit(*given, counts=[0, 6], num_random=2)
    assert curve.faithfulness.tolist() == pytest.approx([0.0, 1.0], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sites": "h"}, "site is 'h'"),
        ({"metric": "loss"}, "metric is 'loss'"),
        ({"direction": "both"}, "direction is 'both'"),
        ({"position": 9}, "position is 9"),
        ({"neurons": {7: [1]}, "sites": "neurons"}, "layer of neurons is 7"),
        ({"neurons": {0: [64]}, "sites": "neurons"}, "neurons of layer 0 is 64"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(patching, task, options, said):
    with pytest.raises(ValueError, match=said):
        patching.patch(task.clean, task.corrupt, task.answers, **options)


def test_bad_pairs_are_refused_in_a_sentence(patching):
    clean, corrupt, _ = random_pairs()
    with pytest.raises(ValueError, match="the pairs have texts of 3, 9 tokens"):
        patching.patch([clean[0], clean[1][:3]], [corrupt[0], corrupt[1][:3]], (1, 2))
    with pytest.raises(ValueError, match="there is no effect to share out"):
        patching.patch(clean, corrupt, (1, 2), position=1)
    with pytest.raises(ValueError, match="has no tokenizer"):
        patching.patch("a b", "a c", (1, 2))
    with pytest.raises(ValueError, match="has no logits"):
        ActivationPatching(make_model("mamba").backbone).patch(clean, corrupt, (1, 2))


def test_the_command_writes_what_it_found(tmp_path, capsys):
    folder = tmp_path / "model"
    make_model("mamba").save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    pairs = tmp_path / "pairs.jsonl"
    line = {"clean": "the lamp the", "corrupt": "the map. the", "answers": ["t", "m"]}
    pairs.write_text(json.dumps(line) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    options = [
        "--model",
        str(folder),
        "--output-dir",
        str(out),
        "--sites",
        "state,window",
        "--circuit",
    ]
    assert main([str(pairs), *options, "--quiet", "--steps", "2"]) == 0
    results = json.loads((out / "patching_results.json").read_text(encoding="utf-8"))
    assert set(results["patching"]["sites"]) == {"state", "window"}
    assert results["circuit"]["curve"][-1]["faithfulness"] == pytest.approx(1.0, abs=1e-3)
    assert results["patching"]["control_reason"] == "one pair has no unrelated one"
    tensors = load_file(out / "patching.safetensors")
    assert tensors["patched.state"].shape[:2] == torch.Size([1, 2])
    assert (out / "patching.csv").read_text(encoding="utf-8").startswith("site,layer,token,effect")
    assert (out / "activation_patching.png").exists()
    shown = capsys.readouterr().out
    assert "the strongest place of each site" in shown
    assert main([str(tmp_path / "none.jsonl"), *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
