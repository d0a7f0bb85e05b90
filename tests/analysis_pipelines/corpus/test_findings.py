"""Findings over documents: what is planted is found, what is not is not, and few say so."""

import numpy as np
import pytest
from defined import known

from analysis_pipelines.corpus.findings import (
    LEAST_TOKENS,
    copying_shares,
    corpus_findings,
    new_against_known,
)
from ssm_measures.corpus_layer import BLOCK_SUMS, BLOCKS
from ssm_measures.corpus_maps import MAP_BLOCK_SUMS
from token_statistics.corpus_pairs import LayerPair
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED, TOO_LITTLE
from token_statistics.time_shift_nulls import against_null, undefined
from token_statistics.verdict_rules import MIN_TEXTS


def made_layers(documents, effect, seed=0, *, spread=1.0, around=1.0):
    """Two layers whose documents differ by noise of a spread about the effect."""
    rng = np.random.default_rng(seed)
    layers = {}
    for layer in (0, 3):
        blocks = np.zeros((BLOCKS, len(BLOCK_SUMS)))
        maps = np.zeros((BLOCKS, len(MAP_BLOCK_SUMS)))
        n = LEAST_TOKENS + 50
        noise = spread * rng.standard_normal((2, documents))
        blocks[:documents] = np.stack(
            [np.full(documents, 2 * n), n * (effect + noise[0]), np.full(documents, n),
             np.zeros(documents), np.full(documents, n)], axis=1,
        )  # fmt: skip
        maps[:documents, 3] = n * (around + effect + noise[1])
        maps[:documents, 4] = n * around
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
    at_source, around = copying_shares(layers)
    assert at_source.shape == around.shape == (12,)
    np.testing.assert_allclose(around, 1.0)


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


def test_a_difference_too_small_for_a_name_is_not_supported_however_sure():
    """Documents that differ by next to nothing: any difference of them exceeds chance."""
    small, large = (
        [f.verdict for f in corpus_findings(made_layers(20, effect, spread=1e-3), [], 20, 0)[:2]]
        for effect in (0.05, 0.2)
    )
    assert small == [NOT_SUPPORTED] * 2
    assert large == [ABOVE_CHANCE] * 2
    found = corpus_findings(made_layers(20, 0.05, spread=1e-3), [], 20, 0)
    for one, size in zip(found[:2], ("a factor of 1.05", "0.0502 of the latter"), strict=True):
        low, _ = known(one.interval)
        assert low > 0
        assert one.statistic.endswith(size)
        assert "and at least 0.1 of the mean" in one.rule


def test_copying_where_nothing_is_attended_to_around_is_copying():
    found = corpus_findings(made_layers(20, 0.2, spread=1e-3, around=0.0), [], 20, 0)[1]
    assert found.verdict == ABOVE_CHANCE
    assert found.statistic.endswith("the latter is 0")


def test_documents_are_texts_and_a_claim_over_them_needs_as_many():
    for documents, verdict in ((MIN_TEXTS - 1, TOO_LITTLE), (MIN_TEXTS, ABOVE_CHANCE)):
        found = corpus_findings(made_layers(documents, 2.0), [], documents, 0)
        assert [f.verdict for f in found[:2]] == [verdict] * 2


def pair(mean_abs_r, cka, null=0.01, spread=1e-4):
    """Two layers beside nulls that are as narrow as those of a large corpus."""
    draws = null + spread * np.linspace(-1, 1, 39)
    return LayerPair((0, 1), *(against_null(x, draws, 10**6) for x in (mean_abs_r, cka)))


@pytest.mark.parametrize(
    ("mean_abs_r", "cka", "verdicts"),
    [
        (0.09, 0.015, [NOT_SUPPORTED] * 2),  # beyond chance 0.089, and 0.07^2
        (0.12, 0.03, [ABOVE_CHANCE] * 2),  # 0.12, and 0.14^2
        (0.0101, 0.0101, [NOT_SUPPORTED] * 2),
    ],
)
def test_neighbouring_layers_go_together_by_more_than_a_trace(mean_abs_r, cka, verdicts):
    pairs = [pair(mean_abs_r, cka)._replace(layers=(i, i + 1)) for i in range(6)]
    found = corpus_findings(made_layers(20, 2.0), pairs, 20, 0)[2:]
    assert [f.verdict for f in found] == verdicts
    assert known(found[1].value) == pytest.approx(cka - 0.01)
    assert all("beyond chance" in f.statistic for f in found)


def test_pairs_that_were_not_measured_say_why():
    nothing = undefined("too few tokens", 3)
    found = corpus_findings(made_layers(20, 2.0), [LayerPair((0, 1), nothing, nothing)], 20, 0)
    assert [f.reason for f in found[2:]] == ["too few tokens"] * 2
