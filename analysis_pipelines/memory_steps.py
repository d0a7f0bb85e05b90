"""What a model's states keep of the past and what its predictions lose without it, by layer.

The steps of the memory analysis, over all texts together. Descriptive: delta and half-lives, the
memory kernel of implicit attention, the state's norm, energies and rank, autocorrelation, ties
between layers, neurons by three methods. Causal: neurons ablated one by one, the state reset, and
single sources hidden. Each step composes functions of the suite and computes over a `Capture` a
text (b = 1, no padding).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis_pipelines.memory_causal import (
    causal_memory,
    delta_at_sources,
    delta_interventions,
    neurons_beside_random,
    sources_of,
)
from analysis_pipelines.memory_neurons import (
    DeltaAndNeurons,
    FoundNeurons,
    TextNeurons,
    channel_memory,
    delta_and_neurons,
    found_neurons,
    importance_and_memory,
    mean_effects,
    rank_test,
    ranked,
)
from analysis_pipelines.step_runner import Step
from attention_neurons import NEURON_METHODS, attention_data
from causal_interventions.neuron_effects import ablation_check
from causal_interventions.passing import directions_for, passing
from causal_interventions.targets import resolve_target
from delta_extraction import delta_memory
from layer_correlation_analyzer import STREAMS, cross_layer_correlations, recursive_patterns
from mamba_mixers.weights import MixerParameters
from ssm_component_extractor import RecursiveDynamics, recursive_dynamics
from ssm_measures.attention_maps import limited_by_text, mean_map
from ssm_measures.attention_measures import (
    LagSums,
    MemoryKernel,
    kernel_of_sums,
    lag_sums,
    pooled_lags,
)
from ssm_measures.components import Capture, SSMComponents, captured_ids
from ssm_measures.gate_tokens import gate_tokens
from ssm_measures.kept_captures import ReadEach
from suite_plumbing.kept_values import kept
from suite_plumbing.related_texts import readings
from suite_plumbing.result_files import finite_or_none
from token_statistics.description import summarise
from token_statistics.time_shift_nulls import NullTest

NUM_CAUSAL_NEURONS = 8
"""Most important neurons of a layer that are set to their mean one by one."""


_LAGS = ("mean_lag", "median_lag", "lag_90")

LIMITED_REACH = 0.5
"""Share of a text: where 90 % of the attention lie within more, a longer text would give more."""


@dataclass(frozen=True, eq=False)
class MemorySettings:
    """How the memory analysis is run."""

    layers: list[int]
    batch_size: int = 2
    """texts a forward pass; changes the numbers by rounding alone"""
    seed: int = 0
    num_positions: int = 16
    """tokens of each text at which memory is taken away"""
    num_ablations: int = 16
    """random neurons of each layer that are ablated, the same in every text"""
    num_random: int = 2
    """random tokens, and random neurons of the same norm, for each one whose effect is measured"""
    num_twins: int = 0
    """untrained twins of each kind that the claims are tried on too"""
    command: Sequence[str] | None = None
    """command line, for the provenance"""


@dataclass(frozen=True, eq=False)
class MemoryInputs:
    """What the steps work on."""

    model: PreTrainedModel
    captures: Sequence[Capture]
    """one a text, without padding; each is asked for anew, and may be read from disk"""
    pieces: Sequence[Sequence[str]]
    """by text: its tokens, decoded"""
    parameters: Mapping[int, MixerParameters]
    settings: MemorySettings

    def components(self, layer: int) -> Sequence[SSMComponents]:
        """One layer's components for each text, of which none is kept here."""
        return ReadEach(len(self.captures), lambda i: self.captures[i].components[layer])

    @property
    def groups(self) -> list[int]:
        """Group of related texts of each text: number of its first."""
        return [one.group for one in readings(captured_ids(self.captures))]

    @property
    def num_distinct(self) -> int:
        """Tokens of all texts that were not read before with the same history."""
        read = readings(captured_ids(self.captures))
        return sum(one.num_tokens - one.num_seen for one in read)


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """How one layer's attention falls off with the lag on one text."""

    lags: LagSums
    """what the kernel is made of, as far as the text reaches"""
    slow: bool
    """whether the text is too short for the layer's half-lives: see
    `ssm_measures.attention_maps.limited_by_text`"""

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.lags.sums.shape[1]


@dataclass(frozen=True, eq=False)
class TextAttention:
    """Implicit attention of each text, as the memory kernel of each layer."""

    texts: Sequence[Mapping[int, LayerKernel]]

    def to_dict(self) -> dict[str, Any]:
        """By layer: lags of each text and their summaries, and the kernel of all of them."""
        return {f"layer_{layer}": _kernels(self.texts, layer) for layer in self.texts[0]}


def delta_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """Half-lives, survival and time scales under the data's own delta; tokens at the gate."""
    seed, ids = inputs.settings.seed, captured_ids(inputs.captures)
    return {
        layer: {
            "memory": delta_memory(inputs.components(layer), layer, token_ids=ids, seed=seed),
            "gate_tokens": gate_tokens(
                inputs.components(layer), inputs.pieces, layer, token_ids=ids, seed=seed
            ),
        }
        for layer in inputs.settings.layers
    }


def delta_neurons_step(inputs: MemoryInputs) -> dict[int, DeltaAndNeurons]:
    """Delta with the activation of each neuron, and the change of neurons when delta changes."""
    ids = captured_ids(inputs.captures)
    return {
        layer: delta_and_neurons(inputs.components(layer), layer, inputs.settings.seed, ids)
        for layer in inputs.settings.layers
    }


def attention_step(inputs: MemoryInputs) -> TextAttention:
    """Memory kernel of every layer on every text: how its attention falls off with the lag."""
    return TextAttention([kernels_of(one) for one in inputs.captures])


def kernels_of(captured: Capture) -> dict[int, LayerKernel]:
    """Memory kernel of every captured layer on one text (b = 1, no padding)."""
    return {layer: _kernel(captured.components[layer]) for layer in captured.layers}


def _kernel(parts: SSMComponents) -> LayerKernel:
    lags = lag_sums(mean_map(parts, absolute=True), parts.attention_mask)
    return LayerKernel(lags, limited_by_text(parts)[0])


def state_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """Norm of the state along the text, energies written and kept, and rank, by layer and text."""
    return {
        layer: {
            f"text_{i}": state_along_text(recursive_dynamics(parts))
            for i, parts in enumerate(inputs.components(layer))
        }
        for layer in inputs.settings.layers
    }


def state_along_text(dynamics: RecursiveDynamics) -> dict[str, Any]:
    """Norm, energies and rank of one layer's state on one text (b = 1, no padding).

    ``norm_by_quarter``: mean |h_t| over each quarter of the tokens; ``last_over_first`` and
    ``last_over_third``: ratios of these (near 1 the norm has stopped growing); ``write``,
    ``retain``: mean over t >= 1 of |delta B u| and |exp(delta A) h_{t-1}|, L2 over channels and
    states; ``retained_share``: mean over t >= 1 of retain / (retain + write), in [0, 1]. None with
    the ``reason`` for fewer than 4 tokens, and where a state is zero.
    """
    norm = dynamics.state_norm[0].double()
    names = ("norm_by_quarter", "last_over_first", "last_over_third", "write", "retain",
             "retained_share")  # fmt: skip
    result: dict[str, Any] = {"num_tokens": len(norm), "participation_ratio": None}
    if len(norm) < 4:
        reason = f"{len(norm)} tokens; quarters of a text need 4 or more"
        return {**result, **dict.fromkeys(names), "reason": reason}
    result["participation_ratio"] = finite_or_none(dynamics.state_participation_ratio[0])
    quarters = [float(part.mean()) for part in norm.tensor_split(4)]
    write, retain = (x[0, 1:].double() for x in (dynamics.write_energy, dynamics.retain_energy))
    values = (
        quarters,
        _ratio(quarters[3], quarters[0]),
        _ratio(quarters[3], quarters[2]),
        float(write.mean()),
        float(retain.mean()),
        finite_or_none((retain / (retain + write)).mean()),
    )
    defined = None not in values
    return {
        **result,
        **dict(zip(names, values, strict=True)),
        "reason": None if defined else "a state is zero",
    }


def recursion_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """Autocorrelation of each layer's residual stream and mixer output, beside shuffled tokens."""
    return {
        layer: {
            stream: recursive_patterns(
                inputs.captures, layer, stream=stream, seed=inputs.settings.seed
            )
            for stream in STREAMS
        }
        for layer in inputs.settings.layers
    }


def cross_layer_step(inputs: MemoryInputs) -> dict[str, Any]:
    """Correlation of neighbouring layers, by residual stream and by mixer output."""
    if len(inputs.settings.layers) < 2:
        return {"reason": "needs at least two layers"}
    return {
        stream: cross_layer_correlations(inputs.captures, stream=stream, seed=inputs.settings.seed)
        for stream in STREAMS
    }


def passing_step(inputs: MemoryInputs) -> dict[str, Any]:
    """What a layer's output loses when the layer looked at before it writes nothing: by pair of
    layers and text, beside equal changes in other directions."""
    if len(inputs.settings.layers) < 2:
        return {"reason": "needs at least two layers"}
    pairs = list(pairwise(sorted(inputs.settings.layers)))
    cut = partial(_passing, inputs, directions_for(len(pairs)))
    return {
        f"layer_{a}_to_{b}": {
            f"text_{i}": kept(f"passing {a} {b} of text {i}", partial(cut, one, a, b))
            for i, one in enumerate(inputs.captures)
        }
        for a, b in pairs
    }


def _passing(
    inputs: MemoryInputs, num_directions: int, one: Capture, a: int, b: int
) -> dict[str, Any]:
    seed = inputs.settings.seed
    found = passing(inputs.model, one, a, b, num_directions=num_directions, seed=seed)
    return found.to_dict()


def neurons_step(inputs: MemoryInputs, _: TextAttention) -> TextNeurons:
    """Neurons of every text by each method; where attention fails, so would these."""
    return TextNeurons([_neurons(inputs, one) for one in inputs.captures])


def _neurons(inputs: MemoryInputs, captured: Capture) -> dict[str, dict[int, FoundNeurons]]:
    data = attention_data(captured, inputs.parameters)
    return {
        name: found_neurons(make(data, inputs.model, None)) for name, make in NEURON_METHODS.items()
    }


def ablation_step(inputs: MemoryInputs, neurons: TextNeurons) -> dict[int, dict[str, Any]]:
    """Effect of setting neurons to their mean on the last token's prediction, by layer and text.

    The neurons are a random sample of each layer, the same in every text.
    """
    settings = inputs.settings

    def checked(captured: Capture, sets: Mapping[str, Any]) -> list[dict]:
        target, number = resolve_target(), settings.num_ablations
        found = ablation_check(inputs.model, captured, sets, target, number, seed=settings.seed)
        return [found[layer] for layer in settings.layers]

    both = enumerate(zip(inputs.captures, neurons.texts, strict=True))
    checks = [kept(f"ablation of text {i}", partial(checked, *one)) for i, one in both]
    return {
        layer: {f"text_{i}": check[place] for i, check in enumerate(checks)}
        for place, layer in enumerate(settings.layers)
    }


def neuron_memory_step(
    inputs: MemoryInputs,
    delta: Mapping[int, Mapping[str, Any]],
    delta_neurons: Mapping[int, DeltaAndNeurons],
    neurons: TextNeurons,
) -> dict[int, dict[str, Any]]:
    """Over the heads of a layer (in Mamba-1 its channels): importance by each method with mean
    delta and memory, in Mamba-2 the mean over a head's channels."""
    return {
        layer: {
            method: importance_and_memory(
                neurons.importance(method, layer),
                channel_memory(
                    inputs.components(layer), delta[layer]["memory"], delta_neurons[layer]
                ),
                len(delta[layer]["memory"].channel_half_life),
                inputs.settings.seed,
            )
            for method in NEURON_METHODS
        }
        for layer in inputs.settings.layers
    }


def ablation_memory_step(
    inputs: MemoryInputs,
    delta: Mapping[int, Mapping[str, Any]],
    delta_neurons: Mapping[int, DeltaAndNeurons],
    neurons: TextNeurons,
    ablation: Mapping[int, Mapping[str, Any]],
) -> dict[int, dict[str, Any]]:
    """Over the ablated neurons of a layer: |effect|, mean over texts, with delta, memory and
    each method's importance. In Mamba-2 neurons of one head share delta and half-life, which the
    permutations do not know: a p-value of these two is then on the small side."""
    result = {}
    for layer in inputs.settings.layers:
        ids, effects = mean_effects(ablation[layer])
        memory = channel_memory(
            inputs.components(layer), delta[layer]["memory"], delta_neurons[layer]
        )
        importance = {name: neurons.importance(name, layer) for name in NEURON_METHODS}
        tests = {
            name: rank_test(effects, values[ids], inputs.settings.seed)
            for name, values in {**memory, **importance}.items()
        }
        result[layer] = {
            "neurons": ids.tolist(),
            "effects": effects.tolist(),
            "effect": summarise(effects),
            **tests,
        }
    return result


def causal_step(inputs: MemoryInputs) -> dict[str, Any]:
    """Effect of resetting the state and of hiding sources: see `memory_causal`."""
    settings = inputs.settings
    return causal_memory(
        inputs.model,
        inputs.captures,
        settings.layers,
        settings.num_positions,
        settings.seed,
        num_random=settings.num_random,
    )


def delta_causes_step(
    inputs: MemoryInputs, causal: Mapping[str, Any]
) -> dict[int | str, dict[str, NullTest]]:
    """Whether tokens of larger delta leave more in a layer's memory, and in the mean over layers:
    see `delta_at_sources`."""
    layers = causal.get("knockout", {}).get("layers", {})
    known = {
        layer: sources_of(
            layers[f"layer_{layer}"], [parts.delta[0] for parts in inputs.components(layer)]
        )
        for layer in inputs.settings.layers
        if f"layer_{layer}" in layers
    }
    found = delta_at_sources(known, inputs.settings.seed)
    return {name: {"delta_at_sources": test} for name, test in found.items()}


def delta_interventions_step(inputs: MemoryInputs) -> dict[int, dict[str, Any]]:
    """What predictions lose when delta of a layer is frozen, halved or doubled."""
    return {
        layer: delta_interventions(inputs.model, inputs.captures, layer)
        for layer in inputs.settings.layers
    }


def neuron_causes_step(inputs: MemoryInputs, neurons: TextNeurons) -> dict[int, dict[str, Any]]:
    """The neurons that the gradient-guided method ranks first, beside random ones of their norm.

    In a layer of few neurons fewer of them, so that enough others are left to draw from; with none
    there is only a ``reason``.
    """
    return {layer: _neuron_causes(inputs, neurons, layer) for layer in inputs.settings.layers}


def _neuron_causes(inputs: MemoryInputs, neurons: TextNeurons, layer: int) -> dict[str, Any]:
    settings = inputs.settings
    order = ranked(neurons.importance("gradient_guided", layer))
    count = min(NUM_CAUSAL_NEURONS, len(order) - settings.num_random)
    if count < 1:
        return {"reason": f"{len(order)} neuron(s), too few to draw {settings.num_random} others"}
    return neurons_beside_random(
        inputs.model, inputs.captures, layer, order[:count], settings.num_random, settings.seed
    )


MEMORY_STEPS = (
    Step("delta", delta_step),
    Step("delta_neurons", delta_neurons_step),
    Step("memory_kernel", attention_step),
    Step("state", state_step),
    Step("recursive_patterns", recursion_step),
    Step("cross_layer_correlations", cross_layer_step),
    Step("passing", passing_step),
    Step("neurons", neurons_step, needs=("memory_kernel",)),
    Step("neuron_ablation", ablation_step, needs=("neurons",)),
    Step("neuron_memory", neuron_memory_step, needs=("delta", "delta_neurons", "neurons")),
    Step(
        "ablation_memory",
        ablation_memory_step,
        needs=("delta", "delta_neurons", "neurons", "neuron_ablation"),
    ),
    Step("causal_memory", causal_step),
    Step("delta_causes", delta_causes_step, needs=("causal_memory",)),
    Step("delta_interventions", delta_interventions_step),
    Step("neuron_causes", neuron_causes_step, needs=("neurons",)),
)


def channel_tensors(inputs: MemoryInputs, results: Mapping[str, Any]) -> dict[str, Tensor]:
    """``layer_3.mean_delta``, ``.half_life`` and ``.importance.rollout``, each (d_inner,)."""
    tensors = {}
    for layer in inputs.settings.layers:
        deltas = torch.cat([parts.channel_delta[0] for parts in inputs.components(layer)])
        tensors[f"layer_{layer}.mean_delta"] = deltas.double().mean(0).float()
        if "delta" in results:
            half_life = results["delta"][layer]["memory"].channel_half_life
            width = deltas.shape[1] // len(half_life)
            tensors[f"layer_{layer}.half_life"] = half_life.repeat_interleave(width)
        for method in NEURON_METHODS if "neurons" in results else ():
            importance = results["neurons"].importance(method, layer).float()
            tensors[f"layer_{layer}.importance.{method}"] = importance
    return tensors


def _kernels(texts: Sequence[Mapping[int, LayerKernel]], layer: int) -> dict[str, Any]:
    """One layer's kernel over all texts together, lags of each text, and summaries of these.

    ``kernel``, of ``length`` lags, and its lags, ``pooled``: the mean at each lag is over the
    queries, of whatever text, that have a source there (`pooled_lags`), so that every text counts
    as far as it goes, and all layers reach equally far. ``limited_by_text``: whether they say how
    long the longest text is: it is too short for the layer's half-lives, or the lag within which
    90 % lie is more than LIMITED_REACH of it.
    """
    parts = [kernels[layer] for kernels in texts]
    longest = max(parts, key=lambda part: part.length)
    kernel = _of_sums(pooled_lags([part.lags for part in parts]))
    own = [_of_sums(part.lags) for part in parts]
    return {
        "length": longest.length,
        "limited_by_text": _limited(kernel, longest),
        "pooled": _lags(kernel),
        **{name: summarise([getattr(one, name)[0] for one in own]) for name in _LAGS},
        "by_text": {
            f"text_{i}": {**_lags(one), "limited_by_text": _limited(one, part)}
            for i, (one, part) in enumerate(zip(own, parts, strict=True))
        },
        "kernel": [finite_or_none(x) for x in kernel.kernel[0].tolist()],
    }


def _of_sums(lags: LagSums) -> MemoryKernel:
    return kernel_of_sums(lags, torch.float64)


def _lags(kernel: MemoryKernel) -> dict[str, float | None]:
    return {name: finite_or_none(getattr(kernel, name)[0]) for name in _LAGS}


def _limited(kernel: MemoryKernel, text: LayerKernel) -> bool:
    """Whether a kernel that reaches as far as a text does has its lags from the text's length."""
    return text.slow or kernel.lag_90[0] > LIMITED_REACH * text.length


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 and math.isfinite(numerator) else None
