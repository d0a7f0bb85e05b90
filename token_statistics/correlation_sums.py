"""Sums over the tokens of a corpus from which the correlations of two layers follow.

Of each layer: the products of its channels with each other, and of each with itself some tokens
later. Of each pair of layers: the products of their channels, and of a sample of them those with
one side shifted in time. Two columns stand beside the channels, the squared norm of each token
and 1, so that means, variances, Pearson's r and debiased linear CKA [2] follow from sums alone.

References:
  [1] Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance (shifted data)
  [2] Kornblith et al. 2019; Song et al. 2012, eq. 5: see `channel_correlations`

Shapes: n tokens of a batch with texts of `lengths`; p and q channels of two layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from token_statistics.cka import unbiased_hsic
from token_statistics.description import FloatArray

AUTOCORRELATION_LAGS = 64
"""Lags of the products of a channel with itself, tokens."""


class ChannelSums:
    """Sums of the columns of some channels of a layer, with each other."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale
        self.relative_scale = (scale / scale.max()).numpy()
        self.products = np.zeros((len(scale) + 2,) * 2)

    def add(self, centred: Tensor) -> Tensor:
        """Add a batch (n, p) of centred channels; its columns (n, p + 2).

        They are the channels in units of their scale, the token's squared norm (of the channels in
        units of the largest scale, over p), and 1.
        """
        num_channels = centred.shape[1]
        columns = centred.new_ones(len(centred), num_channels + 2)
        torch.div(centred, self.scale.float(), out=columns[:, :-2])
        norms = torch.linalg.vector_norm(centred, dim=1) / float(self.scale.max())
        columns[:, -2] = norms.square() / num_channels
        # All products are torch's: the threads that numpy's wait with would slow torch's by half.
        self.products += (columns.mT @ columns).numpy()
        return columns

    def moved(self, values: Tensor) -> Tensor:
        """Columns (n, p + 2) of channels in units of their scale that were moved."""
        columns = values.new_ones(len(values), values.shape[1] + 2)
        columns[:, :-2] = values
        weights = torch.from_numpy(np.square(self.relative_scale)).to(values)
        columns[:, -2] = values.square() @ weights / values.shape[1]
        return columns

    def means(self) -> FloatArray:
        """(p,) mean of each scaled channel."""
        return self.products[:-2, -1] / self.products[-1, -1]

    def deviations(self) -> FloatArray:
        """(p,) square root of the centred sum of squares of each scaled channel."""
        sums = self.products
        squares = np.diag(sums)[:-2] - np.square(sums[:-2, -1]) / sums[-1, -1]
        return np.sqrt(np.maximum(squares, 0.0))

    def norm_weights(self) -> FloatArray:
        """Weights (p + 2,) of a token's columns that give its squared norm about the mean.

        |z - m|^2 = |z|^2 - 2 m.z + |m|^2, z the channels in units of the largest scale.
        """
        mean = self.relative_scale * self.means()
        return np.concatenate([-2.0 * mean * self.relative_scale, [len(mean), float(mean @ mean)]])


class LayerColumns(NamedTuple):
    """A batch of one layer (n, p + 2), of all its channels and of those sampled."""

    every: Tensor
    sampled: Tensor


class LayerSums:
    """Sums of one layer, centred and scaled by its first batch [1]."""

    def __init__(self, first: Tensor, sampled: np.ndarray) -> None:
        self.chosen = torch.from_numpy(sampled)
        spread, self.offset = torch.std_mean(first.double(), dim=0, correction=0)
        scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        self.every, self.sampled = ChannelSums(scale), ChannelSums(scale[self.chosen])
        self._first_token = first[0].clone()
        self._changed = torch.zeros(len(scale), dtype=torch.bool)
        self._lagged = np.zeros((AUTOCORRELATION_LAGS + 1, len(scale)))
        self._ends = np.zeros_like(self._lagged)
        self._counts = np.zeros(AUTOCORRELATION_LAGS + 1)

    @property
    def varies(self) -> np.ndarray:
        """(channels,) whether a channel has taken two values."""
        return self._changed.numpy()

    def update(self, values: Tensor, lengths: Sequence[int]) -> LayerColumns:
        """Add a batch (n, channels); its columns."""
        still = (~self._changed).nonzero().squeeze(1)
        self._changed[still] = (values[:, still] != self._first_token[still]).any(dim=0)
        centred = (values - self.offset.to(values)).float()
        every = self.every.add(centred)
        self._add_lags(every[:, :-2], lengths)
        return LayerColumns(every, self.sampled.add(centred[:, self.chosen]))

    def _add_lags(self, scaled: Tensor, lengths: Sequence[int]) -> None:
        """Products of each channel with itself k tokens later, texts of one length at once."""
        parts = scaled.split(list(lengths))
        for length in set(lengths):
            texts = torch.stack([part for part in parts if len(part) == length])
            reach = min(AUTOCORRELATION_LAGS, length - 1)
            kept = slice(0, reach + 1)
            self._lagged[kept] += _lagged_products(texts, reach)
            total = texts.sum(dim=0).double().numpy()
            self._ends[kept] += 2.0 * total.sum(axis=0)
            self._ends[1 : reach + 1] -= np.cumsum(total[:reach] + total[::-1][:reach], axis=0)
            self._counts[kept] += len(texts) * (length - np.arange(reach + 1))

    def autocorrelation(self, max_lag: int) -> FloatArray:
        """(max_lag + 1, channels that vary), as `time_shift_nulls.autocorrelation_within_texts`."""
        varies, lags = self.varies, slice(0, max_lag + 1)
        mean = self.every.means()[varies]
        # sum (x_t - m)(x_{t+k} - m), of which `_ends` holds the sums of x_t + x_{t+k}.
        sums = self._lagged[lags, varies] - mean * self._ends[lags, varies]
        sums += self._counts[lags, None] * mean**2
        return sums / np.square(self.every.deviations()[varies])


class PairSums:
    """Sums of two layers: of all channels, of those sampled, and of these for each move."""

    def __init__(self, first: LayerSums, second: LayerSums, num_moves: int) -> None:
        p, q = len(first.every.products), len(second.every.products)
        self.every = np.zeros((p, q))
        p, q = len(first.sampled.products), len(second.sampled.products)
        self.sampled = np.zeros((p, q))
        self._moved = np.zeros((p, num_moves, q))
        self.squares = np.zeros((num_moves, q - 2))
        """(moves, q) sums of squares of the moved channels"""

    @property
    def moved(self) -> FloatArray:
        """(moves, p + 2, q + 2)"""
        return self._moved.swapaxes(0, 1)

    def update(self, a: LayerColumns, b: LayerColumns) -> None:
        """Add a batch as it is."""
        self.every += (a.every.mT @ b.every).numpy()
        self.sampled += (a.sampled.mT @ b.sampled).numpy()

    def add_moved(self, a: LayerColumns, first: int, moved: Tensor) -> None:
        """Add the moves from number ``first`` on, side by side: columns (n, moves, q + 2)."""
        count, width = moved.shape[1:]
        product = a.sampled.mT.contiguous() @ moved.reshape(len(moved), -1)
        self._moved[:, first : first + count] += product.view(-1, count, width).numpy()
        self.squares[first : first + count] += moved[..., :-2].square().sum(dim=0).double().numpy()


def correlations(
    sums: FloatArray, a: ChannelSums, b: ChannelSums, squares: FloatArray | None = None
) -> FloatArray:
    """Pearson's r (p, q) from the sums (p + 2, q + 2) of two layers; 0 without variance.

    ``squares`` (q,): those of b's channels where they were moved; their sums are 0.
    """
    deviations = b.deviations() if squares is None else np.sqrt(squares)
    scale = np.outer(a.deviations(), deviations)
    r = np.divide(_centred(sums), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(r, -1.0, 1.0)


def debiased_cka(
    sums: FloatArray, a: ChannelSums, b: ChannelSums, freedom: float | None = None
) -> float:
    """Debiased linear CKA [2] from the same sums, in [-1, 1]; nan where a side has none itself.

    ``freedom``: see `cka.unbiased_hsic`.
    """
    own = _hsic(a.products, a, a, freedom), _hsic(b.products, b, b, freedom)
    total = _traces(sums, a, b)
    if min(own) <= 0 or total <= 0:
        return np.nan
    # Moved, b keeps its spectrum but for the scale: see `cka.DebiasedCKA`.
    scale = (
        np.sqrt(own[0] * own[1])
        * total
        / np.sqrt(_traces(a.products, a, a) * _traces(b.products, b, b))
    )
    return float(np.clip(_hsic(sums, a, b, freedom) / scale, -1.0, 1.0))


def _hsic(sums: FloatArray, a: ChannelSums, b: ChannelSums, freedom: float | None) -> float:
    """Unbiased HSIC [2] times a factor of n alone."""
    n = sums[-1, -1]
    x, y = a.norm_weights(), b.norm_weights()
    energy = np.square(a.relative_scale[:, None] * _centred(sums) * b.relative_scale).sum()
    diagonal = x @ sums @ y
    return float(unbiased_hsic(energy, diagonal, _traces(sums, a, b), n, freedom))


def _traces(sums: FloatArray, a: ChannelSums, b: ChannelSums) -> float:
    """Product of the sums of the tokens' squared norms of both sides."""
    return float((a.norm_weights() @ sums[:, -1]) * (sums[-1, :] @ b.norm_weights()))


def _centred(sums: FloatArray) -> FloatArray:
    """(p, q) centred sums of products: the last row and column are the sums of each side."""
    return sums[:-2, :-2] - np.outer(sums[:-2, -1], sums[-1, :-2]) / sums[-1, -1]


def _lagged_products(texts: Tensor, max_lag: int) -> FloatArray:
    """sum over texts and t of x_t x_{t+k} for k = 0..max_lag: (texts, l, p) -> (max_lag + 1, p)."""
    size = fft.next_fast_len(texts.shape[1] + max_lag, real=True)  # no wrap-around up to max_lag
    spectra = torch.view_as_real(torch.fft.rfft(texts, size, dim=1))
    power = spectra.square().sum(dim=(0, -1)).double()
    return torch.fft.irfft(power, size, dim=0)[: max_lag + 1].numpy()
