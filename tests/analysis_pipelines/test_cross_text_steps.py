"""The eighth step: what reaches the comparison of texts, and what one failed step takes away."""

import numpy as np
import pytest
import torch

from analysis_pipelines.cross_text_steps import (
    correlation_patterns,
    neuron_consistency,
    ssm_consistency,
    text_measures,
)
from analysis_pipelines.step_runner import run_steps
from attention_neurons import NEURON_METHODS, attention_data, layer_parameters
from corrected_recursive_ssm_attention_analyzer import CROSS_TEXT_STEPS
from layer_correlation_analyzer import STREAMS, cross_layer_correlations
from ssm_component_extractor import capture, recursive_dynamics


@pytest.fixture
def texts(tiny_model):
    """Measures of two texts of 60 tokens, layers 0 and 2."""
    torch.manual_seed(0)
    parameters = layer_parameters(tiny_model, [0, 2])
    measures = []
    for ids in torch.randint(1, 64, (2, 1, 60)):
        captured = capture(tiny_model, ids, None, [0, 2])
        data = attention_data(captured, parameters)
        neurons = {name: make(data, tiny_model, None) for name, make in NEURON_METHODS.items()}
        results = {
            "ssm_components": {
                layer: {"dynamics": recursive_dynamics(parts)}
                for layer, parts in captured.components.items()
            },
            "attention_data": data,
            "neurons": neurons,
        }
        measures.append((captured, results, text_measures(captured, results)))
    return measures


def test_statistics_are_those_of_the_texts(texts):
    captured, results, measures = texts[0]
    spread = ssm_consistency([entry[2] for entry in texts])[2]["mean_delta"]
    mean_delta = captured.components[2].delta.double().mean()
    assert spread.text_means[0] == pytest.approx(float(mean_delta), rel=1e-6)  # float32
    assert set(measures.ssm[0]) == {"mean_delta", "state_norm", "retain_energy"}
    importance = results["neurons"]["rollout"][2].importance
    assert measures.importance[2]["rollout"].tolist() == importance.double().tolist()


def test_importance_of_halves_makes_up_that_of_the_text(texts):
    _, results, measures = texts[0]
    assert set(measures.halves[2]) == {"attention_weighted", "rollout"}
    first, second = measures.halves[2]["rollout"]
    # Root mean squares of two halves of equal length; float32 importance.
    whole = results["neurons"]["rollout"][2].importance.double().numpy()
    assert np.sqrt((first**2 + second**2) / 2) == pytest.approx(whole, rel=1e-5)


def test_every_step_has_every_layer(texts):
    outcomes = run_steps(CROSS_TEXT_STEPS, [entry[2] for entry in texts])
    assert outcomes.failures == {}
    for name in ("ssm_consistency", "attention_consistency", "neuron_consistency"):
        assert set(outcomes.results[name]) == {0, 2}
    assert set(outcomes.results["correlation_patterns"]) == {"residual", "mixer"}
    pooled = outcomes.results["correlation_patterns"]["mixer"]["layer_0_to_2"]
    assert pooled.num_tokens == 120
    assert pooled.num_texts == 2


def test_a_text_whose_steps_failed_is_left_out_of_what_it_lacks(texts):
    captured, results, _ = texts[0]
    whole = text_measures(captured, results)
    bare = text_measures(captured, {})
    assert set(bare.ssm[0]) == {"mean_delta"}
    assert bare.attention == {}
    agreement = neuron_consistency([whole, bare])[0]["rollout"]
    assert agreement.num_texts == 1
    assert agreement.reason == "needs at least two texts"
    spreads = ssm_consistency([bare, whole])[0]
    assert spreads["mean_delta"].num_texts == 2
    assert spreads["state_norm"].num_texts == 1


def test_one_text_alone_keeps_its_correlations(texts):
    captured, results, measures = texts[0]
    own = {stream: cross_layer_correlations([captured], stream=stream) for stream in STREAMS}
    with_own = text_measures(captured, {**results, "layer_correlations": own})
    assert correlation_patterns([with_own]) is own
    computed = correlation_patterns([measures])  # a text whose own step gave no result
    for stream, pairs in own.items():
        assert [pair.to_dict() for pair in pairs.values()] == [
            pair.to_dict() for pair in computed[stream].values()
        ]
    both = correlation_patterns([with_own, with_own])
    assert both["mixer"]["layer_0_to_2"].num_texts == 2


def test_no_texts_give_empty_sections():
    assert correlation_patterns([]) == {}
    assert neuron_consistency([]) == {}
    assert ssm_consistency([]) == {}
