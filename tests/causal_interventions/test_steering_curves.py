"""Curves of steering: against logits computed apart, a planted direction, random vectors."""

import math

import pytest
import torch
from conftest import make_tiny_model
from torch import Tensor

from causal_interventions.steering_curves import MIN_RANDOM, SteeringCurve, steering_curve
from causal_interventions.steering_edits import steered
from causal_interventions.steering_vectors import given_vector
from causal_interventions.targets import resolve_target
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import logit_directions
from suite_plumbing.texts import EncodedText

LAYER, TOKEN = 3, 7


def encoded(length: int, seed: int) -> EncodedText:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (length,), generator=generator).tolist()
    return EncodedText("text", ids, [str(i) for i in ids], None, length, False)


PROMPTS = [encoded(length, seed) for seed, length in enumerate((6, 9, 4, 7, 5))]
OTHERS = [encoded(length, 10 + seed) for seed, length in enumerate((12, 8))]


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


@pytest.fixture(scope="module")
def vector(model):
    """The direction of one token's logit, at the last layer's input."""
    direction = logit_directions(model)[TOKEN]
    return given_vector(model, 2 * direction / direction.norm(), LAYER, "residual")


@pytest.fixture(scope="module")
def curve(model, vector) -> SteeringCurve:
    return steering_curve(
        model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0,
        coefficients=[-0.5, 1.0],
    )  # fmt: skip


@torch.no_grad()
def log_p(model, text: EncodedText) -> Tensor:
    """(l, V) float64, of a text alone."""
    logits = model(torch.tensor([text.input_ids]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("coefficient", [-0.5, 1.0])
def test_effects_are_those_of_each_text_alone(model, vector, curve, coefficient):
    with fast_scan(model):
        clean = [log_p(model, text) for text in [*PROMPTS, *OTHERS]]
    with steered(model, vector, coefficient):
        moved = [log_p(model, text) for text in [*PROMPTS, *OTHERS]]
    changes = [float(b[-1, TOKEN] - a[-1, TOKEN]) for a, b in zip(clean, moved, strict=True)]
    kl, loss = [], []
    for text, a, b in zip(OTHERS, clean[len(PROMPTS) :], moved[len(PROMPTS) :], strict=True):
        kl.append((a.exp() * (a - b)).sum(-1)[:-1])
        following = torch.tensor(text.input_ids[1:])[:, None]
        loss.append((a - b)[:-1].gather(1, following))
    found = next(e for e in curve.effects if e.coefficient == coefficient)
    expected = sum(changes[: len(PROMPTS)]) / len(PROMPTS)
    # float32 logits of padded batches, of order 1.
    assert found.target_change == pytest.approx(expected, abs=1e-5)
    assert curve.by_prompt[coefficient] == pytest.approx(changes[: len(PROMPTS)], abs=1e-5)
    assert found.kl == pytest.approx(float(torch.cat(kl).mean()), abs=1e-5)
    assert found.loss_change == pytest.approx(float(torch.cat(loss).mean()), abs=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp(found.loss_change))
    assert curve.num_tokens == sum(len(text.input_ids) - 1 for text in OTHERS)


def test_the_direction_of_a_token_raises_it_beyond_every_random_vector(curve):
    down, up = curve.rows()
    assert up["target_change"] > up["random_high"] > 0 > up["random_low"]
    assert down["target_change"] < down["random_low"]
    assert up["p"] == down["p"] == pytest.approx(1 / (1 + MIN_RANDOM))
    assert up["low"] < up["target_change"] < up["high"]


def test_without_a_mixer_that_hears_it_a_vector_does_nothing():
    model = make_tiny_model()
    with torch.no_grad():
        find_mixers(model)[1].mixer.out_proj.weight.zero_()
    vector = given_vector(model, torch.ones(64), 1, "neurons")
    found = steering_curve(
        model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0, coefficients=[3.0]
    )
    assert {effect.kl for effect in found.effects} == {0.0}
    assert {effect.target_change for effect in found.effects} == {0.0}
    assert found.rows()[0]["p"] == 1.0


def test_texts_are_steered_from_their_token_on(model, vector):
    found = steering_curve(
        model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0,
        coefficients=[1.0], start=2,
    )  # fmt: skip
    with steered(model, vector, 1.0, start=2):
        alone = [float(log_p(model, text)[-1, TOKEN]) for text in PROMPTS]
    mean = sum(alone) / len(alone) - found.clean_target
    assert found.effects[0].target_change == pytest.approx(mean, abs=1e-5)
    assert found.to_dict()["start"] == 2
    longest = max(len(text.input_ids) for text in PROMPTS)
    with pytest.raises(ValueError, match=f"start is {longest}, but prompt 0 has"):
        steering_curve(
            model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0, start=longest
        )


def test_random_vectors_are_the_same_ones_of_a_seed(model, vector, curve):
    again = steering_curve(
        model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0, coefficients=[1.0]
    )
    assert again.effects == curve.effects[1 + MIN_RANDOM :]
    assert len({effect.target_change for effect in again.effects}) == 1 + MIN_RANDOM


def test_channels_that_are_scaled_stand_beside_other_channels(model):
    one = torch.zeros(64)
    one[9] = 1.0
    vector = given_vector(model, one, 1, "neurons", "channels")
    found = steering_curve(
        model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0,
        coefficients=[0.0], mode="scale",
    )  # fmt: skip
    with steered(model, vector, 0.0, "scale"):
        alone = [float(log_p(model, text)[-1, TOKEN]) for text in PROMPTS]
    mean = sum(alone) / len(alone) - found.clean_target
    assert found.effects[0].target_change == pytest.approx(mean, abs=1e-5)
    assert len({effect.kl for effect in found.effects[1:]}) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": []}, "coefficients is .* pass different numbers"),
        ({"coefficients": [1.0, 1]}, "coefficients is .* pass different numbers"),
        ({"coefficients": [math.inf]}, "coefficient is inf"),
        ({"num_random": 19}, "num_random is 19"),
        ({"mode": "push"}, "mode is 'push'"),
    ],
)
def test_what_no_curve_can_be_made_of_is_refused(model, vector, options, message):
    with pytest.raises(ValueError, match=message):
        steering_curve(
            model, vector, PROMPTS, OTHERS, resolve_target(token=TOKEN), padding=0, **options
        )
