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
)


def curve_of(kl: Tensor, kind: str = "knockout") -> CausalMemoryCurve:
    places = tuple((0, token) for token in range(len(kl)))
    return CausalMemoryCurve(kind, (0,), places, kl.double(), kl.double())


def test_bins_double_and_hold_means_over_their_lags():
    assert lag_bins(0, 9) == [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 9)]
    assert lag_bins(1, 1) == [(1, 1)]
    assert lag_bins(1, 4) == [(1, 1), (2, 2), (3, 4)]
    kl = torch.tensor([[math.nan, 1.0, 2.0, 3.0], [math.nan, 3.0, 4.0, math.nan]])
    bins = curve_of(kl).bins()
    assert [(b.first_lag, b.num_positions, b.kl) for b in bins] == [
        (1, 2, 2.0), (2, 2, 3.0), (3, 1, 3.0)
    ]  # fmt: skip
    assert bins[0].kl_low is None  # of 2 positions
    five = curve_of(torch.tensor([[math.nan, float(x)] for x in (1, 2, 3, 5, 9)])).bins()
    assert five[0].kl_low < 4.0 < five[0].kl_high  # type: ignore[operator]


def test_intervals_hold_the_mean_and_are_seeded():
    kl = torch.rand(30, 9, generator=torch.Generator().manual_seed(0))
    first, again, other = (curve_of(kl, "reset").bins(seed) for seed in (0, 0, 1))
    assert first == again != other
    for entry in first:
        assert None not in entry
        assert entry.kl_low < entry.kl < entry.kl_high  # type: ignore[operator]


def test_a_permutation_test_finds_a_difference_and_none():
    low = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    high = torch.rand(40, 2, generator=torch.Generator().manual_seed(1))
    assert compare_curves(curve_of(low), curve_of(high))[0]["p_value"] > 0.05
    shifted = compare_curves(curve_of(low), curve_of(high + 1))[0]
    assert shifted["p_value"] < 0.005
    assert shifted["difference"] == pytest.approx(-1, abs=0.2)


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
    # One position cannot be resampled.
    assert (same["low"], same["high"], same["num_lags"], same["reason"]) == (None, None, 4, None)


def test_an_agreement_has_an_interval_over_positions():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.arange(12.0).neg().exp()
    steady = kernel_agreement(curve_of(kernel.expand(6, -1).clone()), kernel)
    assert (steady["low"], steady["high"]) == pytest.approx((1.0, 1.0))
    noise = kernel_agreement(curve_of(torch.rand(6, 12, generator=generator)), kernel)
    assert noise["low"] < noise["spearman"] < noise["high"]
    assert noise["high"] - noise["low"] > 0.2
    again = kernel_agreement(curve_of(torch.rand(6, 12, generator=generator)), kernel)
    assert again != noise
