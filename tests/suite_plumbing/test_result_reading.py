"""Results read back: sections, paths and tensors."""

from suite_plumbing.result_reading import (
    cross_text_section,
    entry_at,
    failure,
    layers_of,
    read,
    text_sections,
)

ERROR = {"error": {"type": "AnalysisError", "message": "too flat"}}


SKIPPED = {"skipped": "needs attention_data, which gave no result"}


def test_a_section_says_why_it_holds_no_result():
    assert failure(ERROR) == "AnalysisError: too flat"
    assert failure(SKIPPED) == "skipped: needs attention_data, which gave no result"
    assert failure({"reason": "needs at least two layers"}) == "needs at least two layers"
    assert failure({}) == "no results"
    assert failure({"layer_0": {}, "reason": None}) is None


def test_sections_by_text_name_what_is_missing():
    results = {"individual_texts": {"text_0": {"analysis": {"neurons": {"layer_0": 1}}},
                                    "text_1": {"analysis": {}}}}  # fmt: skip
    sections = text_sections(results, "neurons")
    assert sections["text_0"] == {"layer_0": 1}
    assert failure(sections["text_1"]) == "skipped: neurons is not in these results"
    missing = cross_text_section(results, "ssm_consistency")
    assert failure(missing) == "skipped: ssm_consistency is not in these results"


def test_layers_are_in_the_order_of_their_numbers():
    assert layers_of({"layer_10": "b", "layer_9": "a", "note": "c"}) == [(9, "a"), (10, "b")]


def test_an_entry_that_is_not_there():
    assert entry_at({"a": {"b": 1}}, "a", "b") == 1
    assert entry_at({"a": {"b": 1}}, "a", "c") is None
    assert entry_at({"a": 1}, "a", "b") is None


def test_results_are_read_by_their_path():
    results = {"texts": {"text_0": {"layer_1": {"r": 1}}, "text_1": {"layer_1": {"r": 2}}}}
    assert read(results, "texts.*.*.r") == {"text_0.layer_1": 1, "text_1.layer_1": 2}
    assert read(results, "texts.text_1.layer_1.r") == {"": 2}
    failed = {"texts": {"text_0": {"error": {"type": "E"}}, "text_1": results["texts"]["text_1"]}}
    assert read(failed, "texts.*.*.r") == {"text_1.layer_1": 2}
    assert read(results, "elsewhere.*") == {}
