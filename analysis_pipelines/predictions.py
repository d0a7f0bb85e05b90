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
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers, num_layers
from mamba_mixers.weights import final_norm, logits_of_stream, mixer_parameters, readout_of
from ssm_component_extractor import capture, with_streams
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
    by_layer: dict[int, Tensor]
    """(l, l) the same of each layer's mixer"""
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


@torch.no_grad()
@in_full_precision
def prediction_maps(model: Any, input_ids: Tensor, tokens: Tensor | None = None) -> PredictionMaps:
    """Attribute one logit after every token of one text (1, l) to all that summed to it.

    ``tokens`` (l,): whose logit, by position; None is the likeliest of each. Raises ValueError for
    another number of tokens, UnsupportedModelError for a model without logits. Cost: a forward pass
    and, for every layer, one map of the full mixer.
    """
    norm, readout, sites = final_norm(model), readout_of(model), find_mixers(model)
    with fast_scan(model):
        captured = capture(model, input_ids, None, list(sites))
        captured = with_streams(model, captured, range(num_layers(model)))
    final = captured.block_outputs[num_layers(model) - 1][0]
    logits = logits_of_stream(model, final.to(execution_device(model), model.dtype)).cpu()
    chosen = logits.argmax(-1) if tokens is None else _checked(tokens, logits)
    with parameters_at_hand(norm):
        gamma = norm.weight.detach().cpu().to(final)
    rms = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    directions = readout.weight[chosen].to(final) * readout.scale * gamma / rms
    embedding = (captured.block_inputs[0][0] * directions).sum(1)
    maps, paths = {}, {}
    for layer in range(num_layers(model)):
        paths[layer] = {}
        if layer in sites:
            parameters = mixer_parameters(sites[layer])
            found = direct_map(captured.components[layer], parameters, directions)
            maps[layer], paths[layer] = found.tokens, dict(found.paths)
        left = _other(captured, layer)
        if left is not None:
            paths[layer][OTHER] = (left * directions).sum(1)
    own = embedding + sum(by_path.get(OTHER, 0.0) for by_path in paths.values())
    sources = torch.stack(list(maps.values())).sum(0) + torch.diag(own)
    bias = torch.zeros_like(embedding)
    if readout.bias is not None:
        bias = readout.bias[chosen].to(bias) * readout.scale
    return PredictionMaps(
        chosen, logits.gather(1, chosen[:, None])[:, 0].to(final), logits.abs().amax(1).to(final),
        sources, maps, paths, embedding, bias,
    )  # fmt: skip


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
