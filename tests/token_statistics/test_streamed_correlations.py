"""Correlations over a stream against those of the same tokens at hand, naive loops, and plants."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalOperand=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false

import json

import numpy as np
import pytest
import reference
import torch
from defined import known
from series import ar1

from token_statistics.channel_correlations import PooledActivations, cross_layer_correlation
from token_statistics.cka import linear_cka
from token_statistics.streamed_correlations import TESTED, StreamedCorrelations

LENGTHS = (90, 60, 75)
TOKENS = 225


def layers(seed=0, n=TOKENS, p=7, q=5):
    """Two layers that share something, with channels of unlike means and scales."""
    x, noise = ar1(0.3, n, p, seed), ar1(0.2, n, q, seed + 1)
    y = noise + 0.5 * np.roll(x, 2, axis=0)[:, :q]
    return x * np.logspace(-2, 2, p) + 5.0, y * 3.0 - 20.0


def streamed(x, y, batches, **options):
    """The result after these batches of text lengths, each added by itself."""
    sums = StreamedCorrelations([(0, 1)], **{"batch_tokens": 1, **options})
    start = 0
    for lengths in batches:
        rows = slice(start, start + sum(lengths))
        sums.update({0: torch.from_numpy(x[rows]), 1: torch.from_numpy(y[rows])}, list(lengths))
        start += sum(lengths)
    assert start == len(x)
    return sums.results()["layer_0_to_1"]


def at_hand(x, y, lengths=LENGTHS):
    return cross_layer_correlation(PooledActivations(x, lengths), PooledActivations(y, lengths))


@pytest.mark.parametrize("batches", [[LENGTHS], [[n] for n in LENGTHS], [LENGTHS[:2], LENGTHS[2:]]])
def test_a_stream_gives_what_its_tokens_give_at_hand(batches):
    x, y = layers()
    found, expected = streamed(x, y, batches), at_hand(x, y)
    # Sums of 225 products in float32 round at 1e-6; CKA subtracts sums of like size.
    for name, tolerance in (("mean", 1e-6), ("mean_abs", 1e-6), ("max_abs", 1e-6),
                            ("best_match", 1e-6), ("cka", 1e-5)):  # fmt: skip
        test = getattr(expected, name)
        assert found.values[name] == pytest.approx(test.value, abs=tolerance), name
        assert found.tests[name].value == pytest.approx(test.value, abs=tolerance), name
    assert found.significant_share == pytest.approx(expected.significant_share)
    assert found.median_effective_samples == pytest.approx(
        expected.median_effective_samples, rel=1e-5
    )
    for mine, theirs in zip(found.top_pairs, expected.top_pairs, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2:4] == pytest.approx(theirs[2:4], rel=1e-5)
    assert found.lags == expected.lags
    np.testing.assert_allclose(found.lagged_mean_abs, expected.lagged_mean_abs, atol=1e-6)
    assert (found.num_tokens, found.num_segments) == (225, 3)


def test_batches_of_another_cut_give_the_same():
    x, y = layers(3)
    one, three = streamed(x, y, [LENGTHS]), streamed(x, y, [[n] for n in LENGTHS])
    # The same draws: shifts come text by text only where each batch is one text, so that nulls
    # differ; the data do not.
    for name in TESTED:
        assert one.values[name] == pytest.approx(three.values[name], abs=1e-5)


def test_small_batches_are_gathered_so_that_no_odd_text_sets_the_scale():
    x, y = layers(14, n=2000)
    # The first token is far from all others, as in many models, and comes alone.
    x[0], y[0] = 100 * x.std(axis=0), -100 * y.std(axis=0)
    found, expected = streamed(x, y, [[1], [1999]], batch_tokens=2000), at_hand(x, y, (1, 1999))
    # Float32 sums of 2,000 products. Each batch by itself is 1e-4 off, and 8e-3 in CKA.
    for name, tolerance in (("mean_abs", 2e-6), ("max_abs", 5e-6), ("cka", 5e-5)):
        value = getattr(expected, name).value
        assert found.values[name] == pytest.approx(value, abs=tolerance), name


def test_cka_that_rounding_leaves_undefined_is_none():
    x = np.zeros((200, 1))
    x[0] = 1.0  # a single row has no unbiased HSIC with itself
    result = streamed(x, ar1(0.0, 200, 1, seed=16), [[200]])
    assert result.values["cka"] is None
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_a_batch_that_waits_is_the_suites_own():
    x, y = (torch.from_numpy(side) for side in layers(15))
    sums = StreamedCorrelations([(0, 1)])
    for start in (0, 100):
        batch = {0: x[start : start + 100].clone(), 1: y[start : start + 100].clone()}
        sums.update(batch, [100])
        batch[0].zero_()
    together = StreamedCorrelations([(0, 1)])
    together.update({0: x[:200], 1: y[:200]}, [100, 100])
    assert json.dumps(sums.results()["layer_0_to_1"].to_dict()) == json.dumps(
        together.results()["layer_0_to_1"].to_dict()
    )


def test_draws_of_the_null_are_texts_rolled_by_themselves():
    x, y = layers(4)
    found = streamed(x, y, [LENGTHS], num_shifts=20, seed=5)
    norms = np.stack([np.linalg.norm(side, axis=1) for side in (x, y)], axis=1)
    starts = reference.warm_up(norms, LENGTHS)
    left, _ = reference.without_position(x, LENGTHS, starts)
    parts = [
        part[start:] - part[start:].mean(axis=0)
        for part, start in zip(np.split(y, np.cumsum(LENGTHS)[:-1]), starts, strict=True)
    ]
    cuts = [reference.cut_of_axis(part) for part in parts]
    rng = np.random.default_rng(5)
    for width in (7, 5):
        rng.permutation(width)  # the sampled channels
    sizes = [len(part) - cut for part, cut in zip(parts, cuts, strict=True)]
    shifts = [9 + rng.integers(0, size - 17, 20) for size in sizes]
    draws = []
    for shift in zip(*shifts, strict=True):
        rolled = [
            np.concatenate([np.zeros((start, 5)), reference.rolled(part, by, cut)])
            for part, by, cut, start in zip(parts, shift, cuts, starts, strict=True)
        ]
        moved, _ = reference.without_position(np.concatenate(rolled), LENGTHS, starts)
        r = np.array([[np.corrcoef(a, b)[0, 1] for b in moved.T] for a in left.T])
        draws.append([r.mean(), np.abs(r).mean(), np.abs(r).max(), np.abs(r).max(axis=0).mean()])
    means = np.mean(draws, axis=0)
    for name, mean in zip(TESTED, means, strict=False):
        assert found.tests[name].null_mean == pytest.approx(mean, abs=1e-5), name


def test_some_channels_stand_for_all_in_the_null_alone():
    x, y = layers(6, p=12, q=9)
    every, some = streamed(x, y, [LENGTHS]), streamed(x, y, [LENGTHS], num_sampled=4)
    assert (every.num_sampled, some.num_sampled) == ((12, 9), (4, 4))
    assert some.num_channels == (12, 9)
    assert some.values == every.values
    assert some.significant_share == every.significant_share
    assert some.tests["mean_abs"].value != every.tests["mean_abs"].value


def test_what_follows_by_two_tokens_peaks_at_lag_two_and_is_found():
    x = ar1(0.0, 400, 6, seed=7)
    result = streamed(x, np.roll(x, 2, axis=0) + 0.1 * ar1(0, 400, 6, 8), [[200], [200]])
    assert result.lags[int(np.argmax(result.lagged_mean_abs))] == 2
    y = x + ar1(0.0, 400, 6, seed=9)
    tied = streamed(x, y, [[200], [200]])
    assert tied.tests["best_match"].outside_null is True
    assert tied.values["cka"] > 0.4


def test_slow_noise_gives_no_finding():
    found = [
        streamed(ar1(0.9, 1200, 20, 2 * s), ar1(0.9, 1200, 20, 2 * s + 1), [[600], [600]])
        for s in range(10, 50)
    ]
    # 40 tests at 5 %: 7 or more outside happen for 0.3 % of seed sets.
    for name in TESTED:
        assert sum(result.tests[name].outside_null for result in found) <= 6, name
    assert sum(result.significant_share > 0 for result in found) <= 6


def test_series_too_slow_for_their_texts_claim_nothing():
    x, y = ar1(0.95, 300, 5, seed=30), ar1(0.95, 300, 5, seed=31)
    result = streamed(x, y, [[100]] * 3)
    assert result.reason is not None
    assert "change so slowly" in result.reason
    assert (
        result.reason.split("are worth")[0]
        == at_hand(x, y, (100,) * 3).reason.split("are worth")[0]
    )


def test_a_large_mean_and_a_late_change_of_scale_do_no_harm():
    x, y = layers(10)
    x[150:] *= 30.0
    found, expected = streamed(x + 1e4, y, [[n] for n in LENGTHS]), at_hand(x + 1e4, y)
    assert found.values["mean_abs"] == pytest.approx(expected.mean_abs.value, abs=1e-5)
    assert found.values["cka"] == pytest.approx(expected.cka.value, abs=1e-4)


def test_channels_without_variance_are_left_out():
    x, y = layers(11)
    x[:, 2] = 4.0
    found, expected = streamed(x, y, [[n] for n in LENGTHS]), at_hand(x, y)
    assert found.num_channels == (6, 5)
    assert found.values["mean_abs"] == pytest.approx(expected.mean_abs.value, abs=1e-6)
    assert found.values["cka"] == pytest.approx(expected.cka.value, abs=1e-5)
    flat = streamed(np.ones_like(x), y, [LENGTHS])
    assert flat.reason == "no channel of one of the layers varies over the tokens"
    assert flat.values["cka"] is None


KNOWN = {
    "identity": lambda x, rng: x,
    "rotation": lambda x, rng: x @ np.linalg.qr(rng.standard_normal((x.shape[1],) * 2))[0],
    "scaling": lambda x, rng: -7.0 * x + 3.0,
    "independent": lambda x, rng: rng.standard_normal(x.shape),
    "one direction shared": lambda x, rng: rng.standard_normal(x.shape) + 3.0 * x[:, :1],
}


@pytest.mark.parametrize("width", [8, 58, 60, 62, 150])
@pytest.mark.parametrize("case", KNOWN)
def test_cka_is_the_published_one_on_known_cases_and_at_n_near_d(case, width):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((60, width))
    y = KNOWN[case](x, rng)
    published = reference.debiased_cka(x - x.mean(0), y - y.mean(0))
    assert linear_cka(x, y) == pytest.approx(published, abs=1e-9)
    norms = np.stack([np.linalg.norm(side, axis=1) for side in (x, y)], axis=1)
    lengths = (30, 30)
    starts = reference.warm_up(norms, lengths)
    (left_x, count), (left_y, _) = (
        reference.without_position(side, lengths, starts) for side in (x, y)
    )
    expected = reference.cka_with_freedom(left_x, left_y, len(left_x) - count)
    if case in ("identity", "rotation", "scaling"):
        assert expected == pytest.approx(1.0, abs=1e-9)
    elif case == "independent":
        # Spread about 1 / n = 0.017 where d is near n or larger, 1 / d where it is small; the
        # biased CKA would be d / (d + n) and more: 0.5 at n = d.
        assert abs(expected) < 4 * max(1 / 60, 1 / width)
    # At hand in float64, and over a stream in float32.
    assert at_hand(x, y, lengths).cka.value == pytest.approx(expected, abs=1e-9)
    assert streamed(x, y, [[30], [30]]).values["cka"] == pytest.approx(expected, abs=2e-5)


def test_too_few_tokens_claim_nothing():
    x, y = layers(12, n=30)
    result = streamed(x, y, [[30]])
    assert (result.enough_tokens, result.reason) == (False, "30 tokens; a claim needs at least 40")
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_results_are_strict_json_and_seeded():
    x, y = layers(13)
    first, again = (streamed(x, y, [LENGTHS], seed=1).to_dict() for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        ({0: torch.ones(5, 2)}, [5], r"values lacks layers \[1\]"),
        ({0: torch.ones(5, 2), 1: torch.ones(4, 2)}, [5], r"layer 1 have shape \(4, 2\)"),
        ({0: torch.ones(5, 3), 1: torch.ones(5, 2)}, [5], r"layer 0 have shape \(5, 3\)"),
        ({0: torch.ones(5, 2), 1: torch.full((5, 2), torch.nan)}, [5], "nan or infinite"),
        ({0: torch.ones(5, 2), 1: torch.ones(5, 2)}, [5, 0], "at least one token"),
    ],
)
def test_bad_batches_are_refused(values, lengths, message):
    sums = StreamedCorrelations([(0, 1)])
    sums.update({0: torch.ones(6, 2), 1: torch.ones(6, 2)}, [6])
    with pytest.raises(ValueError, match=message):
        sums.update(values, lengths)


def test_bad_use_is_named():
    with pytest.raises(ValueError, match="name each pair once"):
        StreamedCorrelations([])
    with pytest.raises(RuntimeError, match="call update"):
        StreamedCorrelations([(0, 1)]).results()


def test_what_was_read_in_an_earlier_batch_counts_once_and_moves_with_its_group():
    x, y = layers(20, n=300)
    x, y = (np.concatenate([side, side[:60]]) for side in (x, y))
    found = streamed(x, y, [[100], [100], [100], [60]])
    assert (found.num_tokens, found.num_segments, found.num_groups) == (300, 4, 3)
    assert found.groups == (0, 1, 2, 0)
    assert found.values == streamed(x[:300], y[:300], [[100], [100], [100]]).values


def test_near_copies_over_batches_make_no_finding_of_noise():
    above = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = rng.standard_normal((100, 8))
        sums = StreamedCorrelations([(0, 1)], batch_tokens=1, seed=seed)
        for copy in range(4):
            text = first.copy()
            if copy:
                place = rng.integers(33, 95)
                text[place : place + 5] = rng.standard_normal((5, 8))
            halves = {i: torch.from_numpy(text[:, 4 * i : 4 * i + 4]) for i in range(2)}
            sums.update(halves, [100])
        found = sums.results()["layer_0_to_1"]
        assert found.num_groups == 1
        tests = [found.tests[name] for name in TESTED[1:]]
        above.append([known(test.value) > known(test.null_high) for test in tests])
    # 40 at 2.5 %: more than 4 have a probability of 0.3 %.
    assert np.sum(above, axis=0).max() <= 4


def test_texts_that_repeat_each_other_by_position_are_no_null():
    # Every fourth token is a text's own, as in the test of layers at hand.
    rng = np.random.default_rng(8)
    x, y = (np.tile(rng.standard_normal((100, 4)), (20, 1)) for _ in range(2))
    for side in (x, y):
        side[3::4] = rng.standard_normal((500, 4))
    found, expected = streamed(x, y, [[100] * 10] * 2), at_hand(x, y, (100,) * 20)
    assert "both layers vary at the same positions" in known(expected.reason)
    assert found.reason == expected.reason  # with the same product, to two digits
    assert found.values["mean_abs"] is None
    # What repeats by position in one of the layers alone is in no null, and refuses nothing.
    assert streamed(rng.standard_normal(x.shape), y, [[100] * 10] * 2).reason is None


def test_token_ids_of_other_lengths_are_refused():
    sums = StreamedCorrelations([(0, 1)])
    with pytest.raises(ValueError, match="token_ids holds texts of"):
        sums.update({0: torch.ones(6, 2), 1: torch.ones(6, 2)}, [6], [[1, 2]])
