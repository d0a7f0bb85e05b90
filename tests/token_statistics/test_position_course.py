"""The course over position: gone where it is shared, against least squares and plain means."""

import numpy as np
import pytest
import reference
import torch
from scipy import stats

from token_statistics import position_course
from token_statistics.observations import observations
from token_statistics.position_course import (
    MIN_GROUPS,
    PositionCourse,
    ranks_among,
    unit_columns_without,
    without_course,
)


def course_of(*lengths):
    return PositionCourse(observations([list(range(1000 * i, 1000 * i + length))
                                        for i, length in enumerate(lengths)]))  # fmt: skip


@pytest.mark.parametrize("lengths", [[100], [100, 40, 12]])
def test_few_texts_lose_what_least_squares_explain(lengths):
    values = np.random.default_rng(0).standard_normal((sum(lengths), 3))
    course = course_of(*lengths)
    left, _, divisor = without_course(course, values)
    starts = [min(4, length // 4) for length in lengths]
    expected, count = reference.without_position(values, lengths, starts)
    np.testing.assert_allclose(left * divisor, expected, atol=1e-12)
    assert course.freedom == len(expected) - count


def test_many_texts_lose_their_drift_and_the_mean_at_each_position():
    rng, lengths = np.random.default_rng(1), [64] * MIN_GROUPS
    values = rng.standard_normal((64 * MIN_GROUPS, 2))
    left, _, divisor = without_course(course_of(*lengths), values)
    t = np.arange(4.0, 64.0)
    texts = values.reshape(MIN_GROUPS, 64, 2)[:, 4:]
    basis = np.stack([np.ones_like(t), t], axis=1)
    fits = np.array([basis @ np.linalg.lstsq(basis, text, rcond=None)[0] for text in texts])
    expected = (texts - fits) - (texts - fits).mean(axis=0)
    np.testing.assert_allclose((left * divisor).reshape(texts.shape), expected, atol=1e-12)


def test_any_course_that_all_texts_share_is_gone():
    rng = np.random.default_rng(2)
    shared = rng.standard_normal((80, 4)) * 100  # no smooth course
    own = rng.standard_normal((6, 80, 4))
    course = course_of(*[80] * 6)
    with_it, without = (
        without_course(course, values.reshape(480, 4)) for values in (own + shared, own)
    )
    # The divisor of 100 leaves rounding of 1e-14.
    np.testing.assert_allclose(with_it[0] * with_it[2], without[0] * without[2], atol=1e-11)


def test_what_is_moved_loses_what_the_data_have():
    values = np.random.default_rng(3).standard_normal((200, 3))
    course = course_of(100, 100)
    left, moving, _ = without_course(course, values)
    again = course.taken_out_(torch.from_numpy(moving[course.tokens.rows]))
    np.testing.assert_allclose(again.numpy(), left, atol=1e-12)


def test_columns_that_vary_with_the_position_alone_are_zero():
    t = np.arange(100.0)
    values = np.stack([t, np.full(100, 0.1), np.random.default_rng(4).standard_normal(100)], axis=1)
    found = unit_columns_without(course_of(100), values)
    assert found.varies.tolist() == [False, False, True]
    assert np.linalg.norm(found.values[:, 2]) == pytest.approx(1.0)


def test_ranks_are_the_mean_ranks_among_the_rows_named():
    values = np.array([[3.0], [1.0], [3.0], [2.0], [9.0]])
    assert ranks_among(values, np.array([0, 1, 2, 3]))[:, 0].tolist() == [3.5, 1.0, 3.5, 2.0, 4.5]


def test_ranks_of_many_columns_with_ties_are_those_of_scipy(monkeypatch):
    monkeypatch.setattr(position_course, "_FLOATS_AT_ONCE", 120)  # some columns at a time
    values = np.random.default_rng(6).integers(-9, 9, size=(50, 7)).astype(float)
    values[:5, 3] = np.inf
    assert (ranks_among(values, np.arange(50)) == stats.rankdata(values, axis=0)).all()
    some = np.arange(50) % 3 > 0
    among = ranks_among(values, np.flatnonzero(some))[some]
    assert (among == stats.rankdata(values[some], axis=0)).all()
    assert ranks_among(values[:, :0], np.arange(50)).shape == (50, 0)


def test_the_words_say_how_position_was_taken_out():
    assert "a mean by position needs 5" in course_of(100).described
    assert "the mean over 6 independent texts" in course_of(*[80] * 6).described
    assert "where 5 have the position" in course_of(*[80] * 5, 200).described
