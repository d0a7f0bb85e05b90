"""Answers as a terminal shows them: order, width, and results that have none."""

import pytest

from result_views.answers import answer_lines, overview_rows, shown_answers


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


@pytest.mark.parametrize("results", [{}, {"overview": {"error": {"type": "E", "message": "m"}}}])
def test_without_an_overview_nothing_is_shown(results):
    assert answer_lines(results) == overview_rows(results) == []
