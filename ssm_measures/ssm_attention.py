"""How a mixer's delta, B and C go with its implicit attention: rank correlations, each with a null.

Over the tokens of a text: delta, |B| and |C| with the attention that a token receives and pays.
Over channels: half-life and delta with how strong and how far the attention of a channel reaches.
Correlations of many samples, never a ratio of two averages. Attention is of gates, whatever is
written; beside it stands what a token gives, |alpha u| (`attention_maps.written_map`). alpha
contains delta, B and C as factors: these numbers say how much of the attention each accounts for,
not that it causes more.

Shapes: l tokens, H heads (Mamba-1: d_inner channels). Letters: the glossary of `selective_scan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssm_measures.attention_maps import head_half_lives, head_maps, written_map
from ssm_measures.components import SSMComponents
from suite_plumbing.arguments import numpy_rng, validate_int
from token_statistics.description import FloatArray, Values, as_float64
from token_statistics.time_shift_nulls import (
    NullTest,
    spearman_permutation_test,
    spearman_shift_test,
    undefined,
)

NUM_CHANNELS = 48
"""Channels, drawn at random, whose attention is taken one by one."""

# Tokens over which attention is summed, at most a quarter of the text.
_HORIZON = 64

# Channels whose (l, l) maps are in memory at once.
_MAPS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class SSMAttentionCorrelations:
    """How a mixer's delta, B and C go with its implicit attention, one text, Spearman each.

    Attention is |alpha| summed over a window of `horizon` tokens, the same for every token, so that
    no correlation comes from early tokens having more queries.
    """

    horizon: int
    """tokens of the window, the token itself left out"""
    tokens: dict[str, NullTest]
    """by pair of quantities, over tokens; null: circular time-shifts"""
    channels: dict[str, NullTest]
    """by pair of quantities, over channels; null: permutations"""
    num_channels: int
    """channels drawn for it"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "horizon": self.horizon,
            "num_channels": self.num_channels,
            "tokens": {name: test.to_dict() for name, test in self.tokens.items()},
            "channels": {name: test.to_dict() for name, test in self.channels.items()},
        }


def ssm_attention_correlations(
    components: SSMComponents,
    absolute_map: Values,
    *,
    given_map: Values | None = None,
    num_channels: int = NUM_CHANNELS,
    seed: int = 0,
) -> SSMAttentionCorrelations:
    """Spearman correlations of one text's delta, B and C with its implicit attention.

    `absolute_map` (l, l): |alpha| averaged over channels, row t over sources s <= t
    (`selective_scan.attention_map(..., absolute=True)`). Over tokens, with sums over the `horizon`
    tokens after a source (`received`) or before a query (`paid`), and the mean distance of these:
    mean delta with received, paid and distance; |B| with received; |C| with paid. `given` is
    received of |alpha u|, what later tokens get, by `given_map` (`attention_maps.written_map`;
    None: made here): delta and |B| with it. Over `num_channels` seeded random channels: half-life
    (of the slowest state at the mean delta) and mean delta with the strength (mean paid) and mean
    distance of the channel's own attention.

    Raises ValueError for more than one text, padding, or a map of another shape or with negative or
    non-finite entries. Cost: a map of magnitudes, O(l * horizon) and the draws; num_channels maps
    (l, l), some at a time.
    """
    num_channels = validate_int("num_channels", num_channels, 1)
    weights = _checked_map(components, absolute_map)
    length = len(weights)
    horizon = min(_HORIZON, length // 4)
    received, paid, distance = _windowed_attention(weights, horizon)
    written = written_map(components)[0] if given_map is None else given_map
    given, _, _ = _windowed_attention(as_float64(written), horizon)
    sources, queries = slice(0, length - horizon), slice(horizon, length)
    token_delta = components.delta[0].double().mean(dim=1).numpy()
    # In all groups of heads, which share B and C within a group.
    b_norm, c_norm = (
        x[0].double().flatten(1).norm(dim=1).numpy() for x in (components.B, components.C)
    )
    series = {
        "delta_received": (token_delta[sources], received),
        "delta_paid": (token_delta[queries], paid),
        "delta_distance": (token_delta[queries], distance),
        "delta_given": (token_delta[sources], given),
        "B_norm_received": (b_norm[sources], received),
        "B_norm_given": (b_norm[sources], given),
        "C_norm_paid": (c_norm[queries], paid),
    }
    chosen = _chosen(components, num_channels, seed)
    return SSMAttentionCorrelations(
        horizon=horizon,
        tokens={name: _token_test(x, y, seed) for name, (x, y) in series.items()},
        channels=_over_channels(components, chosen, horizon, seed),
        num_channels=len(chosen),
    )


def _chosen(components: SSMComponents, num_channels: int, seed: int) -> list[int]:
    available = components.delta.shape[2]
    order = numpy_rng(seed).permutation(available)
    return sorted(order[:num_channels].tolist())


def _over_channels(
    components: SSMComponents, chosen: list[int], horizon: int, seed: int
) -> dict[str, NullTest]:
    strength, distance = np.full((2, len(chosen)), math.nan)
    for start in range(0, len(chosen) if horizon else 0, _MAPS_AT_ONCE):
        some = slice(start, start + _MAPS_AT_ONCE)
        maps = head_maps(components, chosen[some])[0].abs().double().numpy()
        _, paid, far = _windowed_attention(maps, horizon)
        strength[some] = paid.mean(axis=-1)
        # Each query counts by what it pays: in sum, the mean distance of the channel's attention.
        moments = np.where(paid > 0, paid * far, 0.0).sum(axis=-1)
        total = paid.sum(axis=-1)
        distance[some] = np.divide(moments, total, where=total > 0, out=np.full_like(total, np.nan))
    by_channel = {
        "half_life": head_half_lives(components)[chosen].double().numpy(),
        "delta": components.delta[0].double().mean(dim=0)[chosen].numpy(),
    }
    measured = {"strength": strength, "distance": distance}
    return {
        f"{name}_{other}": _channel_test(x, y, seed)
        for name, x in by_channel.items()
        for other, y in measured.items()
    }


def _token_test(x: FloatArray, y: FloatArray, seed: int) -> NullTest:
    if not np.isfinite(y).all():
        return undefined("a token pays no attention, so that it has no distance", len(x))
    return spearman_shift_test(x, y, [len(x)], seed=seed)


def _channel_test(x: FloatArray, y: FloatArray, seed: int) -> NullTest:
    defined = np.isfinite(x) & np.isfinite(y)
    return spearman_permutation_test(x[defined], y[defined], seed=seed)


def _checked_map(components: SSMComponents, absolute_map: Values) -> FloatArray:
    if components.delta.shape[0] != 1 or not bool(components.attention_mask.all()):
        raise ValueError(
            f"components holds {components.delta.shape[0]} texts or padding; pass one text without "
            "padding: components.text(row)"
        )
    weights, length = as_float64(absolute_map), components.delta.shape[1]
    if weights.shape != (length, length):
        raise ValueError(
            f"absolute_map has shape {weights.shape}; it must be {(length, length)} for this text"
        )
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("absolute_map holds negative or non-finite entries; pass the mean |alpha|")
    return weights


def _windowed_attention(
    weights: FloatArray, horizon: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Attention received from the next, and paid to the last, `horizon` tokens; its distance.

    Of maps (..., l, l): received[s] = sum_{k=1}^{horizon} weights[s + k, s] for s < l - horizon;
    paid[t] = sum_k weights[t, t - k] and distance[t] = sum_k k weights[t, t - k] / paid[t] for
    t >= horizon, nan where nothing is paid; each (..., l - horizon).
    """
    count = weights.shape[-1] - horizon
    received, paid, moment = np.zeros((3, *weights.shape[:-2], count))
    for k in range(1, horizon + 1):
        diagonal = np.diagonal(weights, -k, -2, -1)
        received += diagonal[..., :count]
        paid += diagonal[..., horizon - k :]
        moment += k * diagonal[..., horizon - k :]
    return received, paid, np.divide(moment, paid, where=paid > 0, out=np.full_like(paid, math.nan))
