"""What a report says, against the results it says it of; damaged results are named."""

import copy
import shlex

import pytest
from report_cases import HOSTILE_TEXTS, analysed

from result_views.report.content import check_tensors, report_content
from token_statistics.findings import ABOVE_CHANCE, VERDICTS, Finding

FINDING = Finding(
    "A <b>claim</b>",
    "statistic",
    0.5,
    None,
    (0.0, 0.2),
    4,
    "layers",
    ABOVE_CHANCE,
    None,
    "a.b",
    "rule",
)


@pytest.fixture(scope="module")
def analysis():
    command = ["python", "analyzer.py", "--text", HOSTILE_TEXTS[0]]
    return analysed(HOSTILE_TEXTS[:2], layers=(0, 2), max_length=30, command=command)


@pytest.fixture
def results(analysis):
    return copy.deepcopy(analysis.results)


def test_the_summary_is_made_from_the_numbers(results):
    content = report_content(results)
    found = [Finding.from_dict(row) for row in results["findings"]]
    assert [one for group in content.claims for one in group.findings] == sorted(
        found, key=lambda one: VERDICTS.index(one.verdict)
    )
    assert content.summary[0] == "2 texts, 60 tokens; layers 0, 2."
    assert content.summary[-1] == content.claim_counts
    assert content.claim_counts.startswith(f"Of {len(found)} claims tried: ")
    assert "reproduce the model's own output" in content.check


def test_nothing_is_said_of_findings_that_are_not_there(results):
    del results["findings"]
    content = report_content(results)
    assert content.claims == []
    assert content.findings_note == "These results hold no findings."
    assert not any("claims" in line for line in content.summary)


def test_a_replay_that_disagrees_is_said_first(results):
    results["self_check"] |= {"replay_agrees": False, "largest_replay_error": 0.5}
    content = report_content(results)
    assert "do not reproduce" in content.summary[1]
    results["self_check"] |= {"replay_agrees": None, "largest_replay_error": None}
    assert "No forward pass succeeded" in report_content(results).check


def test_failed_steps_are_listed_with_their_reason(results):
    failed = {"error": {"type": "AnalysisError", "message": "no <data>"}}
    results["self_check"]["without_result"] = {"text_1": {"neurons": failed}}
    content = report_content(results)
    assert content.failures == [("text_1.neurons", "AnalysisError: no <data>")]
    assert "1 step gave no result: see Checks." in content.summary


def test_limits_say_what_was_cut_and_left_out(results):
    limits = report_content(results).limits
    length = results["provenance"]["texts"]["text_0"]["num_tokens_before_truncation"]
    assert f"Text 0 was cut to its first 30 of {length} tokens." in limits
    assert any("rollout, layer 2: layers [1] were not captured" in line for line in limits)
    results["provenance"]["suite"]["git_modified"] = True
    assert any("differed from its commit" in line for line in report_content(results).limits)


def test_the_command_is_one_for_a_shell(results):
    assert shlex.split(report_content(results).command or "")[-1] == HOSTILE_TEXTS[0]
    results["provenance"]["run"]["command"] = results["provenance"]["command"] = None
    assert report_content(results).command is None


def test_the_main_results_are_no_memory_results(results):
    with pytest.raises(ValueError, match="memory results: memory is missing; pass the memory_rec"):
        report_content(results, None, results)


def test_memory_results_add_findings_and_a_table(results):
    memory = {
        **{key: results[key] for key in ("self_check", "provenance", "analysis_metadata")},
        "individual_texts": {"text_0": {"text": "another"}},
        "findings": [FINDING.to_dict()],
        "memory": {},
        "memory_by_layer": [{"layer": 0, "mean_delta": 0.25}],
    }
    content = report_content(results, None, memory)
    assert content.memory_claims == {FINDING.claim}
    every = [one for group in content.claims for one in group.findings]
    assert FINDING in every
    assert content.claim_counts.startswith(f"Of {len(every)} claims tried: ")
    open_ = sum(one.verdict == ABOVE_CHANCE for one in every)
    assert content.findings_note.startswith(
        f"Claims above chance without a look at untrained models: {open_}."
    )
    assert content.memory is not None
    assert content.memory.rows[0][1].text == "0.25"
    assert "The memory analysis is of other texts than the rest of this report." in content.limits
    assert not any("of another model" in line for line in content.limits)


@pytest.mark.parametrize("key", ["individual_texts", "self_check", "provenance"])
def test_a_missing_part_is_named(results, key):
    del results[key]
    with pytest.raises(ValueError, match=f"results: {key} is missing; this is not the JSON of an"):
        report_content(results)


def test_damage_further_down_is_named(results):
    broken = copy.deepcopy(results)
    del broken["individual_texts"]["text_1"]["tokens"]
    with pytest.raises(ValueError, match="individual_texts.text_1.tokens is missing"):
        report_content(broken)
    broken = copy.deepcopy(results)
    del broken["analysis_metadata"]["layer_indices"]
    with pytest.raises(ValueError, match="analysis_metadata.layer_indices is missing"):
        report_content(broken)
    with pytest.raises(ValueError, match="memory results: individual_texts"):
        report_content(results, None, {"findings": []})


def test_findings_of_another_version_are_refused(results):
    results["findings"][0]["colour"] = "red"
    with pytest.raises(ValueError, match="findings of the results cannot be read .*colour"):
        report_content(results)


def test_tensors_of_another_run_are_refused(analysis, results):
    tensors = dict(analysis.tensors)
    tensors["text_0.layer_0.absolute"] = tensors["text_0.layer_0.absolute"][:-1, :-1]
    with pytest.raises(ValueError, match=r"has shape \(29, 29\), and text_0 has 30 tokens"):
        check_tensors(results, tensors)
