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
from mamba_mixers.replay import MixerMemory
from mamba_mixers.running import fast_scan, forward_from, remembers_in_mixers_alone
from mamba_mixers.sites import find_mixers
from suite_plumbing.models import execution_device
from suite_plumbing.precision import in_full_precision

DIRECTIONS = ("denoising", "noising")

TOKENS_PER_PASS = 4096
"""Tokens over the rows of one patched pass: bounds memory, not results."""

TOKENS_AT_LEAST = 512
"""Tokens of a patched pass below which rows that begin later join it."""

SPANS = 8
"""Parts of a text within which patched tokens begin a pass together."""


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


class _Pass(NamedTuple):
    """Places that are patched at once."""

    places: Places
    start: int
    """the first token that is run: nothing is patched before it"""
    memories: dict[int, MixerMemory]
    """by layer, of the base run's texts before that token"""


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
    forward for b l rows, `TOKENS_PER_PASS` tokens at a time. Tokens before the first that differs,
    and after the one that is read, change nothing and are not patched; a model that remembers in
    its mixers alone runs each row from about its patched token on, half of the text on average.
    """
    neurons = neurons or {}
    base, source = _base_and_source(runs, direction)
    layers = layers_of_site(model, site, neurons)
    count, length = runs.alignment.shape
    unchanged = runs.corrupt_value if direction == "denoising" else runs.clean_value
    found = unchanged[:, None, None].repeat(1, len(layers), length)
    found[(runs.alignment < 0)[:, None].expand_as(found)] = torch.nan
    chosen = torch.arange(count) if order is None else torch.tensor(order)
    every = _places(runs, direction, chosen.to(runs.alignment.device))
    for one in _passes(model, base, every):
        places = one.places
        at = places.token if direction == "denoising" else places.source_token
        for number, layer in enumerate(layers):
            channels = torch.tensor(neurons[layer]) if site == "neurons" else None
            logits = _patched_logits(model, base, source, site, layer, one, runs.back, channels)
            found[places.text, number, at] = runs.value(logits, places.text)
    return found.cpu()


def _patched_logits(
    model: PreTrainedModel, base: Run, source: Run, site: str, layer: int, one: _Pass, back: int,
    neurons: Tensor | None,
) -> Tensor:  # fmt: skip
    """(r, V) logits of the base run with one site of one layer patched at each row's token."""
    places, start = one.places, one.start
    edits = {}
    if site != "residual":
        mixer = find_mixers(model)[layer]
        edits = {layer: site_edit(site, mixer, base, source, places, neurons, start)}
    stream = patched_stream(base, source, layer, places, site == "residual", start)
    ids = base.input_ids[places.text, start:]
    memories = {i: one.memories[i].each(lambda x: x[places.text]) for i in one.memories}
    with fast_scan(model, edits=edits, memories=memories or None):
        return forward_from(model, layer, stream, ids, last_logits=back)[:, 0]


def _base_and_source(runs: PairRuns, direction: str) -> tuple[Run, Run]:
    both = (runs.corrupt, runs.clean)
    return both if direction == "denoising" else (runs.clean, runs.corrupt)


def _places(runs: PairRuns, direction: str, order: Tensor) -> Places:
    """Every text and aligned token at which something can change."""
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
    base, _ = _base_and_source(runs, direction)
    return _rows(places, places.token <= base.input_ids.shape[1] - runs.back)


def _rows(places: Places, chosen: Tensor) -> Places:
    return Places(*(x[chosen] for x in places))


def _passes(model: PreTrainedModel, base: Run, places: Places) -> Iterator[_Pass]:
    """Some rows at a time, with what their texts' tokens before them have left."""
    length = base.input_ids.shape[1]
    if not remembers_in_mixers_alone(model):
        for rows in torch.arange(len(places.text)).split(max(1, TOKENS_PER_PASS // length)):
            yield _Pass(_rows(places, rows), 0, {})
        return
    memories: dict[int, MixerMemory] = {}
    read = 0
    for start, rows in _by_start(places.token, length):
        if start > read:
            part = base.input_ids[:, read:start]
            with fast_scan(model, memories=memories):
                model(input_ids=part, use_cache=False, return_dict=True, logits_to_keep=1)
            read = start
        yield _Pass(_rows(places, rows), start, dict(memories))


def _by_start(tokens: Tensor, length: int) -> Iterator[tuple[int, Tensor]]:
    """Rows whose tokens lie close to each other, by the first of them."""
    order = tokens.argsort(stable=True)
    while len(order):
        start = int(tokens[order[0]])
        rows = order[: max(1, TOKENS_PER_PASS // (length - start))]
        is_near = tokens[rows] < start + max(1, length // SPANS)
        is_little = torch.arange(len(rows), device=rows.device) * (length - start) < TOKENS_AT_LEAST
        rows = rows[is_near | is_little]
        yield start, rows.sort().values  # texts together, of whose states one is kept at a time
        order = order[len(rows) :]
