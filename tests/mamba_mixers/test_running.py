"""Mixers are found, replayed to rounding, run by the suite's own scan, and left as they were."""

from typing import Any

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from mixer_cases import (
    MODELS,
    REPLAY_BOUND,
    all_layers,
    assert_untouched,
    doubled,
    in_dtype,
    left_padded,
    logits_of,
    make_ids,
    make_odd_model,
)
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from mamba_mixers.families import FAMILIES
from mamba_mixers.recording import record_layers
from mamba_mixers.replay import EDITABLE, LRP, MixerReplay
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import UnsupportedModelError, find_mixers, num_layers
from mamba_mixers.weights import bias_parameters, mixer_parameters
from token_statistics.description import relative_error


@pytest.mark.parametrize("dtype", REPLAY_BOUND)
@pytest.mark.parametrize("name", MODELS)
def test_replay_gives_the_mixers_output(name, dtype):
    model = in_dtype(MODELS[name](), dtype)
    ids, mask = left_padded(make_ids(), 9)
    for record in record_layers(model, all_layers(model), ids, mask).values():
        assert record.replay_error.shape == (2,)
        assert float(record.replay_error.max()) <= REPLAY_BOUND[dtype]
        assert record.mixer_output.dtype == dtype
        # The error is that of the tensors, not a number from elsewhere.
        error = relative_error(record.replay.output[0].float(), record.mixer_output[0].float())
        assert float(record.replay_error[0]) == pytest.approx(error, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_is_that_of_the_mixer_written_by_hand(name, dtype):
    model = in_dtype(MODELS[name](), dtype)
    ids, mask = left_padded(make_ids(), 9)
    records = record_layers(model, all_layers(model), ids, mask)
    site = find_mixers(model)[1]
    x = model.backbone.layers[1].norm(records[1].block_input)
    stages = reference.mamba1_mixer(site.mixer.state_dict(), x.detach(), mask)
    replay, keep = records[1].replay, mask.bool()
    for stage in ("conv_input", "gate", "u", "delta", "B", "C", "y", "gated", "output"):
        value = getattr(replay, stage)
        assert relative_error(value[keep], stages[stage][keep]) <= REPLAY_BOUND[dtype], stage
    assert relative_error(replay.A, stages["A"]) <= REPLAY_BOUND[dtype]
    assert relative_error(replay.D, stages["D"]) <= REPLAY_BOUND[dtype]
    real = records[1].mixer_output
    assert relative_error(real[keep], stages["output"][keep]) <= REPLAY_BOUND[dtype]


def test_a_wrong_replay_shows_in_the_replay_error():
    model, ids = make_tiny_model(), make_ids()
    mixer: Any = find_mixers(model)[2].mixer
    stock_forward = mixer.forward
    mixer.forward = lambda *args, **kwargs: 1.01 * stock_forward(*args, **kwargs)
    records = record_layers(model, [1, 2], ids)
    assert float(records[1].replay_error.max()) <= 1e-5
    # |x - 1.01 x| / |1.01 x|
    assert records[2].replay_error.tolist() == pytest.approx([0.01 / 1.01] * 2, rel=1e-3)


def test_replay_error_leaves_padding_out():
    model = make_tiny_model()
    ids, mask = left_padded(make_ids(), 9)
    mixer: Any = find_mixers(model)[0].mixer
    stock_forward = mixer.forward

    def wrong_at_padding(*args, **kwargs):
        return stock_forward(*args, **kwargs) + 100.0 * (1 - mask[:, :, None])

    mixer.forward = wrong_at_padding
    assert float(record_layers(model, [0], ids, mask)[0].replay_error.max()) <= 1e-5


def test_residual_stream_is_the_models_own():
    model, ids = make_tiny_model(), make_ids()
    with torch.no_grad():
        # transformers gives the stream after each block, and the normed one in the last place.
        stream = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        embeddings = model.get_input_embeddings()(ids)
    records = record_layers(model, [0, 1, 2, 3], ids)
    assert torch.equal(records[0].block_input, embeddings)
    for layer in range(3):
        assert torch.equal(records[layer].block_output, stream[layer])
        assert torch.equal(records[layer + 1].block_input, stream[layer])
    for record in records.values():
        written = record.block_output - record.block_input
        # One float32 subtraction against the sum that was made.
        torch.testing.assert_close(record.mixer_output, written, rtol=0, atol=1e-6)


def test_logits_are_the_same_bits_with_hooks_and_without():
    model, ids = make_tiny_model(), make_ids()
    before = logits_of(model, ids)
    record = record_layers(model, all_layers(model), ids)[3]
    # The pass ends after the last layer; what follows it is the final norm and the head.
    with torch.no_grad():
        hooked = model.lm_head(model.backbone.norm_f(record.block_output))
    assert torch.equal(hooked, before)
    assert torch.equal(logits_of(model, ids), before)
    assert_untouched(model)


def test_forward_stops_after_the_last_layer():
    model, ids = make_tiny_model(), make_ids()
    calls = [0] * 4
    for layer, block in enumerate(model.backbone.layers):
        block.register_forward_pre_hook(_counting(calls, layer))
    records = record_layers(model, [2, 0], ids)
    assert sorted(records) == [0, 2]
    assert calls == [1, 1, 1, 0]


def _counting(calls: list[int], layer: int):
    def hook(module, args):
        calls[layer] += 1

    return hook


def test_hooks_are_gone_after_an_exception_in_the_middle():
    model, ids = make_tiny_model(), make_ids()
    before = logits_of(model, ids)

    def fail(module, args, output):
        raise ZeroDivisionError("in the middle of the forward pass")

    handle = find_mixers(model)[1].mixer.out_proj.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        record_layers(model, [0, 3], ids)
    handle.remove()
    assert_untouched(model)
    assert torch.equal(logits_of(model, ids), before)


class AllButTheLast(nn.ModuleList):
    """Layers of which a loop sees all but the last."""

    def __iter__(self):
        return iter(list(super().__iter__())[:-1])


def test_a_mixer_that_is_never_called_is_an_error():
    model, ids = make_tiny_model(), make_ids()
    model.backbone.layers.__class__ = AllButTheLast
    with pytest.raises(RuntimeError, match=r"never called the mixers of layers \[3\]"):
        record_layers(model, [0, 3], ids)
    assert_untouched(model)


def test_padding_changes_no_text():
    model = make_tiny_model()
    ids = make_ids()
    padded, mask = left_padded(ids, 9)
    batched = record_layers(model, [0, 3], padded, mask)
    alone = record_layers(model, [0, 3], ids[1:, :28])
    for layer in (0, 3):
        for stage in ("u", "delta", "B", "C", "gate", "y", "gated", "output"):
            value = getattr(batched[layer].replay, stage)[1, 9:]
            # The bound of the suite on batched against alone, in float32.
            assert relative_error(value, getattr(alone[layer].replay, stage)[0]) <= 1e-5, stage
        assert not bool(batched[layer].replay.u[1, :9].any())


def test_nothing_recorded_is_attached_to_a_graph():
    record = record_layers(make_tiny_model(), [1], make_ids())[1]
    tensors = {
        **vars(record.replay), **record.replay.memory._asdict(), "mixer_output": record.mixer_output
    }  # fmt: skip
    del tensors["memory"], tensors["norm_scale"]  # Mamba-1 has no norm of the gated output
    # D is the parameter itself, a leaf.
    assert all(x.grad_fn is None for x in tensors.values())
    assert [name for name, x in tensors.items() if x.requires_grad] == ["D"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_fast_scan_gives_the_stock_logits(name, dtype):
    model = in_dtype(MODELS[name](), dtype)
    ids, mask = left_padded(make_ids(), 9)
    stock = logits_of(model, ids, mask)
    with fast_scan(model) as fast:
        assert fast is model
        result = logits_of(model, ids, mask)
    keep = mask.bool()
    assert relative_error(result[keep], stock[keep]) <= REPLAY_BOUND[dtype]
    assert_untouched(model)
    assert torch.equal(logits_of(model, ids, mask), stock)


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_fast_scan_gives_the_stock_gradients(name):
    model, ids = MODELS[name](), make_ids(12)
    parameters = dict(model.named_parameters())

    def gradients() -> list[Tensor]:
        x = model.get_input_embeddings()(ids).detach().requires_grad_()
        f = model(inputs_embeds=x, use_cache=False).logits.log_softmax(-1)[:, -1, 3].sum()
        return list(torch.autograd.grad(f, [x, *parameters.values()]))

    stock = gradients()
    with fast_scan(model):
        result = gradients()
    for label, ours, theirs in zip(["embeddings", *parameters], result, stock, strict=True):
        # The suite's bound on gradients, in float32.
        assert relative_error(ours, theirs) <= 1e-4, label


def test_fast_scan_is_undone_after_an_exception():
    model, ids = make_tiny_model(), make_ids()
    before = logits_of(model, ids)
    with pytest.raises(ZeroDivisionError), fast_scan(model, rules=LRP):
        raise ZeroDivisionError
    assert_untouched(model)

    def fail(layer: int, replay: MixerReplay) -> None:
        raise ZeroDivisionError("in the middle of the forward pass")

    with pytest.raises(ZeroDivisionError, match="in the middle"), fast_scan(model, observe=fail):
        logits_of(model, ids)
    assert_untouched(model)
    assert torch.equal(logits_of(model, ids), before)


def test_fast_scan_within_fast_scan():
    model, ids = make_tiny_model(), make_ids()
    with fast_scan(model):
        outer = logits_of(model, ids)
        with fast_scan(model, edits={1: doubled("y")}):
            edited = logits_of(model, ids)
        assert torch.equal(logits_of(model, ids), outer)
    assert not torch.allclose(edited, outer)
    assert_untouched(model)


def test_a_recomputed_block_keeps_less_for_the_same_gradient():
    model, ids = make_tiny_model(), make_ids()
    found, kept = [], []
    for recompute in ((), (0, 2)):
        sizes = []

        def counted(x, sizes=sizes):
            sizes.append(x.nbytes)
            return x

        with fast_scan(model, recompute=recompute):
            with torch.autograd.graph.saved_tensors_hooks(counted, lambda x: x):
                value = model(ids, use_cache=False).logits.logsumexp(-1).sum()
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append(torch.autograd.grad(value, parameters))
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.7 * kept[0]  # two of four blocks
    assert_untouched(model)
    with (
        pytest.raises(ValueError, match="beside memories"),
        fast_scan(model, recompute=[0], memories={}),
    ):
        pass


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_forward_from_a_block_gives_the_whole_models_logits(layer):
    model, ids = make_tiny_model(), make_ids()
    stream = record_layers(model, [layer], ids)[layer].block_input
    with torch.no_grad():
        # The same operations on the same numbers: not a bit may differ.
        assert torch.equal(forward_from(model, layer, stream), logits_of(model, ids))
    assert_untouched(model)


def test_a_forward_from_a_block_is_undone_after_an_exception():
    model = make_tiny_model()
    with pytest.raises(RuntimeError):
        forward_from(model, 2, torch.zeros(1, 4, 31))
    assert_untouched(model)
    with pytest.raises(ValueError, match="layer is 4; the model has layers 0 to 3"):
        forward_from(model, 4, torch.zeros(1, 4, 32))
    with pytest.raises(UnsupportedModelError, match="MambaModel has no logits"):
        forward_from(model.backbone, 0, torch.zeros(1, 4, 32))


def test_fast_scan_leaves_other_models_and_a_forward_of_ones_own_alone():
    model, other, ids = make_tiny_model(), make_tiny_model(seed=1), make_ids()
    mixer: Any = find_mixers(model)[0].mixer
    own_forward = mixer.forward
    mixer.forward = own_forward
    with fast_scan(model, edits={0: doubled("gated")}):
        assert_untouched(other)
    assert vars(mixer)["forward"] is own_forward
    del mixer.forward
    assert_untouched(model)
    assert logits_of(model, ids).shape == (2, 37, VOCAB_SIZE)


def test_an_edit_that_changes_nothing_changes_nothing():
    model, ids = make_tiny_model(), make_ids()
    stages: list[str] = []

    def identity(stage: str, x: Tensor) -> Tensor:
        stages.append(stage)
        return x

    with fast_scan(model):
        plain = logits_of(model, ids)
    with fast_scan(model, edits=dict.fromkeys(range(4), identity)):
        assert torch.equal(logits_of(model, ids), plain)
    assert sorted(stages[: len(EDITABLE)]) == sorted(EDITABLE)
    assert len(stages) == 4 * len(EDITABLE)


def test_zeroing_a_neuron_is_zeroing_its_column_of_out_proj():
    model, ids = make_tiny_model(), make_ids()

    def ablate(stage: str, x: Tensor) -> Tensor:
        return torch.cat([x[..., :7], 0 * x[..., 7:8], x[..., 8:]], -1) if stage == "gated" else x

    with fast_scan(model, edits={2: ablate}):
        edited = logits_of(model, ids)
    before = logits_of(model, ids)
    with torch.no_grad():
        find_mixers(model)[2].mixer.out_proj.weight[:, 7] = 0
    assert relative_error(edited, logits_of(model, ids)) <= 1e-5
    assert relative_error(edited, before) > 1e-4  # far above rounding: the neuron mattered


@pytest.mark.parametrize("layer", [4, -1])
def test_an_edit_of_a_layer_without_a_mixer_is_refused(layer):
    model = make_tiny_model()
    with (
        pytest.raises(ValueError, match=rf"edits names layers \[{layer}\].*\[0, 1, 2, 3\]"),
        fast_scan(model, edits={layer: doubled("y")}),
    ):
        raise AssertionError("the context must not be entered")
    assert_untouched(model)


def test_with_a_cache_the_stock_code_generates_and_an_edit_is_refused():
    model: Any = make_tiny_model()
    ids = make_ids(9, batch=1)

    def generate() -> Tensor:
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)

    stock = generate()
    with fast_scan(model):
        assert torch.equal(generate(), stock)
    with (
        fast_scan(model, edits={1: doubled("y")}),
        pytest.raises(RuntimeError, match="edited mixer cannot use a cache.*use_cache=False"),
    ):
        generate()
    assert_untouched(model)


def test_observe_sees_every_layer_inside_the_graph():
    model, ids = make_tiny_model(), make_ids(12)
    seen: dict[int, MixerReplay] = {}
    with fast_scan(model, observe=lambda layer, replay: seen.update({layer: replay})):
        logits = model(ids, use_cache=False).logits
    assert list(seen) == [0, 1, 2, 3]
    gradients = torch.autograd.grad(logits[:, -1, 3].sum(), [seen[i].gated for i in range(4)])
    assert all(bool(gradient.any()) for gradient in gradients)
    for layer, record in record_layers(model, [0, 1, 2, 3], ids).items():
        assert relative_error(seen[layer].y.detach(), record.replay.y) <= 1e-5


def test_relevance_rules_change_gradients_and_no_values():
    model, ids = make_tiny_model(), make_ids(12)
    with fast_scan(model):
        plain = logits_of(model, ids)
    with fast_scan(model, rules=LRP):
        # x * (f(x) / x) and 0.5 p + 0.5 p round differently from f(x) and p: float32 rounding.
        assert relative_error(logits_of(model, ids), plain) <= 1e-5
    assert_untouched(model)


@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_relevance_is_conserved(name):
    model, ids = in_dtype(MODELS[name](), torch.float64), make_ids(12)
    x = model.get_input_embeddings()(ids).detach().requires_grad_()
    biases = [bias for key, bias in bias_parameters(model).items() if "dt_proj" not in key]
    with fast_scan(model, rules=LRP):
        f = model(inputs_embeds=x, use_cache=False).logits[:, -1, 3].sum()
        inputs = [x, *biases]
        gradients = torch.autograd.grad(f, inputs)
    relevance = sum(
        float((value * gradient).sum().detach())
        for value, gradient in zip(inputs, gradients, strict=True)
    )
    # Linear in embeddings and biases: sum of input times gradient is f; A and D are float32.
    assert relevance == pytest.approx(float(f.detach()), rel=1e-6)


def test_mixer_parameters_are_the_weights_around_the_scan():
    for model in (make_odd_model(), make_odd_model(bias=False)):
        site = find_mixers(in_dtype(model, torch.bfloat16))[1]
        weights, state = mixer_parameters(site), site.mixer.state_dict()
        assert torch.equal(weights.conv_weight, state["conv1d.weight"].squeeze(1).float())
        assert torch.equal(weights.out_weight, state["out_proj.weight"].float())
        for value, key in ((weights.conv_bias, "conv1d.bias"), (weights.out_bias, "out_proj.bias")):
            if key not in state:
                assert value is None
            else:
                assert value is not None
                assert torch.equal(value, state[key].float())
        assert not weights.out_weight.requires_grad


def test_bias_parameters_are_the_additive_constants():
    names = set(bias_parameters(make_odd_model()))
    of_layer_0 = {name.removeprefix("backbone.layers.0.") for name in names if ".0." in name}
    assert of_layer_0 == {
        f"mixer.{part}.bias" for part in ("in_proj", "conv1d", "dt_proj", "out_proj")
    }
    assert len(names) == 3 * 4


def test_mixers_are_found_with_their_layers():
    model = make_tiny_model()
    sites = find_mixers(model)
    assert list(sites) == [0, 1, 2, 3]
    assert num_layers(model) == 4
    for layer, site in sites.items():
        assert site.layer == layer
        assert site.block is model.backbone.layers[layer]
        assert site.mixer is model.backbone.layers[layer].mixer
        assert site.family.model_type == "mamba"
    assert list(find_mixers(model.backbone)) == [0, 1, 2, 3]


def test_a_subclass_of_a_mixer_is_found_and_replayed():
    model, ids = make_tiny_model(), make_ids()
    mixer = find_mixers(model)[2].mixer
    mixer.__class__ = type("TunedMixer", (type(mixer),), {})
    assert list(find_mixers(model)) == [0, 1, 2, 3]
    assert float(record_layers(model, [2], ids)[2].replay_error.max()) <= 1e-5


def test_a_class_of_the_same_name_but_another_structure_is_not_taken():
    class MambaMixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.A_log = nn.Parameter(torch.zeros(4, 2))

    with pytest.raises(UnsupportedModelError, match="MambaMixer layers have an A_log"):
        find_mixers(nn.ModuleList([MambaMixer()]))


def make_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_delta_net() -> Qwen3NextForCausalLM:
    """Gated DeltaNet: its layers have an A_log and a convolution, and are no selective SSM."""
    return Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=8, shared_expert_intermediate_size=8,
            layer_types=["linear_attention", "full_attention"],
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("function", [find_mixers, num_layers])
def test_models_without_a_selective_ssm_are_refused(function):
    with pytest.raises(
        UnsupportedModelError, match="none of its layers is a selective SSM"
    ) as gpt2:
        function(make_gpt2())
    with pytest.raises(UnsupportedModelError, match="GatedDeltaNet layers have an A_log") as delta:
        function(make_delta_net())
    for error in (gpt2, delta):
        for family in FAMILIES:
            assert f"{family.model_type} ({family.mixer_class})" in str(error.value)


def test_every_entry_refuses_an_unsupported_model():
    model, ids = make_gpt2(), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel cannot be analysed"):
        record_layers(model, [0], ids)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"), fast_scan(model):
        raise AssertionError("the context must not be entered")


def test_a_layer_without_a_mixer_is_refused_before_the_model_runs():
    model = make_tiny_model()
    with pytest.raises(KeyError, match="7"):
        record_layers(model, [0, 7], make_ids())
    assert_untouched(model)
