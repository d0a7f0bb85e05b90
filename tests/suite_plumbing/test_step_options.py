"""Options of the steps agree with the modules that they name."""

import pytest

from attention_neurons import NEURON_METHODS
from causal_interventions.causal_curves import KINDS
from causal_interventions.explained import BASELINES
from causal_interventions.targets import DEFAULT_TARGET
from causal_interventions.targets import TARGETS as KNOWN_TARGETS
from input_attribution import ATTRIBUTION_METHODS as KNOWN_METHODS
from intervention_study import NUM_POSITIONS
from layer_correlation_analyzer import STREAMS
from suite_plumbing import step_options


def shown(options, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        options(["--help"])
    return " ".join(capsys.readouterr().out.split())


def test_names_in_options_are_those_of_the_modules_that_know_them() -> None:
    assert tuple(KNOWN_TARGETS) == step_options.TARGETS
    assert tuple(KNOWN_METHODS) == step_options.ATTRIBUTION_METHODS
    assert len(NEURON_METHODS) == 3  # "neurons by three methods"


def test_what_help_says_is_what_the_modules_do(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(step_options.layer_correlation_analyzer_options, capsys)
    assert f"--stream {{{','.join(STREAMS)}}}" in said
    said = shown(step_options.intervention_study_options, capsys)
    assert f"--kind {{{','.join([*KINDS, 'both'])}}}" in said
    said = shown(step_options.attribution_faithfulness_options, capsys)
    assert f"{', '.join(BASELINES)}, or a token id" in said


def test_defaults_are_those_of_the_functions() -> None:
    assert step_options.attention_neurons_options([]).target == DEFAULT_TARGET
    assert step_options.intervention_study_options([]).num_positions == NUM_POSITIONS


def test_every_step_that_draws_takes_formats() -> None:
    for name in ("ssm_component_extractor", "delta_extraction", "layer_correlation_analyzer",
                 "attention_neurons", "intervention_study", "input_attribution",
                 "direct_attribution", "attribution_faithfulness", "steering"):  # fmt: skip
        options = getattr(step_options, f"{name}_options")
        assert options(["--formats", "svg,pdf"]).formats == ["svg", "pdf"]
