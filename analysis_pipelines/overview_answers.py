"""What the overview may say: a sentence for each question, with its numbers and its place.

A sentence is said where what it rests on exceeds its null among all layers and all questions tried
(`overview_questions`) and is of a size worth a name; otherwise it says what is above chance and too
small, that no layer does it, or that the texts leave it undecided (`overview_readings`). Value,
null and p of a sentence are of the same layers. Half-lives are the weights' own and have no null:
of them a sentence is said only where layers fall into groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from analysis_pipelines.overview_questions import adjusted_for
from analysis_pipelines.overview_readings import Place, Section, read
from analysis_pipelines.overview_sentences import (
    Answer,
    Words,
    answer_about,
    not_said,
    of_places,
    others_than,
    p_text,
    values_of,
    why_undecided,
)
from analysis_pipelines.overview_wording import chance, extent, listed, mean, tokens, verb
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


def answers(found: Section) -> list[Answer]:
    """One answer a question, in a fixed order: of the section that `overview_rows.joined` makes."""
    number = found["questions"]["num_tested"]
    return [
        one
        if one.p_value is None
        else replace(
            one,
            adjusted_p=adjusted_for(found["questions"], one.question, one.p_value),
            num_questions=number,
        )
        for one in (answer(found) for answer in QUESTIONS.values())
    ]


def memory_answer(found: Section) -> Answer:
    """How long states keep a token: half-life of the median state, layers in groups, and lags."""
    path = "overview.layers[].median_half_life"
    halves, lasting = {}, []
    for row in found["layers"]:
        half_life = row["median_half_life"]
        halves |= {} if half_life is None else {row["layer"]: half_life}
        lasting += [row["layer"]] if half_life is None else []
    if not halves:
        return Answer("memory", "No layer's state forgets: A or delta is 0.", False, path=path)
    values = tuple(halves.values())
    groups = half_life_groups(halves)
    end = _lags(found, groups)
    end += f" Without a half-life: {layer_names(lasting)}." if lasting else ""
    if len(groups) < 2:
        sentence = (
            "No layer keeps tokens much longer than another: median half-life "
            f"{tokens(values)} tokens in all of them.{end}"
        )
    else:
        sentence = f"{_grouped(found, halves, groups)}{end}"
    return Answer(
        "memory", sentence, len(groups) > 1, tuple(halves), values, n=found["num_tokens"],
        num_texts=found["num_independent"], path=path,
    )  # fmt: skip


def _grouped(found: Section, halves: Mapping[int, float], groups: Sequence[list[int]]) -> str:
    first, *others = (
        f"{layer_names(group)} {{}} {tokens([halves[layer] for layer in group])}"
        for group in groups
    )
    have = f"{verb('have', groups[0])} a median half-life of"
    parts = ", ".join([first.format(have), *(one.format("of") for one in others)])
    length = found["longest"]
    longer = halves[groups[0][0]] > length
    limit = f"; no text here is longer than {length} tokens" if longer else ""
    return (
        f"{capitalised(parts)} tokens (of a layer's states, as A and the mean delta set it{limit})."
    )


def _lags(found: Section, groups: Sequence[list[int]]) -> str:
    """By which lag 90 % of |alpha| has passed, group by group."""
    rows = {row["layer"]: row for row in found["layers"] if row["lag_90"] is not None}
    known = [kept for group in groups if (kept := [layer for layer in group if layer in rows])]
    if not known:
        return ""
    lags = [extent([rows[layer]["lag_90"] for layer in group], ",.0f") for group in known]
    limited = [layer for group in known for layer in group if rows[layer]["limited_by_text"]]
    where = f" in {layer_names(limited)}" if 0 < len(limited) < sum(map(len, known)) else ""
    limit = f", limited by the texts' length{where}" if limited else ""
    return f" 90 % of |alpha| lies within {' and '.join(lags)} tokens{limit}."


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
    reading = read(rows, COPY_GAIN, is_enough=lambda i: rows[i]["share"] >= COPY_SHARE)
    holds = reading.claimed
    if not holds:
        return not_said(found, "copying", rows, reading, Words(
            "copies what followed a token before",
            lambda i: f"{rows[i]['value']:.1f} times the lags around",
            lambda i: f"{capitalised(layer_names([i]))} takes {rows[i]['value']:.1f} times the "
            "contributions of the lags around from what followed a token when it was last read",
            lambda i: f"below the {COPY_GAIN:g} times asked for"
            if rows[i]["value"] < COPY_GAIN
            else f"of next to nothing: {rows[i]['share']:.1g} of what a query takes",
            f"the {COPY_GAIN:g} times asked for", COPY_GAIN, ".1f"))  # fmt: skip
    sentence = (
        f"{capitalised(layer_names(holds))} {verb('copy', holds)} what followed a token when it "
        f"was last read: there {listed(values_of(rows, holds), '.1f')} times the contributions of "
        f"the lags around (chance: {chance(of_places(rows, holds), '.1f')})"
        f"{others_than(rows, reading, COPY_GAIN, '.1f')}."
    )
    return answer_about("copying", sentence, True, rows, holds)


def reset_answer(found: Section) -> Answer:
    """What erasing the state of a layer alone costs, and whether the next tokens need it: that is
    said where the erasure of all states together costs too."""
    rows = {row["layer"]: row["reset"] for row in found["layers"]}
    reading = read(rows, RESET_COST)
    holds, together = reading.claimed, found["all_states"]
    if not holds:
        return not_said(found, "reset", rows, reading, Words(
            "is missed by the next tokens when its state alone is erased",
            lambda i: f"{rows[i]['value']:.2g} nats a token",
            lambda i: f"{capitalised(layer_names([i]))}'s state erased alone costs "
            f"{rows[i]['value']:.2g} nats a token",
            lambda i: f"below the {RESET_COST:g} asked for",
            f"the {RESET_COST:g} asked for", RESET_COST, ".2g"))  # fmt: skip
    is_needed = bool(read({0: together}, RESET_COST).claimed) and all(
        rows[layer]["late"] >= RESET_COST for layer in holds
    )
    one = len(holds) == 1
    erased = (
        f"{layer_names(holds)}'s state erased alone costs" if one
        else f"{layer_names(holds)} with their states erased one by one cost"
    )  # fmt: skip
    if is_needed:
        erased = (
            f"{layer_names(holds)} {verb('hold', holds)} what the next tokens need: "
            f"{'its state' if one else 'a state'} erased alone costs"
        )
    sentence = (
        f"{capitalised(erased)} {listed(values_of(rows, holds), '.2g')} nats a token (chance: "
        f"{chance(of_places(rows, holds), '.2g')}; {_in_texts(rows, holds)})"
        f"{others_than(rows, reading, RESET_COST, '.2g')}. From the fourth prediction on "
        f"{'it costs' if one else 'they cost'} "
        f"{listed([rows[layer]['late'] for layer in holds], '.2g')}, all states erased together "
        f"{together['value']:.2g} (chance: {chance([together], '.2g')})"
        f"{'' if is_needed else ': that the next tokens need what was erased is not shown'}."
    )
    return answer_about("reset", sentence, True, rows, holds)


def _in_texts(rows: Mapping[Place, Section], holds: Sequence[Place]) -> str:
    above = [rows[layer]["texts_above"] for layer in holds]
    total = rows[holds[0]]["num_texts"]
    return f"above 0 in {listed(above, 'd')} of {total} independent text{'s' * (total != 1)}"


def context_answer(found: Section) -> Answer:
    """Whether the predictions lean on more than the last four tokens."""
    test, path = found["all_states"], "overview.all_states"
    layers = tuple(row["layer"] for row in found["layers"])
    if test["value"] is None:
        return Answer("context", f"What predictions lean on is not known: {test['reason']}.",
                      False, path=path)  # fmt: skip
    reading = read({0: test}, RESET_COST)
    null = f"{chance([test], '.2g')}{p_text(test)}"
    cost = (
        f"all states erased four tokens or more before cost {test['value']:.2g} nats a token "
        f"(chance: {null})"
    )
    if reading.claimed:
        sentence = (
            "All layers together lean on more than the last tokens: with all states erased four "
            f"tokens or more before, a token costs {test['value']:.2g} nats more (chance: "
            f"{chance([test], '.2g')}); {_context_shares(found)}."
        )
    elif reading.small:
        sentence = f"{capitalised(cost)}: above chance, but below the {RESET_COST:g} asked for."
    elif reading.absent:
        sentence = (
            f"No sign that predictions lean on more than the last tokens: {cost}, below the "
            f"{RESET_COST:g} asked for."
        )
    else:
        sentence = (
            f"Not shown whether predictions lean on more than the last tokens: {cost}, "
            f"{why_undecided(found, 'context', test, RESET_COST, f'the {RESET_COST:g} asked for')}."
        )
    about = answer_about("context", sentence, bool(reading.claimed), {0: test}, [0])
    return replace(about, layers=layers)


def _context_shares(found: Section) -> str:
    """Mean over layers of the shares of |alpha|."""
    recent, first = (
        [row[name] for row in found["layers"] if row[name] is not None]
        for name in ("recent_share", "first_share")
    )
    if not recent:
        return "no layer attends to anything"
    return (
        f"of |alpha| {mean(recent):.0%} is on the last four, {mean(first):.0%} on the first token, "
        "mean over layers"
    )


def gate_answer(found: Section) -> Answer:
    """Which kinds of tokens open the gate, which close it."""
    tests = {
        (row["layer"], kind): test for row in found["layers"] for kind, test in row["gate"].items()
    }
    reading = read(tests, GATE_DIFFERENCE, two_sided=True)
    holds = reading.claimed
    if not holds:
        return not_said(found, "gate", tests, reading, Words(
            "opens or closes its gate by the kind of token",
            lambda p: f"{tests[p]['value']:+.2g} standard deviations at {_KIND_WORDS[p[1]]}",
            lambda p: f"{capitalised(_gate_verb([p], tests))} by {tests[p]['value']:+.2g} standard "
            "deviations of ln delta",
            lambda p: f"below the {GATE_DIFFERENCE:g} asked for",
            f"the {GATE_DIFFERENCE:g} asked for", GATE_DIFFERENCE, ".2g", True))  # fmt: skip
    parts, counted = [], set()
    for opens in (True, False):
        for kind in dict.fromkeys(kind for _, kind in holds):
            of_kind = [p for p in holds if p[1] == kind and (tests[p]["value"] > 0) == opens]
            if of_kind:
                parts.append(_gate_part(of_kind, tests, not parts, kind not in counted))
                counted.add(kind)
    few = len(reading.small)
    more = (
        f"; {few} smaller difference{'s lie' if few > 1 else ' lies'} above chance" if few else ""
    )
    return answer_about("gate", f"{capitalised('; '.join(parts))}{more}.", True, tests, holds)


_KIND_WORDS = {
    "space_leading": "tokens that begin a word",
    "line_break": "line breaks",
    "punctuation": "punctuation",
    "digits": "digits",
}


def _gate_verb(places: Sequence[tuple[int, str]], tests: Mapping[Place, Section]) -> str:
    layers = [layer for layer, _ in places]
    opens = tests[places[0]]["value"] > 0
    return (
        f"{layer_names(layers)} {verb('open' if opens else 'close', layers)} the gate at "
        f"{_KIND_WORDS[places[0][1]]}"
    )


def _gate_part(
    places: Sequence[tuple[int, str]],
    tests: Mapping[Place, Section],
    is_first: bool,
    is_counted: bool,
) -> str:
    unit = " standard deviations of ln delta" if is_first else ""
    of_kind = tests[places[0]]["n_of_kind"]
    counts = f"; {of_kind} different ones, {tests[places[0]]['n'] - of_kind} others"
    return (
        f"{_gate_verb(places, tests)} ({extent(values_of(tests, places), '+.2g')}{unit}; chance: "
        f"{chance(of_places(tests, places), '.2g')}{counts if is_counted else ''})"
    )


def sink_answer(found: Section) -> Answer:
    """Which layers rest on the first token."""
    rows = {row["layer"]: row["sink"] for row in found["layers"]}
    share = {row["layer"]: row["first_share"] or 0.0 for row in found["layers"]}
    reading = read(rows, SINK_GAIN, is_enough=lambda i: share[i] >= SINK_SHARE)
    holds = reading.claimed
    if not holds:
        return not_said(found, "sink", rows, reading, Words(
            "rests on the first token",
            lambda i: f"{rows[i]['value']:.1f} times what those after it take",
            lambda i: f"{capitalised(layer_names([i]))} pays the first token "
            f"{rows[i]['value']:.1f} times what it pays those after it, {share[i]:.1%} of |alpha|",
            lambda i: _sink_lack(rows[i]["value"], share[i]),
            f"the {SINK_GAIN:g} times asked for", SINK_GAIN, ".1f"))  # fmt: skip
    heads = sum(len(rows[layer]["heads"]) for layer in holds)
    measured = sum(row["heads_measured"] for row in found["layers"] if row["layer"] in holds)
    sentence = (
        f"{capitalised(layer_names(holds))} {verb('rest', holds)} on the first token: it takes "
        f"{listed([share[layer] for layer in holds], '.0%')} of |alpha|, "
        f"{listed(values_of(rows, holds), '.1f')} times what those after it take (chance: "
        f"{chance(of_places(rows, holds), '.1f')}); {heads} of {measured} channels pay it half or "
        f"more{others_than(rows, reading, SINK_GAIN, '.1f')}."
    )
    return answer_about("sink", sentence, True, rows, holds)


def _sink_lack(gain: float, share: float) -> str:
    lacks = [f"{SINK_GAIN:g} times"] if gain < SINK_GAIN else []
    lacks += ["tenth"] if share < SINK_SHARE else []
    return f"below the {' and the '.join(lacks)} asked for"


QUESTIONS: dict[str, Callable[[Section], Answer]] = {
    "memory": memory_answer,
    "copying": copying_answer,
    "reset": reset_answer,
    "context": context_answer,
    "gate": gate_answer,
    "sink": sink_answer,
}
"""By name, in the order in which they are answered."""
