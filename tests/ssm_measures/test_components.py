"""Dynamics of a layer's state follow their closed forms and the loops; components per channel."""

import math
from dataclasses import replace

import pytest
import reference
import torch
from conftest import VOCAB_SIZE
from torch import Tensor
from transformers import MambaForCausalLM

from ssm_component_extractor import capture, recursive_dynamics
from ssm_measures.components import Capture, SSMComponents, mean_by_head
from token_statistics.description import relative_error

# Rounding of float32 over a layer's operations: the suite's bound on rebuilt outputs.
FLOAT32 = 1e-5


def make_ids(length: int = 21, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCAB_SIZE, (batch, length), generator=generator)


def make_mask() -> Tensor:
    """Two texts of 21 and 14 tokens."""
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, :7] = 0
    return mask


def make_components(
    delta: Tensor, A: Tensor, B: Tensor | None = None, u: Tensor | None = None
) -> SSMComponents:
    """Components of given dynamics (b, l, d) and (d, N); what plays no part in them is ones."""
    batch, length, channels = delta.shape
    ones = torch.ones(batch, length, channels)
    B = torch.ones(batch, length, A.shape[1]) if B is None else B
    u = ones if u is None else u
    return SSMComponents(
        A=A, B=B, C=B, D=torch.ones(channels), delta=delta, u=u, gate=ones, y=ones, gated=ones,
        conv_input=ones, mixer_output=ones, attention_mask=torch.ones(batch, length),
        replay_errors=(0.0,) * batch,
    )  # fmt: skip


@pytest.fixture
def captured(tiny_model: MambaForCausalLM) -> Capture:
    return capture(tiny_model, make_ids(), make_mask(), [0, 2])


def test_constant_steps_give_half_lives_in_closed_form():
    A = -torch.tensor([[1.0, 2.0], [0.5, 8.0]])
    delta = torch.tensor([0.1, 0.02]).expand(1, 50, 2)
    dynamics = recursive_dynamics(make_components(delta, A))
    expected = torch.tensor([[math.log(2) / 0.1, math.log(2) / 0.2],
                             [math.log(2) / 0.01, math.log(2) / 0.16]])  # fmt: skip
    assert relative_error(dynamics.half_life, expected) <= 1e-6  # float32 rounding
    assert relative_error(dynamics.lyapunov_exponent, -math.log(2) / expected) <= 1e-6
    # The slowest state of each channel, at every token.
    radius = torch.tensor([math.exp(-0.1), math.exp(-0.01)]).expand(1, 50, 2)
    assert relative_error(dynamics.spectral_radius, radius) <= 1e-6
    assert torch.equal(dynamics.eigenvalues, A)
    assert dynamics.is_stable is True


def test_a_state_halves_in_its_half_life():
    # One write at the first token, then nothing: after half_life tokens half of it is left.
    A, delta = torch.tensor([[-1.0]]), torch.full((1, 41, 1), math.log(2) / 10)
    u = torch.zeros(1, 41, 1)
    u[:, 0] = 1
    parts = make_components(delta, A, u=u)
    assert float(recursive_dynamics(parts).half_life) == pytest.approx(10, rel=1e-6)
    h = parts.hidden_states[0, :, 0, 0]
    for tokens in (10, 20, 30, 40):
        assert float(h[tokens] / h[0]) == pytest.approx(0.5 ** (tokens / 10), rel=1e-5)


def test_half_life_is_at_the_mean_step(captured):
    parts = captured.text(1).components[2]
    expected = reference.half_life(parts.delta[0], parts.A)
    assert relative_error(recursive_dynamics(parts).half_life, expected) <= FLOAT32


def test_energies_norms_and_rank_are_those_of_the_loop(captured):
    for parts in captured.components.values():
        dynamics = recursive_dynamics(parts)
        keep = parts.attention_mask.bool()
        h = parts.hidden_states
        write, retain = reference.energies(parts.delta, parts.A, parts.B, parts.u, h)
        assert relative_error(dynamics.write_energy[keep], write[keep]) <= FLOAT32
        assert relative_error(dynamics.retain_energy[keep], retain[keep]) <= FLOAT32
        norms = h.double().square().sum((2, 3)).sqrt()
        assert relative_error(dynamics.state_norm[keep], norms[keep]) <= FLOAT32
        for row in range(2):
            expected = reference.participation_ratio(h[row, keep[row]].flatten(1))
            ratio = dynamics.state_participation_ratio[row]
            assert ratio == pytest.approx(expected, rel=1e-6)
            assert 1 <= ratio <= int(keep[row].sum()) - 1


def test_energies_across_the_borders_of_a_block():
    generator = torch.Generator().manual_seed(0)
    length = 150  # energies are measured 64 tokens at a time
    delta = torch.rand(1, length, 3, generator=generator)
    B = torch.randn(1, length, 2, generator=generator)
    u = torch.randn(1, length, 3, generator=generator)
    parts = make_components(delta, -torch.rand(3, 2, generator=generator), B, u)
    write, retain = reference.energies(delta, parts.A, B, u, parts.hidden_states)
    dynamics = recursive_dynamics(parts)
    assert relative_error(dynamics.write_energy, write) <= FLOAT32
    assert relative_error(dynamics.retain_energy, retain) <= FLOAT32
    assert dynamics.retain_energy[0, 0] == 0


def test_write_and_retained_state_make_the_state():
    # With one channel and one state both are numbers, and h is their sum.
    generator = torch.Generator().manual_seed(0)
    delta, u = torch.rand(2, 1, 30, 1, generator=generator)
    parts = make_components(delta, torch.tensor([[-0.3]]), u=u)
    dynamics = recursive_dynamics(parts)
    total = dynamics.write_energy + dynamics.retain_energy
    assert relative_error(total, parts.hidden_states[..., 0, 0]) <= FLOAT32
    assert dynamics.state_participation_ratio[0] == pytest.approx(1)


def test_padding_is_in_no_statistic(tiny_model, captured):
    ids, mask = make_ids(), make_mask()
    alone = recursive_dynamics(capture(tiny_model, ids[1:, 7:], None, [2]).components[2])
    batch = recursive_dynamics(captured.components[2])
    keep = mask[1].bool()
    for name in ("spectral_radius", "state_norm", "write_energy", "retain_energy"):
        values = getattr(batch, name)
        assert bool(values[1, ~keep].isnan().all()), name
        assert bool(values[0].isfinite().all()), name
        assert relative_error(values[1, keep], getattr(alone, name)[0]) <= 1e-5, name
    changed = captured.components[2].delta.clone()
    changed[1, :7] = 99.0
    other = recursive_dynamics(replace(captured.components[2], delta=changed))
    assert torch.equal(other.half_life, batch.half_life)
    assert torch.equal(other.lyapunov_exponent, batch.lyapunov_exponent)


def test_a_text_is_a_view_unless_padding_stands_in_it(captured):
    parts = captured.components[2]
    alone = parts.text(1)
    assert alone.u.untyped_storage().data_ptr() == parts.u.untyped_storage().data_ptr()
    assert torch.equal(alone.u, parts.u[1:, 7:])
    assert alone.text(0) is alone
    gaps = torch.tensor([[1, 0, 1] * 7, [1, 1, 0] * 7])
    scattered = replace(parts, attention_mask=gaps).text(1)
    assert torch.equal(scattered.u, parts.u[1:, gaps[1].bool()])
    assert bool(scattered.attention_mask.all())


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_state_that_does_not_decay_is_not_stable(rate):
    A = torch.tensor([[-1.0, rate]])
    assert recursive_dynamics(make_components(torch.ones(1, 3, 1), A)).is_stable is False


def test_rank_of_one_token_or_of_a_constant_state_is_undefined():
    A = -torch.ones(2, 2)
    one = recursive_dynamics(make_components(torch.ones(1, 1, 2), A))
    still = recursive_dynamics(make_components(torch.ones(1, 5, 2), A, u=torch.zeros(1, 5, 2)))
    for dynamics in (one, still):
        assert math.isnan(dynamics.state_participation_ratio[0])
        assert dynamics.to_dict()["state_participation_ratio"] == [None]


def make_heads(length: int = 80, norm: bool = True) -> SSMComponents:
    """4 heads of 3 channels in 2 groups, 5 states and one rate a head."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(1, length, *size, generator=generator)

    B, C, u, gate, y = normal(2, 5), normal(2, 5), normal(12), normal(12), normal(12)
    scale = normal(12).exp() if norm else None
    return SSMComponents(
        A=-torch.rand(4, 1, generator=generator), B=B, C=C, D=torch.ones(4),
        delta=normal(4).exp(), u=u, gate=gate, y=y, gated=y, conv_input=u, mixer_output=u,
        attention_mask=torch.ones(1, length), replay_errors=(0.0,), norm_scale=scale,
    )  # fmt: skip


def test_channels_have_the_step_and_the_rate_of_their_head():
    parts = make_heads()
    assert parts.head_width == 3
    for channel in range(12):
        assert torch.equal(parts.channel_delta[..., channel], parts.delta[..., channel // 3])
        assert torch.equal(parts.channel_A[channel], parts.A[channel // 3])


def test_states_and_energies_of_heads_are_those_of_the_loop():
    parts = make_heads()
    u = parts.u.unflatten(2, (4, 3))
    _, h = reference.scan(u, parts.delta, parts.A, parts.B, parts.C)
    assert parts.hidden_states.shape == (1, 80, 12, 5)
    assert relative_error(parts.hidden_states, h.flatten(2, 3)) <= FLOAT32
    dynamics = recursive_dynamics(parts)
    for t in (0, 1, 63, 64, 65, 79):
        steps = parts.delta[0, t].double()[:, None, None]
        B = parts.B[0, t].double().repeat_interleave(2, 0)
        write = steps * u[0, t].double()[:, :, None] * B[:, None]
        assert float(dynamics.write_energy[0, t]) == pytest.approx(float(write.norm()), rel=1e-5)
        kept = torch.exp(steps * parts.A.double()[:, :, None]) * h[0, t - 1]
        expected = float(kept.norm()) if t else 0.0
        assert float(dynamics.retain_energy[0, t]) == pytest.approx(expected, rel=1e-5)


def test_dynamics_of_heads_have_one_rate_a_head():
    parts = make_heads()
    dynamics = recursive_dynamics(parts)
    mean = parts.delta[0].double().mean(0)
    expected = math.log(2) / (mean * parts.A[:, 0].double().abs())
    assert dynamics.half_life.shape == (4, 1)
    assert relative_error(dynamics.half_life[:, 0], expected) <= 1e-6  # float32 rounding
    radius = torch.exp(parts.delta * parts.A[:, 0])
    assert torch.equal(dynamics.spectral_radius, radius)


def test_gating_is_the_activated_gate_and_what_the_norm_multiplies_by():
    plain, normed = make_heads(norm=False), make_heads()
    assert normed.norm_scale is not None
    silu = reference.silu(plain.gate.double())
    assert relative_error(plain.gating, silu) <= 1e-6  # float32 rounding
    assert relative_error(normed.gating, silu * normed.norm_scale.double()) <= 1e-6


def test_means_by_head():
    assert mean_by_head(torch.arange(6.0), 2).tolist() == [1.0, 4.0]
    assert mean_by_head(torch.arange(3.0), 3).tolist() == [0.0, 1.0, 2.0]
