"""Claims about memory, each tried on the data at hand by a rule of `findings`.

A claim is a `Finding`: what is said, the statistic that would show it, its value beside a null
(what the data give when nothing ties the two sides) or beside an interval, the verdict, and the
place in the results that it was read from. The claims read the steps' JSON of ``memory_steps``
alone. Nothing here knows what any model should show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from token_statistics.description import FloatArray
from token_statistics.findings import Finding, undecided
from token_statistics.time_shift_nulls import MIN_TOKENS
from token_statistics.verdict_rules import (
    LAYER_GROUPS,
    SPARSE_SHARE,
    above_null,
    differs_by_layer,
    exceeds_zero,
    first_reason,
    group_mean,
    share_of_hits,
)


def claims_on(
    sections: Mapping[str, Any], layers: Sequence[int], num_tokens: int, seed: int = 0
) -> list[Finding]:
    """Every claim, in the order of the report, tried on the steps' JSON; seeded.

    A step that failed leaves its claims with "too little data" and the reason; so do fewer than
    MIN_TOKENS tokens over all texts, whatever the statistics.
    """
    rows = _claims(sections, layers, seed)
    if num_tokens >= MIN_TOKENS:
        return rows
    reason = f"{num_tokens} tokens; a claim needs at least {MIN_TOKENS}"
    return [
        undecided(row.claim, row.statistic, row.unit, reason, row.path, rule=row.rule, n=row.n)
        for row in rows
    ]


def _claims(sections: Mapping[str, Any], layers: Sequence[int], seed: int) -> list[Finding]:
    causal = _section(sections, "causal_memory")
    kl = position_values(causal, "knockout", layers, "kl")
    late_share = position_values(causal, "knockout", layers, "late_share")
    return [
        *_delta_claims(sections, layers),
        differs_by_layer(
            "Memory depends on the layer",
            "Kendall's W over positions of the layers ranked by their causal memory (mean KL when "
            "one source is hidden in that layer alone)",
            kl,
            "memory.causal_memory.knockout.layers.*.kl",
            "positions",
            seed,
        ),
        differs_by_layer(
            "How far back memory reaches varies across layers",
            "Kendall's W over texts of the layers ranked by the mean lag of their memory kernel",
            _mean_lags(_section(sections, "memory_kernel"), layers),
            "memory.memory_kernel.*.by_text.*.mean_lag",
            "texts",
            seed,
        ),
        *group_claims(kl, late_share, seed),
        *_recursion_claims(sections, layers),
        *_selectivity_claims(sections),
    ]


def group_claims(
    kl: Mapping[str, Sequence[float]], late_share: Mapping[str, Sequence[float]], seed: int = 0
) -> list[Finding]:
    """The claims about early, middle and late layers, from causal memory by layer and position."""
    groups = {name: group_mean(kl, *bounds) for name, bounds in LAYER_GROUPS.items()}
    sustained = {name: group_mean(late_share, *bounds) for name, bounds in LAYER_GROUPS.items()}
    early, middle, late = groups.values()
    nats = "nats, mean over layers, lags and positions"
    peak = "Middle layers (3 to 8) have the peak of memory"
    moderate = "Early layers (0 to 2) have moderate memory"
    lasting = "Late layers (9 to 12) have sustained memory"
    rows = [
        (moderate, f"causal memory of middle minus that of early layers, {nats}", "kl",
         {"middle minus early": (middle, early)}),
        (peak, f"causal memory of middle minus that of early and of late layers, {nats}", "kl",
         {"middle minus early": (middle, early), "middle minus late": (middle, late)}),
        (lasting, "share of the causal memory that falls on the later half of the lags, late minus "
         "early and late minus middle layers, mean over positions", "late_share",
         {"late minus early": (sustained["late"], sustained["early"]),
          "late minus middle": (sustained["late"], sustained["middle"])}),
    ]  # fmt: skip
    return [
        exceeds_zero(
            claim,
            statistic,
            {which: _difference(*pair) for which, pair in pairs.items()},
            f"memory.causal_memory.knockout.layers.*.{name}",
            seed=seed,
        )
        for claim, statistic, name, pairs in rows
    ]


def position_values(
    causal: Mapping[str, Any], kind: str, layers: Sequence[int], name: str
) -> dict[str, list[float]]:
    """By layer, one value a position, of the positions at which every layer has one."""
    by_layer = causal.get(kind, {}).get("layers", {})
    keys = [f"layer_{layer}" for layer in layers if f"layer_{layer}" in by_layer]
    columns = [by_layer[key][name] for key in keys]
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    return {key: [row[i] for row in rows] for i, key in enumerate(keys)}


def _delta_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Finding]:
    delta = _by_layer(_section(sections, "delta_neurons"), layers)
    ablation = _by_layer(_section(sections, "ablation_memory"), layers)
    causes = _by_layer(_section(sections, "delta_causes"), layers)
    return [
        above_null(
            "Delta goes with the activity of neurons",
            "mean |rho| over channels, of delta with |activation| over tokens; null: time shifts",
            {name: part.get("observed", {}).get("mean_abs") for name, part in delta.items()},
            "memory.delta_neurons.*.observed.mean_abs",
        ),
        above_null(
            "Higher delta means stronger memory influence",
            "rho over channels of mean delta with what the neuron owes to its state (its change "
            "when the decay alone is scaled); null: permuted channels",
            {name: part.get("delta_with_memory") for name, part in delta.items()},
            "memory.delta_neurons.*.delta_with_memory",
        ),
        above_null(
            "Neurons of higher delta matter more to the prediction",
            "rho over ablated neurons of mean delta with the effect of ablation; null: permuted "
            "neurons",
            {name: part.get("mean_delta") for name, part in ablation.items()},
            "memory.ablation_memory.*.mean_delta",
        ),
        above_null(
            "Tokens of larger delta leave more in memory",
            "rho over tokens of mean ln delta with the KL when the token is hidden from all later "
            "ones in that layer; null: permuted tokens",
            {name: part.get("delta_at_sources") for name, part in causes.items()},
            "memory.delta_causes.*.delta_at_sources",
        ),
    ]


def _recursion_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Finding]:
    patterns = _by_layer(_section(sections, "recursive_patterns"), layers)
    mixers = {name: part.get("mixer", {}) for name, part in patterns.items()}
    return [
        above_null(
            "Temporal patterns show recursive dynamics",
            "autocorrelation of the mixer's output one token on, mean over channels; null: "
            "shuffled tokens",
            {name: _first_lag(part.get("autocorrelation")) for name, part in mixers.items()},
            "memory.recursive_patterns.*.mixer.autocorrelation",
        ),
        above_null(
            "Where the state changes much, the activations do too",
            "rho over tokens of the change of the state with the change of the mixer's output; "
            "null: time shifts",
            {name: part.get("change_correlation") for name, part in mixers.items()},
            "memory.recursive_patterns.*.mixer.change_correlation",
        ),
    ]


def _selectivity_claims(sections: Mapping[str, Any]) -> list[Finding]:
    pairs = _section(sections, "cross_layer_correlations").get("mixer", {})
    strong = {name: pair["max_abs"] for name, pair in pairs.items()}
    reason = first_reason(pairs.values())
    few = {
        name: pair["significant_share"] is not None
        and strong[name]["value"] > strong[name]["null_high"]
        and pair["significant_share"] < SPARSE_SHARE
        for name, pair in pairs.items()
        if pair["enough_tokens"]
    }
    return [
        above_null(
            "Strong correlations exist between specific neurons of successive layers",
            "largest |r| over pairs of channels of the mixers' outputs; null: time shifts",
            strong,
            "memory.cross_layer_correlations.mixer.*.max_abs",
            "pairs of layers",
        ),
        share_of_hits(
            "Memory flows selectively between layers",
            "share of pairs of layers with the largest |r| above its null while few pairs of "
            "channels are significant",
            list(few.values()),
            "memory.cross_layer_correlations.mixer.*.significant_share",
            rule="in more than half of the pairs of layers: largest |r| above its null, and fewer "
            f"than {SPARSE_SHARE:g} of the pairs of channels significant",
            unit="pairs of layers",
            reason=reason,
            details={name: {"significant_share": pairs[name]["significant_share"]} for name in few},
        ),
    ]


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A step's JSON; empty where it has no result."""
    section = sections.get(name, {})
    return {} if {"error", "skipped"} & set(section) else section


def _by_layer(section: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    return {f"layer_{i}": section[f"layer_{i}"] for i in layers if f"layer_{i}" in section}


def _mean_lags(section: Mapping[str, Any], layers: Sequence[int]) -> dict[str, list[float]]:
    """By layer, the kernel's mean lag on each text; without texts in which one is undefined."""
    parts = _by_layer(section, layers)
    columns = [[text["mean_lag"] for text in part["by_text"].values()] for part in parts.values()]
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    return {name: [row[i] for row in rows] for i, name in enumerate(parts)}


def _first_lag(autocorrelation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not autocorrelation:
        return None
    if not autocorrelation["lags"]:
        return {"value": None, "reason": autocorrelation["reason"]}
    names = {"value": "mean", "null_low": "null_low", "null_high": "null_high"}
    return {key: autocorrelation[name][0] for key, name in names.items()}


def _difference(a: FloatArray, b: FloatArray) -> FloatArray:
    """a - b; empty where a group has no layer."""
    return a - b if len(a) and len(b) else np.empty(0)
