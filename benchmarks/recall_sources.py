"""What a source gives a logit through the state: directly, by closed form, against its knockout.

In the small models of ``recall_circuit.py``. Direct: the term alpha[t, s] u_s of y at the last
token t, through the gate, the gated norm of Mamba-2 and the final norm, all at their real values,
onto the logit of the answer less that of the twin's. Knockout: the same difference minus that with
the term taken out (``hide_source``), a total effect: in the first layer the second makes something
of it, in both the norms change. R2 is the square of Pearson's r over all texts and sources.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.interventions import hide_source
from causal_interventions.patching.tasks import TaskPairs
from mamba_mixers.recording import kept_streams
from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import MixerSite, find_mixers
from mamba_mixers.weights import logit_directions, mixer_parameters
from selective_scan.attention import attention_row


class SourceAgreement(NamedTuple):
    """Direct values and knockouts of single sources of one layer."""

    layer: int
    direct: Tensor
    """(texts, l)"""
    knockout: Tensor
    """(texts, l)"""

    @property
    def r2(self) -> float:
        """Square of Pearson's r over texts and sources."""
        both = torch.stack([self.direct.flatten(), self.knockout.flatten()])
        return float(torch.corrcoef(both)[0, 1]) ** 2

    @property
    def slope(self) -> float:
        """Of the knockout on the direct value, by least squares through their means."""
        direct, knockout = (x.flatten() - x.mean() for x in (self.direct, self.knockout))
        return float((direct * knockout).sum() / direct.square().sum())


@torch.no_grad()
def source_agreement(model: PreTrainedModel, pairs: TaskPairs) -> list[SourceAgreement]:
    """Of every layer, over the clean texts. Cost: a forward pass a text, source and layer."""
    replays: dict[int, MixerReplay] = {}
    with fast_scan(model, observe=replays.__setitem__), kept_streams(model) as streams:
        model(input_ids=pairs.clean, use_cache=False)
    last = streams[max(streams)][1][:, -1]
    norm = (last.square().mean(1) + _epsilon(model)).sqrt()
    rows = logit_directions(model)
    directions = (rows[pairs.answers[:, 0]] - rows[pairs.answers[:, 1]]) / norm[:, None]
    return [
        SourceAgreement(
            layer,
            direct_by_source(site, replays[layer], directions),
            torch.stack([
                knockout_by_source(model, layer, streams[layer][0][i], pairs, i)
                for i in range(len(pairs))
            ]),
        )
        for layer, site in find_mixers(model).items()
    ]  # fmt: skip


def _epsilon(model: Any) -> float:
    return float(model.config.layer_norm_epsilon)


def direct_by_source(site: MixerSite, replay: MixerReplay, directions: Tensor) -> Tensor:
    """(b, l) of what the last token takes from each source, onto directions (b, d_model)."""
    factor = F.silu(replay.gate)
    factor = factor if replay.norm_scale is None else factor * replay.norm_scale
    onto = directions @ mixer_parameters(site).out_weight
    return attention_row(
        replay.delta, replay.A, replay.B, replay.C, -1,
        query_weight=factor * onto[:, None], key_weight=replay.u,
    )  # fmt: skip


def knockout_by_source(
    model: PreTrainedModel, layer: int, stream: Tensor, pairs: TaskPairs, text: int
) -> Tensor:
    """(l,) the difference of the answers' logits, less that without each source's term."""
    ids, (first, second) = pairs.clean[text : text + 1], pairs.answers[text].tolist()
    length = ids.shape[1]
    edits = hide_source(range(length), layer, [length - 1] * length)
    values = []
    for given in ({}, edits):
        with fast_scan(model, edits=given):
            rows = stream[None].expand(length if given else 1, -1, -1)
            logits = forward_from(model, layer, rows, ids.expand(len(rows), -1), last_logits=1)
        values.append(logits[:, 0, first] - logits[:, 0, second])
    return values[0] - values[1]
