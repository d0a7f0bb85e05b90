"""Causal memory over a set of texts: by position, texts too short, random positions beside."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalOperand=false

import math

import pytest
import torch
from conftest import make_tiny_model

from analysis_pipelines.memory_causal import (
    MEAN_OVER_LAYERS,
    by_position,
    causal_memory,
    delta_at_sources,
    delta_interventions,
    knockouts_by_layer,
    long_enough,
    neurons_beside_random,
    sources_of,
)
from causal_interventions.causal_curves import CausalMemoryCurve
from causal_interventions.effects import intervention_effects, neuron_interventions
from causal_interventions.interventions import freeze_delta, scale_delta
from ssm_component_extractor import capture


def text_of(model, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return capture(model, torch.randint(1, 64, (1, length), generator=generator), None, [0, 2])


def test_each_position_has_its_mean_and_its_late_share():
    kl = torch.tensor([[math.nan, 3.0, 1.0, 1.0, 1.0], [math.nan, 0.0, 0.0, 0.0, 0.0]]).double()
    curve = CausalMemoryCurve("knockout", (0,), ((0, 1), (0, 2)), kl, kl)
    found = by_position(curve)
    assert found["kl"] == [1.5, 0.0]
    assert found["late_share"] == [2 / 6, None]


def test_texts_too_short_are_left_out_and_named():
    model = make_tiny_model()
    captures = [text_of(model, 5), text_of(model, 40)]
    found = causal_memory(model, captures, [0, 2], num_positions=3)
    assert found["texts"] == ["text_1"]
    assert found["max_lag"] == 19
    for kind in ("reset", "knockout"):
        part = found[kind]
        assert list(part["layers"]) == ["layer_0", "layer_2"]
        assert {text for text, _ in part["together"]["positions"]} == {1}
        assert len(part["layers"]["layer_2"]["kl"]) == len(part["together"]["positions"])
    assert set(causal_memory(model, captures[:1], [0], num_positions=3)) == {"reason"}


def test_of_related_texts_the_first_is_measured():
    model = make_tiny_model()
    first, other = text_of(model, 40), text_of(model, 40, seed=1)
    ids = first.input_ids.clone()
    ids[0, 20] = 1 + ids[0, 20] % 60
    copy = capture(model, ids, None, [0, 2])
    assert long_enough([first, copy, other, first]) == ([0, 2], 19)


def test_positions_agree_with_the_curve_and_random_ones_stand_beside():
    model = make_tiny_model()
    found = causal_memory(model, [text_of(model, 60)], [0], num_positions=2)["reset"]
    curve = found["layers"]["layer_0"]
    # Every position has every lag, so that the two orders of averaging agree but for rounding.
    mean = sum(curve["mean_kl"]) / len(curve["mean_kl"])
    assert sum(curve["kl"]) / len(curve["kl"]) == pytest.approx(mean, rel=1e-9)
    beside = found["random_positions"]
    assert beside["num_positions"] == 2
    assert [entry["first_lag"] for entry in beside["bins"]] == [
        entry["first_lag"] for entry in found["together"]["bins"]
    ]


def test_knockouts_by_layer_are_those_of_the_whole():
    model = make_tiny_model()
    captures = [text_of(model, 5), text_of(model, 40), text_of(model, 50, seed=1)]
    whole = causal_memory(model, captures, [0, 2], num_positions=3)["knockout"]["layers"]
    found = knockouts_by_layer(model, captures, [0, 2], 3)["knockout"]["layers"]
    for name, part in found.items():
        for field in ("positions", "kl", "late_share"):
            assert part[field] == whole[name][field]
    assert knockouts_by_layer(model, captures[:1], [0], 3) == {}


def sources(deltas, kl, places):
    return sources_of({"positions": places, "kl": kl}, deltas)


def test_tokens_of_larger_delta_that_leave_more_are_found():
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.rand(30, 4, generator=generator) + 0.1 for _ in range(2)]
    places = [[text, token] for text in (0, 1) for token in range(30)]
    size = [float(deltas[text][token].log().mean()) for text, token in places]
    noise = torch.rand(60, generator=generator).tolist()
    found = delta_at_sources({
        0: sources(deltas, [x**3 for x in size], places),
        3: sources(deltas, noise, places),
        6: sources(deltas, [-x for x in size], places),
    })  # fmt: skip
    tied, none, against = (found[layer] for layer in (0, 3, 6))
    assert tied.value == pytest.approx(1.0)
    assert against.value == pytest.approx(-1.0)
    assert tied.null_high is not None
    # One text of two is not moved in one draw of 15, which leaves half of a perfect tie.
    assert tied.null_high < 0.6
    assert none.outside_null is False
    mean = found[MEAN_OVER_LAYERS]
    assert mean.value == pytest.approx(none.value / 3)
    # The two layers that are opposite are so in every draw: the third alone is left of the null.
    assert mean.null_high == pytest.approx(none.null_high / 3)


def test_sources_that_a_layer_lacks_and_deltas_of_zero():
    deltas = [torch.rand(30, 4) + 0.1 for _ in range(2)]
    few = delta_at_sources({0: sources(deltas, [1.0, None, 2.0], [[0, 0], [0, 1], [0, 2]])})
    assert few[0].value is None
    assert str(few[0].reason).startswith("2 samples")
    dead = [torch.zeros(30, 4) for _ in range(2)]
    places = [[text, token] for text in (0, 1) for token in range(30)]
    kl = torch.rand(60).tolist()
    both = delta_at_sources({0: sources(dead, kl, places), 3: sources(deltas, kl, places)})
    assert both[0].reason == "every channel has a delta of exactly 0 at some token"
    assert both[MEAN_OVER_LAYERS].value == both[3].value is not None
    assert delta_at_sources({0: sources(dead, kl, places)})[MEAN_OVER_LAYERS].value is None
    assert delta_at_sources({}) == {}


def test_neurons_beside_random_ones_are_means_over_texts():
    model = make_tiny_model()
    captures = [text_of(model, 30), text_of(model, 40, seed=1)]
    neurons = [3, 9, 20, 31, 40]
    found = neurons_beside_random(model, captures, 2, neurons, 2)
    alone = [
        neuron_interventions(model, one, 2, neurons, value="mean", num_random=2) for one in captures
    ]
    kl = torch.stack([one.kl for one in alone])
    random_kl = torch.stack([one.random_kl for one in alone])
    assert found["kl"] == pytest.approx(float(kl.mean()))
    assert found["random_kl"] == pytest.approx(float(random_kl.mean()))
    excess = found["excess"]
    assert excess["value"] == pytest.approx(found["kl"] - found["random_kl"])
    assert excess["low"] <= excess["value"] <= excess["high"]
    assert (excess["n"], excess["reason"]) == (5, None)
    few = neurons_beside_random(model, captures, 2, neurons[:4], 2)
    assert (few["excess"]["low"], few["num_texts"]) == (None, 2)
    assert few["excess"]["reason"] == "n = 4; an interval needs 5"


def test_delta_frozen_halved_and_doubled_by_text():
    model = make_tiny_model()
    captures = [text_of(model, 30), text_of(model, 40, seed=1)]
    found = delta_interventions(model, captures, 2)
    assert list(found) == ["frozen", "halved", "doubled"]
    for name, edits in (("frozen", freeze_delta(2)), ("doubled", scale_delta(2.0, 2))):
        for i, one in enumerate(captures):
            effect = intervention_effects(model, one, edits)
            assert found[name]["kl"][i] == pytest.approx(float(effect.kl.mean()))
            assert found[name]["loss_change"][i] == pytest.approx(
                float(effect.loss_change.nanmean())
            )


def test_more_random_positions_on_demand():
    model = make_tiny_model()
    texts = [text_of(model, 60)]
    found = causal_memory(model, texts, [0], num_positions=2, num_random=3)["knockout"]
    assert found["random_positions"]["num_positions"] == 6
