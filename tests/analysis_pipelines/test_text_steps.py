"""The steps of one text: their results, tensors and measures, and a text without a forward pass."""

import pytest
import torch
from transformers import MambaForCausalLM

from analysis_pipelines.analysis_results import Settings
from analysis_pipelines.step_runner import Step
from analysis_pipelines.text_steps import TextInputs, analyze_text, without_capture
from attention_neurons import layer_parameters
from corrected_recursive_ssm_attention_analyzer import TEXT_STEPS
from ssm_component_extractor import capture
from ssm_measures.neuron_sets import TOP_NEURONS
from suite_plumbing.errors import AnalysisError

LAYERS = [0, 2]


@pytest.fixture
def inputs(tiny_model: MambaForCausalLM) -> TextInputs:
    ids = torch.arange(40).unsqueeze(0) % 17
    captured = capture(tiny_model, ids, None, LAYERS)
    return TextInputs(tiny_model, captured, layer_parameters(tiny_model, LAYERS), Settings(LAYERS))


def test_every_step_leaves_a_section_by_its_name(inputs):
    found = analyze_text(inputs, TEXT_STEPS)
    assert list(found.sections) == [step.name for step in TEXT_STEPS]
    assert not found.failures
    assert set(found.replay_errors) == {"layer_0", "layer_2"}
    assert found.tensors["layer_0.attention"].shape == (40, 40)
    assert len(found.neuron_rows) == 3 * 2 * TOP_NEURONS  # methods, layers


def test_what_needs_a_failed_step_is_skipped_and_the_rest_is_there(inputs):
    def fail(_):
        raise AnalysisError("no attention today")

    steps = [Step(s.name, fail) if s.name == "attention_data" else s for s in TEXT_STEPS]
    failures = analyze_text(inputs, steps).failures
    assert failures["attention_data"]["error"]["message"] == "no attention today"
    assert failures["neurons"] == {"skipped": "needs attention_data, which gave no result"}
    assert set(failures) == {
        "attention_data", "neurons", "ssm_attention_correlations", "neuron_evolution"
    }  # fmt: skip


def test_a_text_whose_forward_pass_failed_has_no_results():
    found = without_capture(AnalysisError("out of reach"), TEXT_STEPS)
    assert list(found.sections) == [step.name for step in TEXT_STEPS]
    assert found.sections["ssm_components"]["error"]["type"] == "AnalysisError"
    assert found.sections["neurons"] == {"skipped": "needs the forward pass, which failed"}
    assert found.measures is None
