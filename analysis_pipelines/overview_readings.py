"""How the tests of a question read: what is claimed, what is small, and what is undecided.

Of each place (a layer, or a layer and a kind of token) a value stands beside its null. It is

    claimed    above chance, and at least the smallest effect worth a name,
    small      above chance, and of less than that,
    undecided  neither, where value and null together, or the interval, reach that effect,
    absent     neither, where they do not: chance does not hide an effect worth a name.

Above chance is what `overview_questions.marked` marks so: by p over all layers and questions, and
by the interval over texts where there is one.
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
        if test["above_chance"]:
            return "claimed" if size >= least and is_enough(place) else "small"
        is_absent = chance_stays_below(test, least, size) and _is_below(test, least)
        return "absent" if is_absent else "undecided"

    kinds = {place: kind(place) for place in tests}
    return Reading(*(tuple(p for p, one in kinds.items() if one == name)
                     for name in Reading._fields))  # fmt: skip


def chance_stays_below(test: Section, least: float, size: float) -> bool:
    """Whether chance, which moves a value upwards by the reach of its null, brings one of this size
    not as far as ``least``."""
    return size + test["null_high"] - test["null_mean"] < least


def _is_below(test: Section, least: float) -> bool:
    return test["interval"] is None or test["interval"][1] < least


def largest(
    tests: Mapping[Place, Section], places: tuple[Place, ...], *, two_sided: bool = False
) -> Place:
    """Of some places that of the largest value, or magnitude."""
    return max(places, key=lambda place: _size(tests[place], two_sided))


def _size(test: Section, two_sided: bool) -> float:
    return abs(test["value"]) if two_sided else test["value"]
