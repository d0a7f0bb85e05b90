"""Results read back: sections, paths and tensors."""

from pathlib import Path

import pytest

from suite_plumbing.result_files import read_json
from suite_plumbing.result_reading import (
    cross_text_section,
    entry_at,
    failure,
    layers_of,
    load_results,
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1e999}', "holds the number '1e999', which is too large"),
        ('{"a": -1e400}', "holds the number '-1e400', which is too large"),
        ('{"a": ' + "9" * 401 + "}", "holds the number '999.*, which is too large"),
        ('{"a": ' + "9" * 5000 + "}", "holds the number '999.*, which is too large"),
        ('{"a": 9223372036854775808}', "holds the number '9223372036854775808', which is"),
        ('{"a": NaN}', "holds NaN, which is not JSON"),
        ("[" * 100_000, "is not strict JSON"),
        ('{"a": "\\ud8', "is not strict JSON"),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_large_numbers_that_are_some_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1e300, "b": 9223372036854775807, "c": "1e999"}')
    assert read_json(tmp_path / "a.json") == {"a": 1e300, "b": 2**63 - 1, "c": "1e999"}


@pytest.mark.parametrize("name", ["~nosuchuser/x.json", "a" * 300, "\ud800", "a\0b"])
def test_names_that_can_be_no_file_are_refused(name: str) -> None:
    for reader in (read_json, load_results):
        with pytest.raises(ValueError, match="results file .* (home of no user|can be no path)"):
            reader(name)
