"""Noise that looks alike for a known reason: what cases share, and that little is found in them."""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import noise_cases as cases

SEEDS = 20


@pytest.mark.parametrize("case", list(cases.CASES))
def test_what_is_not_there_is_seldom_found(case):
    found = [cases.false_in_case(case, seed) for seed in range(SEEDS)]
    # At 5 % more than this come with a probability of 0.1 % for one kind of finding.
    limit = binom.ppf(0.999, SEEDS, 0.05)
    for label in found[0]:
        assert sum(bool(one[label]) for one in found) <= limit, label


def test_both_layers_repeat_at_the_same_tokens():
    first = cases.CASES["10 near copies, 5 words changed"].draw(np.random.default_rng(0))
    second = cases._repeating(first)
    for own, other in zip(first, second, strict=True):
        same = (own == first[0]).all(axis=1)
        assert 95 <= same.sum() <= 100
        np.testing.assert_array_equal((other == second[0]).all(axis=1), same)
    assert abs(np.corrcoef(first[0][:, 0], second[0][:, 0])[0, 1]) < 0.4


def test_layers_read_passages_of_their_own_and_one_alone_is_refused(monkeypatch):
    rng = np.random.default_rng(1)
    pool = tuple(rng.standard_normal((12, cases.PASSAGE, 5)) for _ in range(2))
    monkeypatch.setattr(cases, "POOL", 12)
    monkeypatch.setattr(cases, "_pool", lambda: pool)
    one, five, _ = cases.OTHER_PASSAGES
    assert set(cases.false_on_other_passages(one, 0).values()) == {None}
    assert None not in cases.false_on_other_passages(five, 0).values()
