"""Agreement between texts: closed forms, calibration on noise, undefined cases."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportCallIssue=false

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import hypergeom, rankdata

from token_statistics.cross_text_consistency import (
    neuron_agreement,
    shared_tail,
    split_half_stability,
    text_spread,
)


def test_spread_of_two_texts_in_closed_form():
    # Means 1 and 3; both texts have sample variance 2 and lag-1 autocorrelation below 0 (taken 0).
    spread = text_spread([[0, 2, 0, 2], [2, 4, 2, 4]])
    assert spread.text_means == (1.0, 3.0)
    assert spread.between == pytest.approx(np.sqrt(2))
    assert spread.within == pytest.approx(np.sqrt(4 / 3))
    assert spread.expected_between == pytest.approx(np.sqrt(4 / 3 / 4))
    assert spread.ratio == pytest.approx(np.sqrt(2) / np.sqrt(1 / 3))


@pytest.mark.parametrize("persistence", [0.0, 0.8])
def test_texts_drawn_alike_have_a_ratio_near_one(persistence):
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        texts = []
        for _ in range(5):
            noise = rng.standard_normal(400)
            for t in range(1, 400):
                noise[t] += persistence * noise[t - 1]
            texts.append(noise)
        ratios.append(text_spread(texts).ratio)
    # The standard deviation of five means has a relative error of 0.35; averaged over 200 draws
    # that leaves 0.03. The estimated autocorrelation is biased a little low at 400 tokens.
    assert np.mean(ratios) == pytest.approx(0.94, abs=0.1)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_null_of_a_ratio_holds_it_19_times_in_20_where_texts_are_alike(number):
    rng = np.random.default_rng(number)
    found = [text_spread(rng.standard_normal((number, 200))) for _ in range(400)]
    low, ratio, high = (
        np.array([getattr(one, name) for one in found], dtype=np.float64)
        for name in ("null_low", "ratio", "null_high")
    )
    inside = np.mean((low <= ratio) & (ratio <= high))
    # 95 % with a standard error of 1.1 %; three of them, and the estimated errors' own spread.
    assert inside == pytest.approx(0.95, abs=0.035)
    if number == 3:
        assert (found[0].null_low, found[0].null_high) == pytest.approx((0.159, 1.921), abs=1e-3)


def test_texts_that_differ_have_a_large_ratio():
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal(200) + shift for shift in (0, 2, 4)]
    spread = text_spread(texts)
    assert spread.ratio is not None
    assert spread.null_high is not None
    assert spread.ratio > 10 > spread.null_high


def test_undefined_spreads_say_why():
    assert text_spread([[1.0, 2.0, 3.0]]).reason == "needs at least two texts"
    constant = text_spread([[1.0] * 5, [2.0] * 5])
    assert constant.ratio is None
    assert constant.reason == "the statistic does not vary within the texts"
    assert text_spread([[1.0, 2.0], [1.0, 2.0]]).reason == "a text has fewer than three values"
    silent = text_spread([[1.0, 2.0, 3.0], [float("nan")] * 3])
    assert silent.text_means == (2.0, None)
    assert silent.reason == "the statistic is undefined at every token of text 1"


def test_same_neurons_in_every_text():
    importance = np.arange(200.0)
    agreement = neuron_agreement([importance, importance * 2], top_n=10)
    assert agreement.mean_overlap == 10
    assert agreement.expected_overlap == pytest.approx(0.5)
    assert agreement.largest_p_value < 1e-12
    assert agreement.mean_spearman == pytest.approx(1.0)


def test_random_neurons_agree_no_more_than_by_chance():
    rng = np.random.default_rng(0)
    agreements = [neuron_agreement(rng.random((2, 400)), top_n=20) for _ in range(300)]
    # Overlaps are hypergeometric with mean 1 and variance below 1: standard error 0.06.
    assert np.mean([a.mean_overlap for a in agreements]) == pytest.approx(1.0, abs=0.2)
    assert abs(np.mean([a.mean_spearman for a in agreements])) < 0.01


def test_one_text_and_unequal_lengths():
    assert neuron_agreement([[1.0, 2.0]]).reason == "needs at least two texts"
    with pytest.raises(ValueError, match="of one length"):
        neuron_agreement([[1.0, 2.0], [1.0]])
    constant = neuron_agreement([[1.0] * 30, [2.0] * 30])
    assert (constant.mean_spearman, constant.shared, constant.shared_p_value) == (None,) * 3
    assert constant.reason == "the importance of a text is constant"


def test_neurons_that_are_alike_are_no_agreement():
    # One neuron fires in every text, 199 never do: which of these fill the lists is nobody's merit.
    importance = np.zeros(200)
    importance[77] = 1.0
    agreement = neuron_agreement([importance] * 2, top_n=20)
    assert agreement.mean_overlap < 8  # 1 and 19 x 19 / 199 of the others: 2.8, deviation 1.2
    assert agreement.shared_p_value > 1e-3


def test_neurons_of_all_texts_against_the_hypergeometric_distribution():
    for shared in range(6):
        # Two lists: the hypergeometric distribution itself.
        expected = hypergeom.sf(shared - 1, 40, 5, 5)
        assert shared_tail(shared, 5, 2, 40) == pytest.approx(expected)
    # Three lists of 2 of 4: all subsets counted.
    lists = list(combinations(range(4), 2))
    counts = [len({*a} & {*b} & {*c}) for a in lists for b in lists for c in lists]
    for shared in range(3):
        assert shared_tail(shared, 2, 3, 4) == pytest.approx(np.mean(np.array(counts) >= shared))
    with pytest.raises(ValueError, match="need 0 <= shared <= size"):
        shared_tail(3, 2, 2, 4)


def test_what_random_lists_share_at_most():
    """The smallest count that random lists exceed in 2.5 % of cases or fewer."""
    for size, number, population in ((10, 2, 100), (20, 3, 200), (20, 12, 200)):
        lists = [np.random.default_rng(i).permutation(population) * 1.0 for i in range(number)]
        high = neuron_agreement(lists, top_n=size).shared_null_high
        assert shared_tail(high + 1, size, number, population) <= 0.025
        assert shared_tail(high, size, number, population) > 0.025


def test_each_text_has_its_mean_agreement_with_the_others():
    rng = np.random.default_rng(6)
    lists = rng.random((4, 50))
    found = neuron_agreement(lists)
    table = np.corrcoef(rankdata(lists, axis=1))
    np.testing.assert_allclose(found.spearman_by_text, (table.sum(0) - 1) / 3, atol=1e-12)
    assert found.mean_spearman == pytest.approx(np.mean(found.spearman_by_text))
    assert neuron_agreement([[1.0] * 30, [2.0] * 30]).spearman_by_text is None


def test_shared_neurons_are_counted():
    importance = np.arange(200.0)
    same = neuron_agreement([importance] * 3, top_n=10)
    assert (same.shared, same.expected_shared) == (10, pytest.approx(200 * 0.05**3))
    assert same.shared_p_value < 1e-12
    apart = neuron_agreement([importance, importance[::-1]], top_n=10)
    assert (apart.shared, apart.shared_p_value) == (0, pytest.approx(1.0))


def test_stability_by_halves():
    a = np.arange(30.0)
    assert split_half_stability([(a, a**2), (a, -a)]) == pytest.approx(0.0)
    assert split_half_stability([(a, a), (a, np.ones(30))]) == pytest.approx(1.0)
    assert split_half_stability([]) is None
    agreement = neuron_agreement([a, a], halves=[(a, a)])
    assert agreement.split_half_spearman == pytest.approx(1.0)


def test_copies_of_a_text_agree_with_themselves_and_count_once():
    rng = np.random.default_rng(5)
    lists = rng.random((3, 200))
    copies = [*lists, lists[0], lists[0]]
    groups = [0, 1, 2, 0, 0]
    once, together = neuron_agreement(list(lists)), neuron_agreement(copies, groups=groups)
    assert (together.num_texts, together.num_groups) == (5, 3)
    for name in ("mean_overlap", "shared", "mean_spearman", "shared_p_value"):
        assert getattr(together, name) == getattr(once, name)
    series = [rng.standard_normal(50) + i for i in range(3)]
    once = text_spread(series)
    together = text_spread([*series, series[0], series[0]], groups)
    assert (together.num_texts, together.num_groups, once.num_groups) == (5, 3, 3)
    for name in ("between", "within", "ratio", "null_low", "null_high"):
        assert getattr(together, name) == pytest.approx(getattr(once, name), rel=1e-12)
    alone = text_spread([series[0], series[0]], [0, 0])
    assert alone.reason == "needs at least two texts that are not related"
