"""All pairs of channels under time shifts: float32 blocks against float64, one shift at a time."""

import numpy as np
import pytest
import torch

from token_statistics import moved_pairs
from token_statistics.moved_pairs import MovedPairs
from token_statistics.observations import observations
from token_statistics.pair_significance import ShiftedPairs
from token_statistics.position_course import PositionCourse, unit_columns_without


def two_sides(p, q, lengths, drift=3.0):
    rng = np.random.default_rng(0)
    n = sum(lengths)
    ends = np.cumsum(lengths).tolist()
    texts = [range(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    course = PositionCourse(observations(texts))
    shared = rng.standard_normal((n, 3))
    x, y = (shared @ rng.standard_normal((3, c)) + rng.standard_normal((n, c)) for c in (p, q))
    y += drift * np.linspace(-1, 1, n)[:, None]  # which every draw has to lose
    return course, unit_columns_without(course, x), unit_columns_without(course, y)


def in_float64(course, x, y, tokens, shift):
    """Correlations (p, q), and norms of the moved columns (q,) and the columns (n, q)."""
    left = course.taken_out_(torch.from_numpy(y.moving[tokens.order(shift)])).numpy()
    norms = np.linalg.norm(left, axis=0)
    return x.values.T @ (left / norms), norms, left


@pytest.mark.parametrize("at_once", [1 << 18, 50])  # all channels in one block; a few in each
def test_what_is_read_off_the_blocks_is_that_of_every_pair_in_float64(monkeypatch, at_once):
    monkeypatch.setattr(moved_pairs, "_FLOATS_AT_ONCE", at_once)
    course, x, y = two_sides(9, 14, (90, 60))
    moved = MovedPairs(x.values, y.moving, course)
    shifts = np.array([[10 + 3 * i, 11 + 2 * i] for i in range(5)])
    weights = np.linspace(1, 2, 9), np.linspace(2, 1, 14)
    n_eff = np.full((9, 14), 80.0)
    pairs, expected = ShiftedPairs(n_eff), ShiftedPairs(n_eff)
    found = moved.draws(shifts, weights, pairs)
    n = len(course.tokens.rows)
    bound = (n + 4) * 2.0**-24 * 4  # the drift makes moved columns up to four times as large
    for i, shift in enumerate(shifts):
        r, norms, left = in_float64(course, x, y, moved.tokens, shift)
        magnitudes = np.abs(r)
        assert abs(found.mean[i] - r.mean()) < bound
        assert abs(found.mean_abs[i] - magnitudes.mean()) < bound
        assert abs(found.max_abs[i] - magnitudes.max()) < bound
        assert abs(found.best_match[i] - magnitudes.max(axis=0).mean()) < bound
        energy = weights[0] @ np.square(r * norms) @ weights[1]
        assert found.energies[i] == pytest.approx(energy, rel=4 * bound)
        np.testing.assert_allclose(found.row_norms[i], np.square(left) @ weights[1], rtol=bound)
        expected.add(torch.from_numpy(magnitudes.astype(np.float32)), i)
    # A pair on the edge of a bin may fall to either side of it.
    z = np.linspace(0, 8, 50)
    assert pairs.p_values(z) == pytest.approx(expected.p_values(z), abs=2 / (5 * 9 * 14))
    assert pairs.share_by_chance() == expected.share_by_chance()
    assert pairs.largest == pytest.approx(expected.largest, rel=bound)


def test_rounding_stays_within_the_bound_and_in_fact_far_below():
    course, x, y = two_sides(40, 30, (400,), drift=0.0)
    moved = MovedPairs(x.values, y.moving, course)
    blocks = list(moved._blocks([25], course.tokens))
    single = torch.cat([block.r[:, 0] for block in blocks], dim=1).numpy()
    exact = in_float64(course, x, y, course.tokens, 25)[0]
    errors = np.abs(single - exact)
    n = len(course.tokens.rows)
    assert errors.max() < (n + 4) * 2.0**-24
    assert np.sqrt(np.square(errors).mean()) < np.sqrt(n) * 2.0**-24


def test_mean_magnitudes_at_lag_zero_are_those_of_the_data():
    course, x, y = two_sides(9, 14, (90, 60))
    moved = MovedPairs(x.values, y.moving, course)
    there, zero = moved.mean_magnitudes([4, 0])
    # Float32 correlations of about 150 tokens, averaged.
    assert zero == pytest.approx(np.abs(x.values.T @ y.values).mean(), abs=1e-6)
    assert there == pytest.approx(
        np.abs(in_float64(course, x, y, course.tokens, 4)[0]).mean(), abs=1e-6
    )
