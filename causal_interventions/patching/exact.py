"""Exact patching: every site, layer and token of a run by the value of another run.

Denoising puts a value of the clean run into the corrupt one: what suffices to bring the answer
back. Noising puts a value of the corrupt run into the clean one: what the answer cannot do
without. Both are measured on one scale, the corrupt run 0 and the clean run 1.

References:
  [1] Meng et al. 2022, "Locating and editing factual associations" (causal tracing)
  [2] Zhang & Nanda 2024, "Towards best practices of activation patching" (arXiv 2309.16042)
  [3] Heimersheim & Nanda 2024, "How to use and interpret activation patching" (arXiv 2404.15255)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.patching.metrics import Answers, measured
from causal_interventions.patching.pairs import TextPair
from causal_interventions.patching.sites import (
    Places,
    Run,
    layers_of_site,
    patched_stream,
    run_kept,
    site_edit,
)
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import find_mixers
from suite_plumbing.models import execution_device
from suite_plumbing.precision import in_full_precision

DIRECTIONS = ("denoising", "noising")

TOKENS_PER_PASS = 4096
"""Tokens over the rows of one patched pass: bounds memory, not results."""


class PairRuns(NamedTuple):
    """The runs of pairs of one length (b of them), and what is measured of them."""

    clean: Run
    corrupt: Run
    answers: Answers
    alignment: Tensor
    """(b, l)"""
    back: int
    """the position read, counted from the end, 1 is the last"""
    metric: str
    clean_value: Tensor
    """(b,) float64"""
    corrupt_value: Tensor
    """(b,) float64"""

    def value(self, logits: Tensor, texts: Tensor) -> Tensor:
        """(r,) float64 metric of predictions made in these texts (r,)."""
        return measured(self.metric, logits, self.answers.rows(texts)).double()


@torch.no_grad()
def pair_runs(
    model: PreTrainedModel, pairs: Sequence[TextPair], metric: str, back: int
) -> PairRuns:
    """Run pairs whose clean, and whose corrupt texts have one length; twice a forward."""
    device = execution_device(model)
    clean, corrupt = (
        run_kept(model, torch.stack([getattr(pair, name) for pair in pairs]).to(device), back)
        for name in ("clean", "corrupt")
    )
    tokens = torch.tensor([pair.answers for pair in pairs], device=device)
    log_p = clean.logits if clean.logits.dtype == torch.float64 else clean.logits.float()
    answers = Answers(tokens, log_p.log_softmax(-1))
    alignment = torch.stack([pair.alignment for pair in pairs]).to(device)
    values = (measured(metric, run.logits, answers).double() for run in (clean, corrupt))
    return PairRuns(clean, corrupt, answers, alignment, back, metric, *values)


@torch.inference_mode(False)
@torch.no_grad()
@in_full_precision
def patched_values(
    model: PreTrainedModel,
    runs: PairRuns,
    site: str,
    *,
    direction: str = "denoising",
    order: Sequence[int] | None = None,
    neurons: Mapping[int, Sequence[int]] | None = None,
) -> Tensor:
    """(b, layers, l) metric with a site of each layer and token patched, one at a time; float64.

    Layers are those of :func:`layers_of_site`, tokens the corrupt text's; nan where no token is
    aligned. ``order`` (b,) names for each pair the one whose run the values are taken from: its
    own, unless a control takes those of another. Cost: for each layer, that and the later layers'
    forward for b l rows, `TOKENS_PER_PASS` tokens at a time; tokens before the first that differs
    change nothing and are not run.
    """
    neurons = neurons or {}
    base, source = _base_and_source(runs, direction)
    layers = layers_of_site(model, site, neurons)
    count, length = runs.alignment.shape
    unchanged = runs.corrupt_value if direction == "denoising" else runs.clean_value
    found = unchanged[:, None, None].repeat(1, len(layers), length)
    found[(runs.alignment < 0)[:, None].expand_as(found)] = torch.nan
    chosen = torch.arange(count) if order is None else torch.tensor(order)
    for places in _places(runs, direction, chosen.to(runs.alignment.device)):
        at = places.token if direction == "denoising" else places.source_token
        for number, layer in enumerate(layers):
            channels = torch.tensor(neurons[layer]) if site == "neurons" else None
            logits = patched_logits(model, base, source, site, layer, places, runs.back, channels)
            found[places.text, number, at] = runs.value(logits, places.text)
    return found.cpu()


def patched_logits(
    model: PreTrainedModel,
    base: Run,
    source: Run,
    site: str,
    layer: int,
    places: Places,
    back: int,
    neurons: Tensor | None = None,
) -> Tensor:
    """(r, V) logits of the base run with one site of one layer patched at each row's token."""
    edits = {}
    if site != "residual":
        edits = {layer: site_edit(site, find_mixers(model)[layer], base, source, places, neurons)}
    stream = patched_stream(base, source, layer, places, site == "residual")
    ids = base.input_ids[places.text]
    with fast_scan(model, edits=edits):
        return forward_from(model, layer, stream, ids, last_logits=back)[:, 0]


def _base_and_source(runs: PairRuns, direction: str) -> tuple[Run, Run]:
    both = (runs.corrupt, runs.clean)
    return both if direction == "denoising" else (runs.clean, runs.corrupt)


def _places(runs: PairRuns, direction: str, order: Tensor) -> Iterator[Places]:
    """Every text and aligned token at which something can change, some rows at a time."""
    aligned = runs.alignment >= 0
    is_own = torch.equal(order, torch.arange(len(order), device=order.device))
    if is_own and runs.clean.input_ids.shape == runs.corrupt.input_ids.shape:
        differs = runs.clean.input_ids != runs.corrupt.input_ids
        moved = runs.alignment != torch.arange(aligned.shape[1], device=order.device)
        changes = differs | moved
        if runs.clean.turns:  # of a Mamba-3's token B is made by what the next one says, too
            changes[:, :-1] |= changes[:, 1:].clone()
        aligned = aligned & (changes.cumsum(1) > 0)
    texts, tokens = aligned.nonzero().unbind(1)
    others = runs.alignment[texts, tokens]
    places = Places(texts, tokens, order[texts], others)
    if direction == "noising":
        places = Places(texts, others, order[texts], tokens)
    length = max(runs.clean.input_ids.shape[1], runs.corrupt.input_ids.shape[1])
    for rows in torch.arange(len(texts)).split(max(1, TOKENS_PER_PASS // length)):
        yield Places(*(x[rows] for x in places))
