"""Evolution of neurons and attention across layers: closed forms, nulls that keep the smoothing."""

import json

import numpy as np
import pytest
import reference
import torch
from defined import known
from neuron_cases import long_set
from scipy.stats import rankdata
from torch import Tensor

from ssm_measures.neuron_evolution import (
    _gram_cka,
    _hsic,
    attention_agreement,
    centred_gram,
    neuron_evolution,
)
from ssm_measures.neuron_sets import NeuronSet, neuron_set
from token_statistics.cka import linear_cka
from token_statistics.observations import observations
from token_statistics.position_course import PositionCourse, without_course
from token_statistics.time_shift_nulls import draw_shifts


def smoothed(layer: int, channels: Tensor) -> NeuronSet:
    """Channels (l, d) averaged over the whole past, as attention that forgets nothing would."""
    length = len(channels)
    maps = torch.ones(length, length).tril()
    maps /= maps.sum(dim=1, keepdim=True)
    ids = torch.arange(length).unsqueeze(0)
    return neuron_set(
        "rollout", layer, (maps @ channels)[None], maps[None], torch.ones(channels.shape[1]), ids,
        torch.ones_like(ids), gathered=channels[None],
    )  # fmt: skip


def test_evolution_sees_a_layer_that_says_the_same_and_one_that_does_not():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(80, 12, generator=generator)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    sets = {
        5: long_set(5, torch.randn(80, 12, generator=generator)),
        0: long_set(0, first),
        2: long_set(2, 3.0 * first @ rotation),
    }
    found = neuron_evolution(sets)
    assert found.layers == (0, 2, 5)
    same, other = found.transitions
    assert (same["from_layer"], same["to_layer"]) == (0, 2)
    # CKA does not change under rotation and scaling; float32 activations.
    assert same["cka"] == pytest.approx(1.0, abs=1e-5)
    assert same["rms_ratio"] == pytest.approx(3.0, rel=1e-5)
    assert same["cka_p_value"] == pytest.approx(1 / 21)
    assert same["cka"] > same["cka_null_max"]
    # Independent noise, for which the debiased CKA is 0 up to about 1 / 12.
    assert abs(other["cka"]) < 0.1
    assert other["cka_p_value"] > 0.05
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("length", "constant", "reason"),
    [(3, False, "3 tokens"), (9, False, "9 tokens; a claim needs"), (40, True, "do not vary")],
)
def test_evolution_says_why_something_is_undefined(length, constant, reason):
    values = torch.randn(length, 5, generator=torch.Generator().manual_seed(0))
    values = torch.ones_like(values) if constant else values
    found = neuron_evolution({0: long_set(0, values), 1: long_set(1, values)}).transitions[0]
    assert found["cka_p_value"] is None
    assert reason in found["reason"]


def test_evolution_of_one_layer_has_no_transition():
    assert neuron_evolution({4: long_set(4, torch.randn(9, 3))}).transitions == []


def test_sets_that_cannot_be_compared_are_refused():
    a = long_set(0, torch.randn(9, 3))
    with pytest.raises(ValueError, match="sets is empty"):
        neuron_evolution({})
    with pytest.raises(ValueError, match="another method"):
        neuron_evolution({0: a, 1: long_set(1, torch.randn(9, 3), "attention_weighted")})
    with pytest.raises(ValueError, match="other tokens"):
        neuron_evolution({0: a, 1: long_set(1, torch.randn(8, 3))})


def test_debiased_cka_of_gram_matrices_is_that_of_features():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 8, generator=generator)
    y = torch.randn(50, 6, generator=generator) + 0.5 * x[:, :6]
    gram_x, gram_y = centred_gram(x), centred_gram(y)
    found = _gram_cka(gram_x, torch.stack([gram_y, gram_x]), 49, _hsic(gram_x, gram_x, 49))
    # Float32 products of 50 tokens.
    assert found.tolist() == pytest.approx([linear_cka(x, y), 1.0], abs=1e-5)


def test_smoothing_alone_is_no_agreement_of_layers():
    above_shifted_values = above = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        pair = [smoothed(i, torch.randn(120, 10, generator=generator)) for i in range(2)]
        # With its channels shifted before they are smoothed, a layer keeps what smoothing does.
        (kept,) = neuron_evolution(dict(enumerate(pair))).transitions
        above += kept["cka_p_value"] <= 0.05
        bare = {i: long_set(i, s.activations[0]) for i, s in enumerate(pair)}
        (broken,) = neuron_evolution(bare).transitions
        above_shifted_values += broken["cka_p_value"] <= 0.05
    # 20 trials at 1 / 21: four or more happen with a probability of 1.3 %.
    assert above <= 3
    # Early tokens are averaged over few and are large in both layers: shifted values part them.
    assert above_shifted_values >= 10


def test_what_is_planted_before_smoothing_is_found():
    channels = torch.randn(120, 10, generator=torch.Generator().manual_seed(1))
    found = neuron_evolution({0: smoothed(0, channels), 1: smoothed(1, channels)}).transitions[0]
    assert found["cka"] == pytest.approx(1.0, abs=1e-5)
    assert found["cka_p_value"] == pytest.approx(1 / 21)


def with_map(layer: int, weights: Tensor) -> NeuronSet:
    length = len(weights)
    ids = torch.arange(length).unsqueeze(0)
    return neuron_set(
        "rollout", layer, torch.randn(1, length, 3), weights[None], torch.ones(3), ids,
        torch.ones_like(ids),
    )  # fmt: skip


def random_map(seed: int, length: int = 90) -> Tensor:
    """Attention that falls with the lag, and is random beside that."""
    lag = (torch.arange(length)[:, None] - torch.arange(length)).clamp_min(0)
    noise = torch.rand(length, length, generator=torch.Generator().manual_seed(seed))
    return (torch.exp(-lag / 5.0) * noise).tril()


def test_attention_agreement_equals_the_loop_and_does_not_mistake_decay_for_agreement():
    a, b = random_map(0), random_map(1)
    test = attention_agreement(with_map(0, a), with_map(1, b))
    by_lag = []
    for k in range(1, 23):
        paid = np.array([[m[t, t - k] for t in range(22, 90)] for m in (a, b)]).T
        # Four queries are warm-up.
        left, _ = reference.without_position(rankdata(paid, axis=0), [68], [4])
        by_lag.append(np.corrcoef(left.T)[0, 1])
    assert test.value == pytest.approx(np.mean(by_lag), abs=1e-9)
    assert test.outside_null is False
    same = attention_agreement(with_map(0, a), with_map(1, 2 * a))
    assert same.value == pytest.approx(1.0)
    assert same.outside_null is True


def test_attention_agreement_that_is_undefined_says_why():
    short = attention_agreement(with_map(0, random_map(0, 20)), with_map(1, random_map(1, 20)))
    assert "15 tokens; a claim needs" in (short.reason or "")
    flat = attention_agreement(*(with_map(i, torch.ones(90, 90)) for i in range(2)))
    assert flat.reason == "the attention to no lag varies over the queries"


def test_draws_are_those_of_channels_shifted_and_gathered_one_by_one():
    generator = torch.Generator().manual_seed(7)
    pair = [smoothed(i, torch.randn(90, 6, generator=generator) + 1.0) for i in range(2)]
    a, b = (one.activations[0].double().numpy() for one in pair)
    norms = np.stack([np.linalg.norm(side, axis=1) for side in (a, b)], axis=1)
    course = PositionCourse(observations([range(90)], norms))
    tokens, draws = course.tokens, []
    left = without_course(course, a)
    for shift in draw_shifts(tokens.axis_lengths, 20, 0, tokens.num_distinct):
        channels = known(pair[1].gathered)[0].double().numpy().copy()
        channels[tokens.rows] = channels[tokens.order(shift)]
        gathered = pair[1].attention[0].double().numpy() @ channels
        y = without_course(course, gathered)
        draws.append(linear_cka(left[0] * left[2], y[0] * y[2], freedom=course.freedom))
    (found,) = neuron_evolution(dict(enumerate(pair))).transitions
    # Float32 products of 90 tokens.
    assert found["cka_null_max"] == pytest.approx(max(draws), abs=1e-6)
    assert found["cka_null_mean"] == pytest.approx(np.mean(draws), abs=1e-6)
