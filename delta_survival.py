"""How much of a state a layer's own delta lets survive: exact decays over lags that double.

What is left after k tokens of what a token wrote is exp(A (S_t - S_{t-k})), S the running sum of
delta: the product of the decays of k tokens. The decay over 2 k tokens is that over k tokens times
the same k tokens earlier, so that one exponential a token and state gives all lags.

Letters: the glossary of `selective_scan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis_utils import FloatArray

# Decays that are worked on at once, so that they stay in a CPU's second-level cache.
_BLOCK_SIZE = 1 << 17
# Decays below this are taken as 0: products of two would be subnormal, which is slow to compute.
_NEGLIGIBLE = 2e-19


class Survival(NamedTuple):
    """What is left of a state, by lag and head."""

    lags: tuple[int, ...]
    """1, 2, 4, ... tokens, as far as the longest text reaches"""
    shares: FloatArray
    """(lags, H) mean over states, and over the tokens with so many before them, of
    exp(A (S_t - S_{t-lag})), in (0, 1]"""
    kept: FloatArray
    """(H,) mean over states and all tokens of exp(A delta_t): what a token keeps"""


def survival(deltas: Sequence[FloatArray], A: Tensor, max_lag: int) -> Survival:
    """Share of the state of each head that survives, over the tokens of all texts together.

    `deltas`: (l, H) for each text; A (H, N or 1). Lags double from 1 up to `max_lag`, and none
    reaches past the longest text. In float32, exact to about 1e-6. Cost: an exponential a token and
    state, and a product for each lag; memory two blocks of half a megabyte.
    """
    longest = max(map(len, deltas))
    lags = tuple(1 << k for k in range(max_lag.bit_length()) if 1 << k < longest)
    total = torch.zeros(len(lags) + 1, len(A), dtype=torch.float64)
    width = max(16, _BLOCK_SIZE // longest)
    for delta in deltas:
        steps = torch.from_numpy(delta)
        for start in range(0, len(A), width):
            heads = slice(start, start + width)
            block = steps[:, heads].to(torch.float32)
            for rates in A[heads].float().unbind(dim=1):
                for row, sums in enumerate(_sums_over_tokens(block * rates, len(lags))):
                    total[row, heads] += sums
    counts = [sum(max(len(delta) - lag, 0) for delta in deltas) for lag in (0, *lags)]
    means = total.numpy() / (np.array(counts)[:, None] * A.shape[1])
    return Survival(lags, means[1:], means[0])


def _sums_over_tokens(exponents: Tensor, num_lags: int) -> Iterator[Tensor]:
    """Sums over tokens of exp(exponents) (l, heads), then of its products over 1, 2, 4, ... tokens
    but the first 1, 2, 4, ..."""
    decay = torch.threshold_(exponents.exp_(), _NEGLIGIBLE, 0.0)
    ones = decay.new_ones(len(decay))
    yield ones @ decay
    lag, decay = 1, decay[1:]
    for _ in range(num_lags):
        if len(decay) < 1:
            return
        yield ones[: len(decay)] @ decay
        decay = torch.threshold_(decay[lag:] * decay[:-lag], _NEGLIGIBLE, 0.0)
        lag *= 2
