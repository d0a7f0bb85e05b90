"""What layers wrote: it sums to the stream and the logits; each part is what its module gave."""

from typing import Any

import pytest
import torch
from conftest import make_tiny_neox
from torch import Tensor
from transformers import MambaModel

from benchmarks.family_models import ALL_MODELS, FAULTY, FAULTY_BEYOND, make_model
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.sites import UnsupportedModelError, blocks_of
from mamba_mixers.stream_writes import StreamWrites, record_writes
from mamba_mixers.weights import readout_of

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12]])

MLPS = ("feed_forward", "shared_mlp", "block_sparse_moe", "mlp", "moe")


def ids_for(name: str) -> Tensor:
    return IDS[:, :FAULTY_BEYOND] if name in FAULTY else IDS


@pytest.fixture(scope="module", params=ALL_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_model(name)


@pytest.fixture(scope="module")
def writes(name: str, model: Any) -> StreamWrites:
    return record_writes(model, ids_for(name))


def test_writes_sum_to_the_stream_and_the_stream_gives_the_logits(name, model, writes):
    stream = writes.layers[0].before
    for layer in writes.layers:
        attention = None if layer.attention is None else layer.attention.written
        for written in (layer.mixer, attention, layer.rest):
            stream = stream if written is None else stream + written
    readout = readout_of(model)
    logits = (stream * writes.norm_factor) @ readout.weight.mT * readout.scale
    largest = float(writes.logits.abs().max())
    # Float32 rounding of sums over 32 channels, by layer.
    torch.testing.assert_close(logits, writes.logits, rtol=0, atol=2e-6 * largest)
    with torch.no_grad():
        stock = model(input_ids=ids_for(name), use_cache=False).logits[0, -1]
    # The suite's scan against the model's own code, in float32 both.
    torch.testing.assert_close(writes.logits, stock, rtol=0, atol=2e-5 * largest)


def test_the_rest_is_what_the_blocks_other_modules_gave(name, model, writes):
    """Seen by hooks of its own on the MLPs and experts, times Granite's multiplier."""
    seen: dict[int, Tensor] = {}

    def on(layer: int):
        def hook(module, args, kwargs, output):
            given = output[0] if isinstance(output, tuple) else output
            given = given.reshape(1, -1, given.shape[-1])[0, -1]
            scale = 0.8 if name == "granitemoehybrid" else 1.0
            seen[layer] = seen.get(layer, 0.0) + given * scale

        return hook

    hooks = [
        (child, on(layer))
        for layer, block in enumerate(blocks_of(model))
        for key, child in block.named_children()
        if key in MLPS or type(child).__name__ == "NemotronHMLP"
    ]
    with forward_hooks(hooks), torch.no_grad():
        model(input_ids=ids_for(name), use_cache=False)
    assert set(seen) == {i for i, layer in enumerate(writes.layers) if layer.rest is not None}
    for layer, written in seen.items():
        rest = writes.layers[layer].rest
        assert rest is not None
        # A difference of streams in float32 keeps the rounding of the stream.
        torch.testing.assert_close(rest, written, rtol=1e-4, atol=1e-4)


def test_attention_is_led_back_to_its_sources(writes):
    for layer in writes.layers:
        if layer.attention is None:
            continue
        found = layer.attention
        for direction in torch.eye(len(found.written)):
            bias = 0.0 if found.out_bias is None else float(found.out_bias @ direction)
            by_source = found.from_sources(direction)
            assert by_source.shape == found.values.shape[:1]
            expected = float(found.written @ direction)
            # Float32 rounding of a product over heads and their width.
            assert float(by_source.sum()) + bias == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_only_what_writes_to_the_stream_counts(name, writes):
    kinds = [
        "".join(letter for letter, part in zip("mar", (w.mixer, w.attention, w.rest), strict=True)
                if part is not None)
        for w in writes.layers
    ]  # fmt: skip
    assert (
        kinds
        == {
            "mamba": ["m", "m"],
            "falcon_mamba": ["m", "m"],
            "jamba": ["mr", "ar", "mr"],
            "zamba": ["m"] * 4,  # the shared attention is read by mixers alone
            "mamba2": ["m", "m"],
            "mamba3": ["m", "m"],
            "mamba3 of ranks": ["m", "m"],
            "bamba": ["mr", "ar", "mr"],
            "granitemoehybrid": ["mr", "ar", "mr"],
            "zamba2": ["m"] * 4,
            "falcon_h1": ["mar", "mar"],
            "falcon_h1 normed": ["mar", "mar"],
            "falcon_h1 normed first": ["mar", "mar"],
            "nemotron_h": ["m", "r", "a", "m"],
        }[name]
    )


def test_models_without_logits_or_mixers_are_refused(tiny_model):
    with pytest.raises(UnsupportedModelError, match="has no logits"):
        record_writes(MambaModel(tiny_model.config).eval(), IDS)
    with pytest.raises(UnsupportedModelError):
        record_writes(make_tiny_neox(), IDS)


def test_hooks_are_gone_after_an_error(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.lm_head, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_writes(tiny_model, IDS)
    assert not any(module._forward_hooks for module in tiny_model.modules())
