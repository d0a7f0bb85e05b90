"""Readings of several models: closed forms of planted attention, nulls, names, refusals."""

import math

import hand_weighted
import numpy as np
import pytest
import torch
from attention_cases import attending_evenly
from conftest import VOCAB_SIZE, make_tiny_model, make_tiny_neox, make_tiny_tokenizer
from transformers import MambaForCausalLM, RwkvConfig, RwkvForCausalLM

from analysis_pipelines.comparison_readings import (
    MAP_MEASURES,
    Site,
    map_measures,
    measure,
    read_text,
    shifts_for,
    subjects_of,
    twins_of,
)
from analysis_pipelines.shared_pieces import Pieces, shared_pieces
from benchmarks import family_models
from mamba_mixers.sites import UnsupportedModelError
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import row_shares
from suite_plumbing.texts import EXAMPLE_TEXTS, encode_texts
from token_statistics.association import causal_spearman
from token_statistics.cka import linear_cka
from token_statistics.layer_likeness import lag_profile

TOKENIZER = make_tiny_tokenizer()
TEXTS = [EXAMPLE_TEXTS[0][:120], EXAMPLE_TEXTS[1][:150]]
HALF_LIFE = 3.0


def measured(models, texts=TEXTS, **options):
    subjects = subjects_of(models, [TOKENIZER] * len(models), **options)
    encoded = {one.name: encode_texts(one.tokenizer, texts, one.max_tokens) for one in subjects}
    pieces = [
        shared_pieces({name: found[i] for name, found in encoded.items()})
        for i in range(len(texts))
    ]
    return subjects, encoded, pieces, measure(subjects, encoded, pieces, shifts_for(pieces, 0))


def test_planted_attention_has_its_closed_form():
    length = 40
    ids = torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(0))
    mamba = hand_weighted.constant_half_life(HALF_LIFE, VOCAB_SIZE)
    pieces = Pieces(torch.arange(length), length, None, True)
    even, geometric = subjects_of([attending_evenly(), mamba], [TOKENIZER] * 2)
    t = np.arange(length)
    lags = np.subtract.outer(t, t)
    forms = {
        even: np.where(lags >= 0, 1.0, 0.0),
        geometric: np.where(lags >= 0, 2.0 ** (-np.maximum(lags, 0) / HALF_LIFE), 0.0),
    }
    for subject, weights in forms.items():
        shares = weights / weights.sum(1, keepdims=True)
        values, kernel = map_measures(read_text(subject, ids.tolist(), pieces).shares[0])
        found = dict(zip(MAP_MEASURES, values, strict=True))
        nats = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
        by_lag = np.array([np.diagonal(shares, -k).mean() for k in range(length)])
        by_lag /= by_lag.sum()
        expected = {
            "entropy_share": (nats[1:] / np.log(t[1:] + 1)).mean(),
            "first_share": shares[:, 0].mean(),
            "self_share": np.diagonal(shares).mean(),
            "mean_distance": (shares * lags).sum(1).mean(),
            "kernel_mean_lag": (by_lag * t).sum(),
            "kernel_median_lag": (by_lag.cumsum() >= 0.5).argmax(),
            "kernel_lag_90": (by_lag.cumsum() >= 0.9).argmax(),
        }
        # Float32 weights and up to 39 tokens of decay.
        assert found == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(kernel, by_lag, rtol=1e-4, atol=1e-7)
    # The closed forms themselves, where they are short.
    assert forms[even].sum(1).tolist() == (t + 1.0).tolist()


def test_readings_are_the_models_own_maps_and_streams():
    mamba, neox = make_tiny_model(), make_tiny_neox()
    ids = torch.randint(0, VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(0))
    pieces = Pieces(torch.arange(18), 18, None, True)
    for subject in subjects_of([mamba, neox], [TOKENIZER] * 2):
        reading = read_text(subject, ids[0].tolist(), pieces)
        with torch.no_grad():
            real = subject.model(ids[:, :18], output_hidden_states=True)
        assert reading.shares[0].shape == (18, 18)
        assert len(reading.outputs) == subject.num_layers
        # A Mamba has no entry for the embeddings among its hidden states, a GPT-NeoX has.
        first = real.hidden_states[0 if subject.model is mamba else 1][0]
        # Eager attention against the default one: float32 rounding.
        torch.testing.assert_close(reading.outputs[0], first, rtol=1e-5, atol=1e-6)
    parts = capture(mamba, ids[:, :18], None, [1]).components[1]
    expected = row_shares(mean_map(parts, absolute=True))[0]
    reading = read_text(subjects_of([mamba, neox], [TOKENIZER] * 2)[0], ids[0].tolist(), pieces)
    assert torch.equal(reading.shares[1], expected)
    assert reading.replay_error is not None
    assert reading.replay_error <= 1e-5  # the suite's bound in float32


def test_layers_behind_the_last_one_with_an_ssm_are_read_too():
    """Their stream is read in a second pass, for the capture ends with the last SSM asked for."""
    mamba, neox = subjects_of([make_tiny_model(), make_tiny_neox()], [TOKENIZER] * 2)
    early = mamba.__class__(**{**vars(mamba), "sites": mamba.sites[:2]})
    pieces = Pieces(torch.arange(10), 10, None, True)
    ids = list(range(10))
    whole, part = (read_text(one, ids, pieces) for one in (mamba, early))
    assert [tuple(x.shape) for x in part.outputs] == [(10, 32)] * 4
    assert all(torch.equal(a, b) for a, b in zip(whole.outputs, part.outputs, strict=True))
    assert neox.sites == [Site(i, "softmax") for i in range(3)]


def test_pairs_are_compared_as_the_pairwise_statistics_do():
    subjects, encoded, pieces, found = measured([make_tiny_model(), make_tiny_neox()])
    (values,) = found.pairs.values()
    for text in range(2):
        a, b = (
            read_text(one, encoded[one.name][text].input_ids, pieces[text][one.name])
            for one in subjects
        )
        i, j = 2, 1
        # The ranks are kept in float32.
        expected = causal_spearman(a.shares[i], b.shares[j])
        assert values.causal[text][i, j] == pytest.approx(expected, abs=1e-6)
        one_sided = [
            causal_spearman(lag_profile(a.shares[i]), b.shares[j]) or 0.0,
            causal_spearman(a.shares[i], lag_profile(b.shares[j])) or 0.0,
        ]
        assert values.lag_only[text][i, j] == pytest.approx(np.mean(one_sided), abs=1e-6)
        expected = linear_cka(a.outputs[i], b.outputs[j])
        assert values.cka[text][i, j] == pytest.approx(expected, abs=1e-9)
    assert len(values.other_text) == 1
    assert [draws.shape for draws in values.windowed_draws] == [(39, 4, 3)] * 2
    assert [draws.shape for draws in values.cka_draws] == [(39, 4, 3)] * 2
    assert set(found.measures) == {one.name for one in subjects}
    assert found.measures[subjects[0].name].shape == (2, 4, len(MAP_MEASURES))


@pytest.mark.parametrize("make", [make_tiny_model, make_tiny_neox])
def test_a_model_beside_itself_agrees_fully(make):
    model = make()
    subjects, _, _, found = measured([model, model])
    name = type(model).__name__
    assert [one.name for one in subjects] == [name, f"{name} (2)"]
    (values,) = found.pairs.values()
    for text in range(2):
        # Ranks are kept in float32, streams in float64.
        assert np.diag(values.causal[text]) == pytest.approx(1.0, abs=1e-6)
        assert np.diag(values.windowed[text]) == pytest.approx(1.0, abs=1e-6)
        assert np.diag(values.cka[text]) == pytest.approx(1.0, abs=1e-9)


def test_attention_that_depends_on_the_lag_alone_does_not_exceed_its_null():
    """Two half-lives: full agreement, all of it from distance, and the null says so."""
    models = [hand_weighted.constant_half_life(x, VOCAB_SIZE) for x in (3.0, 9.0)]
    _, _, _, found = measured(models, texts=[EXAMPLE_TEXTS[0][:200]])
    (values,) = found.pairs.values()
    # Magnitudes that fall by a factor at each lag rank alike; far ones may tie in float32.
    assert values.windowed[0][0, 0] == pytest.approx(1.0, abs=1e-3)
    assert values.windowed_draws[0][:, 0, 0] == pytest.approx([1.0] * 39, abs=1e-3)
    assert values.lag_only[0][0, 0] == pytest.approx(values.causal[0][0, 0], abs=1e-2)


HYBRIDS = {
    "jamba": ["layer_0.implicit", "layer_1.softmax", "layer_2.implicit"],
    "zamba2": ["layer_0.implicit", "layer_1.implicit", "layer_1.softmax", "layer_2.implicit",
               "layer_3.implicit", "layer_3.softmax"],
    "falcon_h1": ["layer_0.implicit", "layer_0.softmax", "layer_1.implicit", "layer_1.softmax"],
    "nemotron_h": ["layer_0.implicit", "layer_2.softmax", "layer_3.implicit"],
}  # fmt: skip


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_show_both_kinds_of_attention(family):
    """Also where layers share one attention module (Zamba2), or have both (Falcon-H1)."""
    model = family_models.make_model(family)
    hybrid, _ = subjects_of([model, make_tiny_neox()], [TOKENIZER] * 2)
    assert [str(site) for site in hybrid.sites] == HYBRIDS[family]
    ids = torch.randint(0, VOCAB_SIZE, (1, 20), generator=torch.Generator().manual_seed(0))
    reading = read_text(hybrid, ids[0].tolist(), Pieces(torch.arange(20), 20, None, True))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        real = model(ids, output_attentions=True, use_cache=False).attentions
    real = [one for one in real if one is not None]
    found = [x for x, s in zip(reading.shares, hybrid.sites, strict=True) if s.kind == "softmax"]
    assert len(found) == len(real)
    for shares, weights in zip(found, real, strict=True):
        # Rows of float32 attention sum to 1 but for rounding.
        torch.testing.assert_close(shares, weights[0].mean(0), rtol=1e-5, atol=1e-6)
    assert len(reading.outputs) == hybrid.num_layers
    assert reading.replay_error is not None
    assert reading.replay_error <= 1e-5  # the suite's bound in float32


def test_texts_too_short_for_a_null_have_none():
    _, _, pieces, found = measured([make_tiny_model(), make_tiny_neox()], texts=["A tide pool is"])
    (values,) = found.pairs.values()
    assert values.cka_draws == values.windowed_draws == values.other_text == []
    assert "tokens; a claim needs" in (shifts_for(pieces, 0).reason or "")
    assert np.isfinite(values.cka[0]).all()


def test_related_texts_are_shifted_alike_and_compared_with_no_relative():
    texts = [TEXTS[0], TEXTS[0][:100], TEXTS[1]]
    models = [make_tiny_model(), make_tiny_neox()]
    subjects = subjects_of(models, [TOKENIZER] * 2)
    encoded = {one.name: encode_texts(one.tokenizer, texts, one.max_tokens) for one in subjects}
    pieces = [shared_pieces({name: found[i] for name, found in encoded.items()}) for i in range(3)]
    shifts = shifts_for(pieces, 0, [0, 0, 2])
    assert shifts.tokens is not None
    assert (shifts.tokens[:, 0] == shifts.tokens[:, 1]).all()
    assert (shifts.tokens[:, 0] != shifts.tokens[:, 2]).any()
    found = measure(subjects, encoded, pieces, shifts)
    (values,) = found.pairs.values()
    assert (len(values.causal), len(values.other_text)) == (3, 1)


def test_twins_are_fresh_and_seeded():
    subjects = subjects_of([make_tiny_model(), make_tiny_neox()], [TOKENIZER] * 2)
    weights = [
        next(one.model.parameters()) for number in (0, 0, 1) for one in twins_of(subjects, number)
    ]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[4])
    assert not torch.equal(weights[0], next(subjects[0].model.parameters()))


def test_names_are_those_of_folders(tiny_model_dir):
    model = MambaForCausalLM.from_pretrained(tiny_model_dir)
    assert subjects_of([model, tiny_model_dir])[1].name == "tiny_model (2)"


def test_bad_models_are_refused_before_anything_runs():
    mamba = make_tiny_model()
    with pytest.raises(ValueError, match="models has 1 entries"):
        subjects_of([mamba], [TOKENIZER])
    with pytest.raises(ValueError, match="tokenizers 1; a comparison needs two"):
        subjects_of([mamba, mamba], [TOKENIZER])
    config = RwkvConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="neither a selective SSM nor softmax"):
        subjects_of([mamba, RwkvForCausalLM(config).eval()], [TOKENIZER] * 2)
    with pytest.raises(ValueError, match="layer 7 is out of range"):
        subjects_of([mamba, mamba], [TOKENIZER] * 2, [7])


def test_a_map_without_attention_has_no_measures():
    values, kernel = map_measures(torch.zeros(5, 5))
    assert all(math.isnan(value) for value in values)
    assert np.isnan(kernel).all()
