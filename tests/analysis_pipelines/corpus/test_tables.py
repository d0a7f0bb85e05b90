"""Tables and the contents of the atlas: every number from the merged part or the weights."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from corpus_cases import finished, made_texts, opened, tiny_settings

from analysis_pipelines.corpus.results import corpus_results, layer_sums, rounded_results
from analysis_pipelines.corpus.step import reader_of
from analysis_pipelines.corpus.tables import (
    LEVELS,
    PROMOTED,
    atlas_contents,
    layer_rows,
    neuron_facts,
    neuron_rows,
    promoted_tokens,
    token_rows,
    vocabulary_pieces,
)
from suite_plumbing.texts import ids_of_tokens
from token_statistics.kept_windows import BEFORE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    settings = tiny_settings(folder, made_texts(8), tasks=2, importance_every=3)
    part = finished(opened(tmp_path_factory.mktemp("run"), settings))
    model, tokenizer, _ = reader_of(settings)
    results = rounded_results(corpus_results(part, model, settings))
    size = model.config.vocab_size
    pieces = vocabulary_pieces(tokenizer, size)
    facts = neuron_facts(part, model, settings.layers)
    promoted = promoted_tokens(model, list(facts), ids_of_tokens(tokenizer, size))
    contents = atlas_contents(part, results, facts, promoted, pieces, settings.source, "tiny")
    return settings, part, model, results, pieces, facts, promoted, contents


def test_tables_have_a_row_for_each_layer_neuron_and_token(made):
    settings, part, _, results, pieces, facts, promoted, _ = made
    assert [row["layer"] for row in layer_rows(results)] == [0, 2, 3]
    rows = neuron_rows(facts, promoted, pieces)
    assert [(row["layer"], row["neuron"]) for row in rows] == [
        (k, i) for k in (0, 2, 3) for i in range(64)
    ]
    shares = [
        sum(row["importance_rollout"] for row in rows if row["layer"] == k) for k in (0, 2, 3)
    ]
    np.testing.assert_allclose(shares, 1.0, rtol=1e-4)  # of five digits
    tokens = token_rows(part, layer_sums(part, settings.layers), pieces)
    counts = [row["count"] for row in tokens]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == part.counts["tokens"]


def test_promoted_tokens_are_those_whose_logits_a_neuron_raises(made):
    _, _, model, *_, promoted, _ = made
    weight = model.get_output_embeddings().weight * model.backbone.norm_f.weight
    column = model.backbone.layers[2].mixer.out_proj.weight[:, 5]
    logits = (weight @ column).detach()
    known = promoted[2][0][5]
    order = torch.argsort(logits, descending=True).tolist()
    ranked = [i for i in order if i in set(known.tolist()) or logits[i] > logits[known[-1]]]
    assert ranked[:PROMOTED] == known.tolist()
    assert logits[promoted[2][1][5]].max() < logits[known].min()


def test_a_context_reads_as_it_was_kept(made):
    *_, contents = made
    neuron = contents["layers"]["2"]["neurons"][7]
    largest = max(abs(c[0]) for found in neuron["c"].values() for c in found)
    for kind, found in neuron["c"].items():
        values = [c[0] for c in found]
        assert [abs(x) for x in values] == sorted(map(abs, values), reverse=True), kind
        for value, document, ids, peak, letters in found:
            assert 0 <= document < 8
            assert len(ids) == len(letters)
            assert 0 <= peak <= BEFORE
            step = ord(letters[peak]) - ord("a") - LEVELS
            assert abs(step - LEVELS * value / largest) <= 0.51  # rounded to whole steps
    assert all(c[0] > 0 for c in neuron["c"]["highest"])
    assert all(c[0] < 0 for c in neuron["c"]["lowest"])


def test_a_model_without_an_rms_norm_promotes_nothing(made, monkeypatch):
    _, _, model, *_ = made
    monkeypatch.setattr(model.backbone, "norm_f", torch.nn.LayerNorm(32))
    assert promoted_tokens(model, [0], [1, 2]) is None
