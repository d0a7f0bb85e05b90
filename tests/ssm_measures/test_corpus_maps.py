"""Sums of maps, states and series: beside loops over tokens, and added over texts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selective_scan.attention import implicit_attention
from ssm_measures.copying import earlier_tokens
from ssm_measures.corpus_maps import (
    SERIES_LAGS,
    MapSums,
    autocorrelation_of,
    text_of,
)

VOCABULARY, LONGEST = 9, 40
IDS = np.array([1, 2, 3, 4, 5, 6, 7, 8] * 4)[:30]


@pytest.fixture(scope="module")
def text():
    rng = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    u, D = drawn(1, 30, 6), drawn(6)
    replay: Any = SimpleNamespace(
        u=u, delta=drawn(1, 30, 6).exp() / 4, A=-drawn(6, 3).exp(), B=drawn(1, 30, 3),
        C=drawn(1, 30, 3), D=D, y=u * D + drawn(1, 30, 6), own_share=None, skip=None,
    )  # fmt: skip
    return text_of(replay, 0, 30)


@pytest.fixture(scope="module")
def sums(text):
    found = MapSums(VOCABULARY, LONGEST)
    found.add(text, IDS, earlier_tokens(IDS.tolist()), 3)
    return found.sums


@pytest.fixture(scope="module")
def shares(text):
    absolute = implicit_attention(text.delta, text.A, text.B, text.C)[0].abs().mean(0).numpy()
    return absolute, absolute / absolute.sum(1, keepdims=True)


def test_lags_are_the_diagonals_of_the_mean_map(sums, shares):
    absolute, _ = shares
    expected = [np.trace(absolute, -lag) for lag in range(30)]
    np.testing.assert_allclose(sums["lag_sums"][:30], expected, rtol=1e-10)
    assert sums["lag_counts"].tolist() == [*range(30, 0, -1), *[0] * 10]


def test_what_a_token_receives_is_1_where_attention_is_uniform(sums, shares):
    _, share = shares
    received, counts = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    for s in range(29):
        later = range(s + 1, 30)
        received[IDS[s]] += np.mean([share[t, s] * (t + 1) for t in later])
        counts[IDS[s]] += 1
    np.testing.assert_allclose(sums["received"], received, rtol=1e-9)
    assert (sums["mapped"] == counts).all()
    uniform = MapSums(VOCABULARY, LONGEST)
    flat = np.tril(np.ones((30, 30)))
    uniform._add_attention(flat / flat.sum(1, keepdims=True), IDS)
    np.testing.assert_allclose(uniform.sums["received"], uniform.sums["mapped"], rtol=1e-12)


def test_states_are_those_of_the_recurrence(sums, text):
    h = torch.zeros(6, 3, dtype=torch.float64)
    for t in range(30):
        kept = torch.exp(text.delta[0, t, :, None] * text.A) * h
        written = text.delta[0, t, :, None] * text.B[0, t] * text.u[0, t, :, None]
        h = kept + written
        for name, x in (("state", h), ("retained", kept), ("written", written)):
            assert sums[f"{name}_norm"][t] == pytest.approx(float(x.norm()), rel=1e-9)
    direct = float((text.u * text.D).square().sum())
    assert sums["output_squares"][0] == pytest.approx(direct)
    assert sums["output_squares"].sum() != pytest.approx(direct)


def test_the_first_tokens_share_and_copying_stand_by_document(sums, shares):
    _, share = shares
    block = sums["map_blocks"]
    assert block[3, 0] == 1
    assert block[3, 1] == pytest.approx(share[1:, 0].sum())
    assert block[3, 2] == 29
    assert (block[3, 3:] == sums["copying"][0]).all()
    assert not block[:3].any()


def test_the_series_gives_the_autocorrelation_about_the_mean_of_all_texts():
    rng = np.random.default_rng(0)
    texts = [np.cumsum(rng.standard_normal(n)) for n in (200, 90, 40)]
    found = MapSums(VOCABULARY, LONGEST)
    for series in texts:
        found._add_series(series)
    mean = np.concatenate(texts).mean()
    rho = autocorrelation_of(*(found.sums[f"series_{k}"] for k in ("products", "ends", "counts")))
    assert rho[0] == 1
    for lag in (1, 7, SERIES_LAGS):
        pairs = [(x[: len(x) - lag] - mean) * (x[lag:] - mean) for x in texts if len(x) > lag]
        variance = np.square(np.concatenate(texts) - mean).mean()
        assert rho[lag] == pytest.approx(np.concatenate(pairs).mean() / variance, rel=1e-9)
    nothing = np.zeros(SERIES_LAGS + 1)
    assert np.isnan(autocorrelation_of(nothing, nothing, nothing)).all()


def test_a_text_of_two_tokens_is_summed(text):
    short = text._replace(
        u=text.u[:, :2], delta=text.delta[:, :2], B=text.B[:, :2], C=text.C[:, :2], y=text.y[:, :2]
    )
    found = MapSums(VOCABULARY, LONGEST)
    found.add(short, IDS[:2], earlier_tokens([1, 2]), 0)
    assert all(np.isfinite(x).all() for x in found.sums.values())
    assert found.sums["mapped"].sum() == 1
