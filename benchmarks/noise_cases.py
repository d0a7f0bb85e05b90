"""Independent noise that looks alike for a known reason: related texts, position, heavy tails.

Two layers of channels that have nothing to do with each other, on texts that share much, drift, or
begin with an outlier, and layers of the demo model of which each reads passages of its own. What a
null of time-shifts alone takes for correlation; whatever is found here is false.

`calibration.py` puts the table into its report.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np

# The suite's folder has to be on the path when this file is imported by a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.passages import spread_rows
from layer_correlation_analyzer import pooled_activations
from ssm_component_extractor import capture
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.models import load_model, load_tokenizer
from token_statistics.channel_correlations import (
    CrossLayerCorrelation,
    PooledActivations,
    cross_layer_correlation,
)
from token_statistics.description import FloatArray
from token_statistics.verdict_rules import apart_from_position, exceeds_null

CHANNELS = 6  # of each layer

TESTS = ("mean_abs", "max_abs", "best_match", "cka")
LABELS = {
    "mean_abs": "mean \\|r\\| above its null",
    "max_abs": "largest \\|r\\| above its null",
    "best_match": "best match above its null",
    "cka": "debiased CKA above its null",
}

PAIR_LABEL = "a pair of channels at a false discovery rate of 5 %"

PASSAGE = 100  # tokens
POOL = 60  # passages that the layers of the demo model read

Texts = list[FloatArray]


class Case(NamedTuple):
    """Texts of one layer, as they are drawn."""

    draw: Callable[[np.random.Generator], Texts]
    same_tokens: bool
    """whether the other layer reads the same tokens, and repeats itself where this one does"""


def _noise(rng: np.random.Generator, lengths: Sequence[int]) -> Texts:
    return [rng.standard_normal((length, CHANNELS)) for length in lengths]


def near_copies(rng: np.random.Generator, count: int, run: int = 5, changes: int = 1) -> Texts:
    """A text of 100 tokens of noise, and copies with runs of tokens that are others."""
    (first,) = _noise(rng, [100])
    copies = [first.copy() for _ in range(count - 1)]
    for copy in copies:
        for place in rng.integers(0, 100 - run, changes):
            copy[place : place + run] = rng.standard_normal((run, CHANNELS))
    return [first, *copies]


def shared_beginnings(rng: np.random.Generator, common: int, rest: int, count: int = 5) -> Texts:
    """Texts of noise whose first tokens are the same."""
    (start,) = _noise(rng, [common])
    return [np.concatenate([start, own]) for own in _noise(rng, [rest] * count)]


def windows(rng: np.random.Generator, count: int = 6, length: int = 100) -> Texts:
    """Windows of one text, each of which begins in the middle of the one before it."""
    (text,) = _noise(rng, [length * (count + 1) // 2])
    return [text[start : start + length] for start in range(0, length * count // 2, length // 2)]


def template(rng: np.random.Generator, length: int, every: int, count: int = 20) -> Texts:
    """Texts in which one token in so many is their own, and the others are those of all."""
    (common,) = _noise(rng, [length])
    texts = [common.copy() for _ in range(count)]
    for text in texts:
        own = text[every - 1 :: every]
        own[:] = rng.standard_normal(own.shape)
    return texts


def drifting(rng: np.random.Generator, count: int, common: bool, length: int = 200) -> Texts:
    """Noise with a linear drift of a tenth of its variance: of one sign, or of a sign by text."""
    t = math.sqrt(12.0) * (np.arange(length) / length - 0.5)[:, None]
    signs = np.where(common, 1.0, rng.choice([-1.0, 1.0], (count, 1, CHANNELS)))
    texts = zip(_noise(rng, [length] * count), signs, strict=True)
    return [math.sqrt(0.1) * sign * t + math.sqrt(0.9) * text for text, sign in texts]


def with_first_outlier(rng: np.random.Generator, count: int) -> Texts:
    """Noise whose first token is far from all others, in directions of its own."""
    texts = _noise(rng, [100] * count)
    for text in texts:
        text[0] += 30.0 * rng.choice([-1.0, 1.0], CHANNELS)
    return texts


CASES: dict[str, Case] = {
    "3 near copies, 5 tokens in a row changed": Case(partial(near_copies, count=3), True),
    "10 near copies, 5 tokens in a row changed": Case(partial(near_copies, count=10), True),
    "10 near copies, 5 words changed": Case(partial(near_copies, count=10, run=1, changes=5), True),
    **{
        f"5 texts share {share:.0%} at the beginning": Case(
            partial(shared_beginnings, common=round(100 * share), rest=round(100 * (1 - share))),
            True,
        )
        for share in (0.05, 0.25, 0.5, 0.9)
    },
    "20 questions of 20 tokens behind one prompt of 80": Case(
        partial(shared_beginnings, common=80, rest=20, count=20), True
    ),
    "20 texts of one template of 20 tokens": Case(partial(template, length=20, every=9), True),
    "20 texts of one template of 100 tokens": Case(partial(template, length=100, every=12), True),
    "20 texts that differ in every fourth token": Case(
        partial(template, length=100, every=4), True
    ),
    "6 windows that overlap by half": Case(windows, True),
    "a drift, 1 text": Case(partial(drifting, count=1, common=True), False),
    "a drift, 10 texts": Case(partial(drifting, count=10, common=True), False),
    "drifts of either sign, 10 texts": Case(partial(drifting, count=10, common=False), False),
    "an outlier at the first token, 10 texts": Case(partial(with_first_outlier, count=10), False),
    "Cauchy noise": Case(lambda rng: [rng.standard_cauchy((400, CHANNELS))], False),
    "Student's t noise, 2.5 degrees": Case(
        lambda rng: [rng.standard_t(2.5, (400, CHANNELS))], False
    ),
}
"""By name; what is drawn for the other layer is independent."""

OTHER_PASSAGES = {f"layers 6 and 7 of the demo model, {n} text(s) each": n for n in (1, 5, 12)}
"""By name: how many passages each of the layers reads, none of them the other's."""

Found = dict[str, bool | None]
"""By kind of finding: whether it was made; None where it is refused."""


def false_in_case(case: str, seed: int) -> Found:
    """What is found in one draw of a case."""
    rng = np.random.default_rng([seed, sum(map(ord, case))])
    first = CASES[case].draw(rng)
    second = _repeating(first) if CASES[case].same_tokens else CASES[case].draw(rng)
    lengths = tuple(len(text) for text in first)
    sides = [PooledActivations(np.concatenate(texts), lengths) for texts in (first, second)]
    return _findings_of(cross_layer_correlation(*sides, seed=seed))


def _repeating(texts: Texts) -> Texts:
    """Noise that is the same where a text has the same token, and independent of it."""
    return [np.array([_value_of(row) for row in text]) for text in texts]


def _value_of(row: FloatArray) -> FloatArray:
    key = np.frombuffer(row.tobytes(), np.uint32)
    return np.random.default_rng(key).standard_normal(row.size)


def false_on_other_passages(case: str, seed: int) -> Found:
    """What is found between layers that read other passages: what they share is the position of a
    token. One text of a layer is refused, as claims refuse it."""
    count = OTHER_PASSAGES[case]
    order = np.random.default_rng(seed).permutation(POOL)[: 2 * count]
    sides = [
        PooledActivations(np.concatenate(layer[own]), (PASSAGE,) * count)
        for layer, own in zip(_pool(), np.split(order, 2), strict=True)
    ]
    return _findings_of(cross_layer_correlation(*sides, seed=seed), as_claimed=True)


@functools.cache
def _pool() -> tuple[FloatArray, FloatArray]:
    """(POOL, PASSAGE, d_model) what layers 6 and 7 write on passages of Python's manual."""
    model, tokenizer = load_model(DEMO_MODEL_PATH), load_tokenizer(DEMO_MODEL_PATH)
    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    passages = spread_rows(tokenizer(text, verbose=False)["input_ids"], POOL, PASSAGE)
    captured = [capture(model, row[None], None, [6, 7]) for row in passages]
    first, second = (
        np.stack([pooled_activations([one], layer, "mixer").values for one in captured])
        for layer in (6, 7)
    )
    return first, second


def _findings_of(found: CrossLayerCorrelation, *, as_claimed: bool = False) -> Found:
    pair = found.to_dict()
    tests = {name: apart_from_position(pair, name) if as_claimed else pair[name] for name in TESTS}
    if any(test is None or test["value"] is None for test in tests.values()):
        return dict.fromkeys([*map(LABELS.__getitem__, TESTS), PAIR_LABEL])
    shown: Found = {LABELS[name]: above(test or {}) for name, test in tests.items()}
    return {**shown, PAIR_LABEL: bool(found.significant_share)}


def above(test: Mapping[str, object]) -> bool:
    """Whether a claim would hold by its null alone."""
    return exceeds_null("", "", test, "").above_chance
