"""Correlation of layers over a corpus read batch by batch: sums, memory that no token adds to.

For every pair of layers the sums X^T Y of its channels are kept (`correlation_sums`), from which
Pearson's r of every pair of channels and debiased linear CKA follow at the end: memory depends on
d_model^2 and the number of pairs, time on matrix products.

What is correlated, and what its null moves, are those of `channel_correlations`, batch by batch:

- A text is known by the hashes of what was read up to each of its tokens and of its n-grams, which
  are kept (`related_texts`); its tokens are not. What was read before in any batch counts no second
  time, and a group of related texts is moved by the same shifts in every batch. Only in one batch
  do its texts lie on one axis: a text that comes alone is moved within itself, so that where its
  end is moved to its beginning it may part from a relative of another length in another batch.
- The course over position is taken out of each batch by itself. Batches of fewer than MIN_GROUPS
  independent texts that have a position lose a smooth course alone. Layers that vary by position
  alike over the whole stream (`position_scale`) are refused at its end.
- Draws cost as much as the data: where a layer has more than `num_sampled` channels, the null, the
  lags and the distribution that single pairs are held against are those of a seeded sample of them,
  the same in every batch, and the value tested is that of the sample too; the values over all
  channels stand beside.

Shapes: N tokens of a batch with texts of `lengths`, n observations among them; p and q channels of
two layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from suite_plumbing.arguments import validate_int
from suite_plumbing.messages import quoted
from suite_plumbing.precision import in_full_precision
from suite_plumbing.related_texts import SeenTexts
from suite_plumbing.result_files import finite_or_none
from token_statistics.autocorrelation import effective_samples
from token_statistics.channel_correlations import (
    PAIR_STATISTICS,
    TopPair,
    significant_pairs,
)
from token_statistics.correlation_sums import (
    AUTOCORRELATION_LAGS,
    LayerColumns,
    LayerSums,
    PairSums,
    correlations,
    debiased_cka,
)
from token_statistics.description import FloatArray, IntArray
from token_statistics.observations import Observations, from_readings, row_tokens
from token_statistics.pair_significance import ShiftedPairs
from token_statistics.position_course import MIN_GROUPS, PositionCourse, without_course
from token_statistics.position_scale import PositionEnergy, why_scaled_alike
from token_statistics.time_shift_nulls import (
    MAX_LAG,
    NUM_SHIFTS,
    NullTest,
    against_null,
    fields_to_dict,
    smallest_shift,
    undefined,
    why_too_few,
    why_too_slow,
)

NUM_SAMPLED = 128
"""Channels of a layer whose time-shifts are drawn."""

BATCH_TOKENS = 2000
"""Tokens whose sums are taken at once."""

TESTED = tuple(PAIR_STATISTICS)

# Moves whose columns stand side by side in one matrix product.
_MOVES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class StreamedCorrelation:
    """Correlation of two layers over all tokens of a corpus; None where undefined."""

    layers: tuple[int, int]
    """(a, b)"""
    stream: str
    """what was correlated"""
    shares_residual: bool
    """True for the residual stream: b's activations contain a's"""
    num_tokens: int
    """distinct observations: tokens that were not read before with the same history; of them
    `num_warm_up` are in no statistic"""
    num_segments: int
    """texts or segments"""
    num_groups: int
    """independent groups of related texts: how many texts there are to speak of"""
    groups: tuple[int, ...]
    """of each text: number of the first text of its group"""
    num_warm_up: int
    """tokens left out at the beginning of texts"""
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
    """share of all pairs with r != 0 at a false discovery rate of 5 %, by the
    distribution of the sampled channels' pairs under the shifts"""
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
            raise ValueError(
                f"layer_pairs is {quoted(layer_pairs)}; name each pair once, at least one"
            )
        self.pairs = [(int(a), int(b)) for a, b in layer_pairs]
        self.stream = stream
        self.num_shifts = validate_int("num_shifts", num_shifts, 20)
        self.num_sampled = validate_int("num_sampled", num_sampled, 1)
        self.batch_tokens = validate_int("batch_tokens", batch_tokens, 1)
        self.rng = np.random.default_rng(validate_int("seed", seed, 0))
        self.lengths: list[int] = []
        self._axes: list[int] = []
        self._counts = _Counts()
        self._texts = SeenTexts()
        self._shifts: dict[int, np.ndarray] = {}
        self._widths: dict[int, int] = {}
        self._gathered: list[_Part] = []
        self._layers: dict[int, LayerSums] = {}
        self._energies: dict[int, PositionEnergy] = {}
        self._halves: dict[int, int] = {}
        self._sums: dict[tuple[int, int], PairSums] = {}

    def update(
        self,
        values: Mapping[int, Tensor],
        lengths: Sequence[int],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Add a batch: by layer (N, channels), the tokens of one text after those of another.

        ``lengths``: tokens of each text, or of each segment of a long text; they sum to N.
        ``token_ids``: of each text, by which what was read before is known; None: by equal values.
        Raises ValueError for a layer that is missing, has other tokens or other channels than
        before, and for ids of other lengths.
        """
        needed = sorted({layer for pair in self.pairs for layer in pair})
        self._check(values, lengths, needed)
        if token_ids is None:
            sides = [values[layer].detach().cpu().numpy() for layer in self.pairs[0]]
            token_ids = row_tokens(sides, lengths)
        elif [len(ids) for ids in token_ids] != list(lengths):
            raise ValueError(
                f"token_ids holds texts of {[len(ids) for ids in token_ids]} tokens, lengths "
                f"{list(lengths)}; pass the ids of the same tokens"
            )
        self._widths = {layer: values[layer].shape[1] for layer in needed}
        gathered = sum(sum(part.lengths) for part in self._gathered) + sum(lengths)
        enough = gathered >= self.batch_tokens
        # What stays for later is copied: the caller may write over it.
        kept = {layer: values[layer] if enough else values[layer].clone() for layer in needed}
        self._gathered.append(_Part(kept, list(lengths), token_ids))
        if enough:
            self._add_gathered()

    @in_full_precision
    def _add_gathered(self) -> None:
        """Add what has been gathered to the sums, as one batch."""
        parts, self._gathered = self._gathered, []
        values = {
            layer: torch.cat([part.values[layer] for part in parts]).double().numpy()
            for layer in self._widths
        }
        self.lengths += [length for part in parts for length in part.lengths]
        read = [self._texts.add(ids) for part in parts for ids in part.token_ids]
        norms = np.stack([np.linalg.norm(side, axis=1) for side in values.values()], axis=1)
        first = len(self.lengths) - len(read)
        tokens = from_readings(
            [one._replace(group=self._texts.group(first + i)) for i, one in enumerate(read)], norms
        )
        self._counts.add(tokens)
        if not len(tokens.rows):
            return
        course = PositionCourse(tokens)
        self._counts.samples += course.samples
        self._counts.freedom += course.freedom
        self._axes += tokens.axis_lengths
        left = {layer: self._add_layer(layer, values[layer], course) for layer in values}
        for a, b in self.pairs:
            if (a, b) not in self._sums:
                num_moves = self.num_shifts + 2 * MAX_LAG + 1
                self._sums[a, b] = PairSums(self._layers[a], self._layers[b], num_moves)
            self._sums[a, b].update(left[a].columns, left[b].columns)
            self._add_moves(self._sums[a, b], left[a].columns, self._layers[b], left[b], course)

    def _add_layer(self, layer: int, values: FloatArray, course: PositionCourse) -> _Batch:
        """Add a batch of one layer to its sums."""
        left, moving, divisor = without_course(course, values)
        kept = torch.from_numpy(left * divisor)
        if layer not in self._layers:
            width = values.shape[1]
            chosen = self.rng.permutation(width)[: min(width, self.num_sampled)]
            self._layers[layer] = LayerSums(kept, np.sort(chosen))
        sums = self._layers[layer]
        columns = sums.update(kept, course.tokens.used_lengths)
        chosen = sums.chosen.numpy()
        scaled = moving[:, chosen] * (divisor[chosen] / sums.sampled.scale.numpy())
        tokens = course.tokens.end_matched(moving)
        energy = self._energies.setdefault(layer, PositionEnergy())
        energy.add(columns.every[:, :-2].numpy(), tokens.positions, self._half_of(tokens))
        return _Batch(columns, torch.from_numpy(scaled.astype(np.float32)), tokens)

    def _half_of(self, tokens: Observations) -> IntArray:
        """Half of each observation (n,): groups by turns, in the order they came."""
        for group in tokens.group_numbers:
            self._halves.setdefault(group, len(self._halves) % 2)
        return np.array([self._halves[group] for group in tokens.row_groups.tolist()])

    def _add_moves(
        self, sums: PairSums, a: LayerColumns, layer: LayerSums, b: _Batch, course: PositionCourse
    ) -> None:
        """Add the draws of the null, then the lags -MAX_LAG to MAX_LAG."""
        lags = [-lag for lag in range(-MAX_LAG, MAX_LAG + 1)]
        moves = [*self._draw(b.tokens).T, *lags]
        for start in range(0, len(moves), _MOVES_AT_ONCE):
            columns = []
            for number, move in enumerate(moves[start : start + _MOVES_AT_ONCE], start):
                tokens = b.tokens if number < self.num_shifts else course.tokens
                rows = torch.from_numpy(tokens.order(move))
                # index_select copies whole rows: three times as fast as indexing by a matrix.
                moved = course.taken_out_(b.moving.index_select(0, rows))
                columns.append(layer.sampled.moved(moved))
            sums.add_moved(a, start, torch.stack(columns, dim=1))

    def results(self) -> dict[str, StreamedCorrelation]:
        """The correlations so far, by "layer_a_to_b"; RuntimeError before any batch."""
        if self._gathered:
            self._add_gathered()
        if not self.lengths:
            raise RuntimeError("nothing has been added yet: call update(...) first")
        return {f"layer_{a}_to_{b}": self._result((a, b), self._sums[a, b]) for a, b in self.pairs}

    def _result(self, pair: tuple[int, int], sums: PairSums) -> StreamedCorrelation:
        a, b = (self._layers[layer] for layer in pair)
        counts = self._counts
        groups = tuple(self._texts.group(i) for i in range(len(self.lengths)))
        reason = why_too_few(self._axes, counts.num_distinct)
        if reason is None and not (a.varies.any() and b.varies.any()):
            reason = "no channel of one of the layers varies over the tokens"
        n = counts.num_used
        if reason is None and len(self._halves) >= MIN_GROUPS:
            reason = why_scaled_alike(*(self._energies[layer] for layer in pair))
        if reason is None:
            found = _statistics(a, b, sums, self._axes, self.lengths, counts)
        else:
            found = _undefined(reason, n, a, b)
        return StreamedCorrelation(
            layers=pair,
            stream=self.stream,
            shares_residual=self.stream == "residual",
            num_tokens=counts.num_distinct,
            num_segments=len(self.lengths),
            num_groups=len(set(groups)),
            groups=groups,
            num_warm_up=counts.num_distinct - n,
            num_channels=(int(a.varies.sum()), int(b.varies.sum())),
            **found,
        )

    def _draw(self, tokens: Observations) -> np.ndarray:
        """Shifts (axes, draws); those of a group are the same in every batch."""
        drawn = []
        for group, size in zip(tokens.axis_groups, tokens.axis_lengths, strict=True):
            low = smallest_shift(size)
            choices = max(size - 2 * low + 1, 1)
            if group not in self._shifts:
                self._shifts[group] = self.rng.integers(0, choices, self.num_shifts)
            drawn.append(low + self._shifts[group] % choices if size > 1 else self._shifts[group])
        return np.array(drawn)

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


class _Part(NamedTuple):
    """Texts that wait until there are enough of them."""

    values: dict[int, Tensor]
    lengths: list[int]
    token_ids: Sequence[Sequence[int]]


class _Batch(NamedTuple):
    """One layer's part of a batch."""

    columns: LayerColumns
    moving: Tensor  # (N, sampled) in units of their scale, as a null moves them
    tokens: Observations  # with their axes as they are moved


@dataclass
class _Counts:
    """How many tokens the stream had so far."""

    num_distinct: int = 0
    num_used: int = 0
    samples: float = 0.0
    freedom: float = 0.0
    longest: int = 0

    def add(self, tokens: Observations) -> None:
        """Count those of a batch."""
        self.num_distinct += tokens.num_distinct
        self.num_used += len(tokens.rows)
        self.longest = max((self.longest, *tokens.used_lengths))


def _statistics(
    a: LayerSums,
    b: LayerSums,
    sums: PairSums,
    axes: Sequence[int],
    lengths: Sequence[int],
    counts: _Counts,
) -> dict[str, Any]:
    """The fields of `StreamedCorrelation` that the sums decide."""
    lags = min(AUTOCORRELATION_LAGS, counts.longest // 4)
    rho_a, rho_b = (side.autocorrelation(lags) for side in (a, b))
    n_eff = effective_samples(rho_a, rho_b, counts.samples, pairs=True)
    if reason := why_too_slow(n_eff, axes, counts.num_distinct, counts.samples):
        return _undefined(reason, counts.num_used, a, b)
    rows, columns = np.flatnonzero(a.varies), np.flatnonzero(b.varies)
    r = correlations(sums.every, a.every, b.every)[np.ix_(rows, columns)]
    values = (
        *_summary(r),
        finite_or_none(debiased_cka(sums.every, a.every, b.every, counts.freedom)),
    )
    null, tested = _against_shifts(a, b, sums, n_eff, lengths, counts)
    share, pairs = significant_pairs(r, n_eff, null, rows, columns) if null else (None, ())
    return {
        "enough_tokens": True,
        "reason": None,
        "values": dict(zip(TESTED, values, strict=True)),
        "significant_share": share,
        "median_effective_samples": float(np.median(n_eff)),
        "top_pairs": pairs,
        **tested,
    }


def _against_shifts(
    a: LayerSums,
    b: LayerSums,
    sums: PairSums,
    n_eff: FloatArray,
    lengths: Sequence[int],
    counts: _Counts,
) -> tuple[ShiftedPairs | None, dict[str, Any]]:
    """The tests of the sampled channels, and the null of single pairs; ``n_eff`` of all channels
    that vary."""
    n = counts.num_used
    varies = [layer.varies[layer.chosen.numpy()] for layer in (a, b)]
    if not (varies[0].any() and varies[1].any()):
        return None, _untested("none of the sampled channels of a layer varies", n, a, b)

    def moved(number: int) -> tuple[FloatArray, list[float]]:
        products = sums.moved[number]
        r = correlations(products, a.sampled, b.sampled, sums.squares[number])[np.ix_(*varies)]
        return r, [*_summary(r), debiased_cka(products, a.sampled, b.sampled, counts.freedom)]

    null = ShiftedPairs(n_eff[np.ix_(_places(a), _places(b))])
    num_draws, draws = len(sums.moved) - (2 * MAX_LAG + 1), []
    for number in range(num_draws):
        r, found = moved(number)
        null.add(torch.from_numpy(np.abs(r).astype(np.float32)), number)
        draws.append(found)
    r = correlations(sums.sampled, a.sampled, b.sampled)[np.ix_(*varies)]
    values = [*_summary(r), debiased_cka(sums.sampled, a.sampled, b.sampled, counts.freedom)]
    tests = [
        against_null(value, column, n)
        for value, column in zip(values, np.array(draws).T, strict=True)
    ]
    reach = min(MAX_LAG, min(smallest_shift(length) for length in lengths) - 1)
    lags = range(-reach, reach + 1)
    return null, {
        "num_sampled": tuple(int(v.sum()) for v in varies),
        "tests": dict(zip(TESTED, tests, strict=True)),
        "significant_share_null": null.share_by_chance(),
        "lags": tuple(lags),
        "lagged_mean_abs": tuple(moved(num_draws + MAX_LAG + lag)[1][1] for lag in lags),
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
