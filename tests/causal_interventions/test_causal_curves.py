"""Curves over the lag: bins, intervals, comparisons, agreement with a kernel, on given numbers."""

import math

import pytest
import torch
from torch import Tensor

from causal_interventions.causal_curves import (
    CausalMemoryCurve,
    compare_curves,
    kernel_agreement,
    lag_bins,
    pair_effect,
    pooled_curve,
)
from token_statistics.intervals import mean_interval


def curve_of(
    kl: Tensor, kind: str = "knockout", texts: int | None = None, groups=None
) -> CausalMemoryCurve:
    """Rows in turn of so many texts, or each of its own."""
    places = tuple((row % (texts or len(kl)), row) for row in range(len(kl)))
    return CausalMemoryCurve(kind, (0,), places, kl.double(), kl.double(), groups)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_bins_double_and_hold_means_over_their_lags():
    assert lag_bins(0, 9) == [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 9)]
    assert lag_bins(1, 1) == [(1, 1)]
    assert lag_bins(1, 4) == [(1, 1), (2, 2), (3, 4)]
    kl = torch.tensor([[math.nan, 1.0, 2.0, 3.0], [math.nan, 3.0, 4.0, math.nan]])
    bins = curve_of(kl).bins()
    assert [(b.first_lag, b.num_positions, b.kl) for b in bins] == [
        (1, 2, 2.0), (2, 2, 3.0), (3, 1, 3.0)
    ]  # fmt: skip
    assert bins[0].kl_low is None
    assert bins[0].reason == "2 independent texts; an interval needs 5"
    five = curve_of(torch.tensor([[math.nan, float(x)] for x in (1, 2, 3, 5, 9)])).bins()
    assert five[0].kl_low < 4.0 < five[0].kl_high  # type: ignore[operator]


def test_intervals_hold_the_mean_and_are_seeded():
    first, again, other = (curve_of(drawn(30, 9), "reset").bins(seed) for seed in (0, 0, 1))
    assert first == again != other
    for entry in first:
        assert (entry.num_texts, entry.reason) == (30, None)
        assert entry.kl_low < entry.kl < entry.kl_high  # type: ignore[operator]


def test_positions_of_a_text_are_no_samples_of_their_own():
    """48 positions of 3 texts have no interval, no p and one agreement a text."""
    kl, kernel = drawn(48, 9), torch.arange(9.0).neg()
    few = curve_of(kl, texts=3)
    assert {(one.num_positions, one.num_texts, one.kl_low) for one in few.bins()} == {(48, 3, None)}
    assert {one.reason for one in few.bins()} == {"3 independent texts; an interval needs 5"}
    found = kernel_agreement(few, kernel)
    assert (found["num_texts"], found["low"], found["reason"]) == (3, None, few.bins()[0].reason)
    rows = compare_curves(few, curve_of(kl + 1, texts=3))
    assert {(row["num_texts"], row["p_value"]) for row in rows} == {(3, None)}
    assert rows[0]["reason"] == "3 independent texts; a p needs 5"
    assert rows[0]["difference"] == pytest.approx(-1)
    pair = pair_effect(few, curve_of(kl, texts=3), curve_of(3 * kl, texts=3))
    assert (pair.num_texts, pair.excess_low) == (3, None)
    assert pair.reason == few.bins()[0].reason
    # A text whose positions come ten times over weighs what it did.
    once, often = curve_of(kl[:6]), curve_of(kl[:6].repeat(10, 1), texts=6)
    for one, other in zip(once.bins(), often.bins(), strict=True):
        assert one[3:-1] == pytest.approx(other[3:-1])


def test_related_texts_are_one():
    kl = drawn(8, 5)
    related = curve_of(kl, groups=(0, 0, 0, 0, 4, 5, 6, 7))
    joined = curve_of(torch.cat([kl[:4].mean(0, keepdim=True), kl[4:]]))
    for one, other in zip(related.bins(), joined.bins(), strict=True):
        assert one.num_texts == 5
        assert one[3:-1] == pytest.approx(other[3:-1])
    torch.testing.assert_close(related.mean_kl[1:], joined.mean_kl[1:])
    assert pooled_curve([related, related]).texts == related.texts * 2


def test_an_interval_stays_where_the_measure_is():
    """Bootstrap-t of one large KL among small ones begins below 0, of agreements ends above 1."""
    kl = torch.tensor([[math.nan, x] for x in (1e-4, 1e-4, 2e-4, 1e-4, 5e-2, 1e-4)])
    low = mean_interval(kl[:, 1]).low
    assert low is not None
    assert low < 0
    (entry,) = curve_of(kl).bins()
    assert (entry.kl_low, entry.loss_low) == (0.0, pytest.approx(low))
    kernel = torch.arange(12.0).neg().exp()
    nearly = kernel.repeat(6, 1)
    nearly[0, 3:] = nearly[0, 3:].flip(0)
    found = kernel_agreement(curve_of(nearly), kernel)
    assert found["low"] < found["spearman"] < found["high"] == 1.0


def test_an_agreement_lies_in_its_interval():
    """The agreement of a mean curve is larger than that of resampled ones, which are noisier."""
    kernel = torch.arange(20.0).neg().exp()
    for seed in range(10):
        found = kernel_agreement(curve_of(kernel + 0.3 * drawn(8, 20, seed=seed)), kernel)
        assert -1 <= found["low"] < found["spearman"] < found["high"] <= 1


def test_a_comparison_finds_a_difference_and_none():
    low, high = drawn(12, 2), drawn(12, 2, seed=1)
    assert compare_curves(curve_of(low), curve_of(high))[0]["p_value"] > 0.05
    shifted = compare_curves(curve_of(low), curve_of(high + 1))[0]
    assert shifted["p_value"] == pytest.approx(2 / 2**12)  # of the signs of 12 texts, two-sided
    assert shifted["difference"] == pytest.approx(-1, abs=0.3)


def test_a_comparison_is_of_the_texts_that_have_both():
    one, other = curve_of(drawn(6, 2)), curve_of(drawn(7, 2))
    found = compare_curves(one, other)[0]
    assert (found["num_texts"], found["num_baseline"], found["difference"]) == (6, 7, 0.0)
    elsewhere = CausalMemoryCurve("knockout", (0,), ((9, 0),), drawn(1, 2), drawn(1, 2))
    nothing = compare_curves(one, elsewhere)[0]
    assert (nothing["num_texts"], nothing["kl"]) == (0, None)
    assert nothing["reason"] == "no text has positions on both sides"


@pytest.mark.parametrize(
    ("kl", "reason"),
    [(torch.ones(1, 9), "a curve is the same at every lag"), (torch.rand(1, 3), "fewer than 3")],
)
def test_an_agreement_that_is_undefined_says_why(kl, reason):
    found = kernel_agreement(curve_of(kl), torch.rand(20))
    assert found["spearman"] is None
    assert reason in found["reason"]


def test_agreement_leaves_the_token_itself_out():
    kl = torch.tensor([[9.0, 4.0, 3.0, 2.0, 1.0]])
    same = kernel_agreement(curve_of(kl), torch.tensor([0.0, 0.4, 0.3, 0.2, 0.1]))
    assert same["spearman"] == pytest.approx(1.0)
    assert same["falling"] == pytest.approx(1.0)
    assert (same["low"], same["high"], same["num_lags"], same["num_texts"]) == (None, None, 4, 1)
    assert same["reason"] == "1 independent text; an interval needs 5"


def test_an_agreement_has_an_interval_over_texts():
    kernel = torch.arange(12.0).neg().exp()
    steady = kernel_agreement(curve_of(kernel.expand(6, -1).clone()), kernel)
    assert (steady["low"], steady["high"]) == pytest.approx((1.0, 1.0))
    assert (steady["num_texts"], steady["reason"]) == (6, None)
    noise = kernel_agreement(curve_of(drawn(6, 12)), kernel)
    assert noise["high"] - noise["low"] > 0.2
    assert kernel_agreement(curve_of(drawn(6, 12, seed=1)), kernel) != noise


def test_a_text_without_lags_to_rank_is_left_out_of_an_agreement():
    kl = drawn(6, 9)
    kl[0, 3:] = math.nan
    kl[1, 1:] = 0.5
    found = kernel_agreement(curve_of(kl), torch.arange(9.0).neg())
    assert (found["num_lags"], found["num_texts"]) == (8, 4)
