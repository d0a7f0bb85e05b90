"""The findings that analyses of this kind report, recomputed from the results of the main one.

Each row of `key_findings` is a claim of the document that this suite was founded on, as a `Finding`
made by a rule from the numbers in the results: what they say on the texts and the model at hand,
beside nulls; `findings.judged` sets them beside untrained twins and beside each other. A step that
failed, or texts that are too few, leave a claim with "too little data" and the reason. No claim has
a verdict of its own.

A claim is worded as what is measured for it, where earlier analyses said more: that information
passes between neurons, where channels go together (what passes is measured by cuts, in the memory
analysis); that patterns are recursive, where neighbouring tokens are alike; that early layers have
moderate memory, where they reach less far than the middle. It has to exceed its null, and to be of
a size worth a name: `token_statistics.smallest_effects`. Wherever texts are counted, related ones
are one (`token_statistics.text_groups`), and what is said of every text needs MIN_TEXTS of them.

References:
  [1] Arvesen 1969, Jackknifing U-statistics
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from suite_plumbing.result_reading import read
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, undecided
from token_statistics.joined_places import P_OF_GROUP, most_of
from token_statistics.smallest_effects import (
    SMALLEST_EFFECTS,
    SPARSE_RATIO,
    beyond_chance,
    pair_shares,
    worth_a_name,
)
from token_statistics.text_groups import by_group, group_means
from token_statistics.verdict_rules import (
    LAYER_GROUPS,
    above_null,
    apart_from_position,
    differs_by_layer,
    exceeds_zero,
    first_reason,
    group_mean,
    group_names,
    holds_everywhere,
    rises_with_depth,
    share_of_hits,
    too_few_texts,
)

STRONG = 0.99
"""A correlation as strong as earlier analyses of this kind report."""

_SMALLEST_P = 1e-6
"""As of other claims over layers: how far into its tail a null holds, nobody knows."""

_TEXT = "individual_texts.*.analysis"

_PAIRS = "cross_text_analysis.correlation_patterns.mixer"

_TEXT_LAYERS = "layers of texts"

_PAIRS_UNIT = "pairs of layers"

_BEYOND = "beyond chance: the root of its square less that of its mean under time shifts"

# claim, statistic, name in the pairs of layers, smallest effect
_TOGETHER = (
    (
        "Channels of successive layers are correlated on average",
        f"mean |r| over pairs of channels of the mixers' outputs, {_BEYOND}",
        "mean_abs",
        "correlation",
    ),
    (
        "Some channels of successive layers are strongly correlated",
        f"largest |r| over pairs of channels of the mixers' outputs, {_BEYOND}",
        "max_abs",
        "strong correlation",
    ),
    (
        "Channels of successive layers go together",
        "largest |r| of each channel with any of the layer before, mean over channels of the "
        f"mixers' outputs, {_BEYOND}",
        "best_match",
        "correlation",
    ),
)

# claim, statistic, path
_RHO_ABOVE_NULL = (
    (
        "Tokens of larger delta look further back",
        "rho over tokens of mean delta with the mean distance of the attention paid; null: time "
        "shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.delta_distance",
    ),
    (
        "Tokens of larger delta receive more attention",
        "rho over tokens of mean delta with attention received, of gates, whatever is written; "
        "null: time shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.delta_received",
    ),
    (
        "Tokens of larger delta give later ones more",
        "rho over tokens of mean delta with what later tokens get of it, |alpha u|; null: time "
        "shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.delta_given",
    ),
    (
        "SSM components go with attention: B",
        "rho over tokens of |B| with attention received, of gates, whatever is written; null: time "
        "shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.B_norm_received",
    ),
    (
        "SSM components go with what is given: B",
        "rho over tokens of |B| with what later tokens get of it, |alpha u|; null: time shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.B_norm_given",
    ),
    (
        "SSM components go with attention: C",
        "rho over tokens of |C| with attention paid, of gates, whatever is written; null: time "
        "shifts",
        f"{_TEXT}.ssm_attention_correlations.*.tokens.C_norm_paid",
    ),
    (
        "SSM components go with attention: half-life",
        "rho over channels of half-life with the mean distance of a channel's attention; null: "
        "permuted channels",
        f"{_TEXT}.ssm_attention_correlations.*.channels.half_life_distance",
    ),
    (
        "Where the state changes much, the residual stream does too",
        "rho over tokens of the change of the state with that of the residual stream; null: time "
        "shifts",
        f"{_TEXT}.recursive_patterns.*.change_correlation",
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
        "How far back attention reaches depends on the layer",
        "mean distance of attention",
        f"{_TEXT}.attention_data.*.statistics.mean_distance.mean",
    ),
    (
        "Memory persistence varies across layers",
        "share of the state that a token leaves, one less what is kept from token to token",
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


def key_findings(results: Mapping[str, Any], seed: int = 0) -> list[Finding]:
    """Every claim, tried on the results of the main analysis, live or loaded from JSON; seeded.

    Cost: 999 permutations for each claim about differences between layers.
    """
    return [
        *_structure(results),
        *(_together(results, *row) for row in _TOGETHER),
        _delta_and_activity(results),
        *(_rho_above_null(results, *row) for row in _RHO_ABOVE_NULL),
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


def _structure(results: Mapping[str, Any]) -> list[Finding]:
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


def _together(
    results: Mapping[str, Any], claim: str, statistic: str, name: str, kind: str
) -> Finding:
    path = f"{_PAIRS}.*.{name}"
    tests = {
        place: beyond_chance(apart_from_position(pair, name))
        for place, pair in _parts(results, f"{_PAIRS}.*").items()
    }
    return worth_a_name(above_null(claim, statistic, tests, path, _PAIRS_UNIT), kind)


def _delta_and_activity(results: Mapping[str, Any]) -> Finding:
    path = f"{_TEXT}.ssm_components.*.delta_activation.mean_abs"
    found = above_null(
        "Delta goes with the activity of neurons within a text",
        f"mean |rho| over channels of delta with |activation| over the tokens of a text, {_BEYOND}",
        {place: beyond_chance(test) for place, test in _tests(results, path).items()},
        path,
        _TEXT_LAYERS,
    )
    return worth_a_name(found, "correlation")


def _rho_above_null(results: Mapping[str, Any], claim: str, statistic: str, path: str) -> Finding:
    found = above_null(claim, statistic, _tests(results, path), path, _TEXT_LAYERS)
    return worth_a_name(found, "correlation")


def _sparse_but_strong(results: Mapping[str, Any]) -> list[Finding]:
    """Claims about few pairs of channels that carry the correlation, and about the largest."""
    given = _parts(results, f"{_PAIRS}.*")
    strongest = {name: apart_from_position(pair, "max_abs") for name, pair in given.items()}
    pairs = {
        name: pair for name, pair in given.items()
        if pair["enough_tokens"] and (strongest[name] or {}).get("value") is not None
    }  # fmt: skip
    shares = {name: pair_shares(pair) for name, pair in pairs.items()}
    largest = {name: pair["max_abs"]["value"] for name, pair in pairs.items()}
    least = SMALLEST_EFFECTS["strong correlation"].value
    same: dict[str, Any] = {
        "rule": "in more than half of the pairs of layers, and in more than chance gives",
        "unit": _PAIRS_UNIT,
        "reason": first_reason([*given.values(), *strongest.values()]),
        "details": {
            name: {"typical": one.typical, "largest": one.largest} for name, one in shares.items()
        },
    }
    few = (
        f"the mean |r| over pairs of channels is less than {SPARSE_RATIO:g} of the largest, each "
        f"{_BEYOND}"
    )
    worth = SMALLEST_EFFECTS["correlation"].value
    return [
        share_of_hits(
            "Few pairs of channels carry the correlation between layers",
            f"share of pairs of layers with the largest |r| above its null and at least {worth:g} "
            "beyond it, in which " + few,
            [one.sparse for one in shares.values()],
            f"{_PAIRS}.*.mean_abs",
            **same,
        ),
        share_of_hits(
            "Correlation between layers is sparse but strong",
            f"share of pairs of layers with the largest |r| above its null and at least {least:g} "
            "beyond it, in which " + few,
            [one.sparse and one.largest >= least for one in shares.values()],
            f"{_PAIRS}.*.max_abs",
            **same,
        ),
        share_of_hits(
            f"The largest correlations between layers reach {STRONG:g}",
            f"share of pairs of layers with the largest |r| above its null and at least {STRONG:g}",
            [one.above and largest[name] >= STRONG for name, one in shares.items()],
            f"{_PAIRS}.*.max_abs",
            **{**same, "details": {name: {"max_abs": r} for name, r in largest.items()}},
        ),
    ]


def _recursion(results: Mapping[str, Any]) -> Finding:
    path = f"{_TEXT}.recursive_patterns.*.autocorrelation"
    found = above_null(
        "Neighbouring tokens are alike in the residual stream",
        "autocorrelation of the residual stream one token on, mean over channels, whatever put it "
        "there; null: shuffled tokens",
        _by_group(results, {p: _first_lag(one) for p, one in read(results, path).items()}),
        path,
        _TEXT_LAYERS,
    )
    return worth_a_name(found, "correlation")


def _first_lag(series: Mapping[str, Any]) -> dict[str, Any]:
    if not series["lags"]:
        return {"value": None, "reason": series["reason"]}
    names = {"value": "mean", "null_low": "null_low", "null_high": "null_high"}
    return {key: series[name][0] for key, name in names.items()}


def _differs(
    results: Mapping[str, Any], claim: str, quantity: str, path: str, seed: int
) -> Finding:
    values = _by_layer(results, path)
    if path.endswith("persistence"):
        # What is kept is close to 1 in every layer: what is lost tells them apart.
        values = {layer: [1 - value for value in row] for layer, row in values.items()}
    statistic = (
        f"Kendall's W over texts of the layers ranked by their {quantity}, which differs from the "
        "lowest to the highest layer by"
    )
    means = [abs(float(np.mean(row))) for row in values.values() if row]
    spread = (max(means) - min(means)) / float(np.mean(means)) if any(means) else 0.0
    found = differs_by_layer(
        claim, f"{statistic} {spread:.3g} of the mean", values, path, "texts", seed
    )
    return worth_a_name(found, "relative", spread)


def _layer_groups(results: Mapping[str, Any], seed: int) -> list[Finding]:
    """The claims about early, middle and late layers, from how far back attention reaches."""
    path = f"{_TEXT}.attention_data.*.statistics.mean_distance.mean"
    values = _by_layer(results, path)
    early, middle, late = (group_mean(values, *bounds) for bounds in LAYER_GROUPS.values())
    used = group_names(values)
    tokens = "mean distance of attention, tokens, mean over layers"
    rows = (
        (
            "Attention reaches less far in early layers than in middle ones",
            f"{used['middle']} minus {used['early']}",
            {"middle minus early": (middle, early)},
        ),
        (
            "Attention reaches furthest in middle layers",
            f"{used['middle']} minus {used['early']}, and minus {used['late']}",
            {"middle minus early": (middle, early), "middle minus late": (middle, late)},
        ),
        (
            "Attention reaches furthest in late layers",
            f"{used['late']} minus {used['early']}, and minus {used['middle']}",
            {"late minus early": (late, early), "late minus middle": (late, middle)},
        ),
    )
    found = [
        exceeds_zero(
            claim,
            f"{tokens}: {which}",
            {name: a - b if len(a) and len(b) else np.empty(0) for name, (a, b) in pairs.items()},
            path,
            "texts",
            seed,
        )
        for claim, which, pairs in rows
    ]
    return [worth_a_name(one, "distance") for one in found]


def _selectivity(results: Mapping[str, Any], seed: int) -> Finding:
    path = f"{_TEXT}.ssm_components.*.delta_memory.selectivity"
    values = _by_layer(results, path)
    texts = np.mean(list(values.values()), axis=0) if values else np.empty(0)
    found = exceeds_zero(
        "Delta varies over time: memory is dynamic",
        "share of the variance of delta that lies between tokens, mean over layers",
        {"selectivity": texts},
        path,
        "texts",
        seed,
    )
    return worth_a_name(found, "share")


def _consistent_neurons(results: Mapping[str, Any]) -> Finding:
    path = "cross_text_analysis.neuron_consistency.*.attention_weighted"
    given = _parts(results, path)
    tests = {layer: _shared_by_all(part) for layer, part in given.items()}
    found = above_null(
        "The same neurons are important in every text",
        "share of a text's list of most important neurons (attention_weighted) that is on the "
        "lists of all texts, mean over layers; null: random lists",
        tests,
        path,
    )
    if found.value is None:
        return worth_a_name(found, "same")
    # Counted exactly in each layer; layers read the same texts.
    p_values = [test[P_OF_GROUP] for test in tests.values() if test["value"] is not None]
    places = sum(part["top_n"] for part in given.values())
    p = max(most_of(sorted(p_values)), _SMALLEST_P)
    counted = replace(found, chance_p=p, scale="share", scale_n=max(1, places))
    return worth_a_name(counted, "same")


def _shared_by_all(part: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's `NeuronAgreement` as a test of the share of a list that all texts have."""
    few = too_few_texts(part["num_groups"], "texts")
    if reason := part["reason"] or few:
        return {"value": None, "reason": reason}
    return {
        "value": part["shared"] / part["top_n"],
        "null_low": 0.0,
        "null_high": part["shared_null_high"] / part["top_n"],
        P_OF_GROUP: part["shared_p_value"],
    }


def _most_consistent_method(results: Mapping[str, Any], seed: int) -> Finding:
    path = "cross_text_analysis.neuron_consistency.*.*.spearman_by_text"
    cells = read(results, path)
    methods = sorted({place.split(".")[1] for place in cells})
    layers = {place.split(".")[0] for place in cells}
    complete = [
        layer for layer in layers if all(cells.get(f"{layer}.{m}") is not None for m in methods)
    ]
    values = {
        m: _pseudo_values(np.mean([cells[f"{layer}.{m}"] for layer in complete], axis=0))
        for m in methods
        if complete
    }
    first = values.pop("attention_weighted", np.empty(0))
    found = exceeds_zero(
        "The attention-weighted method is the most consistent",
        "mean over pairs of texts and layers of the rank correlation of importance, "
        "attention_weighted minus each other method; samples: jackknife pseudo-values of texts",
        {f"minus {m}": first - other for m, other in values.items()},
        path,
        "texts",
        seed,
    )
    return worth_a_name(found, "correlation")


def _pseudo_values(by_text: FloatArray) -> FloatArray:
    """(texts,) jackknife pseudo-values of a mean over pairs of texts, from each text's mean over
    its pairs: their mean is that over pairs, and they spread as if each were a text's own [1]."""
    n = len(by_text)
    if n < 3:
        return by_text
    mean = by_text.mean()
    return mean + 2 * (n - 1) / (n - 2) * (by_text - mean)


def _deeper_is_larger(results: Mapping[str, Any], seed: int) -> Finding:
    path = f"{_TEXT}.neuron_evolution.attention_weighted.rms.*"
    values = _by_layer(results, path)
    means = [float(np.mean(row)) for row in values.values() if row]
    half = len(means) // 2
    rise = np.mean(means[-half:]) - np.mean(means[:half]) if half else 0.0
    share = float(rise / np.mean(means)) if any(means) else 0.0
    found = rises_with_depth(
        "Activation increases in deeper layers",
        "rank correlation of the layer's depth with the neurons' root mean square activation, mean "
        f"over texts, which is larger in the deeper half by {share:.3g} of the mean",
        values,
        path,
        seed,
    )
    return worth_a_name(found, "relative", share)


def _important_neurons_matter(results: Mapping[str, Any]) -> Finding:
    path = f"{_TEXT}.neuron_ablation.*.agreement.attention_weighted"
    found = above_null(
        "Neurons of high importance matter more to the prediction",
        "rho over ablated neurons of importance (attention_weighted) with the effect of setting "
        "them to their mean; null: permuted neurons",
        _by_group(results, {p: _with_null(test) for p, test in read(results, path).items()})
        or {"": {"reason": "no neurons were ablated; --ablate 32 (num_ablations) does that"}},
        path,
        _TEXT_LAYERS,
    )
    return worth_a_name(found, "correlation")


def _with_null(agreement: Mapping[str, Any]) -> dict[str, Any]:
    high = agreement["null_95"]
    return {
        "p_value": agreement["p_value"],
        "value": agreement["spearman"],
        "null_low": None if high is None else -high,
        "null_high": high,
        "reason": agreement["reason"],
    }


def _parts(results: Mapping[str, Any], path: str) -> dict[str, Mapping[str, Any]]:
    """What stands at the path, without the reasons that stand where parts would be."""
    found = read(results, path)
    return {name: part for name, part in found.items() if isinstance(part, Mapping)}


def _tests(results: Mapping[str, Any], path: str) -> dict[str, Mapping[str, Any] | None]:
    """Null tests by text and layer at the path, related texts as one."""
    return _by_group(results, read(results, path))


def _by_group(
    results: Mapping[str, Any], tests: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Mapping[str, Any] | None]:
    return by_group(tests, _groups(results))


def _groups(results: Mapping[str, Any]) -> dict[str, str]:
    """Group of each text, by its name, as the provenance has it."""
    origins = results.get("provenance", {}).get("texts", {})
    return {name: origin.get("group", name) for name, origin in origins.items()}


def _by_layer(results: Mapping[str, Any], path: str) -> dict[str, list[float]]:
    """By layer, one value an independent text, of the texts in which every layer has one."""
    cells, groups = read(results, path), _groups(results)
    texts = list(dict.fromkeys(place.split(".")[0] for place in cells))
    layers = sorted({place.split(".")[1] for place in cells}, key=_layer_number)
    rows = {text: [cells.get(f"{text}.{layer}") for layer in layers] for text in texts}
    complete = {text: np.array(row, float) for text, row in rows.items() if None not in row}
    means = group_means(list(complete.values()), [groups.get(text, text) for text in complete])
    return {layer: [float(row[i]) for row in means] for i, layer in enumerate(layers)}


def _layer_number(name: str) -> int:
    return int(name.removeprefix("layer_"))
