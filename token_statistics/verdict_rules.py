"""The rules by which numbers become a finding with its verdict.

A verdict is "supported" where the rule holds, "not supported" where it does not, and "too little
data" where the numbers that the rule needs are undefined, with the reason.

Rules, each with a rate of at most 5 % false "supported" where nothing ties the two sides:

- `above_null`: a statistic lies above its null in most of the places where it was measured.
- `share_of_hits`: the same for conditions that were checked one by one.
- `exceeds_null`: one statistic lies above its null.
- `differs_by_layer`: layers rank alike in every sample.
- `rises_with_depth`: a quantity rises from layer to layer.
- `exceeds_zero`: differences are above 0 in the mean.
- `holds_everywhere`: a condition that leaves nothing to chance, such as a shape.

References:
  [1] Kendall & Babington Smith 1939, The problem of m rankings
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from token_statistics.description import FloatArray, bootstrap_interval, unit_columns
from token_statistics.findings import NOT_SUPPORTED, SUPPORTED, Finding, Interval, undecided
from token_statistics.time_shift_nulls import against_null

MIN_SAMPLES = 8
"""Fewer samples than this, and no difference is claimed."""

MAX_DETAILS = 32
"""More places than this are not listed one by one: they stand where the finding was read."""

MIN_DEPTH = 5
"""Fewer layers than this, and no trend over layers is claimed: by chance alone 4 of them are in
order once in 24 times."""

LAYER_GROUPS = {"early": (0, 3), "middle": (3, 9), "late": (9, 13)}
"""Layers from the first number up to, not including, the second."""

_TAIL = 0.025

_NUM_PERMUTATIONS = 999


def above_null(
    claim: str,
    statistic: str,
    tests: Mapping[str, Mapping[str, Any] | None],
    path: str,
    unit: str = "layers",
) -> Finding:
    """Whether a statistic lies above its null in most of the places where it was measured.

    ``tests``: by layer or pair of layers, ``value``, ``null_low`` and ``null_high``, or None.
    Value: mean over the places; null: mean of the places' null intervals. Supported where the
    value is above null_high in more than half of the places, and in more than chance gives (2.5 %
    each, binomial, the places taken as independent).
    """
    rule = f"above its null in more than half of the {unit}, and in more than chance gives"
    shown: dict[str, dict[str, Any]] = {
        name: {key: test.get(key) for key in ("value", "null_low", "null_high")}
        for name, test in tests.items()
        if test and test.get("value") is not None and test.get("null_high") is not None
    }
    if not shown:
        return undecided(claim, statistic, unit, first_reason(tests.values()), path, rule=rule)
    value, low, high = np.mean([list(test.values()) for test in shown.values()], axis=0).tolist()
    hits = [test["value"] > test["null_high"] for test in shown.values()]
    return _decided(
        _mostly(hits, _TAIL), claim, statistic, value, len(hits), unit, path, rule,
        null=(low, high), details=shown if len(shown) <= MAX_DETAILS else {}, hits=sum(hits),
    )  # fmt: skip


def share_of_hits(
    claim: str,
    statistic: str,
    hits: Sequence[bool],
    path: str,
    *,
    rule: str,
    unit: str,
    reason: str,
    chance: float = _TAIL,
    details: dict[str, Any] | None = None,
) -> Finding:
    """Whether a condition holds in more than half of the places, and in more than by chance.

    Value: share of the places. ``chance``: probability that it holds in one place where there is
    nothing; null: 0 to the 97.5 % quantile of the share then, the places taken as independent.
    ``reason``: why there are no places, should there be none.
    """
    n = len(hits)
    if n == 0:
        return undecided(claim, statistic, unit, reason, path, rule=rule)
    return _decided(
        _mostly(hits, chance), claim, statistic, sum(hits) / n, n, unit, path, rule,
        null=(0.0, _largest_share(n, chance)), details=details, hits=sum(hits),
    )  # fmt: skip


def _mostly(hits: Sequence[bool], chance: float) -> bool:
    return sum(hits) / len(hits) > max(_largest_share(len(hits), chance), 0.5)


def _largest_share(n: int, chance: float) -> float:
    """97.5 % quantile of the share of n independent places in which chance alone is a hit."""
    return float(stats.binom.ppf(1 - _TAIL, n, chance)) / n


def exceeds_null(
    claim: str,
    statistic: str,
    test: Mapping[str, Any] | None,
    path: str,
    unit: str = "tokens",
    *,
    reason: str = "the step that measures it gave no result",
) -> Finding:
    """Whether one statistic lies above its null: ``value``, ``null_low``, ``null_high``, ``n``."""
    rule = "above its null"
    if not test or test.get("value") is None or test.get("null_high") is None:
        why = (test or {}).get("reason") or reason
        n = (test or {}).get("n", 0)
        return undecided(claim, statistic, unit, why, path, rule=rule, n=n)
    null = (test["null_low"], test["null_high"])
    return _decided(
        test["value"] > null[1], claim, statistic, test["value"], test["n"], unit, path, rule,
        null=null,
    )  # fmt: skip


def differs_by_layer(
    claim: str,
    statistic: str,
    values: Mapping[str, Sequence[float]],
    path: str,
    unit: str,
    seed: int = 0,
) -> Finding:
    """Whether layers differ in the same way in every sample: Kendall's W [1], in [0, 1].

    ``values``: by layer, one value a sample, samples in the same order. Null: the layers exchanged
    at random within each sample. Too little data: fewer than 2 layers or samples, or a null that
    reaches the largest W there is.
    """
    rule = "W above its null"
    matrix = np.array(list(values.values()), dtype=float).T if values else np.empty((0, 0))
    n, k = matrix.shape if matrix.ndim == 2 else (0, 0)
    if n < 2 or k < 2:
        reason = f"{n} {unit} in {k} layers; ranking needs 2 of each"
        return undecided(claim, statistic, unit, reason, path, rule=rule, n=n)
    ranks = stats.rankdata(matrix, axis=1)
    rng = np.random.default_rng(seed)
    draws = [concordance(rng.permuted(ranks, axis=1)) for _ in range(_NUM_PERMUTATIONS)]
    test = against_null(concordance(ranks), draws, n)
    if test.value is None or test.null_high is None or test.null_high > 1 - 1e-9:
        reason = f"so few {unit} and layers ({n} and {k}) that chance alone reaches W = 1"
        return undecided(claim, statistic, unit, reason, path, rule=rule, n=n)
    details = {name: {"mean": float(np.mean(column))} for name, column in values.items()}
    null = (float(test.null_low or 0.0), test.null_high)
    return _decided(
        test.value > null[1], claim, statistic, test.value, n, unit, path, rule, null=null,
        details=details,
    )  # fmt: skip


def concordance(ranks: FloatArray) -> float:
    """Kendall's W of ranks (n samples, k items), in [0, 1]: 1 where all samples rank alike [1].

    W = 12 S / (n^2 (k^3 - k)), S the sum of squared deviations of the items' rank sums.
    """
    n, k = ranks.shape
    sums = ranks.sum(axis=0)
    return float(12 * np.square(sums - sums.mean()).sum() / (n**2 * (k**3 - k)))


def rises_with_depth(
    claim: str,
    statistic: str,
    values: Mapping[str, Sequence[float]],
    path: str,
    seed: int = 0,
) -> Finding:
    """Whether a quantity rises with the depth of the layer: rank correlation, in [-1, 1].

    ``values``: by layer, from the first to the last, one value a text. Value: mean over texts of
    the Spearman correlation of depth with the quantity; null: layers exchanged at random, in all
    texts alike, for the texts share the weights that order them: n is the number of layers. Too
    little data: fewer than MIN_DEPTH layers, no text, or equal values.
    """
    rule = "above its null"
    matrix = np.array(list(values.values()), dtype=float)
    k = len(matrix)
    if k < MIN_DEPTH or matrix.size == 0:
        reason = f"{k} layers with values; a trend needs {MIN_DEPTH}"
        return undecided(claim, statistic, "layers", reason, path, rule=rule, n=k)
    ranks, constant = unit_columns(stats.rankdata(matrix, axis=0))
    depth = unit_columns(np.arange(k, dtype=float)[:, None])[0][:, 0]
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(depth) @ ranks for _ in range(_NUM_PERMUTATIONS)]
    test = against_null(
        float((depth @ ranks).mean()) if not constant.any() else math.nan, np.mean(draws, axis=1), k
    )
    details = {name: {"mean": float(np.mean(row))} for name, row in values.items()}
    finding = exceeds_null(claim, statistic, test.to_dict(), path, "layers")
    return replace(finding, details=details)


def holds_everywhere(
    claim: str,
    statistic: str,
    places: Mapping[str, tuple[float, bool]],
    path: str,
    unit: str = "layers",
) -> Finding:
    """Whether a condition that leaves nothing to chance holds in every place.

    ``places``: by layer, the value and whether the condition holds. Value: the largest.
    """
    rule = f"in all of the {unit}"
    if not places:
        return undecided(claim, statistic, unit, first_reason(()), path, rule=rule)
    hits = sum(holds for _, holds in places.values())
    largest = max(float(value) for value, _ in places.values())
    finding = _decided(
        hits == len(places), claim, statistic, largest, len(places), unit, path, rule, hits=hits
    )
    return replace(finding, learned=False)


def exceeds_zero(
    claim: str,
    statistic: str,
    differences: Mapping[str, FloatArray],
    path: str,
    unit: str = "positions",
    seed: int = 0,
) -> Finding:
    """Whether the mean of every one of the differences (samples,) is above 0.

    Value: the smallest mean difference, with its 95 % bootstrap interval over samples. Positions
    of one text share its tokens: an interval over them is that of these texts.
    """
    rule = "the 95 % interval lies above 0" + (
        " for each of the differences" if len(differences) > 1 else ""
    )
    found = min((len(values) for values in differences.values()), default=0)
    if found < MIN_SAMPLES:
        reason = f"{found} {unit} with both sides of every difference; it needs {MIN_SAMPLES}"
        return undecided(claim, statistic, unit, reason, path, rule=rule, n=found)
    details = {}
    for name, values in differences.items():
        low, high = bootstrap_interval(values, seed=seed)
        details[name] = {"value": float(values.mean()), "low": low, "high": high}
    least = min(details.values(), key=lambda entry: entry["value"])
    return _decided(
        all(entry["low"] > 0 for entry in details.values()), claim, statistic, least["value"],
        found, unit, path, rule, interval=(least["low"], least["high"]), details=details,
    )  # fmt: skip


def group_mean(values: Mapping[str, Sequence[float]], first: int, stop: int) -> FloatArray:
    """(samples,) mean over the layers from first up to stop of values by "layer_i"; or empty."""
    rows = [row for name, row in values.items() if first <= int(name[6:]) < stop]
    return np.mean(rows, axis=0) if rows else np.empty(0)


def group_names(values: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """By group of LAYER_GROUPS its name with the layers really used: "early layers (0)"."""
    numbers = sorted(int(name[6:]) for name in values)
    used = {
        name: ", ".join(str(i) for i in numbers if first <= i < stop)
        for name, (first, stop) in LAYER_GROUPS.items()
    }
    return {name: f"{name} layers ({layers or 'none'})" for name, layers in used.items()}


def first_reason(tests: Iterable[Mapping[str, Any] | None]) -> str:
    """The first reason that one of the tests gives for being undefined."""
    reasons = [test["reason"] for test in tests if test and test.get("reason")]
    return reasons[0] if reasons else "the step that measures it gave no result"


def _decided(
    holds: bool,
    claim: str,
    statistic: str,
    value: float,
    n: int,
    unit: str,
    path: str,
    rule: str,
    *,
    interval: Interval | None = None,
    null: Interval | None = None,
    details: dict[str, Any] | None = None,
    hits: int | None = None,
) -> Finding:
    verdict = SUPPORTED if holds else NOT_SUPPORTED
    return Finding(
        claim, statistic, value, interval, null, n, unit, verdict, None, path, rule, details or {},
        hits,
    )  # fmt: skip
