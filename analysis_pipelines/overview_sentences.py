"""Parts of the overview's sentences that its questions have in common.

An answer about some places has the numbers, the null and the p of these. Where nothing is claimed
it says what is above chance and too small; else that it is undecided; else that no layer does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis_pipelines.overview_questions import ALPHA, NO_EFFECT
from analysis_pipelines.overview_readings import (
    Place,
    Reading,
    Section,
    chance_stays_below,
    largest,
)
from analysis_pipelines.overview_wording import chance, extent, null_of
from result_views.layer_names import layer_names


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
    """where 5 % of the draws of all layers lie to either side, from the smallest end to the largest
    of these layers"""
    interval: tuple[float, float] | None = None
    """95 % over texts, of the first of the values; None for fewer than 5 independent texts"""
    n: int = 0
    unit: str = "tokens"
    num_texts: int = 0
    """independent texts behind n"""
    path: str = "overview.layers"
    """where the numbers stand in the results"""
    p_value: float | None = None
    """over all layers, the largest of these; None where there is no test"""
    adjusted_p: float | None = None
    """that adjusted over the questions tried"""
    num_questions: int = 0
    """behind adjusted_p"""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


PATHS = {
    "copying": "overview.layers[].copying",
    "reset": "overview.layers[].reset",
    "context": "overview.all_states",
    "gate": "overview.layers[].gate",
    "sink": "overview.layers[].sink",
}


def of_places(tests: Mapping[Place, Section], places: Sequence[Place]) -> list[Section]:
    """Tests of some places."""
    return [tests[place] for place in places]


def values_of(tests: Mapping[Place, Section], places: Sequence[Place]) -> list[float]:
    """Values at some places."""
    return [tests[place]["value"] for place in places]


def answer_about(
    question: str, sentence: str, said: bool, tests: Mapping[Place, Section],
    places: Sequence[Place],
) -> Answer:  # fmt: skip
    """An answer about these places: its numbers, null and p are theirs."""
    chosen = of_places(tests, places)
    p_values = [test["p_value"] for test in chosen]
    interval = chosen[0]["interval"]
    return Answer(
        question, sentence, said, tuple(dict.fromkeys(map(_layer, places))),
        tuple(test["value"] for test in chosen), null_of(chosen),
        None if interval is None else (interval[0], interval[1]), chosen[0]["n"],
        chosen[0]["unit"], chosen[0]["num_texts"], PATHS[question],
        None if None in p_values else max(p_values),
    )  # fmt: skip


def _layer(place: Place) -> int:
    return place if isinstance(place, int) else place[0]


@dataclass(frozen=True)
class Words:
    """How a question is worded where nothing is claimed; functions of a place."""

    claim: str
    """after "a layer" """
    worded: Callable[[Any], str]
    """its value"""
    measured: Callable[[Any], str]
    """the beginning of a sentence about what was found there"""
    lack: Callable[[Any], str]
    """what a value above chance falls short of"""
    least: str
    """the smallest effect worth a name, ``size`` in words"""
    size: float
    spec: str
    two_sided: bool = False


def not_said(
    found: Section, question: str, tests: Mapping[Place, Section], reading: Reading, words: Words
) -> Answer:
    """What is above chance and too small; else that it is undecided; else that no layer does it."""
    places = reading.small or reading.undecided or reading.absent
    if not places:
        test = next(iter(tests.values()))
        sentence = f"Whether a layer {words.claim} is not known: {test['reason']}."
        return Answer(question, sentence, False, n=test["n"], unit=test["unit"],
                      num_texts=test["num_texts"], path=PATHS[question])  # fmt: skip
    place = largest(tests, places, two_sided=words.two_sided)
    test = tests[place]
    null = f"chance: {chance([test], words.spec)}{p_text(test)}"
    at = f"at most {words.worded(place)} (layer {_layer(place)}; {null})"
    if reading.small:
        rest = _smaller(len(reading.small) - 1) + _not_above(tests, reading, words.spec)
        sentence = f"{words.measured(place)} ({null}): above chance, but {words.lack(place)}{rest}."
    elif reading.undecided:
        why = why_undecided(found, question, test, words.size, words.least)
        sentence = f"Not shown that a layer {words.claim}: {at}, {why}."
    else:
        sentence = f"{_none(tests, reading, words)}: {at}, below {words.least}."
    return answer_about(question, sentence, False, tests, [place])


def why_undecided(
    found: Section, question: str, test: Section, least: float, asked: str
) -> str:  # fmt: skip
    """Why a test shows neither an effect nor that there is none: over questions, over texts, or for
    chance reaches ``least``, in words ``asked``."""
    p, questions = test["p_value"], found["questions"]
    if p is not None and questions["level"] < p <= ALPHA:
        return f"not enough where {questions['num_tested']} questions are asked"
    has_p = p is not None and p <= ALPHA
    if not has_p and not chance_stays_below(test, least, abs(test["value"])):
        return f"and chance alone reaches {asked}"
    if test["interval"] is None:
        return f"above 0 in {test['texts_above']} of {test['num_texts']} independent texts alone"
    between = f"{test['interval'][0]:.2g} to {test['interval'][1]:.2g}"
    room = f"{NO_EFFECT.get(question, 0.0):g}" if has_p else asked
    return f"and 95 % over {test['num_texts']} texts, {between}, leaves room for {room}"


def _none(tests: Mapping[Place, Section], reading: Reading, words: Words) -> str:
    """That no layer does it, of those that were tried."""
    layers = {_layer(place) for place in tests}
    tried = {_layer(place) for place in tests if place not in reading.untried}
    if tried == layers:
        return f"No layer {words.claim}"
    return f"None of the {len(tried)} layers tried {words.claim}"


def p_text(test: Section) -> str:
    """The p of a test over all layers, which its null goes with, as the end of a bracket."""
    return "" if test["p_value"] is None else f"; p {test['p_value']:.2g}"


def others_than(rows: Mapping[Place, Section], reading: Reading, least: float, spec: str) -> str:
    """What is not claimed beside what is: above chance or not."""
    text = ""
    if small := reading.small:
        values = values_of(rows, small)
        short = f"below {least:g}" if max(values) < least else "too small"
        text = f"; {layer_names(small)} {extent(values, spec)}, above chance too but {short}"
    return text + _not_above(rows, reading, spec)


def _not_above(tests: Mapping[Place, Section], reading: Reading, spec: str) -> str:
    """The largest of what is not above chance, of whatever sign where the spec shows it."""
    rest = [*reading.undecided, *reading.absent]
    if not rest:
        return ""
    most = max(values_of(tests, rest), key=abs if spec.startswith("+") else float)
    tried = " tried" if reading.untried else ""
    return f"; the others{tried} at most {most:{spec}}, not above chance"


def _smaller(number: int) -> str:
    return f"; {number} more above chance {'is' if number == 1 else 'are'} smaller" * bool(number)
