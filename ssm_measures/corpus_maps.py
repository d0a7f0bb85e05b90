"""Sums over the texts of a corpus of what takes a map (l, l), the states, or a series in time.

Maps and states are those of some heads, evenly spaced (`layer_overview.measured_heads`); in Mamba-1
a head is a channel. Everything is float64 and additive: sums by position, by lag, by token of the
vocabulary, by block of documents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selective_scan.attention import attention_map
from selective_scan.operands import with_groups
from selective_scan.scan import scan_hidden_states
from ssm_measures.attention_maps import kernel_of
from ssm_measures.attention_measures import query_statistics, row_shares
from ssm_measures.copying import EarlierTokens, copying_sums, query_shifts
from ssm_measures.corpus_layer import BLOCKS, LayerReplay
from ssm_measures.layer_overview import (
    SINK_POSITIONS,
    Operands,
    measured_heads,
    openness,
    operands_of,
    sink_sums,
)
from token_statistics.description import FloatArray

MAP_HEADS = 32
"""Heads that maps and states are measured over."""

QUERY_SUMS = (
    "entropy_share",
    "mean_distance",
    "strength",
    "self_share",
    "first_share",
    "recent_share",
)
"""Measures of a query that are summed by its position; see `attention_measures.QueryStatistics`."""

MAP_BLOCK_SUMS = ("texts", "first_share", "queries", "at_source", "around", "pairs")
"""Columns of the sums by block of documents."""

SERIES_LAGS = 64
"""Lags of the autocorrelation of a layer's openness."""


class MapText(NamedTuple):
    """One text of a batch, cut to its tokens: the operands of a layer, b = 1."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    y: Tensor
    own_share: Tensor | None = None
    skip: Tensor | None = None


def text_of(replay: LayerReplay, row: int, length: int) -> MapText:
    """The operands of one row of a batch, without what is padded behind it."""
    part = (slice(row, row + 1), slice(0, length))
    per_token = (replay.u[part], replay.delta[part], replay.A, replay.B[part], replay.C[part])
    some = (None if x is None else x[part] for x in (replay.own_share, replay.skip))
    return MapText(*per_token, replay.D, replay.y[part], *some)


class MapSums:
    """What one layer has added so far, by name; ``positions`` is the longest text."""

    def __init__(self, vocabulary: int, positions: int) -> None:
        zeros = np.zeros
        self.sums: dict[str, np.ndarray] = {
            "map_queries": zeros((len(QUERY_SUMS), positions)),
            "map_query_counts": zeros((len(QUERY_SUMS), positions)),
            "lag_sums": zeros(positions), "lag_counts": zeros(positions),
            "received": zeros(vocabulary), "paid": zeros(vocabulary), "mapped": zeros(vocabulary),
            "state_norm": zeros(positions), "retained_norm": zeros(positions),
            "written_norm": zeros(positions), "state_counts": zeros(positions),
            "sinks": zeros((SINK_POSITIONS + 1, 2)),
            "copying": zeros((len(query_shifts()) + 1, 3)),
            "output_squares": zeros(2),
            "series_products": zeros(SERIES_LAGS + 1), "series_ends": zeros(SERIES_LAGS + 1),
            "series_counts": zeros(SERIES_LAGS + 1),
            "map_blocks": zeros((BLOCKS, len(MAP_BLOCK_SUMS))),
        }  # fmt: skip

    def add(self, text: MapText, ids: np.ndarray, pairs: EarlierTokens, block: int) -> None:
        """Add one text. Cost: two maps and one scan of MAP_HEADS heads."""
        heads = measured_heads(text.delta.shape[2], with_groups(text.B).shape[2], MAP_HEADS)
        some = operands_of(text, heads)
        kernel = kernel_of(some)
        absolute = attention_map(**kernel, absolute=True)
        written = attention_map(**kernel, key_weight=some.u, absolute=True)
        first = self._add_queries(absolute)
        shares = row_shares(absolute)[0].double().cpu().numpy()
        self._add_lags(absolute[0].double().cpu().numpy())
        self._add_attention(shares, ids)
        self.sums["sinks"] += sink_sums(shares)
        copied = self._add_copying(row_shares(written)[0].double().cpu().numpy(), pairs)
        self.sums["map_blocks"][block] += (1, *first, *copied)
        self._add_states(some)
        self._add_outputs(text)
        self._add_series(openness(some.delta[0]).cpu().numpy())

    def _add_queries(self, absolute: Tensor) -> tuple[float, int]:
        """Sums by position of the query; the sum of the first token's share, and queries, without
        the first."""
        length = absolute.shape[1]
        found = query_statistics(absolute, torch.ones(absolute.shape[:2], device=absolute.device))
        for row, name in enumerate(QUERY_SUMS):
            values = getattr(found, name)[0].double().cpu().numpy()
            known = np.isfinite(values)
            self.sums["map_queries"][row, :length] += np.where(known, values, 0.0)
            self.sums["map_query_counts"][row, :length] += known
        share = found.first_share[0, 1:].double()
        known = share.isfinite()
        return float(share[known].sum()), int(known.sum())

    def _add_lags(self, absolute: FloatArray) -> None:
        length = len(absolute)
        lag = np.arange(length)[:, None] - np.arange(length)
        causal = lag >= 0
        self.sums["lag_sums"][:length] += np.bincount(lag[causal], absolute[causal], length)
        self.sums["lag_counts"][:length] += np.arange(length, 0, -1)

    def _add_attention(self, shares: FloatArray, ids: np.ndarray) -> None:
        """What a token receives: mean over later queries of the share times the sources it stands
        among, 1 where attention is uniform; what it pays to others: 1 - its own share."""
        length = len(shares)
        if length < 2:
            return
        later = np.tril(shares * np.arange(1, length + 1)[:, None], -1).sum(0)[:-1]
        received = later / np.arange(length - 1, 0, -1)
        size = len(self.sums["mapped"])
        # The last token has no later query, and so it counts nowhere.
        paid = 1.0 - shares.diagonal()[:-1]
        for name, values in (("received", received), ("paid", paid)):
            self.sums[name] += np.bincount(ids[:-1], values, minlength=size)
        self.sums["mapped"] += np.bincount(ids[:-1], minlength=size)

    def _add_copying(self, shares: FloatArray, pairs: EarlierTokens) -> FloatArray:
        """Sums under the shift 0, then those of the null; those of the shift 0, (3,)."""
        if not len(pairs.query):
            return np.zeros(3)
        found = copying_sums(shares, pairs, [0, *query_shifts()])
        self.sums["copying"] += found
        return found[0]

    def _add_states(self, some: Operands) -> None:
        """Norms by position of h, of what is kept of it and of what is written, over the heads."""
        width = some.u.shape[2] // some.delta.shape[2]
        h = scan_hidden_states(*some[:4], own_share=some.own_share)[0].unflatten(1, (-1, width))
        decay = torch.exp(some.delta[0].unsqueeze(-1) * some.A).unsqueeze(2)
        kept = torch.cat([torch.zeros_like(h[:1]), decay[1:] * h[:-1]])
        for name, x in (("state_norm", h), ("retained_norm", kept), ("written_norm", h - kept)):
            norm = x.flatten(1).double().norm(dim=1).cpu().numpy()
            self.sums[name][: len(norm)] += norm
        self.sums["state_counts"][: len(h)] += 1

    def _add_outputs(self, text: MapText) -> None:
        """Squares of the two parts of y, over all channels: D u, which the convolution of the last
        tokens gives, and C h, which the state gives."""
        skip = text.D.repeat_interleave(text.u.shape[2] // len(text.D))
        direct = (text.u * (skip if text.skip is None else text.skip)).double()
        state = text.y.double() - direct
        self.sums["output_squares"] += (float(direct.square().sum()), float(state.square().sum()))

    def _add_series(self, series: FloatArray) -> None:
        """Products of the openness with itself some tokens later, and what their mean needs."""
        length = len(series)
        for lag in range(min(SERIES_LAGS, length - 1) + 1):
            early, late = series[: length - lag], series[lag:]
            self.sums["series_products"][lag] += early @ late
            self.sums["series_ends"][lag] += early.sum() + late.sum()
            self.sums["series_counts"][lag] += length - lag


def autocorrelation_of(products: FloatArray, ends: FloatArray, counts: FloatArray) -> FloatArray:
    """(lags,) autocorrelation within texts about the mean over all of them; nan where undefined."""
    if counts[0] == 0:
        return np.full(len(counts), np.nan)
    mean = ends[0] / (2.0 * counts[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = (products - mean * ends) / counts + mean**2
        return covariance / covariance[0] if covariance[0] > 0 else np.full(len(counts), np.nan)
