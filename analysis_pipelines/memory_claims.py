"""Claims about memory, each tried on the data at hand by a rule of `findings`.

A claim is a `Finding`: what is said, the statistic that would show it, its value beside a null
(what the data give when nothing ties the two sides) or beside an interval, the verdict, and the
place in the results that it was read from; and it is of a size worth a name
(`token_statistics.smallest_effects`). The claims read the steps' JSON of ``memory_steps`` alone.
Those of the main analysis that ask the same with another statistic are worded apart. Wherever texts
are counted, related ones are one (`token_statistics.text_groups`). Nothing here knows what any
model should show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis_pipelines.memory_causal import MEAN_OVER_LAYERS
from causal_interventions.passing import RARE
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, undecided
from token_statistics.smallest_effects import (
    SMALLEST_EFFECTS,
    SPARSE_RATIO,
    beyond_chance,
    pair_shares,
    worth_a_name,
)
from token_statistics.text_groups import group_means
from token_statistics.time_shift_nulls import MIN_TOKENS
from token_statistics.verdict_rules import (
    LAYER_GROUPS,
    above_null,
    apart_from_position,
    differs_by_layer,
    exceeds_zero,
    first_reason,
    group_mean,
    group_names,
    share_of_hits,
)

_PAIRS, _CUTS = "pairs of layers", "memory.passing.*.*.cut"

Groups = Sequence[int] | None
"""Group of related texts of each text, by its number; None where none are related."""


def claims_on(
    sections: Mapping[str, Any],
    layers: Sequence[int],
    num_tokens: int,
    seed: int = 0,
    groups: Groups = None,
) -> list[Finding]:
    """Every claim, in the order of the report, tried on the steps' JSON; seeded.

    ``num_tokens``: distinct ones. A step that failed leaves its claims with "too little data" and
    the reason; so do fewer than MIN_TOKENS tokens over all texts, whatever the statistics.
    """
    rows = _claims(sections, layers, seed, groups)
    if num_tokens >= MIN_TOKENS:
        return rows
    reason = f"{num_tokens} tokens; a claim needs at least {MIN_TOKENS}"
    return [
        undecided(row.claim, row.statistic, row.unit, reason, row.path, rule=row.rule, n=row.n)
        for row in rows
    ]


def _claims(
    sections: Mapping[str, Any], layers: Sequence[int], seed: int, groups: Groups
) -> list[Finding]:
    causal = _section(sections, "causal_memory")
    kl = text_values(causal, "knockout", layers, "kl", groups)
    late_share = text_values(causal, "knockout", layers, "late_share", groups)
    return [
        *_delta_claims(sections, layers),
        _differs_in_nats(
            differs_by_layer(
                "What predictions owe to a layer's memory depends on the layer",
                "Kendall's W over texts of the layers ranked by their causal memory (mean KL "
                "when one source is hidden in that layer alone)",
                kl,
                "memory.causal_memory.knockout.layers.*.kl",
                "texts",
                seed,
            )
        ),
        _differs_in_tokens(
            differs_by_layer(
                "How far back memory reaches varies across layers",
                "Kendall's W over texts of the layers ranked by the mean lag of their memory "
                "kernel",
                _mean_lags(_section(sections, "memory_kernel"), layers, groups),
                "memory.memory_kernel.*.by_text.*.mean_lag",
                "texts",
                seed,
            )
        ),
        *group_claims(kl, late_share, seed),
        *_recursion_claims(sections, layers),
        *_selectivity_claims(sections),
        passing_claim(_section(sections, "passing"), groups),
    ]


def _differs_in_nats(found: Finding) -> Finding:
    """Layers that differ by less than any effect on predictions do not differ in it."""
    return worth_a_name(found, "kl", _range(found))


def _differs_in_tokens(found: Finding) -> Finding:
    """Lags in the same order in every text, by less than a token or a tenth, are as good as one."""
    means = [part["mean"] for part in found.details.values()]
    typical = float(np.mean(means)) if means else 0.0
    relative = _range(found) / typical if typical else 0.0
    return worth_a_name(worth_a_name(found, "distance", _range(found)), "relative", relative)


def _range(found: Finding) -> float:
    """Largest less smallest mean of a layer."""
    means = [part["mean"] for part in found.details.values()]
    return max(means, default=0.0) - min(means, default=0.0)


def passing_claim(section: Mapping[str, Any], groups: Groups = None) -> Finding:
    """Whether what layers write reaches later ones, from cuts (`causal_interventions.passing`).

    A pair of layers is one trial, over the mean of its independent texts: its directions are the
    same in all of them, and so are the weights that make a direction a special one.
    """
    claim = (
        "Layers pass information on: what one writes changes the output of the next one looked at, "
        "directly or through the layers between"
    )
    pairs = {name: pair for name, pair in section.items() if isinstance(pair, Mapping)}
    known = {name: trial for name, pair in pairs.items() if (trial := _trial(pair, groups))}
    least = SMALLEST_EFFECTS["change"]
    statistic = (
        "share of pairs of layers in which cutting what the earlier one writes changes the later "
        f"one's mixer output by at least {least.value:g} of its norm more than the same write in "
        "any of its random directions does, mean over texts"
    )
    rule, path = "in more than half of the pairs, and in more than chance gives", _CUTS
    chance = max((1 / len(trial) for trial in known.values()), default=RARE)
    if known and chance ** len(known) > RARE:
        why = f"one time in {chance ** -len(known):.0f}"
        reason = f"{len(known)} pair(s) of layers, all of them by chance alone {why}"
        return undecided(claim, statistic, _PAIRS, reason, path, rule=rule, n=len(known))
    texts = [text for pair in pairs.values() for text in pair.values()]
    return share_of_hits(
        claim, statistic, [trial[0] - max(trial[1:]) >= least.value for trial in known.values()],
        path, rule=rule, unit=_PAIRS, chance=chance,
        reason=next((text["reason"] for text in texts if text["reason"]), "no pair of layers"),
        details={
            name: {"cut": trial[0], "largest other direction": max(trial[1:])}
            for name, trial in known.items()
        },
    )  # fmt: skip


def _trial(pair: Mapping[str, Mapping[str, Any]], groups: Groups) -> list[float]:
    """What the cut changes, and each other direction, means over independent texts; [] for none."""
    measured = {int(name[5:]): text for name, text in pair.items() if text["cut"] is not None}
    rows = [[text["cut"], *text["directions"]] for text in measured.values()]
    by_text = group_means(rows, _of_texts(groups, list(measured)))
    return np.mean(by_text, axis=0).tolist() if by_text else []


def _of_texts(groups: Groups, texts: Sequence[int]) -> Groups:
    """The groups of these texts."""
    return None if groups is None else [groups[text] for text in texts]


def group_claims(
    kl: Mapping[str, Sequence[float]], late_share: Mapping[str, Sequence[float]], seed: int = 0
) -> list[Finding]:
    """The claims about early, middle and late layers, from causal memory by layer and text."""
    groups = {name: group_mean(kl, *bounds) for name, bounds in LAYER_GROUPS.items()}
    sustained = {name: group_mean(late_share, *bounds) for name, bounds in LAYER_GROUPS.items()}
    early, middle, late = groups.values()
    used = group_names(kl)
    nats = "nats, mean over layers, lags, positions and texts"
    less = "Predictions owe less to the memory of early layers than to that of middle ones"
    peak = "Predictions owe most to the memory of middle layers"
    lasting = "What late layers keep matters at long lags more than what others keep"
    rows = [
        (less, f"causal memory of {used['middle']} minus that of {used['early']}, {nats}", "kl",
         {"middle minus early": (middle, early)}),
        (peak, f"causal memory of {used['middle']} minus that of {used['early']} and of "
         f"{used['late']}, {nats}", "kl",
         {"middle minus early": (middle, early), "middle minus late": (middle, late)}),
        (lasting, "share of the causal memory that falls on the later half of the lags, "
         f"{used['late']} minus {used['early']} and minus {used['middle']}, mean over positions "
         "and texts",
         "late_share",
         {"late minus early": (sustained["late"], sustained["early"]),
          "late minus middle": (sustained["late"], sustained["middle"])}),
    ]  # fmt: skip
    found = [
        exceeds_zero(
            claim,
            statistic,
            {which: _difference(*pair) for which, pair in pairs.items()},
            f"memory.causal_memory.knockout.layers.*.{name}",
            "texts",
            seed,
        )
        for claim, statistic, name, pairs in rows
    ]
    kinds = {"kl": "kl", "late_share": "share"}
    return [worth_a_name(one, kinds[row[2]]) for one, row in zip(found, rows, strict=True)]


def text_values(
    causal: Mapping[str, Any],
    kind: str,
    layers: Sequence[int],
    name: str,
    groups: Groups = None,
) -> dict[str, list[float]]:
    """By layer, one value an independent text: the mean over its positions at which every layer has
    one.

    Positions of one text share its tokens, so that they are no samples of their own.
    """
    by_layer = causal.get(kind, {}).get("layers", {})
    keys = [f"layer_{layer}" for layer in layers if f"layer_{layer}" in by_layer]
    columns = [by_layer[key][name] for key in keys]
    places = by_layer[keys[0]]["positions"] if keys else []
    by_text: dict[int, list[Sequence[float]]] = {}
    for (text, _), row in zip(places, zip(*columns, strict=True), strict=True):
        if None not in row:
            by_text.setdefault(text, []).append(row)
    means = group_means(
        [np.mean(rows, axis=0) for rows in by_text.values()], _of_texts(groups, list(by_text))
    )
    return {key: [float(mean[i]) for mean in means] for i, key in enumerate(keys)}


def _delta_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Finding]:
    delta = _by_layer(_section(sections, "delta_neurons"), layers)
    ablation = _by_layer(_section(sections, "ablation_memory"), layers)
    causes_of = _section(sections, "delta_causes")
    causes = _by_layer(causes_of, layers)
    found = [
        above_null(
            "Delta goes with the activity of neurons over all texts",
            "mean |rho| over channels of delta with |activation| over the tokens of all texts, "
            "beyond chance: the root of its square less that of its mean under time shifts",
            {
                name: beyond_chance(part.get("observed", {}).get("mean_abs"))
                for name, part in delta.items()
            },
            "memory.delta_neurons.*.observed.mean_abs",
        ),
        above_null(
            "Channels of larger delta owe more to their state",
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
            "ones in that layer, within texts and apart from the position; null: shifts along each "
            "text, the same in all layers",
            {name: part.get("delta_at_sources") for name, part in causes.items()},
            "memory.delta_causes.*.delta_at_sources",
            together=causes_of.get(MEAN_OVER_LAYERS, {}).get("delta_at_sources"),
        ),
    ]
    return [worth_a_name(one, "correlation") for one in found]


def _recursion_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Finding]:
    patterns = _by_layer(_section(sections, "recursive_patterns"), layers)
    mixers = {name: part.get("mixer", {}) for name, part in patterns.items()}
    found = [
        above_null(
            "What mixers write at neighbouring tokens is alike",
            "autocorrelation of the mixer's output one token on, mean over channels; null: "
            "shuffled tokens",
            {name: _first_lag(part.get("autocorrelation")) for name, part in mixers.items()},
            "memory.recursive_patterns.*.mixer.autocorrelation",
        ),
        above_null(
            "Where the state changes much, what the mixer writes does too",
            "rho over tokens of the change of the state with the change of the mixer's output; "
            "null: time shifts",
            {name: part.get("change_correlation") for name, part in mixers.items()},
            "memory.recursive_patterns.*.mixer.change_correlation",
        ),
    ]
    return [worth_a_name(one, "correlation") for one in found]


def _selectivity_claims(sections: Mapping[str, Any]) -> list[Finding]:
    pairs = _section(sections, "cross_layer_correlations").get("mixer", {})
    apart = {name: apart_from_position(pair, "max_abs") or {} for name, pair in pairs.items()}
    strong = {name: beyond_chance(test) for name, test in apart.items()}
    shares = {
        name: pair_shares(pair) for name, pair in pairs.items()
        if pair["enough_tokens"] and apart[name].get("value") is not None
    }  # fmt: skip
    beyond = "beyond chance: the root of its square less that of its mean under time shifts"
    return [
        worth_a_name(
            above_null(
                "The strongest pair of channels of successive layers is strongly correlated",
                f"largest |r| over pairs of channels of the mixers' outputs, all texts, {beyond}",
                strong,
                "memory.cross_layer_correlations.mixer.*.max_abs",
                "pairs of layers",
            ),
            "strong correlation",
        ),
        share_of_hits(
            "A few pairs of channels hold what successive layers share",
            "share of pairs of layers with the largest |r| above its null and worth a name in "
            f"which the mean |r| is less than {SPARSE_RATIO:g} of it, each {beyond}",
            [one.sparse for one in shares.values()],
            "memory.cross_layer_correlations.mixer.*.max_abs",
            rule="in more than half of the pairs of layers, and in more than chance gives",
            unit="pairs of layers",
            reason=first_reason([*pairs.values(), *apart.values()]),
            details={
                name: {"typical": one.typical, "largest": one.largest}
                for name, one in shares.items()
            },
        ),
    ]


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A step's JSON; empty where it has no result."""
    section = sections.get(name, {})
    return {} if {"error", "skipped"} & set(section) else section


def _by_layer(section: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    return {f"layer_{i}": section[f"layer_{i}"] for i in layers if f"layer_{i}" in section}


def _mean_lags(
    section: Mapping[str, Any], layers: Sequence[int], groups: Groups
) -> dict[str, list[float]]:
    """By layer, the kernel's mean lag on each independent text; without texts in which one is
    undefined."""
    parts = _by_layer(section, layers)
    columns = [[text["mean_lag"] for text in part["by_text"].values()] for part in parts.values()]
    rows = {i: row for i, row in enumerate(zip(*columns, strict=True)) if None not in row}
    means = group_means(list(rows.values()), _of_texts(groups, list(rows)))
    return {name: [float(row[i]) for row in means] for i, name in enumerate(parts)}


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
