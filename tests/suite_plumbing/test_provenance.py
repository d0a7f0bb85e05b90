"""Provenance: what a rerun needs, and versions that agree."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from suite_plumbing import provenance as origin
from suite_plumbing.provenance import provenance, weights_sha256


def test_weights_sha256_sees_one_changed_weight_and_the_dtype(tiny_model: torch.nn.Module) -> None:
    before = weights_sha256(tiny_model)
    assert weights_sha256(copy.deepcopy(tiny_model)) == before
    assert weights_sha256(copy.deepcopy(tiny_model).bfloat16()) != before
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[-1] += 1
    assert weights_sha256(tiny_model) != before


def test_provenance_of_two_runs_differs_under_run_alone(tiny_model: torch.nn.Module) -> None:
    first = provenance(tiny_model, command=["a.py", "--seed", "3", "--output-dir", "x"], seed=3)
    second = provenance(tiny_model, command=["a.py", "--seed", "3", "--output-dir=y"], seed=3)
    assert first["run"]["command"] != second["run"]["command"]
    assert first["command"] == ["a.py", "--seed", "3"]
    assert {**first, "run": None} == {**second, "run": None}


def test_provenance_has_what_a_rerun_needs(tiny_model: torch.nn.Module) -> None:
    record = provenance(tiny_model, command="a.py --text 'two words'", seed=0, token_counts=[5])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["command"] == ["a.py", "--text", "two words"]
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"python", "torch", "transformers", "numpy", "scipy"}
    assert record["suite"]["version"] == origin.SUITE_VERSION
    assert record["model"]["class"] == "MambaForCausalLM"
    assert record["model"]["weights_sha256"] == weights_sha256(tiny_model)
    assert (record["dtype"], record["device"], record["seed"]) == ("float32", "cpu", 0)
    assert set(record["kernels"]) == {"mamba_ssm", "causal_conv1d"}
    assert record["token_counts"] == [5]


def test_provenance_refuses_details_that_would_overwrite(tiny_model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\['run', 'suite'\] would overwrite"):
        provenance(tiny_model, suite=1, run=2)


def test_provenance_names_the_bundled_model_without_its_place(tiny_model: torch.nn.Module) -> None:
    tiny_model.config.name_or_path = str(origin.DEMO_MODEL_PATH)  # pyright: ignore
    assert provenance(tiny_model)["model"]["id"] == "demo_model"


def test_git_state_is_unknown_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = {"git_commit": None, "git_modified": None}
    monkeypatch.setattr(origin, "SUITE_DIR", tmp_path)
    assert origin._git_state() == unknown
    (tmp_path / ".git").mkdir()  # an empty folder is no repository: git itself fails
    assert origin._git_state() == unknown
    monkeypatch.setenv("PATH", str(tmp_path))  # nor is there a git to ask
    assert origin._git_state() == unknown


def test_versions_agree_across_the_project_files() -> None:
    citation = (origin.SUITE_DIR / "CITATION.cff").read_text()
    assert f"\nversion: {origin.SUITE_VERSION}\n" in citation
    changelog = (origin.SUITE_DIR / "CHANGELOG.md").read_text()
    assert f"\n## {origin.SUITE_VERSION}" in changelog


class Adapted(torch.nn.Module):
    """A layer of PEFT's: what it wraps, and by name the parts of its adapters."""

    def __init__(self, base: torch.nn.Module, *names: str) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})
        self.active_adapters, self.disable_adapters, self.merged_adapters = (
            list(names[:1]),
            False,
            [],
        )


def test_provenance_names_the_adapters_in_place(tiny_model: Any) -> None:
    assert provenance(tiny_model)["model"]["adapters"] is None
    for block in tiny_model.backbone.layers[:2]:
        block.mixer.in_proj = Adapted(block.mixer.in_proj, "mine", "other")
    tiny_model.peft_config = {"mine": SimpleNamespace(peft_type="LORA")}
    assert provenance(tiny_model)["model"]["adapters"] == {
        "mine": {"type": "LORA", "modules": 2, "active": True},
        "other": {"type": None, "modules": 2, "active": False},
    }
    for block in tiny_model.backbone.layers[:2]:
        block.mixer.in_proj.disable_adapters = True
    assert not provenance(tiny_model)["model"]["adapters"]["mine"]["active"]
