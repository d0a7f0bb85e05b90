"""Observations: what counts, against loops, and where a null moves it."""

import numpy as np
import pytest
import reference

from token_statistics.observations import WARM_UP_TOKENS, observations, row_tokens


def ids(seed, length):
    return np.random.default_rng(seed).integers(0, 10**9, length).tolist()


def contents(tokens, texts):
    """Token at every row that was given."""
    return [int(token) for text in texts for token in text]


def test_every_distinct_token_beyond_the_warm_up_is_an_observation():
    first = ids(1, 60)
    texts = [first, [*first[:20], *ids(2, 40)], ids(3, 50), first[:30]]
    found = observations(texts)
    assert found.seen == (0, 20, 0, 30)
    assert found.warm_up == (WARM_UP_TOKENS,) * 4
    assert found.num_distinct == 60 + 40 + 50
    expected = [*range(4, 60), *range(80, 120), *range(124, 170)]
    assert found.rows.tolist() == expected
    assert found.positions.tolist() == [*range(4, 60), *range(20, 60), *range(4, 50)]
    assert found.row_groups.tolist() == [0] * 96 + [2] * 46
    assert found.distinct_rows.tolist() == [*range(60), *range(80, 120), *range(120, 170)]
    assert found.used_lengths == (56, 40, 46)


def test_the_warm_up_equals_the_loop():
    rng = np.random.default_rng(4)
    lengths = [40, 9, 100, 3]
    norms = np.concatenate([
        1 - np.exp(-np.arange(1, length + 1)[:, None] / [2, 12]) for length in lengths
    ]) * rng.uniform(0.9, 1.1, (152, 2))  # fmt: skip
    texts = [ids(10 + i, length) for i, length in enumerate(lengths)]
    found = observations(texts, norms).warm_up
    assert list(found) == reference.warm_up(norms, lengths)
    assert found[1] == 2  # a quarter
    assert found[3] == 0


def test_a_text_alone_is_rolled_and_short_ones_are_rolled_together():
    texts = [ids(5, 50), ids(6, 60)]
    found = observations(texts)
    moved = found.order([7, 11])
    expected = [4 + np.roll(np.arange(46), 7), 54 + np.roll(np.arange(56), 11)]
    assert moved.tolist() == np.concatenate(expected).tolist()
    short = observations([ids(i, 16) for i in range(20, 26)])  # 12 observations each
    assert short.axis_lengths == (72,)
    assert short.order([1])[12] == short.rows[11]


def test_what_related_texts_share_is_moved_to_one_place():
    long = ids(7, 200)
    texts = [long[:100], [*long[40:90], 1, *long[91:140]], [*long[:50], 2, *long[51:100]]]
    found = observations(texts)
    assert found.groups == (0, 0, 0)
    assert found.axis_lengths == (136,)
    tokens = contents(found, texts)
    by_content: dict[int, set[int]] = {}
    for shift in (9, 30, 77, 120):
        by_content.clear()
        for row, moved in zip(found.rows.tolist(), found.order([shift]).tolist(), strict=True):
            by_content.setdefault(tokens[row], set()).add(tokens[moved])
        # But for the two words changed, equal tokens get equal tokens.
        assert (
            sum(len(moved - {1, 2, long[90], long[50]}) > 1 for moved in by_content.values()) == 0
        )


def test_an_axis_is_cut_where_a_swing_begins_again():
    t = np.arange(204)
    swing = np.sin(2 * np.pi * t / 30)[:, None]
    found = observations([ids(8, 204)]).end_matched(swing)
    assert found.axis_lengths == (180,)  # of 200, six whole periods
    rows = found.order([50])
    kept = t[found.rows] >= 54
    np.testing.assert_allclose(swing[rows][kept], swing[found.rows - 50][kept])
    # And what comes in at the beginning goes on as if there had been more.
    there = np.sin(2 * np.pi * (t[found.rows] - 50) / 30)[:, None]
    np.testing.assert_allclose(swing[rows], there, atol=1e-12)
    noise = np.random.default_rng(0).standard_normal((204, 3))
    matched = observations([ids(8, 204)]).end_matched(noise)
    assert matched.axis_lengths == (200 - reference.cut_of_axis(noise[4:]),)


def test_rows_stand_for_tokens_only_where_all_sides_agree():
    x, y = np.arange(6.0)[:, None], np.arange(6.0)[:, None]
    x[3:], y[3:] = x[:3], y[:3]
    one, other = row_tokens([x, y], [3, 3])
    assert one == other
    y[5] = 9
    one, other = row_tokens([x, y], [3, 3])
    assert (one[:2] == other[:2], one[2] == other[2]) == (True, False)


def test_a_single_text_needs_no_values_to_be_read_for_the_first_time():
    # Every token the same: none is known from an earlier text all the same.
    assert vars(observations([[7] * 40])) == vars(observations([range(40)]))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_texts_have_observations_and_may_stay_where_they_are(length):
    found = observations([ids(9, length)])
    assert len(found.order([0])) == length


def test_a_near_copy_adds_the_word_that_differs_and_the_seven_after_it():
    first = ids(1, 100)
    texts = [first, [*first[:40], -1, *first[41:]], [*first[:70], -2, *first[71:]]]
    found = observations(texts)
    assert [tuple(one) for one in found.used] == [(0, 4, 100), (1, 40, 48), (2, 70, 78)]
    assert found.num_distinct == 116
    assert found.distinct_rows.tolist() == [*range(100), *range(140, 148), *range(270, 278)]
    # Moved, they get what the first text has: its copies have no places of their own.
    tokens = contents(found, texts)
    for row, moved in zip(found.rows.tolist(), found.order([11]).tolist(), strict=True):
        assert tokens[moved] == first[4 + (row % 100 - 4 - 11) % 96] or tokens[moved] < 0
    assert found.together(found.used) == [(0, 4), (0, 40), (0, 70)]
    assert found.new_stretches[0] == (0, 0, 100)
