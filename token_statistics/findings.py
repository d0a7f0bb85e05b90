"""Findings: a claim, what was measured for it, what that is compared with, and the verdict.

A finding is made from numbers by one of the rules in `verdict_rules`, never
written down. `sentence` is the one place where a finding becomes text. Nothing here knows what any
model should show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"

VERDICTS = (SUPPORTED, NOT_SUPPORTED, TOO_LITTLE)

Interval = tuple[float, float]

_PAIRS = ("interval", "null", "twins")

_OPENINGS = {SUPPORTED: "Found", NOT_SUPPORTED: "Not found", TOO_LITTLE: "Undecided"}

_TWIN_LEVEL = 0.995


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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def beside_twins(findings: Sequence[Finding], twins: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Findings beside those of untrained twins, claim by claim: see `Finding.beside`."""
    return [
        finding.beside([twin[i] for twin in twins]) if finding.learned else finding
        for i, finding in enumerate(findings)
    ]


def twins_section(
    findings: Sequence[Finding], twins: Mapping[int, Sequence[Finding]]
) -> dict[str, Any]:
    """Seeds of untrained twins, and the value of every finding in each; ``twins`` by seed."""
    values = {
        finding.claim: [twin[i].value for twin in twins.values()]
        for i, finding in enumerate(findings)
    }
    return {"seeds": list(twins), "values": values}
