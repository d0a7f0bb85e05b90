"""Claims about memory, each tried on the data at hand: statistic, null or interval, verdict.

A claim is a row: what is said, the statistic that would show it, its value beside a null (what the
data give when nothing ties the two sides) or beside an interval, and a verdict by the rule stated
in the row. The rows read the steps' JSON of ``memory_measures`` alone. Nothing here knows what any
model should show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from analysis_utils import FloatArray, bootstrap_interval
from time_shift_nulls import MIN_TOKENS, against_null

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, TOO_LITTLE)

LAYER_GROUPS = {"early": (0, 3), "middle": (3, 9), "late": (9, 13)}
"""Layers from the first number up to, not including, the second."""
MIN_POSITIONS = 8
"""Fewer positions than this, and no difference between layers is claimed."""
SPARSE_SHARE = 0.1
"""Fewer significant pairs of channels than this share count as few."""

_TAIL = 0.025
_NUM_PERMUTATIONS = 999


@dataclass(frozen=True)
class Claim:
    """A claim and what the data say to it."""

    claim: str
    statistic: str
    """what was measured"""
    rule: str
    """when the verdict is "supported" """
    value: float | None
    low: float | None
    """lower end of the null's or the value's 95 % interval"""
    high: float | None
    bounds: str
    """what low and high bound: "null" or "interval" """
    n: int
    """samples behind the value"""
    unit: str
    """what they are: layers, pairs of layers, positions, texts"""
    verdict: str
    """one of VERDICTS"""
    reason: str | None = None
    """why there is too little data"""
    details: dict[str, Any] = field(default_factory=dict)
    """by layer or group: what the value was made of"""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, strict JSON."""
        return dict(self.__dict__)

    def row(self) -> dict[str, Any]:
        """The fields without the details, for a table."""
        return {name: value for name, value in self.__dict__.items() if name != "details"}


def claims_on(
    sections: Mapping[str, Any], layers: Sequence[int], num_tokens: int, seed: int = 0
) -> list[Claim]:
    """Every claim, in the order of the report, tried on the steps' JSON; seeded.

    A step that failed leaves its claims with "too little data" and the reason; so do fewer than
    MIN_TOKENS tokens over all texts, whatever the statistics.
    """
    rows = _claims(sections, layers, seed)
    if num_tokens >= MIN_TOKENS:
        return rows
    reason = f"{num_tokens} tokens; a claim needs at least {MIN_TOKENS}"
    return [_undecided(r.claim, r.statistic, r.rule, r.bounds, r.unit, reason, r.n) for r in rows]


def _claims(sections: Mapping[str, Any], layers: Sequence[int], seed: int) -> list[Claim]:
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
            "positions",
            seed,
        ),
        differs_by_layer(
            "How far back memory reaches varies across layers",
            "Kendall's W over texts of the layers ranked by the mean lag of their memory kernel",
            _mean_lags(_section(sections, "memory_kernel"), layers),
            "texts",
            seed,
        ),
        *group_claims(kl, late_share, seed),
        *_recursion_claims(sections, layers),
        *_selectivity_claims(sections),
    ]


def above_null(
    claim: str, statistic: str, tests: Mapping[str, Mapping[str, Any] | None], unit: str = "layers"
) -> Claim:
    """Whether a statistic lies above its null in most of the places where it was measured.

    ``tests``: by layer or pair of layers, ``value``, ``null_low`` and ``null_high``, or None.
    Value: share of the places whose value is above null_high. Its null: by chance each is with
    probability 2.5 %, binomial, the places taken as independent.
    """
    rule = "above its null in more than half of the " + unit + ", and in more than chance gives"
    shown: dict[str, dict[str, Any]] = {
        name: {key: test.get(key) for key in ("value", "null_low", "null_high")}
        for name, test in tests.items()
        if test and test.get("value") is not None and test.get("null_high") is not None
    }
    above = [test["value"] > test["null_high"] for test in shown.values()]
    return _share_claim(claim, statistic, rule, above, _TAIL, unit, _first_reason(tests), shown)


def _share_claim(
    claim: str,
    statistic: str,
    rule: str,
    hits: Sequence[bool],
    chance: float,
    unit: str,
    reason: str,
    details: dict[str, Any],
) -> Claim:
    n = len(hits)
    if n == 0:
        return _undecided(claim, statistic, rule, "null", unit, reason)
    share = sum(hits) / n
    high = float(stats.binom.ppf(1 - _TAIL, n, chance)) / n
    verdict = SUPPORTED if share > max(high, 0.5) else NOT_SUPPORTED
    return Claim(
        claim, statistic, rule, share, 0.0, high, "null", n, unit, verdict, details=details
    )


def differs_by_layer(
    claim: str, statistic: str, values: Mapping[str, Sequence[float]], unit: str, seed: int = 0
) -> Claim:
    """Whether layers differ in the same way in every sample: Kendall's W, in [0, 1].

    ``values``: by layer, one value a sample, samples in the same order. W = 12 S / (n^2 (k^3 - k))
    with S the sum of squared deviations of the layers' rank sums; null: the layers exchanged at
    random within each sample. Too little data: fewer than 2 layers or samples, or a null that
    reaches the largest W there is.
    """
    rule = "W above its null"
    matrix = np.array(list(values.values()), dtype=float).T if values else np.empty((0, 0))
    n, k = matrix.shape if matrix.ndim == 2 else (0, 0)
    if n < 2 or k < 2:
        reason = f"{n} {unit} in {k} layers; ranking needs 2 of each"
        return _undecided(claim, statistic, rule, "null", unit, reason, n)
    ranks = stats.rankdata(matrix, axis=1)
    rng = np.random.default_rng(seed)
    draws = [concordance(rng.permuted(ranks, axis=1)) for _ in range(_NUM_PERMUTATIONS)]
    test = against_null(concordance(ranks), draws, n)
    details = {name: {"mean": float(np.mean(column))} for name, column in values.items()}
    if test.value is None or test.null_high is None or test.null_high > 1 - 1e-9:
        reason = f"so few {unit} and layers ({n} and {k}) that chance alone reaches W = 1"
        return _undecided(claim, statistic, rule, "null", unit, reason, n)
    verdict = SUPPORTED if test.value > test.null_high else NOT_SUPPORTED
    return Claim(
        claim, statistic, rule, test.value, test.null_low, test.null_high, "null", n, unit,
        verdict, details=details,
    )  # fmt: skip


def concordance(ranks: FloatArray) -> float:
    """Kendall's W of ranks (n samples, k items), in [0, 1]: 1 where all samples rank alike."""
    n, k = ranks.shape
    sums = ranks.sum(axis=0)
    return float(12 * np.square(sums - sums.mean()).sum() / (n**2 * (k**3 - k)))


def exceeds_zero(
    claim: str, statistic: str, differences: Mapping[str, FloatArray], seed: int = 0
) -> Claim:
    """Whether the mean of every one of the differences (positions,) is above 0.

    Value: the smallest mean difference, with its 95 % bootstrap interval over positions. Positions
    of one text share its tokens: the interval is that of these texts.
    """
    rule = "the 95 % interval lies above 0" + (
        " for each of the differences" if len(differences) > 1 else ""
    )
    counts = [len(values) for values in differences.values()]
    if not counts or min(counts) < MIN_POSITIONS:
        found = min(counts, default=0)
        reason = (
            f"{found} positions with a layer of every group; a difference needs {MIN_POSITIONS}"
        )
        return _undecided(claim, statistic, rule, "interval", "positions", reason, found)
    details = {}
    for name, values in differences.items():
        low, high = bootstrap_interval(values, seed=seed)
        details[name] = {"value": float(values.mean()), "low": low, "high": high}
    least = min(details.values(), key=lambda entry: entry["value"])
    verdict = SUPPORTED if all(e["low"] > 0 for e in details.values()) else NOT_SUPPORTED
    return Claim(
        claim, statistic, rule, least["value"], least["low"], least["high"], "interval",
        min(counts), "positions", verdict, details=details,
    )  # fmt: skip


def group_claims(
    kl: Mapping[str, Sequence[float]], late_share: Mapping[str, Sequence[float]], seed: int = 0
) -> list[Claim]:
    """The claims about early, middle and late layers, from causal memory by layer and position."""
    groups = {name: _group_mean(kl, *bounds) for name, bounds in LAYER_GROUPS.items()}
    sustained = {name: _group_mean(late_share, *bounds) for name, bounds in LAYER_GROUPS.items()}
    early, middle, late = groups.values()
    nats = "nats, mean over layers, lags and positions"
    peak = "Middle layers (3 to 8) have the peak of memory"
    moderate = "Early layers (0 to 2) have moderate memory"
    lasting = "Late layers (9 to 12) have sustained memory"
    rows = [
        (moderate, f"causal memory of middle minus that of early layers, {nats}",
         {"middle minus early": (middle, early)}),
        (peak, f"causal memory of middle minus that of early and of late layers, {nats}",
         {"middle minus early": (middle, early), "middle minus late": (middle, late)}),
        (lasting, "share of the causal memory that falls on the later half of the lags, late minus "
         "early and late minus middle layers, mean over positions",
         {"late minus early": (sustained["late"], sustained["early"]),
          "late minus middle": (sustained["late"], sustained["middle"])}),
    ]  # fmt: skip
    return [
        exceeds_zero(claim, statistic, {n: _difference(*pair) for n, pair in pairs.items()}, seed)
        for claim, statistic, pairs in rows
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


def _delta_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Claim]:
    delta = _by_layer(_section(sections, "delta_neurons"), layers)
    ablation = _by_layer(_section(sections, "ablation_memory"), layers)
    return [
        above_null(
            "Delta goes with the activity of neurons",
            "share of layers in which mean |rho| over channels, of delta with |activation| over "
            "tokens, exceeds that under time shifts",
            {name: part.get("observed", {}).get("mean_abs") for name, part in delta.items()},
        ),
        above_null(
            "Higher delta means stronger memory influence",
            "share of layers in which channels of larger mean delta depend more on what their "
            "state keeps (rho over channels of mean delta with the change of the neuron when the "
            "decay alone is scaled)",
            {name: part.get("delta_with_memory") for name, part in delta.items()},
        ),
        above_null(
            "Neurons of higher delta matter more to the prediction",
            "share of layers in which rho over ablated neurons, of mean delta with the effect of "
            "ablation, exceeds that of permuted neurons",
            {name: part.get("mean_delta") for name, part in ablation.items()},
        ),
    ]


def _recursion_claims(sections: Mapping[str, Any], layers: Sequence[int]) -> list[Claim]:
    patterns = _by_layer(_section(sections, "recursive_patterns"), layers)
    mixers = {name: part.get("mixer", {}) for name, part in patterns.items()}
    return [
        above_null(
            "Temporal patterns show recursive dynamics",
            "share of layers in which the autocorrelation of the mixer's output one token on, mean "
            "over channels, exceeds that of shuffled tokens",
            {name: _first_lag(part.get("autocorrelation")) for name, part in mixers.items()},
        ),
        above_null(
            "Where the state changes much, the activations do too",
            "share of layers in which rho over tokens, of the change of the state with the change "
            "of the mixer's output, exceeds that under time shifts",
            {name: part.get("change_correlation") for name, part in mixers.items()},
        ),
    ]


def _selectivity_claims(sections: Mapping[str, Any]) -> list[Claim]:
    pairs = _section(sections, "cross_layer_correlations").get("mixer", {})
    strong = {name: pair["max_abs"] for name, pair in pairs.items()}
    reason = _first_reason(pairs)
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
            "share of pairs of layers in which the largest |r| over pairs of channels of the "
            "mixers' outputs exceeds that under time shifts",
            strong,
            "pairs of layers",
        ),
        _share_claim(
            "Memory flows selectively between layers",
            "share of pairs of layers with the largest |r| above its null while few pairs of "
            "channels are significant",
            f"in more than half of the pairs of layers: largest |r| above its null, and fewer than "
            f"{SPARSE_SHARE:g} of the pairs of channels significant",
            list(few.values()),
            _TAIL,
            "pairs of layers",
            reason,
            {name: {"significant_share": pairs[name]["significant_share"]} for name in few},
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


def _group_mean(values: Mapping[str, Sequence[float]], first: int, stop: int) -> FloatArray:
    """(positions,) mean over the layers of a group; empty without one."""
    rows = [row for name, row in values.items() if first <= int(name[6:]) < stop]
    return np.mean(rows, axis=0) if rows else np.empty(0)


def _difference(a: FloatArray, b: FloatArray) -> FloatArray:
    """a - b; empty where a group has no layer."""
    return a - b if len(a) and len(b) else np.empty(0)


def _first_reason(tests: Mapping[str, Mapping[str, Any] | None]) -> str:
    reasons = [test["reason"] for test in tests.values() if test and test.get("reason")]
    return reasons[0] if reasons else "the step that measures it gave no result"


def _undecided(
    claim: str, statistic: str, rule: str, bounds: str, unit: str, reason: str, n: int = 0
) -> Claim:
    return Claim(claim, statistic, rule, None, None, None, bounds, n, unit, TOO_LITTLE, reason)
