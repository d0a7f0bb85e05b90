"""Direct attribution of every prediction of a text: by source token, by layer and path.

The numbers of ``causal_interventions.logit_parts`` for all positions at once, from two forward
passes, the second of which is held a layer at a time. What attention, MLPs and experts of a hybrid
wrote is one path, "other modules", and counted at the token itself: ``direct_attribution`` leads
attention back to its sources, a position at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_mixers.placement import parameters_at_hand
from mamba_mixers.recording import observing_streams
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers, num_layers
from mamba_mixers.weights import (
    Readout,
    final_norm,
    logits_of_stream,
    mixer_parameters,
    readout_of,
)
from ssm_component_extractor import read_by_layer
from ssm_measures.components import Capture
from ssm_measures.direct_maps import direct_map
from suite_plumbing.arguments import whole_numbers
from suite_plumbing.models import execution_device
from suite_plumbing.precision import in_full_precision

OTHER = "other modules"
"""Path of what attention, MLPs and experts wrote."""

OTHER_FROM = 1e-4
"""Share of the largest part of a stream's write below which what is left is rounding."""


@dataclass(frozen=True, eq=False)
class PredictionMaps:
    """The logit of one token at every position of a text, and what summed to it; on the CPU."""

    tokens: Tensor
    """(l,) id whose logit is attributed, by position"""
    logits: Tensor
    """(l,) that logit"""
    largest: Tensor
    """(l,) largest |logit| of the position"""
    sources: Tensor
    """(l, l) what source s gave the logit at t through all layers, the embedding and other modules
    counted at t itself"""
    paths: dict[int, dict[str, Tensor]]
    """(l,) by layer and path"""
    embedding: Tensor
    """(l,)"""
    constant: Tensor
    """(l,) of the unembedding's bias"""

    @property
    def rounding(self) -> Tensor:
        """(l,) the logit minus the sum of its parts."""
        parts = [values for by_path in self.paths.values() for values in by_path.values()]
        return self.logits - torch.stack([self.embedding, self.constant, *parts]).sum(0)


class ChosenLogits(NamedTuple):
    """One logit of every position of a text."""

    tokens: Tensor
    """(l,) id whose logit it is"""
    values: Tensor
    """(l,)"""
    largest: Tensor
    """(l,) largest |logit| of the position"""


def prediction_maps(model: Any, input_ids: Tensor, tokens: Tensor | None = None) -> PredictionMaps:
    """Attribute one logit after every token of one text (1, l) to all that summed to it.

    ``tokens`` (l,): whose logit, by position; None is the likeliest of each. Raises ValueError for
    another number of tokens, UnsupportedModelError for a model without logits. Cost: two forward
    passes by the suite's scan and, for every layer, one map of the full mixer; memory of one layer.
    """
    final_norm(model)
    ids = input_ids[0].tolist()
    stream = final_stream(model, ids)
    chosen = chosen_logits(logits_of_stream(model, stream), tokens)
    return maps_of_logits(model, ids, stream, chosen)


@torch.no_grad()
def final_stream(model: Any, ids: Sequence[int]) -> Tensor:
    """(l, d_model) residual stream after the last layer for one text, by the suite's scan."""
    seen: list[Tensor] = []
    tokens = torch.tensor([list(ids)], device=execution_device(model))
    last = num_layers(model) - 1
    with fast_scan(model), observing_streams(model, [last], lambda _, x: seen.append(x[0])):
        model.base_model(input_ids=tokens, use_cache=False)
    return seen[0]


def chosen_logits(logits: Tensor, tokens: Tensor | None = None) -> ChosenLogits:
    """Of logits (l, V) those of ``tokens`` (l,), or the largest of each position; on the CPU."""
    chosen = logits.argmax(-1).cpu() if tokens is None else _checked(tokens, logits)
    values = logits.gather(1, chosen.to(logits.device)[:, None])[:, 0]
    return ChosenLogits(chosen, values.cpu(), logits.abs().amax(1).cpu())


@in_full_precision
def maps_of_logits(
    model: Any, ids: Sequence[int], stream: Tensor, chosen: ChosenLogits
) -> PredictionMaps:
    """`prediction_maps` of the first tokens of a text whose `final_stream` is known already.

    ``ids``, ``stream`` and ``chosen`` of as many tokens. The directions of the logits need the end
    of the stream and the maps need every layer: rather than to hold all layers until the end is
    known, the tokens are read once more and each layer is let go of when its map is made. Cost:
    that pass, and for every layer one map of the full mixer.
    """
    readout, sites = readout_of(model), find_mixers(model)
    directions = _directions(model, readout, stream, chosen.tokens)
    embedding, sources = (directions.new_zeros(len(ids), *more) for more in ((), (len(ids),)))
    paths: dict[int, dict[str, Tensor]] = {}

    def add_layer(layer: int, captured: Capture) -> None:
        if layer == 0:
            embedding.copy_((captured.block_inputs[0][0] * directions).sum(1))
        paths[layer] = {}
        if layer in sites:
            parameters = mixer_parameters(sites[layer])
            found = direct_map(captured.components[layer], parameters, directions)
            paths[layer] = dict(found.paths)
            sources.add_(found.tokens)
        left = _other(captured, layer)
        if left is not None:
            paths[layer][OTHER] = (left * directions).sum(1)
            sources.diagonal().add_(paths[layer][OTHER])

    read_by_layer(model, torch.tensor([list(ids)]), add_layer)
    sources.diagonal().add_(embedding)
    bias = torch.zeros_like(embedding)
    if readout.bias is not None:
        bias = readout.bias[chosen.tokens].to(bias) * readout.scale
    values, largest = chosen.values.to(embedding), chosen.largest.to(embedding)
    return PredictionMaps(chosen.tokens, values, largest, sources, paths, embedding, bias)


def _directions(model: Any, readout: Readout, stream: Tensor, tokens: Tensor) -> Tensor:
    """(l, d_model) by position what a logit is of the stream, the final norm's divisor held."""
    norm = final_norm(model)
    final = stream.cpu() if stream.dtype == torch.float64 else stream.cpu().float()
    with parameters_at_hand(norm):
        gamma = norm.weight.detach().cpu().to(final)
    rms = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return readout.weight[tokens].to(final) * readout.scale * gamma / rms


def _checked(tokens: Tensor, logits: Tensor) -> Tensor:
    ids = whole_numbers("tokens", tokens, 0, logits.shape[1] - 1)
    if len(ids) != len(logits):
        raise ValueError(f"tokens has {len(ids)} ids; the text has {len(logits)} positions")
    return torch.tensor(ids)


def _other(captured: Capture, layer: int) -> Tensor | None:
    """(l, d_model) what a layer wrote beside its mixer; None where that is rounding."""
    wrote = (captured.block_outputs[layer] - captured.block_inputs[layer])[0]
    parts = captured.components.get(layer)
    left = wrote if parts is None else wrote - parts.written[0]
    return left if float(left.norm()) > OTHER_FROM * float(wrote.norm()) else None
