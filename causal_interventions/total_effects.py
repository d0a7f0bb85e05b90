"""Total effects: what a logit loses when what a layer or a source token wrote is taken away.

Only the last token's stream is changed, where the attributed write lies: ``layer_effects`` takes
away all that a layer wrote there, ``source_effects`` what one source token gave there through one
layer's mixer. Later layers then read the changed stream, and the final norm divides by another root
mean square: that is the difference to direct attribution, which holds both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mamba_mixers.recording import record_streams
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import blocks_of, find_mixers
from mamba_mixers.stream_writes import StreamWrites
from mamba_mixers.weights import logits_of_stream, mixer_parameters
from ssm_measures.neuron_shares import neuron_shares
from token_statistics.association import spearman

Streams = Mapping[int, tuple[Tensor, Tensor]]


class Agreement(NamedTuple):
    """How direct and total effects agree over the same parts; None for fewer than three parts, or
    where one of them is the same for all."""

    spearman: float | None
    r2: float | None
    """square of Pearson's correlation: 1 where one is a straight line of the other"""
    count: int
    """number of parts"""


def agreement(direct: ArrayLike, total: ArrayLike) -> Agreement:
    """Agreement of two columns (k,) of effects; pairs that are not both known are left out."""
    pairs = np.array([direct, total], dtype=np.float64)
    x, y = pairs[:, np.isfinite(pairs).all(0)]
    if len(x) < 3 or x.std() == 0.0 or y.std() == 0.0:
        return Agreement(None, None, len(x))
    return Agreement(spearman(x, y), float(np.corrcoef(x, y)[0, 1] ** 2), len(x))


@torch.no_grad()
def layer_effects(
    model: Any, input_ids: Tensor, token: int, contrast: int | None = None
) -> dict[int, float]:
    """By layer: the logit minus that without what the layer wrote at the last token of (1, l).

    Of a token, or of its difference to a contrast. Cost: a forward pass, and half of one a layer.
    """
    with fast_scan(model):
        streams = record_streams(model, range(len(blocks_of(model))), input_ids)
        return {
            layer: float(
                _logit_changes(model, input_ids, streams, layer, _write(streams, layer)[None],
                               token, contrast)[0]
            )
            for layer in streams
        }  # fmt: skip


@torch.no_grad()
def source_effects(
    model: Any,
    input_ids: Tensor,
    writes: StreamWrites,
    layer: int,
    token: int,
    contrast: int | None = None,
    batch_size: int = 32,
) -> Tensor:
    """(l,) the logit minus that without what each source gave the last token in a layer's mixer.

    By every path of ``neuron_shares``; float64, on the CPU. Raises KeyError for a layer without a
    mixer. Cost: for every source a forward pass of the later layers.
    """
    site, trace = find_mixers(model)[layer], writes.layers[layer].trace
    if trace is None:
        raise KeyError(layer)
    parameters = mixer_parameters(site)
    given = neuron_shares(trace, parameters).by_source @ parameters.out_weight.to(trace.u).mT
    with fast_scan(model):
        streams = record_streams(model, range(len(blocks_of(model))), input_ids)
        changes = [
            _logit_changes(model, input_ids, streams, layer, rows, token, contrast)
            for rows in given.split(batch_size)
        ]
    return torch.cat(changes).double().cpu()


def _write(streams: Streams, layer: int) -> Tensor:
    before, after = streams[layer]
    return after[0, -1] - before[0, -1]


def _logit_changes(
    model: Any, input_ids: Tensor, streams: Streams, layer: int, taken: Tensor, token: int,
    contrast: int | None,
) -> Tensor:  # fmt: skip
    """(k,) the logit minus that with each of ``taken`` (k, d_model) missing after the layer."""
    after = streams[layer][1]
    changed = torch.cat([after, after.expand(len(taken), -1, -1)])
    changed[1:, -1] -= taken.to(changed)
    if layer == max(streams):
        logits = logits_of_stream(model, changed[:, -1])
    else:
        ids = input_ids.expand(len(changed), -1)
        logits = forward_from(model, layer + 1, changed, ids)[:, -1]
    value = logits[:, token] - (0.0 if contrast is None else logits[:, contrast])
    return value[0] - value[1:]
