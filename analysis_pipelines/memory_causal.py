"""Causal memory of a set of texts as the memory analysis reports it: by layer, lag and position.

Composes the curves of ``intervention_study``; the definitions of reset, knockout and their effects
are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.causal_curves import (
    KINDS,
    CausalMemoryCurve,
    compare_curves,
    pooled_curve,
)
from causal_interventions.effects import (
    NeuronInterventions,
    intervention_effects,
    neuron_interventions,
)
from causal_interventions.interventions import Intervention, freeze_delta, scale_delta
from intervention_study import (
    MIN_HISTORY,
    causal_memory_curve,
    layer_lag_map,
    random_positions,
    spread_positions,
)
from ssm_measures.components import Capture, captured_ids
from suite_plumbing.kept_values import kept, kept_tensor, tensor_kept
from suite_plumbing.related_texts import readings
from suite_plumbing.result_files import finite_or_none
from token_statistics.intervals import mean_interval
from token_statistics.text_groups import members
from token_statistics.time_shift_nulls import NullTest, undefined
from token_statistics.within_texts import spearman_within_texts

MIN_CAUSAL_TOKENS = 16
"""Shorter texts have too few lags for a causal curve and are left out of it."""

MAX_CAUSAL_LAG = 64
"""Tokens; less where half of the shortest text is less."""

DELTA_INTERVENTIONS: dict[str, Callable[[int], Intervention]] = {
    "frozen": freeze_delta,
    "halved": partial(scale_delta, 0.5),
    "doubled": partial(scale_delta, 2.0),
}
"""What is done to delta of a layer: set to each channel's mean over the text, or scaled."""


class CausalInputs(NamedTuple):
    """On what causal memory is measured."""

    model: PreTrainedModel
    captures: Sequence[Capture]
    layers: Sequence[int]
    num_positions: int
    seed: int
    num_random: int
    """random other positions for each position"""


def causal_memory(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    layers: Sequence[int],
    num_positions: int,
    seed: int = 0,
    *,
    num_random: int = 1,
) -> dict[str, Any]:
    """JSON of both kinds: each layer alone, all together, and all at random other positions.

    ``captures``: one text each, without padding; those of fewer than MIN_CAUSAL_TOKENS tokens, and
    those related to an earlier one, are left out, and with none left there is only a ``reason``.
    Each position has ``num_random`` random others, as far as the texts hold them. Cost: that of two
    `layer_lag_map`, and ``num_random`` more rows a position and kind.
    """
    chosen, max_lag = long_enough(captures)
    if not chosen:
        return {"reason": f"no text has {MIN_CAUSAL_TOKENS} tokens"}
    measured = CausalInputs(model, captures, layers, num_positions, seed, num_random)
    return {
        "texts": [f"text_{i}" for i in chosen],
        "max_lag": max_lag,
        **{kind: _causal(measured, chosen, max_lag, kind) for kind in KINDS},
    }


def long_enough(captures: Sequence[Capture]) -> tuple[list[int], int]:
    """Numbers of the texts that are long enough for a causal curve, and its largest lag.

    Of related texts the first: the positions of the others would be the same again.
    """
    lengths = [captured.input_ids.shape[1] for captured in captures]
    groups = [one.group for one in readings(captured_ids(captures))]
    long = [i for i, length in enumerate(lengths) if length >= MIN_CAUSAL_TOKENS]
    chosen = [long[texts[0]] for texts in members([groups[i] for i in long])]
    shortest = min((lengths[i] for i in chosen), default=0)
    return chosen, min(MAX_CAUSAL_LAG, shortest // 2 - 1)


def knockouts_by_layer(
    model: PreTrainedModel, captures: Sequence[Capture], layers: Sequence[int], num_positions: int
) -> dict[str, Any]:
    """JSON of single sources hidden in each layer alone, of `causal_memory`'s positions: its
    ``knockout.layers``, without the rest. Cost: one row a position and layer.
    """
    chosen, max_lag = long_enough(captures)
    result = {}
    for layer in layers if chosen else ():
        curves = []
        for i in chosen:
            where = spread_positions(captures[i].input_ids.shape[1], num_positions, max_lag)
            curves.append(
                causal_memory_curve(
                    model, captures[i], layer, where, max_lag, kind="knockout", text=i
                )
            )
        curve = pooled_curve(curves)
        places = [list(place) for place in curve.positions]
        result[f"layer_{layer}"] = {"positions": places, **by_position(curve)}
    return {"knockout": {"layers": result}} if chosen else {}


class Sources(NamedTuple):
    """What one layer does with the tokens that were hidden in it."""

    places: Sequence[tuple[int, int]]
    """text and token of each"""
    log_delta: Sequence[float]
    """mean of ln delta over the channels whose delta is 0 at no token; nan without any"""
    kl: Sequence[float]
    """nats, when it is hidden from all later ones in that layer alone; nan where undefined"""


def sources_of(knockouts: Mapping[str, Any], deltas: Sequence[Tensor]) -> Sources:
    """One layer's sources. ``knockouts``: its part of `causal_memory`, ``deltas`` (l, d_inner) of
    each text there."""
    stepping = torch.cat([(delta > 0).all(0, keepdim=True) for delta in deltas]).all(0)
    places = [(text, token) for text, token in knockouts["positions"]]
    log_delta = [deltas[text][token, stepping].double().log().mean() for text, token in places]
    kl = [math.nan if value is None else value for value in knockouts["kl"]]
    return Sources(places, [float(x) for x in log_delta], kl)


MEAN_OVER_LAYERS = "mean_over_layers"
"""Key of what is said of all layers together."""


def delta_at_sources(layers: Mapping[int, Sources], seed: int = 0) -> dict[int | str, NullTest]:
    """Spearman over sources of their delta with the KL when they are hidden in that layer alone: by
    layer, and under MEAN_OVER_LAYERS their mean.

    Within texts and apart from the position, against shifts along each text, the same in all
    layers (`token_statistics.within_texts`): tokens of one text share much, and neighbours more.
    The layers have the same sources; those without a KL in one of them are left out.
    """
    known = {layer: one for layer, one in layers.items() if not all(map(math.isnan, one.log_delta))}
    lost = undefined("every channel has a delta of exactly 0 at some token", 0)
    if not known:
        return dict.fromkeys([*layers, *([MEAN_OVER_LAYERS] if layers else [])], lost)
    x, y = (np.array([getattr(one, name) for one in known.values()], dtype=float).T
            for name in ("log_delta", "kl"))  # fmt: skip
    keep = np.isfinite(y).all(axis=1)
    places = np.array(next(iter(known.values())).places).reshape(-1, 2)[keep]
    found = spearman_within_texts(x[keep], y[keep], *places.T, seed=seed)
    tests = dict(zip(known, found.tests, strict=True))
    return {**{layer: tests.get(layer, lost) for layer in layers}, MEAN_OVER_LAYERS: found.mean}


def delta_interventions(
    model: PreTrainedModel, captures: Sequence[Capture], layer: int
) -> dict[str, Any]:
    """Effect of each of `DELTA_INTERVENTIONS` in one layer, at all tokens.

    By name: ``kl`` and ``loss_change``, nats, each the mean over tokens, by text. Cost: one row a
    text and intervention, and the clean runs.
    """
    result = {}
    for name, build in DELTA_INTERVENTIONS.items():
        found = [
            kept(f"delta {name} {layer} of text {i}", partial(_means, model, one, build(layer)))
            for i, one in enumerate(captures)
        ]
        kl, loss_change = zip(*found, strict=True)
        result[name] = {"kl": list(kl), "loss_change": list(loss_change)}
    return result


def _means(model: PreTrainedModel, captured: Capture, intervention: Intervention) -> list[float]:
    """Mean KL and loss change over a text's tokens."""
    found = intervention_effects(model, captured, intervention)
    return [float(found.kl.mean()), float(found.loss_change.nanmean())]


def neurons_beside_random(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    layer: int,
    neurons: Sequence[int],
    num_random: int,
    seed: int = 0,
) -> dict[str, Any]:
    """KL when single neurons are set to their mean, beside random neurons of the same norm.

    ``kl``, ``random_kl``: means over neurons, texts and tokens, nats; ``excess``: their difference
    with its 95 % interval (``low``, ``high``) over ``n`` neurons, each the mean over texts; None,
    with the ``reason``, for fewer than 5 neurons. Cost: see :func:`neuron_interventions`, on each
    text.
    """

    def measured(one: Capture) -> list[Any]:
        found = neuron_interventions(
            model, one, layer, neurons, value="mean", num_random=num_random, seed=seed
        )
        return [kept_tensor(x) for x in _both(found)]

    name = f"neurons {layer} {list(neurons)} of text"
    found = [
        map(tensor_kept, kept(f"{name} {i}", partial(measured, one)))
        for i, one in enumerate(captures)
    ]
    kl, random_kl = (torch.stack(x).mean(0) for x in zip(*found, strict=True))
    excess = (kl - random_kl).numpy()
    return {
        "neurons": list(neurons),
        "num_random": num_random,
        "num_texts": len(captures),
        "kl": float(kl.mean()),
        "random_kl": float(random_kl.mean()),
        "excess_by_neuron": excess.tolist(),
        "excess": mean_interval(excess, seed=seed)._asdict(),
    }


def _both(found: NeuronInterventions) -> tuple[Tensor, Tensor]:
    """(k,) KL of the neurons and mean KL of the random ones of each."""
    return found.kl, found.random_kl.mean(1)


def _causal(
    measured: CausalInputs, chosen: Sequence[int], max_lag: int, kind: str
) -> dict[str, Any]:
    captures = [measured.captures[i] for i in chosen]
    found = layer_lag_map(
        measured.model,
        captures,
        measured.layers,
        max_lag,
        kind=kind,
        num_positions=measured.num_positions,
    )
    result = found.to_dict(measured.seed)
    curves = {f"layer_{layer}": curve for layer, curve in found.by_layer.items()}
    for name, curve in {**curves, "together": found.together}.items():
        part = result["together"] if name == "together" else result["layers"][name]
        part["positions"] = [[chosen[text], token] for text, token in curve.positions]
        part.update(by_position(curve))
    result["random_positions"] = _beside_random(measured, captures, found.together)
    return result


def by_position(curve: CausalMemoryCurve) -> dict[str, list[float | None]]:
    """Of each position: ``kl``, the mean over its lags (nats), and ``late_share``, the share of
    its KL that falls on the later half of the lags, in [0, 1]; None where there is no effect."""
    kl = curve.kl[:, KINDS[curve.kind].first_lag :]
    total, late = kl.nansum(1), kl[:, kl.shape[1] // 2 :].nansum(1)
    return {
        "kl": [finite_or_none(x) for x in kl.nanmean(1).tolist()],
        "late_share": [finite_or_none(x) for x in (late / total).tolist()],
    }


def _beside_random(
    measured: CausalInputs, captures: Sequence[Capture], curve: CausalMemoryCurve
) -> dict[str, Any]:
    """The same intervention in all layers at random other positions, compared by bin of lags."""
    others = []
    for text, captured in enumerate(captures):
        length = captured.input_ids.shape[1]
        used = spread_positions(length, measured.num_positions, curve.max_lag)
        last = length - 2 - curve.max_lag
        free = last + 1 - min(MIN_HISTORY, max(last, 1)) - len(used)
        if free < 1:
            continue
        places = random_positions(
            length,
            min(measured.num_random * len(used), free),
            curve.max_lag,
            exclude=used,
            seed=measured.seed,
        )
        layers = list(curve.layers)
        others.append(
            causal_memory_curve(
                measured.model, captured, layers, places, curve.max_lag, kind=curve.kind, text=text
            )
        )
    if not others:
        return {"reason": "the positions measured leave no others in these texts"}
    compared = compare_curves(curve, pooled_curve(others), seed=measured.seed)
    return {"num_positions": sum(len(one.positions) for one in others), "bins": compared}
