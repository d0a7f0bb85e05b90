"""What untrained twins let expect of another one: a bound on the scale of the statistic itself.

A statistic that ends at 1 has no room above: its values crowd there, and a bound from their mean
and spread may lie beyond the end. So values are taken to a scale without ends (`SCALES`), where
another twin's value has the prediction interval mean + t s sqrt(1 + 1/m), s their standard
deviation and t a quantile of Student's distribution with m - 1 degrees of freedom: exact where the
m values are normal on that scale. The largest value that the statistic can take is finite there
too, for a share of n places says no more than n places can: a bound beyond it is one that no
number of places could exceed, and then the twins are too few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from suite_plumbing.messages import quoted
from token_statistics.description import FloatArray, Values, to_float64

FRESH, PERMUTED = "fresh weights", "permuted weights"

TWIN_KINDS = (FRESH, PERMUTED)
"""The kinds of twins whose bounds a claim about training has to exceed."""

TWIN_LEVEL = 0.005
"""How often another twin exceeds the bound."""


class Scale(NamedTuple):
    """Where values of a statistic spread alike wherever they lie; n samples divide its range."""

    forth: Callable[[FloatArray, int], FloatArray]
    back: Callable[[float, int], float]
    least: float
    largest: float
    """the range of the statistic"""


def _logit(x: FloatArray, n: int) -> FloatArray:
    return special.logit((x * n + 0.5) / (n + 1))


def _unlogit(y: float, n: int) -> float:
    return float((special.expit(y) * (n + 1) - 0.5) / n)


SCALES = {
    "linear": Scale(lambda x, n: x, lambda y, n: y, -math.inf, math.inf),
    "correlation": Scale(
        lambda x, n: np.arctanh(x * n / (n + 1)),
        lambda y, n: math.tanh(y) * (n + 1) / n,
        -1.0,
        1.0,
    ),
    "share": Scale(_logit, _unlogit, 0.0, 1.0),
    "ratio": Scale(lambda x, n: np.log(x), lambda y, n: math.exp(min(y, 700.0)), 0.0, math.inf),
}
"""By kind of statistic: as it is; atanh of r n / (n + 1); logit of (n p + 1/2) / (n + 1), for
shares and Kendall's W; log, for ratios above 0."""


@dataclass(frozen=True)
class BesideTwins:
    """A value beside those of the same statistic in twins of one kind."""

    kind: str
    n: int
    """twins whose value is defined"""
    low: float
    """smallest of their values"""
    high: float
    """largest"""
    bound: float | None
    """what another twin exceeds 1 time in 200, and none of these does; None where no value that the
    statistic can take exceeds it, and for one twin"""
    p_value: float | None
    """one-sided, of the value as another twin's; 1 / (n + 1) where all twins are equal or there is
    one; None without a value"""
    exceeded: bool
    """whether the value lies above the bound; without one, above all twins"""
    num_above_chance: int
    """of the n, those in which the rule of the claim holds too: there it needs no training"""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, strict JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> BesideTwins:
        """What `to_dict` wrote."""
        return cls(**row)


def beside_twins_of(
    kind: str,
    value: float | None,
    twins: Values,
    *,
    scale: str = "linear",
    n: int = 1,
    num_above_chance: int = 0,
) -> BesideTwins:
    """A value beside those of one or more twins, by the prediction interval of the module.

    ``n``: samples that divide the range of a bounded statistic: places of a share, tokens of a
    correlation. A share's spread is at least that of n independent places. Raises ValueError for
    no twins, and for values outside the scale's range.
    """
    values = to_float64(twins)
    if values.size == 0:
        raise ValueError("twins is empty; a value stands beside one twin at least")
    values = _checked(scale, n, values)
    if value is not None:
        value = float(_checked(scale, n, np.array([value]))[0])
    bound = _bound(values, scale, n)
    above = value is not None and value > (float(values.max()) if bound is None else bound)
    return BesideTwins(
        kind,
        len(values),
        float(values.min()),
        float(values.max()),
        bound,
        None if value is None else _p_value(value, values, scale, n),
        above,
        num_above_chance,
    )


def _bound(values: FloatArray, scale: str, n: int) -> float | None:
    m = len(values)
    if m < 2:
        return None
    kind = SCALES[scale]
    on_scale = kind.forth(values, n)
    spread = _spread(on_scale, scale, n) * math.sqrt(1 + 1 / m)
    bound = float(on_scale.mean() + stats.t.isf(TWIN_LEVEL, m - 1) * spread)
    bound = max(bound, float(on_scale.max()))
    if values.max() < kind.largest and bound >= kind.forth(np.array(kind.largest), n):
        return None
    return max(min(kind.back(bound, n), kind.largest), float(values.max()))


def _p_value(value: float, values: FloatArray, scale: str, n: int) -> float:
    m = len(values)
    point, on_scale = (SCALES[scale].forth(x, n) for x in (np.array(value), values))
    spread = _spread(on_scale, scale, n) * math.sqrt(1 + 1 / m)
    if spread == 0:
        return 1 / (m + 1) if value > values.max() else 1.0
    return float(stats.t.sf((point - on_scale.mean()) / spread, m - 1))


def _spread(on_scale: FloatArray, scale: str, n: int) -> float:
    """Standard deviation; of shares at least that of n independent places, by the delta method."""
    if len(on_scale) < 2:
        return 0.0
    spread = 0.0 if np.ptp(on_scale) == 0 else float(on_scale.std(ddof=1))
    if scale != "share":
        return spread
    typical = float(special.expit(on_scale.mean()))
    return max(spread, 1 / math.sqrt(n * typical * (1 - typical)))


def _checked(scale: str, n: int, values: FloatArray) -> FloatArray:
    """The values, those that rounding put outside the range at its end."""
    if scale not in SCALES:
        raise ValueError(f"scale is {quoted(scale)}; it must be one of {', '.join(SCALES)}")
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    low, high = SCALES[scale].least, SCALES[scale].largest
    clipped = np.clip(values, low, high)
    outside = (np.abs(values - clipped) > 1e-9) | ((values <= 0) & (scale == "ratio"))
    if outside.any() or not np.isfinite(values).all():
        raise ValueError(f"twins or value hold {values[outside].tolist()}, outside [{low}, {high}]")
    return clipped
