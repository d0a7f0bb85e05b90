"""What each step of the main analysis does on one text, and what becomes of their results.

Numbers as in ``corrected_recursive_ssm_attention_analyzer``, which lists the steps and runs them
text by text. A step reads the capture or the results of the steps that its entry there names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from analysis_pipelines.analysis_results import Settings, TextAnalysis, neuron_rows, text_tensors
from analysis_pipelines.cross_text_steps import text_measures
from analysis_pipelines.step_runner import Step, run_steps, step_sections
from attention_neurons import NEURON_METHODS, AttentionData, attention_data
from causal_interventions.neuron_effects import ABLATION_VALUES, ablation_check
from causal_interventions.targets import resolve_target
from delta_extraction import delta_memory
from layer_correlation_analyzer import (
    cross_layer_correlations,
    recursive_patterns,
    summarise_activations,
)
from mamba_mixers.weights import MixerParameters
from ssm_component_extractor import recursive_dynamics
from ssm_measures.components import Capture
from ssm_measures.delta_neurons import delta_neuron_correlation
from ssm_measures.neuron_evolution import neuron_evolution
from ssm_measures.neuron_sets import NeuronSet
from ssm_measures.ssm_attention import ssm_attention_correlations
from suite_plumbing.errors import AnalysisError, failure_of
from suite_plumbing.parallel import by_layer
from suite_plumbing.result_files import is_finite


@dataclass(frozen=True, eq=False)
class TextInputs:
    """What the steps of one text work on."""

    model: PreTrainedModel
    captured: Capture
    """one text, without padding"""
    parameters: Mapping[int, MixerParameters]
    settings: Settings
    donor: Callable[[], Capture | None] = lambda: None
    """another text, of which ablated neurons get the values; captured when asked for"""

    @property
    def seed(self) -> int:
        """Of all random draws."""
        return self.settings.seed


def components_and_memory(inputs: TextInputs) -> dict[int, Any]:
    """1: components, their dynamics, and what delta lets the state remember."""

    def of_layer(layer: int) -> dict[str, Any]:
        parts = inputs.captured.components[layer]
        return {
            **parts.to_dict(),
            "dynamics": recursive_dynamics(parts),
            "delta_memory": delta_memory([parts], layer, seed=inputs.seed),
            "delta_activation": delta_neuron_correlation([parts], layer, seed=inputs.seed),
        }

    return by_layer(of_layer, inputs.captured.components)


def attention_maps(inputs: TextInputs) -> AttentionData:
    """2: implicit attention, exact, and the synthetic one beside it."""
    return attention_data(inputs.captured, inputs.parameters)


def neurons_by_method(
    inputs: TextInputs, attention: AttentionData
) -> dict[str, dict[int, NeuronSet]]:
    """3: neurons by each method."""
    return {name: make(attention, inputs.model, None) for name, make in NEURON_METHODS.items()}


def activations_by_layer(inputs: TextInputs) -> dict[int, dict[str, Any]]:
    """4a: the residual stream and what each mixer adds to it."""
    captured = inputs.captured
    return {layer: summarise_activations(captured, layer) for layer in captured.layers}


def neighbouring_layers(inputs: TextInputs) -> dict[str, Any]:
    """4b: neighbouring layers, by residual stream and by mixer output."""
    if len(inputs.captured.layers) < 2:
        return {"reason": "needs at least two layers"}
    captures = [inputs.captured]
    return {
        stream: cross_layer_correlations(captures, stream=stream, seed=inputs.seed)
        for stream in ("residual", "mixer")
    }


def recursion_by_layer(inputs: TextInputs) -> dict[int, Any]:
    """5: autocorrelation, and change of state against change of activation."""
    captured = inputs.captured
    return by_layer(
        lambda layer: recursive_patterns([captured], layer, seed=inputs.seed), captured.layers
    )


def ssm_with_attention(inputs: TextInputs, attention: AttentionData) -> dict[int, Any]:
    """6: delta, B and C with attention received and paid."""

    def of_layer(layer: int) -> Any:
        parts, maps = inputs.captured.components[layer], attention.layers[layer]
        given = None if maps.written is None else maps.written[0]
        return ssm_attention_correlations(
            parts, maps.absolute[0], given_map=given, seed=inputs.seed
        )

    return by_layer(of_layer, inputs.captured.components)


def evolution_by_method(
    inputs: TextInputs, neurons: dict[str, dict[int, NeuronSet]]
) -> dict[str, Any]:
    """7: how the profile of importance and the activations change from layer to layer."""
    return {
        name: neuron_evolution(by_layer, seed=inputs.seed) for name, by_layer in neurons.items()
    }


def ablation_by_layer(
    inputs: TextInputs, neurons: dict[str, dict[int, NeuronSet]]
) -> dict[int, dict[str, Any]]:
    """On request: how well each method's importance agrees with ablation of each kind."""
    settings = inputs.settings
    return ablation_check(
        inputs.model,
        inputs.captured,
        neurons,
        resolve_target(),
        settings.num_ablations,
        seed=settings.seed,
        values=ABLATION_VALUES,
        donor=inputs.donor(),
    )


def analyze_text(
    inputs: TextInputs, steps: Sequence[Step], after_each: Callable[[], None] | None = None
) -> TextAnalysis:
    """Run the steps of one text, and keep of their results what is written and compared."""
    outcomes = run_steps(steps, inputs, after_each)
    found = outcomes.results
    sections = step_sections(outcomes, steps)
    tensors = text_tensors(inputs.captured, found.get("attention_data"), found.get("neurons"))
    if lost := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        message = f"not written, for they hold NaN or infinity: {', '.join(lost)}"
        outcomes.failures["tensors"] = failure_of(AnalysisError(message))
    return TextAnalysis(
        sections=sections,
        tensors={name: tensor for name, tensor in tensors.items() if name not in lost},
        neuron_rows=neuron_rows(found.get("neurons")),
        measures=text_measures(inputs.captured, found),
        replay_errors={
            f"layer_{layer}": parts.replay_error
            for layer, parts in inputs.captured.components.items()
        },
        failures=outcomes.failures,
    )


def without_capture(error: Exception, steps: Sequence[Step]) -> TextAnalysis:
    """The analysis of a text whose forward pass failed: no step of it gave a result."""
    first, *rest = (step.name for step in steps)
    skipped = {name: {"skipped": "needs the forward pass, which failed"} for name in rest}
    failures = {first: failure_of(error), **skipped}
    return TextAnalysis(failures, {}, [], None, {}, failures)
