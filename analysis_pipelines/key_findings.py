"""The findings that analyses of this kind report, recomputed from the results of the main one.

Each row of `key_findings` is a claim of the document that this suite was founded on, as a `Finding`
made by a rule from the numbers in the results: what they say on the texts and the model at hand,
beside nulls, and with `beside_twins` beside untrained twins. A step that failed, or texts that are
too few, leave a claim with "too little data" and the reason. No claim has a verdict of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from suite_plumbing.result_reading import read
from token_statistics.findings import Finding, undecided
from token_statistics.verdict_rules import (
    LAYER_GROUPS,
    SPARSE_SHARE,
    above_null,
    differs_by_layer,
    exceeds_zero,
    first_reason,
    group_mean,
    holds_everywhere,
    rises_with_depth,
    share_of_hits,
)

Results = Mapping[str, Any]

STRONG = 0.99
"""A correlation as strong as earlier analyses of this kind report."""

_ALPHA = 0.05

_TEXT = "individual_texts.*.analysis"

_PAIRS = "cross_text_analysis.correlation_patterns.mixer"

_TEXT_LAYERS = "layers of texts"

# claim, statistic, path, unit
_ABOVE_NULL = (
    (
        "Layers are correlated on average",
        "mean |r| over pairs of channels of the mixers' outputs; null: time shifts",
        f"{_PAIRS}.*.mean_abs",
        "pairs of layers",
    ),
    (
        "Strong correlations exist between specific neurons of successive layers",
        "largest |r| over pairs of channels of the mixers' outputs; null: time shifts",
        f"{_PAIRS}.*.max_abs",
        "pairs of layers",
    ),
    (
        "Information passes between specific neurons",
        "largest |r| of each channel with any of the layer before, mean over channels of the "
        "mixers' outputs; null: time shifts",
        f"{_PAIRS}.*.best_match",
        "pairs of layers",
    ),
    (
        "Memory recursion affects neurons through delta",
        "mean |rho| over channels of delta with |activation| over tokens; null: time shifts",
        f"{_TEXT}.ssm_components.*.delta_activation.mean_abs",
        _TEXT_LAYERS,
    ),
    (
        "Higher delta means stronger memory influence",
        "rho over tokens of mean delta with the mean distance of the attention paid; null: time "
        "shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.delta_distance",
        _TEXT_LAYERS,
    ),
    (
        "Delta goes with the attention a token receives",
        "rho over tokens of mean delta with attention received; null: time shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.delta_received",
        _TEXT_LAYERS,
    ),
    (
        "SSM components go with attention: B",
        "rho over tokens of |B| with attention received; null: time shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.B_norm_received",
        _TEXT_LAYERS,
    ),
    (
        "SSM components go with attention: C",
        "rho over tokens of |C| with attention paid; null: time shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.C_norm_paid",
        _TEXT_LAYERS,
    ),
    (
        "SSM components go with attention: half-life",
        "rho over channels of half-life with the mean distance of a channel's attention; null: "
        "permuted channels",
        f"{_TEXT}.ssm_attention_correlations.*.channels.half_life_distance",
        _TEXT_LAYERS,
    ),
    (
        "Where the state changes much, the activations do too",
        "rho over tokens of the change of the state with that of the residual stream; null: time "
        "shifts",
        f"{_TEXT}.recursive_patterns.*.change_correlation",
        _TEXT_LAYERS,
    ),
)

# claim, quantity that the layers are ranked by, path to its value by text and layer
_DIFFERS = (
    (
        "Memory modulation varies across layers",
        "mean delta",
        f"{_TEXT}.ssm_components.*.delta.mean",
    ),
    (
        "Memory depends on the layer",
        "mean distance of attention",
        f"{_TEXT}.attention_data.*.statistics.mean_distance.mean",
    ),
    (
        "Memory persistence varies across layers",
        "share of the state that is kept from token to token",
        f"{_TEXT}.ssm_components.*.delta_memory.persistence",
    ),
    (
        "Layers have variance patterns of their own",
        "standard deviation over tokens of the norm of the mixer's output",
        f"{_TEXT}.layer_activations.*.mixer_norm.std",
    ),
    *(
        (
            f"Neurons by {method} show patterns that depend on the layer",
            "concentration (Gini) of importance",
            f"{_TEXT}.neurons.{method}.*.concentration.gini",
        )
        for method in ("attention_weighted", "gradient_guided", "rollout")
    ),
)

# What earlier analyses say without naming a quantity that could be measured.
_NOT_MEASURABLE = (
    "Sparse connections make processing efficient and precise",
    "Compressed states make memory processing scalable",
)


def key_findings(results: Results, seed: int = 0) -> list[Finding]:
    """Every claim, tried on the results of the main analysis, live or loaded from JSON; seeded.

    Cost: 999 permutations for each claim about differences between layers.
    """
    return [
        *_structure(results),
        *(above_null(c, s, read(results, path), path, unit) for c, s, path, unit in _ABOVE_NULL),
        *_sparse_but_strong(results),
        _recursion(results),
        *(_differs(results, *row, seed) for row in _DIFFERS),
        *_layer_groups(results, seed),
        _selectivity(results, seed),
        _consistent_neurons(results),
        _most_consistent_method(results, seed),
        _deeper_is_larger(results, seed),
        _important_neurons_matter(results),
        *(
            undecided(claim, "none", "", "no quantity is named that these data could measure", "")
            for claim in _NOT_MEASURABLE
        ),
    ]


def _structure(results: Results) -> list[Finding]:
    """Claims about shapes, which hold or do not whatever the weights are."""
    path = f"{_TEXT}.ssm_components.*.shapes"
    width = read(results, f"{_TEXT}.layer_activations.*.num_channels")
    shapes = {place: shape for place, shape in read(results, path).items() if place in width}
    errors = read(results, "self_check.replay_error.*.*")
    tolerance = read(results, "self_check.replay_tolerance").get("", 0.0)
    return [
        holds_everywhere(
            "Delta, A, B, C, D and the states are captured in every layer",
            f"largest relative error of a mixer's output rebuilt from them; at most {tolerance:g}",
            {place: (error, error <= tolerance) for place, error in errors.items()},
            "self_check.replay_error.*.*",
            _TEXT_LAYERS,
        ),
        holds_everywhere(
            "Delta has d_model entries a token",
            "entries of delta a token",
            {
                place: (shape["delta"][-1], shape["delta"][-1] == width[place])
                for place, shape in shapes.items()
            },
            path,
            _TEXT_LAYERS,
        ),
        holds_everywhere(
            "A is a non-square matrix that compresses the state",
            "entries of a layer's state over entries of a token in the residual stream (A holds a "
            "rate for each, d_inner diagonals of d_state); below 1 would be compression",
            {
                place: (math.prod(shape["A"]) / width[place], math.prod(shape["A"]) < width[place])
                for place, shape in shapes.items()
            },
            path,
            _TEXT_LAYERS,
        ),
    ]


def _sparse_but_strong(results: Results) -> list[Finding]:
    """Claims about few significant pairs of channels, and about the largest correlation."""
    given = _parts(results, f"{_PAIRS}.*")
    pairs = {name: pair for name, pair in given.items() if pair["enough_tokens"]}
    share = {name: pair["significant_share"] for name, pair in pairs.items()}
    by_chance = {name: pair["significant_share_null"] for name, pair in pairs.items()}
    strong = {name: pair["max_abs"] for name, pair in pairs.items()}
    some_but_few = {name: by_chance[name] < share[name] < SPARSE_SHARE for name in pairs}
    above = {name: test["value"] > test["null_high"] for name, test in strong.items()}
    same: dict[str, Any] = {
        "rule": "in more than half of the pairs of layers, and in more than chance gives",
        "unit": "pairs of layers",
        "reason": first_reason(given.values()),
    }
    return [
        share_of_hits(
            "Connections between layers are sparse",
            "share of pairs of layers in which some pairs of channels of the mixers' outputs are "
            f"significant at a false discovery rate of 5 %, but fewer than {SPARSE_SHARE:g}",
            list(some_but_few.values()),
            f"{_PAIRS}.*.significant_share",
            **same,
            chance=_ALPHA,
            details={name: {"significant_share": share[name]} for name in pairs},
        ),
        share_of_hits(
            "Information flows selectively between layers: sparse but strong",
            "share of pairs of layers with the largest |r| above its null and few significant "
            "pairs of channels",
            [above[name] and share[name] < SPARSE_SHARE for name in pairs],
            f"{_PAIRS}.*.significant_share",
            **same,
        ),
        share_of_hits(
            f"The largest correlations between layers reach {STRONG:g}",
            f"share of pairs of layers with the largest |r| above its null and at least {STRONG:g}",
            [above[name] and strong[name]["value"] >= STRONG for name in pairs],
            f"{_PAIRS}.*.max_abs",
            **same,
            details={name: {"max_abs": test["value"]} for name, test in strong.items()},
        ),
    ]


def _recursion(results: Results) -> Finding:
    path = f"{_TEXT}.recursive_patterns.*.autocorrelation"
    return above_null(
        "Recursive patterns are visible in temporal autocorrelation",
        "autocorrelation of the residual stream one token on, mean over channels; null: shuffled "
        "tokens",
        {place: _first_lag(series) for place, series in read(results, path).items()},
        path,
        _TEXT_LAYERS,
    )


def _first_lag(series: Mapping[str, Any]) -> dict[str, Any]:
    if not series["lags"]:
        return {"value": None, "reason": series["reason"]}
    names = {"value": "mean", "null_low": "null_low", "null_high": "null_high"}
    return {key: series[name][0] for key, name in names.items()}


def _differs(results: Results, claim: str, quantity: str, path: str, seed: int) -> Finding:
    statistic = f"Kendall's W over texts of the layers ranked by their {quantity}"
    return differs_by_layer(claim, statistic, _by_layer(results, path), path, "texts", seed)


def _layer_groups(results: Results, seed: int) -> list[Finding]:
    """The claims about early, middle and late layers, from how far back attention reaches."""
    path = f"{_TEXT}.attention_data.*.statistics.mean_distance.mean"
    values = _by_layer(results, path)
    early, middle, late = (group_mean(values, *bounds) for bounds in LAYER_GROUPS.values())
    tokens = "mean distance of attention, tokens, mean over layers"
    rows = (
        (
            "Early layers (0 to 2) have moderate memory",
            "middle minus early",
            {"middle minus early": (middle, early)},
        ),
        (
            "Middle layers (3 to 8) have the peak of memory",
            "middle minus early and minus late",
            {"middle minus early": (middle, early), "middle minus late": (middle, late)},
        ),
        (
            "Late layers (9 to 12) have sustained memory",
            "late minus early and minus middle",
            {"late minus early": (late, early), "late minus middle": (late, middle)},
        ),
    )
    return [
        exceeds_zero(
            claim,
            f"{tokens}, {which} layers",
            {name: a - b if len(a) and len(b) else np.empty(0) for name, (a, b) in pairs.items()},
            path,
            "texts",
            seed,
        )
        for claim, which, pairs in rows
    ]


def _selectivity(results: Results, seed: int) -> Finding:
    path = f"{_TEXT}.ssm_components.*.delta_memory.selectivity"
    values = _by_layer(results, path)
    texts = np.mean(list(values.values()), axis=0) if values else np.empty(0)
    return exceeds_zero(
        "Delta varies over time: memory is dynamic",
        "share of the variance of delta that lies between tokens, mean over layers",
        {"selectivity": texts},
        path,
        "texts",
        seed,
    )


def _consistent_neurons(results: Results) -> Finding:
    path = "cross_text_analysis.neuron_consistency.*.attention_weighted"
    given = _parts(results, path)
    layers = {name: part for name, part in given.items() if part["shared_p_value"] is not None}
    return share_of_hits(
        "The same neurons are important in every text",
        "share of layers in which more neurons than by chance are among the most important of "
        "every text (attention_weighted)",
        [part["shared_p_value"] <= _ALPHA for part in layers.values()],
        path,
        rule="p at most 0.05 in more than half of the layers, and in more than chance gives",
        unit="layers",
        reason=first_reason(given.values()),
        chance=_ALPHA,
        details={
            name: {"shared": part["shared"], "expected": part["expected_shared"]}
            for name, part in layers.items()
        },
    )


def _most_consistent_method(results: Results, seed: int) -> Finding:
    path = "cross_text_analysis.neuron_consistency.*.*.mean_spearman"
    cells = read(results, path)
    methods = sorted({place.split(".")[1] for place in cells})
    layers = sorted({place.split(".")[0] for place in cells}, key=_layer_number)
    complete = [
        layer for layer in layers if all(cells.get(f"{layer}.{m}") is not None for m in methods)
    ]
    values = {m: np.array([cells[f"{layer}.{m}"] for layer in complete]) for m in methods}
    first = values.pop("attention_weighted", np.empty(0))
    return exceeds_zero(
        "The attention-weighted method is the most consistent",
        "mean rank correlation of importance between texts, attention_weighted minus each other "
        "method, mean over layers",
        {f"minus {m}": first - other for m, other in values.items()},
        path,
        "layers",
        seed,
    )


def _deeper_is_larger(results: Results, seed: int) -> Finding:
    path = f"{_TEXT}.neuron_evolution.attention_weighted.rms.*"
    return rises_with_depth(
        "Activation increases in deeper layers",
        "rank correlation of the layer's depth with the neurons' root mean square activation, mean "
        "over texts",
        _by_layer(results, path),
        path,
        seed,
    )


def _important_neurons_matter(results: Results) -> Finding:
    path = f"{_TEXT}.neuron_ablation.*.agreement.attention_weighted"
    return above_null(
        "Neurons of high importance matter more to the prediction",
        "rho over ablated neurons of importance with the effect of ablation; null: permuted "
        "neurons",
        {place: _with_null(test) for place, test in read(results, path).items()}
        or {"": {"reason": "no neurons were ablated; --ablate 32 (num_ablations) does that"}},
        path,
        _TEXT_LAYERS,
    )


def _with_null(agreement: Mapping[str, Any]) -> dict[str, Any]:
    high = agreement["null_95"]
    return {
        "value": agreement["spearman"],
        "null_low": None if high is None else -high,
        "null_high": high,
        "reason": agreement["reason"],
    }


def _parts(results: Results, path: str) -> dict[str, Mapping[str, Any]]:
    """What stands at the path, without the reasons that stand where parts would be."""
    found = read(results, path)
    return {name: part for name, part in found.items() if isinstance(part, Mapping)}


def _by_layer(results: Results, path: str) -> dict[str, list[float]]:
    """By layer, one value a text, of the texts in which every layer has one."""
    cells = read(results, path)
    texts = list(dict.fromkeys(place.split(".")[0] for place in cells))
    layers = sorted({place.split(".")[1] for place in cells}, key=_layer_number)
    rows = [[cells.get(f"{text}.{layer}") for layer in layers] for text in texts]
    complete = [[float(x) for x in row if x is not None] for row in rows if None not in row]
    return {layer: [row[i] for row in complete] for i, layer in enumerate(layers)}


def _layer_number(name: str) -> int:
    return int(name.removeprefix("layer_"))
