"""Sums over the texts of a corpus from which the correlations of pairs of layers follow.

Of each layer a sample of its channels is kept, the same for all texts: for all of them the products
with each other, and the sums by position, so that the course over position can be taken out of the
finished sums. The null: the second layer of each pair of neighbours, moved circularly within each
text by a number of tokens that is drawn from the seed and the text's own number. What is kept adds
up over any parts of a corpus.

    cov = sum x y - sum over bins of positions of (sum x) (sum y) / n

of which Pearson's r and linear CKA are made [1]; with n far above the channels its bias, p / n, is
that of the null too.

References:
  [1] Kornblith et al. 2019, Similarity of neural network representations revisited
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from token_statistics.description import FloatArray, IntArray, covariance_participation_ratio
from token_statistics.time_shift_nulls import NullTest, against_null, undefined

CHANNELS = 32
"""Sampled of each layer."""

NUM_MOVES = 39
"""Draws of the null: the smallest two-sided p is 1 / 20."""

SMALLEST_MOVE = 16
"""Tokens; texts shorter than three times as many are in no sum."""


def position_bins(length: int) -> IntArray:
    """(length,) number of each position's bin: each its own up to 12, then eight to an octave.

    Of a course that is linear in the logarithm of the position, 1 / 64 of the variance that it has
    over an octave stays within the bins.
    """
    steps = np.floor(8 * np.log2(np.arange(length) + 1.0))
    return np.concatenate([[0], np.cumsum(np.diff(steps) > 0)])[:length]


class LayerPair(NamedTuple):
    """Two layers over the corpus."""

    layers: tuple[int, int]
    mean_abs_r: NullTest
    """mean over pairs of sampled channels of |r|, beside the moved texts"""
    cka: NullTest
    """linear CKA of the sampled channels"""


class PairsOfLayers:
    """Sums of the residual stream behind some layers."""

    def __init__(self, num_layers: int, width: int, positions: int, seed: int = 0) -> None:
        self.seed, self.num_layers = seed, num_layers
        self.channels = min(CHANNELS, width)
        rng = np.random.default_rng([seed, width])
        self.chosen = np.sort(rng.permutation(width)[: self.channels])
        columns, bins = num_layers * self.channels, int(position_bins(positions)[-1]) + 1
        pairs, moved = max(0, num_layers - 1), NUM_MOVES * self.channels
        self.sums: dict[str, np.ndarray] = {
            "products": np.zeros((columns, columns)),
            "by_bin": np.zeros((bins, columns)),
            "bin_counts": np.zeros(bins),
            "moved_products": np.zeros((pairs, self.channels, moved)),
            "moved_by_bin": np.zeros((pairs, bins, moved)),
        }

    def add(self, streams: Sequence[Tensor], number: int) -> None:
        """Add a text: (l, channels) of each layer, the ``chosen`` ones; ``number`` of the text.

        Texts too short to be moved are left out. Cost: (layers + moves) matrix products, float64.
        """
        length = len(streams[0])
        if length < 3 * SMALLEST_MOVE:
            return
        bins = torch.from_numpy(position_bins(length))
        member = torch.zeros(len(self.sums["bin_counts"]), length, dtype=torch.float64)
        member[bins, torch.arange(length)] = 1.0
        # All products are torch's, whose threads are counted: their number decides over last bits.
        sides = [stream.double().cpu() for stream in streams]
        every = torch.cat(sides, dim=1)
        self.sums["products"] += (every.mT @ every).numpy()
        self.sums["by_bin"] += (member @ every).numpy()
        self.sums["bin_counts"] += member.sum(1).numpy()
        rng = np.random.default_rng([self.seed, number])
        moves = rng.integers(SMALLEST_MOVE, length - SMALLEST_MOVE + 1, NUM_MOVES)
        rows = torch.from_numpy((np.arange(length)[:, None] + moves) % length)
        for pair in range(self.num_layers - 1):
            moved = sides[pair + 1][rows].flatten(1)
            self.sums["moved_products"][pair] += (sides[pair].mT @ moved).numpy()
            self.sums["moved_by_bin"][pair] += (member @ moved).numpy()


def pairs_of(sums: dict[str, np.ndarray], layers: Sequence[int]) -> list[LayerPair]:
    """Neighbouring layers, in order, each pair beside its null."""
    channels = len(sums["products"]) // len(layers)
    n = int(sums["bin_counts"].sum())
    if n < 4 * channels:
        reason = f"n = {n} tokens in texts long enough to be moved; {4 * channels} are needed"
        nothing = undefined(reason, n)
        return [LayerPair(pair, nothing, nothing) for pair in _neighbours(layers)]
    covariance = _covariance(sums, channels)
    found = []
    for number, pair in enumerate(_neighbours(layers)):
        a, b = (_part(i, channels) for i in (number, number + 1))
        values = _alike(covariance[a, b], covariance[a, a], covariance[b, b])
        draws = np.array(list(_moved(sums, number, channels, covariance[a, a])))
        tests = (against_null(v, d, n) for v, d in zip(values, draws.T, strict=True))
        found.append(LayerPair(pair, *tests))
    return found


def cka_of_all(sums: dict[str, np.ndarray], num_layers: int) -> FloatArray:
    """(layers, layers) linear CKA of the sampled channels; nan without variance."""
    channels = len(sums["products"]) // num_layers
    covariance = _covariance(sums, channels)
    parts = [_part(i, channels) for i in range(num_layers)]
    return np.array(
        [
            [_alike(covariance[a, b], covariance[a, a], covariance[b, b])[1] for b in parts]
            for a in parts
        ]
    )


def participation_ratios(sums: dict[str, np.ndarray], num_layers: int) -> FloatArray:
    """(layers,) participation ratio of the sampled channels, 1 to their number; nan without
    variance."""
    channels = len(sums["products"]) // num_layers
    covariance = _covariance(sums, channels)
    parts = [_part(i, channels) for i in range(num_layers)]
    return np.array([float(covariance_participation_ratio(covariance[p, p])) for p in parts])


def _neighbours(layers: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(layers))


def _part(number: int, channels: int) -> slice:
    return slice(number * channels, (number + 1) * channels)


def _covariance(sums: dict[str, np.ndarray], channels: int) -> FloatArray:
    """Sums of products about the course over position."""
    means, counts = _bin_means(sums)
    return sums["products"] - means.T @ (means * counts[:, None])


def _bin_means(sums: dict[str, np.ndarray]) -> tuple[FloatArray, FloatArray]:
    counts = sums["bin_counts"]
    return sums["by_bin"] / np.maximum(counts, 1)[:, None], counts


def _moved(sums: dict[str, np.ndarray], pair: int, channels: int, own: FloatArray):
    """The same statistics of every draw of the null."""
    means, counts = _bin_means(sums)
    a, b = (_part(i, channels) for i in (pair, pair + 1))
    later = np.maximum(counts, 1)[:, None]
    raw = sums["products"][b, b]
    for move in range(NUM_MOVES):
        columns = _part(move, channels)
        by_bin = sums["moved_by_bin"][pair][:, columns]
        cross = sums["moved_products"][pair][:, columns] - means[:, a].T @ by_bin
        # Moved within their texts, channels keep their own products; their course is another.
        side = raw - by_bin.T @ (by_bin / later)
        yield _alike(cross, own, side)


def _alike(cross: FloatArray, own: FloatArray, other: FloatArray) -> tuple[float, float]:
    """Mean |r| over all pairs of channels, and linear CKA; nan without variance."""
    scale = np.sqrt(np.outer(own.diagonal(), other.diagonal()).clip(min=0))
    varies = scale > 0
    if not varies.any():
        return np.nan, np.nan
    r = np.abs(cross[varies] / scale[varies]).clip(max=1.0)
    size = np.linalg.norm(own) * np.linalg.norm(other)
    return float(r.mean()), float(np.square(cross).sum() / size)
