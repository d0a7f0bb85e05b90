"""A quantity of the overview beside its null: the test as results hold it, and what texts weigh.

Related texts weigh as much as one. The statistics of all layers are tested together, and the bounds
of the null are those of all layers, so that what lies above them is what has a small p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from suite_plumbing.result_files import finite_or_none
from token_statistics.description import FloatArray
from token_statistics.intervals import ratio_interval
from token_statistics.several_tests import largest_of_all_bounds, largest_of_all_p


class Sample(NamedTuple):
    """What a test rests on."""

    n: int
    unit: str
    num_texts: int
    """independent ones: related texts are one"""


def all_beside_nulls(
    values: FloatArray,
    draws: FloatArray,
    sample: Sample,
    intervals: Sequence[list[float] | None] | None = None,
) -> list[dict[str, Any]]:
    """Statistics (m,) beside their null (draws, m): p, and what chance gives, over all of them."""
    p, bounds = largest_of_all_p(values, draws), largest_of_all_bounds(values, draws)
    return [
        beside_null(values[i], draws[:, i], p[i], (bounds[0][i], bounds[1][i]), sample,
                None if intervals is None else intervals[i])
        for i in range(len(values))
    ]  # fmt: skip


def beside_null(
    value: float,
    draws: FloatArray,
    p: float,
    bounds: tuple[float, float],
    sample: Sample,
    interval: list[float] | None = None,
) -> dict[str, Any]:
    """A statistic beside its null: where 5 % of the draws of all that were tried lie to either
    side, and p among all of them, so that the two agree.

    None, with the reason, where it or a draw is a ratio to 0.
    """
    if not (math.isfinite(value) and np.isfinite(draws).all()):
        return untested("the layer gives nothing to compare with", sample)
    # Draws that are all the same have no p.
    low, high = bounds if np.isfinite(bounds).all() else (draws.min(), draws.max())
    return {
        "value": finite_or_none(value), "null_mean": float(draws.mean()),
        "null_low": float(low), "null_high": float(high), "p_value": finite_or_none(p),
        **sample._asdict(), "num_draws": len(draws), "interval": interval,
        "reason": None,
    }  # fmt: skip


def untested(reason: str, sample: Sample) -> dict[str, Any]:
    """What stands in a test's place, and why."""
    names = ("value", "null_mean", "null_low", "null_high", "p_value", "interval")
    return {**dict.fromkeys(names), **sample._asdict(), "num_draws": 0, "reason": reason}


def one_a_group(values: Sequence[Any] | FloatArray, groups: Sequence[int]) -> FloatArray:
    """(groups, ...) values of each text, alike in shape, as means over the texts of each group.

    Infinite stays infinite, unlike in `group_means`.
    """
    array, numbers = np.asarray(values, dtype=np.float64), np.asarray(groups)
    return np.array([array[numbers == one].mean(axis=0) for one in dict.fromkeys(groups)])


def ratio_over_texts(sums: FloatArray, *, positive: bool = False) -> list[float] | None:
    """95 % interval, over groups of related texts (groups, 2), of the ratio of the pooled sums that
    is shown; None for fewer than `intervals.MIN_VALUES` of them."""
    found = ratio_interval(sums[:, 0], sums[:, 1], positive=positive)
    return None if found.low is None or found.high is None else [found.low, found.high]
