"""Findings: a claim, what was measured for it, what that is compared with, and the verdict.

A finding is made from numbers by one of the rules here, never written down: its verdict is
"supported" where the rule holds, "not supported" where it does not, and "too little data" where
the numbers that the rule needs are undefined, with the reason. `sentence` is the one place where a
finding becomes text. Nothing here knows what any model should show.

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
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from analysis_utils import FloatArray, bootstrap_interval, unit_columns
from time_shift_nulls import against_null

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, TOO_LITTLE)

MIN_SAMPLES = 8
"""Fewer samples than this, and no difference is claimed."""
MAX_DETAILS = 32
"""More places than this are not listed one by one: they stand where the finding was read."""
MIN_DEPTH = 5
"""Fewer layers than this, and no trend over layers is claimed: by chance alone 4 of them are in
order once in 24 times."""
LAYER_GROUPS = {"early": (0, 3), "middle": (3, 9), "late": (9, 13)}
"""Layers from the first number up to, not including, the second."""
SPARSE_SHARE = 0.1
"""Fewer significant pairs of channels than this share count as few."""

Interval = tuple[float, float]

_PAIRS = ("interval", "null", "twins")
_OPENINGS = {SUPPORTED: "Found", NOT_SUPPORTED: "Not found", TOO_LITTLE: "Undecided"}
_TAIL = 0.025
_TWIN_LEVEL = 0.995
_NUM_PERMUTATIONS = 999


@dataclass(frozen=True)
class Finding:
    """A claim and what the data say to it.

    Raises ValueError for a verdict that is none of VERDICTS, and where verdict, value and reason
    do not go together: without a value there is a reason and "too little data", with one there is
    another verdict.
    """

    claim: str
    statistic: str
    """what was measured, with its unit"""
    value: float | None
    """None with "too little data" only"""
    interval: Interval | None
    """95 % interval of the value; None where the rule uses a null"""
    null: Interval | None
    """central 95 % interval of the value where nothing ties the two sides"""
    n: int
    """samples behind the value"""
    unit: str
    """what they are: layers, pairs of layers, positions, texts, tokens"""
    verdict: str
    """one of VERDICTS"""
    reason: str | None
    """why there is too little data; None otherwise"""
    path: str
    """where in the results it was read; * stands for every layer, text or pair"""
    rule: str = ""
    """when the verdict is "supported" """
    details: dict[str, Any] = field(default_factory=dict)
    """by layer or group: what the value was made of"""
    hits: int | None = None
    """of the n places, those where the condition of the rule holds; None for rules without one"""
    learned: bool = True
    """False for what training cannot change, such as a shape: twins say nothing to it"""
    twins: Interval | None = None
    """smallest and largest value of the same statistic in untrained twins; None without any"""
    num_twins: int = 0
    """untrained twins whose value is defined"""
    twin_bound: float | None = None
    """what a supported value exceeds: see `beside`"""
    twins_supported: int = 0
    """of them, those in which the rule holds: there the claim needs no training"""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {self.verdict!r}; it must be one of {VERDICTS}")
        open_ = self.verdict == TOO_LITTLE
        if (self.value is None) != open_ or (self.reason is not None) != open_:
            raise ValueError(
                f"verdict is {self.verdict!r} with value {self.value} and reason {self.reason!r}; "
                f"a reason and no value go with {TOO_LITTLE!r}, a value alone with the others"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, strict JSON: intervals as lists."""
        pairs = {name: getattr(self, name) for name in _PAIRS}
        lists = {name: None if pair is None else list(pair) for name, pair in pairs.items()}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """The finding that `to_dict` wrote; raises TypeError for missing or unknown fields."""
        pairs = {name: None if row[name] is None else tuple(row[name]) for name in _PAIRS}
        return cls(**{**row, **pairs})

    def row(self) -> dict[str, Any]:
        """The fields as cells of a table: ends of intervals apart, without the details."""
        cells: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name in _PAIRS:
                cells[f"{name}_low"], cells[f"{name}_high"] = value or (None, None)
            elif name != "details":
                cells[name] = value
        return cells

    def beside(self, twins: Sequence[Finding]) -> Finding:
        """This finding with the values of untrained twins, which a supported one has to exceed.

        Among m twins and a model that is none the better for its training, each is the largest
        with probability 1 / (m + 1): too often for a list of claims and a few twins. So from two
        twins on the value has to exceed their prediction bound too, which another twin exceeds with
        probability 0.5 % if their values are normal: mean + t s sqrt(1 + 1/m), s their standard
        deviation and t the 99.5 % quantile of Student's distribution with m - 1 degrees of freedom.
        Raises ValueError for a twin's finding of another claim.
        """
        if other := {twin.claim for twin in twins} - {self.claim}:
            raise ValueError(f"the twins' claims are {sorted(other)}; this one is {self.claim!r}")
        values = [twin.value for twin in twins if twin.value is not None]
        if not values:
            return self
        bound = _twin_bound(values)
        holds = self.verdict == SUPPORTED and self.value is not None and self.value > bound
        return replace(
            self,
            verdict=self.verdict if holds or self.verdict == TOO_LITTLE else NOT_SUPPORTED,
            rule=f"{self.rule}; and above what untrained twins let expect of another one",
            twins=(min(values), max(values)),
            twin_bound=bound,
            num_twins=len(values),
            twins_supported=sum(twin.verdict == SUPPORTED for twin in twins),
        )


def _twin_bound(values: Sequence[float]) -> float:
    """What the value of another twin exceeds 1 time in 200, and what none of these does."""
    m = len(values)
    if m < 2:
        return max(values)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / m)
    return max(*values, float(np.mean(values)) + float(stats.t.ppf(_TWIN_LEVEL, m - 1)) * spread)


def sentence(finding: Finding) -> str:
    """The finding in words: opening by its verdict, claim, statistic, value and comparisons."""
    opening = f"{_OPENINGS[finding.verdict]}: {finding.claim}."
    if finding.value is None:
        return f"{opening} {_capital(finding.reason or '')}."
    return (
        f"{opening} {_capital(finding.statistic)}: {number(finding.value)} ({compared(finding)})."
    )


def caveat(findings: Iterable[Finding]) -> str:
    """What verdicts leave open: supported claims not tried on untrained models; "" for none."""
    open_ = [f for f in findings if f.verdict == SUPPORTED and f.learned and f.num_twins == 0]
    if not open_:
        return ""
    return (
        f"Claims supported without a look at untrained models: {len(open_)}. They exceed chance on "
        "these texts, but any model of this shape may show the same; --twins 19 tries that."
    )


def compared(finding: Finding) -> str:
    """What stands in brackets after a value: interval, null, twin, samples."""
    parts = [
        f"{name} {number(pair[0])} to {number(pair[1])}"
        for name, pair in (("interval", finding.interval), ("null", finding.null))
        if pair is not None
    ]
    if finding.twins is not None:
        low, high = map(number, finding.twins)
        beyond = "" if finding.twin_bound is None else f", bound {number(finding.twin_bound)}"
        parts.append(f"{finding.num_twins} untrained: {low} to {high}{beyond}")
    if finding.hits is not None:
        parts.append(f"in {finding.hits} of {finding.n} {finding.unit}")
    else:
        parts.append(f"n = {finding.n} {finding.unit}")
    return "; ".join(parts)


def number(value: float | int | None) -> str:
    """A number as it stands in a text: three significant digits, whole numbers whole."""
    if value is None:
        return "undefined"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def undecided(
    claim: str, statistic: str, unit: str, reason: str, path: str, *, rule: str = "", n: int = 0
) -> Finding:
    """A finding that the data do not allow, with the reason."""
    return Finding(
        claim, statistic, None, None, None, n, unit, TOO_LITTLE, reason, path, rule
    )  # fmt: skip


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


def read(results: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What stands at a path of nested results, by the keys that its wildcards stand for.

    ``path``: keys with dots between them; * is every key of a dict. {"text_0.layer_3": value} for
    two wildcards, {"": value} for none. What is not there is left out: a step that failed has no
    such keys.
    """
    found: list[tuple[tuple[str, ...], Any]] = [((), results)]
    for key in path.split("."):
        nested = [(names, part) for names, part in found if isinstance(part, Mapping)]
        if key == "*":
            found = [((*names, k), v) for names, part in nested for k, v in part.items()]
        else:
            found = [(names, part[key]) for names, part in nested if key in part]
    return {".".join(names): value for names, value in found}


def group_mean(values: Mapping[str, Sequence[float]], first: int, stop: int) -> FloatArray:
    """(samples,) mean over the layers from first up to stop of values by "layer_i"; or empty."""
    rows = [row for name, row in values.items() if first <= int(name[6:]) < stop]
    return np.mean(rows, axis=0) if rows else np.empty(0)


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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
