"""How the tests of a question read: what is claimed, what is small, and what is undecided.

Of each place (a layer, or a layer and a kind of token) a value stands beside its null. It is

    claimed    above chance, and at least the smallest effect worth a name,
    small      above chance, and of less than that,
    undecided  neither, where value and null together reach that effect,
    absent     neither, where they do not: chance does not hide an effect worth a name.

Above chance is a p, over all layers, of at most the level of the questions (`overview_questions`).
Only where every place is absent may a sentence say that no layer does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Section = Mapping[str, Any]

Place = Any
"""A layer, or a layer and a kind of token."""


class Reading(NamedTuple):
    """The places of a question by how their tests read, each in the order of the rows."""

    claimed: tuple[Place, ...]
    small: tuple[Place, ...]
    undecided: tuple[Place, ...]
    absent: tuple[Place, ...]
    untried: tuple[Place, ...]
    """those without a value"""


def read(
    tests: Mapping[Place, Section],
    least: float,
    level: float,
    *,
    two_sided: bool = False,
    is_enough: Callable[[Place], bool] = lambda place: True,
) -> Reading:
    """The tests of one question against the smallest effect worth a name.

    ``is_enough``: what a claim needs besides. ``two_sided``: magnitudes count.
    """

    def kind(place: Place) -> str:
        test = tests[place]
        if test["value"] is None:
            return "untried"
        size = _size(test, two_sided)
        if test["p_value"] is not None and test["p_value"] <= level:
            return "claimed" if size >= least and is_enough(place) else "small"
        return "undecided" if size + _reach(test) >= least else "absent"

    kinds = {place: kind(place) for place in tests}
    return Reading(*(tuple(p for p, one in kinds.items() if one == name)
                     for name in Reading._fields))  # fmt: skip


def _reach(test: Section) -> float:
    """How far chance alone moves the value upwards."""
    return test["null_high"] - test["null_mean"]


def largest(
    tests: Mapping[Place, Section], places: tuple[Place, ...], *, two_sided: bool = False
) -> Place:
    """Of some places that of the largest value, or magnitude."""
    return max(places, key=lambda place: _size(tests[place], two_sided))


def _size(test: Section, two_sided: bool) -> float:
    return abs(test["value"]) if two_sided else test["value"]
