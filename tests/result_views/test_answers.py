"""Answers as a terminal shows them: order, width, and results that have none."""

import pytest

from result_views.answers import (
    answer_lines,
    is_above_chance,
    overview_rows,
    shown_answers,
)


def answer(sentence, said, interval=None):
    return {"sentence": sentence, "said": said, "n": 1234, "unit": "tokens", "interval": interval,
            "path": "overview.layers[].copying"}  # fmt: skip


RESULTS = {
    "overview": {
        "layers": [{"layer": 0}],
        "answers": [answer("No layer does.", False), answer("Layer 3 copies: " + "x " * 60, True,
                                                            [1.25, 2.0])],
    }
}  # fmt: skip


def test_what_is_said_comes_first_and_every_line_fits():
    lines = answer_lines(RESULTS)
    assert lines[0].startswith("* Layer 3 copies")
    assert lines[1].startswith("  x")
    assert lines[-1] == "- No layer does."
    assert max(map(len, lines)) <= 80


def test_what_an_answer_rests_on():
    first, second = shown_answers(RESULTS)
    assert first.basis == "n = 1,234 tokens; 95 % over texts 1.2 to 2"
    assert second.basis == "n = 1,234 tokens"


def test_an_answer_rests_on_texts_too():
    row = {**answer("Layer 3 copies.", True), "num_texts": 3, "p_value": 0.01, "adjusted_p": 0.027,
           "num_questions": 5}  # fmt: skip
    (one,) = shown_answers({"overview": {"layers": [{"layer": 0}], "answers": [row]}})
    assert one.basis == "n = 1,234 tokens in 3 independent texts; p 0.027 over 5 questions"
    (one,) = shown_answers(
        {"overview": {"layers": [{"layer": 0}], "answers": [{**row, "unit": "texts", "n": 3}]}}
    )
    assert one.basis.startswith("n = 3 texts; p")


def test_above_chance_is_what_the_results_say():
    test = {"value": 3.454, "null_low": -0.019, "null_high": 2.608}
    assert is_above_chance(test)  # of results that do not say
    assert not is_above_chance({**test, "above_chance": False})


@pytest.mark.parametrize("results", [{}, {"overview": {"error": {"type": "E", "message": "m"}}}])
def test_without_an_overview_nothing_is_shown(results):
    assert answer_lines(results) == overview_rows(results) == []
