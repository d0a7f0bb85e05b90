"""Copying: whether a layer takes from the token after an earlier occurrence of the same token.

A query at token t finds the earlier tokens that are the same as t; of them the one whose tokens
before agree with t's the longest, the latest of equals. What followed it, one token on, is the
source that copying reads. That needs no planted repeat; in a passage read a second time the source
is the one at the passage's own lag.

    gain = sum over queries of w[t, s] / sum over queries of mean over AROUND of w[t, s + d]

with w the share of t's contributions, |alpha u|, that comes from s. 1 where the source is as the
lags around it are. Chance: the queries shifted in time, their sources kept, so that a source which
every token reads (or a lag that every query reads) is no copying. Related texts are shifted by
the same number of tokens: near copies of a text then count no more than one.

Source: the induction of Olsson et al. 2022, In-context Learning and Induction Heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from token_statistics.description import FloatArray, IntArray

AROUND = (-6, -5, -4, -3, 3, 4, 5, 6)
"""Sources beside the one that copying reads, tokens from it: beyond the reach of a convolution of
four tokens, which spreads what is read over its neighbours."""

NEAREST = 4
"""Smallest lag that counts as copying and as around it: nearer ones a convolution of four tokens
reads."""

REPEATED = 8
"""Tokens before and at a query that agree with those of its earlier occurrence, from which on the
two are a passage read a second time."""

SMALLEST_SHIFT = 8
"""Queries are shifted by more: nearer ones see much the same."""

MAX_SHIFTS = 100
"""To either side."""


class EarlierTokens(NamedTuple):
    """Queries of a text that were read before, by what followed them then; all (pairs,)."""

    query: IntArray
    source: IntArray
    """the token after the earlier occurrence; at least NEAREST before the query"""
    agree: IntArray
    """tokens up to the query that agree with those up to its earlier occurrence, >= 1"""

    @property
    def repeated(self) -> EarlierTokens:
        """Those within a passage that is read a second time."""
        return self.where(self.agree >= REPEATED)

    def where(self, chosen: np.ndarray) -> EarlierTokens:
        """Some of the pairs."""
        return EarlierTokens(*(column[chosen] for column in self))


def earlier_tokens(ids: Sequence[int]) -> EarlierTokens:
    """The pairs of a text's token ids (l,): see the module. Cost: O(l^2), a row at a time."""
    tokens = np.asarray(ids)
    agree = np.zeros(len(tokens), dtype=np.int64)
    found = []
    for query, token in enumerate(tokens):
        # agree[j] was that of the query before with token j: on the diagonal it grows by one.
        before = np.concatenate([[0], agree[:-1]])
        agree = np.where(tokens == token, before + 1, 0)
        agree[query:] = 0
        known = agree[: max(0, query - NEAREST)]
        if known.any():
            earlier = len(known) - 1 - int(known[::-1].argmax())
            found.append((query, earlier + 1, known[earlier]))
    return EarlierTokens(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def query_shifts() -> IntArray:
    """The shifts of the null, (2 (MAX_SHIFTS - SMALLEST_SHIFT),): to both sides."""
    later = np.arange(SMALLEST_SHIFT + 1, MAX_SHIFTS + 1)
    return np.concatenate([-later, later])


def copying_sums(shares: FloatArray, pairs: EarlierTokens, shifts: Sequence[int]) -> FloatArray:
    """Under each shift of the queries: share at the source, around it, and pairs: (shifts, 3).

    The first two are sums over the pairs that count, of ``shares`` (l, l), rows that sum to 1 over
    s <= t. A pair counts where both its source and one
    around lie NEAREST before its query or further; shifted beyond the text it does not. Sums of
    several texts add up. Cost: 9 entries of the map for each pair and shift.
    """
    length = len(shares)
    query = pairs.query + np.asarray(shifts)[:, None]
    inside = (query < length) & (query - pairs.source >= NEAREST)
    query = np.where(inside, query, 0)
    beside = pairs.source + np.array(AROUND)[:, None, None]
    counts = (beside >= 0) & (query - beside >= NEAREST)
    around = np.where(counts, shares[query, np.clip(beside, 0, length - 1)], 0.0).sum(0)
    number = counts.sum(0)
    inside &= number > 0
    at_source = np.where(inside, shares[query, pairs.source], 0.0)
    around = np.where(inside, around / np.maximum(number, 1), 0.0)
    return np.stack([at_source.sum(1), around.sum(1), inside.sum(1)], axis=1)
