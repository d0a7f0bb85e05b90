"""Verdicts on constructed data: each rule supports, refuses, and knows when there is too little."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalSubscript=false, reportOptionalOperand=false, reportOperatorIssue=false

import numpy as np
import pytest

from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_LITTLE,
    sentence,
)
from token_statistics.verdict_rules import (
    MAX_DETAILS,
    MIN_SAMPLES,
    MIN_TEXTS,
    above_null,
    concordance,
    differs_by_layer,
    exceeds_null,
    exceeds_zero,
    group_mean,
    holds_everywhere,
    rises_with_depth,
    share_of_hits,
)


def test_a_trend_over_layers():
    rng = np.random.default_rng(4)
    rising = {f"layer_{i}": (i + 0.1 * rng.random(4)).tolist() for i in range(6)}
    row = rises_with_depth("c", "s", rising, "p")
    assert (row.verdict, row.value, row.n, row.unit) == (
        ABOVE_CHANCE,
        pytest.approx(1.0),
        6,
        "layers",
    )
    falling = dict(zip(rising, reversed(rising.values()), strict=True))
    assert rises_with_depth("c", "s", falling, "p").verdict == NOT_SUPPORTED
    few = {f"layer_{i}": [float(i)] * 50 for i in range(4)}
    assert rises_with_depth("c", "s", few, "p").reason == "4 layers with values; a trend needs 5"
    equal = {f"layer_{i}": [1.0] for i in range(6)}
    assert rises_with_depth("c", "s", equal, "p").verdict == TOO_LITTLE


def test_many_texts_do_not_make_a_trend_of_one_order_of_layers():
    # Layers in an order that is theirs in every text: 20 texts are no 20 samples of the order.
    values = {f"layer_{i}": [v] * 20 for i, v in enumerate([1.0, 3.0, 2.0, 5.0, 4.0])}
    assert rises_with_depth("c", "s", values, "p").verdict == NOT_SUPPORTED


def test_what_leaves_nothing_to_chance():
    row = holds_everywhere("c", "s", {"a": (1.0, True), "b": (2.0, True)}, "p")
    assert (row.verdict, row.value, row.hits, row.learned) == (SUPPORTED, 2.0, 2, False)
    assert holds_everywhere("c", "s", {"a": (1.0, False)}, "p").verdict == NOT_SUPPORTED
    assert holds_everywhere("c", "s", {}, "p").verdict == TOO_LITTLE


def test_groups_of_layers():
    values = {"layer_0": [1.0, 2.0], "layer_2": [3.0, 4.0], "layer_3": [9.0, 9.0]}
    assert group_mean(values, 0, 3).tolist() == [2.0, 3.0]
    assert group_mean(values, 9, 13).size == 0


def test_many_places_are_not_listed():
    tests = {str(i): null_test(0.9) for i in range(MAX_DETAILS + 1)}
    assert above_null("c", "s", tests, "p").details == {}


def test_one_statistic_against_its_null():
    row = exceeds_null("c", "s", {**null_test(0.9), "n": 60}, "p")
    assert (row.verdict, row.value, row.null, row.n) == (ABOVE_CHANCE, 0.9, (-0.5, 0.5), 60)
    assert exceeds_null("c", "s", {**null_test(0.1), "n": 60}, "p").verdict == NOT_SUPPORTED
    assert exceeds_null("c", "s", None, "p", reason="skipped").reason == "skipped"
    undefined = {"value": None, "null_low": None, "null_high": None, "reason": "12", "n": 12}
    assert (exceeds_null("c", "s", undefined, "p").reason, 12) == ("12", undefined["n"])


def test_a_condition_that_holds_by_chance_half_the_time_needs_more_places():
    few = share_of_hits("c", "s", [True] * 3, "p", rule="r", unit="u", reason="", chance=0.5)
    many = share_of_hits("c", "s", [True] * 9, "p", rule="r", unit="u", reason="", chance=0.5)
    # All of 3 happen by chance with probability 1/8, all of 9 with 1/512.
    assert (few.verdict, many.verdict) == (NOT_SUPPORTED, ABOVE_CHANCE)


def null_test(value, high=0.5):
    return {"value": value, "null_low": -high, "null_high": high, "reason": None}


@pytest.mark.parametrize(
    ("values", "verdict", "hits"),
    [
        ((0.9, 0.8, 0.7, 0.1), ABOVE_CHANCE, 3),
        ((0.9, 0.8, 0.1, 0.1), NOT_SUPPORTED, 2),
        ((-0.9, -0.9, -0.9, -0.9), NOT_SUPPORTED, 0),
        # In three of four, but not in their mean.
        ((0.6, 0.6, 0.6, -0.4), NOT_SUPPORTED, 3),
    ],
)
def test_layers_above_their_null(values, verdict, hits):
    tests = {f"layer_{i}": null_test(value) for i, value in enumerate(values)}
    row = above_null("c", "s", tests, "p")
    assert (row.verdict, row.hits, row.n, row.unit) == (verdict, hits, 4, "layers")
    assert row.value == pytest.approx(sum(values) / 4)
    assert row.null == (-0.5, 0.5)


def test_layers_that_go_the_other_way_forbid_the_claim_and_are_named():
    values = {"layer_0": 0.9, "layer_3": 0.9, "layer_6": -0.6, "layer_9": 0.9, "layer_12": 0.9}
    tests = {name: null_test(value) for name, value in values.items()}
    row = above_null("c", "s", tests, "p")
    assert row.value == pytest.approx(0.6)
    assert row.null == (-0.5, 0.5)
    assert (row.hits, row.verdict) == (4, NOT_SUPPORTED)
    assert row.reason == "below its null in layer 6"
    assert row.reason in sentence(row)
    # Of 80 places two lie there by chance; a third is more.
    most = {f"text_{i}.layer_0": null_test(0.9) for i in range(80)}
    two = {**most, **{f"text_{i}.layer_0": null_test(-0.6) for i in range(2)}}
    assert above_null("c", "s", two, "p").verdict == ABOVE_CHANCE
    six = {**most, **{f"text_{i}.layer_0": null_test(-0.6) for i in range(6)}}
    row = above_null("c", "s", six, "p", "layers of texts")
    assert (row.verdict, row.reason) == (NOT_SUPPORTED, "below its null in 6 of 80 layers of texts")


def test_the_null_of_joint_draws_is_that_of_the_printed_mean():
    tests = {f"layer_{i}": null_test(0.6) for i in range(4)}
    together = {**null_test(0.6, 0.25), "p_value": 0.002, "num_draws": 999, "n": 40}
    row = above_null("c", "s", tests, "p", together=together)
    assert (row.value, row.null, row.chance_p) == (0.6, (-0.25, 0.25), 0.001)
    inside = {**together, "null_high": 0.7, "p_value": 0.2}
    assert above_null("c", "s", tests, "p", together=inside).verdict == NOT_SUPPORTED


def test_a_share_of_layers_and_what_chance_gives():
    row = share_of_hits("c", "s", [True, True, True, False], "p", rule="r", unit="u", reason="")
    assert (row.verdict, row.value) == (ABOVE_CHANCE, 0.75)
    # Of 4 layers at 2.5 % each, at most 1 is above with probability 97.5 %: 0.975^4 + 4 * ... > it.
    assert row.null == (0.0, 0.25)


def test_undefined_tests_are_no_layers():
    undefined = {"value": None, "null_low": None, "null_high": None, "reason": "12 tokens"}
    row = above_null("c", "s", {"layer_0": undefined, "layer_1": None}, "p")
    assert (row.verdict, row.value, row.reason) == (TOO_LITTLE, None, "12 tokens")
    row = above_null("c", "s", {"layer_0": undefined, "layer_1": null_test(0.9)}, "p")
    assert (row.verdict, row.n) == (ABOVE_CHANCE, 1)
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
    row = differs_by_layer("c", "s", apart, "p", "positions")
    assert (row.verdict, row.value, row.n) == (ABOVE_CHANCE, 1.0, 20)
    alike = {f"layer_{i}": noise[i].tolist() for i in range(4)}
    row = differs_by_layer("c", "s", alike, "p", "positions")
    assert row.verdict == NOT_SUPPORTED
    assert row.null[0] <= row.value <= row.null[1]


@pytest.mark.parametrize(
    "values",
    [{}, {"layer_0": [1.0] * 20}, {"layer_0": [1.0], "layer_1": [2.0]},
     {"layer_0": [1.0, 1.0], "layer_1": [2.0, 2.0]}],
)  # fmt: skip
def test_too_few_to_rank(values):
    row = differs_by_layer("c", "s", values, "p", "texts")
    assert (row.verdict, row.value) == (TOO_LITTLE, None)
    assert row.reason


def test_every_difference_must_exceed_zero():
    rng = np.random.default_rng(1)
    up, none = 1 + 0.1 * rng.normal(size=30), rng.normal(size=30)
    none -= none.mean()
    row = exceeds_zero("c", "s", {"a": up}, "p")
    assert row.verdict == ABOVE_CHANCE
    assert row.value == pytest.approx(up.mean())
    assert row.interval[0] < row.value < row.interval[1]
    row = exceeds_zero("c", "s", {"a": up, "b": none}, "p")
    assert row.verdict == NOT_SUPPORTED
    assert row.value == pytest.approx(0, abs=1e-12)  # the smallest of the differences
    assert exceeds_zero("c", "s", {"a": up[: MIN_SAMPLES - 1]}, "p").verdict == TOO_LITTLE
    assert exceeds_zero("c", "s", {"a": up, "b": none[:0]}, "p").verdict == TOO_LITTLE


def test_claims_over_texts_say_how_many_they_need():
    rng = np.random.default_rng(1)
    few = {"a": 1 + 0.1 * rng.normal(size=MIN_TEXTS - 1)}
    row = exceeds_zero("c", "s", few, "p", "texts")
    assert row.reason == "11 independent texts with both sides of every difference; it needs 12"
    assert exceeds_zero("c", "s", few, "p", "layers").verdict == ABOVE_CHANCE
    for unit in ("documents", "groups of documents"):
        row = exceeds_zero("c", "s", few, "p", unit)
        assert row.reason == f"11 {unit} with both sides of every difference; it needs 12"
    apart = {f"layer_{i}": (10 * i + rng.normal(size=3)).tolist() for i in range(5)}
    row = differs_by_layer("c", "s", apart, "p", "texts")
    assert row.reason == "3 independent texts; a claim over texts needs 12"
    assert differs_by_layer("c", "s", apart, "p", "positions").verdict == ABOVE_CHANCE


def test_a_difference_carries_its_p_and_its_interval():
    rng = np.random.default_rng(1)
    clear, slight = 1 + 0.1 * rng.normal(size=12), 0.4 + rng.normal(size=12)
    row = exceeds_zero("c", "s", {"a": clear, "b": slight}, "p", "texts")
    assert row.details["a"]["p_value"] < row.details["b"]["p_value"] == row.chance_p
    assert row.details["a"]["n"] == 12
    assert exceeds_zero("c", "s", {"a": clear}, "p", "texts").chance_p == pytest.approx(
        row.details["a"]["p_value"]
    )


def test_differences_of_noise_are_seldom_above_zero():
    rng = np.random.default_rng(3)
    rows = [exceeds_zero("c", "s", {"a": x}, "p", "texts") for x in rng.normal(size=(300, 12))]
    # 2.3 % of 300 are 7; 16 would be three and a half standard deviations off.
    assert sum(row.verdict == ABOVE_CHANCE for row in rows) <= 16


def test_each_rule_gives_its_p_and_its_scale():
    rng = np.random.default_rng(0)
    hits = share_of_hits("c", "s", [True] * 4, "p", rule="r", unit="u", reason="", chance=0.05)
    assert hits.chance_p == pytest.approx(0.05**4)
    assert (hits.scale, hits.scale_n) == ("share", 4)
    apart = {f"layer_{i}": (10 * i + rng.normal(size=20)).tolist() for i in range(5)}
    w = differs_by_layer("c", "s", apart, "p", "texts")
    assert (w.chance_p, w.scale, w.scale_n) == (0.001, "share", 80)
    trend = rises_with_depth("c", "s", apart, "p")
    # 1 order of 120 rises all the way.
    assert trend.chance_p == pytest.approx(1 / 120, abs=0.012)
    assert (trend.scale, trend.scale_n) == ("correlation", 5)
    places = {f"layer_{i}": {**null_test(0.9), "p_value": 0.01, "n": 70 + i} for i in range(3)}
    above = above_null("c", "s", places, "p")
    assert (above.chance_p, above.scale, above.scale_n) == (
        pytest.approx(0.025 * np.exp(-2 * 0.4 / 0.5)), "correlation", 70,
    )  # fmt: skip
    single = exceeds_null("c", "s", {**null_test(0.9), "p_value": 0.01, "n": 60}, "p")
    assert (single.chance_p, single.scale) == (0.005, "linear")
    assert holds_everywhere("c", "s", {"a": (1.0, True)}, "p").chance_p is None
