"""Rows of the overview, one a layer: the texts joined, and each quantity beside its null.

Related texts weigh as much as one text, with the mean of what they give; nulls are drawn within
texts, related texts alike: near copies of a text count no more than one of them. The statistics of
all layers are tested together, so that one of 24 layers is not found by chance. An interval over
texts there is from five unrelated texts on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis_pipelines.overview_questions import together
from causal_interventions.state_resets import ResetCosts
from ssm_measures.copying import NEAREST
from ssm_measures.gate_tokens import TOKEN_CLASSES
from ssm_measures.layer_overview import LEAST_FOR_SINK, LayerText
from suite_plumbing.result_files import finite_or_none
from token_statistics.description import FloatArray, IntArray
from token_statistics.intervals import mean_interval
from token_statistics.several_tests import largest_of_all_p

KINDS = ("space_leading", "line_break", "punctuation", "digits")
"""Kinds of token whose gates are compared: those that a token has by itself (TOKEN_CLASSES)."""

MIN_PAIRS = 20
"""Tokens that were read before, over all texts; fewer say nothing of copying."""

MIN_TYPES = 5
"""Different tokens of a kind and of the others; fewer say nothing of the kind."""

MIN_DRAWS = 19
"""Fewer draws of a null cannot give a p of 0.05."""

_SKIPPED = 4
"""First tokens of a text that count in no kind: there the memory is only filling."""

_NUM_PERMUTATIONS = 199


class LayerFacts(NamedTuple):
    """What the overview keeps of a layer on one text."""

    measures: LayerText
    copying: FloatArray
    """(1 + shifts, 3): see `copying_sums`"""
    repeated: FloatArray
    """(1, 3): of passages read a second time"""


@dataclass(frozen=True, eq=False)
class TextFacts:
    """What the overview keeps of one text."""

    num_tokens: int
    pieces: tuple[str, ...]
    """decoded, of the tokens in the measures"""
    layers: dict[int, LayerFacts]
    costs: ResetCosts | None
    why_no_costs: str | None
    group: int = 0
    """number of its group of related texts: see `suite_plumbing.related_texts`"""


def joined(texts: Sequence[TextFacts], seed: int = 0) -> dict[str, Any]:
    """``layers``, a row each; ``all_states``; ``questions``, see `overview_questions`; and what was
    read: ``num_texts``, ``num_tokens``, ``longest`` (tokens)."""
    layers = sorted(texts[0].layers)
    groups = [text.group for text in texts]
    resets, all_states = _resets(texts, layers)
    parts = zip(_copying(texts, layers, seed), _sinks(texts, layers), resets,
                _gates(texts, layers, seed), strict=True)  # fmt: skip
    rows = [
        {
            "layer": layer,
            **_measures([text.layers[layer].measures for text in texts], groups),
            "copying": copying,
            "sink": sink,
            "reset": reset,
            "gate": gate,
        }
        for layer, (copying, sink, reset, gate) in zip(layers, parts, strict=True)
    ]
    lengths = [text.num_tokens for text in texts]
    return {
        "num_texts": len(texts), "num_tokens": sum(lengths), "longest": max(lengths),
        "layers": rows, "all_states": all_states, "questions": together(rows, all_states),
    }  # fmt: skip


_MEANS = ("recent_share", "first_share", "self_share", "write", "retain")


_TIMES = ("tokens_to_half", "lag_90")


def _measures(found: Sequence[LayerText], groups: Sequence[int]) -> dict[str, Any]:
    """Medians over independent texts of times, means over them of shares and energies."""

    def each(name: str) -> FloatArray:
        return one_a_group([getattr(one, name) for one in found], groups)

    # None where a state forgets nothing, as where A or delta is 0.
    times = {name: float(np.median(each(name))) for name in _TIMES}
    half_life = float(np.median(each("half_life")))
    return {
        "heads_measured": len(found[0].heads),
        "median_half_life": finite_or_none(half_life),
        **{name: finite_or_none(value) for name, value in times.items()},
        "limited_by_text": any(one.limited_by_text for one in found),
        **{name: finite_or_none(float(each(name).mean())) for name in _MEANS},
    }


def _tested(
    value: float,
    draws: FloatArray,
    p: float,
    n: int,
    unit: str,
    interval: list[float] | None = None,
) -> dict[str, Any]:
    """A statistic beside its null: 95 % of the draws, and p among all that were tried.

    None, with the reason, where it or a draw is a ratio to 0.
    """
    if not (math.isfinite(value) and np.isfinite(draws).all()):
        return _untested("the layer gives nothing to compare with", n, unit)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "value": finite_or_none(value), "null_mean": float(draws.mean()),
        "null_low": float(low), "null_high": float(high), "p_value": finite_or_none(p),
        "n": n, "unit": unit, "num_draws": len(draws), "interval": interval,
        "reason": None,
    }  # fmt: skip


def _untested(reason: str, n: int, unit: str) -> dict[str, Any]:
    names = ("value", "null_mean", "null_low", "null_high", "p_value", "interval")
    return {**dict.fromkeys(names), "n": n, "unit": unit, "num_draws": 0, "reason": reason}


def one_a_group(values: Sequence[Any] | FloatArray, groups: Sequence[int]) -> FloatArray:
    """(groups, ...) values of each text, alike in shape, as means over the texts of each group.

    Infinite stays infinite, unlike in `group_means`.
    """
    array, numbers = np.asarray(values, dtype=np.float64), np.asarray(groups)
    return np.array([array[numbers == one].mean(axis=0) for one in dict.fromkeys(groups)])


def over_texts(
    values: Sequence[float] | FloatArray, groups: Sequence[int] | IntArray
) -> list[float] | None:
    """95 % interval of the mean over texts, those of one group of related texts as one; None for
    fewer than `intervals.MIN_VALUES` of them."""
    by_group: dict[int, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if math.isfinite(value):
            by_group.setdefault(group, []).append(float(value))
    found = mean_interval([float(np.mean(one)) for one in by_group.values()])
    return None if found.low is None or found.high is None else [found.low, found.high]


def _copying(texts: Sequence[TextFacts], layers: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """The copying score of each layer: see `ssm_measures.copying`."""
    by_text = np.array([[text.layers[layer].copying for layer in layers] for text in texts])
    groups = [text.group for text in texts]
    shifted = {
        group: sums
        for group, sums in zip(dict.fromkeys(groups), one_a_group(by_text, groups), strict=True)
        if len(_kept_shifts(sums))
    }
    total = np.sum([sums[:, 0] for sums in shifted.values()], axis=0) if shifted else None
    number = 0 if total is None else round(total[0, 2])
    draws = _shifted_gains(list(shifted.values()), seed)
    if total is None or number < MIN_PAIRS or len(draws) < MIN_DRAWS:
        reason = (
            f"{number} tokens come again at least {NEAREST} tokens later; "
            f"copying needs {MIN_PAIRS}, and texts long enough to shift them"
        )
        return [_untested(reason, number, "repeated tokens") for _ in layers]
    gains = _ratio(total)
    p = largest_of_all_p(gains, draws)
    passages = [[text.layers[layer].repeated[0] for layer in layers] for text in texts]
    repeated = one_a_group(passages, groups).sum(axis=0)
    each, unit = _ratio(by_text[:, :, 0]), "repeated tokens"
    return [
        _tested(gains[i], draws[:, i], p[i], number, unit, over_texts(each[:, i], groups))
        | _shares(total[i])
        | {"in_repeated_passage": _passage(repeated[i])}
        if math.isfinite(p[i])
        else _untested("the layer pays no attention to earlier tokens", number, unit)
        for i in range(len(layers))
    ]


def _kept_shifts(sums: FloatArray) -> np.ndarray:
    """Of a group's (layers, 1 + shifts, 3), the shifts that leave half of its pairs or more."""
    pairs = sums[0, :, 2]
    return np.flatnonzero((pairs[1:] >= pairs[0] / 2) & (pairs[0] > 0)) + 1


def _shifted_gains(groups: Sequence[FloatArray], seed: int) -> FloatArray:
    """(draws, layers): each draw shifts every group of related texts by a number of its own."""
    kept = [_kept_shifts(sums) for sums in groups]
    ways = math.prod(map(len, kept)) if kept else 0
    if ways <= _NUM_PERMUTATIONS:
        chosen = list(itertools.product(*kept)) if kept else []
    else:
        rng = np.random.default_rng(seed)
        chosen = np.stack([rng.choice(shifts, _NUM_PERMUTATIONS) for shifts in kept], 1).tolist()
    return np.array([
        _ratio(np.sum([sums[:, i] for sums, i in zip(groups, one, strict=True)], axis=0))
        for one in chosen
    ])  # fmt: skip


def _shares(sums: FloatArray) -> dict[str, Any]:
    return {"share": sums[0] / sums[2], "share_around": sums[1] / sums[2]}


def _passage(sums: FloatArray) -> dict[str, Any]:
    """The gain where a passage is read a second time, and how many tokens that rests on."""
    return {"value": finite_or_none(float(_ratio(sums))), "n": round(sums[2])}


def _ratio(sums: FloatArray) -> FloatArray:
    """First over second of the last axis; nan where the second is 0."""
    first, second = sums[..., 0], sums[..., 1]
    return np.divide(first, second, out=np.full(first.shape, np.nan), where=second > 0)


def _sinks(texts: Sequence[TextFacts], layers: Sequence[int]) -> list[dict[str, Any]]:
    """|alpha| on the first token beside the tokens after it; null: other tokens in its place."""
    measures = [[text.layers[layer].measures for text in texts] for layer in layers]
    heads = [sorted({head for one in of_layer for head in one.sink_heads}) for of_layer in measures]
    groups = [text.group for text in texts]
    sums = [one_a_group([one.sink_sums for one in m], groups).sum(axis=0) for m in measures]
    gains, number = np.array([_ratio(one) for one in sums]), len(set(groups))
    draws = gains[:, _SKIPPED:].T
    attending = np.isfinite(gains[:, 0])
    draws = draws[np.isfinite(draws[:, attending]).all(axis=1)]
    if len(draws) < MIN_DRAWS or not attending.any():
        why = _why_no_sink(texts, bool(attending.any()))
        return [_untested(why, number, "texts") | {"heads": held} for held in heads]
    p = largest_of_all_p(gains[:, 0], draws)
    return [
        _tested(gains[i, 0], draws[:, i], p[i], number, "texts") | {"heads": heads[i]}
        for i in range(len(layers))
    ]


def _why_no_sink(texts: Sequence[TextFacts], is_attending: bool) -> str:
    if is_attending:
        return f"texts too short to put {MIN_DRAWS} other tokens in the first one's place"
    longest = max(len(text.pieces) for text in texts)
    if longest < LEAST_FOR_SINK:
        return f"at most {longest} tokens are read of a text; it takes {LEAST_FOR_SINK}"
    return "no layer attends to anything"


def _resets(
    texts: Sequence[TextFacts], layers: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What erasing the state costs, by layer, and all states together; nats a token."""
    known = [text.costs for text in texts if text.costs is not None]
    unit = "predictions"
    finite = all(np.isfinite(one.by_layer).all() for one in known)
    if not known or not finite:
        lacking = [text.why_no_costs for text in texts if text.why_no_costs]
        reason = lacking[0] if finite else "the predictions are NaN or infinite"
        return [_untested(reason, 0, unit) for _ in layers], _untested(reason, 0, unit)
    groups = [text.group for text in texts if text.costs is not None]
    number, late = (
        float(one_a_group([getattr(one, name) for one in known], groups).sum())
        for name in ("num_predictions", "num_late")
    )
    # A text has no more other tokens than that: further shifts would repeat the first.
    kept = slice(max(text.num_tokens for text in texts))
    total = one_a_group([one.by_layer[kept] for one in known], groups).sum(axis=0) / number
    p = largest_of_all_p(total[0], total[1:])
    each = np.array([one.by_layer[0] / one.num_predictions for one in known])
    erased = {layer: i for i, layer in enumerate(known[0].layers)}
    others = f"of {len(layers)} layers the states of {len(erased)} are erased, this one's is not"
    rows = [
        _tested(
            total[0, i], total[1:, i], p[i], round(number), unit, over_texts(each[:, i], groups)
        )
        if (i := erased.get(layer)) is not None
        else _untested(others, 0, unit)
        for layer in layers
    ]
    at_once = one_a_group([one.all_states[kept] for one in known], groups).sum(axis=0) / late
    p_all = largest_of_all_p(at_once[:1], at_once[1:, None])[0]
    by_text = [one.all_states[0] / one.num_late for one in known]
    interval = over_texts(by_text, groups)
    return rows, _tested(at_once[0], at_once[1:], p_all, round(late), unit, interval)


def _gates(
    texts: Sequence[TextFacts], layers: Sequence[int], seed: int
) -> list[dict[str, dict[str, Any]]]:
    """By layer and kind: mean openness of the kind's different tokens minus that of the others.

    Each different token counts once, with its mean; null: kinds exchanged among them. A model that
    learned nothing gives tokens gates of their own, but no kind of them one in common.
    """
    pieces, means = _by_type(texts, layers)
    members = {name: _members(name, pieces) for name in KINDS}
    known = {
        name: flags for name, flags in members.items()
        if min(flags.sum(), (~flags).sum()) >= MIN_TYPES
    }  # fmt: skip
    tried = _differences(means, known, seed)
    return [
        {name: _gate_test(tried.get(name), i, flags) for name, flags in members.items()}
        for i in range(len(layers))
    ]


def _by_type(texts: Sequence[TextFacts], layers: Sequence[int]) -> tuple[list[str], FloatArray]:
    """The different tokens of all texts, and their mean openness (types, layers)."""
    sums: dict[str, FloatArray] = {}
    counts: dict[str, int] = {}
    for text in texts:
        series = np.array([text.layers[layer].measures.openness for layer in layers]).T
        for piece, row in list(zip(text.pieces, series, strict=True))[_SKIPPED:]:
            sums[piece] = sums.get(piece, 0.0) + row
            counts[piece] = counts.get(piece, 0) + 1
    means = [sums[piece] / counts[piece] for piece in sums]
    return list(sums), np.array(means).reshape(-1, len(layers))


def _members(kind: str, pieces: Sequence[str]) -> np.ndarray:
    # Position and earlier tokens play no part in these kinds.
    return np.array([bool(TOKEN_CLASSES[kind](piece, 1, ())) for piece in pieces], dtype=bool)


class _Differences(NamedTuple):
    value: FloatArray  # (layers,)
    draws: FloatArray  # (draws, layers)
    p: FloatArray  # (layers,) over all layers and kinds, of the distance from chance


def _differences(
    means: FloatArray, members: Mapping[str, np.ndarray], seed: int
) -> dict[str, _Differences]:
    if not members:
        return {}
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(means)) for _ in range(_NUM_PERMUTATIONS)]
    values = [_difference(means, flags) for flags in members.values()]
    draws = [
        np.array([_difference(means, flags[order]) for order in orders])
        for flags in members.values()
    ]
    spread = np.maximum(np.concatenate(draws, axis=1).std(axis=0), 1e-12)
    p = largest_of_all_p(
        np.abs(np.concatenate(values)) / spread, np.abs(np.concatenate(draws, axis=1)) / spread
    )
    return {
        name: _Differences(*parts)
        for name, *parts in zip(members, values, draws, np.split(p, len(members)), strict=True)
    }


def _difference(means: FloatArray, flags: np.ndarray) -> FloatArray:
    return means[flags].mean(axis=0) - means[~flags].mean(axis=0)


def _gate_test(tried: _Differences | None, layer: int, flags: np.ndarray) -> dict[str, Any]:
    number = int(flags.sum())
    if tried is None:
        few = min(number, len(flags) - number)
        reason = f"{few} different tokens on one side; a difference needs {MIN_TYPES} on both"
        return _untested(reason, number, "different tokens")
    return _tested(
        tried.value[layer], tried.draws[:, layer], tried.p[layer], number, "different tokens"
    )
