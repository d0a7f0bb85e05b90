"""The rules by which numbers become a finding with its verdict.

A verdict is "above chance" where the rule holds (`findings.judged` makes "supported" of it, beside
untrained twins and the other claims of a run), "not supported" where it does not, and "too little
data" where the numbers that the rule needs are undefined or too few, with the reason.

Rules, each with a rate of at most 5 % false where nothing ties the two sides (`exceeds_zero`: see
there):

- `above_null`: a statistic lies above its null in the mean over the places where it was measured,
  in most of them, and beyond the other side in none.
- `share_of_hits`: a condition that was checked place by place holds in most of them.
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

from token_statistics.description import FloatArray, unit_columns
from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    Finding,
    Interval,
    undecided,
)
from token_statistics.intervals import mean_interval, positive_mean_p
from token_statistics.joined_places import TAIL, MeanOfPlaces, mean_of_places, one_sided_p
from token_statistics.time_shift_nulls import NullTest, against_null

MIN_SAMPLES = 8
"""Fewer samples that are no texts than this, and no difference is claimed."""

MIN_TEXTS = 12
"""Fewer independent texts than this, and nothing is claimed of what texts have in common: the
bootstrap's intervals then hold 91 % and more, and a sign-flip test has room below any level."""

OF_TEXTS = ("texts", "documents", "groups of documents")
"""Units that are texts, under whatever name."""

ALPHA = 0.05

MAX_DETAILS = 32
"""More places than this are not listed one by one: they stand where the finding was read."""

MAX_NAMED = 4
"""More places than this that contradict a claim are counted, not named."""

MIN_DEPTH = 5
"""Fewer layers than this, and no trend over layers is claimed: by chance alone 4 of them are in
order once in 24 times."""

LAYER_GROUPS = {"early": (0, 3), "middle": (3, 9), "late": (9, 13)}
"""Layers from the first number up to, not including, the second."""

_NUM_PERMUTATIONS = 999


def above_null(
    claim: str,
    statistic: str,
    tests: Mapping[str, Mapping[str, Any] | None],
    path: str,
    unit: str = "layers",
    *,
    together: Mapping[str, Any] | None = None,
) -> Finding:
    """Whether a statistic lies above its null: in the mean over the places where it was measured,
    in most of them, and in none beyond the other side.

    ``tests``: by layer or pair of layers, ``value``, ``null_low`` and ``null_high``, or None.
    Value, null and p: those of the mean over the places (`joined_places`), or where draws of it
    were made with the places moved together, those of that test, ``together``. Supported where the
    mean is above its null, the value above null_high in more than half of the places and in more
    than chance gives (2.5 % each, binomial, the places taken as independent), and below null_low in
    no more than the 2.5 % that chance gives: in none of fewer than 40. A claim that these alone
    refuse names them.
    """
    defined = {
        name: test
        for name, test in tests.items()
        if test and test.get("value") is not None and test.get("null_high") is not None
    }
    n = len(defined)
    allowed = int(TAIL * n)
    rule = (
        f"above its null in the mean, in more than half of the {unit}, and in more than chance "
        f"gives; and below it in {f'at most {allowed}' if allowed else 'none'}"
    )
    if not defined:
        return undecided(claim, statistic, unit, first_reason(tests.values()), path, rule=rule)
    shown: dict[str, dict[str, Any]] = {
        name: {key: test.get(key) for key in ("value", "null_low", "null_high")}
        for name, test in defined.items()
    }
    mean = _jointly(together) if together else mean_of_places(defined)
    hits = [test["value"] > test["null_high"] for test in shown.values()]
    below = [name for name, test in shown.items() if test["value"] < test["null_low"]]
    above = mean.value > mean.null_high and _mostly(hits, TAIL)
    return _decided(
        above and len(below) <= allowed, claim, statistic, mean.value, n, unit, path, rule,
        null=(mean.null_low, mean.null_high), details=shown if n <= MAX_DETAILS else {},
        hits=sum(hits), chance_p=mean.p_value, reason=_against(below, n, unit) if above else None,
        scale="correlation" if abs(mean.value) <= 1 else "linear",
        scale_n=max(1, min(test.get("n") or 1 for test in defined.values())),
    )  # fmt: skip


def _jointly(test: Mapping[str, Any]) -> MeanOfPlaces:
    """The mean over places with the null of its own draws."""
    value, low, high = (float(test[key]) for key in ("value", "null_low", "null_high"))
    return MeanOfPlaces(value, low, high, one_sided_p({**test, "num_draws": 0}))


def _against(below: Sequence[str], n: int, unit: str) -> str | None:
    """Which places lie beyond the other side of their null; None for none."""
    if not below:
        return None
    if len(below) <= MAX_NAMED:
        return f"below its null in {', '.join(name.replace('_', ' ') for name in below)}"
    return f"below its null in {len(below)} of {n} {unit}"


def _counted_p(test: NullTest) -> float:
    """`one_sided_p` of permutations, which are counted to the end: nothing lies beyond them."""
    return one_sided_p({**test.to_dict(), "num_draws": 0})


def share_of_hits(
    claim: str,
    statistic: str,
    hits: Sequence[bool],
    path: str,
    *,
    rule: str,
    unit: str,
    reason: str,
    chance: float = TAIL,
    details: dict[str, Any] | None = None,
) -> Finding:
    """Whether a condition holds in more than half of the places, and in more than by chance.

    Value: share of the places. ``chance``: probability that it holds in one place where there is
    nothing; null: 0 to the 97.5 % quantile of the share then, the places taken as independent, as
    they are for the p. ``reason``: why there are no places, should there be none.
    """
    n = len(hits)
    if n == 0:
        return undecided(claim, statistic, unit, reason, path, rule=rule)
    return _decided(
        _mostly(hits, chance), claim, statistic, sum(hits) / n, n, unit, path, rule,
        null=(0.0, _largest_share(n, chance)), details=details, hits=sum(hits),
        chance_p=float(stats.binom.sf(sum(hits) - 1, n, chance)), scale="share", scale_n=n,
    )  # fmt: skip


def _mostly(hits: Sequence[bool], chance: float) -> bool:
    return sum(hits) / len(hits) > max(_largest_share(len(hits), chance), 0.5)


def _largest_share(n: int, chance: float) -> float:
    """97.5 % quantile of the share of n independent places in which chance alone is a hit."""
    return float(stats.binom.ppf(1 - TAIL, n, chance)) / n


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
        null=null, chance_p=one_sided_p(test),
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
    at random within each sample. Too little data: fewer than 2 layers or samples, fewer than
    MIN_TEXTS texts, or a null that reaches the largest W there is.
    """
    rule = "W above its null"
    matrix = np.array(list(values.values()), dtype=float).T if values else np.empty((0, 0))
    n, k = matrix.shape if matrix.ndim == 2 else (0, 0)
    if n < 2 or k < 2:
        reason = f"{n} {unit} in {k} layers; ranking needs 2 of each"
        return undecided(claim, statistic, unit, reason, path, rule=rule, n=n)
    if few := too_few_texts(n, unit):
        return undecided(claim, statistic, unit, few, path, rule=rule, n=n)
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
        details=details, chance_p=_counted_p(test), scale="share",
        scale_n=n * (k - 1),
    )  # fmt: skip


def too_few_texts(n: int, unit: str) -> str | None:
    """Why a claim over so many samples is not tried, where they are texts; None where it is."""
    if unit not in OF_TEXTS or n >= MIN_TEXTS:
        return None
    return f"{n} independent {unit}; a claim over texts needs {MIN_TEXTS}"


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
    p = None if finding.value is None else _counted_p(test)
    return replace(finding, details=details, scale="correlation", scale_n=k, chance_p=p)


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
    return _decided(
        hits == len(places), claim, statistic, largest, len(places), unit, path, rule, hits=hits,
        learned=False,
    )  # fmt: skip


def exceeds_zero(
    claim: str,
    statistic: str,
    differences: Mapping[str, FloatArray],
    path: str,
    unit: str = "positions",
    seed: int = 0,
) -> Finding:
    """Whether the mean of every one of the differences (samples,) is above 0.

    Value: the smallest mean difference, with its 95 % interval over samples (`intervals`). The
    samples are taken as independent: pass one a text, for what is read off the same text is not.
    Supported where every interval lies above 0 and, as a second test, the signs do (p <= 0.05 by
    sign flips); p: the largest of both over the differences. False for normal differences in 2 to
    3 %, for those with a long left tail in 4 to 7 % (mirrored exponential) or 7 to 11 % (mirrored
    lognormal, from 12 and 8 samples). Too little data: fewer than MIN_SAMPLES samples, or of
    OF_TEXTS fewer than MIN_TEXTS.
    """
    rule = "the 95 % interval lies above 0, and the signs do at 5 %" + (
        ", for each of the differences" if len(differences) > 1 else ""
    )
    found = min((len(values) for values in differences.values()), default=0)
    needed = MIN_TEXTS if unit in OF_TEXTS else MIN_SAMPLES
    if found < needed:
        what = f"independent {unit}" if unit == "texts" else unit
        reason = f"{found} {what} with both sides of every difference; it needs {needed}"
        return undecided(claim, statistic, unit, reason, path, rule=rule, n=found)
    details = {name: _above_zero(values, seed) for name, values in differences.items()}
    least = min(details.values(), key=lambda entry: entry["value"])
    low, high = least["low"], least["high"]
    return _decided(
        all((entry["low"] or 0) > 0 and entry["p_value"] <= ALPHA for entry in details.values()),
        claim, statistic, least["value"], found, unit, path, rule,
        interval=None if low is None or high is None else (low, high), details=details,
        chance_p=max(entry["p_value"] for entry in details.values()),
    )  # fmt: skip


def _above_zero(values: FloatArray, seed: int) -> dict[str, Any]:
    """Mean, interval and one-sided p of one difference (samples,)."""
    interval = mean_interval(values, seed=seed)._asdict()
    return {**interval, "p_value": positive_mean_p(values, seed=seed)}


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


ONE_TEXT = (
    "one independent text: what its layers share cannot be told apart from what position in a text "
    "brings about; give 2 or more that are not of one origin"
)


def apart_from_position(pair: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A pair of layers' null test by name; undefined where its texts are of one group.

    Layers that read other passages go together above their null where both drift with position
    alike. Only a smooth course can be taken out of one text, which leaves part of that.
    """
    if pair.get("num_groups", 2) < 2:
        return {"value": None, "reason": ONE_TEXT}
    return pair[name]


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
    learned: bool = True,
    chance_p: float | None = None,
    reason: str | None = None,
    scale: str = "linear",
    scale_n: int = 1,
) -> Finding:
    verdict = (ABOVE_CHANCE if learned else SUPPORTED) if holds else NOT_SUPPORTED
    return Finding(
        claim, statistic, value, interval, null, n, unit, verdict, None if holds else reason, path,
        rule, details or {}, hits, learned, scale, scale_n, chance_p,
    )  # fmt: skip
