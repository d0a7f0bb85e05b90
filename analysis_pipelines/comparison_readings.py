"""Several models read the same texts: their attention and layers measured, and compared in pairs.

The numbers behind ``model_comparison``, a text at a time: each model's attention maps (implicit,
|alpha| mean over channels; softmax, mean over heads; every row divided by its sum) and the stream
after each layer, over the pieces of the text that all tokenizers share; measures of every map; and
for every two models the comparisons of ``token_statistics.layer_likeness`` with their draws of the
null.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.shared_pieces import Pieces, pooled_map, pooled_rows
from mamba_mixers.attention_layers import (
    attending_layers,
    model_layers_by_name,
    token_limit,
    traced_layers,
)
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.untrained_twins import twin_seeds, untrained_twin
from ssm_component_extractor import capture
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import memory_kernel, query_statistics, row_shares
from suite_plumbing.arguments import resolve_layer_indices
from suite_plumbing.models import execution_device, require_tokenizer, resolve_model
from suite_plumbing.progress import progress
from suite_plumbing.result_files import StrPath
from suite_plumbing.texts import EncodedText
from token_statistics.description import FloatArray, IntArray
from token_statistics.layer_likeness import (
    RankedRows,
    agreement,
    causal_ranks,
    cka,
    first_rows,
    lag_profile,
    over_texts,
    unit_grams,
    window_ranks,
    window_size,
)
from token_statistics.text_groups import members
from token_statistics.time_shift_nulls import NUM_SHIFTS, draw_shifts, why_too_few
from token_statistics.twin_bounds import FRESH

QUERY_MEASURES = ("entropy_share", "first_share", "self_share", "mean_distance")

KERNEL_MEASURES = ("mean_lag", "median_lag", "lag_90")

MAP_MEASURES = (*QUERY_MEASURES, *(f"kernel_{name}" for name in KERNEL_MEASURES))
"""Measures of a map, as in ``ssm_measures.attention_measures``: means over queries, then lags of
the kernel. Shares are in [0, 1], distances and lags in pieces."""

KERNEL_LAGS = 64
"""Lags of the kernels that are kept, from 0."""


class Site(NamedTuple):
    """One attention of one layer; as a string "layer_3.implicit"."""

    layer: int
    kind: str
    """implicit (of an SSM) or softmax"""

    def __str__(self) -> str:
        return f"layer_{self.layer}.{self.kind}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to compare, with what it has to compare."""

    name: str
    """what it is called in the results; no two have the same"""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: list[int]
    """layers compared, ascending"""
    sites: list[Site]
    """their attentions; at least one"""
    num_layers: int
    max_tokens: int
    """longest text, in its own tokens"""


class Reading(NamedTuple):
    """What one model made of one text, over its pieces."""

    shares: list[Tensor]
    """by site: (pieces, pieces), each row divided by its sum"""
    outputs: list[Tensor]
    """by layer: (pieces, d_model) residual stream after the layer"""
    replay_error: float | None
    """largest of its mixers'; None without a mixer"""


@dataclass(frozen=True, eq=False)
class PairValues:
    """Two models' layers compared, one entry a text: matrices (p, q) and draws (m, p, q)."""

    causal: list[FloatArray] = field(default_factory=list)
    """agreement over all sources of each query; rows and columns are sites"""
    lag_only: list[FloatArray] = field(default_factory=list)
    """the same where one side is its own ``lag_profile``; mean over which of the two"""
    other_text: list[FloatArray] = field(default_factory=list)
    """the same with the second model's map of the text before; none for the first text, and where
    the two are related"""
    windowed: list[FloatArray] = field(default_factory=list)
    """agreement over the same lags for every query"""
    windowed_draws: list[FloatArray] = field(default_factory=list)
    """its null: the second model's queries shifted in time; empty without a null"""
    cka: list[FloatArray] = field(default_factory=list)
    """debiased CKA; rows and columns are layers"""
    cka_draws: list[FloatArray] = field(default_factory=list)
    """its null: the second model's tokens shifted in time; empty without a null"""


@dataclass(frozen=True, eq=False)
class MapReadings:
    """Everything measured of some subjects on some texts."""

    measures: dict[str, FloatArray]
    """by model: (texts, sites, MAP_MEASURES), nan where undefined"""
    kernels: dict[str, FloatArray]
    """by model: (texts, sites, lags), as far as KERNEL_LAGS and the shortest text reach"""
    pairs: dict[tuple[str, str], PairValues]
    replay_errors: dict[str, float | None]


class Shifts(NamedTuple):
    """Time shifts of the nulls, (m, texts) each, or none with the reason; related texts alike."""

    tokens: IntArray | None
    queries: IntArray | None
    reason: str | None
    groups: Sequence[int]
    """of each text: number of its group of related texts"""


class _Features(NamedTuple):
    """What the comparisons on one text take from one model's reading."""

    causal: RankedRows
    lag_only: RankedRows
    windowed: RankedRows
    grams: FloatArray


def subjects_of(
    models: Sequence[PreTrainedModel | StrPath],
    tokenizers: Sequence[PreTrainedTokenizerBase | StrPath | None] | None = None,
    layer_indices: Sequence[int] | str | None = "all",
    max_sequence_length: int = 512,
) -> list[Subject]:
    """The models to compare, each checked before any text is read.

    Raises ValueError for fewer than two models, or tokenizers that are not one for each; for a
    model without attention of either kind in the layers chosen, or one that is not causal; and as
    ``mamba_mixers.attention_layers.token_limit``.
    """
    given = [None] * len(models) if tokenizers is None else list(tokenizers)
    if len(models) < 2 or len(given) != len(models):
        raise ValueError(
            f"models has {len(models)} entries and tokenizers {len(given)}; a comparison needs two "
            "models or more, and a tokenizer (or None) for each"
        )
    subjects: list[Subject] = []
    for one, tokenizer in zip(models, given, strict=True):
        model, loaded, _ = resolve_model(one, tokenizer)
        name = _unused_name(model, [subject.name for subject in subjects])
        ready = require_tokenizer(model, loaded)
        subjects.append(_subject(name, model, ready, layer_indices, max_sequence_length))
    return subjects


def twins_of(
    subjects: Sequence[Subject], number: int, seed: int = 0, kind: str = FRESH
) -> list[Subject]:
    """The subjects with fresh or permuted weights: the ``number``-th twin of every one.

    Each has a seed of its own, or two models of one configuration would have the same twin.
    """
    count = len(subjects)
    seeds = twin_seeds(count * (number + 1), seed)[-count:]
    return [
        replace(one, model=untrained_twin(one.model, own, kind))
        for one, own in zip(subjects, seeds, strict=True)
    ]


def measure(
    subjects: Sequence[Subject],
    encoded: Mapping[str, Sequence[EncodedText]],
    pieces: Sequence[Mapping[str, Pieces]],
    shifts: Shifts,
) -> MapReadings:
    """Read every text with every model and compare every two models on it, a text at a time.

    ``encoded`` and each of ``pieces`` are by name of the model. Memory: the maps of all layers on
    one text a few times, and their ranks on the text before.
    """
    names = [subject.name for subject in subjects]
    pairs = {pair: PairValues() for pair in itertools.combinations(names, 2)}
    measures: dict[str, list[list[list[float]]]] = {name: [] for name in names}
    kernels: dict[str, list[FloatArray]] = {name: [] for name in names}
    errors: dict[str, list[float]] = {name: [] for name in names}
    lags = min(KERNEL_LAGS, *(num_pieces(one) for one in pieces))
    before: dict[str, _Features] = {}
    for index, aligned in enumerate(progress(pieces, desc="texts")):
        features = {}
        for subject in subjects:
            name = subject.name
            reading = read_text(subject, encoded[name][index].input_ids, aligned[name])
            found = [map_measures(one) for one in reading.shares]
            measures[name].append([values for values, _ in found])
            kernels[name].append(np.stack([kernel[:lags] for _, kernel in found]))
            errors[name] += [] if reading.replay_error is None else [reading.replay_error]
            features[name] = _features(reading)
        for (a, b), values in pairs.items():
            _compare(features[a], features[b], values, shifts, index)
            if before and shifts.groups[index] != shifts.groups[index - 1]:
                values.other_text.append(_on_another_text(features[a].causal, before[b].causal))
        before = features
    return MapReadings(
        {name: np.array(found) for name, found in measures.items()},
        {name: np.stack(found) for name, found in kernels.items()},
        pairs,
        {name: max(found, default=None) for name, found in errors.items()},
    )


@torch.no_grad()
def read_text(subject: Subject, input_ids: Sequence[int], pieces: Pieces) -> Reading:
    """Attention of every site and the stream after every layer on one text, over its pieces.

    The tokens beyond the shared pieces are not read. One forward pass; two where layers lie behind
    the last one with an SSM, for its capture ends there. Raises RuntimeError for a layer that
    attended in the probe and does not now.
    """
    model, layers = subject.model, subject.layers
    ids = torch.tensor(input_ids)[None, : len(pieces.groups)].to(execution_device(model))
    with_ssm = [site.layer for site in subject.sites if site.kind == "implicit"]
    with traced_layers(model) as traces:
        components = capture(model, ids, None, with_ssm).components if with_ssm else {}
        if not with_ssm or max(layers) > max(with_ssm):
            model.base_model(input_ids=ids, use_cache=False)
    shares = []
    for layer, kind in subject.sites:
        implicit = kind == "implicit"
        weights = mean_map(components[layer], absolute=True) if implicit else traces[layer].softmax
        if weights is None:
            raise RuntimeError(f"layer {layer} of {subject.name} gave no attention weights")
        shares.append(pooled_map(row_shares(weights)[0], pieces))
    outputs = [pooled_rows(traces[layer].output[0], pieces) for layer in layers]
    errors = [parts.replay_error for parts in components.values()]
    return Reading(shares, outputs, max(errors, default=None))


def map_measures(shares: Tensor) -> tuple[list[float], FloatArray]:
    """MAP_MEASURES of one map (l, l) and its memory kernel (l,); nan where undefined.

    ``shares`` sum to 1 over the sources of each query (`row_shares` of
    `ssm_measures.attention_measures`).
    """
    mask = torch.ones(1, len(shares), dtype=torch.int64)
    by_query = query_statistics(shares[None], mask)
    kernel = memory_kernel(shares[None], mask)
    means = [float(getattr(by_query, name).double().nanmean()) for name in QUERY_MEASURES]
    lags = [getattr(kernel, name)[0] for name in KERNEL_MEASURES]
    return [*means, *lags], kernel.kernel[0].double().numpy()


def shifts_for(
    pieces: Sequence[Mapping[str, Pieces]], seed: int, groups: Sequence[int] | None = None
) -> Shifts:
    """Seeded shifts of the tokens of the texts, and of the queries of the windowed agreement.

    ``groups``: of each text (default: none are related); those of one group have the same shifts,
    of which the shortest of them allows.
    """
    given = list(range(len(pieces))) if groups is None else list(groups)
    together = members(given)
    lengths = [min(num_pieces(pieces[i]) for i in texts) for texts in together]
    queries = [length - window_size(length) for length in lengths]
    if reason := why_too_few(lengths) or why_too_few(queries):
        return Shifts(None, None, reason, given)
    column = {i: number for number, texts in enumerate(together) for i in texts}
    of_each = [column[i] for i in range(len(pieces))]
    of_tokens, of_queries = (
        draw_shifts(counts, NUM_SHIFTS, seed)[:, of_each] for counts in (lengths, queries)
    )
    return Shifts(of_tokens, of_queries, None, given)


def num_pieces(aligned: Mapping[str, Pieces]) -> int:
    """Pieces of one text, the same for every model."""
    return next(iter(aligned.values())).num_pieces


def _subject(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layer_indices: Sequence[int] | str | None,
    max_sequence_length: int,
) -> Subject:
    try:
        with_ssm = list(find_mixers(model))
    except UnsupportedModelError:
        with_ssm = []
    with_softmax = attending_layers(model)
    if not with_ssm and not with_softmax:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) has neither a selective SSM nor softmax attention in "
            "any layer, so that it has no attention to compare; pass Mambas, attention models such "
            "as GPT-NeoX, or hybrids of the two"
        )
    count = len(model_layers_by_name(model))
    layers = resolve_layer_indices(layer_indices, range(count), count)
    kinds = (("implicit", with_ssm), ("softmax", with_softmax))
    sites = [Site(layer, kind) for layer in layers for kind, having in kinds if layer in having]
    if not sites:
        raise ValueError(
            f"layer_indices names layers {layers}, none of which attends in {name}; those that do: "
            f"{sorted({*with_ssm, *with_softmax})}"
        )
    limit = token_limit(model, max_sequence_length)
    return Subject(name, model, tokenizer, layers, sites, count, limit)


def _unused_name(model: PreTrainedModel, used: Sequence[str]) -> str:
    """The model's name on the hub, or of its folder, or class; numbered where it was used."""
    given = str(getattr(model.config, "name_or_path", "") or "")
    path = Path(given)
    if given and path.exists():
        given = path.resolve().name
    name = base = given or type(model).__name__
    number = 2
    while name in used:
        name, number = f"{base} ({number})", number + 1
    return name


def _features(reading: Reading) -> _Features:
    return _Features(
        causal_ranks(reading.shares),
        causal_ranks([lag_profile(one) for one in reading.shares]),
        window_ranks(reading.shares),
        unit_grams(reading.outputs),
    )


def _compare(a: _Features, b: _Features, values: PairValues, shifts: Shifts, text: int) -> None:
    """Add one text's comparisons to ``values``."""
    values.causal.append(agreement(a.causal, b.causal))
    by_lag = [agreement(a.lag_only, b.causal), agreement(a.causal, b.lag_only)]
    values.lag_only.append(over_texts(by_lag)[0])  # the mean of those that are defined
    values.windowed.append(agreement(a.windowed, b.windowed))
    values.cka.append(cka(a.grams, b.grams))
    if shifts.queries is not None and shifts.tokens is not None:
        queries, tokens = shifts.queries[:, text], shifts.tokens[:, text]
        draws = [agreement(a.windowed, b.windowed, int(shift)) for shift in queries]
        values.windowed_draws.append(np.stack(draws))
        values.cka_draws.append(np.stack([cka(a.grams, b.grams, int(s)) for s in tokens]))


def _on_another_text(a: RankedRows, b: RankedRows) -> FloatArray:
    """Causal agreement of maps of two texts, as far as the shorter reaches."""
    length = min(a.defined.shape[1], b.defined.shape[1])
    return agreement(first_rows(a, length), first_rows(b, length))
