"""Correlation of layers over a stream of tokens: sums a batch, memory that no token adds to.

For every pair of layers the sums X^T Y of its channels are kept, with two columns more: the squared
norm of each token, and 1. Means, variances, Pearson's r of every pair of channels, and debiased
linear CKA follow from them at the end, so that memory depends on d_model^2 and the number of pairs,
and time on matrix products alone.

How nulls go with a stream: a circular time-shift needs both ends of what it shifts, so that every
text (or segment of a long text) is shifted within itself, by its own seeded shift for each draw;
the sums of a draw accumulate over the stream as those of the data do, for shifts keep the sums of
each side. Draws cost as much as the data: where a layer has more than `num_sampled` channels, the
null and the lags are those of a seeded sample of them, the same in every batch, and the value
tested is that of the sample too; the values over all channels stand beside.

References:
  [1] Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance (shifted data)
  [2] Kornblith et al. 2019; Song et al. 2012, eq. 5: see `channel_correlations`

Shapes: n tokens of a batch with texts of `lengths`; p and q channels of two layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from analysis_utils import FloatArray, benjamini_hochberg, pearson_p_values
from channel_correlations import FALSE_DISCOVERY_RATE, TopPair, share_rejected, top_pairs
from time_shift_nulls import (
    MAX_LAG,
    NUM_SHIFTS,
    NullTest,
    against_null,
    effective_samples,
    fields_to_dict,
    shifted_rows,
    smallest_shift,
    undefined,
    why_too_few,
    why_too_slow,
)
from utils import finite_or_none, validate_int

NUM_SAMPLED = 128
"""Channels of a layer whose time-shifts are drawn."""
BATCH_TOKENS = 2000
"""Tokens whose sums are taken at once."""
AUTOCORRELATION_LAGS = 64
"""Lags that correct the sample size, tokens; a quarter of a shorter text."""

TESTED = ("mean", "mean_abs", "max_abs", "best_match", "cka")
# Shifts whose columns stand side by side in one matrix product.
_SHIFTS_AT_ONCE = 8
_NUM_CALIBRATIONS = 3


@dataclass(frozen=True, eq=False)
class StreamedCorrelation:
    """Correlation of two layers over all tokens of a stream; None where undefined."""

    layers: tuple[int, int]
    """(a, b)"""
    stream: str
    """what was correlated"""
    shares_residual: bool
    """True for the residual stream: b's activations contain a's"""
    num_tokens: int
    num_segments: int
    """texts or segments, each shifted within itself"""
    num_channels: tuple[int, int]
    """channels of a and b that vary"""
    enough_tokens: bool
    reason: str | None
    """why nothing is claimed"""
    values: dict[str, float | None]
    """over all pairs of channels: mean of r, of |r|, largest |r|, mean over b's channels of the
    largest |r| with any of a, and debiased linear CKA; keys TESTED"""
    num_sampled: tuple[int, int]
    """channels of a and b behind `tests` and `lagged_mean_abs`"""
    tests: dict[str, NullTest]
    """the same quantities over the sampled channels; null: circular time-shifts"""
    significant_share: float | None
    """share of all pairs with r != 0 at a false discovery rate of 5 %, by the effective sample
    size"""
    significant_share_null: float | None
    """the same of the sampled channels under time-shifts, mean of three"""
    median_effective_samples: float | None
    top_pairs: tuple[TopPair, ...]
    """of largest |r|, descending"""
    lags: tuple[int, ...]
    """tokens by which b is taken later than a, circularly within each segment"""
    lagged_mean_abs: tuple[float, ...]
    """mean |r| of the sampled channels at each lag"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return fields_to_dict(self)


class StreamedCorrelations:
    """Correlations of pairs of layers, accumulated batch by batch.

    Memory: for each pair p q + (num_shifts + 17) num_sampled^2 sums, for each layer p^2, in
    float64, and some copies of one batch. Cost a batch: for each pair one (p, n) x (n, q) product
    and num_shifts + 17 of the sampled channels, in float32; for each layer one (p, n) x (n, p)
    product and a Fourier transform. Sums within a batch are float32 on data centred and scaled by
    the first batch [1]; small batches are gathered until they have `batch_tokens` tokens, so that a
    single odd text does not set the scale.
    """

    def __init__(
        self,
        layer_pairs: Sequence[tuple[int, int]],
        *,
        stream: str = "residual",
        num_shifts: int = NUM_SHIFTS,
        num_sampled: int = NUM_SAMPLED,
        batch_tokens: int = BATCH_TOKENS,
        seed: int = 0,
    ) -> None:
        if not layer_pairs or len(set(layer_pairs)) < len(layer_pairs):
            raise ValueError(f"layer_pairs is {layer_pairs!r}; name each pair once, at least one")
        self.pairs = [(int(a), int(b)) for a, b in layer_pairs]
        self.stream = stream
        self.num_shifts = validate_int("num_shifts", num_shifts, 20)
        self.num_sampled = validate_int("num_sampled", num_sampled, 1)
        self.batch_tokens = validate_int("batch_tokens", batch_tokens, 1)
        self.rng = np.random.default_rng(seed)
        self.lengths: list[int] = []
        self._widths: dict[int, int] = {}
        self._gathered: list[tuple[dict[int, Tensor], list[int]]] = []
        self._layers: dict[int, _LayerSums] = {}
        self._sums: dict[tuple[int, int], _PairSums] = {}

    def update(self, values: Mapping[int, Tensor], lengths: Sequence[int]) -> None:
        """Add a batch: by layer (n, channels), the tokens of one text after those of another.

        ``lengths``: tokens of each text, or of each segment of a long text; they sum to n. Raises
        ValueError for a layer that is missing, has other tokens or other channels than before.
        """
        needed = sorted({layer for pair in self.pairs for layer in pair})
        self._check(values, lengths, needed)
        self._widths = {layer: values[layer].shape[1] for layer in needed}
        gathered = sum(sum(known) for _, known in self._gathered) + sum(lengths)
        enough = gathered >= self.batch_tokens
        # What stays for later is copied: the caller may write over it.
        kept = {layer: values[layer] if enough else values[layer].clone() for layer in needed}
        self._gathered.append((kept, list(lengths)))
        if enough:
            self._add_gathered()

    def _add_gathered(self) -> None:
        """Add what has been gathered to the sums, as one batch."""
        parts, self._gathered = self._gathered, []
        values = {
            layer: torch.cat([part[layer] for part, _ in parts])
            if parts[1:]
            else parts[0][0][layer]
            for layer in self._widths
        }
        lengths = [length for _, known in parts for length in known]
        orders = self._draw(lengths)
        batch = {layer: self._layer(layer, values[layer]) for layer in values}
        columns = {layer: sums.update(values[layer], lengths) for layer, sums in batch.items()}
        for a, b in self.pairs:
            if (a, b) not in self._sums:
                self._sums[a, b] = _PairSums(batch[a], batch[b], orders.shape[1])
            self._sums[a, b].update(columns[a], columns[b], orders)
        self.lengths += lengths

    def results(self) -> dict[str, StreamedCorrelation]:
        """The correlations so far, by "layer_a_to_b"; RuntimeError before any batch."""
        if self._gathered:
            self._add_gathered()
        if not self.lengths:
            raise RuntimeError("nothing has been streamed yet: call update(...) first")
        return {f"layer_{a}_to_{b}": self._result((a, b), self._sums[a, b]) for a, b in self.pairs}

    def _result(self, pair: tuple[int, int], sums: _PairSums) -> StreamedCorrelation:
        a, b = (self._layers[layer] for layer in pair)
        reason = why_too_few(self.lengths)
        if reason is None and not (a.varies.any() and b.varies.any()):
            reason = "no channel of one of the layers varies over the tokens"
        n = sum(self.lengths)
        found = sums.undefined(reason, n) if reason else sums.statistics(self.lengths)
        return StreamedCorrelation(
            layers=pair,
            stream=self.stream,
            shares_residual=self.stream == "residual",
            num_tokens=n,
            num_segments=len(self.lengths),
            num_channels=(int(a.varies.sum()), int(b.varies.sum())),
            **found,
        )

    def _layer(self, layer: int, values: Tensor) -> _LayerSums:
        if layer not in self._layers:
            width = values.shape[1]
            chosen = self.rng.permutation(width)[: min(width, self.num_sampled)]
            self._layers[layer] = _LayerSums(values, np.sort(chosen))
        return self._layers[layer]

    def _draw(self, lengths: Sequence[int]) -> Tensor:
        """Row orders (n, orders) of the null's draws, then those of lags -MAX_LAG to MAX_LAG."""
        ranges = [(smallest_shift(length), length - smallest_shift(length)) for length in lengths]
        draws = [
            [int(self.rng.integers(a, b + 1)) if a <= b else 0 for a, b in ranges]
            for _ in range(self.num_shifts)
        ]
        lags = [[-lag] * len(lengths) for lag in range(-MAX_LAG, MAX_LAG + 1)]
        orders = [shifted_rows(lengths, shift) for shift in [*draws, *lags]]
        return torch.from_numpy(np.stack(orders, axis=1))

    def _check(
        self, values: Mapping[int, Tensor], lengths: Sequence[int], needed: Sequence[int]
    ) -> None:
        if missing := sorted(set(needed) - set(values)):
            raise ValueError(f"values lacks layers {missing}; it must hold {list(needed)}")
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths is {list(lengths)}; every text has at least one token")
        for layer in needed:
            shape = tuple(values[layer].shape)
            expected = (sum(lengths), self._widths.get(layer, shape[-1]))
            if shape != expected:
                raise ValueError(
                    f"values of layer {layer} have shape {shape}; expected {expected}: a row for "
                    "each token of lengths"
                )
            # One pass: a mean is finite only if every entry is.
            if not values[layer].mean(dim=0).isfinite().all():
                raise ValueError(f"values of layer {layer} hold nan or infinite entries")


class _Columns(NamedTuple):
    """A batch of one layer: (n, p + 2) scaled channels, squared norm and 1; of all, of some."""

    every: Tensor
    sampled: Tensor


class _LayerSums:
    """Sums of one layer with itself."""

    def __init__(self, first: Tensor, sampled: np.ndarray) -> None:
        self.width, self.sampled = first.shape[1], torch.from_numpy(sampled)
        spread, self.offset = torch.std_mean(first.double(), dim=0, correction=0)
        self.scale = torch.where(spread > 0, spread, torch.ones_like(spread))
        # Scales of the squared norms, of all channels and of those sampled.
        self.norms = self.width, len(sampled)
        self.own = np.zeros((self.width + 2,) * 2)
        self.own_sampled = np.zeros((len(sampled) + 2,) * 2)
        self.first_token = first[0].clone()
        self.changed = torch.zeros(self.width, dtype=torch.bool)
        self.lagged = np.zeros((AUTOCORRELATION_LAGS + 1, self.width))
        self.ends = np.zeros((AUTOCORRELATION_LAGS + 1, self.width))
        self.counts = np.zeros(AUTOCORRELATION_LAGS + 1)

    @property
    def varies(self) -> np.ndarray:
        """(channels,) whether a channel has taken two values."""
        return self.changed.numpy()

    def update(self, values: Tensor, lengths: Sequence[int]) -> _Columns:
        constant = (~self.changed).nonzero().squeeze(1)
        self.changed[constant] = (values[:, constant] != self.first_token[constant]).any(dim=0)
        centred = (values - self.offset.to(values)).float()
        every = _columns(centred, self.scale, self.norms[0])
        some = _columns(centred[:, self.sampled], self.scale[self.sampled], self.norms[1])
        # All products are torch's: the threads that numpy's wait with would slow torch's by half.
        for own, part in ((self.own, every), (self.own_sampled, some)):
            own += (part.mT @ part).numpy()
        self._add_lags(every[:, :-2], lengths)
        return _Columns(every, some)

    def _add_lags(self, scaled: Tensor, lengths: Sequence[int]) -> None:
        """Products of each channel with itself k tokens later, texts of one length at once."""
        parts = scaled.split(list(lengths))
        for length in set(lengths):
            texts = torch.stack([part for part in parts if len(part) == length])
            reach = min(AUTOCORRELATION_LAGS, length - 1)
            kept = slice(0, reach + 1)
            self.lagged[kept] += _lagged_products(texts, reach)
            total = texts.sum(dim=0).double().numpy()
            self.ends[kept] += 2.0 * total.sum(axis=0)
            self.ends[1 : reach + 1] -= np.cumsum(total[:reach] + total[::-1][:reach], axis=0)
            self.counts[kept] += len(texts) * (length - np.arange(reach + 1))

    def autocorrelation(self, max_lag: int) -> FloatArray:
        """(max_lag + 1, channels that vary), as `time_shift_nulls.autocorrelation_within_texts`."""
        varies, lags = self.varies, slice(0, max_lag + 1)
        mean = (self.own[:-2, -1] / self.own[-1, -1])[varies]
        sums = self.lagged[lags, varies] - mean * self.ends[lags, varies]
        return (sums + self.counts[lags, None] * mean**2) / np.square(self.deviations()[varies])

    def deviations(self) -> FloatArray:
        """(channels,) square root of the centred sum of squares, of the scaled channels."""
        return _deviations(self.own)

    def norm_weights(self, own: FloatArray, some: bool) -> FloatArray:
        """Weights (p + 2,) of a row's columns that give its squared norm about the mean.

        |z - m|^2 = |z|^2 - 2 m.z + |m|^2, z the channels about the offset in units of the largest
        scale.
        """
        scale = self.scale[self.sampled] if some else self.scale
        relative = (scale / scale.max()).numpy()
        mean = relative * own[:-2, -1] / own[-1, -1]
        width = self.norms[1] if some else self.norms[0]
        return np.concatenate([-2.0 * mean * relative, [width, float(mean @ mean)]])

    def weights(self, some: bool) -> FloatArray:
        """(p,) scale of each channel in units of the largest."""
        scale = self.scale[self.sampled] if some else self.scale
        return (scale / scale.max()).numpy()


class _PairSums:
    """Sums of two layers: of the data, and of the sampled channels for each shift and lag."""

    def __init__(self, first: _LayerSums, second: _LayerSums, num_orders: int) -> None:
        self.first, self.second = first, second
        self.every = np.zeros((first.width + 2, second.width + 2))
        p, q = len(first.sampled) + 2, len(second.sampled) + 2
        self.sampled = np.zeros((p, q))
        self.shifted = np.zeros((p, num_orders, q))

    def update(self, a: _Columns, b: _Columns, orders: Tensor) -> None:
        self.every += (a.every.mT @ b.every).numpy()
        self.sampled += (a.sampled.mT @ b.sampled).numpy()
        transposed = a.sampled.mT.contiguous()
        for start in range(0, orders.shape[1], _SHIFTS_AT_ONCE):
            rows = orders[:, start : start + _SHIFTS_AT_ONCE]
            # index_select copies whole rows: three times as fast as indexing by a matrix.
            shifted = b.sampled.index_select(0, rows.flatten()).view(len(rows), -1)
            product = transposed @ shifted
            self.shifted[:, start : start + rows.shape[1]] += product.unflatten(
                1, (rows.shape[1], -1)
            ).numpy()

    def effective_samples(self, lengths: Sequence[int]) -> FloatArray:
        """(p, q) of the channels that vary: see `time_shift_nulls.effective_samples`."""
        lags = min(AUTOCORRELATION_LAGS, max(lengths) // 4)
        rho_x, rho_y = (side.autocorrelation(lags) for side in (self.first, self.second))
        return effective_samples(rho_x, rho_y, sum(lengths), pairs=True)

    def statistics(self, lengths: Sequence[int]) -> dict[str, Any]:
        """The fields of `StreamedCorrelation` that the sums decide."""
        a, b = self.first, self.second
        n_eff = self.effective_samples(lengths)
        if reason := why_too_slow(n_eff, lengths):
            return self.undefined(reason, sum(lengths))
        rows, columns = np.flatnonzero(a.varies), np.flatnonzero(b.varies)
        r = _correlations(self.every, a.own, b.own)[np.ix_(rows, columns)]
        values = *_summary(r), finite_or_none(self._cka(self.every, False))
        adjusted = benjamini_hochberg(pearson_p_values(r, n_eff), FALSE_DISCOVERY_RATE).adjusted
        return {
            "enough_tokens": True,
            "reason": None,
            "values": dict(zip(TESTED, values, strict=True)),
            "significant_share": float((adjusted <= FALSE_DISCOVERY_RATE).mean()),
            "median_effective_samples": float(np.median(n_eff)),
            "top_pairs": top_pairs(r, n_eff, adjusted, rows, columns),
            **self._against_shifts(n_eff, lengths),
        }

    def _against_shifts(self, n_eff: FloatArray, lengths: Sequence[int]) -> dict[str, Any]:
        """The tests of the sampled channels; ``n_eff`` of all channels that vary."""
        n = sum(lengths)
        sides = self.first, self.second
        chosen = [side.sampled.numpy() for side in sides]
        varies = [side.varies[numbers] for side, numbers in zip(sides, chosen, strict=True)]
        if not (varies[0].any() and varies[1].any()):
            return self.untested("none of the sampled channels of a layer varies", n)
        some = np.ix_(*varies)
        # Among the channels that vary, the sampled ones.
        places = [
            np.searchsorted(np.flatnonzero(side.varies), numbers[kept])
            for side, numbers, kept in zip(sides, chosen, varies, strict=True)
        ]
        samples = n_eff[np.ix_(*places)]
        own = self.first.own_sampled, self.second.own_sampled
        shifted = self.shifted.swapaxes(0, 1)
        num_draws = len(shifted) - (2 * MAX_LAG + 1)

        def r_of(sums: FloatArray) -> FloatArray:
            return _correlations(sums, *own)[some]

        draws = np.array([[*_summary(r_of(s)), self._cka(s, True)] for s in shifted[:num_draws]])
        values = [*_summary(r_of(self.sampled)), self._cka(self.sampled, True)]
        tests = [against_null(v, drawn, n) for v, drawn in zip(values, draws.T, strict=True)]
        by_chance = [share_rejected(r_of(s), samples) for s in shifted[:_NUM_CALIBRATIONS]]
        reach = min(MAX_LAG, min(smallest_shift(length) for length in lengths) - 1)
        lagged = shifted[num_draws:][MAX_LAG - reach : MAX_LAG + reach + 1]
        return {
            "num_sampled": tuple(int(v.sum()) for v in varies),
            "tests": dict(zip(TESTED, tests, strict=True)),
            "significant_share_null": float(np.mean(by_chance)),
            "lags": tuple(range(-reach, reach + 1)),
            "lagged_mean_abs": tuple(float(np.abs(r_of(s)).mean()) for s in lagged),
        }

    def _cka(self, sums: FloatArray, some: bool) -> float:
        a, b = self.first, self.second
        own = (a.own_sampled, b.own_sampled) if some else (a.own, b.own)
        x, y = a.norm_weights(own[0], some), b.norm_weights(own[1], some)
        scales = a.weights(some), b.weights(some)
        cross = _hsic(sums, x, y, *scales)
        selves = (
            _hsic(own[0], x, x, scales[0], scales[0]),
            _hsic(own[1], y, y, scales[1], scales[1]),
        )
        if min(selves) <= 0:
            return np.nan
        return float(np.clip(cross / np.sqrt(selves[0] * selves[1]), -1.0, 1.0))

    def undefined(self, reason: str, n: int) -> dict[str, Any]:
        """The same fields when nothing is claimed."""
        return {
            "enough_tokens": False,
            "reason": reason,
            "values": dict.fromkeys(TESTED),
            "significant_share": None,
            "median_effective_samples": None,
            "top_pairs": (),
            **self.untested(reason, n),
        }

    def untested(self, reason: str, n: int) -> dict[str, Any]:
        """The fields of the sampled channels when there is nothing to draw."""
        return {
            "num_sampled": (len(self.first.sampled), len(self.second.sampled)),
            "tests": dict.fromkeys(TESTED, undefined(reason, n)),
            "significant_share_null": None,
            "lags": (),
            "lagged_mean_abs": (),
        }


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _columns(centred: Tensor, scale: Tensor, width: int) -> Tensor:
    """(n, p + 2): channels (n, p) in units of their scale, the token's squared norm, and 1.

    The squared norm is that of the channels in units of the largest scale, over `width`.
    """
    columns = centred.new_ones(len(centred), centred.shape[1] + 2)
    torch.div(centred, scale.float(), out=columns[:, :-2])
    norms = torch.linalg.vector_norm(centred, dim=1) / float(scale.max())
    columns[:, -2] = norms.square() / width
    return columns


def _lagged_products(texts: Tensor, max_lag: int) -> FloatArray:
    """sum over texts and t of x_t x_{t+k} for k = 0..max_lag: (texts, l, p) -> (max_lag + 1, p)."""
    size = fft.next_fast_len(texts.shape[1] + max_lag, real=True)  # no wrap-around up to max_lag
    spectra = torch.view_as_real(torch.fft.rfft(texts, size, dim=1))
    power = spectra.square().sum(dim=(0, -1)).double()
    return torch.fft.irfft(power, size, dim=0)[: max_lag + 1].numpy()


def _deviations(own: FloatArray) -> FloatArray:
    squares = np.diag(own)[:-2] - np.square(own[:-2, -1]) / own[-1, -1]
    return np.sqrt(np.maximum(squares, 0.0))


def _centred(sums: FloatArray) -> FloatArray:
    """(p, q) centred sums of products: the last row and column are the sums of each side."""
    return sums[:-2, :-2] - np.outer(sums[:-2, -1], sums[-1, :-2]) / sums[-1, -1]


def _correlations(sums: FloatArray, own_a: FloatArray, own_b: FloatArray) -> FloatArray:
    """Pearson's r (p, q); 0 in channels that do not vary, which callers leave out."""
    scale = np.outer(_deviations(own_a), _deviations(own_b))
    r = np.divide(_centred(sums), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(r, -1.0, 1.0)


def _summary(r: FloatArray) -> list[float]:
    """The quantities of TESTED but the last."""
    best = np.abs(r).max(axis=0)
    return [float(x) for x in (r.mean(), np.abs(r).mean(), best.max(), best.mean())]


def _hsic(
    sums: FloatArray, x: FloatArray, y: FloatArray, scale_x: FloatArray, scale_y: FloatArray
) -> float:
    """Unbiased HSIC [2] times a factor of n alone, from the sums of augmented columns."""
    n = sums[-1, -1]
    energy = np.square(scale_x[:, None] * _centred(sums) * scale_y).sum()
    diagonal = x @ sums @ y
    traces = (x @ sums[:, -1]) * (sums[-1, :] @ y)
    return float(energy - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2)))
