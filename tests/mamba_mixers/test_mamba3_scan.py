"""Mamba-3's inputs and its recurrence in chunks are those of a loop written from the equations."""

import pytest
import torch
from mamba3_cases import KINDS, make_mamba3, twin_of
from torch import Tensor

from mamba_mixers.mamba3_scan import (
    Mamba3Inputs,
    by_rank,
    chunked_scan,
    heavy_tail,
    mamba3_inputs,
)
from mamba_mixers.sites import UnsupportedModelError
from token_statistics.description import relative_error


def made_input(length: int) -> Tensor:
    return torch.randn(2, length, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_inputs_are_those_of_the_equations(kind):
    mixer, x = make_mamba3(kind).double().backbone.layers[1].mixer, made_input(7).double()
    inputs, twin = mamba3_inputs(mixer, x), twin_of(mixer, x)
    for name in ("b", "c", "decay"):
        assert relative_error(getattr(inputs, name), twin[name]) <= 1e-12
    ahead = ((1 - twin["lam"]) * twin["dt"])[:, 1:]
    assert relative_error(inputs.own, twin["lam"] * twin["dt"]) <= 1e-12
    assert relative_error(inputs.write[:, :-1], (inputs.own[:, :-1] + ahead)) <= 1e-12
    assert torch.equal(inputs.write[:, -1], inputs.own[:, -1])
    assert relative_error(torch.cos(inputs.angle), torch.cos(twin["theta"])) <= 1e-12
    assert float(inputs.angle.min()) >= 0
    assert float(inputs.angle.max()) < 2 * torch.pi


def test_activations_are_positive_and_the_heavy_tail_is_smooth_at_zero():
    x = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    y = heavy_tail(x)
    assert y.tolist() == [0.25, 1.0, 3.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [1 / 16, 1.0, 1.0]


@pytest.mark.parametrize("ranks", [1, 3])
def test_chunks_are_the_recurrence_token_by_token(ranks):
    """150 tokens of one rank are three chunks, of three ranks eight."""
    draw = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    b, c, v = normal(2, 150, 4, ranks, 6), normal(2, 150, 4, ranks, 6), normal(2, 150, 4, ranks, 5)
    decay, write, own = (normal(2, 150, 4).exp() for _ in range(3))
    inputs = Mamba3Inputs(v, v, b, c, decay, write, own, own[:, 0], own)
    start = normal(2, 4, 5, 6)
    y, state = chunked_scan(inputs, v, start)
    taken, expected = start, []
    for t in range(150):
        fallen = torch.exp(-decay[:, t])[:, :, None, None] * taken
        written = torch.einsum("bhrp,bhrn->bhpn", v[:, t], b[:, t])
        h = fallen + own[:, t, :, None, None] * written
        taken = fallen + write[:, t, :, None, None] * written
        expected.append(torch.einsum("bhpn,bhrn->bhrp", h, c[:, t]))
    assert relative_error(y, torch.stack(expected, 1)) <= 1e-12
    assert relative_error(state, taken) <= 1e-12


def test_a_step_that_underflows_decays_nothing_and_gives_no_nan():
    """softplus of -200 is 0 in float32: nothing is written, and the gradient is finite."""
    mixer = make_mamba3().backbone.layers[0].mixer
    with torch.no_grad():
        mixer.dt_bias.fill_(-200.0)
    x = made_input(9).requires_grad_()
    inputs = mamba3_inputs(mixer, x)
    assert not bool(inputs.decay.any())
    y, state = chunked_scan(inputs, by_rank(mixer, "mimo_x", inputs.x), x.new_zeros(2, 8, 3, 10))
    assert not bool(state.any())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_a_mixer_that_does_not_name_its_activation_is_refused():
    mixer = make_mamba3().backbone.layers[0].mixer
    mixer.a_activation = "relu"
    with pytest.raises(UnsupportedModelError, match="set its a_activation to one of softplus, hea"):
        mamba3_inputs(mixer, made_input(3))
