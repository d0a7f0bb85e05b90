"""Gradients and ablations: against the model's own code, finite differences and closed forms."""

import math
from typing import Any

import hand_weighted
import pytest
import torch
from conftest import make_tiny_model
from torch import Tensor

from attention_neurons import NEURON_METHODS, attention_data, layer_parameters
from benchmarks.family_models import ALL_MODELS, make_model
from causal_interventions import neuron_effects
from causal_interventions.neuron_effects import (
    ABLATION_VALUES,
    AblationEffects,
    ablation_agreement,
    ablation_check,
    ablation_effects,
    ablation_rows,
    other_text,
    target_gradients,
)
from causal_interventions.targets import resolve_target
from mamba_mixers import running
from mamba_mixers.sites import blocks_of, find_mixers
from ssm_component_extractor import capture
from ssm_measures.components import Capture

LAYER = 1


def tiny_ids(length: int = 20, batch: int = 1) -> Tensor:
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(3))


def tiny_capture(model, ids: Tensor | None = None, layers=(0, LAYER, 3)) -> Capture:
    return capture(model, tiny_ids() if ids is None else ids, None, list(layers))


@torch.no_grad()
def value_with_neurons(model, ids: Tensor, layer: int, change, target) -> Tensor:
    """The target when out_proj's input is changed in the model's own, unreplaced code."""
    pinned = target.pin(model(ids).logits, ids)
    out_proj = find_mixers(model)[layer].mixer.out_proj
    handle = out_proj.register_forward_pre_hook(lambda module, args: (change(args[0]),))
    try:
        return pinned(model(ids).logits)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["log_probability", "logit", "logit_difference", "loss"])
def test_ablation_is_what_the_models_own_code_gives(name):
    model, ids = make_tiny_model(), tiny_ids()
    target = resolve_target(name)
    neurons = [5, 0, 63, 17]
    found = ablation_effects(model, tiny_capture(model), LAYER, neurons, target)
    clean = value_with_neurons(model, ids, LAYER, lambda x: x, target)
    assert found.baseline == pytest.approx(float(clean), abs=1e-5)
    for neuron, effect in zip(neurons, found.effects.tolist(), strict=True):

        def to_mean(x: Tensor, neuron: int = neuron) -> Tensor:
            x = x.clone()
            x[..., neuron] = x[..., neuron].mean(1, keepdim=True)
            return x

        ablated = value_with_neurons(model, ids, LAYER, to_mean, target)
        # Two float32 forward passes of values of order 1 through different code.
        assert effect == pytest.approx(float(ablated - clean), abs=1e-5)


@pytest.mark.parametrize("value", ["zero", "other_text"])
def test_ablation_by_other_values_is_what_the_models_own_code_gives(value):
    model, ids, target = make_tiny_model(), tiny_ids(), resolve_target()
    donor = tiny_capture(model, tiny_ids(8).flip(1))
    gated = donor.components[LAYER].gated[0]
    found = ablation_effects(
        model, tiny_capture(model), LAYER, [5, 17], target, value=value, donor=donor
    )
    clean = value_with_neurons(model, ids, LAYER, lambda x: x, target)
    for neuron, effect in zip((5, 17), found.effects.tolist(), strict=True):

        def changed(x: Tensor, neuron: int = neuron) -> Tensor:
            x = x.clone()
            # The shorter text comes again: tokens 0 to 7, 0 to 7, 0 to 3.
            again = torch.cat([gated, gated, gated[:4]])[:, neuron]
            x[..., neuron] = 0.0 if value == "zero" else again
            return x

        ablated = value_with_neurons(model, ids, LAYER, changed, target)
        # As above.
        assert effect == pytest.approx(float(ablated - clean), abs=1e-5)
    assert found.value == value


def ranks_of_every_ablation(others_write: bool) -> dict:
    """Neuron 3 alone feeds the logit; its agreement by value, from a set that ranks it first."""
    model = hand_weighted.single_logit_channel(3, 5, others_write=others_write)
    ids = [torch.tensor([[1, 3, 2, 7, 3, 1, 4, 6, 3, 2]]), torch.tensor([[4, 3, 1, 6, 2]])]
    captured, donor = (capture(model, one, None, [0]) for one in ids)
    target = resolve_target("logit", token=5)
    data = attention_data(captured, layer_parameters(model, [0]))
    sets = {"gradient_guided": NEURON_METHODS["gradient_guided"](data, model, target)}
    return ablation_check(
        model, captured, sets, target, 8, values=ABLATION_VALUES, donor=donor
    )[0]  # fmt: skip


def test_the_check_has_a_column_for_each_kind_of_ablation():
    check = ranks_of_every_ablation(others_write=True)
    assert set(check["by_value"]) == set(ABLATION_VALUES)
    assert check["agreement"] == check["by_value"]["mean"]["agreement"]
    for part in check["by_value"].values():
        effects = {int(neuron): abs(x) for neuron, x in part["effects"].items()}
        assert max(effects, key=lambda neuron: effects[neuron]) == 3
    rows = ablation_rows({"layer_0": check})
    assert len(rows) == 8
    third = next(row for row in rows if row["neuron"] == 3)
    assert third["effect_zero"] == check["by_value"]["zero"]["effects"]["3"]
    assert third["effect_mean"] != third["effect_zero"] != third["effect_other_text"]


def test_without_another_text_its_column_says_so():
    model = make_tiny_model()
    captured, target = tiny_capture(model), resolve_target()
    data = attention_data(captured, layer_parameters(model, captured.layers))
    sets = {"rollout": NEURON_METHODS["rollout"](data, model, None)}
    check = ablation_check(model, captured, sets, target, 4, values=ABLATION_VALUES)[LAYER]
    assert check["by_value"]["other_text"] == {"reason": "no other text to take values from"}
    assert {row["effect_other_text"] for row in ablation_rows({"layer_1": check})} == {None}
    assert ablation_rows({"reason": "not asked for"}) == []
    with pytest.raises(ValueError, match="value is 'other_text' without a donor"):
        ablation_effects(model, captured, LAYER, [0], target, value="other_text")
    with pytest.raises(ValueError, match="value is 'one'; it must be one of mean, zero, other"):
        ablation_effects(model, captured, LAYER, [0], target, value="one")
    assert other_text([captured], 0) is None


def test_ablation_in_batches_is_the_same(monkeypatch):
    model = make_tiny_model()
    captured, target = tiny_capture(model), resolve_target()
    whole = ablation_effects(model, captured, LAYER, range(10), target)
    monkeypatch.setattr("causal_interventions.neuron_effects._TOKENS_PER_PASS", 60)
    parts = ablation_effects(model, captured, LAYER, range(10), target)
    # Batches of another size may use another order of float32 sums.
    torch.testing.assert_close(parts.effects, whole.effects, rtol=0, atol=1e-5)
    assert parts.to_dict()["effects"].keys() == {str(i) for i in range(10)}


def test_ablating_no_neuron_gives_no_effects():
    model = make_tiny_model()
    found = ablation_effects(model, tiny_capture(model), LAYER, [], resolve_target())
    assert found.effects.shape == (0,)


@pytest.mark.parametrize("name", ["log_probability", "loss"])
def test_gradients_are_the_limit_of_finite_differences(name):
    model = make_tiny_model().double()
    ids, target = tiny_ids(), resolve_target(name)
    found = target_gradients(model, tiny_capture(model), [LAYER], target)
    for token, neuron in ((0, 3), (7, 50), (19, 11)):

        def moved(step: float, token: int = token, neuron: int = neuron) -> float:
            def change(x: Tensor) -> Tensor:
                x = x.clone()
                x[0, token, neuron] += step
                return x

            return float(value_with_neurons(model, ids, LAYER, change, target))

        # Central differences in a model of which some stages round to float32: 1e-7 / step.
        expected = (moved(1e-2) - moved(-1e-2)) / 2e-2
        assert float(found.grad_gated[LAYER][0, token, neuron]) == pytest.approx(
            expected, rel=1e-2, abs=2e-5
        )


def test_gradient_of_y_passes_through_the_gate():
    model = make_tiny_model()
    captured = tiny_capture(model)
    found = target_gradients(model, captured, captured.layers, resolve_target())
    for layer in captured.layers:
        gate = torch.nn.functional.silu(captured.components[layer].gate)
        # The same product in another order, float32.
        torch.testing.assert_close(
            found.grad_y[layer], found.grad_gated[layer] * gate, rtol=1e-5, atol=1e-9
        )


def test_frozen_models_and_left_padded_batches_have_the_same_gradients():
    model = make_tiny_model()
    ids, target = tiny_ids(16, batch=2), resolve_target()
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    batch = target_gradients(model, capture(model, ids, mask, [LAYER]), [LAYER], target)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    alone = capture(model, ids[1:, 5:], None, [LAYER])
    single = target_gradients(model, alone, [LAYER], target)
    assert batch.token_ids[1] == single.token_ids[0]
    assert float(batch.value[1]) == pytest.approx(float(single.value[0]), abs=1e-5)
    # The suite's bound for a padded batch against one text at a time.
    torch.testing.assert_close(
        batch.grad_gated[LAYER][1, 5:], single.grad_gated[LAYER][0], rtol=1e-4, atol=1e-6
    )
    assert torch.equal(batch.grad_gated[LAYER][1, :5], torch.zeros(5, 64))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_do_not_need_the_callers_leave(off):
    model, target = make_tiny_model(), resolve_target()
    expected = target_gradients(model, tiny_capture(model), [LAYER], target)
    with off():
        found = target_gradients(model, tiny_capture(model), [LAYER], target)
    assert torch.equal(found.grad_gated[LAYER], expected.grad_gated[LAYER])


@pytest.mark.parametrize("name", ["log_probability", "loss"])
def test_right_padded_batches_have_the_same_gradients(name):
    # As a tokenizer that pads on the right gives them: the last column is then no token of text 1.
    model, ids, target = make_tiny_model(), tiny_ids(16, batch=2), resolve_target(name)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    batch = target_gradients(model, capture(model, ids, mask, [LAYER]), [LAYER], target)
    alone = capture(model, ids[1:, :11], None, [LAYER])
    single = target_gradients(model, alone, [LAYER], target)
    assert batch.token_ids[1] == single.token_ids[0]
    # The suite's bound for a padded batch against one text at a time.
    assert float(batch.value[1]) == pytest.approx(float(single.value[0]), abs=1e-5)
    torch.testing.assert_close(
        batch.grad_gated[LAYER][1, :11], single.grad_gated[LAYER][0], rtol=1e-4, atol=1e-6
    )


def gradients_of_the_whole_graph(model, ids: Tensor, layers) -> dict[int, Tensor]:
    """By layer the gradient in the neurons, from one graph of the suite's scan, all of it kept."""
    replays, target = {}, resolve_target()
    with running.fast_scan(model, observe=replays.__setitem__):
        value = target(model(input_ids=ids, use_cache=False).logits, ids)
        found = torch.autograd.grad(value.sum(), [replays[i].gated for i in layers])
    return dict(zip(layers, found, strict=True))


def in_place(model) -> None:
    def zero(block, args, output) -> None:
        output[:, 3] = 0

    blocks_of(model)[0].register_forward_hook(zero)


def carried_over_a_block(model) -> None:
    seen: dict[str, Any] = {}
    blocks = blocks_of(model)
    blocks[0].register_forward_hook(lambda block, args, output: seen.update(x=output))
    blocks[2].register_forward_hook(lambda block, args, output: output + seen["x"])


def on_the_gradient(model) -> None:
    def hook(block, args, output) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: 2 * gradient)

    blocks_of(model)[0].register_forward_hook(hook)


def dropout(model) -> None:
    for module in model.train().modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, lambda model: None) for name in ALL_MODELS),
        ("mamba", in_place),
        ("zamba", carried_over_a_block),
        ("mamba", on_the_gradient),
        ("bamba", dropout),
    ],
)
def test_gradients_are_those_of_the_whole_graph(monkeypatch, name, change):
    monkeypatch.setattr(neuron_effects, "_GRAPH_BYTES", 0)  # every block is computed again
    model, ids = make_model(name), tiny_ids(9)
    change(model)
    layers = list(find_mixers(model))
    captured = tiny_capture(model, ids, layers)
    torch.manual_seed(0)
    expected = gradients_of_the_whole_graph(model, ids, layers)
    torch.manual_seed(0)
    found = target_gradients(model, captured, layers, resolve_target())
    for layer in layers:
        # One position's logits, or all of them: other sums in float32.
        bound = 1e-5 * float(expected[layer].abs().max())
        torch.testing.assert_close(found.grad_gated[layer], expected[layer], rtol=1e-4, atol=bound)


@pytest.mark.parametrize("trainable", [True, False])
def test_gradients_of_recomputed_layers_are_the_same_to_the_bit(monkeypatch, trainable):
    model = make_tiny_model().requires_grad_(trainable)
    captured = tiny_capture(model)
    kept = target_gradients(model, captured, captured.layers, resolve_target())
    replays, replay_mixer = [], running.replay_mixer

    def counted(site, *args):
        replays.append(site.layer)
        return replay_mixer(site, *args)

    monkeypatch.setattr(running, "replay_mixer", counted)
    monkeypatch.setattr(neuron_effects, "_GRAPH_BYTES", 12 * captured.components[0].u.nbytes)
    again = target_gradients(model, captured, captured.layers, resolve_target())
    # Of four layers the last is kept.
    assert replays == [0, 1, 2, 3, 2, 1, 0]
    assert torch.equal(again.value, kept.value)
    for layer in captured.layers:
        assert torch.equal(again.grad_y[layer], kept.grad_y[layer])
        assert torch.equal(again.grad_gated[layer], kept.grad_gated[layer])


def test_a_position_inside_the_text_explains_the_token_that_follows():
    model, ids = make_tiny_model(), tiny_ids()
    found = target_gradients(
        model, tiny_capture(model), [LAYER], resolve_target("log_probability", position=4)
    )
    assert found.token_ids == (int(ids[0, 5]),)
    expected = model(ids).logits[0, 4].log_softmax(-1)[ids[0, 5]].detach()
    assert float(found.value[0]) == pytest.approx(float(expected), abs=1e-5)
    # Nothing after the position can matter.
    assert torch.equal(found.grad_gated[LAYER][0, 5:], torch.zeros(15, 64))


@pytest.mark.parametrize("others_write", [False, True])
def test_ablation_finds_the_one_channel_that_a_logit_reads(others_write):
    model = hand_weighted.single_logit_channel(3, 5, others_write=others_write)
    ids = torch.tensor([[1, 3, 2, 7, 3, 1, 4, 6, 3, 2]])
    captured = capture(model, ids, None, [0])
    target = resolve_target("logit", token=5)
    found = ablation_effects(model, captured, 0, range(8), target)
    assert int(found.effects.abs().argmax()) == 3
    stream = captured.block_outputs[0][0, -1]
    change = captured.components[0].gated[0].mean(0) - captured.components[0].gated[0, -1]
    if not others_write:
        after = stream.clone()
        after[5] += change[3]
        rms = [x.square().mean().sqrt() for x in (after, stream)]
        expected = float(after[5] / rms[0] - stream[5] / rms[1])
        assert float(found.effects[3]) == pytest.approx(expected, abs=1e-5)
        others = [i for i in range(8) if i != 3]
        # Not exactly 0: a batch of variants may be summed in another order than one text.
        assert float(found.effects[others].abs().max()) < 1e-6


def effects_of(values: list[float]) -> AblationEffects:
    return AblationEffects(0, torch.arange(len(values)), torch.tensor(values), 0.0, {})


def test_agreement_is_by_rank_and_by_magnitude():
    found = ablation_agreement(torch.tensor([1.0, 2.0, 3.0, 9.0]), effects_of([0.1, -0.2, 0.3, -4]))
    assert found["spearman"] == pytest.approx(1.0, abs=1e-12)
    assert found["null_95"] == pytest.approx(1.96 / math.sqrt(3))
    reverse = ablation_agreement(torch.tensor([4.0, 3.0, 2.0, 1.0]), effects_of([1, 2, 3, 4]))
    assert reverse["spearman"] == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("effects", "reason"),
    [([1.0, 2.0], "fewer than 3 neurons"), ([0.0, 0.0, 0.0], "all the same")],
)
def test_agreement_that_is_undefined_says_why(effects, reason):
    found = ablation_agreement(torch.arange(3.0), effects_of(effects))
    assert found["spearman"] is None
    assert reason in found["reason"]


def test_bad_input_is_named():
    model = make_tiny_model()
    captured = tiny_capture(model)
    with pytest.raises(ValueError, match="neurons is 64 .*at most 63"):
        ablation_effects(model, captured, LAYER, [64], resolve_target())
    with pytest.raises(ValueError, match="layer_idx is 2; the layers extracted are .0, 1, 3."):
        ablation_effects(model, captured, 2, [0], resolve_target())
    batch = tiny_capture(model, tiny_ids(9, batch=2))
    with pytest.raises(ValueError, match="captured has 2 texts; ablation takes one"):
        ablation_effects(model, batch, LAYER, [0], resolve_target())
    with pytest.raises(ValueError, match="token 64 is not in the vocabulary"):
        target_gradients(model, captured, [LAYER], resolve_target("logit", token=64))
    with pytest.raises(ValueError, match="position is -99"):
        target_gradients(model, captured, [LAYER], resolve_target(position=-99))
