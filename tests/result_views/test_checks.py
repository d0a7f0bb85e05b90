"""What is said of a run's trustworthiness: replay within or beyond its tolerance, missing steps."""

import pytest

from result_views.checks import check_sentence, failure_lines, failures, replay_line


@pytest.mark.parametrize(
    ("error", "tolerance", "words"),
    [
        (1e-7, 1e-5, "Largest replay error: 1e-07, within the tolerance of 1e-05."),
        (1e-5, 1e-5, "Largest replay error: 1e-05, within the tolerance of 1e-05."),
        (0.5, 1e-5, "Largest replay error: 0.5, BEYOND the tolerance of 1e-05."),
        (float("nan"), 1e-5, "Largest replay error: nan, BEYOND the tolerance of 1e-05."),
        (None, None, "No forward pass succeeded: nothing could be checked."),
    ],
)
def test_an_error_is_within_its_tolerance_or_said_not_to_be(error, tolerance, words):
    assert replay_line(error, tolerance) == words


def test_the_sentence_says_what_a_disagreement_means():
    check = {"largest_replay_error": 0.5, "replay_tolerance": 0.1, "replay_agrees": False}
    sentence = check_sentence({"self_check": check})
    assert "do not reproduce" in sentence
    assert sentence.endswith("not to be trusted.")
    check |= {"largest_replay_error": 0.01, "replay_agrees": True}
    assert "trusted" not in check_sentence({"self_check": check})


def test_steps_without_a_result_are_named_with_their_reason_whatever_the_nesting():
    error = {"error": {"type": "AnalysisError", "message": "flat"}}
    results = {
        "self_check": {
            "without_result": {"text_1": {"neurons": error}, "state": {"skipped": "needs delta"}}
        }
    }
    assert failures(results) == [
        ("text_1.neurons", "AnalysisError: flat"), ("state", "skipped: needs delta"),
    ]  # fmt: skip
    assert failure_lines(results)[0] == "Without result: text_1.neurons: AnalysisError: flat"
    assert failures({"self_check": {}}) == []
