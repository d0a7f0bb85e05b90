"""Every analysis of the suite runs on every family, and says what is true of it."""

import math
from typing import Any

import pytest
import reference
import torch
from conftest import make_tiny_tokenizer
from hand_weighted import half_life_of_each_head, head_that_resets_at, heads_that_write_at
from torch import Tensor

from attention_neurons import layer_parameters
from benchmarks.family_models import (
    CONFIGS,
    FAULTY,
    MODELS,
    SSM_LAYERS,
    make_model,
    ssm_layers,
)
from causal_interventions.interventions import reset_state
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from layer_correlation_analyzer import LayerCorrelationAnalyzer
from mamba_mixers.replay import EDITABLE, LRP, replay_mixer
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import find_mixers, num_layers
from mamba_mixers.weights import (
    bias_parameters,
    input_embeddings,
    logit_directions,
    mixer_parameters,
)
from selective_scan.attention import implicit_attention
from ssm_component_extractor import SSMComponentExtractor, capture, recursive_dynamics, with_streams
from ssm_measures.attention_maps import contribution_map, mean_map
from ssm_measures.full_mixer_maps import full_mixer_head_maps, full_mixer_map
from token_statistics.description import relative_error

# Rounding of float32 over a few layers.
FLOAT32 = 1e-5


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_model(name)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(1, 64, (1, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captured(model, name, ids):
    return capture(model, ids, None, ssm_layers(name))


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_fast_scan_gives_the_stock_logits_and_gradients(model, name, ids):
    ids = ids[:, :8]  # one chunk, which every version of transformers computes rightly

    def run() -> tuple[Tensor, Tensor]:
        x = input_embeddings(model, ids).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False).logits
        return logits.detach(), torch.autograd.grad(logits.log_softmax(-1)[0, -1, 3], x)[0]

    stock_logits, stock_gradient = run()
    # Embeddings that are given mean the same as the tokens.
    assert relative_error(stock_logits, logits_of(model, ids)) <= FLOAT32
    with fast_scan(model):
        logits, gradient = run()
    assert relative_error(logits, stock_logits) <= FLOAT32
    assert relative_error(gradient, stock_gradient) <= 1e-4  # the suite's bound on gradients


def test_components_have_the_shapes_of_their_form(captured):
    for parts in captured.components.values():
        batch, length, heads = parts.delta.shape
        d_inner, states = parts.u.shape[2], parts.B.shape[-1]
        assert d_inner == 64
        assert heads == (64 if parts.head_width == 1 else 8)
        assert parts.A.shape == (heads, states if parts.head_width == 1 else 1)
        assert parts.D.shape == (heads,)
        assert parts.hidden_states.shape == (batch, length, d_inner, states)
        for field in ("gate", "y", "gated", "conv_input", "gating"):
            assert getattr(parts, field).shape == (batch, length, d_inner)
        assert relative_error(parts.gated, parts.y * parts.gating) <= FLOAT32
        dynamics = recursive_dynamics(parts)
        assert dynamics.is_stable
        assert dynamics.spectral_radius.shape == parts.delta.shape


def test_what_the_mixer_writes_is_what_its_neurons_write(model, name, captured):
    for layer, parts in captured.components.items():
        if name in FAULTY:
            assert parts.replay_error > 1e-3  # and this is how it is known
            continue
        weights = mixer_parameters(find_mixers(model)[layer])
        written = reference.linear(parts.gated, weights.out_weight, weights.out_bias)
        assert relative_error(parts.written, written) <= FLOAT32


def test_the_full_mixer_map_applied_to_the_convolutions_input_gives_the_neurons(model, captured):
    layers = list(captured.components)[:1]
    for layer, weights in layer_parameters(model, layers).items():
        parts = captured.components[layer]
        query = torch.randn(parts.u.shape, generator=torch.Generator().manual_seed(1))
        found = full_mixer_map(parts, weights, query_weight=query, key_weight=parts.conv_input)
        expected = (query * parts.gated).sum(-1)
        assert relative_error(found.tokens.sum(-1) + found.bias, expected) <= FLOAT32
        # Each channel by the twin: the convolution as a matrix, the loop's attention, the gating.
        chosen = [0, 7, 40]
        maps = full_mixer_head_maps(parts, weights, chosen)
        applied = torch.einsum("bhts,bsh->bth", maps.tokens, parts.conv_input[..., chosen])
        gated = applied + maps.bias.mT
        assert relative_error(gated, parts.gated[..., chosen]) <= FLOAT32


def test_attention_is_of_heads_and_contributions_of_channels(captured):
    for parts in captured.components.values():
        alpha = implicit_attention(parts.delta, parts.A, parts.B, parts.C)
        assert relative_error(mean_map(parts), alpha.mean(1)) <= FLOAT32
        gradient = torch.randn(parts.y.shape, generator=torch.Generator().manual_seed(2))
        rows = contribution_map(parts, gradient).sum(-1)
        skip = parts.D.repeat_interleave(parts.head_width) * parts.u
        assert relative_error(rows, (gradient * (parts.y - skip)).sum(-1)) <= FLOAT32


@pytest.mark.parametrize("stage", [stage for stage in EDITABLE[2:] if stage != "carry"])
def test_an_edit_of_any_stage_reaches_what_follows_it(model, captured, stage):
    site = next(iter(find_mixers(model).values()))
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))

    def double(name: str, value: Tensor) -> Tensor:
        return 2 * value if name == stage else value

    with torch.no_grad():
        plain, edited = replay_mixer(site, x), replay_mixer(site, x, edit=double)
    values = {name: getattr(plain, name) for name in ("u", "A", "B", "C", "delta")}
    values |= {stage: 2 * values[stage]} if stage in values else {}
    if stage == "u":
        # In Mamba-1 delta, B and C are read off u: take those that the edited replay read.
        values |= {name: getattr(edited, name) for name in ("delta", "B", "C")}
    heads = plain.delta.shape[2]
    values["u"] = values["u"].unflatten(2, (heads, -1))
    values |= {n: values[n].unsqueeze(2) for n in ("B", "C") if values[n].dim() == 3}
    y = reference.scan(**values, D=plain.D)[0].flatten(2) * (2 if stage == "y" else 1)
    assert relative_error(edited.y, y) <= FLOAT32
    if stage == "gated":
        assert torch.equal(edited.gated, 2 * plain.gated)
    if edited.norm_scale is None:
        gate = plain.gate.double() * (2 if stage == "gate" else 1)
        gated = y * reference.silu(gate) * (2 if stage == "gated" else 1)
        assert relative_error(edited.gated, gated) <= FLOAT32
    with torch.no_grad():
        output = site.mixer.out_proj(edited.gated) * (2 if stage == "output" else 1)
    assert relative_error(edited.output, output) <= FLOAT32


def test_edits_around_the_convolution_reach_u_b_and_c(model):
    site = next(iter(find_mixers(model).values()))
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
    seen: dict[str, Tensor] = {}

    def shift(wanted: str, by: Tensor | float) -> Any:
        def edit(name: str, value: Tensor) -> Tensor:
            seen.setdefault(name, value)
            return value + by if name == wanted else value

        return edit

    with torch.no_grad():
        replay_mixer(site, x, edit=shift("", 0.0))
        weight = site.mixer.conv1d.weight[:, 0].double()
        change = torch.randn(seen["conv_input"].shape, generator=torch.Generator().manual_seed(4))
        by_input = replay_mixer(site, x, edit=shift("conv_input", change))
        none = torch.zeros(len(weight), dtype=torch.float64)
        moved = reference.causal_convolution(change.double(), weight, none)
        by_output = replay_mixer(site, x, edit=shift("convolved", moved.float()))
    for name in ("u", "B", "C", "y"):
        assert relative_error(getattr(by_input, name), getattr(by_output, name)) <= FLOAT32
    u = reference.silu(seen["convolved"].double() + moved)[..., : by_input.u.shape[2]]
    assert relative_error(by_input.u, u) <= FLOAT32


def test_a_forward_from_a_block_gives_the_whole_models_logits(model, captured, ids):
    whole = logits_of(model, ids)
    for layer, stream in captured.block_inputs.items():
        with torch.no_grad():
            assert relative_error(forward_from(model, layer, stream, ids), whole) <= FLOAT32


def test_one_text_branches_into_rows(model, captured, ids):
    layer = captured.layers[0]
    with torch.no_grad():
        with fast_scan(model, edits=reset_state([2, 5], layer)):
            rows = model(input_ids=ids, use_cache=False).logits
        for row, token in enumerate((2, 5)):
            with fast_scan(model, edits=reset_state(token, layer)):
                alone = model(input_ids=ids, use_cache=False).logits
            assert relative_error(rows[row], alone[0]) <= FLOAT32
    assert relative_error(rows[0], rows[1]) > 1e-4  # far above rounding: the edits differ


def test_a_mixer_reads_a_text_in_chunks(model, ids):
    site = list(find_mixers(model).values())[-1]
    x = torch.randn(1, 13, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = replay_mixer(site, x)
        memory, outputs = None, []
        for chunk in x.split([1, 5, 2, 5], dim=1):
            replay = replay_mixer(site, chunk, memory=memory)
            memory = replay.memory
            outputs.append(replay.output)
    assert relative_error(torch.cat(outputs, 1), whole.output) <= FLOAT32
    assert memory is not None
    assert relative_error(memory.state, whole.memory.state) <= FLOAT32


def test_relevance_rules_change_no_values(model, name, ids):
    with torch.no_grad(), fast_scan(model):
        plain = logits_of(model, ids)
        with fast_scan(model, rules=LRP):
            assert relative_error(logits_of(model, ids), plain) <= FLOAT32


@pytest.mark.parametrize("name", ["falcon_mamba", "mamba2"])
def test_relevance_is_conserved_where_all_layers_are_mixers(name):
    model, ids = make_model(name).double(), torch.arange(1, 13)[None]
    x = input_embeddings(model, ids).detach().requires_grad_()
    biases = [bias for key, bias in bias_parameters(model).items() if "dt_" not in key]
    with fast_scan(model, rules=LRP):
        f = model(inputs_embeds=x, use_cache=False).logits[0, -1, 3]
        inputs = [x, *biases]
        gradients = torch.autograd.grad(f, inputs)
    relevance = sum(
        float((value * gradient).sum().detach())
        for value, gradient in zip(inputs, gradients, strict=True)
    )
    # Linear in embeddings and biases: sum of input times gradient is f; A and D are float32.
    assert relevance == pytest.approx(float(f.detach()), rel=1e-5)


def test_logit_directions_give_the_logits(model, name, ids):
    last = model.config.num_hidden_layers - 1
    streams: list[Any] = []
    block = list(find_mixers(model).values())[-1].block
    if last not in find_mixers(model):
        return  # the stream behind the last layer is not recorded there
    handle = block.register_forward_hook(
        lambda module, args, output: streams.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    logits = logits_of(model, ids)
    handle.remove()
    x = streams[0].double()
    expected = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)) @ (
        logit_directions(model).double().mT
    )
    # The norms' epsilons are 1e-5 or 1e-6, of a stream of order one.
    assert relative_error(logits, expected) <= 1e-4


def test_all_eight_steps_run(model, name):
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, tokenizer=make_tiny_tokenizer())
    texts = ["the net held, and the net", "one two three, one two"]
    results = analyzer.analyze_recursive_ssm_attention_effects(texts, ssm_layers(name)[:2])
    check = results["self_check"]
    assert check["without_result"] == {}
    assert set(results["individual_texts"]["text_0"]["analysis"]) == {
        "ssm_components", "attention_data", "neurons", "layer_activations", "layer_correlations",
        "recursive_patterns", "ssm_attention_correlations", "neuron_evolution",
    }  # fmt: skip
    if name in FAULTY:
        assert not check["replay_agrees"]
        assert check["replay_mismatch"]["family"] == "zamba2"
        assert "transformers 4.57" in check["replay_mismatch"]["message"]
    else:
        assert check["replay_agrees"]
        assert check["replay_mismatch"] is None


@pytest.mark.parametrize("name", sorted(set(SSM_LAYERS) & set(MODELS)))
def test_layers_count_the_models_layers_and_those_without_an_ssm_are_refused(name):
    model = make_model(name)
    extractor = SSMComponentExtractor(model, tokenizer=make_tiny_tokenizer())
    for everything in (None, "all"):
        assert sorted(extractor.extract_ssm_components(everything, "the net")) == ssm_layers(name)
    without = sorted(set(range(model.config.num_hidden_layers)) - set(ssm_layers(name)))
    for layer in without:
        with pytest.raises(ValueError, match=rf"layer {layer} .*{ssm_layers(name)[0]}, "):
            extractor.extract_ssm_components([layer], "the net")


@pytest.mark.parametrize("name", sorted({"jamba", "nemotron_h"} & set(MODELS)))
def test_residual_streams_of_layers_without_an_ssm(name):
    model, text = make_model(name), "the net held, and the net"
    analyzer = LayerCorrelationAnalyzer(model, tokenizer=make_tiny_tokenizer())
    without = [layer for layer in range(num_layers(model)) if layer not in ssm_layers(name)]
    found = analyzer.extract_layer_activations([0, *without], text)
    assert sorted(found) == [0, *without]
    # A layer's stream is what the next one starts from.
    after = analyzer.extract_layer_activations([0], text)[0]
    assert torch.equal(found[0], after)
    captured = with_streams(model, analyzer.capture_, range(num_layers(model)))
    for layer in range(1, num_layers(model)):
        assert torch.equal(captured.block_inputs[layer], captured.block_outputs[layer - 1])
    assert torch.equal(captured.block_outputs[without[0]], found[without[0]])
    analyzer.extract_layer_activations([0, without[0]], text)
    correlations = analyzer.compute_cross_layer_correlations()
    assert list(correlations) == [f"layer_0_to_{without[0]}"]
    with pytest.raises(ValueError, match=rf"layer {without[0]} "):
        analyzer.extract_layer_activations([without[0]], text, stream="mixer")


def test_a_model_in_training_mode_is_put_right():
    model = make_model("mamba2").train()
    extractor = SSMComponentExtractor(model, tokenizer=make_tiny_tokenizer())
    parts = extractor.extract_ssm_components([0], "the net held")[0]
    assert not model.training
    assert parts.replay_error <= FLOAT32


@pytest.mark.parametrize("half_lives", [(1.0, 3.0, 20.0), (7.0, 0.5, 400.0)])
def test_a_set_half_life_of_each_head_is_found_to_a_thousandth(half_lives):
    model = half_life_of_each_head(half_lives)
    parts = capture(model, torch.arange(40)[None] % 6, None, [0]).components[0]
    assert parts.replay_error <= FLOAT32
    found = recursive_dynamics(parts).half_life[:, 0].tolist()
    assert found == pytest.approx(half_lives, rel=1e-3)
    # And so the states: what a token wrote halves in that time, in both channels of the head.
    alpha = implicit_attention(parts.delta, parts.A, parts.B, parts.C)[0]
    for head, half_life in enumerate(half_lives):
        lag = 8
        share = float(alpha[head, 20, 20 - lag] / alpha[head, 20, 20])
        assert share == pytest.approx(0.5 ** (lag / half_life), rel=1e-3)


def test_heads_that_write_at_marked_tokens_attend_to_them_and_to_nothing_else():
    marked, text = [2, 5], torch.tensor([[0, 2, 1, 3, 5, 4, 2, 0, 1]])
    parts = capture(heads_that_write_at(marked), text, None, [0]).components[0]
    alpha = implicit_attention(parts.delta, parts.A, parts.B, parts.C)[0]
    for t in range(9):
        for s in range(t + 1):
            expected = math.exp(-0.1 * (t - s)) if int(text[0, s]) in marked else 0.0
            assert alpha[:, t, s].tolist() == pytest.approx([expected] * 3, abs=1e-5)


def test_one_head_resets_its_memory_and_the_other_keeps_it():
    text = torch.tensor([[0, 1, 2, 3, 1, 0]])
    parts = capture(head_that_resets_at(3), text, None, [0]).components[0]
    alpha = implicit_attention(parts.delta, parts.A, parts.B, parts.C)[0]
    assert not bool(alpha[1, 3:, :3].any())
    for t, s in ((5, 0), (4, 2), (5, 1)):
        assert float(alpha[0, t, s]) == pytest.approx(0.01 * math.exp(-0.01 * (t - s)), rel=1e-4)
    assert float(alpha[1, 5, 4]) == pytest.approx(0.01 * math.exp(-0.01), rel=1e-4)


def test_every_configuration_is_tested_where_it_exists():
    assert set(MODELS) <= set(CONFIGS)
    # Ten families of transformers, and Mamba-3.
    assert len({name.split()[0] for name in CONFIGS}) == 11
