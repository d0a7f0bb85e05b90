"""Related texts as one sample: what is measured text by text, joined within each group of texts.

Texts that share much (`suite_plumbing.related_texts`) say the same thing again. Where a statistic
is measured in each text and then joined over texts, n is the number of groups, and a group's value
is the mean over its texts: ten near copies weigh as much as one text.

Texts are numbered, or named "text_0", "text_1", ...; a group is numbered, or named, as its first
text.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from token_statistics.description import FloatArray, Values, as_float64
from token_statistics.joined_places import P_OF_GROUP, most_of, one_sided_p

_MEANS = ("value", "null_mean", "null_low", "null_high")


def members(groups: Sequence[Hashable]) -> list[list[int]]:
    """Numbers of the texts of each group, from the group of each text; groups as they come."""
    found: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group, []).append(number)
    return list(found.values())


def one_each(groups: Sequence[Hashable] | None, count: int) -> Sequence[Hashable]:
    """The groups given, or every one of ``count`` texts its own; ValueError for another number."""
    if groups is None:
        return range(count)
    if len(groups) != count:
        raise ValueError(f"groups has {len(groups)} entries for {count} texts; pass one for each")
    return groups


def group_means(
    values: Sequence[Values], groups: Sequence[Hashable] | None = None
) -> list[FloatArray]:
    """Of values of each text, alike in shape, the mean over the texts of each group.

    Entries that are not finite are left out; nan where a group has none. ``groups``: of each text;
    None, and every text is its own. Raises ValueError for groups of another number.
    """
    known = members(one_each(groups, len(values)))
    return [_mean(np.stack([as_float64(values[i]) for i in texts])) for texts in known]


def _mean(stacked: FloatArray) -> FloatArray:
    defined = np.isfinite(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)


def by_group(
    tests: Mapping[str, Mapping[str, Any] | None], groups: Mapping[str, str]
) -> dict[str, Mapping[str, Any] | None]:
    """Null tests by place ("text_3.layer_0"), those of a group's texts joined at its first text.

    ``groups``: of each text by name; one that is not named is its own. A joined test has the means
    of the texts' values and of the ends of their nulls, which are no narrower than the null of a
    mean, and under P_OF_GROUP the p that most of the texts have (`most_of`), which holds whatever
    they share. Texts without a value are left out, and places that are not of a text stay.
    """
    found: dict[str, list[Mapping[str, Any] | None]] = {}
    for place, test in tests.items():
        text, dot, rest = place.partition(".")
        found.setdefault(f"{groups.get(text, text)}{dot}{rest}", []).append(test)
    return {place: _joined(some) for place, some in found.items()}


def _joined(tests: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """The test of a group of texts; that of its one text as it is."""
    defined = [test for test in tests if test and test.get("value") is not None]
    if len(tests) == 1 or not defined:
        return tests[0]
    means = {
        name: float(np.mean([test[name] for test in defined]))
        for name in _MEANS
        if all(test.get(name) is not None for test in defined)
    }
    if "null_high" not in means:
        return {**defined[0], **means}
    return {**defined[0], **means, P_OF_GROUP: most_of(sorted(map(one_sided_p, defined)))}
