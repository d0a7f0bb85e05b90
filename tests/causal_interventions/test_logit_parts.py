"""Parts of a logit: they sum to it in every family, and are those of loops and planted models."""

from typing import Any

import pytest
import reference
import torch
from family_twins import LoopModel
from hand_weighted import HandWeighted, every_token
from mixer_cases import make_odd_model
from torch import Tensor, nn

from benchmarks.family_models import (
    ALL_MODELS,
    FAULTY,
    FAULTY_BEYOND,
    MODELS,
    family_of,
    make_model,
)
from causal_interventions.logit_parts import LogitParts, logit_parts
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import final_norm, input_embeddings

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12]])

TOKEN, CONTRAST = 7, 30

# Of the largest logit: float32 rounding of the sums; float64's, where every part is recomputed from
# the numbers that transformers itself rounded.
SUMS = {torch.float32: 1e-5, torch.float64: 1e-10}


def ids_for(name: str) -> Tensor:
    return IDS[:, :FAULTY_BEYOND] if name in FAULTY else IDS


def made(name: str, dtype: torch.dtype) -> Any:
    model = make_model(name).to(dtype)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others have no float64
    for block in getattr(getattr(model, "backbone", None), "layers", ()):
        block.residual_in_fp32 = False  # rounds the stream of a float64 model to float32
    return model


@pytest.fixture(scope="module", params=ALL_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=SUMS, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, dtype: torch.dtype) -> Any:
    return made(name, dtype)


@pytest.fixture(scope="module")
def parts(model: Any, name: str) -> LogitParts:
    return logit_parts(model, ids_for(name), TOKEN, CONTRAST)


def test_parts_sum_to_the_logit(name, model, dtype, parts):
    within = SUMS[dtype] * parts.largest_logit
    assert abs(sum(part.value for part in parts.parts) - parts.logit) < within
    assert abs(parts.to_dataframe()["value"].sum() - parts.logit) < within
    assert parts.rounding == pytest.approx(0.0, abs=within)
    with torch.no_grad():
        stock = model(input_ids=ids_for(name), use_cache=False).logits[0, -1]
    # The suite's scan against the model's own, which rounds to float32 in any dtype.
    assert parts.logit == pytest.approx(
        float(stock[TOKEN] - stock[CONTRAST]), abs=2e-5 * parts.largest_logit
    )


def test_layers_sum_over_sources_and_neurons(dtype, parts):
    within = SUMS[dtype] * parts.largest_logit
    table, by_source, by_layer = parts.to_dataframe(), parts.by_source, parts.by_layer()
    layers = [layer for layer in by_layer["layer"] if isinstance(layer, int)]
    assert layers == sorted(layers)
    for layer in layers:
        wrote = float(by_layer["direct"][by_layer["layer"] == layer].sum())
        assert by_source["value"][by_source["layer"] == layer].sum() == pytest.approx(
            wrote, abs=within
        )
        if layer in parts.neurons:
            of_mixer = table[
                (table["layer"] == layer)
                & table["path"].isin(["skip", "convolution", "state", "bias"])
            ]
            bias = parts.neurons[layer].bias
            neurons, heads = parts.by_neuron(layer), parts.by_head(layer)
            expected = pytest.approx(float(of_mixer["value"].sum()), abs=within)
            assert neurons["value"].sum() + bias == expected
            assert heads["value"].sum() + bias == expected
    totals = parts.source_totals()
    assert totals["value"].sum() == pytest.approx(parts.logit, abs=within)


@pytest.mark.parametrize("name", MODELS)  # the loop of a Mamba-3 has other stages
def test_parts_are_those_of_loops_over_channels_and_tokens(name):
    """Everything again from a float64 twin with mixers by loops, multipliers from the configs."""
    model, ids = made(name, torch.float64), ids_for(name)
    found: dict[tuple, float] = {}
    for part in logit_parts(model, ids, TOKEN).parts:
        key = (part.layer, part.path, part.source)
        found[key] = found.get(key, 0.0) + part.value
    loops, seen = LoopModel(model, family_of(name)), {}
    norm = final_norm(loops.model)

    def keep(module, args, kwargs, output):
        seen["final"] = args[0][0, -1]

    with torch.no_grad(), forward_hooks([(norm, keep)]):
        logits = loops.logits(input_embeddings(loops.model, ids))[0, -1]
    rms = (seen["final"].square().mean() + norm.variance_epsilon).sqrt()
    k = {"falcon_h1": 0.6, "granitemoehybrid": 0.5}.get(family_of(name), 1.0)
    head = loops.model.get_output_embeddings().weight[TOKEN]
    direction = (k * head * norm.weight / rms).detach()
    # Rounding of u and B to float32 by transformers, which the loops do without.
    within = 1e-5 * float(logits.abs().max())
    for layer, stages in loops.stages.items():
        expected = loop_parts(loops, layer, stages, direction, name)
        for key, value in expected.items():
            assert found[(layer, *key)] == pytest.approx(value, abs=within), (layer, key)


def loop_parts(loops: LoopModel, layer: int, stages: dict, direction: Tensor, name: str) -> dict:
    mixer = find_mixers(loops.model)[layer].mixer
    w = {key: weight.detach() for key, weight in mixer.named_parameters()}
    stages = {key: x.detach() for key, x in stages.items()}
    m = {"falcon_h1": 0.7, "granitemoehybrid": 0.8}.get(family_of(name), 1.0)
    d_inner = stages["gated"].shape[-1]
    width = d_inner // len(stages["D"])
    alpha = reference.implicit_attention(*(stages[x] for x in ("delta", "A", "B", "C")))[0, :, -1]
    # gated / y: the gate and the gated norm's factor at their value.
    gating = (stages["gated"] / stages["y"])[0, -1]
    through = gating * (direction @ w["out_proj.weight"]) * m
    bias = w.get("conv1d.bias")
    return reference.direct_parts(
        alpha.repeat_interleave(width, 0), stages["D"].repeat_interleave(width),
        stages["conv_input"][0], w["conv1d.weight"][:d_inner, 0],
        None if bias is None else bias[:d_inner], through,
    )  # fmt: skip


def test_biases_of_projections_and_of_the_unembedding_are_parts():
    model = make_odd_model()
    head = model.lm_head
    model.lm_head = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        model.lm_head.bias.normal_(generator=torch.Generator().manual_seed(1))
    found = logit_parts(model, IDS, TOKEN, CONTRAST)
    assert abs(found.rounding) < 1e-5 * found.largest_logit
    last = found.parts[-1]
    bias = model.lm_head.bias.detach()
    expected = float(bias[TOKEN] - bias[CONTRAST])
    assert (last.layer, last.path, last.source) == ("bias", "bias", "bias")
    assert last.value == pytest.approx(expected, rel=1e-6)
    assert all(neurons.bias != 0.0 for neurons in found.neurons.values())


@pytest.mark.parametrize("delay", [0, 2])
def test_the_planted_neuron_and_its_source_token_are_named(delay):
    """Neuron 4 keeps that token 3 came ``delay`` tokens before and writes the logit of token 5."""
    built = HandWeighted(8, 8).channel(0, every_token(8)).channel(4, [3], delay=delay)
    built.reads(B={(0, 0): 1.0}, C={(0, 0): 1.0}).decay([0.1, 0.1], 0.2)
    built.writes(4, torch.eye(8)[5])
    ids = torch.tensor([[1, 2, 3, 0, 1, 6, 2, 1]])
    found = logit_parts(built.model, ids, 5)
    neurons = found.by_neuron(0)
    assert neurons["value"].abs().idxmax() == 4
    assert neurons["value"].drop(4).abs().max() < 1e-6
    wrote = found.by_source
    share = wrote["value"][wrote["source"] == 2].sum() / found.logit
    assert share == pytest.approx(1.0, abs=1e-5)
    paths = found.to_dataframe().set_index("path")["value"]
    assert paths["state"] == pytest.approx(found.logit, rel=1e-5)


def test_the_likeliest_token_is_the_default_and_the_last_path_is_the_skip(tiny_model):
    found = logit_parts(tiny_model, IDS[:, :1])
    with torch.no_grad():
        logits = tiny_model(input_ids=IDS[:, :1], use_cache=False).logits[0, -1]
    assert found.token == int(logits.argmax())
    assert found.position == 0
    # A single token has nothing before it.
    assert {part.path for part in found.parts} == {"embedding", "skip", "bias"}


def test_half_life_groups_and_layers_without_a_mixer(tiny_model):
    found = logit_parts(tiny_model, IDS)
    groups = found.by_head(1)
    assert list(groups["head"]) == ["short", "middle", "long"]
    assert groups["half_life"].is_monotonic_increasing
    with pytest.raises(ValueError, match="layers with an SSM are"):
        found.by_neuron(9)
    with pytest.raises(ValueError, match="token is 64"):
        logit_parts(tiny_model, IDS, 64)
    with pytest.raises(ValueError, match="their difference is 0"):
        logit_parts(tiny_model, IDS, found.token, found.token)


def test_agreement_needs_total_effects(tiny_model):
    found = logit_parts(tiny_model, IDS)
    assert found.agreement.spearman is None
    assert found.by_layer()["total"].isna().all()
    assert found.to_dict()["agreement"] is None
