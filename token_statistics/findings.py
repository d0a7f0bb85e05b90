"""Findings: a claim, what was measured for it, what that is compared with, and the verdict.

A finding is made from numbers by one of the rules in `verdict_rules`, never written down.
`sentence` is the one place where a finding becomes text. Nothing here knows what any model should
show.

Verdicts on a claim about what a model learned:

- "too little data": the numbers that the rule needs are undefined, or too few to say anything.
- "not supported": the rule does not hold; or untrained twins show as much; or the claim does not
  stand beside the others of its run.
- "above chance, untrained not tried": the rule holds, and no untrained model was looked at.
- "too few twins": the rule holds and the value lies above every twin, but so few of them give no
  bound that the statistic can exceed.
- "supported": the rule holds, and the value exceeds the bounds of twins of both kinds (see
  `twin_bounds`): *fresh weights*, what architecture, initialisation and texts give, and *permuted
  weights*, what the scale of the trained weights gives without their structure.

A claim that training cannot change, such as one about a shape, is supported by its rule alone.

Multiplicity. Each claim about training has a p: the largest of that of its null and, with twins,
of those of each kind's prediction interval. Over the claims of one run they are adjusted by
Benjamini & Hochberg, and a claim with an adjusted p above 5 % is not supported. That bounds the
expected share of false claims among the supported ones for claims that are independent or
positively dependent [1]. Claims on the same texts and layers are dependent; that they are so in
this way is assumed, not shown. The p from twins takes their values as normal on the statistic's
scale.

Power. The share of runs in which a model exceeds the bound of one kind of twins (1 in 200), and
reaches the first step of Benjamini & Hochberg over 25 claims (p = 0.002) beside it, by how many
standard deviations of the twins it lies above their mean:

| twins | | 3 | 4 | 6 | 8 | 12 | 80 % from |
|---|---|---|---|---|---|---|---|
| 5 | bound | 17 % | 36 % | 77 % | 96 % | 100 % | 6.3 |
| 5 | p = 0.002 | 7 % | 18 % | 50 % | 80 % | 99 % | 8.1 |
| 19 | bound | 57 % | 97 % | 100 % | 100 % | 100 % | 3.4 |
| 19 | p = 0.002 | 29 % | 86 % | 100 % | 100 % | 100 % | 3.9 |

References:
  [1] Benjamini & Yekutieli 2001, The control of the false discovery rate in multiple testing
      under dependency, theorem 1.2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from suite_plumbing.messages import quoted
from token_statistics.association import FALSE_DISCOVERY_RATE, benjamini_hochberg
from token_statistics.twin_bounds import TWIN_KINDS, BesideTwins, beside_twins_of

SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"

ABOVE_CHANCE, TOO_FEW_TWINS = "above chance, untrained not tried", "too few twins"

VERDICTS = (SUPPORTED, ABOVE_CHANCE, NOT_SUPPORTED, TOO_FEW_TWINS, TOO_LITTLE)

Interval = tuple[float, float]

Twins = Mapping[str, Sequence[Sequence["Finding"]]]
"""By kind of twins, the findings of each twin in the order of the model's."""

_PAIRS = ("interval", "null")

_OPENINGS = {
    SUPPORTED: "Found",
    ABOVE_CHANCE: "Above chance, untrained not tried",
    NOT_SUPPORTED: "Not found",
    TOO_FEW_TWINS: "Undecided",
    TOO_LITTLE: "Undecided",
}

_JUDGED = (
    "; above what untrained twins of each kind let expect of another one; and at a false discovery "
    "rate of 5 % over the claims of the run"
)


@dataclass(frozen=True)
class Finding:
    """A claim and what the data say to it.

    Raises ValueError for a verdict that is none of VERDICTS, and where the fields contradict each
    other: only "too little data" is without a value, it and "too few twins" have a reason, and a
    claim about training is "supported" beside twins of both kinds alone.
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
    """why there is too little data or too few twins, or what a claim whose rule holds is refused
    for; None otherwise"""
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
    scale: str = "linear"
    """in `twin_bounds.SCALES`, on which values of twins are compared"""
    scale_n: int = 1
    """samples that divide the range of a bounded statistic"""
    chance_p: float | None = None
    """one-sided p of the null or of the interval; None without one"""
    twins: tuple[BesideTwins, ...] = ()
    """by kind: the value beside that of untrained twins"""
    p_value: float | None = None
    """the largest of `chance_p` and the twins'"""
    adjusted_p: float | None = None
    """`p_value` by Benjamini & Hochberg over the `num_claims` of the run that have one"""
    num_claims: int = 0

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {quoted(self.verdict)}; it must be one of {VERDICTS}")
        without_reason = self.verdict in (SUPPORTED, ABOVE_CHANCE)
        with_reason = self.verdict in (TOO_LITTLE, TOO_FEW_TWINS)
        if (
            (self.value is None) != (self.verdict == TOO_LITTLE)
            or (with_reason and self.reason is None)
            or (without_reason and self.reason is not None)
        ):
            raise ValueError(
                f"verdict is {quoted(self.verdict)} with value {self.value} and reason "
                f"{quoted(self.reason)}; "
                f"a reason and no value go with {quoted(TOO_LITTLE)}, a value with the others, "
                "and a "
                f"reason with {quoted(TOO_FEW_TWINS)} too"
            )
        exceeded = {twin.kind for twin in self.twins if twin.exceeded}
        if self.verdict == SUPPORTED and self.learned and exceeded != set(TWIN_KINDS):
            raise ValueError(
                f"a claim about training is {quoted(SUPPORTED)} above twins of "
                f"{' and '.join(TWIN_KINDS)}"
                f"; this one is above {sorted(exceeded) or 'none'}"
            )

    @property
    def above_chance(self) -> bool:
        """Whether the rule holds, as far as nothing else refused the claim."""
        return self.verdict in (SUPPORTED, ABOVE_CHANCE, TOO_FEW_TWINS)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, strict JSON: intervals as lists, twins as a list of theirs."""
        pairs = {name: getattr(self, name) for name in _PAIRS}
        lists = {name: None if pair is None else list(pair) for name, pair in pairs.items()}
        return {**asdict(self), **lists, "twins": [twin.to_dict() for twin in self.twins]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """The finding that `to_dict` wrote; raises TypeError for missing or unknown fields."""
        pairs = {name: None if row[name] is None else tuple(row[name]) for name in _PAIRS}
        twins = tuple(BesideTwins.from_dict(twin) for twin in row["twins"])
        return cls(**{**row, **pairs, "twins": twins})

    def row(self) -> dict[str, Any]:
        """The fields as cells of a table: ends of intervals and twins apart, without details."""
        cells: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if name in _PAIRS:
                cells[f"{name}_low"], cells[f"{name}_high"] = value or (None, None)
            elif name == "twins":
                cells |= self._twin_cells()
            elif name != "details":
                cells[name] = value
        return cells

    def _twin_cells(self) -> dict[str, Any]:
        given = {twin.kind: twin.to_dict() for twin in self.twins}
        names = ("n", "low", "high", "bound", "p_value", "exceeded", "num_above_chance")
        return {
            f"{kind.split()[0]}_twins_{name}": given.get(kind, {}).get(name)
            for kind in TWIN_KINDS
            for name in names
        }

    def beside(self, twins: Mapping[str, Sequence[Finding]]) -> Finding:
        """This finding beside the same of untrained twins, by kind: see the module for the verdict.

        A claim that training cannot change, and one of which no twin has a value, stay as they are.
        Raises ValueError for a twin's finding of another claim.
        """
        every = [twin for kind in twins.values() for twin in kind]
        if other := {twin.claim for twin in every} - {self.claim}:
            raise ValueError(
                f"the twins' claims are {sorted(other)}; this one is {quoted(self.claim)}"
            )
        defined = [twin for twin in every if twin.value is not None]
        if not (defined and self.learned):
            return self
        scale = self.scale if {twin.scale for twin in defined} <= {self.scale} else "linear"
        given = [self._beside_kind(kind, found, scale) for kind, found in twins.items()]
        compared = tuple(twin for twin in given if twin is not None)
        p_values = [twin.p_value for twin in compared if twin.p_value is not None]
        own = [] if self.chance_p is None else [self.chance_p]
        verdict, reason = self.verdict, self.reason
        if verdict == ABOVE_CHANCE:
            verdict, reason = _beside_all(compared)
        return replace(
            self,
            verdict=verdict,
            reason=reason,
            twins=compared,
            p_value=max([*own, *p_values], default=None) if self.value is not None else None,
        )

    def _beside_kind(self, kind: str, twins: Sequence[Finding], scale: str) -> BesideTwins | None:
        values = [twin.value for twin in twins if twin.value is not None]
        if not values:
            return None
        above = sum(twin.above_chance for twin in twins)
        return beside_twins_of(
            kind, self.value, values, scale=scale, n=self.scale_n, num_above_chance=above
        )


def _beside_all(compared: Sequence[BesideTwins]) -> tuple[str, str | None]:
    """Verdict and reason of a claim whose rule holds, beside twins."""
    if below := [twin.kind for twin in compared if not twin.exceeded]:
        return NOT_SUPPORTED, f"not above twins of {' or of '.join(below)}"
    few = [_why_too_few(twin) for twin in compared if twin.bound is None]
    missing = set(TWIN_KINDS) - {twin.kind for twin in compared}
    few += [f"it is undefined in twins of {kind}" for kind in TWIN_KINDS if kind in missing]
    return (TOO_FEW_TWINS, "; ".join(few)) if few else (SUPPORTED, None)


def _why_too_few(twin: BesideTwins) -> str:
    if twin.n < 2:
        return f"1 twin of {twin.kind}; a bound needs 2"
    return f"the bound of {twin.n} twins of {twin.kind} lies beyond what the statistic can be"


def judged(findings: Sequence[Finding], twins: Twins | None = None) -> list[Finding]:
    """The findings of a run beside those of untrained twins, and beside each other.

    ``twins``: none, and what exceeds chance is said to do that. Claims whose p, adjusted over all
    claims of the run that have one, exceeds 5 % are not supported: see the module.
    """
    return over_run(
        [
            finding.beside({kind: [twin[i] for twin in of] for kind, of in (twins or {}).items()})
            for i, finding in enumerate(findings)
        ]
    )


def over_run(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a run with their p adjusted over all that have one: those of `judged`."""
    p_values = [_p_value(finding) for finding in findings]
    given = np.array([np.nan if p is None else p for p in p_values])
    adjusted = benjamini_hochberg(given).adjusted if given.size else given
    count = int(np.isfinite(given).sum())
    return [
        finding if p is None else _beside_the_others(finding, p, float(own), count)
        for finding, p, own in zip(findings, p_values, adjusted, strict=True)
    ]


def _p_value(finding: Finding) -> float | None:
    if not finding.learned or finding.value is None:
        return None
    return finding.p_value if finding.twins else finding.chance_p


def _beside_the_others(finding: Finding, p: float, adjusted: float, count: int) -> Finding:
    known = replace(finding, p_value=p, adjusted_p=adjusted, num_claims=count)
    known = replace(known, rule=f"{finding.rule}{_JUDGED}")
    if adjusted <= FALSE_DISCOVERY_RATE or known.verdict not in (SUPPORTED, ABOVE_CHANCE):
        return known
    reason = f"p {number(p)} is {number(adjusted)} over the {count} claims of the run"
    return replace(known, verdict=NOT_SUPPORTED, reason=reason)


def sentence(finding: Finding) -> str:
    """The finding in words: opening by its verdict, claim, statistic, value and comparisons."""
    opening = f"{_OPENINGS[finding.verdict]}: {finding.claim}."
    if finding.value is None:
        return f"{opening} {_capital(finding.reason or '')}."
    return (
        f"{opening} {_capital(finding.statistic)}: {number(finding.value)} ({compared(finding)})."
    )


def caveat(findings: Iterable[Finding]) -> str:
    """What verdicts leave open: claims not tried on untrained models; "" for none."""
    open_ = [finding for finding in findings if finding.verdict == ABOVE_CHANCE]
    if not open_:
        return ""
    return (
        f"Claims above chance without a look at untrained models: {len(open_)}. They exceed chance "
        "on these texts, but any model of this shape may show the same; --twins 19 tries that."
    )


def compared(finding: Finding) -> str:
    """What stands in brackets after a value: interval, null, twins, p over the run, samples, and
    what the claim is refused for where its rule holds."""
    parts = [
        f"{name} {number(pair[0])} to {number(pair[1])}"
        for name, pair in (("interval", finding.interval), ("null", finding.null))
        if pair is not None
    ]
    parts += [beside_kind(twin) for twin in finding.twins]
    if finding.adjusted_p is not None:
        parts.append(f"p {number(finding.adjusted_p)} over {finding.num_claims} claims")
    if finding.hits is not None:
        parts.append(f"in {finding.hits} of {finding.n} {finding.unit}")
    else:
        parts.append(f"n = {finding.n} {finding.unit}")
    if finding.value is not None and finding.reason is not None:
        parts.append(finding.reason)
    return "; ".join(parts)


def beside_kind(twin: BesideTwins) -> str:
    """One kind of twins in words: how many, their values, the bound."""
    bound = "no bound" if twin.bound is None else f"bound {number(twin.bound)}"
    return f"{twin.n} of {twin.kind}: {number(twin.low)} to {number(twin.high)}, {bound}"


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


def twins_section(
    findings: Sequence[Finding], twins: Mapping[str, Mapping[int, Sequence[Finding]]]
) -> dict[str, Any]:
    """By kind: seeds of the twins, and the value of every finding in each; ``twins`` by seed."""
    return {
        kind: {
            "seeds": list(by_seed),
            "values": {
                finding.claim: [twin[i].value for twin in by_seed.values()]
                for i, finding in enumerate(findings)
            },
        }
        for kind, by_seed in twins.items()
    }
