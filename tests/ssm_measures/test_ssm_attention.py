"""Correlations of delta, B and C with implicit attention against loops and plants."""

import json
import math

import numpy as np
import pytest
import reference
import torch
from defined import known
from reference import heads_form, implicit_attention
from scipy.stats import rankdata, spearmanr

from selective_scan.attention import attention_map
from ssm_measures.attention_maps import written_map
from ssm_measures.components import SSMComponents
from ssm_measures.ssm_attention import ssm_attention_correlations


def components(length=80, d_inner=12, d_state=2, seed=0, **changes):
    """Random components of one text; delta constant and the same in every channel."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shape = (1, length, d_inner)
    fields = {
        "A": -torch.rand(d_inner, d_state, generator=generator) - 0.5,
        "B": draw(1, length, d_state),
        "C": draw(1, length, d_state),
        "D": torch.ones(d_inner),
        "delta": torch.full(shape, 0.1),
        **{name: draw(*shape) for name in ("u", "gate", "y", "gated", "conv_input")},
        "mixer_output": draw(1, length, 6),
        "attention_mask": torch.ones(1, length),
        "replay_errors": (0.0,),
    }
    return SSMComponents(**{**fields, **changes})


def absolute_map(parts):
    return attention_map(parts.delta, parts.A, parts.B, parts.C, absolute=True)[0]


def test_windowed_attention_equals_the_loop():
    drawn = torch.rand(1, 80, 12, generator=torch.Generator().manual_seed(0))
    parts = components(length=80, delta=0.05 + 0.2 * drawn)
    weights = absolute_map(parts).double().numpy()
    horizon, count = 20, 60
    result = ssm_attention_correlations(parts, weights)
    assert result.horizon == horizon
    received = [sum(weights[s + k, s] for k in range(1, horizon + 1)) for s in range(count)]
    paid = [sum(weights[t, t - k] for k in range(1, horizon + 1)) for t in range(horizon, 80)]
    moments = [
        sum(k * weights[t, t - k] for k in range(1, horizon + 1)) for t in range(horizon, 80)
    ]
    delta = parts.delta[0].double().mean(dim=1).numpy()
    norms = parts.B[0].double().norm(dim=1).numpy(), parts.C[0].double().norm(dim=1).numpy()
    alpha = implicit_attention(**heads_form(
        delta=parts.delta, A=parts.A, B=parts.B, C=parts.C
    ))[0].abs().double().numpy()  # fmt: skip
    written = (alpha * parts.u[0].abs().double().numpy().T[:, None, :]).mean(0)
    given = [sum(written[s + k, s] for k in range(1, horizon + 1)) for s in range(count)]
    expected = {
        "delta_given": (delta[:count], given),
        "B_norm_given": (norms[0][:count], given),
        "delta_received": (delta[:count], received),
        "delta_paid": (delta[horizon:], paid),
        "delta_distance": (delta[horizon:], np.array(moments) / paid),
        "B_norm_received": (norms[0][:count], received),
        "C_norm_paid": (norms[1][horizon:], paid),
    }
    for name, (x, y) in expected.items():
        ranks = rankdata(np.array([x, y]).T[4:], axis=0)  # four tokens are warm-up
        left, _ = reference.without_position(np.pad(ranks, ((4, 0), (0, 0))), [count], [4])
        assert result.tokens[name].value == pytest.approx(np.corrcoef(left.T)[0, 1], abs=1e-9)
        assert result.tokens[name].n == count - 4


def test_planted_writes_are_what_attention_follows():
    B = torch.ones(1, 120, 2) * torch.logspace(-1, 1, 120)[torch.randperm(
        120, generator=torch.Generator().manual_seed(2)
    )][None, :, None]  # fmt: skip
    parts = components(length=120, B=B, C=torch.ones(1, 120, 2))
    result = ssm_attention_correlations(parts, absolute_map(parts))
    # With delta and C constant, |alpha| to any later token is |B_s| times a factor of the lag.
    assert result.tokens["B_norm_received"].value == pytest.approx(1.0)
    assert result.tokens["B_norm_received"].outside_null is True
    for name in ("delta_received", "delta_paid", "delta_distance", "C_norm_paid"):
        assert result.tokens[name].reason == "one of the two series is constant"


def test_attention_of_channels_equals_the_loop():
    parts = components(length=60, d_inner=10, delta=0.05 + torch.rand(1, 60, 10))
    result = ssm_attention_correlations(parts, absolute_map(parts))
    assert result.num_channels == 10
    alpha = implicit_attention(*heads_form_of(parts))[0].abs().numpy()
    horizon, strengths, distances = 15, [], []
    for channel in range(10):
        paid = [[alpha[channel, t, t - k] for k in range(1, 16)] for t in range(horizon, 60)]
        strengths.append(np.sum(paid) / len(paid))
        distances.append(np.sum(np.array(paid) * np.arange(1, 16)) / np.sum(paid))
    delta = parts.delta[0].double().mean(0).numpy()
    half_life = math.log(2) / (delta * parts.A.abs().min(dim=1).values.numpy())
    expected = {
        "half_life_strength": (half_life, strengths), "half_life_distance": (half_life, distances),
        "delta_strength": (delta, strengths), "delta_distance": (delta, distances),
    }  # fmt: skip
    assert set(result.channels) == set(expected)
    for name, (x, y) in expected.items():
        assert result.channels[name].value == pytest.approx(known(spearmanr(x, y))[0], abs=1e-9)
        assert result.channels[name].n == 10


def heads_form_of(parts):
    """delta, A, B and C in the form of `tests.reference`."""
    operands = heads_form(B=parts.B, C=parts.C)
    return parts.delta, parts.A, operands["B"], operands["C"]


def test_channels_that_forget_slowly_attend_further():
    # One state, B and C the same at every token: |alpha| falls by exp(delta A) a lag.
    ones = torch.ones(1, 80, 1)
    A = -torch.linspace(0.5, 4.0, 40)[:, None]
    parts = components(d_inner=40, d_state=1, A=A, B=ones, C=ones)
    result = ssm_attention_correlations(parts, absolute_map(parts))
    assert result.channels["half_life_distance"].value == pytest.approx(1.0)
    assert result.channels["half_life_distance"].outside_null is True
    assert result.channels["delta_distance"].value is None  # delta is the same everywhere
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_channels_are_drawn_by_seed():
    parts = components(d_inner=30)
    weights = absolute_map(parts)

    def drawn(seed):
        return ssm_attention_correlations(parts, weights, num_channels=12, seed=seed)

    assert drawn(1).num_channels == 12
    assert drawn(1).to_dict() == drawn(1).to_dict()
    assert drawn(1).channels != drawn(2).channels


def test_a_short_text_claims_nothing():
    parts = components(length=20)
    tests = ssm_attention_correlations(parts, absolute_map(parts)).tokens.values()
    assert {test.reason for test in tests} == {"15 tokens; a claim needs at least 40"}
    single = components(length=1)
    alone = ssm_attention_correlations(single, absolute_map(single))
    assert alone.horizon == 0
    assert {test.value for test in alone.channels.values()} == {None}


def test_a_map_that_does_not_fit_is_refused():
    parts = components(length=10)
    weights = absolute_map(parts)
    with pytest.raises(ValueError, match=r"shape \(9, 9\); it must be \(10, 10\)"):
        ssm_attention_correlations(parts, weights[:9, :9])
    with pytest.raises(ValueError, match="negative or non-finite"):
        ssm_attention_correlations(parts, -weights)
    padded = components(length=10, attention_mask=torch.tensor([[0.0] + [1.0] * 9]))
    with pytest.raises(ValueError, match="pass one text without padding"):
        ssm_attention_correlations(padded, weights)


def test_a_reset_that_writes_nothing_has_attention_and_gives_nothing():
    """A large delta at every eighth token, where u is 0: gates open widest on what is not there."""
    delta, u = torch.full((1, 120, 12), 0.05), torch.ones(1, 120, 12)
    delta += 0.01 * torch.rand(delta.shape, generator=torch.Generator().manual_seed(3))
    delta[:, ::8], u[:, ::8] = 3.0, 0.0
    ones = torch.ones(1, 120, 2)
    parts = components(length=120, delta=delta, u=u, B=ones, C=ones)
    tokens = ssm_attention_correlations(parts, absolute_map(parts)).tokens
    assert known(tokens["delta_received"].value) > 0.3
    assert known(tokens["delta_given"].value) < 0.1 < known(tokens["delta_received"].null_high)
    written = written_map(parts)[0]
    assert float(written[:, ::8].max()) == 0.0
    assert float(absolute_map(parts)[:, ::8].max()) > 2.0
