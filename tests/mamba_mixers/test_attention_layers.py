"""Softmax attention of models that nothing is known of by name: traces, refusals, restoration."""

import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model, make_tiny_neox
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from mamba_mixers import attention_layers
from mamba_mixers.attention_layers import (
    attending_layers,
    model_layers_by_name,
    token_limit,
    traced_layers,
)

IDS = torch.randint(0, VOCAB_SIZE, (1, 9), generator=torch.Generator().manual_seed(0))


def make_gpt2(**options) -> GPT2LMHeadModel:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    config = GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0, **sizes, **options)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [make_tiny_neox, make_gpt2])
def test_traces_are_what_the_model_itself_returns(make):
    model = make()
    with torch.no_grad(), traced_layers(model) as traces:
        model(input_ids=IDS, use_cache=False)
        real = model(input_ids=IDS, output_attentions=True, output_hidden_states=True)
    assert sorted(traces) == list(range(len(real.attentions)))
    for layer, weights in enumerate(real.attentions):
        softmax = traces[layer].softmax
        assert softmax is not None
        # The same numbers, averaged by the same call.
        assert torch.equal(softmax, weights.mean(1))
        # Float32 rounding of a sum of at most 9 shares.
        torch.testing.assert_close(softmax.sum(-1), torch.ones(1, 9), rtol=0, atol=1e-6)
    # The last of the hidden states is behind the final norm; the others are before each layer.
    for layer in range(len(real.attentions) - 1):
        assert torch.equal(traces[layer].output, real.hidden_states[layer + 1])


def test_a_mamba_has_streams_and_no_softmax():
    model = make_tiny_model()
    with torch.no_grad(), traced_layers(model) as traces:
        model(input_ids=IDS, use_cache=False)
    assert sorted(traces) == [0, 1, 2, 3]
    assert all(trace.softmax is None for trace in traces.values())
    assert attending_layers(model) == []


def test_layers_are_the_longest_list():
    assert model_layers_by_name(make_tiny_neox()) == {f"gpt_neox.layers.{i}": i for i in range(3)}
    two = nn.Module()
    two.encoder, two.decoder = (nn.ModuleList([nn.Linear(2, 2)]) for _ in range(2))
    with pytest.raises(ValueError, match="lists encoder, decoder of the same length of layers"):
        model_layers_by_name(two)
    with pytest.raises(ValueError, match="Linear has no list of layers"):
        model_layers_by_name(nn.Linear(2, 2))


def test_attending_layers():
    assert attending_layers(make_tiny_neox()) == [0, 1, 2]
    rwkv = RwkvConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2,
                      bos_token_id=0, eos_token_id=0)  # fmt: skip
    assert attending_layers(RwkvForCausalLM(rwkv).eval()) == []


def test_an_encoder_is_refused():
    config = BertConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=64)  # fmt: skip
    with pytest.raises(ValueError, match=r"BertLMHeadModel attends to later tokens \(layer 0\)"):
        attending_layers(BertLMHeadModel(config).eval())


def test_setting_and_hooks_are_restored_after_an_exception():
    model = make_tiny_neox()
    before = model.config._attn_implementation
    assert before != "eager"

    def interrupted():
        with traced_layers(model):
            assert model.config._attn_implementation == "eager"
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_cannot_run_eagerly_is_refused(monkeypatch):
    def refuse(self, name):
        raise ValueError("flash only")

    model = make_tiny_neox()
    monkeypatch.setattr(type(model), "set_attn_implementation", refuse)
    with pytest.raises(ValueError, match="GPTNeoXForCausalLM cannot run with .*flash only"):
        attending_layers(model)


def test_token_limit_is_the_context_or_a_refusal(monkeypatch):
    model = make_tiny_neox()
    assert token_limit(model, 100) == 100
    assert token_limit(model, 1000) == 256
    assert token_limit(make_tiny_model(), 1000) == 1000
    monkeypatch.setattr(attention_layers, "MAX_WEIGHTS_GB", 4 * 4 * 50**2 / 1e9)
    assert token_limit(model, 50) == 50
    with pytest.raises(ValueError, match="Pass --max-sequence-length 50 or less"):
        token_limit(model, 200)
    with pytest.raises(ValueError, match="max_sequence_length is 1"):
        token_limit(model, 1)
