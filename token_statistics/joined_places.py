"""A statistic measured in several places, joined: its mean over them, its null, and its p.

A place is a layer, a pair of layers, or a layer of one text, each with a null of its own. What is
said of all of them rests on one number, the mean over the places, and on the null of that number:
how wide it is depends on what the places share. Places of one text ("text_0.layer_3"), and layers
read off the same texts ("layer_3"), are taken to rise and fall together, which makes the null of
their mean the widest that it can be: as wide as theirs are on average (the standard deviation of a
mean is at most the mean of the standard deviations). Texts, and pairs of layers ("layer_0_to_1",
which are independent of each other where layers are), are taken as independent, so that their
widths add up in squares. Texts have to be independent: pass one place for a group of related ones
(`text_groups.by_group`).

References:
  [1] Rueger 1978, Das maximale Signifikanzniveau des Tests "Lehne H0 ab, wenn k unter n gegebenen
      Tests zur Ablehnung fuehren"; Vovk & Wang 2020, Combining p-values via averaging, section 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

P_OF_GROUP = "one_sided_p"
"""Key of the test of several related texts: its one-sided p (`text_groups.by_group`)."""

TAIL = 0.025
"""Probability of either side of a null's central 95 % interval."""

_SMALLEST_P = 1e-6

_TAIL_RATE = 2.0  # of a Gumbel tail in half widths of its central 95 %: 2.5

_TAIL_DEVIATIONS = 1.96  # half width of that interval, in standard deviations of a normal null


class MeanOfPlaces(NamedTuple):
    """The mean of a statistic over places, beside its null."""

    value: float
    null_low: float
    null_high: float
    """central 95 % interval of the mean where nothing ties the two sides, or wider"""
    p_value: float
    """one-sided: of a mean as large"""


def mean_of_places(tests: Mapping[str, Mapping[str, Any]]) -> MeanOfPlaces:
    """The mean of one or more places' values, each with its ``null_low`` and ``null_high``.

    That of one place is its own test. p: normal within the null, and beyond it the tail of
    `one_sided_p`, so that it is at most 2.5 % exactly where the mean lies above ``null_high``; not
    below 1e-6. False in at most 2.5 % for places that share all, or nothing, each with a null of 39
    draws (`tests/token_statistics/test_joined_places.py`).
    """
    ends = [[test[key] for key in ("value", "null_low", "null_high")] for test in tests.values()]
    value, low, high = np.mean(np.array(ends, dtype=float), axis=0).tolist()
    if len(tests) == 1:
        return MeanOfPlaces(value, low, high, one_sided_p(next(iter(tests.values()))))
    widths: dict[str, float] = {}
    for name, (_, below, above) in zip(tests, ends, strict=True):
        shared = _dependent_on(name)
        widths[shared] = widths.get(shared, 0.0) + (above - below) / 2
    half, middle = math.hypot(*widths.values()) / len(tests), (low + high) / 2
    low, high = middle - half, middle + half
    if value > high:
        p = _beyond(value, high, half)
    else:
        p = float(stats.norm.sf(_TAIL_DEVIATIONS * (value - middle) / half)) if half else 1.0
    return MeanOfPlaces(value, low, high, p)


def one_sided_p(test: Mapping[str, Any]) -> float:
    """Probability under the null of a value as large: from the two-sided p of a null's draws.

    Beyond all draws, which say 1 / (1 + draws) and no less, it falls as the tail of a Gumbel
    distribution does, that of the largest of many, somewhat slower and not below 1e-6: simulated
    with 39 draws, a p of 0.001 comes in 0.03 % of cases for a normal null, in 0.1 % for a Gumbel
    one. Where a test has an interval alone, what that says: 2.5 % above it and a half elsewhere. Of
    several related texts, what the test has as their p.
    """
    two_sided, value = test.get("p_value"), test["value"]
    if P_OF_GROUP in test:
        return test[P_OF_GROUP]
    if two_sided is None:
        return TAIL if value > test["null_high"] else 0.5
    low, high = test.get("null_low") or 0.0, test["null_high"]
    if value <= (low + high) / 2:
        return 1 - two_sided / 2
    draws, width = test.get("num_draws", 0), (high - low) / 2
    if draws and two_sided <= 2.0001 / (1 + draws) and width > 0:
        return min(two_sided / 2, _beyond(value, high, width))
    return two_sided / 2


def _beyond(value: float, high: float, width: float) -> float:
    """p of a value above the 97.5 % quantile of a null of this half width."""
    if width <= 0:
        return TAIL
    return max(TAIL * math.exp(-_TAIL_RATE * (value - high) / width), _SMALLEST_P)


def _dependent_on(place: str) -> str:
    """What the places that depend on this one have in common in their names."""
    first = place.split(".")[0]
    return first if first.startswith("text_") or "_to_" in first else ""


def most_of(ordered: Sequence[float]) -> float:
    """p that most of k places show an effect, from their p in ascending order: k / j times the j-th
    smallest, j the first number above k / 2, whatever the dependence of the places [1]."""
    k = len(ordered)
    j = k // 2 + 1
    return min(1.0, k / j * ordered[j - 1])
