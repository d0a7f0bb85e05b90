"""Numbers and layers in a sentence of the overview."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Section = Mapping[str, Any]


def verb(word: str, layers: Sequence[int]) -> str:
    """The verb in the third person, of one layer or of several."""
    third = {"have": "has"}.get(word) or (f"{word[:-1]}ies" if word.endswith("y") else f"{word}s")
    return third if len(set(layers)) == 1 else word


def listed(values: Sequence[float], spec: str) -> str:
    """Up to three values one by one, more as a range."""
    texts = [f"{value:{spec}}" for value in values]
    if len(texts) > 3:
        return extent(values, spec)
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def extent(values: Iterable[float], spec: str) -> str:
    """From the smallest magnitude to the largest; one value where they are written alike."""
    ordered = sorted(values, key=abs)
    low, high = f"{ordered[0]:{spec}}", f"{ordered[-1]:{spec}}"
    return low if low == high else f"{low} to {high}"


def chance(tests: Iterable[Section], spec: str) -> str:
    """What chance gives, from the smallest end to the largest of these tests."""
    low, high = null_of(tests)
    return f"{low:{spec}} to {high:{spec}}"


def null_of(tests: Iterable[Section]) -> tuple[float, float]:
    """The nulls of these tests, from the smallest end to the largest."""
    ends = [(test["null_low"], test["null_high"]) for test in tests]
    return min(low for low, _ in ends), max(high for _, high in ends)


def tokens(values: Sequence[float]) -> str:
    """A range of tokens to two digits."""
    low, high = (two_digits(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def two_digits(value: float) -> str:
    """A number to two digits, from 10 on whole."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def mean(values: Sequence[float]) -> float:
    """The mean of values, of which there are some."""
    return sum(values) / len(values)
