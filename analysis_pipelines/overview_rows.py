"""Rows of the overview, one a layer: the texts joined, and each quantity beside its null.

Related texts weigh as much as one text, with the mean of what they give; nulls are drawn within
texts, related texts alike: near copies of a text count no more than one of them. The statistics of
all layers are tested together, so that one of 24 layers is not found by chance, and the bounds of a
null are those of all layers too. An interval over texts there is from five unrelated texts on, of
the pooled ratio that it stands beside.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis_pipelines.overview_nulls import (
    Sample,
    all_beside_nulls,
    beside_null,
    one_a_group,
    ratio_over_texts,
    untested,
)
from analysis_pipelines.overview_questions import marked, together
from causal_interventions.state_resets import ResetCosts
from ssm_measures.copying import NEAREST
from ssm_measures.gate_tokens import TOKEN_CLASSES
from ssm_measures.layer_overview import LEAST_FOR_SINK, LayerText
from suite_plumbing.result_files import finite_or_none
from token_statistics.description import FloatArray
from token_statistics.several_tests import largest_of_all_bounds, largest_of_all_p

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
    read: ``num_texts``, ``num_independent`` of them, ``num_tokens``, ``longest`` (tokens)."""
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
    questions = together(rows, all_states)
    rows, all_states = marked(rows, all_states, questions["level"])
    return {
        "num_texts": len(texts), "num_independent": len(set(groups)),
        "num_tokens": sum(lengths), "longest": max(lengths),
        "layers": rows, "all_states": all_states, "questions": questions,
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


def _copying(texts: Sequence[TextFacts], layers: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """The copying score of each layer: see `ssm_measures.copying`."""
    by_text = np.array([[text.layers[layer].copying for layer in layers] for text in texts])
    groups = [text.group for text in texts]
    shifted = {
        group: sums
        for group, sums in zip(dict.fromkeys(groups), one_a_group(by_text, groups), strict=True)
        if len(_kept_shifts(sums))
    }
    own = np.array([sums[:, 0] for sums in shifted.values()])
    total = own.sum(axis=0) if shifted else np.zeros((len(layers), 3))
    sample = Sample(round(total[0, 2]), "repeated tokens", len(shifted))
    draws = _shifted_gains(list(shifted.values()), seed)
    if sample.n < MIN_PAIRS or len(draws) < MIN_DRAWS:
        reason = (
            f"{sample.n} tokens come again at least {NEAREST} tokens later; "
            f"copying needs {MIN_PAIRS}, and texts long enough to shift them"
        )
        return [untested(reason, sample) for _ in layers]
    passages = [[text.layers[layer].repeated[0] for layer in layers] for text in texts]
    repeated = one_a_group(passages, groups).sum(axis=0)
    intervals = [ratio_over_texts(own[:, i], positive=True) for i in range(len(layers))]
    tests = all_beside_nulls(_ratio(total), draws, sample, intervals)
    return [
        test | _shares(total[i]) | {"in_repeated_passage": _passage(repeated[i])}
        if test["p_value"] is not None
        else untested("the layer pays no attention to earlier tokens", sample)
        for i, test in enumerate(tests)
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
    by_group = np.array([one_a_group([one.sink_sums for one in m], groups) for m in measures])
    gains = _ratio(by_group.sum(axis=1))
    sample = Sample(*_long_enough(by_group[:, :, 0]))
    draws = gains[:, _SKIPPED:].T
    attending = np.isfinite(gains[:, 0])
    draws = draws[np.isfinite(draws[:, attending]).all(axis=1)]
    if len(draws) < MIN_DRAWS or not attending.any():
        why = _why_no_sink(texts, bool(attending.any()))
        return [untested(why, sample) | {"heads": held} for held in heads]
    intervals = [ratio_over_texts(sums[:, 0], positive=True) for sums in by_group]
    tests = all_beside_nulls(gains[:, 0], draws, sample, intervals)
    return [test | {"heads": held} for test, held in zip(tests, heads, strict=True)]


def _long_enough(first: FloatArray) -> tuple[int, str, int]:
    """Groups of texts that say how much the first token is read, of (layers, groups, 2) sums."""
    number = int(first.any(axis=(0, 2)).sum())
    return number, "texts", number


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
    groups = [text.group for text in texts if text.costs is not None]
    finite = all(np.isfinite(one.by_layer).all() for one in known)
    if not known or not finite:
        lacking = [text.why_no_costs for text in texts if text.why_no_costs]
        none = untested(
            lacking[0] if finite else "the predictions are NaN or infinite",
            Sample(0, "predictions", 0),
        )
        return [none for _ in layers], none
    # A text has no more other tokens than that: further shifts would repeat the first.
    kept = slice(max(text.num_tokens for text in texts))
    by_layer, all_states, by_layer_late, number, late = (
        one_a_group(values, groups)
        for values in zip(*(
            (one.by_layer[kept], one.all_states[kept], one.by_layer_late, one.num_predictions,
             one.num_late) for one in known
        ), strict=True)
    )  # fmt: skip
    tests = _costs(by_layer, number)
    for test, cost in zip(tests, by_layer_late.sum(axis=0) / late.sum(), strict=True):
        test["late"] = float(cost)
    erased = dict(zip(known[0].layers, tests, strict=True))
    others = f"of {len(layers)} layers the states of {len(erased)} are erased, this one's is not"
    untried = untested(others, Sample(0, "predictions", 0))
    rows = [erased.get(layer, untried) for layer in layers]
    return rows, _costs(all_states[:, :, None], late)[0]


def _costs(sums: FloatArray, number: FloatArray) -> list[dict[str, Any]]:
    """Costs a prediction, of sums (groups, 1 + shifts, m) over so many predictions (groups,), and
    in how many groups they are above 0."""
    total = sums.sum(axis=0) / number.sum()
    intervals = [
        ratio_over_texts(np.stack([sums[:, 0, i], number], axis=1)) for i in range(sums.shape[2])
    ]
    sample = Sample(round(number.sum()), "predictions", len(number))
    tests = all_beside_nulls(total[0], total[1:], sample, intervals)
    for test, above in zip(tests, (sums[:, 0] > 0).sum(axis=0), strict=True):
        test["texts_above"] = int(above)
    return tests


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
    sample = Sample(len(pieces), "different tokens", len({text.group for text in texts}))
    return [
        {name: _gate_test(tried.get(name), i, flags, sample) for name, flags in members.items()}
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
    reach: FloatArray  # (layers,) that distance where p is 0.05


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
    far = np.abs(np.concatenate(values)) / spread, np.abs(np.concatenate(draws, axis=1)) / spread
    p, reach = largest_of_all_p(*far), largest_of_all_bounds(*far)[1] * spread
    by_kind = (np.split(one, len(members)) for one in (p, reach))
    return {
        name: _Differences(*parts)
        for name, *parts in zip(members, values, draws, *by_kind, strict=True)
    }


def _difference(means: FloatArray, flags: np.ndarray) -> FloatArray:
    return means[flags].mean(axis=0) - means[~flags].mean(axis=0)


def _gate_test(
    tried: _Differences | None, layer: int, flags: np.ndarray, sample: Sample
) -> dict[str, Any]:
    """Of n different tokens, ``n_of_kind`` of the kind."""
    number = int(flags.sum())
    if tried is None:
        few = min(number, len(flags) - number)
        reason = f"{few} different tokens on one side; a difference needs {MIN_TYPES} on both"
        test = untested(reason, sample)
    else:
        reach = float(tried.reach[layer])
        test = beside_null(
            tried.value[layer], tried.draws[:, layer], tried.p[layer], (-reach, reach), sample
        )
    return test | {"n_of_kind": number}
