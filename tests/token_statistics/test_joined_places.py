"""Means over places beside their null: what they share, what they do not, and the p of one test."""

import numpy as np
import pytest

from token_statistics.joined_places import P_OF_GROUP, mean_of_places, most_of, one_sided_p
from token_statistics.time_shift_nulls import against_null


def null_test(value, high=0.5):
    return {"value": value, "null_low": -high, "null_high": high, "reason": None}


def test_the_p_of_one_side():
    test = {"value": 0.3, "null_low": -0.1, "null_high": 0.2, "null_mean": 0.0, "p_value": 0.02}
    assert one_sided_p(test) == 0.01
    assert one_sided_p({**test, "value": -0.3}) == pytest.approx(0.99)
    alone = {name: test[name] for name in ("value", "null_low", "null_high")}
    assert (one_sided_p(alone), one_sided_p({**alone, "value": 0.15})) == (0.025, 0.5)
    assert one_sided_p({**alone, "value": 0.01, "p_value": 0.9}) == 0.55  # below the middle
    assert one_sided_p({**test, P_OF_GROUP: 0.2}) == 0.2


def test_the_p_beyond_all_draws_is_seldom_too_small():
    rng = np.random.default_rng(2)
    for draw in (rng.standard_normal, lambda size: rng.gumbel(size=size)):
        p = []
        for draws in draw((20_000, 40)):
            test = against_null(float(draws[0]), draws[1:], 9).to_dict()
            p.append(one_sided_p(test))
        for level in (0.025, 0.005, 0.001):
            # Four standard errors, and for a Gumbel null at 0.001 a third more than there are.
            limit = level * 1.35 + 4 * np.sqrt(level / 20_000)
            assert np.mean(np.array(p) <= level) <= limit
    far = {"value": 9.0, "null_mean": 0.0, "null_low": -1.0, "null_high": 1.0, "p_value": 0.05}
    assert one_sided_p({**far, "num_draws": 39}) == 1e-6
    assert one_sided_p({**far, "num_draws": 99}) == 0.025  # some draw is as large


def test_most_of_several_p():
    # Of three, the second smallest times 3/2; never above 1.
    assert most_of([0.01, 0.02, 0.5]) == pytest.approx(0.03)
    assert most_of([0.02]) == 0.02
    assert most_of([0.9, 1.0, 1.0]) == 1.0


def test_layers_of_the_same_texts_have_the_widest_null_and_texts_a_narrower_one():
    layers = {f"layer_{i}": null_test(0.6) for i in range(4)}
    found = mean_of_places(layers)
    assert found[:3] == (0.6, -0.5, 0.5)
    # 0.1 beyond a half width of 0.5: a fifth of it.
    assert found.p_value == pytest.approx(0.025 * np.exp(-0.4))
    for names in (["text_0", "text_1", "text_2", "text_3"],
                  [f"layer_{i}_to_{i + 1}" for i in range(4)]):  # fmt: skip
        found = mean_of_places(dict(zip(names, layers.values(), strict=True)))
        assert (found.null_low, found.null_high) == pytest.approx((-0.25, 0.25))
    within = {f"text_{i % 2}.layer_{i}": null_test(0.6) for i in range(4)}
    assert mean_of_places(within).null_high == pytest.approx(0.5 / 2**0.5)


def test_value_null_and_p_say_the_same():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(scale=0.4, size=3)
        tests = {f"layer_{i}": null_test(v, h) for i, (v, h) in
                 enumerate(zip(values, rng.uniform(0.1, 0.6, 3), strict=True))}  # fmt: skip
        found = mean_of_places(tests)
        assert (found.value > found.null_high) == (found.p_value < 0.025)
    alone = {"layer_0": {**null_test(0.9), "p_value": 0.01}}
    assert mean_of_places(alone).p_value == 0.005  # its own test
    assert mean_of_places({"layer_0": null_test(0.0, 0.0), "layer_1": null_test(0.0, 0.0)})[3] == 1
    assert mean_of_places({"a": null_test(0.1, 0.0), "b": null_test(0.1, 0.0)})[3] == 0.025


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        ([f"layer_{i}" for i in range(5)], 1.0),
        ([f"layer_{i}" for i in range(5)], 0.5),
        ([f"text_{i % 3}.layer_{i}" for i in range(6)], 0.5),
        ([f"layer_{i}_to_{i + 1}" for i in range(4)], 0.0),
    ],
)
def test_chance_gives_a_small_p_no_more_often_than_it_says(names, shared):
    """Nulls of 39 draws, of places that have so much of their variance in common."""
    rng = np.random.default_rng(1)
    groups = sorted({name.split(".")[0] for name in names if name.startswith("text")}) or [""]
    column = [groups.index(name.split(".")[0]) if len(groups) > 1 else 0 for name in names]
    p = []
    for _ in range(4000):
        common = rng.standard_normal((40, len(groups)))[:, column]
        own = rng.standard_normal((40, len(names)))
        draws = shared**0.5 * common + (1 - shared) ** 0.5 * own
        ends = zip(names, draws[0], draws[1:].min(0), draws[1:].max(0), strict=True)
        tests = {
            name: {"value": value, "null_low": low, "null_high": high}
            for name, value, low, high in ends
        }
        p.append(mean_of_places(tests).p_value)
    for level in (0.025, 0.005, 0.001):
        assert np.mean(np.array(p) <= level) <= level + 3.5 * np.sqrt(level / 4000)
