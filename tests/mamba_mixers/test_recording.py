"""What a recorded forward pass holds, and that recording leaves no trace."""

from typing import Any

import pytest
import reference
import torch
from conftest import make_tiny_model
from mixer_cases import (
    MODELS,
    REPLAY_BOUND,
    all_layers,
    assert_untouched,
    in_dtype,
    left_padded,
    logits_of,
    make_ids,
)
from torch import nn

from mamba_mixers.recording import record_layers
from mamba_mixers.sites import find_mixers
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
    del tensors["memory"]
    absent = {name for name, x in tensors.items() if x is None}
    # Mamba-1 has no norm of the gated output, and none of what Mamba-3 has; the text begins here.
    assert absent == {
        "norm_scale", "state_before", "own_share", "write", "skip", "angle", "written",
    }  # fmt: skip
    tensors = {name: x for name, x in tensors.items() if name not in absent}
    # D is the parameter itself, a leaf.
    assert all(x.grad_fn is None for x in tensors.values())
    assert [name for name, x in tensors.items() if x.requires_grad] == ["D"]


def test_a_layer_without_a_mixer_is_refused_before_the_model_runs():
    model = make_tiny_model()
    with pytest.raises(KeyError, match="7"):
        record_layers(model, [0, 7], make_ids())
    assert_untouched(model)
