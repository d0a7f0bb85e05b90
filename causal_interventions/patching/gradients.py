"""Attribution patching: effects of patches to first order, at all places from one gradient.

A patch of a quantity a changes a metric m by about (a_source - a_base) . dm/da at the base run: the
corrupt run for denoising, the clean one for noising [1]. With k ``steps`` the gradient is the mean
of those at k points of the line between the embeddings of both runs, at the middles of its k equal
parts (EAP-IG [3], there at their ends): what saturates at an end is seen.

    node     a site of a layer at a token, as exact patching has them
    edge     what a layer, or the embedding, wrote, as a later layer alone reads it, or the logits
             [2]: the gradient of a reader is that of the stream before it minus that behind it
    map      what query t takes from source s through alpha: (alpha u of the source run minus that
             of the base run) . dm/dy_t, by layer

References:
  [1] Nanda 2023, "Attribution patching"; Kramar et al. 2024, AtP* (arXiv 2403.00745)
  [2] Syed, Rager & Conmy 2023, Edge attribution patching (arXiv 2310.10348)
  [3] Hanna, Pezzelle & Belinkov 2024, EAP-IG (arXiv 2403.17806)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.patching.exact import PairRuns
from causal_interventions.patching.metrics import measured
from causal_interventions.patching.sites import (
    STAGES,
    Places,
    Run,
    run_kept,
    turned_states,
    window_change,
)
from mamba_mixers.sites import MixerSite, find_mixers
from mamba_mixers.weights import input_embeddings
from selective_scan.attention import attention_map
from suite_plumbing.precision import in_full_precision

_STAGES = ("convolved", "u", "B", "C", "delta", "y", "gate", "gated")


@dataclass(frozen=True, eq=False)
class Gradients:
    """dm/da of b texts, mean over the steps; m is each text's own metric."""

    streams: dict[int, Tensor]
    """by layer, of the residual stream before it, (b, l, d_model)"""
    outputs: dict[int, Tensor]
    """by layer, of the stream behind it"""
    stages: dict[int, dict[str, Tensor]]
    """by layer with an SSM and stage"""
    states: dict[int, Tensor]
    """by layer, (b, l, d_inner, N), of the state after each token"""


@torch.inference_mode(False)
@in_full_precision
def gradients_of(
    model: PreTrainedModel, runs: PairRuns, direction: str, steps: int = 0, states: bool = True
) -> Gradients:
    """Gradients at the base run, or over ``steps`` > 0 points between both runs.

    ``states`` False leaves out those of the states, which take memory l N a channel. Cost: a
    forward and backward pass for each step, or one.
    """
    base, source = runs.corrupt, runs.clean
    if direction == "noising":
        base, source = source, base
    first, last = (input_embeddings(model, run.input_ids).detach() for run in (base, source))
    shares = [(step + 0.5) / steps for step in range(steps)] or [0.0]
    total: Gradients | None = None
    for share in shares:
        embeddings = (first + share * (last - first)).requires_grad_()
        with torch.enable_grad():
            found = _gradients_at(model, runs, base.input_ids, embeddings, states)
        total = found if total is None else _added(total, found)
    if total is None:
        raise RuntimeError("a gradient is taken at one point at least")
    return _scaled(total, 1.0 / len(shares))


def _gradients_at(
    model: PreTrainedModel, runs: PairRuns, ids: Tensor, embeddings: Tensor, states: bool
) -> Gradients:
    run = run_kept(model, ids, runs.back, embeddings)
    value = measured(runs.metric, run.logits, runs.answers).sum()
    places = [("streams", i, "") for i in run.streams] + [("outputs", i, "") for i in run.outputs]
    places += [("stages", i, stage) for i in run.stages for stage in _stages_of(run, i)]
    tensors = [
        run.stages[i][stage] if stage else getattr(run, kind)[i] for kind, i, stage in places
    ]
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    filled = [
        torch.zeros_like(x) if gradient is None else gradient
        for x, gradient in zip(tensors, found, strict=True)
    ]
    by_place = dict(zip(places, filled, strict=True))
    streams, outputs = (
        {i: by_place[kind, i, ""] for i in run.streams} for kind in ("streams", "outputs")
    )
    stages = {i: {s: by_place["stages", i, s] for s in _stages_of(run, i)} for i in run.stages}
    by_state = {i: state_gradient(run, i, stages[i]["y"]) for i in stages} if states else {}
    return Gradients(streams, outputs, stages, by_state)


def _stages_of(run: Run, layer: int) -> list[str]:
    """Stages of which gradients are taken; a Mamba-3 has no convolution."""
    return [stage for stage in _STAGES if stage in run.stages[layer]]


@torch.no_grad()
def state_gradient(run: Run, layer: int, of_y: Tensor) -> Tensor:
    """(b, l, d_inner, N) dm/dh_t of the state after each token, as later tokens read it.

    g_t = exp(delta_{t+1} A) (g_{t+1} + C_{t+1} dm/dy_{t+1}), 0 after the last token: the adjoint of
    the recurrence. What token t itself reads is not in it.
    """
    made = run.stages[layer]
    delta, A, C = made["delta"], made["A"], made["C"]
    heads, width = delta.shape[2], of_y.shape[2] // delta.shape[2]
    C = C.unsqueeze(2) if C.dim() == 3 else C
    C = C.repeat_interleave(heads // C.shape[2], 2).repeat_interleave(width, 2)
    decay = torch.exp(delta[..., None] * A).repeat_interleave(width, 2)
    found = [torch.zeros_like(C[:, 0]).to(of_y)]
    for t in range(of_y.shape[1] - 1, 0, -1):
        found.append(decay[:, t] * (found[-1] + C[:, t] * of_y[:, t, :, None]))
    return torch.stack(found[::-1], 1)


def _added(one: Gradients, other: Gradients) -> Gradients:
    def both(a: dict, b: dict) -> dict:
        return {i: a[i] + b[i] for i in a}

    return Gradients(
        both(one.streams, other.streams),
        both(one.outputs, other.outputs),
        {i: both(one.stages[i], other.stages[i]) for i in one.stages},
        both(one.states, other.states),
    )


def _scaled(total: Gradients, factor: float) -> Gradients:
    def scaled(a: dict) -> dict:
        return {i: x * factor for i, x in a.items()}

    return Gradients(
        scaled(total.streams),
        scaled(total.outputs),
        {i: scaled(x) for i, x in total.stages.items()},
        scaled(total.states),
    )


@torch.no_grad()
def node_scores(
    model: PreTrainedModel,
    runs: PairRuns,
    gradients: Gradients,
    site: str,
    layers: list[int],
    direction: str,
    neurons: dict[int, list[int]] | None = None,
) -> Tensor:
    """(b, layers, l) float64 first-order change of the metric by patching each place alone."""
    base, source = _ends(runs, direction)
    scores = []
    for layer in layers:
        if site == "residual":
            change = source.streams[layer] - base.streams[layer]
            scores.append((change.double() * gradients.streams[layer].double()).sum(-1))
        elif site == "state":
            scores.append(_state_scores(base, source, layer, gradients.states[layer]))
        elif site == "window":
            mixer = find_mixers(model)[layer]
            scores.append(_window_scores(mixer, base, source, gradients.stages[layer]))
        else:
            channels = neurons[layer] if neurons and site == "neurons" else None
            scores.append(_stage_scores(base, source, layer, site, gradients, channels))
    return torch.stack(scores, 1).cpu()


def _ends(runs: PairRuns, direction: str) -> tuple[Run, Run]:
    ends = (runs.corrupt, runs.clean)
    return ends if direction == "denoising" else (runs.clean, runs.corrupt)


def _stage_scores(
    base: Run, source: Run, layer: int, site: str, gradients: Gradients, channels: list[int] | None
) -> Tensor:
    stage = STAGES[site]
    change = source.stages[layer][stage] - base.stages[layer][stage]
    product = change.double() * gradients.stages[layer][stage].double()
    return (product if channels is None else product[..., channels]).flatten(2).sum(-1)


def _state_scores(base: Run, source: Run, layer: int, gradient: Tensor) -> Tensor:
    rows = []
    tokens = torch.arange(gradient.shape[1], device=gradient.device)
    for row in range(len(gradient)):
        text = torch.full_like(tokens, row)
        places = Places(text, tokens, text, tokens)
        states = turned_states(source.states(layer, row), base, source, layer, places)
        change = states - base.states(layer, row)
        rows.append((change.double() * gradient[row].double()).flatten(1).sum(1))
    return torch.stack(rows)


def _window_scores(
    mixer: MixerSite, base: Run, source: Run, gradients: dict[str, Tensor]
) -> Tensor:
    inputs = (run.stages[mixer.layer]["conv_input"] for run in (base, source))
    own, other = inputs
    tokens = torch.arange(own.shape[1], device=own.device)
    rows = []
    for row in range(len(own)):
        text = torch.full_like(tokens, row)
        places = Places(text, tokens, text, tokens)
        change = window_change(mixer, own[text], other, places)
        rows.append((change.double() * gradients["convolved"][row].double()).flatten(1).sum(1))
    return torch.stack(rows)


@torch.no_grad()
def edge_scores(runs: PairRuns, gradients: Gradients, direction: str) -> Tensor:
    """(b, L + 1, L + 1, l) first-order change by patching each edge alone; float64.

    Writers: the embedding, then the L layers; readers: the L layers, then the logits. Zero where
    the writer does not come before the reader. What writers give one reader sums to what the
    stream before it gives.
    """
    base, source = _ends(runs, direction)
    readers = [
        gradients.streams[i].double() - gradients.outputs[i].double() for i in gradients.streams
    ]
    readers.append(gradients.outputs[max(gradients.outputs)].double())
    changes = [source.streams[0].double() - base.streams[0].double()]
    changes += [written(source, i).double() - written(base, i).double() for i in base.streams]
    found = torch.zeros(*changes[0].shape[:1], len(changes), len(readers), changes[0].shape[1])
    found = found.double()
    for i, change in enumerate(changes):
        for j in range(i, len(readers)):
            found[:, i, j] = (change * readers[j]).sum(-1).cpu()
    return found


def written(run: Run, layer: int) -> Tensor:
    """(b, l, d_model) what a layer added to the residual stream."""
    return run.outputs[layer] - run.streams[layer]


@torch.no_grad()
def token_maps(runs: PairRuns, gradients: Gradients, direction: str) -> dict[int, Tensor]:
    """By layer with an SSM, (b, l, l) change by what each query takes from each source; float64.

    Rows are queries. Their sum and that of D u are what patching y gives. Cost: two attention maps
    a layer.
    """
    base, source = _ends(runs, direction)
    found = {}
    for layer, parts in gradients.stages.items():
        both = [_read(run, layer, parts["y"]) for run in (source, base)]
        found[layer] = (both[0] - both[1]).double().cpu()
    return found


def _read(run: Run, layer: int, of_y: Tensor) -> Tensor:
    made = run.stages[layer]
    return attention_map(
        made["delta"], made["A"], made["B"].to(made["A"]), made["C"],
        query_weight=of_y, key_weight=made["u"].to(of_y), own_share=made.get("own_share"),
    )  # fmt: skip


@torch.no_grad()
def neuron_scores(runs: PairRuns, gradients: Gradients, direction: str) -> dict[int, Tensor]:
    """By layer with an SSM, (b, d_inner) change by patching one neuron at every token; float64."""
    base, source = _ends(runs, direction)
    return {
        layer: (
            (source.stages[layer]["gated"] - base.stages[layer]["gated"]).double()
            * parts["gated"].double()
        ).sum(1).cpu()
        for layer, parts in gradients.stages.items()
    }  # fmt: skip
