"""Findings over documents: what is planted is found, what is not is not, and few say so."""

import numpy as np
import pytest
from defined import known

from analysis_pipelines.corpus.findings import (
    LEAST_TOKENS,
    copying_by_document,
    corpus_findings,
    new_against_known,
)
from ssm_measures.corpus_layer import BLOCK_SUMS, BLOCKS
from ssm_measures.corpus_maps import MAP_BLOCK_SUMS
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED, TOO_LITTLE


def made_layers(documents, effect, seed=0):
    """Two layers whose documents differ by noise of 1 around the effect."""
    rng = np.random.default_rng(seed)
    layers = {}
    for layer in (0, 3):
        blocks = np.zeros((BLOCKS, len(BLOCK_SUMS)))
        maps = np.zeros((BLOCKS, len(MAP_BLOCK_SUMS)))
        n = LEAST_TOKENS + 50
        noise = rng.standard_normal((2, documents))
        blocks[:documents] = np.stack(
            [np.full(documents, 2 * n), n * (effect + noise[0]), np.full(documents, n),
             np.zeros(documents), np.full(documents, n)], axis=1,
        )  # fmt: skip
        maps[:documents, 3] = n * (effect + noise[1])
        maps[:documents, 5] = n
        layers[layer] = {"blocks": blocks, "map_blocks": maps}
    return layers


@pytest.mark.parametrize(("effect", "verdict"), [(2.0, ABOVE_CHANCE), (0.0, NOT_SUPPORTED)])
def test_an_effect_over_documents_is_told_from_none(effect, verdict):
    found = corpus_findings(made_layers(20, effect), [], 20, 0)
    assert [f.verdict for f in found[:2]] == [verdict] * 2
    assert found[0].unit == "documents"
    assert found[0].n == 20
    low, high = known(found[0].interval)
    assert low < effect < high


def test_the_difference_is_the_mean_over_layers():
    layers = made_layers(12, 1.0)
    column = BLOCK_SUMS.index("log_delta_new")
    n = LEAST_TOKENS + 50
    expected = np.mean([layers[k]["blocks"][:12, column] / n for k in layers], axis=0)
    np.testing.assert_allclose(new_against_known(layers), expected)
    assert len(copying_by_document(layers)) == 12


def test_documents_with_too_few_tokens_are_no_samples():
    layers = made_layers(12, 1.0)
    for sums in layers.values():
        sums["blocks"][:6] /= 10
    assert len(new_against_known(layers)) == 6
    found = corpus_findings(layers, [], 12, 0)
    assert found[0].verdict == TOO_LITTLE
    assert "6 documents" in known(found[0].reason)


def test_more_documents_than_blocks_are_groups():
    assert corpus_findings(made_layers(20, 1.0), [], BLOCKS + 1, 0)[0].unit == "groups of documents"
