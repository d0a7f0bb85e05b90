"""Correlation of layers over a stream of tokens: sums a batch, memory that no token adds to.

For every pair of layers the sums X^T Y of its channels are kept (`correlation_sums`), from which
Pearson's r of every pair of channels and debiased linear CKA follow at the end: memory depends on
d_model^2 and the number of pairs, time on matrix products.

How nulls go with a stream: a circular time-shift needs both ends of what it shifts, so that every
text (or segment of a long text) is shifted within itself, by its own seeded shift for each draw;
the sums of a draw accumulate over the stream as those of the data do, for shifts keep the sums of
each side. Draws cost as much as the data: where a layer has more than `num_sampled` channels, the
null and the lags are those of a seeded sample of them, the same in every batch, and the value
tested is that of the sample too; the values over all channels stand beside.

Shapes: n tokens of a batch with texts of `lengths`; p and q channels of two layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suite_plumbing.arguments import validate_int
from suite_plumbing.result_files import finite_or_none
from token_statistics.association import share_rejected
from token_statistics.autocorrelation import effective_samples
from token_statistics.channel_correlations import TopPair, significant_pairs
from token_statistics.correlation_sums import (
    AUTOCORRELATION_LAGS,
    LayerSums,
    PairSums,
    correlations,
    debiased_cka,
)
from token_statistics.description import FloatArray
from token_statistics.time_shift_nulls import (
    MAX_LAG,
    NUM_SHIFTS,
    NullTest,
    against_null,
    fields_to_dict,
    shifted_rows,
    smallest_shift,
    undefined,
    why_too_few,
    why_too_slow,
)

NUM_SAMPLED = 128
"""Channels of a layer whose time-shifts are drawn."""

BATCH_TOKENS = 2000
"""Tokens whose sums are taken at once."""

TESTED = ("mean", "mean_abs", "max_abs", "best_match", "cka")

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
    the first batch; small batches are gathered until they have `batch_tokens` tokens, so that a
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
        self._layers: dict[int, LayerSums] = {}
        self._sums: dict[tuple[int, int], PairSums] = {}

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
                self._sums[a, b] = PairSums(batch[a], batch[b], orders.shape[1])
            self._sums[a, b].update(columns[a], columns[b], orders)
        self.lengths += lengths

    def results(self) -> dict[str, StreamedCorrelation]:
        """The correlations so far, by "layer_a_to_b"; RuntimeError before any batch."""
        if self._gathered:
            self._add_gathered()
        if not self.lengths:
            raise RuntimeError("nothing has been streamed yet: call update(...) first")
        return {f"layer_{a}_to_{b}": self._result((a, b), self._sums[a, b]) for a, b in self.pairs}

    def _result(self, pair: tuple[int, int], sums: PairSums) -> StreamedCorrelation:
        a, b = (self._layers[layer] for layer in pair)
        reason = why_too_few(self.lengths)
        if reason is None and not (a.varies.any() and b.varies.any()):
            reason = "no channel of one of the layers varies over the tokens"
        n = sum(self.lengths)
        if reason is None:
            found = _statistics(a, b, sums, self.lengths)
        else:
            found = _undefined(reason, n, a, b)
        return StreamedCorrelation(
            layers=pair,
            stream=self.stream,
            shares_residual=self.stream == "residual",
            num_tokens=n,
            num_segments=len(self.lengths),
            num_channels=(int(a.varies.sum()), int(b.varies.sum())),
            **found,
        )

    def _layer(self, layer: int, values: Tensor) -> LayerSums:
        if layer not in self._layers:
            width = values.shape[1]
            chosen = self.rng.permutation(width)[: min(width, self.num_sampled)]
            self._layers[layer] = LayerSums(values, np.sort(chosen))
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


def _statistics(
    a: LayerSums, b: LayerSums, sums: PairSums, lengths: Sequence[int]
) -> dict[str, Any]:
    """The fields of `StreamedCorrelation` that the sums decide."""
    n, lags = sum(lengths), min(AUTOCORRELATION_LAGS, max(lengths) // 4)
    n_eff = effective_samples(a.autocorrelation(lags), b.autocorrelation(lags), n, pairs=True)
    if reason := why_too_slow(n_eff, lengths):
        return _undefined(reason, n, a, b)
    rows, columns = np.flatnonzero(a.varies), np.flatnonzero(b.varies)
    r = correlations(sums.every, a.every, b.every)[np.ix_(rows, columns)]
    values = *_summary(r), finite_or_none(debiased_cka(sums.every, a.every, b.every))
    share, pairs = significant_pairs(r, n_eff, rows, columns)
    return {
        "enough_tokens": True,
        "reason": None,
        "values": dict(zip(TESTED, values, strict=True)),
        "significant_share": share,
        "median_effective_samples": float(np.median(n_eff)),
        "top_pairs": pairs,
        **_against_shifts(a, b, sums, n_eff, lengths),
    }


def _against_shifts(
    a: LayerSums, b: LayerSums, sums: PairSums, n_eff: FloatArray, lengths: Sequence[int]
) -> dict[str, Any]:
    """The tests of the sampled channels; ``n_eff`` of all channels that vary."""
    n = sum(lengths)
    varies = [layer.varies[layer.chosen.numpy()] for layer in (a, b)]
    if not (varies[0].any() and varies[1].any()):
        return _untested("none of the sampled channels of a layer varies", n, a, b)

    def statistics(products: FloatArray) -> tuple[FloatArray, list[float]]:
        r = correlations(products, a.sampled, b.sampled)[np.ix_(*varies)]
        return r, [*_summary(r), debiased_cka(products, a.sampled, b.sampled)]

    num_draws = len(sums.reordered) - (2 * MAX_LAG + 1)
    drawn = [statistics(products) for products in sums.reordered[:num_draws]]
    draws = np.array([found for _, found in drawn])
    tests = [
        against_null(value, column, n)
        for value, column in zip(statistics(sums.sampled)[1], draws.T, strict=True)
    ]
    samples = n_eff[np.ix_(_places(a), _places(b))]
    by_chance = [share_rejected(r, samples) for r, _ in drawn[:_NUM_CALIBRATIONS]]
    reach = min(MAX_LAG, min(smallest_shift(length) for length in lengths) - 1)
    lagged = sums.reordered[num_draws:][MAX_LAG - reach : MAX_LAG + reach + 1]
    return {
        "num_sampled": tuple(int(v.sum()) for v in varies),
        "tests": dict(zip(TESTED, tests, strict=True)),
        "significant_share_null": float(np.mean(by_chance)),
        "lags": tuple(range(-reach, reach + 1)),
        "lagged_mean_abs": tuple(statistics(products)[1][1] for products in lagged),
    }


def _places(layer: LayerSums) -> np.ndarray:
    """Where the sampled channels that vary stand among all that vary."""
    chosen = layer.chosen.numpy()
    return np.searchsorted(np.flatnonzero(layer.varies), chosen[layer.varies[chosen]])


def _undefined(reason: str, n: int, a: LayerSums, b: LayerSums) -> dict[str, Any]:
    """The fields of `StreamedCorrelation` when nothing is claimed."""
    return {
        "enough_tokens": False,
        "reason": reason,
        "values": dict.fromkeys(TESTED),
        "significant_share": None,
        "median_effective_samples": None,
        "top_pairs": (),
        **_untested(reason, n, a, b),
    }


def _untested(reason: str, n: int, a: LayerSums, b: LayerSums) -> dict[str, Any]:
    """Those of the sampled channels when there is nothing to draw."""
    return {
        "num_sampled": (len(a.chosen), len(b.chosen)),
        "tests": dict.fromkeys(TESTED, undefined(reason, n)),
        "significant_share_null": None,
        "lags": (),
        "lagged_mean_abs": (),
    }


def _summary(r: FloatArray) -> list[float]:
    """The quantities of TESTED but the last."""
    best = np.abs(r).max(axis=0)
    return [float(x) for x in (r.mean(), np.abs(r).mean(), best.max(), best.mean())]
