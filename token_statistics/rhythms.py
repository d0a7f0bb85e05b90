"""Rhythm of a series: a period at which its spectrum rises again above that of slow change.

The spectrum is the Fourier transform of the autocorrelation [1] and mostly says nothing that the
autocorrelation does not. It says more where a series swings with a period: then the autocorrelation
falls below zero and comes back, and the lag at which it first meets its null is no memory time.
Slow change, whatever its course (decay, sums over a window, mixtures of them), has the less power
the higher the frequency; only a rhythm makes the spectrum rise.

References:
  [1] Blackman & Tukey 1958, The measurement of power spectra
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from token_statistics.description import FloatArray

MIN_LAGS = 4
"""Fewer lags than this show no cycle twice."""

# Frequencies within one step of the spectrum's resolution, 1 / lags.
_PER_RESOLUTION = 32


class Rhythm(NamedTuple):
    """The period that stands out most in a spectrum; None where none does.

    A pattern that is not a sine has power at fractions of its period too (a text that repeats every
    7 tokens at 7, 3.5, 2.33), and the strongest is named.
    """

    period: float | None
    """tokens a cycle, 2 to half of the lags, to period^2 / (64 lags)"""
    power: float | None
    """power at the period, or the largest where there is none; white noise has 1"""
    power_null_high: float | None
    """95 % quantile of the largest power over shuffles of the tokens"""
    rise: float | None
    """power at the period over the least at any lower frequency; None without power above null"""
    rise_null_high: float | None
    """95 % quantile of the largest such rise over the shuffles"""
    reason: str | None
    """why there is no period"""


def rhythm(rho: FloatArray, shuffled: FloatArray) -> Rhythm:
    """The rhythm of a series from its autocorrelation at lags 1..K, rho (K,), and that of shuffles.

    S(f) = 1 + 2 sum_k (1 - k / (K + 1)) rho_k cos(2 pi f k), with Bartlett's window, for f in
    [1 / K, 1 / 2]. Among the frequencies of at least two cycles within K tokens, f >= 2 / K, whose
    power exceeds the 95 % quantile of the largest power of the `shuffled` (m, K), the one that
    rises most above a lower frequency is a rhythm if that rise exceeds the 95 % quantile of theirs.
    The errors of a spectrum are in proportion to it, so that for every spectrum that falls with
    frequency the rate of false rhythms is below 5 %. Cost: O(m K^2).
    """
    num_lags = len(rho)
    if num_lags < MIN_LAGS:
        return no_rhythm(f"{num_lags} lags; a rhythm needs at least {MIN_LAGS}")
    power, rise = _powers_and_rises(np.vstack([rho, shuffled]))
    power_null, rise_null = (
        float(np.quantile(values[1:].max(axis=1), 0.95, method="weibull"))
        for values in (power, rise)
    )
    rises = np.where(power[0] > power_null, rise[0], 0.0)
    peak = int(rises.argmax())
    if rises[peak] == 0.0:
        return Rhythm(
            None, float(power[0].max()), power_null, None, rise_null,
            "no frequency has more power than in shuffled tokens",
        )  # fmt: skip
    found = rises[peak] > rise_null
    return Rhythm(
        period=num_lags / (2.0 + peak / _PER_RESOLUTION) if found else None,
        power=float(power[0, peak]),
        power_null_high=power_null,
        rise=float(rises[peak]),
        rise_null_high=rise_null,
        reason=None if found else "power rises with frequency no more than in shuffled tokens",
    )


def _powers_and_rises(rho: FloatArray) -> tuple[FloatArray, FloatArray]:
    """S at frequencies 2 / K to 1 / 2, and S over its least value from 1 / K on: (series, f)."""
    num_lags = rho.shape[1]
    lags = np.arange(1, num_lags + 1)
    steps = np.arange(_PER_RESOLUTION, _PER_RESOLUTION * num_lags // 2 + 1)
    window = 2.0 * (1.0 - lags / (num_lags + 1))
    cosines = np.cos(2.0 * np.pi * np.outer(lags, steps) / (_PER_RESOLUTION * num_lags))
    spectrum = 1.0 + rho @ (window[:, None] * cosines)
    # Bartlett's window leaves no power below 0 but for rounding.
    least = np.maximum(np.minimum.accumulate(spectrum, axis=1), 1e-12)
    return spectrum[:, _PER_RESOLUTION:], (spectrum / least)[:, _PER_RESOLUTION:]


def no_rhythm(reason: str) -> Rhythm:
    """A rhythm that the data do not allow to look for, with the reason."""
    return Rhythm(None, None, None, None, None, reason)
