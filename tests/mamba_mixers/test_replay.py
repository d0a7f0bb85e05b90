"""A replay takes edits and a memory exactly, stage by stage."""

from typing import Any

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from mixer_cases import (
    MODELS,
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

from mamba_mixers.recording import record_layers
from mamba_mixers.replay import EDITABLE, MixerMemory, replay_mixer
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.weights import mixer_parameters
from token_statistics.description import relative_error


def test_a_mask_of_another_shape_is_no_padding_mask():
    model, ids = make_tiny_model(), make_ids()
    site = find_mixers(model)[0]
    x = model.get_input_embeddings()(ids).detach()
    plain = replay_mixer(site, x).output
    assert torch.equal(replay_mixer(site, x, torch.zeros(2, 1)).output, plain)
    assert not torch.equal(replay_mixer(site, x, torch.zeros(2, 37)).output, plain)


AFTER_CONVOLUTION = [stage for stage in EDITABLE[2:] if stage != "carry"]


@pytest.mark.parametrize("stage", AFTER_CONVOLUTION)
def test_an_edit_of_any_stage_reaches_what_follows_it_exactly(stage):
    model, ids = make_odd_model(), make_ids()
    site = find_mixers(model)[0]
    x = model.get_input_embeddings()(ids).detach()
    plain, edited = replay_mixer(site, x), replay_mixer(site, x, edit=doubled(stage))
    values = {name: getattr(plain, name) for name in AFTER_CONVOLUTION}
    values[stage] = 2 * values[stage]
    if stage == "u":
        # delta, B and C are read off u: take those that the edited replay read.
        values |= {name: getattr(edited, name) for name in ("delta", "B", "C")}
        assert relative_error(edited.B, 2 * plain.B) <= 1e-5
    heads = reference.heads_form(**{k: values[k] for k in ("u", "delta", "A", "B", "C")})
    y = reference.scan(**heads, D=plain.D)[0].squeeze(-1)
    y = 2 * y if stage == "y" else y
    gated = y * reference.silu(values["gate"].double()) * (2 if stage == "gated" else 1)
    weights = mixer_parameters(site)
    assert weights.out_bias is not None
    output = reference.linear(gated, weights.out_weight.double(), weights.out_bias.double())
    output = output * (2 if stage == "output" else 1)
    assert relative_error(edited.y, y) <= 1e-5
    assert relative_error(edited.gated, gated) <= 1e-5
    assert relative_error(edited.output, output) <= 1e-5


def test_edits_around_the_convolution_reach_what_it_makes():
    model, ids = make_odd_model(), make_ids()
    site = find_mixers(model)[0]
    x = model.get_input_embeddings()(ids).detach()
    plain = replay_mixer(site, x)
    conv = mixer_parameters(site)
    assert conv.conv_bias is not None
    assert conv.conv_weight is not None
    without_bias = reference.causal_convolution(
        plain.conv_input.double(), conv.conv_weight.double(), torch.zeros_like(conv.conv_bias)
    )
    twice = replay_mixer(site, x, edit=doubled("conv_input"))
    assert torch.equal(twice.conv_input, 2 * plain.conv_input)
    assert relative_error(twice.u, reference.silu(2 * without_bias + conv.conv_bias)) <= 1e-5
    after = replay_mixer(site, x, edit=doubled("convolved"))
    assert relative_error(after.u, reference.silu(2 * (without_bias + conv.conv_bias))) <= 1e-5


def test_carrying_nothing_over_is_a_reset_of_the_memory():
    model, ids = make_odd_model(), make_ids()
    site = find_mixers(model)[0]
    x = model.get_input_embeddings()(ids).detach()

    def reset(stage: str, value: Tensor) -> Tensor:
        if stage != "carry":
            return value
        assert torch.equal(value, torch.ones(ids.shape))
        return torch.cat([value[:, :5], 0 * value[:, 5:6], value[:, 6:]], 1)

    plain, edited = replay_mixer(site, x), replay_mixer(site, x, edit=reset)
    parts = {k: getattr(plain, k) for k in ("u", "delta", "B", "C")}
    for span in (slice(0, 5), slice(5, None)):
        heads = reference.heads_form(A=plain.A, **{k: v[:, span] for k, v in parts.items()})
        y = reference.scan(**heads, D=plain.D)[0].squeeze(-1)
        assert relative_error(edited.y[:, span], y) <= 1e-5  # float32


def in_chunks(model: Any, ids: Tensor, sizes: list[int]) -> tuple[Tensor, dict[int, MixerMemory]]:
    """Logits of the texts read in chunks of these sizes, and the memories after the last."""
    memories: dict[int, MixerMemory] = {}
    with fast_scan(model, memories=memories):
        parts = [logits_of(model, chunk) for chunk in ids.split(sizes, 1)]
    return torch.cat(parts, 1), memories


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ["tiny", "odd", "odd without biases"])
@pytest.mark.parametrize("sizes", [[37], [1] * 37, [2, 1, 17, 16, 1], [3, 34], [34, 3]])
def test_chunks_give_what_the_whole_text_gives(name, dtype, bound, sizes):
    model = in_dtype(MODELS[name](), dtype)
    ids = make_ids()
    logits, memories = in_chunks(model, ids, sizes)
    # The stock forward of transformers reads the whole text.
    assert relative_error(logits, logits_of(model, ids)) <= bound
    for layer, record in record_layers(model, all_layers(model), ids).items():
        replay = record.replay
        parts = {k: getattr(replay, k) for k in ("delta", "A", "B", "C")}
        # The mixers take u in float32 into the state, whatever the model's dtype.
        _, h = reference.scan(**reference.heads_form(u=replay.u.float(), **parts))
        assert relative_error(memories[layer].state, h[:, -1].squeeze(-2)) <= bound
        reach = find_mixers(model)[layer].mixer.conv1d.weight.shape[-1] - 1
        assert relative_error(memories[layer].conv_input, replay.conv_input[:, -reach:]) <= bound


def test_the_memory_of_a_text_shorter_than_the_convolution_begins_with_zeros():
    model = make_tiny_model()
    site, x = find_mixers(model)[0], torch.randn(2, 2, 32, generator=torch.Generator())
    replay = replay_mixer(site, x)
    assert replay.memory.conv_input.shape == (2, 3, 64)
    assert not bool(replay.memory.conv_input[:, 0].any())
    assert torch.equal(replay.memory.conv_input[:, 1:], replay.conv_input)


def test_padding_before_a_text_leaves_its_memory_as_it_is():
    model, ids = make_tiny_model(), make_ids()
    padded, mask = left_padded(ids, 9)
    memories: dict[int, MixerMemory] = {}
    with fast_scan(model, memories=memories):
        logits_of(model, padded, mask)
    alone = in_chunks(model, ids[1:, :28], [28])[1]
    for layer, memory in memories.items():
        for name in ("conv_input", "state"):  # a Mamba-1 remembers no more
            value, expected = getattr(memory, name), getattr(alone[layer], name)
            assert relative_error(value[1:], expected) <= 1e-5  # float32
        assert memory[2:] == (None, None)


def test_memories_are_small_and_keep_no_graph_and_no_chunk_alive():
    model = make_tiny_model()
    memories: dict[int, MixerMemory] = {}
    with fast_scan(model, memories=memories):
        model(make_ids(), use_cache=False)
    for tensor in (x for memory in memories.values() for x in memory[:2]):
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_a_memory_that_does_not_belong_to_the_texts_is_refused():
    model = make_tiny_model()
    memories = in_chunks(model, make_ids(batch=2), [37])[1]
    with (
        fast_scan(model, memories=memories),
        pytest.raises(ValueError, match="memory is that of 2 texts, the chunk has 1"),
    ):
        logits_of(model, make_ids(batch=1))
    assert_untouched(model)


def test_a_model_that_remembers_outside_its_mixers_is_not_read_in_chunks():
    model = make_tiny_model()
    model.backbone.layers[1].self_attn = nn.MultiheadAttention(32, 2)
    with (
        pytest.raises(UnsupportedModelError, match="MultiheadAttention remembers outside"),
        fast_scan(model, memories={}),
    ):
        raise AssertionError("the context must not be entered")
    with fast_scan(model):
        assert logits_of(model, make_ids()).shape == (2, 37, VOCAB_SIZE)
