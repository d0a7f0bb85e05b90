"""Effects of interventions: against the model's own code, KL by its formula, planted models."""

import math

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model
from torch import Tensor, nn

from causal_interventions.effects import (
    batched_effects,
    intervention_effects,
    matched_neurons,
    neuron_interventions,
    written_norms,
)
from causal_interventions.interventions import (
    compose,
    hide_source,
    reset_state,
    scale_delta,
    set_neuron,
)
from causal_interventions.neuron_effects import ablation_effects
from causal_interventions.targets import resolve_target
from mamba_mixers.sites import find_mixers
from ssm_component_extractor import capture
from ssm_measures.components import Capture

LAYER = 1


def tiny_ids(length: int = 20, batch: int = 1) -> Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(3))


def tiny_capture(model, ids: Tensor | None = None) -> Capture:
    return capture(model, tiny_ids() if ids is None else ids, None, [0, LAYER, 3])


def assert_untouched(model: nn.Module) -> None:
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@torch.no_grad()
def log_p_without_neuron(model, ids: Tensor, neuron: int | None) -> Tensor:
    """(l, V) log-probabilities of the model's own code with one neuron at zero."""

    def to_zero(module, args):
        x = args[0].clone()
        if neuron is not None:
            x[..., neuron] = 0
        return (x,)

    handle = find_mixers(model)[LAYER].mixer.out_proj.register_forward_pre_hook(to_zero)
    try:
        return model(ids).logits[0].double().log_softmax(-1)
    finally:
        handle.remove()


def test_effects_are_those_of_the_models_own_code():
    model, ids = make_tiny_model(), tiny_ids()
    found = intervention_effects(model, tiny_capture(model), set_neuron(LAYER, 17))
    clean, changed = (log_p_without_neuron(model, ids, neuron) for neuron in (None, 17))
    kl = nn.functional.kl_div(changed, clean, log_target=True, reduction="none").sum(-1)
    # A KL of about 1e-4 is quadratic in logits that agree to 1e-6.
    torch.testing.assert_close(found.kl[0], kl, rtol=1e-3, atol=1e-9)
    assert float(found.kl.max()) > 1e-5
    after = ids[0, 1:, None]
    loss = (clean[:-1].gather(1, after) - changed[:-1].gather(1, after))[:, 0]
    torch.testing.assert_close(found.loss_change[0, :-1], loss, rtol=0, atol=1e-5)
    assert math.isnan(found.loss_change[0, -1])
    as_json = found.to_dict()
    assert as_json["kl"] == [pytest.approx(float(kl.mean()), rel=1e-3)]
    assert as_json["loss_change"] == [pytest.approx(float(loss.mean()), abs=1e-5)]


@pytest.mark.parametrize("name", ["log_probability", "logit", "logit_difference", "loss"])
def test_the_change_of_a_target_is_that_of_an_ablation(name):
    model = make_tiny_model()
    captured, target, neurons = tiny_capture(model), resolve_target(name), [5, 0, 63]
    found = batched_effects(
        model, captured, lambda part: set_neuron(LAYER, part[:, None], "mean"), neurons,
        target=target,
    )  # fmt: skip
    ablated = ablation_effects(model, captured, LAYER, neurons, target)
    assert found.target_change is not None
    # Two ways to the same float32 forward pass, of values of order 1.
    torch.testing.assert_close(found.target_change, ablated.effects.double(), rtol=0, atol=1e-5)


def test_parts_of_a_batch_are_the_same(monkeypatch):
    model = make_tiny_model()
    captured = tiny_capture(model)

    def build(tokens: Tensor):
        return compose(reset_state(tokens, LAYER), hide_source(tokens, 3))

    whole = batched_effects(model, captured, build, range(20))
    monkeypatch.setattr("causal_interventions.effects._TOKENS_PER_PASS", 70)
    parts = batched_effects(model, captured, build, range(20))
    # Logits of values of order 1 that were summed in another order, and a KL quadratic in them.
    torch.testing.assert_close(
        parts.loss_change, whole.loss_change, rtol=0, atol=1e-5, equal_nan=True
    )
    torch.testing.assert_close(parts.kl, whole.kl, rtol=1e-2, atol=1e-10)
    alone = intervention_effects(model, captured, build(torch.tensor([7])))
    torch.testing.assert_close(alone.kl[0], whole.kl[7], rtol=1e-2, atol=1e-10)
    assert whole.target_change is None


def test_nothing_changes_before_an_intervention():
    model = make_tiny_model()
    for build in (reset_state, hide_source):
        found = intervention_effects(model, tiny_capture(model), build(9, LAYER))
        # Rounding of the logits, about 1e-6, squared.
        assert float(found.kl[0, :9].max()) < 1e-11
        assert float(found.kl[0, 10:].max()) > 1e-7


def test_a_model_that_ignores_its_state_has_no_causal_memory():
    """C = 0: the SSM passes its input on through D alone, and writes a logit for each token."""
    built = hand_weighted.HandWeighted(6, 6, d_state=2)
    for token in range(6):
        built.channel(token, [token]).writes(token, 3.0 * torch.eye(6)[token - 1])
    built.reads(B={(0, v): 1.0 for v in range(6)}, C={}).decay([0.1, 0.2], 1.0)
    built.mixer.D.fill_(1.0)
    ids = torch.randint(0, 6, (1, 30), generator=torch.Generator().manual_seed(1))
    captured = capture(built.model, ids, None, [0])
    for build in (reset_state, hide_source):
        found = batched_effects(built.model, captured, lambda t, f=build: f(t, 0), range(30))
        assert float(found.kl.max()) < 1e-15
        assert float(found.loss_change[:, :-1].abs().max()) < 1e-15
    # The same model is moved by its input: what it lacks is memory.
    assert float(intervention_effects(built.model, captured, set_neuron(0, 2)).kl.max()) > 0.01


def test_hiding_what_a_latch_holds_changes_every_later_prediction():
    built = hand_weighted.HandWeighted(6, 6, d_state=1)
    built.channel(0, range(6)).channel(1, [3])
    built.reads(B={(0, 1): 1.0}, C={(0, 0): 1.0}).decay([1e-7], 1.0)
    built.writes(0, 5.0 * torch.eye(6)[2])
    ids = torch.ones(1, 300, dtype=torch.long)
    ids[0, 4] = 3
    captured = capture(built.model, ids, None, [0])
    found = batched_effects(built.model, captured, lambda t: hide_source(t, 0), [4, 5])
    held = found.kl[0, 5:]
    # The latched token is as strong after 295 tokens as after one, to 300 float32 products.
    assert float(held.min()) > 0.1
    assert float(held.max() / held.min()) == pytest.approx(1.0, abs=1e-3)
    assert float(found.kl[1].max()) < 1e-15


def test_single_neurons_beside_random_ones_of_the_same_norm():
    model = make_tiny_model()
    captured = tiny_capture(model)
    found = neuron_interventions(model, captured, LAYER, [7, 30, 2, 5, 8], num_random=3, seed=5)
    assert found.random_neurons.shape == found.random_kl.shape == (5, 3)
    assert not {7, 30, 2, 5, 8} & set(found.random_neurons.flatten().tolist())
    out = find_mixers(model)[LAYER].mixer.out_proj.weight.detach()
    written = captured.components[LAYER].gated[0, :, 30, None] * out[:, 30]
    assert float(found.norms[1]) == pytest.approx(float(written.norm()), rel=1e-5)
    for neurons, kl in ((found.neurons[:, None], found.kl[:, None]),
                        (found.random_neurons, found.random_kl)):  # fmt: skip
        for index in ((0, 0), (2, -1)):
            alone = intervention_effects(model, captured, set_neuron(LAYER, int(neurons[index])))
            assert float(kl[index]) == pytest.approx(float(alone.kl.mean()), rel=1e-2)
    as_json = found.to_dict()
    excess = float(found.kl.mean() - found.random_kl.mean())
    assert as_json["kl_excess"]["mean"] == pytest.approx(excess)
    assert as_json["kl_excess"]["low"] < as_json["kl_excess"]["high"]
    assert as_json["kl_excess"]["n"] == 5
    few = neuron_interventions(model, captured, LAYER, [7]).to_dict()["kl_excess"]
    assert (few["low"], few["reason"]) == (None, "n = 1; an interval needs 5")


def test_the_neuron_that_a_logit_reads_is_the_only_one_with_an_effect():
    model = hand_weighted.single_logit_channel(3, 5, others_write=False)
    ids = torch.tensor([[1, 3, 2, 7, 3, 1, 4, 6, 3, 2]])
    captured = capture(model, ids, None, [0])
    found = neuron_interventions(model, captured, 0, [3], num_random=4)
    assert float(found.kl[0]) > 0.01
    # Rounding of the logits, squared.
    assert float(found.random_kl.max()) < 1e-12


def test_matched_neurons_are_near_in_norm_and_seeded():
    norms = torch.arange(100.0) ** 2
    drawn = matched_neurons(norms, [50, 51], 3)
    assert drawn.shape == (2, 3)
    # 12 nearest of 50, 51 excluded: 44..57.
    assert set(drawn.flatten().tolist()) <= set(range(44, 59)) - {50, 51}
    assert torch.equal(drawn, matched_neurons(norms, [50, 51], 3))
    assert not torch.equal(drawn, matched_neurons(norms, [50, 51], 3, seed=1))
    assert len(set(drawn[0].tolist())) == 3


def test_written_norms_of_a_silent_neuron():
    model = hand_weighted.single_logit_channel(3, 5, others_write=False)
    captured = capture(model, torch.tensor([[3, 3, 1]]), None, [0])
    norms = written_norms(model, captured, 0)
    assert float(norms[3]) > 1
    assert norms[torch.arange(8) != 3].abs().max() == 0


def test_the_model_is_restored_and_bad_input_named():
    model = make_tiny_model()
    captured = tiny_capture(model)
    for function, message in (
        (lambda: intervention_effects(model, captured, {}), "intervention is empty"),
        (
            lambda: intervention_effects(model, captured, reset_state(1, 2)),
            "layer_idx is 2; .*0, 1",
        ),
        (
            lambda: intervention_effects(model, captured, reset_state(1, [1, 9])),
            "layers .9. without",
        ),
        (lambda: intervention_effects(model, captured, reset_state(20, 1)), "token names 20"),
        (lambda: batched_effects(model, captured, lambda t: reset_state(t, 1), []), "choices is"),
        (lambda: neuron_interventions(model, captured, 1, [64]), "neurons is 64"),
        (lambda: neuron_interventions(model, captured, 1, []), "neurons names 0 of 64"),
        (lambda: matched_neurons(torch.ones(4), [0, 1], 3), "names 2 of 4; .*3 others"),
        (lambda: matched_neurons(torch.ones(4), [0], 0), "num_random is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            function()
        assert_untouched(model)
    batch = tiny_capture(model, tiny_ids(9, batch=2))
    with pytest.raises(ValueError, match="captured has 2 texts, or padding"):
        intervention_effects(model, batch, scale_delta(2.0, LAYER))
