"""All pairs of layers at once against the pairwise statistics and naive loops, and the nulls."""

import math

import numpy as np
import pytest

from token_statistics.association import causal_spearman, spearman
from token_statistics.cka import linear_cka
from token_statistics.layer_likeness import (
    MAX_WINDOW,
    agreement,
    best_match,
    causal_ranks,
    cka,
    first_rows,
    lag_profile,
    over_texts,
    plain,
    unit_grams,
    window_ranks,
    window_size,
    with_null,
)

LENGTH = 40
RNG = np.random.default_rng(0)
MAPS_A = [np.tril(RNG.random((LENGTH, LENGTH))) for _ in range(3)]
MAPS_B = [np.tril(MAPS_A[0] + RNG.random((LENGTH, LENGTH))) for _ in range(2)]
STREAM_A = [RNG.standard_normal((LENGTH, 5)) for _ in range(3)]
STREAM_B = [STREAM_A[0] @ RNG.standard_normal((5, 60)) + RNG.standard_normal((LENGTH, 60))] * 2


def test_causal_agreement_of_every_pair_is_that_of_the_pairwise_statistic():
    found = agreement(causal_ranks(MAPS_A), causal_ranks(MAPS_B))
    for i, a in enumerate(MAPS_A):
        for j, b in enumerate(MAPS_B):
            # The ranks are kept in float32.
            assert found[i, j] == pytest.approx(causal_spearman(a, b), abs=1e-6)


def test_rows_without_an_order_are_left_out():
    flat = MAPS_A[0].copy()
    flat[7, :8] = 0.125
    found = agreement(causal_ranks([flat]), causal_ranks(MAPS_B))
    assert found[0, 0] == pytest.approx(causal_spearman(flat, MAPS_B[0]), abs=1e-6)
    uniform = np.tril(np.ones((LENGTH, LENGTH)))
    assert np.isnan(agreement(causal_ranks([uniform]), causal_ranks(MAPS_B))).all()


def test_a_map_agrees_fully_with_itself_and_with_a_monotone_function_of_itself():
    ranks = causal_ranks(MAPS_A)
    assert np.diag(agreement(ranks, ranks)) == pytest.approx([1.0] * 3, abs=1e-6)
    squared = causal_ranks([np.square(MAPS_A[0])])
    assert agreement(squared, ranks)[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_first_rows_are_those_of_the_cut_map():
    cut, short = first_rows(causal_ranks(MAPS_A), 17), causal_ranks([m[:17, :17] for m in MAPS_A])
    np.testing.assert_array_equal(cut.values, short.values)
    np.testing.assert_array_equal(cut.defined, short.defined)


def test_windowed_agreement_is_a_mean_of_rank_correlations_by_lag():
    window = window_size(LENGTH)
    assert window == 10
    found = agreement(window_ranks(MAPS_A), window_ranks(MAPS_B), 3)
    count = LENGTH - window
    for i, a in enumerate(MAPS_A):
        for j, b in enumerate(MAPS_B):
            rows = []
            for t in range(count):
                query, other = t + window, (t - 3) % count + window
                one = [a[query, query - k] for k in range(window + 1)]
                two = [b[other, other - k] for k in range(window + 1)]
                rows.append(spearman(one, two))
            assert found[i, j] == pytest.approx(np.mean(rows), abs=1e-6)


def test_windows_have_a_largest_size():
    assert window_size(1000) == MAX_WINDOW


def test_lag_profile_is_the_mean_along_each_diagonal_relative_to_even_attention():
    shares = MAPS_A[0] / MAPS_A[0].sum(1, keepdims=True)
    found = lag_profile(shares)
    for k in range(LENGTH):
        expected = np.mean([(t + 1) * shares[t, t - k] for t in range(k, LENGTH)])
        # Rounded to five digits.
        assert np.diagonal(found, -k) == pytest.approx(expected, rel=2e-5)
        assert len(set(np.diagonal(found, -k))) == 1
    assert not np.triu(found, 1).any()


def test_attention_spread_evenly_has_no_lag_profile():
    even = np.tri(LENGTH) / np.arange(1, LENGTH + 1)[:, None]
    assert set(lag_profile(even)[-1]) == {1.0}
    # 1 / (t + 1) in float32 is not quite that.
    assert len(set(lag_profile(even.astype(np.float32))[-1])) == 1


def test_shifted_queries_keep_what_the_lag_gives_and_break_the_rest():
    """Maps that fall off with the lag alone agree after any shift; content agrees at shift 0."""
    lags = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
    by_lag = np.where(lags >= 0, np.exp(-np.maximum(lags, 0) / 9.0), 0.0)
    fast, slow = window_ranks([by_lag]), window_ranks([np.square(by_lag)])
    for shift in (0, 5, 11):
        assert agreement(fast, slow, shift)[0, 0] == pytest.approx(1.0, abs=1e-6)
    content = window_ranks(MAPS_A[:1])
    assert agreement(content, content)[0, 0] == pytest.approx(1.0, abs=1e-6)
    # 30 queries of 11 independent lags: a standard error of 0.06.
    assert abs(agreement(content, content, 7)[0, 0]) < 0.3


def test_cka_of_every_pair_is_that_of_the_pairwise_statistic():
    grams_a, grams_b = unit_grams(STREAM_A), unit_grams(STREAM_B)
    for shift in (0, 4, 19):
        found = cka(grams_a, grams_b, shift)
        for i, x in enumerate(STREAM_A):
            for j, y in enumerate(STREAM_B):
                # Another order of float64 sums.
                assert found[i, j] == pytest.approx(
                    linear_cka(x, np.roll(y, shift, axis=0)), abs=1e-10
                )
    assert found.shape == (3, 2)
    assert cka(grams_a, grams_a)[0, 0] == pytest.approx(1.0, abs=1e-12)
    assert cka(grams_a, grams_b)[0, 0] == pytest.approx(
        linear_cka(STREAM_A[0], STREAM_B[0]), abs=1e-10
    )


def test_cka_does_not_change_with_rotation_scale_and_shift():
    rotation, _ = np.linalg.qr(RNG.standard_normal((5, 5)))
    moved = 1e-6 * (STREAM_A[0] @ rotation) + 3.0
    # The mean of 3 leaves the values 1e-6 / 3 of float64's digits.
    assert cka(unit_grams([moved]), unit_grams(STREAM_A))[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_cka_without_variance_is_undefined_and_of_three_tokens_refused():
    constant = np.full((LENGTH, 4), 0.1)
    assert np.isnan(cka(unit_grams([constant]), unit_grams(STREAM_A))).all()
    with pytest.raises(ValueError, match="have 3 tokens; a debiased CKA needs 4"):
        unit_grams([np.ones((3, 2))])


def test_means_over_texts_leave_undefined_ones_out():
    mean, spread = over_texts([np.array([[1.0, math.nan]]), np.array([[3.0, math.nan]])])
    assert mean[0, 0] == 2.0
    assert spread[0, 0] == pytest.approx(math.sqrt(2))
    assert np.isnan([mean[0, 1], spread[0, 1]]).all()
    assert np.isnan(over_texts([np.ones((1, 1))])[1][0, 0])


def test_related_texts_are_one_in_the_mean_and_its_spread():
    values = [np.array([[v, 1.0]]) for v in (1.0, 3.0, 8.0, np.nan)]
    mean, spread = over_texts(values, [0, 0, 1, 1])
    np.testing.assert_allclose(mean, [[5.0, 1.0]])
    np.testing.assert_allclose(spread, [[np.std([2.0, 8.0], ddof=1), 0.0]])
    section = with_null(values, [], 9, "few", [0, 0, 1, 1])
    assert (section["num_texts"], section["num_groups"]) == (4, 2)


def test_a_statistic_beside_its_null():
    values = [np.array([[0.9, 0.0]]), np.array([[0.7, math.nan]])]
    draws = [np.linspace(-0.5, 0.5, 39)[:, None, None] * np.ones((39, 1, 2))] * 2
    found = with_null(values, draws, 80, None)
    assert found["value"] == [[pytest.approx(0.8), 0.0]]
    assert found["text_std"][0][1] is None
    assert found["null_mean"][0] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert (found["null_low"][0][0], found["null_high"][0][0]) == (-0.5, 0.5)
    assert found["p_value"][0][0] == pytest.approx(2 / 40)
    assert (found["n"], found["num_texts"], found["num_draws"]) == (80, 2, 39)
    without = with_null(values, [], 8, "8 tokens")
    assert without["null_high"] == [[None, None]]
    assert (without["num_draws"], without["reason"]) == (0, "8 tokens")


def test_best_matches_of_both_sides():
    matrix = np.array([[0.1, 0.9], [0.2, math.nan], [math.nan, math.nan]])
    # Rows: 0.9, 0.2, none; columns: 0.2, 0.9.
    assert best_match(matrix) == pytest.approx(np.mean([0.9, 0.2, 0.2, 0.9]))
    assert math.isnan(best_match(np.full((2, 2), np.nan)))
    assert plain(matrix)[1] == [0.2, None]
