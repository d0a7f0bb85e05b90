"""Attention maps: operator identities against float64 loops, planted attention, bad input."""

import math

import hand_weighted
import pytest
import reference
import torch
from conftest import make_tiny_model
from defined import known
from map_cases import BOUND, captured_layer, error, make_mixer, reference_alpha
from torch import Tensor

from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import logit_directions, mixer_parameters
from ssm_component_extractor import capture
from ssm_measures.attention_maps import (
    contribution_map,
    direction_map,
    group_maps,
    head_groups_by_half_life,
    head_half_lives,
    head_maps,
    limited_by_text,
    mean_map,
    token_direction,
)
from ssm_measures.attention_measures import memory_kernel
from ssm_measures.components import SSMComponents
from ssm_measures.full_mixer_maps import full_mixer_head_maps, full_mixer_map, full_mixer_row

IDS = torch.tensor([[1, 2, 3, 1, 4, 2, 5, 1, 2, 3, 3, 1]])


@pytest.mark.parametrize("dtype", list(BOUND))
def test_alpha_applied_to_u_is_the_scan_without_d(dtype):
    components, _ = make_mixer(50, dtype=dtype)
    alpha = head_maps(components)
    y = (alpha @ components.u.movedim(2, 1).unsqueeze(-1)).squeeze(-1).movedim(1, 2)
    assert error(y + components.D * components.u, components.y) < BOUND[dtype]


def test_mean_map_is_the_mean_over_heads():
    components, _ = make_mixer(23, batch=2)
    alpha = reference_alpha(components)
    assert error(mean_map(components), alpha.mean(1)) < BOUND[torch.float64]
    assert error(mean_map(components, absolute=True), alpha.abs().mean(1)) < BOUND[torch.float64]


def test_rows_of_the_contribution_map_sum_to_the_first_order_effect():
    components, _ = make_mixer(31, batch=2)
    grad = torch.randn(components.y.shape, dtype=torch.float64)
    rows = contribution_map(components, grad).sum(-1)
    expected = (grad * (components.y - components.D * components.u)).sum(-1)
    assert error(rows, expected) < BOUND[torch.float64]


def test_rows_of_the_direction_map_sum_to_what_the_layer_writes_along_it():
    components, parameters = make_mixer(31)
    direction = torch.randn(4, dtype=torch.float64)
    rows = direction_map(components, parameters.out_weight, direction).sum(-1)
    without_d = components.y - components.D * components.u
    written = (without_d * reference.silu(components.gate)) @ parameters.out_weight.T
    assert error(rows, written @ direction) < BOUND[torch.float64]


def test_direction_of_a_logit_difference_is_that_of_the_model():
    model = make_tiny_model()
    ids = torch.randint(1, 64, (1, 9), generator=torch.Generator().manual_seed(0))
    captured = capture(model, ids, None, [3])
    direction = token_direction(logit_directions(model), 5, contrast=7)
    stream = captured.block_outputs[3][0, -1]
    rms = (stream.square().mean() + model.config.layer_norm_epsilon).sqrt()
    logits = model(ids).logits[0, -1].detach()
    expected = float(logits[5] - logits[7])
    # Two float32 computations of a difference of order 1.
    assert float(direction @ stream / rms) == pytest.approx(expected, abs=1e-5)


def test_maps_are_causal_in_their_entries_and_in_what_they_depend_on():
    model, layer = make_tiny_model(), 1
    parameters = mixer_parameters(find_mixers(model)[layer])
    ids = torch.randint(1, 64, (1, 30), generator=torch.Generator().manual_seed(2))
    changed = ids.clone()
    changed[0, 20:] = 63 - changed[0, 20:]
    for function in (
        lambda parts: mean_map(parts, absolute=True),
        lambda parts: full_mixer_map(parts, parameters).tokens,
    ):
        before, after = (
            function(capture(model, x, None, [layer]).components[layer]) for x in (ids, changed)
        )
        assert torch.equal(before.triu(1), torch.zeros_like(before))
        # The later tokens may change the order of float32 sums, not their terms.
        torch.testing.assert_close(after[:, :20], before[:, :20], rtol=1e-5, atol=1e-7)
        assert not torch.allclose(after[:, 20:], before[:, 20:], rtol=1e-3)


def test_padding_and_batch_change_no_map():
    components, parameters = captured_layer(padding=11)
    alone = components.text(1)
    groups = head_groups_by_half_life(alone)
    for function in (
        lambda parts: mean_map(parts),
        lambda parts: mean_map(parts, absolute=True),
        lambda parts: full_mixer_map(parts, parameters).tokens,
        lambda parts: group_maps(parts, groups, absolute=True)[:, 2],
    ):
        padded = function(components)[1]
        # The suite's bound for a padded batch against one text at a time.
        torch.testing.assert_close(padded[11:, 11:], function(alone)[0], rtol=1e-5, atol=1e-7)
        assert torch.equal(padded[:11], torch.zeros_like(padded[:11]))
        assert torch.equal(padded[:, :11], torch.zeros_like(padded[:, :11]))


def test_groups_by_half_life_are_ordered_and_their_maps_average_to_the_mean():
    components, _ = make_mixer(20, batch=2)
    half_lives = head_half_lives(components)
    groups = head_groups_by_half_life(components, 3)
    assert sorted(groups.bincount().tolist()) == [2, 2, 3]
    for shorter, longer in ((0, 1), (1, 2)):
        assert half_lives[groups == shorter].max() <= half_lives[groups == longer].min()
    maps = group_maps(components, groups, absolute=True)
    weights = groups.bincount().double() / 7
    mean = (maps * weights[:, None, None]).sum(1)
    torch.testing.assert_close(mean, mean_map(components, absolute=True), rtol=0, atol=1e-12)
    alpha = reference_alpha(components)
    torch.testing.assert_close(
        group_maps(components, groups)[:, 1], alpha[:, groups == 1].mean(1), rtol=0, atol=1e-10
    )


def planted_map(model, full: bool = False) -> Tensor:
    components = capture(model, IDS, None, [0]).components[0]
    if full:
        parameters = mixer_parameters(find_mixers(model)[0])
        return full_mixer_map(components, parameters, absolute=True).tokens[0]
    return mean_map(components)[0]


def lags() -> Tensor:
    position = torch.arange(IDS.shape[1]).double()
    return position[:, None] - position


# Weights are stored in float32: u, the gate and delta are right to a few of its roundings, and
# lags of up to 11 tokens multiply the relative error of a rate.
def assert_planted(actual: Tensor, expected: Tensor, atol: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("half_life", [0.5, 3.0, 200.0])
def test_planted_half_life(half_life):
    model = hand_weighted.constant_half_life(half_life)
    expected = (0.1 * 2 ** (-lags() / half_life)).tril()
    assert_planted(planted_map(model), expected)
    components = capture(model, IDS, None, [0]).components[0]
    # The suite's bound for a set half-life is 0.1 %.
    assert head_half_lives(components).tolist() == pytest.approx([half_life] * 6, rel=1e-3)


def test_planted_writes_at_marked_tokens_only():
    actual = planted_map(hand_weighted.write_at_marked(2))
    expected = (0.1 * torch.exp(-0.1 * lags()) * (IDS == 2)).tril()
    assert_planted(actual, expected)
    assert torch.equal(actual[:, IDS[0] != 2], torch.zeros_like(actual[:, IDS[0] != 2]))


def test_planted_reset_cuts_every_memory_before_it():
    actual = planted_map(hand_weighted.reset_at(4))
    reset = int((IDS[0] == 4).nonzero()[0])
    expected = (0.01 * torch.exp(-0.01 * lags()) * (IDS != 4)).tril()
    expected[reset:, : reset + 1] = 0.0
    assert_planted(actual, expected)
    # What survives is exp(-65), which a map counts as nothing, and the reset token writes 0
    # up to the rounding of 1 - 1 in its B.
    assert actual[reset:, : reset + 1].abs().max() < 1e-4


def test_planted_peak_at_a_lag():
    rates = (0.2, 0.5)
    actual = planted_map(hand_weighted.peak_at_lag(rates))
    expected = (torch.exp(-rates[0] * lags()) - torch.exp(-rates[1] * lags())).tril()
    # A difference of two numbers near 1, each rounded to float32.
    assert_planted(actual, expected, atol=1e-6)
    peak = round(math.log(rates[1] / rates[0]) / (rates[1] - rates[0]))
    query = torch.arange(peak, IDS.shape[1])
    assert torch.equal(actual[peak:].argmax(1), query - peak)


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_planted_copy_is_all_of_the_full_mixers_attention(lag):
    model = hand_weighted.copy_from(lag)
    assert torch.equal(model(IDS).logits.argmax(-1)[0, lag:], IDS[0, : IDS.shape[1] - lag])
    actual = planted_map(model, full=True)
    assert torch.equal(actual, actual * (lags() == lag))
    assert bool((actual.diagonal(-lag) > 0).all())
    assert torch.equal(planted_map(model), torch.zeros_like(actual))


def test_planted_induction_attends_to_what_followed_the_same_token():
    model = hand_weighted.induction(rate=0.05)
    actual = planted_map(model)
    follows_same = torch.zeros(actual.shape, dtype=torch.bool)
    for t in range(len(actual)):
        for s in range(1, t + 1):
            follows_same[t, s] = IDS[0, s - 1] == IDS[0, t]
    expected = torch.exp(-0.05 * lags()) * follows_same
    assert_planted(actual, expected)
    # ... 1 2 3 1 | 4: at the second 1 the model expects 2, which followed the first.
    assert int(model(IDS).logits[0, 3].argmax()) == 2


def test_maps_too_large_to_dump_say_how_large_and_what_to_do():
    components, parameters = make_mixer(40)
    large = SSMComponents(
        **{**vars(components), "delta": components.delta.expand(1, 40, 7).repeat(1, 400, 1)}
    )
    for function in (head_maps, lambda parts: full_mixer_head_maps(parts, parameters)):
        with pytest.raises(ValueError, match="7 maps of 16000 x 16000 tokens, 14.3 GB.*group_maps"):
            function(large)


def test_bad_input_is_named():
    components, parameters = make_mixer(9)
    with pytest.raises(ValueError, match="heads is 7 .*at most 6"):
        head_maps(components, [7])
    with pytest.raises(ValueError, match="heads is 7 .*at most 6"):
        full_mixer_head_maps(components, parameters, [7])
    with pytest.raises(ValueError, match="num_groups is 8"):
        head_groups_by_half_life(components, 8)
    with pytest.raises(ValueError, match="groups must give each of 7 heads a group"):
        group_maps(components, torch.tensor([0, 0, 0, 2, 2, 2, 2]))
    with pytest.raises(ValueError, match="query_weight must be"):
        full_mixer_map(components, parameters, query_weight=torch.ones(1, 9, 6))
    with pytest.raises(ValueError, match="query is 9"):
        full_mixer_row(components, parameters, 9)
    with pytest.raises(ValueError, match="direction must be"):
        direction_map(components, parameters.out_weight, torch.ones(5))
    with pytest.raises(ValueError, match="contrast is 64; the vocabulary has tokens 0 to 63"):
        token_direction(torch.ones(64, 4), 3, 64)
    other = parameters._replace(conv_weight=known(parameters.conv_weight).flip(0))
    with pytest.raises(ValueError, match="do not belong together"):
        full_mixer_map(components, other)


@pytest.mark.parametrize(
    ("half_life", "length", "limited"),
    [
        (300.0, 64, True),
        (300.0, 256, True),
        (300.0, 1024, True),
        (10.0, 41, False),
        (10.0, 39, True),
    ],
)
def test_a_kernel_that_the_text_cuts_off_is_known(half_life, length, limited):
    model = hand_weighted.constant_half_life(half_life)
    parts = capture(model, torch.ones(1, length, dtype=torch.long), None, [0]).components[0]
    assert limited_by_text(parts) == (limited,)
    if half_life == 10.0 and length == 41:
        lag = memory_kernel(mean_map(parts, absolute=True), parts.attention_mask).mean_lag[0]
        # 18 % short of 10 / ln 2 - 1/2, its value in an endless text.
        assert lag == pytest.approx(0.82 * (10 / math.log(2) - 0.5), rel=0.02)
