"""Direct attribution of every prediction of a text: by source token, by layer and path.

The numbers of ``causal_interventions.logit_parts`` for all positions at once, from one forward
pass over all layers. What attention, MLPs and experts of a hybrid wrote is one path, "other
modules", and counted at the token itself: ``direct_attribution`` leads attention back to its
sources, a position at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mamba_mixers.placement import parameters_at_hand
from mamba_mixers.sites import find_mixers, num_layers
from mamba_mixers.weights import final_norm, mixer_parameters, readout_of
from ssm_component_extractor import capture_by_scan
from ssm_measures.components import Capture
from ssm_measures.direct_maps import direct_map
from suite_plumbing.arguments import whole_numbers
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


def prediction_maps(model: Any, input_ids: Tensor, tokens: Tensor | None = None) -> PredictionMaps:
    """Attribute one logit after every token of one text (1, l) to all that summed to it.

    ``tokens`` (l,): whose logit, by position; None is the likeliest of each. Raises ValueError for
    another number of tokens, UnsupportedModelError for a model without logits. Cost: a forward pass
    by the suite's scan and, for every layer, one map of the full mixer.
    """
    final_norm(model)
    return maps_of_logits(model, *capture_by_scan(model, input_ids), tokens)


@torch.no_grad()
@in_full_precision
def maps_of_logits(
    model: Any, captured: Capture, logits: Tensor, tokens: Tensor | None = None
) -> PredictionMaps:
    """`prediction_maps` of a text that has been read: its `capture_by_scan`, with the logits (l, V)
    of its tokens."""
    norm, readout, sites = final_norm(model), readout_of(model), find_mixers(model)
    final = captured.block_outputs[num_layers(model) - 1][0]
    chosen = logits.argmax(-1).cpu() if tokens is None else _checked(tokens, logits)
    with parameters_at_hand(norm):
        gamma = norm.weight.detach().cpu().to(final)
    rms = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    directions = readout.weight[chosen].to(final) * readout.scale * gamma / rms
    embedding = (captured.block_inputs[0][0] * directions).sum(1)
    sources, paths = torch.diag(embedding), {}
    for layer in range(num_layers(model)):
        paths[layer] = {}
        if layer in sites:
            parameters = mixer_parameters(sites[layer])
            found = direct_map(captured.components[layer], parameters, directions)
            paths[layer] = dict(found.paths)
            sources += found.tokens
        left = _other(captured, layer)
        if left is not None:
            paths[layer][OTHER] = (left * directions).sum(1)
            sources.diagonal().add_(paths[layer][OTHER])
    bias = torch.zeros_like(embedding)
    if readout.bias is not None:
        bias = readout.bias[chosen].to(bias) * readout.scale
    given = logits.gather(1, chosen.to(logits.device)[:, None])[:, 0].to(final)
    largest = logits.abs().amax(1).to(final)
    return PredictionMaps(chosen, given, largest, sources, paths, embedding, bias)


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
