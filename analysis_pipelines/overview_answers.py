"""What the overview may say: a sentence for each question, with its numbers and its place.

A sentence is said where what it rests on exceeds its null among all layers and all questions tried
(`overview_questions`) and is of a size worth a name; otherwise it says why nothing is said.
Half-lives are the weights' own and have no null: of them a sentence is said only where layers fall
into groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from analysis_pipelines.overview_questions import ALPHA
from result_views.layer_names import capitalised, layer_names

GROUP_RATIO = 4.0
"""Half-lives that differ by this factor are groups: those of one initialisation differ by less than
2 between layers, and four times as long a memory has 84 % left when the other has half."""

COPY_GAIN = 2.5
"""The source of a copy takes two and a half times what the lags around take: layers of the demo
model whose map shows no copying reach 2.0, for the source's key holds the token before it, which is
the query's; those of its untrained twins 1.3."""

COPY_SHARE = 0.01
"""A copy is a hundredth of what its query takes: where a layer has forgotten all but the last few
tokens, the gain is a ratio of two numbers near 0."""

SINK_GAIN, SINK_SHARE = 3.0, 0.1
"""The first token takes three times what those after it take, and a tenth of all attention: with
less it changes little of what is read from the rest."""

RESET_COST = 0.02
"""Nats a token: 2 % of perplexity, what separates one training run from another."""

GATE_DIFFERENCE = 0.3
"""Standard deviations of ln delta, mean over heads."""

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """One question, answered or not."""

    question: str
    sentence: str
    said: bool
    """whether something is claimed; otherwise the sentence says why not"""
    layers: tuple[int, ...] = ()
    """those that the sentence is about"""
    values: tuple[float, ...] = ()
    """the number of each of them, or the one of all"""
    null: tuple[float, float] | None = None
    """95 % of the draws of the null, from the smallest end to the largest of these layers"""
    interval: tuple[float, float] | None = None
    """95 % over texts, of the first of the values; None for fewer than 5 texts"""
    n: int = 0
    unit: str = "tokens"
    path: str = "overview.layers"
    """where the numbers stand in the results"""
    adjusted_p: float | None = None
    """smallest p of the question, adjusted over those tried; None where there is no test"""
    num_questions: int = 0
    """behind adjusted_p"""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def answers(found: Section) -> list[Answer]:
    """One answer a question, in a fixed order: of the section that `overview_rows.joined` makes."""
    tried = found["questions"]
    return [
        replace(
            answer(found),
            adjusted_p=tried["adjusted"].get(question),
            num_questions=tried["num_tested"] if question in tried["adjusted"] else 0,
        )
        for question, answer in QUESTIONS.items()
    ]


def memory_answer(found: Section) -> Answer:
    """How long a state keeps a token, layers in groups."""
    question, path = "memory", "overview.layers[].median_half_life"
    halves, lasting = {}, []
    for row in found["layers"]:
        half_life = row["median_half_life"]
        halves |= {} if half_life is None else {row["layer"]: half_life}
        lasting += [row["layer"]] if half_life is None else []
    if not halves:
        return Answer(question, "No layer's state forgets: A or delta is 0.", False, path=path)
    without = f" Without a half-life: {layer_names(lasting)}." if lasting else ""
    groups = half_life_groups(halves)
    values = tuple(halves.values())
    common = {"n": found["num_tokens"], "path": path, "layers": tuple(halves), "values": values}
    if len(groups) < 2:
        return Answer(
            question, f"No layer keeps tokens much longer than another: median half-life "
            f"{_range(values)} tokens in all of them.{without}", False, **common,
        )  # fmt: skip
    first, *others = (
        f"{layer_names(group)} {{}} {_approximately([halves[layer] for layer in group])}"
        for group in groups
    )
    keep = f"{_verb('keep', groups[0])} a token for"
    parts = [first.format(keep), *(one.format("for") for one in others)]
    length = found["longest"]
    longest = halves[groups[0][0]]
    limit = f"; no text here is longer than {length} tokens" if longest > length else ""
    sentence = (
        f"{capitalised(', '.join(parts))} tokens (median half-life, as A and the mean delta set "
        f"it{limit}).{without}"
    )
    return Answer(question, sentence, True, **common)


def half_life_groups(halves: Mapping[int, float]) -> list[list[int]]:
    """Layers in groups of like half-life, the longest first: cut where neighbours in order of
    half-life differ by GROUP_RATIO."""
    ordered = sorted(halves, key=lambda layer: -halves[layer])
    groups: list[list[int]] = [[ordered[0]]]
    for before, layer in pairwise(ordered):
        if halves[before] >= GROUP_RATIO * halves[layer]:
            groups.append([])
        groups[-1].append(layer)
    return groups


def copying_answer(found: Section) -> Answer:
    """Which layers copy what followed a token's earlier occurrence."""
    rows = {row["layer"]: row["copying"] for row in found["layers"]}
    holds = [
        layer for layer in _exceeding(found, rows, COPY_GAIN) if rows[layer]["share"] >= COPY_SHARE
    ]
    if not holds:
        return _nothing(found, "copying", rows, "copies what followed a token before",
                        lambda x: f"{x:.1f} times the lags around", f"{COPY_GAIN:g}")  # fmt: skip
    values = [rows[layer]["value"] for layer in holds]
    sentence = (
        f"{capitalised(layer_names(holds))} {_verb('copy', holds)} what followed a token when it "
        f"was last read: there {_listed(values, '.1f')} times the contributions of the lags around"
        f"{_chance(rows, holds, '.1f')}{_others(rows, holds)}."
    )
    return _said("copying", sentence, rows, holds)


def reset_answer(found: Section) -> Answer:
    """What erasing the state costs, by layer."""
    rows = {row["layer"]: row["reset"] for row in found["layers"]}
    holds = _exceeding(found, rows, RESET_COST)
    if not holds:
        return _nothing(found, "reset", rows, "holds a state that the next tokens need",
                        lambda x: f"{x:.2g} nats a token", f"{RESET_COST:g}")  # fmt: skip
    values = [rows[layer]["value"] for layer in holds]
    sentence = (
        f"{capitalised(layer_names(holds))} {_verb('hold', holds)} what the next tokens need: its "
        f"state erased costs {_listed(values, '.2g')} nats a token{_chance(rows, holds, '.2g')}."
    ).replace("its state", "its state" if len(holds) == 1 else "a layer's state")
    return _said("reset", sentence, rows, holds)


def context_answer(found: Section) -> Answer:
    """Whether the predictions lean on more than the last four tokens."""
    test, path = found["all_states"], "overview.all_states"
    layers = tuple(row["layer"] for row in found["layers"])
    shares = _context_shares(found)
    if test["value"] is None:
        return Answer("context", f"What predictions lean on is not known: {test['reason']}.",
                      False, path=path)  # fmt: skip
    known = {"layers": layers, "values": (test["value"],), "n": test["n"], "unit": test["unit"],
             "null": (test["null_low"], test["null_high"]), "interval": _pair(test["interval"]),
             "path": path}  # fmt: skip
    if not _exceeds(found, test, RESET_COST):
        return Answer(
            "context", "No sign that predictions lean on more than the last tokens: all states "
            f"erased four tokens or more before costs {test['value']:.2g} nats a token (chance: "
            f"{test['null_low']:.2g} to {test['null_high']:.2g}).", False, **known,
        )  # fmt: skip
    sentence = (
        "All layers together lean on more than the last tokens: with all states erased four "
        f"tokens or more before, a token costs {test['value']:.2g} nats more (chance: "
        f"{test['null_low']:.2g} to {test['null_high']:.2g}); {shares}."
    )
    return Answer("context", sentence, True, **known)


def _context_shares(found: Section) -> str:
    """Mean over layers of the shares of |alpha|."""
    recent, first = (
        [row[name] for row in found["layers"] if row[name] is not None]
        for name in ("recent_share", "first_share")
    )
    if not recent:
        return "no layer attends to anything"
    return (
        f"of |alpha| {_mean(recent):.0%} is on the last four, {_mean(first):.0%} on the first token"
    )


def gate_answer(found: Section) -> Answer:
    """Which kinds of tokens open the gate, which close it."""
    tests = {
        (row["layer"], kind): test for row in found["layers"] for kind, test in row["gate"].items()
    }
    holds = [place for place, test in tests.items() if _exceeds(found, test, GATE_DIFFERENCE, True)]
    if not holds:
        return _nothing(found, "gate", tests, "opens or closes its gate by the kind of token",
                        lambda x: f"{x:.2g} standard deviations", f"{GATE_DIFFERENCE:g}",
                        magnitude=True)  # fmt: skip
    parts = []
    for opens in (True, False):
        for kind in dict.fromkeys(kind for _, kind in holds):
            of_kind = [p for p in holds if p[1] == kind and (tests[p]["value"] > 0) == opens]
            if of_kind:
                parts.append(_gate_part(of_kind, tests, opens, not parts))
    return _said("gate", capitalised("; ".join(parts)) + ".", tests, holds)


_KIND_WORDS = {
    "space_leading": "tokens that begin a word",
    "line_break": "line breaks",
    "punctuation": "punctuation",
    "digits": "digits",
}


def _gate_part(
    places: Sequence[tuple[int, str]], tests: Mapping[Any, Section], opens: bool, is_first: bool
) -> str:
    layers = [layer for layer, _ in places]
    values = sorted((tests[place]["value"] for place in places), key=abs)
    extent = f"{values[-1]:+.2g}" if len(values) == 1 else f"{values[0]:+.2g} to {values[-1]:+.2g}"
    unit = " standard deviations of ln delta" if is_first else ""
    return (
        f"{layer_names(layers)} {_verb('open' if opens else 'close', layers)} the gate at "
        f"{_KIND_WORDS[places[0][1]]} ({extent}{unit})"
    )


def sink_answer(found: Section) -> Answer:
    """Which layers rest on the first token."""
    rows = {row["layer"]: row["sink"] for row in found["layers"]}
    share = {row["layer"]: row["first_share"] or 0.0 for row in found["layers"]}
    holds = [layer for layer in _exceeding(found, rows, SINK_GAIN) if share[layer] >= SINK_SHARE]
    if not holds:
        most = max(share, key=lambda layer: share[layer])
        if all(test["value"] is None for test in rows.values()):
            return _nothing(found, "sink", rows, "rests on the first token", str, "")
        return Answer(
            "sink", f"No layer rests on the first token: it takes at most {share[most]:.1%} of "
            f"|alpha| (layer {most}).", False, (most,), (share[most],),
            n=found["num_texts"], unit="texts", path="overview.layers[].first_share",
        )  # fmt: skip
    heads = sum(len(rows[layer]["heads"]) for layer in holds)
    measured = sum(row["heads_measured"] for row in found["layers"] if row["layer"] in holds)
    sentence = (
        f"{capitalised(layer_names(holds))} {_verb('rest', holds)} on the first token: it takes "
        f"{_listed([share[layer] for layer in holds], '.0%')} of |alpha|, "
        f"{_listed([rows[layer]['value'] for layer in holds], '.1f')} times what those after it "
        f"take{_chance(rows, holds, '.1f')}; {heads} of {measured} channels pay it half or more."
    )
    return _said("sink", sentence, rows, holds)


QUESTIONS: dict[str, Callable[[Section], Answer]] = {
    "memory": memory_answer,
    "copying": copying_answer,
    "reset": reset_answer,
    "context": context_answer,
    "gate": gate_answer,
    "sink": sink_answer,
}
"""By name, in the order in which they are answered."""

_PATHS = {
    "copying": "overview.layers[].copying",
    "reset": "overview.layers[].reset",
    "gate": "overview.layers[].gate",
    "sink": "overview.layers[].sink",
}


def _exceeds(found: Section, test: Section, least: float, magnitude: bool = False) -> bool:
    value, p = test["value"], test["p_value"]
    if value is None or p is None:
        return False
    return (abs(value) if magnitude else value) >= least and p <= found["questions"]["level"]


def _exceeding(found: Section, rows: Mapping[int, Section], least: float) -> list[int]:
    return [layer for layer, test in rows.items() if _exceeds(found, test, least)]


def _said(
    question: str, sentence: str, tests: Mapping[Any, Section], holds: Sequence[Any]
) -> Answer:
    chosen = [tests[place] for place in holds]
    layers = tuple(dict.fromkeys(p if isinstance(p, int) else p[0] for p in holds))
    return Answer(
        question, sentence, True, layers, tuple(test["value"] for test in chosen),
        (min(test["null_low"] for test in chosen), max(test["null_high"] for test in chosen)),
        _pair(chosen[0]["interval"]), chosen[0]["n"], chosen[0]["unit"], _PATHS[question],
    )  # fmt: skip


def _nothing(
    found: Section,
    question: str,
    tests: Mapping[Any, Section],
    claim: str,
    worded: Callable[[float], str],
    least: str,
    magnitude: bool = False,
) -> Answer:
    """That no layer does it, with the largest value found, or why that is not known."""
    path = _PATHS[question]
    known = {place: test for place, test in tests.items() if test["value"] is not None}
    if not known:
        test = next(iter(tests.values()))
        sentence = f"Whether a layer {claim} is not known: {test['reason']}."
        return Answer(question, sentence, False, n=test["n"], unit=test["unit"], path=path)
    most = max(known, key=lambda place: abs(known[place]["value"]) if magnitude
               else known[place]["value"])  # fmt: skip
    test = known[most]
    layer = most if isinstance(most, int) else most[0]
    if abs(test["value"]) < float(least):
        why = f"below {least}"
    elif (test["p_value"] or 1.0) <= found["questions"]["level"]:
        why = f"of next to nothing: {test['share']:.1g} of what a query takes"
    else:
        why = _within_chance(test["p_value"], found["questions"]["num_tested"])
    sentence = f"No layer {claim}: at most {worded(test['value'])} (layer {layer}), {why}."
    return Answer(
        question, sentence, False, (layer,), (test["value"],), (test["null_low"],
        test["null_high"]), _pair(test["interval"]), test["n"], test["unit"], path,
    )  # fmt: skip


def _within_chance(p: float | None, questions: int) -> str:
    if p is None or p > ALPHA:
        return "within chance"
    return f"within chance where {questions} questions are asked (p {p:.2g} of this one alone)"


def _chance(tests: Mapping[Any, Section], holds: Sequence[Any], spec: str) -> str:
    low = min(tests[place]["null_low"] for place in holds)
    high = max(tests[place]["null_high"] for place in holds)
    return f" (chance: {low:{spec}} to {high:{spec}})"


def _others(rows: Mapping[int, Section], holds: Sequence[int]) -> str:
    rest = [test["value"] for layer, test in rows.items()
            if layer not in holds and test["value"] is not None]  # fmt: skip
    return f"; the other layers at most {max(rest):.1f}" if rest else ""


def _verb(verb: str, layers: Sequence[int]) -> str:
    third = f"{verb[:-1]}ies" if verb.endswith("y") else f"{verb}s"
    return third if len(set(layers)) == 1 else verb


def _listed(values: Sequence[float], spec: str) -> str:
    """Up to three values one by one, more as a range."""
    if len(values) > 3:
        return f"{min(values):{spec}} to {max(values):{spec}}"
    texts = [f"{value:{spec}}" for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _approximately(values: Sequence[float]) -> str:
    """A range of tokens to two digits."""
    low, high = (_two_digits(value) for value in (min(values), max(values)))
    return f"about {low}" if low == high else f"{low} to {high}"


def _range(values: Sequence[float]) -> str:
    return _approximately(values).removeprefix("about ")


def _two_digits(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return str(value)
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])
