"""Which tokens open a layer's gate and which close it: delta by token and by class of token.

A large delta writes the token and forgets what was there, a small one passes over it (Gu & Dao
2023, Mamba, section 3.5.1). Heads differ in scale, so that tokens are ranked by ln delta in
standard deviations of each head. Tokens of all texts are pooled, padding left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ssm_measures.components import SSMComponents, checked_deltas
from suite_plumbing.arguments import validate_int
from suite_plumbing.texts import clean_token
from token_statistics.description import FloatArray, IntArray
from token_statistics.observations import observations
from token_statistics.position_course import PositionCourse, without_course
from token_statistics.time_shift_nulls import (
    NullTest,
    against_null,
    draw_shifts,
    fields_to_dict,
    undefined,
    why_too_few,
)

TOKEN_CLASSES = {
    "first": lambda piece, position, _: position == 0,
    "space_leading": lambda piece, *_: piece.startswith(" "),
    "line_break": lambda piece, *_: "\n" in piece,
    "punctuation": lambda piece, *_: bool(piece.strip()) and not any(map(str.isalnum, piece)),
    "digits": lambda piece, *_: any(map(str.isdigit, piece)),
    "repeated": lambda piece, _, earlier: piece in earlier,
}
"""Kinds of token, by its decoded piece, its position and the earlier pieces of its text.
`punctuation` is anything visible without a letter or digit."""

TOP_TOKENS = 10
"""Tokens that open the gate most, and that close it most, which are named."""

_NUM_CLASS_SHIFTS = 199


class TokenDelta(NamedTuple):
    """Delta at one token."""

    text: int
    position: int
    token: str
    """as the tokenizer spells it, made readable"""
    mean_delta: float
    """mean over channels"""
    openness: float
    """mean over channels of ln delta in standard deviations from the channel's mean: > 0 writes
    more and forgets more than usual; every channel counts alike"""


class ClassDelta(NamedTuple):
    """Delta at the tokens of one class."""

    count: int
    mean_delta: float | None
    """mean over its tokens and channels; None for an empty class"""
    difference: NullTest
    """mean openness of its tokens minus that of all others; null: circular time-shifts of the
    classes"""


@dataclass(frozen=True, eq=False)
class GateTokens:
    """Which tokens open and close the gate of one layer."""

    layer: int
    num_tokens: int
    opening: tuple[TokenDelta, ...]
    """largest openness first"""
    closing: tuple[TokenDelta, ...]
    """smallest openness first"""
    by_class: dict[str, ClassDelta]
    """by TOKEN_CLASSES; a token may be in several"""

    def first(self, count: int) -> GateTokens:
        """The same with so many tokens on either list at the most."""
        count = validate_int("count", count, 0)
        return replace(self, opening=self.opening[:count], closing=self.closing[:count])

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return fields_to_dict(self)


def gate_tokens(
    texts: Sequence[SSMComponents],
    pieces: Sequence[Sequence[str]],
    layer: int = 0,
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    top_k: int = TOP_TOKENS,
    seed: int = 0,
) -> GateTokens:
    """Delta by token and by class of token, over one or more texts.

    `pieces` are the decoded tokens of each text (see `token_pieces`). Where delta never varies the
    lists are empty and the differences undefined. What was read before is known by `token_ids`, by
    text, without them by the pieces, and is left out. Differences are those of the observations
    (`token_statistics.observations`), without the course of openness over position. Raises
    ValueError for texts or padding as `delta_memory`, for pieces of other lengths and top_k < 1.
    Cost: 199 inner products a class.
    """
    top_k, seed = validate_int("top_k", top_k, 1), validate_int("seed", seed, 0)
    deltas, lengths = checked_deltas(texts)
    if [len(text) for text in pieces] != list(lengths):
        raise ValueError(
            f"pieces holds texts of {[len(text) for text in pieces]} tokens, the components "
            f"{list(lengths)}; pass the pieces of the same tokens"
        )
    top_k = validate_int("top_k", top_k, 1)
    gated = np.concatenate([text.gated[0].norm(dim=1).double().numpy() for text in texts])
    tokens = observations(pieces if token_ids is None else token_ids, gated)
    rows = tokens.distinct_rows
    pooled = np.concatenate(deltas)
    means, (openness, reason) = pooled.mean(axis=1), _openness(pooled, rows)
    ranked = _ranked_tokens(pieces, means, openness, set(rows.tolist()))
    course = PositionCourse(tokens)
    return GateTokens(
        layer=layer,
        num_tokens=tokens.num_distinct,
        opening=tuple(ranked[:top_k]),
        closing=tuple(ranked[::-1][:top_k]),
        by_class={
            name: ClassDelta(
                int(members[rows].sum()),
                float(means[rows][members[rows]].mean()) if members[rows].any() else None,
                _class_difference(openness, reason, members, course, seed),
            )
            for name, members in _class_members(pieces).items()
        },
    )


def _ranked_tokens(
    pieces: Sequence[Sequence[str]], means: FloatArray, openness: FloatArray, distinct: set[int]
) -> list[TokenDelta]:
    """Every distinct token that has an openness, the largest first."""
    places = [(text, t, piece) for text, own in enumerate(pieces) for t, piece in enumerate(own)]
    rows = [
        TokenDelta(text, position, clean_token(piece), float(means[row]), float(openness[row]))
        for row, (text, position, piece) in enumerate(places)
        if row in distinct and math.isfinite(openness[row])
    ]
    return sorted(rows, key=lambda row: -row.openness)


def _openness(pooled: FloatArray, rows: IntArray) -> tuple[FloatArray, str | None]:
    """Mean over channels of ln delta standardised over these rows (N,), or nan and the reason.

    Channels whose delta is exactly 0 somewhere have no logarithm there and are left out.
    """
    undefined_everywhere = np.full(len(pooled), math.nan)
    stepping = (pooled > 0).all(axis=0)
    if not stepping.any():
        return undefined_everywhere, "every channel has a delta of exactly 0 at some token"
    logs = np.log(pooled[:, stepping])
    logs = logs[:, np.ptp(logs[rows], axis=0) > 0]
    if not logs.shape[1]:
        return undefined_everywhere, "delta is the same at every token"
    return ((logs - logs[rows].mean(axis=0)) / logs[rows].std(axis=0)).mean(axis=1), None


def _class_members(pieces: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    members: dict[str, list[bool]] = {name: [] for name in TOKEN_CLASSES}
    for text in pieces:
        earlier: set[str] = set()
        for position, piece in enumerate(text):
            for name, belongs in TOKEN_CLASSES.items():
                members[name].append(belongs(piece, position, earlier))
            earlier.add(piece)
    return {name: np.array(flags) for name, flags in members.items()}


def _class_difference(
    openness: FloatArray,
    undefined_because: str | None,
    members: np.ndarray,
    course: PositionCourse,
    seed: int,
) -> NullTest:
    tokens = course.tokens
    own = members[tokens.rows]
    n, count = len(own), int(own.sum())
    reason = why_too_few(tokens.axis_lengths, tokens.num_distinct)
    if reason is None and members[tokens.distinct_rows].any() and not own.any():
        reason = "its tokens all stand in the warm-up of a text, where delta differs for all tokens"
    distinct = members[tokens.distinct_rows]
    if reason is None and not distinct.any():
        reason = f"0 of {len(distinct)} tokens are of this class; a difference needs both kinds"
    if reason is None and count in (0, n):
        reason = f"{count} of {n} tokens are of this class; a difference needs both kinds"
    reason = reason or undefined_because
    if reason is not None:
        return undefined(reason, count)
    left = without_course(course, openness[:, None])
    values = left[0][:, 0] * left[2]

    def difference(flags: np.ndarray) -> float:
        return float(values[flags].mean() - values[~flags].mean()) if 0 < flags.sum() < n else 0.0

    shifts = draw_shifts(tokens.axis_lengths, _NUM_CLASS_SHIFTS, seed, tokens.num_distinct)
    draws = [difference(members[tokens.order(shift)]) for shift in shifts]
    return against_null(difference(own), draws, count)
