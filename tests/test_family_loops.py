"""Every attribution method and every intervention on every family, against loops in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import reference
import torch
from family_twins import LoopModel
from torch import Tensor

from benchmarks.family_models import MODELS, family_of, make_model, ssm_layers
from causal_interventions.interventions import (
    compose,
    freeze_delta,
    hide_source,
    patch_state,
    reset_state,
    scale_delta,
    set_neuron,
)
from causal_interventions.targets import resolve_target
from input_attribution import ATTRIBUTION_METHODS, Explained, attribute, explain
from mamba_mixers.recording import block_output_scale
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import bias_parameters, input_embeddings
from ssm_measures.attention_measures import row_stochastic

# The suite runs in float32; a few layers, and differences of logits, grow its rounding.
CLOSE = 2e-3

# As many tokens as B and C have groups, whose axis a mask of tokens must not be taken for, and one
# chunk: every version of transformers computes texts of one chunk rightly.
LENGTHS = (2, 8)


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_model(name)


@pytest.fixture(scope="module")
def loops(model: Any, name: str) -> LoopModel:
    return LoopModel(model, family_of(name))


def ids_of(length: int) -> Tensor:
    return torch.randint(1, 64, (1, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number."""
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def test_the_loops_are_the_model(model, loops):
    ids = ids_of(8)
    with torch.no_grad():
        stock = model(input_ids=ids, use_cache=False).logits
        assert relative(loops.logits(input_embeddings(model, ids)), stock) <= 1e-4


# --- attributions: each takes the loops and what is explained, and gives scores (l,)


def f_of(explained: Explained, logits: Tensor) -> Tensor:
    return logits[:, -1, int(explained.target.token)]


def gradients(loops: LoopModel, explained: Explained, x: Tensor) -> Tensor:
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(f_of(explained, loops.logits(x)).sum(), x)[0]


def gradient_x_input(loops: LoopModel, explained: Explained) -> Tensor:
    x = explained.embeddings.double()
    return (x * gradients(loops, explained, x)).sum(-1)[0]


def integrated_gradients(loops: LoopModel, explained: Explained) -> Tensor:
    x, x0 = explained.embeddings.double(), explained.baseline.double()
    nodes, weights = np.polynomial.legendre.leggauss(explained.num_steps)
    total = torch.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        point = x0 + (node + 1) / 2 * (x - x0)
        total += weight / 2 * gradients(loops, explained, point)
    return ((x - x0) * total).sum(-1)[0]


def mamba_lrp(loops: LoopModel, explained: Explained) -> Tensor:
    ruled = LoopModel(explained.model, loops.family, relevance=True)
    return gradient_x_input(ruled, explained)


def occlusion(loops: LoopModel, explained: Explained) -> Tensor:
    scores = []
    with torch.no_grad():
        f = f_of(explained, loops.logits(explained.embeddings))
        for s in range(explained.num_tokens):
            x = explained.embeddings.double().clone()
            x[0, s] = explained.baseline.double()
            scores.append(f - f_of(explained, loops.logits(x)))
    return torch.cat(scores)


def knockout(loops: LoopModel, explained: Explained) -> Tensor:
    scores = []
    with torch.no_grad():
        f = f_of(explained, loops.logits(explained.embeddings))
        for s in range(explained.num_tokens):

            def silent(layer: int, stage: str, x: Tensor, s: int = s) -> Tensor:
                if stage != "B":
                    return x
                rows = [x[:, t] * (0.0 if t == s else 1.0) for t in range(x.shape[1])]
                return torch.stack(rows, 1)

            scores.append(f - f_of(explained, loops.logits(explained.embeddings, silent)))
    return torch.cat(scores)


def alphas_of(loops: LoopModel, explained: Explained) -> dict[int, Tensor]:
    """By layer: alpha (heads, l, l)."""
    with torch.no_grad():
        loops.logits(explained.embeddings)
        return {layer: alpha_of(stages) for layer, stages in loops.stages.items()}


def alpha_of(stages: dict[str, Tensor]) -> Tensor:
    operands = (stages[key].detach() for key in ("delta", "A", "B", "C"))
    return reference.implicit_attention(*operands)[0]


def hidden_attention(loops: LoopModel, explained: Explained) -> Tensor:
    total = torch.zeros(explained.num_tokens, dtype=torch.float64)
    alphas = alphas_of(loops, explained)
    for alpha in alphas.values():
        row = alpha.abs().mean(0)[-1]
        total += row / row.sum() / len(alphas)
    return total


def rollout(loops: LoopModel, explained: Explained) -> Tensor:
    streams, found = streams_of(loops, explained)
    row = torch.zeros(explained.num_tokens, dtype=torch.float64)
    row[-1] = 1.0
    for layer, alpha in reversed(found.items()):
        before, written = streams[layer]
        share = written.norm(dim=-1) / (written.norm(dim=-1) + before.norm(dim=-1))
        row = (row * share) @ row_stochastic(alpha.abs().mean(0)) + row * (1 - share)
    return row


def streams_of(loops: LoopModel, explained: Explained) -> tuple[dict, dict[int, Tensor]]:
    """By layer: the stream before it with what its mixer adds, each (l, d_model); and alpha."""
    sites, before = find_mixers(loops.model), {}

    def hear(layer: int):
        def hook(block, args, kwargs):
            before[layer] = (args[0] if args else kwargs["hidden_states"])[0].detach()

        return hook

    handles = [
        site.block.register_forward_pre_hook(hear(layer), with_kwargs=True)
        for layer, site in sites.items()
    ]
    alphas = alphas_of(loops, explained)
    for handle in handles:
        handle.remove()
    streams = {
        layer: (before[layer], loops.stages[layer]["output"][0] * block_output_scale(site))
        for layer, site in sites.items()
    }
    return streams, alphas


def gradient_rollout(loops: LoopModel, explained: Explained) -> Tensor:
    x = explained.embeddings.double().requires_grad_()
    f = f_of(explained, loops.logits(x)).sum()
    stages = list(loops.stages.values())
    grads = torch.autograd.grad(f, [one["y"] for one in stages])
    row = torch.zeros(explained.num_tokens, dtype=torch.float64)
    row[-1] = 1.0
    for one, grad in reversed(list(zip(stages, grads, strict=True))):
        alpha = alpha_of(one)
        width = grad.shape[2] // len(alpha)
        positive = torch.zeros_like(alpha[0])
        for channel in range(grad.shape[2]):
            part = grad[0, :, channel, None] * alpha[channel // width]
            positive += (part * one["u"].detach()[0, None, :, channel]).clamp_min(0)
        row = row + row @ positive / grad.shape[2]
    return row


def mamba_attribution(loops: LoopModel, explained: Explained) -> Tensor:
    x = explained.embeddings.double().requires_grad_()
    f = f_of(explained, loops.logits(x)).sum()
    stages = list(loops.stages.values())
    grads = torch.autograd.grad(f, [one["output"] for one in stages])
    row = torch.zeros(explained.num_tokens, dtype=torch.float64)
    row[-1] = 1.0
    for one, grad in reversed(list(zip(stages, grads, strict=True))):
        product = grad[0].mean(1)[:, None] * alpha_of(one).mean(0)
        row = row + row @ product.clamp_min(0)
    return row


def recency(loops: LoopModel, explained: Explained) -> Tensor:
    return torch.arange(explained.num_tokens, dtype=torch.float64)


def random(loops: LoopModel, explained: Explained) -> Tensor:
    generator = torch.Generator().manual_seed(explained.seed)
    return torch.randn(explained.num_tokens, generator=generator, dtype=torch.float64)


BY_LOOPS: dict[str, Callable[[LoopModel, Explained], Tensor]] = {
    function.__name__: function
    for function in (
        gradient_x_input, integrated_gradients, mamba_lrp, rollout, hidden_attention,
        gradient_rollout, mamba_attribution, occlusion, knockout, recency, random,
    )
}  # fmt: skip


def test_every_method_has_a_twin():
    assert set(BY_LOOPS) == set(ATTRIBUTION_METHODS)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("method", BY_LOOPS)
def test_scores_are_those_of_the_loops(model, loops, method, length):
    explained = explain(model, ids_of(length), resolve_target("logit"), num_steps=6)
    found = attribute(explained, method)
    assert relative(found.scores, BY_LOOPS[method](loops, explained).detach()) <= CLOSE


def test_relevance_of_the_biases_is_that_of_the_loops(model, name):
    explained = explain(model, ids_of(8), resolve_target("logit"))
    ruled = LoopModel(model, family_of(name), relevance=True)
    biases = list(bias_parameters(ruled.model).values())
    f = f_of(explained, ruled.logits(explained.embeddings)).sum()
    gradients_ = torch.autograd.grad(f, biases, allow_unused=True) if biases else []
    expected = sum(
        float((bias.detach() * gradient).sum())
        for bias, gradient in zip(biases, gradients_, strict=True)
        if gradient is not None
    )
    found = attribute(explained, "mamba_lrp").bias_relevance
    assert found == pytest.approx(expected, rel=CLOSE, abs=CLOSE * abs(float(f.detach())))


# --- interventions: each beside the change of the loops that is the same


def at_tokens(x: Tensor, tokens: tuple[int, ...], factor: float) -> Tensor:
    rows = [x[:, t] * (factor if t in tokens else 1.0) for t in range(x.shape[1])]
    return torch.stack(rows, 1)


def only(stage: str, function: Callable[[Tensor], Tensor]) -> Callable:
    """The change of one stage in the first layer with an SSM."""
    return lambda wanted: (
        lambda layer, name, x: function(x) if (layer, name) == (wanted, stage) else x
    )


def hiding(source: int, queries: range) -> Callable:
    """y_t - alpha[t, source] u_source for these queries, alpha from the stages before y."""

    def for_layer(wanted: int) -> Callable:
        seen: dict[str, Tensor] = {}

        def change(layer: int, stage: str, x: Tensor) -> Tensor:
            if layer != wanted:
                return x
            seen[stage] = x
            if stage != "y":
                return x
            alpha = alpha_of(seen)
            width = x.shape[2] // len(alpha)
            y = x.clone()
            for t in queries:
                gain = alpha[:, t, source].repeat_interleave(width)
                y[:, t] -= gain * seen["u"][:, source]
            return y

        return change

    return for_layer


def mean_over_tokens(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        total = total + x[:, t] / x.shape[1]
    return torch.stack([total] * x.shape[1], 1)


def with_neurons(x: Tensor, neurons: list[int], new: Tensor) -> Tensor:
    x = x.clone()
    x[..., neurons] = new[..., neurons]
    return x


def replaced_state(states: Tensor, token: int, state: Tensor) -> Tensor:
    if len(states) - 1 != token:
        return states
    shape = states.shape[1:]
    return torch.cat([states[:-1], state.double().expand(1, *state.shape).view(1, *shape)])


STATE = torch.randn(64, 4, generator=torch.Generator().manual_seed(9))
"""(d_inner, N) of every one of the models"""


INTERVENTIONS: dict[str, tuple[Callable, Callable]] = {
    "reset_state": (
        partial(reset_state, 5),
        only("carry", lambda x: at_tokens(x, (5,), 0.0)),
    ),
    "scale_delta": (partial(scale_delta, 0.5), only("delta", lambda x: 0.5 * x)),
    "scale_delta of some tokens": (
        lambda layer: scale_delta(2.0, layer, [1, 6]),
        only("delta", lambda x: at_tokens(x, (1, 6), 2.0)),
    ),
    "freeze_delta": (freeze_delta, only("delta", mean_over_tokens)),
    "hide_source": (partial(hide_source, 2), hiding(2, range(3, 8))),
    "hide_source from a query": (
        lambda layer: hide_source(5, layer, query=6), hiding(5, range(6, 7)),
    ),
    "set_neuron to zero": (
        lambda layer: set_neuron(layer, [3, 40], "zero"),
        only("gated", lambda x: with_neurons(x, [3, 40], torch.zeros_like(x))),
    ),
    "set_neuron to its mean": (
        lambda layer: set_neuron(layer, [3, 40], "mean"),
        only("gated", lambda x: with_neurons(x, [3, 40], mean_over_tokens(x))),
    ),
    "patch_state": (
        lambda layer: patch_state(layer, 4, STATE),
        only("state", lambda x: replaced_state(x, 4, STATE)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_logits_are_those_of_the_loops_with_the_same_change(model, loops, name, intervention):
    build, change = INTERVENTIONS[intervention]
    layer, ids = ssm_layers(name)[0], ids_of(8)
    embeddings = input_embeddings(model, ids).detach()
    with torch.no_grad():
        clean = loops.logits(embeddings)
        expected = loops.logits(embeddings, change(layer)) - clean
        with fast_scan(model, edits=build(layer)):
            found = model(input_ids=ids, use_cache=False).logits - clean
    # Rounding is of the logits, in float32 through four layers; what an intervention changes of
    # them can be smaller, and here is more than four times that.
    rounding = 5e-5 * float(clean.abs().max())
    assert float(expected.abs().max()) > 4 * rounding
    assert float((found - expected).abs().max()) <= rounding


def test_a_composition_is_that_of_the_loops(model, loops, name):
    layers, ids = ssm_layers(name)[:2], ids_of(8)
    pieces = ("scale_delta", "reset_state")
    edits = compose(*(INTERVENTIONS[p][0](layer) for p, layer in zip(pieces, layers, strict=True)))
    changes = [INTERVENTIONS[p][1](layer) for p, layer in zip(pieces, layers, strict=True)]

    def change(layer: int, stage: str, x: Tensor) -> Tensor:
        return changes[1](layer, stage, changes[0](layer, stage, x))

    with torch.no_grad():
        expected = loops.logits(input_embeddings(model, ids), change)
        with fast_scan(model, edits=edits):
            found = model(input_ids=ids, use_cache=False).logits
    assert relative(found, expected) <= 1e-4
