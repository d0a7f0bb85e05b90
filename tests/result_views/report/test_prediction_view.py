"""The data of the prediction view against the results and tensors it is read from."""

import copy

import pytest
from report_cases import analysed

from recursive_analysis_report import report_html, write_report
from result_views.report.content import NO_PREDICTIONS
from result_views.report.prediction_view import (
    prediction_notes,
    prediction_table,
    prediction_view,
)

TEXT = "The cat sat on the mat, and the cat sat on it."


@pytest.fixture(scope="module")
def analysis():
    return analysed([TEXT, "Another text."])


def without(results):
    results = copy.deepcopy(results)
    for part in results["individual_texts"].values():
        part.pop("prediction_parts")
    return results


def test_layers_and_paths_each_sum_to_the_stored_logit(analysis):
    part = analysis.results["individual_texts"]["text_0"]
    view = prediction_view(part, analysis.tensors, "text_0")
    assert view is not None
    values = analysis.tensors["text_0.prediction_parts"]
    names = part["prediction_parts"]["parts"]
    logits = part["prediction_parts"]["logit"]
    assert values.sum(1).tolist() == pytest.approx(logits, rel=1e-4, abs=1e-6)
    for kind, column in (("layers", 0), ("paths", 1)):
        for name, shown in view[kind].items():
            exact = values[:, [str(each[column]) == name for each in names]].sum(1)
            assert shown == pytest.approx(exact.tolist(), rel=6e-3)  # three digits
        largest = max(abs(x) for shown in view[kind].values() for x in shown)
        sums = [sum(each) for each in zip(*view[kind].values(), strict=True)]
        assert sums == pytest.approx(logits, abs=0.005 * largest * len(view[kind]))
    assert list(view["layers"]) == ["embedding", "0", "1", "2", "3", "4", "unembedding"]
    assert view["token"] == part["prediction_parts"]["token"]


def test_the_table_holds_the_mean_sizes(analysis):
    table = prediction_table(analysis.results)
    assert table is not None
    assert [row[0].text for row in table.rows][:2] == ["embedding", "0"]
    found = [part["prediction_parts"] for part in analysis.results["individual_texts"].values()]
    at = found[0]["parts"].index([2, "state"])
    mean = sum(part["mean_magnitude"][at] for part in found) / 2
    column = [each.label for each in table.columns].index("state")
    assert float(table.rows[3][column].text) == pytest.approx(mean, rel=6e-3)


def test_what_is_left_out_is_said(analysis):
    assert prediction_notes(analysis.results, analysis.tensors) == []
    results = copy.deepcopy(analysis.results)
    results["individual_texts"]["text_0"]["prediction_parts"]["num_tokens"] = 3
    results["individual_texts"]["text_1"].pop("prediction_parts")
    assert [note.split(":")[0] for note in prediction_notes(results, {})] == [
        "Predictions are attributed in the first 1 of 2 texts.",
        "Of Text 0 the predictions after the first 3 tokens are attributed.",
        "The tensors of the predictions are not beside these results",
    ]
    view = prediction_view(results["individual_texts"]["text_0"], {}, "text_0")
    assert view is not None
    assert view["layers"] == view["paths"] == {}


def test_results_without_it_say_so(analysis, tmp_path):
    results = without(analysis.results)
    assert prediction_table(results) is None
    assert prediction_notes(results, {}) == []
    assert prediction_view(results["individual_texts"]["text_0"], {}, "text_0") is None
    assert NO_PREDICTIONS in report_html(results)
    _, text = write_report(results, tmp_path)
    assert NO_PREDICTIONS in text.read_text(encoding="utf-8")
    _, text = write_report(analysis.results, tmp_path, tensors=analysis.tensors)
    assert "| embedding |" in text.read_text(encoding="utf-8")
