"""The data of the token view against the results and tensors it is read from."""

import base64
import json
import zlib

import pytest
import torch
from report_cases import HOSTILE_TEXTS, LONG_WORD, analysed

from result_views.report import token_view as view_module
from result_views.report.token_view import (
    analysed_text,
    character_parts,
    deflated_json,
    neuron_tables,
    text_pieces,
    token_view,
    top_tokens,
    view_maps,
    view_notes,
)


@pytest.fixture(scope="module")
def analysis():
    return analysed(HOSTILE_TEXTS, layers=(0, 2))


def test_the_pieces_of_a_text_are_the_text(analysis):
    parts = analysis.results["individual_texts"].values()
    for part, text in zip(parts, HOSTILE_TEXTS, strict=True):
        pieces = text_pieces(part)
        assert "".join(pieces) == text
        assert len(pieces) == len(part["tokens"])
        assert analysed_text(part) == (text, 0)
    assert any(LONG_WORD[:1000] in piece for piece in pieces)


def test_a_character_of_several_tokens_stands_with_the_first():
    part = {"text": "é!", "tokens": ["Ã", "©", "!"], "offsets": [[0, 1], [0, 1], [1, 2]]}
    assert text_pieces(part) == ["é", "", "!"]
    assert character_parts(part) == {1: "é"}


def test_what_the_tokenizer_leaves_out_goes_with_the_next_token():
    part = {"text": "a  b cut", "tokens": ["<s>", "a", "b"], "offsets": [[0, 0], [0, 1], [3, 4]]}
    assert text_pieces(part) == ["", "a", "  b"]
    assert character_parts(part) == {}  # a special token is no part of a character
    assert analysed_text(part) == ("a  b", 4)


def test_tokens_without_offsets_are_decoded():
    part = {"text": "a $x", "tokens": ["a", "Ġ$x"], "offsets": None}
    assert text_pieces(part) == ["a", " $x"]
    assert analysed_text(part) == ("a $x", 0)


def test_series_kernels_and_neurons_are_those_of_the_results(analysis):
    view = token_view(analysis.results, analysis.tensors)
    layer = view["texts"][1]["layers"]["2"]
    steps = analysis.results["individual_texts"]["text_1"]["analysis"]
    delta = steps["ssm_components"]["layer_2"]["by_token"]["delta"][0]
    # Four significant digits.
    assert layer["series"]["delta"] == pytest.approx(delta, rel=5e-4)
    assert layer["series"]["delta"] == pytest.approx(
        analysis.tensors["text_1.layer_2.delta"].mean(1).tolist(), rel=6e-4
    )
    kernel = steps["attention_data"]["layer_2"]["memory_kernel"]["kernel"][0]
    assert layer["kernel"] == pytest.approx(kernel, rel=5e-4)
    neurons = steps["neurons"]["rollout"]["layer_2"]["top_neurons"]
    assert [row[0] for row in layer["neurons"]["rollout"]] == [row["neuron"] for row in neurons]
    place, value = layer["neurons"]["rollout"][0][6][0]
    column = analysis.tensors["text_1.layer_2.gated"][:, neurons[0]["neuron"]]
    assert place == int(column.abs().argmax())
    assert value == pytest.approx(float(column[place]), rel=5e-3)  # three digits
    assert list(view["maps"]) == ["absolute", "attention", "synthetic"]


def test_maps_are_packed_by_text_and_layer(analysis):
    maps = view_maps(analysis.results, analysis.tensors)
    assert list(maps) == [f"text_{i}" for i in range(5)]
    assert set(maps["text_0"]) == {"0", "2", "all"}  # all: what sources gave to predictions
    assert set(maps["text_0"].pop("all")) == {"predictions"}
    size = len(analysis.results["individual_texts"]["text_0"]["tokens"])
    assert maps["text_0"]["2"]["attention"]["size"] == size


def test_without_tensors_there_are_no_maps_and_it_is_said(analysis):
    assert view_maps(analysis.results, {})["text_0"] == {}
    assert token_view(analysis.results, {})["maps"] == {}
    assert "tensors with the attention maps are not beside" in view_notes(analysis.results, {})[0]


def test_long_and_many_texts_are_cut_and_it_is_said(analysis, monkeypatch):
    monkeypatch.setattr(view_module, "MAX_TEXTS", 2)
    monkeypatch.setattr(view_module, "MAX_TOKENS", 10)
    view = token_view(analysis.results, analysis.tensors)
    assert [len(text["pieces"]) for text in view["texts"]] == [10, 10]
    maps = view_maps(analysis.results, analysis.tensors)
    assert {part["size"] for part in maps["text_1"]["0"].values()} == {10}
    notes = " ".join(view_notes(analysis.results, analysis.tensors))
    assert "holds the first 2 of 5 texts" in notes
    assert "Of Text 0, Text 1, Text 2, Text 3, Text 4" in notes


def test_top_tokens_are_the_largest_in_magnitude():
    activations = torch.tensor([[0.1], [-3.0], [2.0]]).numpy()
    assert top_tokens(activations, 0) == [[1, -3.0], [2, 2.0], [0, 0.1]]
    assert top_tokens(None, 0) == []


def test_neurons_as_tables(analysis):
    tables = neuron_tables(token_view(analysis.results, analysis.tensors))
    assert [table.title for table in tables][:2] == ["Text 0", "Text 1"]
    assert len(tables[0].rows) == 2 * 3 * 3
    assert "“" in tables[0].rows[0][-1].text
    none = {**analysis.results}
    part = none["individual_texts"]["text_0"]
    failed = {**part["analysis"], "neurons": {"skipped": "needs attention"}}
    none["individual_texts"] = {"text_0": {**part, "analysis": failed}}
    assert neuron_tables(token_view(none, {}))[0].failure


def test_deflated_json_is_read_back():
    data = {"text": "</script>", "number": 0.5}
    assert json.loads(zlib.decompress(base64.b64decode(deflated_json(data)))) == data
