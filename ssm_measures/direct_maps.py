"""Direct attribution of every position of a text at once, in one layer: by source and by path.

What the mixer wrote at token t along a direction of its own, by the token it came from: the rows of
``full_mixer_map`` weighed by where each neuron writes. The numbers of ``neuron_shares`` for every
token in one pass, without the neurons. Letters: the glossary of ``selective_scan``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_mixers.weights import MixerParameters
from selective_scan.operands import with_groups
from ssm_measures.components import SSMComponents
from ssm_measures.full_mixer_maps import full_mixer_map
from suite_plumbing.precision import in_full_precision

MIXER_PATHS = ("skip", "convolution", "state", "bias")
"""Paths of a mixer, as ``neuron_shares`` defines them."""


class DirectMap(NamedTuple):
    """What one mixer wrote at every token of a text along a direction of each."""

    tokens: Tensor
    """(l, l) from source s to token t, by all paths; zero for s > t"""
    paths: dict[str, Tensor]
    """(l,) by path of ``MIXER_PATHS``; they sum to the mixer's write"""


@in_full_precision
def direct_map(
    components: SSMComponents, parameters: MixerParameters, directions: Tensor
) -> DirectMap:
    """What the mixer wrote at each token of one text along that token's direction (l, d_model).

    ``parameters`` with the block's scale, as ``mixer_parameters`` gives them. Raises ValueError as
    ``full_mixer_map``, and for components of several texts. Cost: one such map, and O(l d_inner K).
    """
    if len(components.u) != 1:
        raise ValueError(f"components hold {len(components.u)} texts; pass those of one")
    through = (directions.to(parameters.out_weight) @ parameters.out_weight).to(components.u)
    found = full_mixer_map(
        components, parameters, query_weight=through[None], key_weight=components.conv_input
    )
    skip, convolution = _own(components, parameters, components.gating[0] * through)
    bias = found.bias[0]
    state = found.tokens[0].sum(1) - skip - convolution
    if parameters.out_bias is not None:
        bias = bias + directions.to(bias) @ parameters.out_bias.to(bias)
    paths = (skip, convolution, state, bias)
    return DirectMap(found.tokens[0], dict(zip(MIXER_PATHS, paths, strict=True)))


def _own(
    components: SSMComponents, parameters: MixerParameters, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(l,) what each token took in without the state of tokens before: by its own tap, by others.

    (alpha[t, t] + D) u_t, weighed (l, d_inner), with u_t split by the convolution's taps.
    """
    B, C = with_groups(components.B)[0], with_groups(components.C)[0]
    width, heads = components.head_width, components.delta.shape[2]
    own = ((B * C).sum(-1).repeat_interleave(heads // B.shape[1], 1)) * components.delta[0]
    own = own if components.own_share is None else own * components.own_share[0]
    through = components.channel_skip  # (d_inner,), in a Mamba-3 of several ranks (1, l, d_inner)
    factor = own.repeat_interleave(width, 1) + (through if through.dim() == 1 else through[0])
    x = components.conv_input[0]
    if parameters.conv_weight is None:  # a Mamba-3 has no convolution
        skip = (weight * factor * x).sum(1)
        return skip, torch.zeros_like(skip)
    taps = parameters.conv_weight.to(x)
    before = F.pad(x, (0, 0, taps.shape[1] - 1, 0)).unfold(0, taps.shape[1], 1)
    p = (before * taps).sum(-1)
    p = p if parameters.conv_bias is None else p + parameters.conv_bias.to(p)
    unit = weight * factor * torch.sigmoid(p)
    skip = (unit * taps[:, -1] * x).sum(1)
    earlier = (before[..., :-1] * taps[:, :-1]).sum(-1)
    return skip, (unit * earlier).sum(1)
