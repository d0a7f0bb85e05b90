"""Claims of a comparison: whether two models' attention, and their layers, are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis_pipelines.comparison_readings import (
    PairValues,
)
from mamba_mixers.untrained_twins import ENOUGH_TWINS
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, undecided
from token_statistics.layer_likeness import (
    best_match,
    over_texts,
)
from token_statistics.time_shift_nulls import MIN_TOKENS, against_null
from token_statistics.verdict_rules import exceeds_null


def findings_on(
    pair: tuple[str, str],
    place: int,
    found: PairValues,
    twins: Mapping[str, Sequence[PairValues]],
    num_tokens: int,
    groups: Sequence[int] | None = None,
) -> list[Finding]:
    """Whether two models' attention, and their layers, are alike, and more than their twins'.

    ``place`` is the pair's in the results, ``twins`` are by kind, ``num_tokens`` that of all texts,
    and ``groups`` the related ones among them, which count as one. A statistic has to exceed its
    null of time shifts, and the bounds of twins of both kinds. Too little data: fewer than
    MIN_TOKENS tokens or ENOUGH_TWINS twins, or an undefined statistic.
    """
    rows = _likenesses(pair, place, found, groups)
    if few := _why_no_claim(num_tokens, min(map(len, twins.values()), default=0)):
        return [
            undecided(one.claim, one.statistic, "tokens", few, one.path, rule=one.rule,
                      n=num_tokens)
            for one in rows
        ]  # fmt: skip
    beside = {
        kind: [_likenesses(pair, place, twin, groups) for twin in of] for kind, of in twins.items()
    }
    return [
        replace(one, n=num_tokens).beside({kind: [t[i] for t in of] for kind, of in beside.items()})
        for i, one in enumerate(rows)
    ]


def _likenesses(
    pair: tuple[str, str], place: int, values: PairValues, groups: Sequence[int] | None
) -> list[Finding]:
    """The two claims, tried against time shifts alone."""
    both = f"{pair[0]} and {pair[1]}"
    windowed, draws = _means(values.windowed, values.windowed_draws, groups)
    # What the lag alone gives is no agreement: the windowed null keeps it, and it is taken off.
    by_lag = draws.mean(axis=0) if len(draws) else np.nan
    likeness, shifted = _means(values.cka, values.cka_draws, groups)
    return [
        exceeds_null(
            f"Attention of {both} agrees beyond distance, and more than without training",
            "windowed agreement of best-matching maps, over its mean at shifted times",
            _best_match_test(windowed - by_lag, draws - by_lag),
            f"pairs[{place}].agreement.windowed",
        ),
        exceeds_null(
            f"Layers of {both} are alike, and more than without training",
            "CKA of best-matching layers",
            _best_match_test(likeness, shifted),
            f"pairs[{place}].cka",
        ),
    ]


def _means(
    values: list[FloatArray], draws: list[FloatArray], groups: Sequence[int] | None
) -> tuple[FloatArray, FloatArray]:
    """Over texts: of a statistic (p, q), and of each of its draws (m, p, q)."""
    mean, _ = over_texts(values, groups)
    drawn = [over_texts(draw, groups)[0] for draw in zip(*draws, strict=True)]
    return mean, np.array(drawn).reshape(-1, *mean.shape)


def _best_match_test(value: FloatArray, draws: FloatArray) -> dict[str, Any]:
    return against_null(best_match(value), np.array([best_match(x) for x in draws]), 0).to_dict()


def _why_no_claim(num_tokens: int, num_twins: int) -> str | None:
    if num_tokens < MIN_TOKENS:
        return f"{num_tokens} tokens; a claim needs at least {MIN_TOKENS}"
    if num_twins < ENOUGH_TWINS:
        return (
            "models that read the same tokens are alike without any training; a claim needs "
            f"{ENOUGH_TWINS} untrained twins of each kind (--twins {ENOUGH_TWINS}), this run has "
            f"{num_twins}"
        )
    return None
