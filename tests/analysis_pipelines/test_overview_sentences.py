"""Parts of sentences: an answer's numbers are those of its places."""

from analysis_pipelines.overview_readings import read
from analysis_pipelines.overview_sentences import PATHS, answer_about, others_than, p_text
from tests.overview_cases import shift_test, untested

TESTS = {1: shift_test(0.5, 0.01, (-0.2, 0.1), interval=[0.1, 0.9]),
         2: shift_test(0.4, 0.03, (-0.1, 0.3)), 3: shift_test(0.9, 0.001)}  # fmt: skip


def test_an_answer_has_the_null_and_the_p_of_its_own_layers():
    one = answer_about("reset", "x", True, TESTS, [1, 2])
    assert (one.layers, one.values, one.null) == ((1, 2), (0.5, 0.4), (-0.2, 0.3))
    assert (one.p_value, one.interval, one.path) == (0.03, (0.1, 0.9), PATHS["reset"])
    assert (one.n, one.unit, one.num_texts) == (40, "predictions", 3)
    assert answer_about("reset", "x", True, {1: shift_test(1.0, None)}, [1]).p_value is None


def test_the_others_by_whether_they_are_above_chance():
    values = {1: 3.0, 2: 1.9, 4: 1.4, 5: 1.2, 6: -2.0}
    tests = {layer: {**shift_test(x), "above_chance": x > 1.3} for layer, x in values.items()}
    tests |= {7: untested()}
    assert others_than(tests, read(tests, 2.5), 2.5, ".1f") == (
        "; layers 2 and 4 1.4 to 1.9, above chance too but below 2.5; the others tried at most "
        "1.2, not above chance"
    )
    alone = {1: tests[1]}
    assert others_than(alone, read(alone, 2.5), 2.5, ".1f") == ""


def test_a_p_is_that_of_the_null_beside_it():
    assert p_text(shift_test(1.0, 0.0123)) == "; p 0.012"
    assert p_text(shift_test(1.0, None)) == ""
