"""Paths of a mixer: together they are the layer, and a planted one is named."""

import json
from typing import Any

import pytest
import torch

from benchmarks.recall_circuit import PATHS, experiments, main, path_edit, path_effects, share_right
from benchmarks.recall_models import FAMILIES, fresh_model
from causal_interventions.patching.exact import pair_runs
from causal_interventions.patching.pairs import text_pairs
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import find_mixers
from token_statistics.description import relative_error


@pytest.mark.parametrize("family", FAMILIES)
def test_gate_state_and_own_path_together_are_the_layers_output(family):
    model: Any = fresh_model(family)
    (pairs,) = experiments(["passkey"], 6)
    checked = text_pairs(model, None, pairs.clean, pairs.corrupt, pairs.answers)
    runs = pair_runs(model, checked, "logit_difference", 1)
    site = find_mixers(model)[1]
    edits = [path_edit(path, site, runs.corrupt, runs.clean) for path in ("gate", "state", "own")]

    def all_of_them(stage: str, x: torch.Tensor) -> torch.Tensor:
        for edit in edits:
            x = edit(stage, x)
        return x

    with torch.no_grad(), fast_scan(model, edits={1: all_of_them}):
        found = forward_from(model, 1, runs.corrupt.streams[1], runs.corrupt.input_ids)
    stream = runs.corrupt.streams[1] + runs.clean.outputs[1] - runs.clean.streams[1]
    expected = model.lm_head(model.backbone.norm_f(stream))
    assert relative_error(found, expected) <= 1e-4


def test_every_path_of_every_layer_has_an_effect_with_its_interval():
    model = fresh_model("mamba2")
    pairs = experiments(["recall"], 8)
    assert [one.corruption for one in pairs] == ["value", "key"]
    found = path_effects(model, pairs[0])
    assert [(one.layer, one.path) for one in found] == [(i, p) for i in (0, 1) for p in PATHS]
    assert all(one.suffices.low is not None for one in found)
    assert 0 <= share_right(model, pairs[0]) <= 1


def test_the_command_trains_patches_and_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.recall_models.MAX_STEPS", 2)
    monkeypatch.setattr("benchmarks.recall_circuit.NUM_TWINS", 1)
    options = ["--models-dir", str(tmp_path), "--families", "mamba", "--tasks", "passkey",
               "--pairs", "5", "--parts", str(tmp_path / "parts")]  # fmt: skip
    assert main([*options, "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "## mamba, passkey: twins by the value" in shown
    assert "% of 5 clean texts answered, by seed." in shown
    row = next(line for line in shown.splitlines() if line.startswith("| 1 | gate |"))
    other = float(row.split("|")[5])
    kept = json.loads((tmp_path / "parts" / "mamba_passkey_value_5_1.json").read_text())
    assert kept["effects"][-1]["path"] == "gate"
    assert other == pytest.approx(kept["effects"][-1]["suffices"], abs=0.005)
    assert "Attribution patching beside exact patching" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mamba_passkey", "mamba_passkey_1", "parts"
    ]  # fmt: skip
    assert main([*options, "--seeds", "2"]) == 0  # from the parts
    assert capsys.readouterr().out == shown
