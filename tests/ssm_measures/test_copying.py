"""Copying: pairs and gain against loops, closed forms, and what is no copying."""

import numpy as np
import pytest

from ssm_measures.copying import (
    AROUND,
    NEAREST,
    REPEATED,
    copying_sums,
    earlier_tokens,
    query_shifts,
)
from tests.reference import copying_gain


def random_shares(length, seed=0):
    shares = np.tril(np.random.default_rng(seed).random((length, length)))
    return shares / shares.sum(1, keepdims=True)


def gain(shares, pairs, shift=0):
    at_source, around, _ = copying_sums(shares, pairs, [shift])[0]
    return at_source / around


@pytest.mark.parametrize("seed", range(4))
def test_the_gain_is_that_of_a_loop_over_pairs(seed):
    ids = np.random.default_rng(seed).integers(0, 9, 50).tolist()
    shares = random_shares(50, seed)
    # Sums of some 45 float64 terms in another order.
    assert gain(shares, earlier_tokens(ids)) == pytest.approx(copying_gain(shares, ids), rel=1e-12)


def test_the_earlier_occurrence_is_the_one_whose_tokens_before_agree_the_longest():
    #        0  1  2  3  4  5  6  7  8  9 10 11
    ids = [1, 2, 3, 9, 8, 2, 7, 7, 6, 1, 2, 3]
    pairs = earlier_tokens(ids)
    found = {q: (s, a) for q, s, a in zip(*pairs, strict=True)}
    assert found[10] == (2, 2)  # after "1 2", not after the later "2" alone
    assert found[11] == (3, 3)
    assert 7 not in found  # its only earlier occurrence is the token before


def test_equal_agreement_takes_the_latest():
    ids = [5, 1, 2, 3, 5, 6, 7, 8, 9, 10, 5]
    query, source, agree = (int(column[-1]) for column in earlier_tokens(ids))
    assert (query, source, agree) == (10, 5, 1)


def test_pairs_lie_as_far_apart_as_is_said():
    pairs = earlier_tokens(np.random.default_rng(1).integers(0, 4, 60).tolist())
    assert (pairs.query - pairs.source >= NEAREST).all()


def test_a_text_without_repeats_has_no_pairs():
    pairs = earlier_tokens(range(30))
    assert len(pairs.query) == 0
    assert copying_sums(random_shares(30), pairs, [0, 9]).tolist() == [[0, 0, 0]] * 2


def test_even_attention_has_gain_one_under_every_shift():
    ids = np.random.default_rng(2).integers(0, 8, 80).tolist()
    even = np.tril(np.ones((80, 80)))
    sums = copying_sums(even, earlier_tokens(ids), [0, *query_shifts()])
    known = sums[:, 2] > 0
    np.testing.assert_allclose(sums[known, 0], sums[known, 1], rtol=1e-12)


def test_a_source_that_every_query_reads_is_no_copying():
    """Its gain is that of its null; a copy of the same extent is far from it."""
    ids = np.random.default_rng(3).integers(0, 8, 120).tolist()
    pairs = earlier_tokens(ids)
    read_by_all, copied = np.tril(np.ones((2, 120, 120)))
    read_by_all[:, np.unique(pairs.source)] *= 3.0
    copied[pairs.query, pairs.source] *= 3.0
    for shares, excess in ((np.tril(read_by_all), 0.0), (copied, 2.0)):
        sums = copying_sums(shares, pairs, [0, *query_shifts()])
        gains = sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)
        drawn = gains[1:][sums[1:, 2] >= sums[0, 2] / 2]
        # Shifts lose the pairs at the text's ends, so that gains differ by some percent.
        assert gains[0] - drawn.mean() == pytest.approx(excess, abs=0.15)


def test_only_queries_within_the_text_count_when_shifted():
    ids = [*range(20), *range(20)]
    pairs = earlier_tokens(ids)
    counts = copying_sums(random_shares(40), pairs, [0, 5, -5, 30])[:, 2]
    beside = [
        [q + k for q, s in zip(pairs.query, pairs.source, strict=True)
         if q + k < 40 and q + k - s >= 4
         and any(s + d >= 0 and q + k - s - d >= 4 for d in AROUND)]
        for k in (0, 5, -5, 30)
    ]  # fmt: skip
    assert counts.tolist() == [len(part) for part in beside]
    assert counts[3] == 0


def test_a_passage_read_again_has_its_own_pairs():
    ids = [*range(20), *range(100, 110), *range(20)]
    pairs = earlier_tokens(ids).repeated
    assert pairs.query.tolist() == list(range(30 + REPEATED - 1, 50))
    assert (pairs.query - pairs.source == 29).all()
