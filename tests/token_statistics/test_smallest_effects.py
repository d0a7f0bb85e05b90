"""Smallest effects: what they let pass, and an excess over chance that tokens do not change."""

import json
from dataclasses import replace

import numpy as np
import pytest

from token_statistics.channel_correlations import PooledActivations, cross_layer_correlation
from token_statistics.findings import NOT_SUPPORTED, TOO_LITTLE
from token_statistics.smallest_effects import (
    KL_FLOOR,
    SMALLEST_EFFECTS,
    beyond_chance,
    pair_shares,
    worth_a_name,
)
from token_statistics.verdict_rules import above_null


def finding(value):
    test = {"value": value, "null_low": 0.0, "null_high": 0.01}
    return above_null("c", "s", {f"layer_{i}": test for i in range(6)}, "p")


def test_each_has_a_size_a_unit_and_a_reason():
    for least in SMALLEST_EFFECTS.values():
        assert least.value > 0
        assert least.unit
        assert least.reason
    assert KL_FLOOR == 1e-4


def test_what_exceeds_its_null_by_too_little_is_not_supported():
    small, large = finding(0.05), finding(0.2)
    assert small.verdict == large.verdict != NOT_SUPPORTED
    assert worth_a_name(small, "correlation").verdict == NOT_SUPPORTED
    assert worth_a_name(large, "correlation").verdict == large.verdict
    assert worth_a_name(small, "correlation").rule.endswith("; and at least 0.1 correlation")
    assert worth_a_name(small, "correlation").reason == (
        "below 0.1 correlation, the least worth a name"
    )
    assert worth_a_name(large, "correlation").reason is None
    assert worth_a_name(large, "kl", effect=1e-7).verdict == NOT_SUPPORTED
    assert worth_a_name(large, "kl", effect=1e-7).reason == (
        "1e-07 is below 0.0001 nats, the least worth a name"
    )
    assert worth_a_name(small, "kl", effect=1e-3).verdict == small.verdict


def test_a_large_effect_inside_its_null_stays_not_supported_and_an_open_one_open():
    inside = replace(finding(0.005), value=0.9)
    assert worth_a_name(inside, "correlation").verdict == NOT_SUPPORTED
    assert worth_a_name(inside, "correlation").reason is None  # its null refuses it
    assert worth_a_name(finding(None), "correlation").verdict == TOO_LITTLE


@pytest.mark.parametrize("statistic", ["mean_abs", "max_abs"])
def test_the_excess_does_not_depend_on_the_number_of_tokens(statistic):
    """Channels with a common part: r = 0.3 in every pair; noise adds 1 / n to each square."""
    rng = np.random.default_rng(0)
    shares = np.sqrt(0.3)
    raw, excess = [], []
    for n in (128, 2048):
        common = rng.standard_normal((n, 1))
        x, y = (shares * common + np.sqrt(0.7) * rng.standard_normal((n, 30)) for _ in range(2))
        found = cross_layer_correlation(
            PooledActivations(x, (n,)), PooledActivations(y, (n,)), stream="mixer"
        ).to_dict()[statistic]
        raw.append(found["value"])
        excess.append((beyond_chance(found) or {})["value"])
        json.dumps(beyond_chance(found), allow_nan=False)
    if statistic == "mean_abs":
        # 0.3 within the spread of one draw of 128 tokens' common part.
        assert excess == pytest.approx([0.3, 0.3], abs=0.06)
    assert abs(excess[0] - excess[1]) < abs(raw[0] - raw[1]) + 0.02


def test_noise_has_no_excess_however_few_the_tokens():
    rng = np.random.default_rng(1)
    for n in (64, 512):
        x, y = rng.standard_normal((2, n, 40))
        found = cross_layer_correlation(
            PooledActivations(x, (n,)), PooledActivations(y, (n,)), stream="mixer"
        ).to_dict()["mean_abs"]
        # The mean |r| of noise is 0.8 / sqrt(n): 0.1 at 64 tokens.
        excess = (beyond_chance(found) or {})["value"]
        assert found["value"] > 0.03 > excess
        assert excess < SMALLEST_EFFECTS["correlation"].value


def test_undefined_tests_stay_undefined():
    assert beyond_chance(None) is None
    undefined = {"value": None, "null_mean": None, "reason": "too few tokens"}
    assert beyond_chance(undefined) == undefined
    assert (beyond_chance({"value": 0.1, "null_mean": 0.2, "null_high": 0.3}) or {})["value"] == 0.0


def test_a_few_pairs_beside_many_are_told_from_a_bell_of_pairs():
    rng = np.random.default_rng(2)
    x, noise = rng.standard_normal((2, 600, 40))
    few, nothing = noise.copy(), noise
    few[:, :2] += 20 * x[:, :2]
    bell = 0.5 * x @ rng.standard_normal((40, 40)) + rng.standard_normal((600, 40))
    for y, sparse, above in ((few, True, True), (bell, False, True), (nothing, False, False)):
        pair = cross_layer_correlation(
            PooledActivations(x, (600,)), PooledActivations(y, (600,)), stream="mixer"
        ).to_dict()
        shares = pair_shares(pair)
        assert (shares.sparse, shares.above) == (sparse, above)
