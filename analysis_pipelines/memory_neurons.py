"""Neurons of all texts together, and how they go with delta and memory.

Neurons are the d_inner channels at out_proj's input; delta and half-life belong to heads, in
Mamba-1 the channels. What is joined over heads is, in Mamba-2, the mean over a head's channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delta_extraction import DeltaMemory
from ssm_measures.components import SSMComponents, mean_by_head
from ssm_measures.delta_neurons import (
    DeltaNeuronCorrelation,
    DeltaSensitivity,
    delta_neuron_correlation,
    delta_sensitivity,
)
from ssm_measures.neuron_sets import NeuronImportance, NeuronSet
from suite_plumbing.result_files import finite_or_none
from token_statistics.description import summarise
from token_statistics.time_shift_nulls import NullTest, spearman_permutation_test

NUM_TOP_NEURONS = 10


@dataclass(frozen=True, eq=False)
class DeltaAndNeurons:
    """How one layer's delta goes with its neurons, observed and by changing delta."""

    observed: DeltaNeuronCorrelation
    """Spearman over tokens of delta with |activation|, by channel"""
    sensitivity: DeltaSensitivity
    """change of each neuron when delta is scaled, in all and in the decay alone"""
    delta_with_memory: NullTest
    """Spearman over heads of mean delta with `memory_sensitivity`, in Mamba-2 its mean over the
    head's channels: whether those of larger delta depend more on what their state keeps; null:
    permutations of the heads, which in Mamba-1 are the channels"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        names = ("observed", "sensitivity", "delta_with_memory")
        return {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, eq=False)
class FoundNeurons(NeuronImportance):
    """What of one text's neurons of a layer is kept by one method: no value at any token."""

    summary: Mapping[str, Any]
    """size and spread of activations, concentration, top neurons: what goes to JSON"""


@dataclass(frozen=True, eq=False)
class TextNeurons:
    """Neurons of each text by method and layer."""

    texts: Sequence[Mapping[str, Mapping[int, FoundNeurons]]]

    def importance(self, method: str, layer: int) -> Tensor:
        """(d_inner,) share of the layer's importance, mean over texts, so that each counts alike.

        A text in which the method finds nothing at all counts as zeros.
        """
        given = [sets[method][layer].importance.double() for sets in self.texts]
        return torch.stack([x / x.sum().clamp_min(1e-300) for x in given]).mean(0)

    def to_dict(self) -> dict[str, Any]:
        """By layer, method and text: size and spread of activations, concentration, top neurons."""
        layers = next(iter(self.texts[0].values()))
        return {
            f"layer_{layer}": {
                method: {
                    f"text_{i}": dict(sets[method][layer].summary)
                    for i, sets in enumerate(self.texts)
                }
                for method in self.texts[0]
            }
            for layer in layers
        }


def found_neurons(sets: Mapping[int, NeuronSet]) -> dict[int, FoundNeurons]:
    """What is kept of one method's neurons by layer, on one text."""
    return {
        layer: FoundNeurons(found.importance, _neuron_summary(found))
        for layer, found in sets.items()
    }


def delta_and_neurons(
    texts: Sequence[SSMComponents],
    layer: int,
    seed: int,
    token_ids: Sequence[Sequence[int]] | None = None,
) -> DeltaAndNeurons:
    """One layer's delta with its neurons, over texts (b = 1, no padding)."""
    sensitivity = delta_sensitivity(texts, layer, token_ids=token_ids)
    mean_delta = torch.cat([part.delta[0] for part in texts]).double().mean(0)
    memory_sensitivity = mean_by_head(sensitivity.memory_sensitivity.double(), len(mean_delta))
    return DeltaAndNeurons(
        delta_neuron_correlation(texts, layer, token_ids=token_ids, seed=seed),
        sensitivity,
        rank_test(mean_delta, memory_sensitivity, seed),
    )


def channel_memory(
    texts: Sequence[SSMComponents], memory: DeltaMemory, delta_neurons: DeltaAndNeurons
) -> dict[str, Tensor]:
    """(d_inner,) each: mean delta over all tokens, half-life of the slowest state in tokens, and
    `memory_sensitivity` of `ssm_measures.delta_neurons`. A channel has the delta and half-life of
    its head."""
    deltas = torch.cat([parts.channel_delta[0] for parts in texts])
    half_life = memory.channel_half_life.double()
    return {
        "mean_delta": deltas.double().mean(0),
        "half_life": half_life.repeat_interleave(deltas.shape[1] // len(half_life)),
        "memory_sensitivity": delta_neurons.sensitivity.memory_sensitivity.double(),
    }


def mean_effects(by_text: Mapping[str, Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """The ablated neurons of a layer, and the mean over texts of |effect| of each."""
    effects = [part["effects"] for part in by_text.values()]
    ids = [int(neuron) for neuron in effects[0]]
    sizes = [[abs(part[str(neuron)]) for neuron in ids] for part in effects]
    return torch.tensor(ids), torch.tensor(sizes, dtype=torch.float64).mean(0)


def importance_and_memory(
    importance: Tensor, memory: Mapping[str, Tensor], num_heads: int, seed: int
) -> dict[str, Any]:
    """Spearman over heads of importance (d_inner,) with each entry of ``memory``; top neurons."""
    top = ranked(importance)[:NUM_TOP_NEURONS]
    return {
        "correlations": {
            name: rank_test(mean_by_head(importance, num_heads), mean_by_head(x, num_heads), seed)
            for name, x in memory.items()
        },
        "top_neurons": [
            {
                "neuron": neuron,
                "importance_share": float(importance[neuron]),
                **{name: finite_or_none(x[neuron]) for name, x in memory.items()},
            }
            for neuron in top
        ],
    }


def rank_test(x: Tensor, y: Tensor, seed: int) -> NullTest:
    """Spearman over the entries that both sides define, against permutations."""
    keep = x.isfinite() & y.isfinite()
    return spearman_permutation_test(x[keep], y[keep], seed=seed)


def ranked(importance: Tensor) -> list[int]:
    """Neurons by importance (d_inner,), the largest first, of equals the first first."""
    return importance.argsort(descending=True, stable=True).tolist()


def _neuron_summary(found: NeuronSet) -> dict[str, Any]:
    """What of a neuron set goes to JSON; the activations' summary is over neurons of their RMS."""
    full = found.to_dict()
    rms = found.activations[0].double().square().mean(0).sqrt()
    names = ("importance", "concentration", "top_neurons", "target", "note")
    kept = {name: full[name] for name in names}
    kept["top_neurons"] = kept["top_neurons"][:NUM_TOP_NEURONS]
    return {"activation_rms": summarise(rms), **kept}
