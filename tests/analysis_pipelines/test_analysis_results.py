"""How results are put together: keys, self-check, files that are whole."""

import json

import pytest
import torch
from safetensors.torch import load_file

from analysis_pipelines.analysis_results import (
    Analysis,
    Settings,
    TextAnalysis,
    assemble,
    write_analysis,
)
from analysis_pipelines.step_runner import Step, StepOutcomes, step_sections
from suite_plumbing.texts import EncodedText


def _text(errors):
    return TextAnalysis({"step": {}}, {"layer_0.delta": torch.ones(2, 3)}, [{"neuron": 1}], None,
                        errors, {})  # fmt: skip


def _encoded():
    return EncodedText("ab", [1, 2], ["a", "b"], [(0, 1), (1, 2)], 2, False)


def test_layers_and_objects_become_strict_json():
    class Found:
        def to_dict(self):
            return {"value": torch.tensor(2.5), 3: [1]}

    steps = [Step("fine", lambda _: None), Step("broken", lambda _: None)]
    outcomes = StepOutcomes({"fine": {0: Found()}}, {"broken": {"skipped": "why"}})
    assert step_sections(outcomes, steps) == {
        "fine": {"layer_0": {"value": 2.5, "layer_3": [1]}},
        "broken": {"skipped": "why"},
    }


@pytest.mark.parametrize(
    ("dtype", "error", "agrees"),
    [
        (torch.float32, 1e-6, True),
        (torch.float32, 1e-4, False),
        (torch.bfloat16, 5e-3, True),
        (torch.float64, 1e-8, True),  # transformers rounds u and B to float32 on the way
        (torch.float64, 1e-6, False),
    ],
)
def test_self_check_allows_what_the_dtype_can(tiny_model, dtype, error, agrees, caplog):
    model = tiny_model.to(dtype)
    texts = [_text({"layer_0": error})]
    results = assemble(model, [_encoded()], texts, {}, Settings([0]), 1.0).results
    assert results["self_check"]["largest_replay_error"] == error
    assert results["self_check"]["replay_agrees"] is agrees
    assert ("not to be trusted" in caplog.text) is not agrees


def test_a_cross_text_step_without_result_is_named(tiny_model):
    cross_text = {"ssm_consistency": {"error": {"type": "AnalysisError", "message": "m"}}}
    results = assemble(
        tiny_model, [_encoded()], [_text({})], cross_text, Settings([0]), 1.0
    ).results
    assert results["self_check"]["without_result"] == {"cross_text_analysis": cross_text}
    assert results["self_check"]["replay_agrees"] is None


def test_files_lie_beside_each_other_and_hold_what_was_found(tiny_model, tmp_path):
    analysis = assemble(tiny_model, [_encoded()], [_text({})], {}, Settings([0]), 1.0)
    path = write_analysis(analysis, tmp_path / "out.json")
    assert json.loads(path.read_text()) == analysis.results
    assert torch.equal(load_file(tmp_path / "out.safetensors")["text_0.layer_0.delta"],
                       torch.ones(2, 3))  # fmt: skip
    assert (tmp_path / "out_neurons.csv").read_text() == "text,neuron\n0,1\n"


def test_a_full_disk_leaves_the_earlier_result_whole(tmp_path, monkeypatch):
    path = write_analysis(Analysis({"run": 1}, {}, []), tmp_path / "out.json")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_analysis(Analysis({"run": 2}, {}, []), path)
    assert json.loads(path.read_text()) == {"run": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
