"""Rank correlation of samples taken along several texts, within the texts and beside their course.

Samples of one text, such as the tokens at which something was hidden, share its topic, its length
and what its positions bring about. What goes with the text is no tie between the two sides, and
neither is a drift along every text: so ranks are those within the text, and a constant, a linear
and a quadratic course over position are taken out of each text's, by least squares, as far as it
has PER_FUNCTION samples for each.

Null: the samples of one side are shifted circularly along each text, by any number of samples, each
text by its own, and the course is taken out again. Neighbouring samples stay neighbours, so that
slow change that is left on both sides is in the null as it is in the data; all shifts count,
that by nothing too, for otherwise the draws would lean away from the data [1, 2].

Several pairs of sides on the same samples, such as those of each layer, are moved together, so that
their mean has a null of its own.

What it does not control for: changes as fast as the samples are apart that both sides owe to the
position.

References:
  [1] Phipson & Smyth 2010, Permutation p-values should never be zero
  [2] Lancaster et al. 2018, Surrogate data for hypothesis testing of physical systems, section 3

Shapes: n samples; k pairs of sides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from suite_plumbing.arguments import numpy_rng
from token_statistics.description import FloatArray, IntArray, Values, as_float64
from token_statistics.time_shift_nulls import MIN_SHIFTS, NullTest, against_null, undefined

PER_FUNCTION = 4
"""Samples of a text for each function of its course."""

MIN_IN_TEXT = 2 * PER_FUNCTION
"""Fewer samples than this, with which no drift can be taken out, and a text is left out."""

_NUM_FUNCTIONS = 3


class WithinTexts(NamedTuple):
    """Rank correlations within texts, each beside its null."""

    tests: tuple[NullTest, ...]
    """(k,) of each pair of sides"""
    mean: NullTest
    """their mean, those without a value left out, beside that of the same draws"""


class _Moved(NamedTuple):
    """One text's part of the correlations, for each of its m shifts."""

    own: FloatArray
    """(k,) sum of squares of the side that stays"""
    squares: FloatArray
    """(m, k) sum of squares of the side that is moved"""
    products: FloatArray
    """(m, k)"""


def spearman_within_texts(
    x: Values,
    y: Values,
    texts: Values,
    positions: Values,
    *,
    num_draws: int = 999,
    seed: int = 0,
) -> WithinTexts:
    """Spearman correlation of x with y, (n, k) each, within ``texts`` (n,), apart from the course
    over ``positions`` (n,): see the module.

    A test is undefined, with the reason, where no text has MIN_IN_TEXT samples, for fewer than
    MIN_SHIFTS distinct shifts, and where a side is no more than its course. n of a test: the
    samples of texts that are long enough. Cost: k sorts, and for each draw one sum over the texts.
    """
    first, second = (as_float64(side).reshape(len(as_float64(side)), -1) for side in (x, y))
    number, where = np.asarray(texts).astype(int), as_float64(positions)
    width = first.shape[1]
    rows = [np.flatnonzero(number == text) for text in np.unique(number)]
    rows = [own[np.argsort(where[own])] for own in rows if len(own) >= MIN_IN_TEXT]
    n, shifts = sum(map(len, rows)), math.prod(map(len, rows))
    if reason := _why_too_few(len(number), len(rows), shifts):
        return WithinTexts((undefined(reason, n),) * width, undefined(reason, n))
    parts = [_moved(first[own], second[own], where[own]) for own in rows]
    drawn = _draws(parts, num_draws, seed)
    values = _correlations(parts, np.zeros((1, len(parts)), dtype=int))[0]
    tests = tuple(_test(float(v), d, n) for v, d in zip(values, drawn.T, strict=True))
    known = [i for i, test in enumerate(tests) if test.value is not None]
    mean = (
        _test(float(values[known].mean()), drawn[:, known].mean(axis=1), n) if known else tests[0]
    )
    return WithinTexts(tests, mean)


def _why_too_few(count: int, num_texts: int, shifts: int) -> str | None:
    if not num_texts:
        return f"{count} samples, in no text {MIN_IN_TEXT} or more"
    if shifts < MIN_SHIFTS:
        return f"{shifts} distinct shifts within {num_texts} text(s); a null needs {MIN_SHIFTS}"
    return None


def _test(value: float, draws: FloatArray, n: int) -> NullTest:
    if not math.isfinite(value):
        return undefined("one of the two sides varies by no more than its course over position", n)
    return against_null(value, draws, n)


def _moved(x: FloatArray, y: FloatArray, positions: FloatArray) -> _Moved:
    """One text's sides (m, k), in the order of their positions."""
    m = len(x)
    course = _course(positions)
    first, second = (_without(course, stats.rankdata(side, axis=0) / m) for side in (x, y))
    moved = np.stack([_without(course, np.roll(second, shift, axis=0)) for shift in range(m)])
    return _Moved(
        np.square(first).sum(axis=0), np.square(moved).sum(axis=1), (first * moved).sum(axis=1)
    )


def _course(positions: FloatArray) -> FloatArray:
    """Orthonormal functions of the position (m, functions)."""
    m = len(positions)
    scaled = (positions - positions.mean()) / max(float(np.ptp(positions)), 1.0)
    functions = np.vander(scaled, min(_NUM_FUNCTIONS, m // PER_FUNCTION), increasing=True)
    return np.linalg.qr(functions)[0]


def _without(course: FloatArray, values: FloatArray) -> FloatArray:
    left = values - course @ (course.T @ values)
    return np.where(np.abs(left).max(axis=0) < 1e-9, 0.0, left)


def _draws(parts: list[_Moved], count: int, seed: int) -> FloatArray:
    """(count, k) correlations under joint shifts."""
    rng = numpy_rng(seed)
    lengths = [len(part.squares) for part in parts]
    return _correlations(parts, rng.integers(0, lengths, (count, len(parts))))


def _correlations(parts: list[_Moved], shifts: IntArray) -> FloatArray:
    """(draws, k) under shifts (draws, texts); nan where a side is 0."""
    columns = list(zip(parts, shifts.T, strict=True))
    products = sum(part.products[own] for part, own in columns)
    norms = np.sqrt(
        sum(part.own for part in parts) * sum(part.squares[own] for part, own in columns)
    )
    return np.divide(products, norms, out=np.full(norms.shape, math.nan), where=norms > 0)
