"""Effects worth a name: the smallest of each kind that a claim may rest on, with unit and reason.

With enough tokens any difference exceeds its null. A claim needs one that matters as well: these
are the sizes below which it says nothing whatever its p. And a statistic that chance makes larger
in a short text than in a long one is compared by its excess over chance, which does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from token_statistics.findings import NOT_SUPPORTED, TOO_LITTLE, Finding, number


class SmallestEffect(NamedTuple):
    """The smallest effect of one kind that is worth a name."""

    value: float
    unit: str
    reason: str


SMALLEST_EFFECTS = {
    "correlation": SmallestEffect(
        0.1, "correlation",
        "1 % of the variance in common, or of that of the ranks: the least that is called small "
        "(Cohen 1988); beyond chance where chance depends on the number of tokens",
    ),
    "strong correlation": SmallestEffect(
        0.5, "correlation",
        "a quarter of the variance in common: the least that is called large (Cohen 1988)",
    ),
    "kl": SmallestEffect(
        1e-4, "nats",
        "no event's probability changes by more than 0.7 % of 1 (Pinsker's inequality), and no "
        "reader of the predictions would notice; a thousand-millionfold of what rounding gives",
    ),
    "loss": SmallestEffect(1e-3, "nats a token", "0.1 % of the perplexity"),
    "distance": SmallestEffect(1.0, "tokens", "the least distance between two tokens"),
    "share": SmallestEffect(
        0.05, "share", "a twentieth of the whole: less is a detail of the other nineteen"
    ),
    "same": SmallestEffect(
        0.5, "of the list", "half: of a list that shares less, most entries are not the same"
    ),
    "relative": SmallestEffect(
        0.1, "of the mean", "a tenth: layers can be in the same order in every text by less"
    ),
    "change": SmallestEffect(
        0.01, "of the output's norm",
        "1 %: ten thousand times the rounding of float32, and less than a layer adds anyway",
    ),
}  # fmt: skip
"""By kind of quantity; the one table that claims and reports read."""

KL_FLOOR = SMALLEST_EFFECTS["kl"].value
"""Nats; a KL below it is no effect."""


SPARSE_RATIO = 0.1
"""Correlation is sparse where a typical pair of channels has less than this share of the strongest
one's. Normally distributed correlations of a million pairs have a ratio of 0.16: sparse is less
than a bell gives."""


def worth_a_name(finding: Finding, kind: str, effect: float | None = None) -> Finding:
    """The finding, not supported where its effect is below the smallest of its kind.

    ``effect``: the finding's value unless given. The rule says the bound, and the reason, where
    nothing else refuses the claim, that the effect is below it. A finding without a value
    stays as it is.
    """
    least = SMALLEST_EFFECTS[kind]
    size = finding.value if effect is None else effect
    bound = f"{least.value:g} {least.unit}"
    rule = f"{finding.rule}; and at least {bound}"
    if size is None or finding.verdict in (NOT_SUPPORTED, TOO_LITTLE) or size >= least.value:
        return replace(finding, rule=rule)
    shown = "" if effect is None else f"{number(size)} is "
    reason = f"{shown}below {bound}, the least worth a name"
    return replace(finding, verdict=NOT_SUPPORTED, rule=rule, reason=reason)


def beyond_chance(test: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A null test of a magnitude >= 0 as its excess over chance: sqrt(value^2 - null_mean^2).

    A correlation over n tokens is its true value and noise of variance about 1 / n; in mean
    magnitude, and roughly in the largest, the two add in squares, so that this does not grow with
    fewer tokens. Negative squares give 0. The ends of the null go the same way, which keeps what
    lies above it above. None and undefined tests stay what they are.
    """
    if not test or test.get("value") is None or test.get("null_mean") is None:
        return None if test is None else dict(test)
    mean = test["null_mean"]
    ends = ("value", "null_low", "null_high")
    given = {name: test[name] for name in ends if test.get(name) is not None}
    return {**test, **{name: _in_squares(value, mean) for name, value in given.items()}}


class PairShares(NamedTuple):
    """How the correlation of two layers is shared out among their pairs of channels."""

    typical: float
    """mean |r| beyond chance"""
    largest: float
    """largest |r| beyond chance"""
    above: bool
    """whether the largest lies above its null"""

    @property
    def sparse(self) -> bool:
        """Whether the strongest pair is worth a name, and a typical one has little beside it."""
        worth = self.above and self.largest >= SMALLEST_EFFECTS["correlation"].value
        return worth and self.typical < SPARSE_RATIO * self.largest


def pair_shares(pair: Mapping[str, Any]) -> PairShares:
    """Shares of a `CrossLayerCorrelation`'s JSON with ``enough_tokens``.

    The share of significant pairs would grow with the tokens; these do not.
    """
    typical, largest = (beyond_chance(pair[name]) or {} for name in ("mean_abs", "max_abs"))
    above = pair["max_abs"]["value"] > pair["max_abs"]["null_high"]
    return PairShares(float(typical["value"]), float(largest["value"]), above)


def _in_squares(value: float, mean: float) -> float:
    return math.sqrt(max(0.0, value**2 - mean**2))
