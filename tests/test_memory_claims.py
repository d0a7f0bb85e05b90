"""Verdicts on constructed data: each rule supports, refuses, and knows when there is too little."""

# A value is None only where it is undefined, and stand-ins have the fields in use: pyright is
# told not to mind either here.
# pyright: reportOptionalOperand=false, reportArgumentType=false, reportOperatorIssue=false

import numpy as np
import pytest

from memory_claims import (
    MIN_POSITIONS,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_LITTLE,
    above_null,
    claims_on,
    concordance,
    differs_by_layer,
    exceeds_zero,
    group_claims,
    position_values,
)


def null_test(value, high=0.5):
    return {"value": value, "null_low": -high, "null_high": high, "reason": None}


@pytest.mark.parametrize(
    ("values", "verdict", "share"),
    [
        ((0.9, 0.8, 0.7, 0.1), SUPPORTED, 0.75),
        ((0.9, 0.8, 0.1, 0.1), NOT_SUPPORTED, 0.5),
        ((-0.9, -0.9, -0.9, -0.9), NOT_SUPPORTED, 0.0),
    ],
)
def test_a_share_of_layers_above_their_null(values, verdict, share):
    tests = {f"layer_{i}": null_test(value) for i, value in enumerate(values)}
    row = above_null("c", "s", tests)
    assert (row.verdict, row.value, row.n, row.unit) == (verdict, share, 4, "layers")
    # Of 4 layers at 2.5 % each, at most 1 is above with probability 97.5 %: 0.975^4 + 4 * ... > it.
    assert row.high == 0.25


def test_undefined_tests_are_no_layers():
    undefined = {"value": None, "null_low": None, "null_high": None, "reason": "12 tokens"}
    row = above_null("c", "s", {"layer_0": undefined, "layer_1": None})
    assert (row.verdict, row.value, row.reason) == (TOO_LITTLE, None, "12 tokens")
    row = above_null("c", "s", {"layer_0": undefined, "layer_1": null_test(0.9)})
    assert (row.verdict, row.n) == (SUPPORTED, 1)
    assert "layer_0" not in row.details


def test_concordance_of_equal_opposite_and_tied_rankings():
    ranks = np.array([1.0, 2.0, 3.0])
    assert concordance(np.stack([ranks] * 4)) == 1.0
    assert concordance(np.stack([ranks, ranks[::-1]])) == 0.0
    assert concordance(np.full((5, 3), 2.0)) == 0.0


def test_layers_that_differ_alike_at_every_position():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 20))
    apart = {f"layer_{i}": (10 * i + noise[i]).tolist() for i in range(4)}
    row = differs_by_layer("c", "s", apart, "positions")
    assert (row.verdict, row.value, row.n) == (SUPPORTED, 1.0, 20)
    alike = {f"layer_{i}": noise[i].tolist() for i in range(4)}
    row = differs_by_layer("c", "s", alike, "positions")
    assert row.verdict == NOT_SUPPORTED
    assert row.low <= row.value <= row.high


@pytest.mark.parametrize(
    "values",
    [{}, {"layer_0": [1.0] * 20}, {"layer_0": [1.0], "layer_1": [2.0]},
     {"layer_0": [1.0, 1.0], "layer_1": [2.0, 2.0]}],
)  # fmt: skip
def test_too_few_to_rank(values):
    row = differs_by_layer("c", "s", values, "texts")
    assert (row.verdict, row.value) == (TOO_LITTLE, None)
    assert row.reason


def test_every_difference_must_exceed_zero():
    rng = np.random.default_rng(1)
    up, none = 1 + 0.1 * rng.normal(size=30), rng.normal(size=30)
    none -= none.mean()
    row = exceeds_zero("c", "s", {"a": up})
    assert row.verdict == SUPPORTED
    assert row.value == pytest.approx(up.mean())
    assert row.low < row.value < row.high
    row = exceeds_zero("c", "s", {"a": up, "b": none})
    assert row.verdict == NOT_SUPPORTED
    assert row.value == pytest.approx(0, abs=1e-12)  # the smallest of the differences
    assert exceeds_zero("c", "s", {"a": up[: MIN_POSITIONS - 1]}).verdict == TOO_LITTLE
    assert exceeds_zero("c", "s", {"a": up, "b": none[:0]}).verdict == TOO_LITTLE


def by_group(early, middle, late, positions=12):
    rng = np.random.default_rng(2)
    levels = {0: early, 3: middle, 6: middle, 9: late, 12: late}
    return {
        f"layer_{i}": (v + 0.01 * rng.normal(size=positions)).tolist() for i, v in levels.items()
    }


def test_a_peak_in_the_middle_and_elsewhere():
    flat = by_group(0.1, 0.1, 0.1)
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 1), by_group(0.1, 0.2, 0.5))]
    assert verdicts == [SUPPORTED, SUPPORTED, SUPPORTED]
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 3), flat)]
    assert verdicts == [SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED]
    verdicts = [row.verdict for row in group_claims(by_group(3, 2, 1), by_group(0.1, 0.6, 0.5))]
    assert verdicts == [NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED]


def test_a_model_without_late_layers_leaves_those_claims_open():
    kl = {name: row for name, row in by_group(1, 2, 1).items() if int(name[6:]) < 9}
    rows = group_claims(kl, kl)
    assert [row.verdict for row in rows] == [SUPPORTED, TOO_LITTLE, TOO_LITTLE]


def test_positions_without_a_value_are_left_out_of_every_layer():
    layers = {"layer_0": {"kl": [1.0, None, 3.0]}, "layer_2": {"kl": [4.0, 5.0, 6.0]}}
    causal = {"knockout": {"layers": layers}}
    found = position_values(causal, "knockout", [0, 2], "kl")
    assert found == {"layer_0": [1.0, 3.0], "layer_2": [4.0, 6.0]}


def test_without_results_every_claim_is_open():
    failed = {"error": {"type": "AnalysisError", "message": "no"}}
    names = ("delta_neurons", "ablation_memory", "causal_memory", "recursive_patterns",
             "memory_kernel", "cross_layer_correlations")  # fmt: skip
    for sections in ({}, dict.fromkeys(names, failed)):
        rows = claims_on(sections, [0, 3], 100)
        assert {row.verdict for row in rows} == {TOO_LITTLE}
        assert all(row.reason for row in rows)
