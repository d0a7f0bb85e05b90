"""Which tokens of their texts an edit has before it: all of them, or the next of a generation.

``edit(stage, x)`` gets the tokens of one call of the model: a whole text, or with a cache the part
of it that this call reads, one token at a time in ``generate``. Positions count from the first real
token of each row, whatever padding stands before it and however many calls read the text.

Shapes: b texts, l tokens of the call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_here = threading.local()

_NOT_COUNTED = (
    "the cache was filled outside fast_scan, so that the positions of its tokens are not known; "
    "read the whole text inside"
)


class Turned(NamedTuple):
    """By what the states of a Mamba-3 have turned."""

    angle: Tensor
    """(b, l, H, S) theta of each token"""
    halves: bool
    """whether state i turns with i + N / 2, or neighbours with each other"""


class EditMemory(NamedTuple):
    """What edits of one mixer keep beside its memory, by keys of theirs; rows first."""

    before: dict[Any, Tensor]
    """as earlier calls left it"""
    after: dict[Any, Tensor]
    """as this call leaves it"""


class TokensRead(NamedTuple):
    """The tokens that one call of a mixer reads."""

    mask: Tensor | None
    """(b, l) 0 at padding; None where there is none"""
    before: Tensor | None
    """(b,) real tokens of each text that earlier calls read, None where nobody counted them"""
    in_parts: bool
    """whether earlier or later calls read other parts of the same texts"""
    state: Tensor | None = None
    """(b, d_inner, N) the mixer's state before the first of them; None at the start of a text"""
    kept: EditMemory | None = None
    """None where no cache goes from call to call"""
    entered: Tensor | None = None
    """(b, d_inner, N) in Mamba-3 the part of ``state`` that the first token writes of the one
    before it; None at the start of a text"""
    turned: Turned | None = None
    """in Mamba-3"""


@contextmanager
def reading(tokens: TokensRead) -> Iterator[None]:
    """Within this context, edits of this thread are told of these tokens."""
    outer = getattr(_here, "tokens", None)
    _here.tokens = tokens
    try:
        yield
    finally:
        _here.tokens = outer


def token_positions(x: Tensor) -> Tensor:
    """(b, l) position of each of x's tokens in its text, from 0; -1 at padding.

    ``x`` (b, l, ...) is what an edit was given; one row where all are alike. Outside of a mixer's
    replay: 0 to l - 1. Raises ValueError where the text was begun outside ``fast_scan``, for then
    nobody counted its tokens.
    """
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    if tokens is None or tokens.mask is None:
        positions = torch.arange(x.shape[1], device=x.device)[None]
    else:
        real = tokens.mask.to(x.device) != 0
        positions = torch.where(real, real.cumsum(1) - 1, -1)
    if tokens is None or not tokens.in_parts:
        return positions
    if tokens.before is None:
        raise ValueError(_NOT_COUNTED)
    before = tokens.before.to(x.device)[:, None]
    return torch.where(positions < 0, positions, positions + before)


def state_before() -> Tensor | None:
    """(b, d_inner, N) state of the mixer before the tokens at hand; None at a text's start."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    return None if tokens is None else tokens.state


def tell(**quantities: Any) -> None:
    """Note what a replay has found out of the tokens at hand, by names of `TokensRead`."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    if tokens is not None:
        _here.tokens = tokens._replace(**quantities)


def entered_before() -> Tensor | None:
    """(b, d_inner, N) in Mamba-3 what the first token at hand writes of the token before it."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    return None if tokens is None else tokens.entered


def turned_by() -> Turned | None:
    """By what the states of the tokens at hand have turned in a Mamba-3; None elsewhere."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    return None if tokens is None else tokens.turned


def tokens_read_before() -> Tensor:
    """(b,) real tokens of each text that earlier calls read; one 0 for all at the start of a text.

    Raises ValueError as :func:`token_positions`.
    """
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    if tokens is None or not tokens.in_parts:
        return torch.zeros(1, dtype=torch.long)
    if tokens.before is None:
        raise ValueError(_NOT_COUNTED)
    return tokens.before


def kept_by_edit(key: Any) -> Tensor | None:
    """What an edit kept under this key when earlier calls read these texts; None where it did not.

    Rows are those of the texts at hand, reordered as the cache was.
    """
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    return None if tokens is None or tokens.kept is None else tokens.kept.before.get(key)


def keep_for_edit(key: Any, value: Tensor) -> None:
    """Keep (b, ...) for the next call of the same texts; nothing where there is no cache."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    if tokens is not None and tokens.kept is not None:
        tokens.kept.after[key] = value.detach()


def reads_in_parts() -> bool:
    """Whether the call at hand reads a part of its texts only: it has a cache."""
    tokens: TokensRead | None = getattr(_here, "tokens", None)
    return tokens is not None and tokens.in_parts


def real_tokens(mask: Tensor | None, rows: int, length: int) -> Tensor:
    """(b,) real tokens of each row of a call."""
    return torch.full((rows,), length) if mask is None else (mask != 0).sum(1).cpu()
