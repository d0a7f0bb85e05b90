"""Correlations between layers against naive loops, planted relations, and noise."""

import json

import numpy as np
import pytest
import reference
from defined import known
from series import ar1

from token_statistics.association import (
    FALSE_DISCOVERY_RATE,
    benjamini_hochberg,
    pearson_matrix,
    pearson_p_values,
    rejected_and_adjusted,
    share_rejected,
)
from token_statistics.channel_correlations import (
    PooledActivations,
    TopPair,
    _varying_columns,
    _with_texts,
    cross_layer_correlation,
    largest_pairs,
)
from token_statistics.observations import observations
from token_statistics.position_course import PositionCourse
from token_statistics.time_shift_nulls import draw_shifts


def correlate(x, y, lengths=None, **options):
    lengths = (len(x),) if lengths is None else lengths
    return cross_layer_correlation(
        PooledActivations(np.asarray(x, float), lengths),
        PooledActivations(np.asarray(y, float), lengths),
        **options,
    )


def naive_r(x, y):
    """Every pair by numpy.corrcoef."""
    return np.array([[np.corrcoef(a, b)[0, 1] for b in y.T] for a in x.T])


def free_of_position(x, y, lengths):
    """Both layers' observations without their course, where they start, and degrees of freedom."""
    norms = np.stack([np.linalg.norm(side, axis=1) for side in (x, y)], axis=1)
    starts = reference.warm_up(norms, lengths)
    (left_x, count), (left_y, _) = (
        reference.without_position(side, lengths, starts) for side in (x, y)
    )
    return left_x, left_y, starts, len(left_x) - count


def moved(y, lengths, starts, shift, cut=True):
    """Each text about its mean rolled by itself, then without its course again."""
    parts = []
    for part, start, by in zip(np.split(y, np.cumsum(lengths)[:-1]), starts, shift, strict=True):
        own = part[start:] - part[start:].mean(axis=0)
        rolled = reference.rolled(own, by, reference.cut_of_axis(own) if cut else 0)
        parts.append(np.concatenate([np.zeros((start, y.shape[1])), rolled]))
    return reference.without_position(np.concatenate(parts), lengths, starts)[0]


def test_statistics_lags_and_null_equal_the_loops():
    lengths = (75, 90)
    x, y = ar1(0.5, 165, 3, seed=0), ar1(0.3, 165, 4, seed=1)
    y[:, 2] += x[:, 1]
    result = correlate(x, y, lengths, layers=(2, 5), stream="mixer", seed=6)
    left_x, left_y, starts, freedom = free_of_position(x, y, lengths)
    r = naive_r(left_x, left_y)
    assert result.mean.value == pytest.approx(r.mean(), abs=1e-12)
    assert result.mean_abs.value == pytest.approx(np.abs(r).mean(), abs=1e-12)
    assert result.max_abs.value == pytest.approx(np.abs(r).max(), abs=1e-12)
    cka = reference.cka_with_freedom(left_x, left_y, freedom)
    assert result.cka.value == pytest.approx(cka, abs=1e-12)
    used = [length - start for length, start in zip(lengths, starts, strict=True)]
    bounds = [0, *np.cumsum(lengths)]
    sizes = []
    for i, start in enumerate(starts):
        own = y[bounds[i] + start : bounds[i + 1]]
        sizes.append(used[i] - reference.cut_of_axis(own - own.mean(axis=0)))
    shifted = [moved(y, lengths, starts, shift) for shift in draw_shifts(sizes, seed=6)]
    magnitudes = [np.abs(naive_r(left_x, z)) for z in shifted]
    # The null's products are float32.
    tolerance = 1e-6
    for test, draws in (
        (result.mean, [naive_r(left_x, z).mean() for z in shifted]),
        (result.mean_abs, [m.mean() for m in magnitudes]),
        (result.max_abs, [m.max() for m in magnitudes]),
    ):
        assert test.null_low == pytest.approx(min(draws), abs=tolerance)
        assert test.null_high == pytest.approx(max(draws), abs=tolerance)
        assert test.null_mean == pytest.approx(np.mean(draws), abs=tolerance)
        assert (test.n, test.num_draws) == (sum(used), 39)
    assert result.lags == tuple(range(-8, 9))
    lagged = [
        np.abs(naive_r(left_x, moved(y, lengths, starts, (-k, -k), cut=False))).mean()
        for k in result.lags
    ]
    np.testing.assert_allclose(result.lagged_mean_abs, lagged, atol=tolerance)
    same = np.abs([r[i, i] for i in range(3)]).mean()
    assert result.same_channel_mean_abs == pytest.approx(same, abs=1e-12)
    assert (result.num_tokens, result.num_texts, result.num_channels) == (165, 2, (3, 4))
    assert (result.num_warm_up, result.groups) == (165 - sum(used), (0, 1))


def test_a_planted_pair_is_found_alone_and_first():
    x, y = ar1(0.3, 300, 12, seed=2), ar1(0.3, 300, 10, seed=3)
    y[:, 7] = 0.8 * x[:, 4] + 0.6 * y[:, 7]
    result = correlate(x, y)
    top = result.top_pairs[0]
    assert (top.channel_a, top.channel_b) == (4, 7)
    # cov = 0.8 var(x), var(y) = 0.64 var(x) + 0.36 var(x): r = 0.8, standard error 0.02.
    assert top.r == pytest.approx(0.8, abs=0.08)
    assert top.adjusted_p < 1e-10
    assert result.significant_share == pytest.approx(1 / 120)
    assert result.max_abs.outside_null is True
    assert [abs(pair.r) for pair in result.top_pairs] == sorted(
        (abs(pair.r) for pair in result.top_pairs), reverse=True
    )


def test_a_layer_that_follows_by_three_tokens_peaks_at_lag_three():
    x = ar1(0.0, 200, 4, seed=4)
    result = correlate(x, np.roll(x, 3, axis=0))
    assert result.lags[int(np.argmax(result.lagged_mean_abs))] == 3
    assert result.mean_abs.outside_null is False


def test_noise_gives_no_finding():
    results = [
        correlate(ar1(0, 100, 20, 2 * s + 10), ar1(0, 100, 20, 2 * s + 11)) for s in range(12)
    ]
    # 12 tests at 5 %: three or more outside happen for 2 % of seed sets; this is not one.
    for name in ("mean", "mean_abs", "max_abs", "cka"):
        assert sum(getattr(result, name).outside_null for result in results) <= 2, name
    # A false discovery rate of 5 % on noise alone: any discovery in at most one set of twenty.
    assert sum(known(result.significant_share) > 0 for result in results) <= 2
    assert max(known(result.significant_share) for result in results) <= 0.05


def test_slow_noise_gives_no_finding_where_an_uncorrected_test_does():
    x, y = ar1(0.95, 1200, 30, seed=40), ar1(0.95, 1200, 30, seed=41)
    result = correlate(x, y)
    uncorrected = pearson_p_values(pearson_matrix(x, y), 1200.0)
    assert (uncorrected < 0.05).mean() > 0.5  # independent, yet "significant"
    assert known(result.significant_share) <= 0.05
    assert known(result.significant_share_null) <= 0.05
    assert result.mean_abs.outside_null is False
    assert result.cka.outside_null is False
    # n (1 - phi^2) / (1 + phi^2) = 61.5 for AR(1); estimated within a factor of two.
    assert 31 < known(result.median_effective_samples) < 123


def test_series_too_slow_for_their_text_claim_nothing():
    # 100 tokens worth 5: a text that drifts from end to end has no null of shifts.
    result = correlate(ar1(0.95, 100, 10, seed=42), ar1(0.95, 100, 10, seed=43))
    assert result.enough_tokens is False
    assert "100 tokens of 1 text(s) that change so slowly" in known(result.reason)
    assert result.max_abs.reason == result.reason


def test_top_pairs_name_the_texts_they_rest_on():
    x, y = ar1(0, 300, 3, 44), ar1(0, 300, 3, 45)
    y[100:200, 1] = 3.0 * x[100:200, 0]  # tied in the second text alone
    y[:, 2] = -x[:, 2]  # in all three
    pairs = {(p.channel_a, p.channel_b): p for p in correlate(x, y, (100, 100, 100)).top_pairs}
    assert pairs[2, 2].num_texts_agreeing == 3
    assert known(pairs[2, 2].leading_share) < 0.5
    assert pairs[0, 1].leading_text == 1
    assert known(pairs[0, 1].leading_share) > 0.8


def test_too_few_tokens_claim_nothing():
    result = correlate(ar1(0, 12, 50, 5), ar1(0, 12, 50, 6))
    assert result.enough_tokens is False
    assert result.reason == "12 tokens; a claim needs at least 40"
    assert (result.num_tokens, result.num_channels) == (12, (50, 50))
    written = result.to_dict()
    for name in ("mean", "mean_abs", "max_abs", "cka"):
        assert written[name]["value"] is None
        assert written[name]["reason"] == result.reason
    for name in ("significant_share", "median_effective_samples", "mean_abs_with_position"):
        assert written[name] is None
    assert written["top_pairs"] == written["lags"] == []


def test_channels_without_variance_are_left_out_and_counted():
    x, y = ar1(0, 60, 4, 7), ar1(0, 60, 3, 8)
    x[:, 1] = 2.5
    y[:, 0] = x[:, 3]
    result = correlate(x, y)
    assert result.num_channels == (3, 3)
    assert (result.top_pairs[0].channel_a, result.top_pairs[0].channel_b) == (3, 0)
    assert result.top_pairs[0].r == pytest.approx(1.0)
    nothing = correlate(np.ones((60, 2)), y)
    assert nothing.reason == "no channel of one of the layers varies over the tokens"


def test_a_shared_outlier_at_the_first_token_shows_as_such():
    x, y = ar1(0, 100, 10, 9), ar1(0, 100, 10, 19)
    x[0], y[0] = 100.0, 100.0
    result = correlate(x, y)
    # It is warm-up, and in no statistic but the one that says what position makes.
    assert known(result.mean_abs_with_position) > 0.9
    assert known(result.mean_abs.value) < 0.2
    assert result.mean_abs.outside_null is False


def test_short_texts_have_fewer_lags():
    x, y = ar1(0, 72, 3, 20), ar1(0, 72, 3, 21)
    # Shifts of the null start at a quarter of a text of 12 tokens: lags stop before it.
    assert correlate(x, y, (60, 12)).lags == (-2, -1, 0, 1, 2)


def test_different_texts_are_refused():
    x = PooledActivations(np.ones((5, 2)), (5,))
    y = PooledActivations(np.ones((5, 2)), (2, 3))
    with pytest.raises(ValueError, match=r"texts of \(5,\) and \(2, 3\) tokens"):
        cross_layer_correlation(x, y)


def test_results_are_seeded_and_strict_json():
    x, y = ar1(0.2, 80, 5, 22), ar1(0.2, 80, 5, 23)
    first, again = correlate(x, y, seed=1).to_dict(), correlate(x, y, seed=1).to_dict()
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert first["top_pairs"][0].keys() == {
        "channel_a", "channel_b", "r", "effective_samples", "adjusted_p",
        "num_texts_agreeing", "leading_text", "leading_share",
    }  # fmt: skip
    assert correlate(x, y, seed=2).to_dict()["mean"]["null_mean"] != first["mean"]["null_mean"]


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_share_rejected_is_that_of_all_p_values(strength):
    rng = np.random.default_rng(0)
    r = np.clip(rng.normal(0, 0.15, (40, 30)) + strength * (rng.random((40, 30)) < 0.1), -1, 1)
    n_eff = rng.uniform(1.5, 60, r.shape)
    expected = benjamini_hochberg(pearson_p_values(r, n_eff), FALSE_DISCOVERY_RATE).rejected
    assert share_rejected(r, n_eff) == expected.mean()
    assert expected.any() == (strength > 0)


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_adjusted_p_values_of_some_pairs_are_those_among_all(strength):
    rng = np.random.default_rng(0)
    r = np.clip(rng.normal(0, 0.15, (40, 30)) + strength * (rng.random((40, 30)) < 0.1), -1, 1)
    p_values = pearson_p_values(r, rng.uniform(1.5, 60, r.shape))  # some are 1, and tied
    expected = benjamini_hochberg(p_values, FALSE_DISCOVERY_RATE)
    places = largest_pairs(r)
    share, adjusted = rejected_and_adjusted(p_values, places)
    assert share == expected.rejected.mean()
    assert adjusted.tolist() == expected.adjusted[places].tolist()
    everywhere = rejected_and_adjusted(p_values, tuple(np.indices(r.shape)))[1]
    assert everywhere.tolist() == expected.adjusted.tolist()


def test_a_pair_that_does_not_correlate_at_all_rests_on_no_text():
    zero = TopPair(0, 0, 0.0, 400.0, 1.0)
    course = PositionCourse(observations([range(400)]))
    side = _varying_columns(ar1(0, 400, 1, 50), course)
    assert _with_texts(zero, side, side, course.tokens) == zero


def copies(rng, count, length, changed):
    """One text of noise and copies of it with some tokens changed in both layers."""
    first = rng.standard_normal((length, 8))
    texts = [first.copy() for _ in range(count)]
    for text in texts[1:]:
        place = rng.integers(length // 3, length - changed)
        text[place : place + changed] = rng.standard_normal((changed, 8))
    return np.concatenate(texts)


def test_near_copies_are_one_text_and_noise_in_them_is_no_finding():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        both = copies(rng, 4, 100, 5)
        found.append(correlate(both[:, :4], both[:, 4:], (100,) * 4, seed=seed))
    assert {result.num_groups for result in found} == {1}
    assert found[0].groups == (0, 0, 0, 0)
    # What stands before the change was read before and counts once.
    assert all(100 < result.num_tokens < 400 for result in found)
    # 40 at 2.5 %: more than 4 have a probability of 0.3 %; taken for four texts, half are above.
    for name in ("mean_abs", "max_abs", "best_match", "cka"):
        above = [known(getattr(r, name).value) > known(getattr(r, name).null_high) for r in found]
        assert sum(above) <= 4, name
    assert sum(known(result.significant_share) > 0 for result in found) <= 5


def test_a_shared_beginning_counts_once_by_ids_as_by_values():
    rng = np.random.default_rng(0)
    ids = [tuple(range(30)) + tuple(range(100 * i, 100 * i + 50)) for i in range(1, 4)]
    prefix = rng.standard_normal((30, 6))
    texts = [np.concatenate([prefix, rng.standard_normal((50, 6))]) for _ in ids]
    x, lengths = np.concatenate(texts), (80,) * 3
    sides = [PooledActivations(x[:, part], lengths, tuple(ids)) for part in (slice(3), slice(3, 6))]
    by_ids = cross_layer_correlation(*sides)
    by_values = cross_layer_correlation(*(side._replace(token_ids=None) for side in sides))
    assert by_ids.num_tokens == by_values.num_tokens == 30 + 3 * 50
    assert by_ids.groups == by_values.groups == (0, 0, 0)
    assert by_ids.max_abs == by_values.max_abs


@pytest.mark.parametrize("num_texts", [1, 10])
def test_a_drift_that_both_layers_share_is_no_finding(num_texts):
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drift = np.sqrt(12) * (np.arange(200) / 200 - 0.5)[:, None]  # variance 1
        sides = [
            np.concatenate([
                np.sqrt(0.1) * drift + np.sqrt(0.9) * rng.standard_normal((200, 6))
                for _ in range(num_texts)
            ])
            for _ in range(2)
        ]  # fmt: skip
        found.append(correlate(sides[0], sides[1], (200,) * num_texts, seed=seed))
    # 20 at 2.5 %: more than 3 have a probability of 0.2 %; with the drift left in, 13 and more are.
    for name in ("mean_abs", "max_abs", "cka"):
        above = [known(getattr(r, name).value) > known(getattr(r, name).null_high) for r in found]
        assert sum(above) <= 3, name


@pytest.mark.parametrize("tail", ["cauchy", "t"])
def test_heavy_tails_make_no_pair(tail):
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shape = (300, 8)
        x, y = (
            rng.standard_cauchy(shape) if tail == "cauchy" else rng.standard_t(2.5, shape)
            for _ in range(2)
        )
        found.append(known(correlate(x, y, seed=seed).significant_share) > 0)
    # A pair beyond all 39 draws comes once in 40; more than 4 have a probability of 0.3 %.
    assert sum(found) <= 4


def test_texts_that_repeat_each_other_by_position_are_no_null():
    # Every fourth token is a text's own: no n-gram is shared, and the mean by position leaves
    # those alone.
    rng = np.random.default_rng(8)
    x, y = (np.tile(rng.standard_normal((100, 4)), (20, 1)) for _ in range(2))
    for side in (x, y):
        side[3::4] = rng.standard_normal((500, 4))
    result = correlate(x, y, (100,) * 20)
    assert result.num_groups == 20
    assert "both layers vary at the same positions of every text, 3.8 times" in (
        result.reason or ""
    )
    assert result.mean_abs.value is None
    # Tokens that are large in both layers, each at a place of its own, are no such thing.
    x, y = rng.standard_normal((2, 2000, 4))
    large = rng.integers(0, 2000, 40)
    x[large], y[large] = 10 * x[large], 10 * y[large]
    assert correlate(x, y, (100,) * 20).reason is None
