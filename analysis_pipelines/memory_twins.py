"""What the memory claims' statistics are in untrained twins: what needs no training at all.

A twin has the model's shape and fresh or permuted weights (`mamba_mixers.untrained_twins`). It
reads the same texts, and is measured at the same positions and on the same neurons; of the steps
of ``memory_steps`` only what the claims read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis_pipelines.memory_causal import knockouts_by_layer
from analysis_pipelines.memory_claims import claims_on
from analysis_pipelines.memory_neurons import mean_effects, rank_test
from analysis_pipelines.memory_reading import Reading, captured_by
from analysis_pipelines.memory_steps import (
    MemoryInputs,
    delta_causes_step,
    delta_neurons_step,
    passing_step,
)
from analysis_pipelines.step_runner import Step, run_steps, step_sections
from causal_interventions.neuron_effects import ablation_effects, random_neurons
from causal_interventions.targets import resolve_target
from layer_correlation_analyzer import cross_layer_correlations, recursive_patterns
from mamba_mixers.untrained_twins import each_twin, untrained_twin
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import memory_kernel
from suite_plumbing.kept_values import keeping_part, kept
from suite_plumbing.result_files import to_jsonable
from token_statistics.findings import Finding


@dataclass(frozen=True)
class TwinFindings:
    """The memory claims tried on one untrained twin."""

    kind: str
    """in `twin_bounds.TWIN_KINDS`"""
    seed: int
    """of its weights"""
    findings: list[Finding]
    """in the order of the model's"""


def twin_findings(inputs: MemoryInputs, reading: Reading) -> list[TwinFindings]:
    """The claims on ``settings.num_twins`` twins of each kind of the model that was analysed.

    Cost of each: a forward pass a batch, and for each ablated neuron and each position the layers
    from the one changed on.
    """
    return [
        TwinFindings(kind, seed, _findings(inputs, reading, kind, seed))
        for kind, seed in each_twin(inputs.settings.num_twins, inputs.settings.seed)
    ]


def by_kind(twins: Sequence[TwinFindings]) -> dict[str, dict[int, list[Finding]]]:
    """Findings by kind of twin and seed."""
    found: dict[str, dict[int, list[Finding]]] = {}
    for twin in twins:
        found.setdefault(twin.kind, {})[twin.seed] = twin.findings
    return found


def claims_measured(inputs: MemoryInputs) -> list[Finding]:
    """The memory claims on a model, from the steps that they need alone."""
    sections = to_jsonable(step_sections(run_steps(CLAIM_STEPS, inputs), CLAIM_STEPS))
    settings = inputs.settings
    return claims_on(sections, settings.layers, inputs.num_distinct, settings.seed, inputs.groups)


def _findings(inputs: MemoryInputs, reading: Reading, kind: str, seed: int) -> list[Finding]:
    twin = untrained_twin(inputs.model, seed, kind)
    with captured_by(twin, reading, "twin") as captures, keeping_part(f"{kind} {seed}"):
        return claims_measured(replace(inputs, model=twin, captures=captures, parameters={}))


def _kernel_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """Mean lag of each layer's memory kernel on each text."""
    result = {}
    for layer in inputs.settings.layers:
        lags = [
            memory_kernel(mean_map(parts, absolute=True), parts.attention_mask).mean_lag[0]
            for parts in inputs.components(layer)
        ]
        result[layer] = {"by_text": {f"text_{i}": {"mean_lag": x} for i, x in enumerate(lags)}}
    return result


def _recursion_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    seed = inputs.settings.seed
    return {
        layer: {"mixer": recursive_patterns(inputs.captures, layer, stream="mixer", seed=seed)}
        for layer in inputs.settings.layers
    }


def _cross_layer_step(inputs: MemoryInputs) -> dict[str, Any]:
    if len(inputs.settings.layers) < 2:
        return {"reason": "needs at least two layers"}
    seed = inputs.settings.seed
    return {"mixer": cross_layer_correlations(inputs.captures, stream="mixer", seed=seed)}


def _ablation_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """Effect of random neurons, mean over texts, with their mean delta."""
    settings, target = inputs.settings, resolve_target()
    result = {}
    for layer in settings.layers:
        deltas = torch.cat([parts.channel_delta[0] for parts in inputs.components(layer)]).double()
        chosen = random_neurons(deltas.shape[1], settings.num_ablations, settings.seed)
        by_text = {
            f"text_{i}": kept(
                f"ablation {layer} of text {i}",
                lambda: ablation_effects(inputs.model, one, layer, chosen, target).to_dict(),  # noqa: B023
            )
            for i, one in enumerate(inputs.captures)
        }
        ids, effects = mean_effects(by_text)
        result[layer] = {"mean_delta": rank_test(effects, deltas.mean(0)[ids], settings.seed)}
    return result


def _causal_step(inputs: MemoryInputs) -> dict[str, Any]:
    settings = inputs.settings
    return knockouts_by_layer(
        inputs.model, inputs.captures, settings.layers, settings.num_positions
    )


CLAIM_STEPS = (
    Step("delta_neurons", delta_neurons_step),
    Step("memory_kernel", _kernel_step),
    Step("recursive_patterns", _recursion_step),
    Step("cross_layer_correlations", _cross_layer_step),
    Step("passing", passing_step),
    Step("ablation_memory", _ablation_step),
    Step("causal_memory", _causal_step),
    Step("delta_causes", delta_causes_step, needs=("causal_memory",)),
)
