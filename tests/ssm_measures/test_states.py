"""Measures of states, some heads at a time, are those of the states as a whole."""

import math

import pytest
import reference
import torch

from selective_scan.operands import with_groups
from ssm_measures import states
from ssm_measures.states import measure_states
from token_statistics.description import relative_error

# Rounding of float32 over a scan: the suite's bound.
FLOAT32 = 1e-5


def operands(length=30, heads=8, width=3, groups=2, states=5, batch=2):
    """Of Mamba-2's kind, or of Mamba-1's with a width and a group of 1; padding in the 2nd text."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(batch, length, *size, generator=generator)

    u, delta, B = normal(heads * width), normal(heads).exp() / 5, normal(groups, states)
    A = -torch.rand(heads, 1 if width > 1 else states, generator=generator) * 2
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, :7] = 0
    u = u * mask[:, :, None]
    return u, delta, A, B if groups > 1 else B.squeeze(2), mask


def loop(u, delta, A, B):
    """All states (b, l, d_inner, N) in float64."""
    by_head = u.unflatten(2, (delta.shape[2], -1))
    B = with_groups(B)
    return reference.scan(by_head, delta, A, B, B)[1].flatten(2, 3)


@pytest.mark.parametrize("block_size", [1, 1 << 20])
@pytest.mark.parametrize("shape", [{}, {"width": 1, "groups": 1}, {"heads": 2, "width": 2}])
def test_measures_are_those_of_the_whole_states(monkeypatch, shape, block_size):
    monkeypatch.setattr(states, "_BLOCK_SIZE", block_size)  # a head at a time, or all
    u, delta, A, B, mask = operands(**shape)
    found, h = measure_states(u, delta, A, B, mask), loop(u, delta, A, B)
    keep = mask.bool()
    before = torch.nn.functional.pad(h[:, :-1], (0, 0, 0, 0, 1, 0))
    width = u.shape[2] // delta.shape[2]
    decay = torch.exp(delta.double()[..., None] * A.double()).repeat_interleave(width, 2)
    for actual, expected in (
        (found.norm, h),
        (found.step, h - before),
        (found.retained, decay * before),
    ):
        expected = expected.flatten(2).norm(dim=2)
        assert relative_error(actual[keep], expected[keep]) <= FLOAT32
    for row, ratio in enumerate(found.participation_ratio):
        expected = reference.participation_ratio(h[row, keep[row]].flatten(1))
        assert ratio == pytest.approx(expected, rel=FLOAT32)
    if shape.get("heads") == 2:  # 30 tokens, 20 numbers in a state
        assert found.gram is None
    else:
        assert found.gram is not None
        assert relative_error(found.gram, h.flatten(2) @ h.flatten(2).mT) <= FLOAT32


@pytest.mark.parametrize("states", [5, 16])
def test_a_constant_state_has_no_rank(states):
    # Nothing decays, and nothing is written after the first token.
    u = torch.zeros(1, 12, 2)
    u[:, 0] = torch.tensor([0.3, -2.0])
    ones = torch.ones(1, 12, states)
    found = measure_states(u, ones[..., :2], torch.zeros(2, states), ones, ones[..., 0])
    assert (found.gram is None) == (2 * states < 12)
    assert math.isnan(found.participation_ratio[0])
    assert found.step[0, 0] > 0
    assert found.step[0, 1:].tolist() == [0.0] * 11


def test_inner_products_do_not_depend_on_how_many_rows_are_taken_at_once(monkeypatch):
    given = operands()
    whole = measure_states(*given)
    monkeypatch.setattr(states, "_GRAM_ROWS", 7)
    some = measure_states(*given)
    h = loop(*given[:4]).flatten(2)
    assert some.gram is not None
    assert whole.gram is not None
    assert relative_error(some.gram, h @ h.mT) <= FLOAT32
    for other in (whole.gram, some.gram.mT):  # sums in float64, rounded once
        assert relative_error(some.gram, other) <= 1e-7
