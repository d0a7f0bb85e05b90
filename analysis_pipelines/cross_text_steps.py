"""The eighth step of the main analysis: what its texts have in common, and how they differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layer_correlation_analyzer import STREAMS, pooled_activations
from ssm_measures.components import Capture
from ssm_measures.neuron_sets import NeuronSet
from token_statistics.channel_correlations import (
    CrossLayerCorrelation,
    PooledActivations,
    cross_layer_correlation,
)
from token_statistics.cross_text_consistency import NeuronAgreement, neuron_agreement, text_spread

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TextMeasures:
    """What one text contributes: in memory, or read array by array from where it was kept."""

    ssm: Mapping[int, Mapping[str, FloatArray]]
    """by layer and statistic: (l,) values over tokens; empty where the step failed"""
    attention: Mapping[int, Mapping[str, FloatArray]]
    """likewise over queries"""
    importance: Mapping[int, Mapping[str, FloatArray]]
    """by layer and neuron method: (d_inner,)"""
    halves: Mapping[int, Mapping[str, tuple[FloatArray, FloatArray]]]
    """by layer and method: importance (d_inner,) in the first and second half of the text, of the
    methods that know no target"""
    activations: Mapping[str, Mapping[int, PooledActivations]]
    """by stream (see layer_correlation_analyzer.STREAMS) and layer"""
    correlations: Mapping[str, Any] | None
    """CrossLayerCorrelation, or its JSON, of this text alone, by stream and pair of layers; None
    where the step failed"""
    group: int | None = None
    """number of its group of related texts (`suite_plumbing.related_texts`); None: of its own"""


def text_measures(captured: Capture, results: Mapping[str, Any]) -> TextMeasures:
    """Collect from one text's capture and its steps' results what the texts are compared by."""
    attention, neurons = results.get("attention_data"), results.get("neurons") or {}
    return TextMeasures(
        ssm={
            layer: {"mean_delta": _array(parts.delta[0].mean(1)), **_state_measures(results, layer)}
            for layer, parts in captured.components.items()
        },
        attention={
            layer: {
                name: _array(getattr(parts.statistics, name)[0])
                for name in ("entropy_share", "mean_distance", "strength")
            }
            for layer, parts in (attention.layers if attention else {}).items()
        },
        importance={
            layer: {name: _array(by_layer[layer].importance) for name, by_layer in neurons.items()}
            for layer in (captured.layers if neurons else ())
        },
        halves={
            layer: {
                name: _importance_of_halves(by_layer[layer])
                for name, by_layer in neurons.items()
                if by_layer[layer].target is None
            }
            for layer in (captured.layers if neurons else ())
        },
        activations={
            stream: {
                layer: pooled_activations([captured], layer, stream) for layer in captured.layers
            }
            for stream in STREAMS
        },
        correlations=results.get("layer_correlations"),
    )


def ssm_consistency(texts: Sequence[TextMeasures]) -> dict[int, Any]:
    """Spread between texts of the mean step size, state norm and retained energy of each layer."""
    return _spreads(texts, lambda text: text.ssm)


def attention_consistency(texts: Sequence[TextMeasures]) -> dict[int, Any]:
    """Spread between texts of entropy, distance and strength of attention in each layer."""
    return _spreads(texts, lambda text: text.attention)


def neuron_consistency(texts: Sequence[TextMeasures]) -> dict[int, Any]:
    """Whether each layer's important neurons are those of every text, by method."""
    with_neurons = [text for text in texts if text.importance]
    if not with_neurons:
        return {}
    return {
        layer: {method: _agreement(with_neurons, layer, method) for method in by_method}
        for layer, by_method in with_neurons[0].importance.items()
    }


def _agreement(texts: Sequence[TextMeasures], layer: int, method: str) -> NeuronAgreement:
    return neuron_agreement(
        [text.importance[layer][method] for text in texts],
        groups=_groups(texts),
        halves=[
            text.halves[layer][method] for text in texts if method in text.halves.get(layer, {})
        ],
    )


def correlation_patterns(texts: Sequence[TextMeasures]) -> Mapping[str, Any]:
    """Correlation of neighbouring layers over the tokens of all texts together, by stream.

    In the residual stream neighbouring layers share what was there before them; the mixers'
    outputs are what each layer adds. One text alone keeps the correlations that it has.
    """
    if not texts:
        return {}
    layers = sorted(texts[0].activations["residual"])
    if len(layers) < 2:
        return {"reason": "needs at least two layers"}
    if len(texts) == 1 and texts[0].correlations is not None:
        return texts[0].correlations
    return {stream: _neighbours(texts, layers, stream) for stream in STREAMS}


def _neighbours(
    texts: Sequence[TextMeasures], layers: Sequence[int], stream: str
) -> dict[str, CrossLayerCorrelation]:
    found = {}
    below = _pooled(texts, layers[0], stream)
    for a, b in itertools.pairwise(layers):  # two layers in memory at a time
        above = _pooled(texts, b, stream)
        found[f"layer_{a}_to_{b}"] = cross_layer_correlation(
            below, above, layers=(a, b), stream=stream
        )
        below = above
    return found


def _state_measures(results: Mapping[str, Any], layer: int) -> dict[str, FloatArray]:
    if "ssm_components" not in results:
        return {}
    dynamics = results["ssm_components"][layer]["dynamics"]
    return {name: _array(getattr(dynamics, name)[0]) for name in ("state_norm", "retain_energy")}


def _spreads(
    texts: Sequence[TextMeasures],
    of: Callable[[TextMeasures], Mapping[int, Mapping[str, FloatArray]]],
) -> dict[int, Any]:
    """Spread of every statistic of every layer over the texts that have it."""
    values: dict[int, dict[str, list[tuple[FloatArray, int]]]] = {}
    for text, group in zip(texts, _groups(texts), strict=True):
        for layer, statistics in of(text).items():
            for name, series in statistics.items():
                values.setdefault(layer, {}).setdefault(name, []).append((series, group))
    return {
        layer: {name: text_spread(*zip(*given, strict=True)) for name, given in by_name.items()}
        for layer, by_name in values.items()
    }


def _groups(texts: Sequence[TextMeasures]) -> list[int]:
    """The group of each text; of those that have none, one that no other has."""
    return [-1 - i if text.group is None else text.group for i, text in enumerate(texts)]


def _importance_of_halves(neurons: NeuronSet) -> tuple[FloatArray, FloatArray]:
    """Importance in each half of the text: it is proportional to the neuron's RMS activation."""
    values = _array(neurons.activations[0])
    whole = np.sqrt(np.square(values).mean(axis=0))
    share = np.divide(_array(neurons.importance), whole, where=whole > 0, out=np.zeros_like(whole))
    middle = (len(values) + 1) // 2
    first, second = (
        share * np.sqrt(np.square(part).mean(axis=0)) if len(part) else np.zeros_like(share)
        for part in (values[:middle], values[middle:])
    )
    return first, second


def _pooled(texts: Sequence[TextMeasures], layer: int, stream: str) -> PooledActivations:
    parts = [text.activations[stream][layer] for text in texts]
    known = [part.token_ids for part in parts if part.token_ids is not None]
    return PooledActivations(
        np.concatenate([part.values for part in parts]),
        sum((part.lengths for part in parts), ()),
        sum(known, ()) if len(known) == len(parts) else None,
    )


def _array(x: Any) -> FloatArray:
    return x.double().numpy()
