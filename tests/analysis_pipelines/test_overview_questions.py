"""Five questions at once: which p is small enough, and how often nothing is answered anyway."""

from typing import Any

import numpy as np
import pytest

from analysis_pipelines.overview_questions import ALPHA, adjusted_for, marked, together
from tests.overview_cases import layer_row, shift_test, untested


def tried(copying=0.9, reset=0.9, context=0.9, gate=0.9, sink=0.9):
    row = layer_row(
        1, copying=shift_test(1.0, copying), reset=shift_test(1.0, reset),
        sink=shift_test(1.0, sink), gate={"digits": shift_test(1.0, gate)},
    )  # fmt: skip
    return together([layer_row(0), row], shift_test(1.0, context))


def test_one_question_has_to_be_surer_than_four():
    assert tried(copying=0.011)["level"] == 0.0
    assert tried(copying=0.01)["level"] == pytest.approx(ALPHA / 5)
    four = tried(copying=0.02, reset=0.03, context=0.01, gate=0.04)
    assert four["level"] == pytest.approx(ALPHA * 4 / 5)
    assert four["adjusted"]["gate"] == pytest.approx(0.05)
    assert four["p_values"]["copying"] == 0.02  # the smallest over layers


def test_what_could_not_be_tested_is_no_question():
    rows = [layer_row(0, copying=shift_test(1.0, 0.02), reset=untested(), sink=untested(),
                      gate={"digits": untested()})]  # fmt: skip
    found = together(rows, untested())
    assert (found["num_tested"], found["level"]) == (1, ALPHA)
    assert found["adjusted"]["reset"] is None
    nothing = together([layer_row(0, copying=untested(), reset=untested(), sink=untested(),
                                  gate={})], untested())  # fmt: skip
    assert (nothing["num_tested"], nothing["level"]) == (0, 0.0)


def test_of_models_that_do_nothing_one_in_twenty_is_answered():
    """p of independent questions, uniform under chance: 2,000 models."""
    p = np.random.default_rng(0).uniform(size=(2000, 5))
    share = np.mean([tried(*row)["level"] > 0 for row in p])
    # Binomial: standard error 0.005.
    assert share == pytest.approx(ALPHA, abs=0.015)


def test_the_p_of_a_layer_is_adjusted_as_if_it_were_the_smallest_of_its_question():
    """And is at most ALPHA where the layer may be named."""
    found = tried(copying=0.01, reset=0.03, context=0.9, gate=0.9, sink=0.9)
    assert found["level"] == pytest.approx(ALPHA / 5)
    assert adjusted_for(found, "copying", 0.01) == pytest.approx(found["adjusted"]["copying"])
    assert (adjusted_for(found, "copying", 0.011) or 0.0) > ALPHA
    two = tried(copying=0.01, reset=0.02, context=0.9, gate=0.9, sink=0.9)
    for p in (0.01, 0.015, 0.02, 0.021, 0.2):
        assert ((adjusted_for(two, "copying", p) or 0.0) <= ALPHA + 1e-12) == (p <= two["level"])
    assert adjusted_for(found, "copying", None) is None


def test_above_chance_is_the_p_and_the_interval_over_texts():
    tests = {
        "copying": [(3.0, 0.02, None, True), (3.0, 0.021, None, False), (3.0, None, None, False),
                    (3.0, 0.01, [0.9, 4.0], False), (3.0, 0.01, [1.1, 4.0], True)],
        "reset": [(3.0, 0.01, [-0.1, 4.0], False), (3.0, 0.01, [0.1, 4.0], True)],
    }  # fmt: skip
    for name, cases in tests.items():
        for value, p, interval, expected in cases:
            test: dict[str, Any] = {name: shift_test(value, p, interval=interval)}
            row = layer_row(0, **test)
            (found,), _ = marked([row], shift_test(0.0, 0.9), 0.02)
            assert found[name]["above_chance"] == expected, (name, p, interval)


def test_of_few_texts_each_has_to_lose_by_all_states_erased():
    for above, interval, expected in ((2, None, False), (3, None, True), (2, [0.1, 0.3], True)):
        test = shift_test(0.2, 0.01, texts_above=above, interval=interval)
        assert marked([], test, 0.02)[1]["above_chance"] == expected
