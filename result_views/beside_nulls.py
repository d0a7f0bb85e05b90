"""Where a value stands beside its null: the one rule of tables, figures and reports.

Of a signed statistic, such as a correlation, a value below its null counts as much as one above.
Of a magnitude, such as a mean |r| or a CKA, only one above does: less than chance gives is no
finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

OUTSIDE, INSIDE, NO_NULL = "outside", "inside", "no null"
"""Standings of a value that is defined."""

MAGNITUDES = frozenset({"mean_abs", "max_abs", "cka"})
"""Statistics that are at least what chance gives, by the names they have in the results."""


def standing(
    value: float | None, low: float | None, high: float | None, *, one_sided: bool = False
) -> str | None:
    """OUTSIDE or INSIDE the null from ``low`` to ``high``, or NO_NULL; None for an undefined value.

    ``one_sided``: only a value above ``high`` is outside, and ``low`` may be undefined.
    """
    if not _known(value):
        return None
    if not _known(high):
        return NO_NULL
    if one_sided:
        return OUTSIDE if value > high else INSIDE
    if not _known(low):
        return NO_NULL
    return INSIDE if low <= value <= high else OUTSIDE


def standing_of(test: Mapping[str, Any], *, one_sided: bool = False) -> str | None:
    """`standing` of a test's ``value``; ``one_sided`` also where the test itself says so."""
    return standing(
        test.get("value"), test.get("null_low"), test.get("null_high"),
        one_sided=one_sided or bool(test.get("one_sided")),
    )  # fmt: skip


def neuron_cka_test(step: Mapping[str, Any]) -> dict[str, Any]:
    """The CKA of a step of ``neuron_evolution`` as a test, whose null is shown from its mean to its
    largest draw."""
    return {
        "value": step.get("cka"),
        "null_low": step.get("cka_null_mean"),
        "null_high": step.get("cka_null_max"),
        "reason": step.get("reason"),
        "one_sided": True,
    }


def _known(number: float | None) -> TypeGuard[float]:
    return number is not None and not math.isnan(number)
