"""How long a state keeps what a token wrote, by delta as it is at every token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from token_statistics.description import FloatArray

_FASTEST = 1e200
"""A state of this rate, and one of an infinite one, is gone at the next token."""


def tokens_to_half(
    deltas: Sequence[FloatArray],
    rates: FloatArray,
    counted: Sequence[NDArray[np.bool_]] | None = None,
) -> FloatArray:
    """Tokens until half of what a token wrote is left, median over tokens: (H,), inf where unknown.

    `deltas`: (l, H) for each text, `rates` (H,) = |A| of the state meant; `counted`: of each text
    (l,), the tokens s that are meant, all unless given. The smallest lag k at
    which, of the tokens s with k tokens after them, at least half have exp(-rate (S_{s+k} - S_s))
    <= 1/2, S the running sum of delta: by delta as it is at every token, exact, where the half-life
    is that of its mean. inf where no lag is such: the texts are too short. Cost: O(tokens H log l).
    """
    longest = max(map(len, deltas))
    rates = np.minimum(rates, _FASTEST)
    # Changes, from lag to lag, of the number of tokens that have half or less left, and of those
    # with so many tokens after them.
    done, at_risk = np.zeros((len(rates), longest + 1)), np.zeros(longest + 1)
    kept = [np.ones(len(one), bool) for one in deltas] if counted is None else counted
    for delta, keep in zip(deltas, kept, strict=True):
        length = len(delta)
        sums = np.ascontiguousarray((np.cumsum(delta, axis=0) * rates).T)
        ends = length - np.arange(length)
        for head, row in enumerate(sums):
            lag = np.searchsorted(row, row + math.log(2) * (1 - 1e-12)) - np.arange(length)
            reached = keep & (lag < ends)
            done[head] += np.bincount(lag[reached], minlength=longest + 1)
            done[head] -= np.bincount(ends[reached], minlength=longest + 1)
        at_risk[:length] += np.cumsum(keep)[::-1]
    some = at_risk[1:longest] > 0
    halved = (2 * done.cumsum(axis=1)[:, 1:longest] >= at_risk[1:longest]) & some
    return np.where(halved, np.arange(1, longest), np.inf).min(axis=1, initial=np.inf)
