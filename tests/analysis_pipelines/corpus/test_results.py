"""The results of a corpus: strict JSON, its statistics those of the samples themselves."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from corpus_cases import finished, made_texts, opened, tiny_settings
from scipy import stats

from analysis_pipelines.corpus.parts import Part
from analysis_pipelines.corpus.results import (
    DENSE_SHARE,
    corpus_results,
    corpus_tensors,
    layer_sums,
    neuron_density,
    neuron_moments,
    rounded_results,
)
from analysis_pipelines.corpus.step import COUNTS, reader_of
from recursive_visualizer import figures_of
from suite_plumbing.result_files import to_jsonable
from token_statistics.fixed_bins import counts_by_channel


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    settings = tiny_settings(folder, [*made_texts(10), ""], tasks=2)
    plan = opened(tmp_path_factory.mktemp("run"), settings)
    return settings, finished(plan), reader_of(settings).model


def test_results_are_strict_json_and_say_what_was_read(run):
    settings, part, model = run
    results = rounded_results(corpus_results(part, model, settings))
    assert to_jsonable(results) == results
    corpus = results["corpus"]
    assert corpus["documents"] == 11
    assert corpus["failures"] == 1
    assert results["failures"] == [
        {"index": 10, "place": "text 10", "reason": "empty or white space"}
    ]
    assert corpus["loss_by_document"]["low"] < corpus["loss"] < corpus["loss_by_document"]["high"]
    assert list(results["layers"]) == ["layer_0", "layer_2", "layer_3"]
    assert results["self_check"]["replay_agrees"] is True
    assert len(results["cka"]) == 3
    assert results["layers"]["layer_0"]["maps"]["copying"]["n"] > 0
    assert "corpus" in figures_of(results)


def test_tensors_hold_the_sums_by_name(run):
    settings, part, _ = run
    tensors = corpus_tensors(part, layer_sums(part, settings.layers))
    assert (tensors["layer_2/delta"].numpy() == part.arrays["layer_2/delta"]).all()
    assert not any(name.startswith("windows/") for name in tensors)


def test_a_corpus_without_texts_says_so(run):
    settings, _, model = run
    empty = Part({}, dict.fromkeys(COUNTS, 0), [])
    with pytest.raises(ValueError, match="the corpus has no text of 2 tokens or more"):
        corpus_results(empty, model, settings)


def test_moments_are_those_of_the_samples():
    values = np.random.default_rng(0).gamma(2.0, 1.5, (4000, 3)) - 40.0
    values[:, 2] = 0.25
    sums = {"neuron_sums": np.stack([(values**k).sum(0) for k in range(1, 5)])}
    found = neuron_moments(sums, len(values))
    np.testing.assert_allclose(found["mean"], values.mean(0))
    np.testing.assert_allclose(found["std"][:2], values.std(0)[:2], rtol=1e-9)
    # Far from 0 against its spread, the fourth moment keeps some eight digits.
    np.testing.assert_allclose(found["kurtosis"][:2], stats.kurtosis(values[:, :2]), rtol=1e-6)
    np.testing.assert_allclose(found["skewness"][:2], stats.skew(values[:, :2]), rtol=1e-6)
    assert found["std"][2] == 0
    assert np.isnan(found["kurtosis"][2])


def test_density_is_the_share_of_tokens_above_a_tenth_of_the_largest():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20_000, 2)).astype(np.float32)
    values[rng.random(20_000) > 0.05, 1] *= 1e-4
    found = neuron_density(counts_by_channel(torch.from_numpy(values)))
    limit = DENSE_SHARE * np.quantile(np.abs(values), 0.999, axis=0)
    exact = (np.abs(values) > limit).mean(0)
    # The quantile and the limit are each known to a bin, half an octave.
    np.testing.assert_allclose(found, exact, rtol=0.12)
