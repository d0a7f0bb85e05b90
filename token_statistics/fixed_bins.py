"""Histograms on bins that no data set: half octaves, so that those of any parts of a corpus add up.

A bin holds the magnitudes of [2^k, 1.5 2^k) or [1.5 2^k, 2^(k + 1)) with one sign, which are the
sign, exponent and first bit of a float32. Quantiles are read from the counts: within a bin the
samples are taken as spread evenly, so that a quantile is off by at most the width of its bin.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from token_statistics.description import FloatArray, IntArray

LOWEST, HIGHEST = -24, 16
"""Exponents of 2: magnitudes below the first count as 0, those of the last and above it as its."""

HALF = 2 * (HIGHEST - LOWEST)
"""Bins of one sign; the histogram of signed values has 2 HALF + 1, from negative to positive."""

NUM_BINS = 2 * HALF + 1


def bin_numbers(values: Tensor) -> Tensor:
    """Number of each value's bin, int64, 0 to NUM_BINS - 1, of the shape of ``values``.

    Bin HALF is that of 0. NaN counts as the largest.
    """
    bits = values.float().contiguous().view(torch.int32)
    steps = ((bits & 0x7FFFFFFF) >> 22) - 2 * (127 + LOWEST)
    steps = (steps + 1).clamp_(0, HALF).long()
    return torch.where(bits < 0, HALF - steps, HALF + steps)


def counts_by_channel(values: Tensor) -> IntArray:
    """(channels, NUM_BINS) counts of values (n, channels). Cost: one pass."""
    channels = values.shape[1]
    numbers = bin_numbers(values) + torch.arange(channels, device=values.device) * NUM_BINS
    counts = torch.bincount(numbers.flatten(), minlength=channels * NUM_BINS)
    return counts.view(channels, NUM_BINS).cpu().numpy()


def edges() -> FloatArray:
    """(NUM_BINS + 1,) ends of the bins; the bin of 0 reaches to the lowest magnitude each way."""
    powers = 2.0 ** np.arange(LOWEST, HIGHEST)
    above = np.stack([powers, 1.5 * powers], axis=1).reshape(-1)
    above = np.append(above, 2.0**HIGHEST)
    return np.concatenate([-above[::-1], above])


def quantiles(counts: IntArray, shares: FloatArray) -> FloatArray:
    """(channels, shares) values below which these shares of the counts (channels, NUM_BINS) lie.

    nan for a channel without counts.
    """
    total = counts.sum(1, keepdims=True)
    passed = counts.cumsum(1)
    ends = edges()
    found = np.full((len(counts), len(shares)), np.nan)
    for column, share in enumerate(shares):
        wanted = share * total[:, 0]
        place = np.minimum((passed < wanted[:, None]).sum(1), NUM_BINS - 1)
        rows = np.arange(len(counts))
        inside = counts[rows, place]
        before = passed[rows, place] - inside
        part = np.divide(wanted - before, inside, out=np.zeros(len(counts)), where=inside > 0)
        value = ends[place] + part * (ends[place + 1] - ends[place])
        found[:, column] = np.where(total[:, 0] > 0, value, np.nan)
    return found
