"""Mamba-3 is its equations, by whole texts and by memory, saved and loaded, native and not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mamba3_cases import KINDS, SIZES, make_mamba3, twin_of, write_official
from mamba3_parallel import FinalStates, parallel_mamba3
from safetensors.torch import load_file, save_file
from torch import Tensor

from mamba_mixers import Mamba3Config, Mamba3ForCausalLM
from mamba_mixers.mamba3 import Mamba3Cache
from suite_plumbing.models import load_model
from suite_plumbing.provenance import provenance
from token_statistics.description import relative_error


def make_ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(3))


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@torch.no_grad()
def test_a_mixer_is_the_loop_written_from_the_equations(kind):
    model, ids = make_mamba3(kind), make_ids(70)  # more than one chunk of any kind
    seen: list[Tensor] = []
    mixer = model.backbone.layers[1].mixer
    handle = mixer.register_forward_hook(
        lambda module, args, output: seen.extend([args[0], output])
    )
    model(ids)
    handle.remove()
    x, output = seen
    # The rounding of float32 over 70 tokens; float64 is met to float64 precision.
    assert relative_error(output, twin_of(mixer, x)["output"]) <= 1e-5
    wide = mixer.double()
    assert relative_error(wide(x.double()), twin_of(wide, x)["output"]) <= 1e-10


@each_kind
@torch.no_grad()
def test_a_mixer_is_the_authors_parallel_reference_in_chunks_too(kind):
    """With 8 states, of which quarters are whole numbers; memory between chunks is theirs."""
    model = make_mamba3(kind, state_size=8).double()
    mixer, cache, config = model.backbone.layers[1].mixer, Mamba3Cache(), model.config
    x = torch.randn(2, 33, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given: dict[str, Any] = {
        "groups": config.n_groups, "rope_fraction": config.rope_fraction,
        "a_activation": config.a_activation, "A_floor": config.A_floor,
    }  # fmt: skip
    states: FinalStates | None = None
    for part in x.split([20, 13], dim=1):
        expected, states = parallel_mamba3(mixer.state_dict(), part, **given, initial=states)
        assert relative_error(mixer(part, cache), expected) <= 1e-12
        memory = cache.memories[1]
        assert relative_error(memory.state, states.ssm) <= 1e-12
        assert relative_error(torch.cos(memory.angle), torch.cos(states.angle)) <= 1e-12
        written = torch.einsum("brhp,brhn->bhpn", states.V, states.K)
        assert relative_error(memory.written, written) <= 1e-12


@each_kind
@torch.no_grad()
def test_chunks_of_a_text_are_the_text(kind):
    model, ids = make_mamba3(kind).double(), make_ids(41)
    whole, cache = model(ids).logits, Mamba3Cache()
    parts = [model(part, cache=cache).logits for part in ids.split([1, 7, 1, 32], dim=1)]
    assert relative_error(torch.cat(parts, 1), whole) <= 1e-12
    other = model(ids, use_cache=True).cache
    assert other is not None
    for layer, memory in cache.memories.items():
        for mine, beside in zip(memory, other.memories[layer], strict=True):
            assert relative_error(torch.cos(mine), torch.cos(beside)) <= 1e-10


@each_kind
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(kind):
    model, ids = make_mamba3(kind).double(), make_ids(9, rows=1)
    alone, padding = model(ids).logits, torch.zeros(1, 4, dtype=torch.long)
    for padded, kept in (
        (torch.cat([padding, ids], 1), slice(4, None)),
        (torch.cat([ids, padding], 1), slice(None, 9)),
    ):
        mask = torch.zeros_like(padded)
        mask[:, kept] = 1
        found = model(padded, attention_mask=mask).logits[:, kept]
        assert relative_error(found, alone) <= 1e-12


@torch.no_grad()
def test_generation_by_memory_is_generation_by_reading_again():
    model, ids = make_mamba3("mimo").double(), make_ids(6)
    found, expected = model.generate(ids, 12), ids
    for _ in range(12):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, expected)
    end = int(found[0, 8])
    ended = model.generate(ids, 12, eos_token_id=end)
    assert bool((ended[0, 9:] == end).all())
    torch.manual_seed(0)
    drawn = model.generate(ids, 5, do_sample=True, temperature=2.0)
    assert drawn.shape == (2, 11)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    assert torch.equal(model.generate(padded, 12, attention_mask=mask)[:, 3:], found)


def test_the_loss_is_that_of_the_labels_and_has_gradients():
    model, ids = make_mamba3("mimo normed, with MLPs"), make_ids(12)
    output = model(ids, labels=ids, output_hidden_states=True)
    log_p = output.logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
    loss = -log_p.mean().detach()
    assert torch.allclose(output.loss.detach(), loss, rtol=1e-6, atol=0)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    assert len(output.hidden_states) == 3


def test_logits_of_the_last_tokens_alone():
    model, ids = make_mamba3(), make_ids(12)
    whole = model(ids).logits
    assert relative_error(model(ids, logits_to_keep=3).logits, whole[:, -3:]) <= 1e-6
    places = torch.tensor([2, 5])
    assert relative_error(model(ids, logits_to_keep=places).logits, whole[:, places]) <= 1e-6


@each_kind
def test_a_saved_model_is_loaded_as_it_is(kind, tmp_path: Path):
    model, ids = make_mamba3(kind), make_ids(8)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Mamba3ForCausalLM)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.a_activation == model.config.a_activation
    tied = loaded.lm_head.weight is loaded.backbone.embedding.weight
    assert tied == model.config.tie_word_embeddings


@each_kind
def test_an_official_checkpoint_is_read_with_its_activation_named(kind, tmp_path: Path):
    model, ids = make_mamba3(kind), make_ids(8)
    folder = write_official(model, tmp_path)
    loaded = load_model(folder, a_activation=model.config.a_activation)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert provenance(loaded)["model"]["native_checkpoint"]["layers"] == "Mamba3"
    with pytest.raises(ValueError, match='give a_activation .*"softplus".*"heavy_tail"'):
        load_model(folder)


def test_weights_beside_those_of_the_configuration_are_refused(tmp_path: Path):
    make_mamba3(n_groups=1).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.layers.0.mixer.mimo_x"] = torch.ones(8, 1, 3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="hold 1 tensors that the model does not have .*mimo_x"):
        load_model(tmp_path)


def test_half_precision_computes_in_float32_inside():
    model, ids = make_mamba3().to(torch.bfloat16), make_ids(8)
    logits = model(ids).logits
    assert logits.dtype is torch.bfloat16
    assert relative_error(logits, make_mamba3()(ids).logits) <= 0.05  # bfloat16 keeps 8 bits


def test_step_sizes_begin_between_the_bounds_of_the_configuration():
    config = Mamba3Config(**SIZES)
    made: Any = Mamba3ForCausalLM(config).backbone.layers[0]
    steps = torch.nn.functional.softplus(made.mixer.dt_bias.detach())
    assert float(steps.min()) >= config.time_step_min * (1 - 1e-4)
    assert float(steps.max()) <= config.time_step_max * (1 + 1e-4)
    assert math.isclose(config.num_rope_angles, 2)
