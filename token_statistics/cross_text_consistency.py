"""How far texts agree: spread between texts against spread within, and shared important neurons.

Pure functions on per-text numbers; the eighth step of the pipeline. Related texts count as one,
with the mean over them (`text_groups`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from token_statistics.association import hypergeometric_overlap, spearman
from token_statistics.description import autocorrelation
from token_statistics.text_groups import group_means, members, one_each


@dataclass(frozen=True, eq=False)
class TextSpread:
    """Spread of one per-token statistic between texts, beside its spread within them."""

    num_texts: int
    num_groups: int
    """independent texts: groups of related ones, over which the spread is taken"""
    text_means: tuple[float | None, ...]
    """mean over the tokens of each text, in the statistic's unit; None where it is undefined at
    every token, as a share of attention is where a layer pays none"""
    between: float | None
    """standard deviation over the groups of the mean of their ``text_means`` (n - 1)"""
    within: float | None
    """root mean square of the texts' standard deviations over tokens"""
    expected_between: float | None
    """what ``between`` would be by chance if all texts had one mean: the root mean square of the
    standard errors, with each text's tokens counted as n (1 - r) / (1 + r) for autocorrelation r
    at lag 1"""
    ratio: float | None
    """between / expected_between: near 1, the texts do not differ beyond chance"""
    null_low: float | None
    """central 95 % interval of the ratio where all texts have one mean, for normal means of like
    errors: the root of chi-squared over its n - 1 degrees of freedom, n groups; 0.16 to 1.92 for 3
    texts that are not related"""
    null_high: float | None
    reason: str | None
    """why a value is None"""

    def to_dict(self) -> dict:
        """All fields, for JSON."""
        return asdict(self)


def _undefined_spread(means: tuple[float | None, ...], num: int, reason: str) -> TextSpread:
    return TextSpread(len(means), num, means, None, None, None, None, None, None, reason)


@dataclass(frozen=True, eq=False)
class NeuronAgreement:
    """Whether the same neurons of a layer are important in every text."""

    num_texts: int
    num_groups: int
    """independent texts: groups of related ones, which are what is compared"""
    top_n: int
    """size of each text's list of most important neurons"""
    mean_overlap: float | None
    """mean over pairs of independent texts of the number of neurons on both lists, 0 to top_n"""
    expected_overlap: float
    """the same for random lists: top_n^2 / number of neurons"""
    largest_p_value: float | None
    """largest hypergeometric p-value of an overlap, over the pairs, times their number"""
    shared: int | None
    """neurons on the lists of all independent texts"""
    expected_shared: float
    """the same for random lists: neurons * (top_n / neurons)^texts"""
    shared_p_value: float | None
    """probability that random lists share as many, see `shared_tail`"""
    shared_null_high: int | None
    """97.5 % quantile of what random lists share"""
    mean_spearman: float | None
    """mean over pairs of the rank correlation of importance over all neurons, -1 to 1"""
    spearman_by_text: tuple[float, ...] | None
    """(num_groups,) of each independent text, the mean of its rank correlations with the others"""
    split_half_spearman: float | None
    """mean over texts of the rank correlation of importance in the first with that in the second
    half of a text: what `mean_spearman` could be if texts did not differ; None without halves"""
    reason: str | None
    """why a value is None"""

    def to_dict(self) -> dict:
        """All fields, for JSON."""
        return asdict(self)


def text_spread(
    values: Sequence[ArrayLike], groups: Sequence[Hashable] | None = None
) -> TextSpread:
    """Spread of a statistic between and within texts; ``values`` holds each text's (l,) values.

    ``groups``: of each text, those of one group being one (default: none are related). Undefined
    entries (nan) are left out. With one group, a text of undefined entries alone, or without
    variance within the texts, what cannot be computed is None, with the reason.
    """
    series = [_finite(value) for value in values]
    means = tuple(float(x.mean()) if len(x) else None for x in series)
    number = len(members(one_each(groups, len(series))))
    if None in means:
        reason = f"the statistic is undefined at every token of text {means.index(None)}"
        return _undefined_spread(means, number, reason)
    if number < 2:
        return _undefined_spread(means, number, _too_few(len(series)))
    if min(map(len, series)) < 3:
        reason = "a text has fewer than three values"
        return _undefined_spread(means, number, reason)
    # Errors of related texts are no smaller together than alone.
    by_text = [(x.mean(), x.var(ddof=1), _squared_standard_error(x)) for x in series]
    centres, variances, errors = np.array(group_means(by_text, groups)).T
    counts = len(series), number, means
    between = float(np.std(centres, ddof=1))
    within, expected = (float(np.sqrt(np.mean(squares))) for squares in (variances, errors))
    if expected == 0:
        reason = "the statistic does not vary within the texts"
        return TextSpread(*counts, between, within, expected, None, None, None, reason)
    freedom = number - 1
    low, high = np.sqrt(stats.chi2.ppf((0.025, 0.975), freedom) / freedom).tolist()
    return TextSpread(*counts, between, within, expected, between / expected, low, high, None)


def neuron_agreement(
    importances: Sequence[ArrayLike],
    top_n: int = 20,
    halves: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    groups: Sequence[Hashable] | None = None,
) -> NeuronAgreement:
    """Agreement of the texts about a layer's important neurons.

    ``importances``: for each text (neurons,) values, larger is more important. ``top_n`` is cut to
    a tenth of the neurons, at least 1. ``halves``: the same for the two halves of each text, where
    the method's importance can be told of a half. ``groups``: of each text (default: none are
    related); compared are the mean importances of groups. With one group the agreement is None, and
    with a text in which all neurons are equally important. Where equal ones straddle the end of a
    list, it takes some of them at random (seeded). Raises ValueError for importances of unequal
    length.
    """
    arrays = [np.asarray(importance, dtype=float) for importance in importances]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        shapes = [array.shape for array in arrays]
        raise ValueError(f"importances must all be (neurons,) of one length, got {shapes}")
    num_texts, num_neurons = len(arrays), len(arrays[0])
    top_n = max(1, min(top_n, num_neurons // 10))
    expected = top_n**2 / num_neurons
    stability = split_half_stability(halves)
    constant = any(np.ptp(array) == 0 for array in arrays)
    arrays = group_means(arrays, groups)
    number = len(arrays)
    by_chance = num_neurons * (top_n / num_neurons) ** number
    reason = _too_few(num_texts) if number < 2 else None
    if constant:
        reason = "the importance of a text is constant"
    counts = num_texts, number, top_n
    if reason is not None:
        return NeuronAgreement(
            *counts, None, expected, None, None, by_chance, None, None, None, None, stability,
            reason,
        )  # fmt: skip
    rng = np.random.default_rng(0)
    tops = [_most_important(array, top_n, rng) for array in arrays]
    overlaps = [len(a & b) for a, b in combinations(tops, 2)]
    p_values = [hypergeometric_overlap(n, top_n, top_n, num_neurons)[1] for n in overlaps]
    by_text = _mean_with_others(arrays)
    shared = len(set.intersection(*tops))
    return NeuronAgreement(
        *counts,
        float(np.mean(overlaps)),
        expected,
        min(1.0, max(p_values) * len(p_values)),
        shared,
        by_chance,
        shared_tail(shared, top_n, number, num_neurons),
        _shared_quantile(top_n, number, num_neurons),
        float(np.mean(by_text)),
        by_text,
        stability,
        None,
    )


def _mean_with_others(arrays: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Of each text, the mean of its Spearman correlations with the others."""
    number = len(arrays)
    table = np.zeros((number, number))
    for a, b in combinations(range(number), 2):
        table[a, b] = table[b, a] = spearman(arrays[a], arrays[b])
    return tuple((table.sum(0) / (number - 1)).tolist())


def _too_few(num_texts: int) -> str:
    """Why one independent text among so many says nothing of how texts agree."""
    return "needs at least two texts" + (" that are not related" if num_texts > 1 else "")


def split_half_stability(halves: Sequence[tuple[ArrayLike, ArrayLike]]) -> float | None:
    """Mean over texts of the Spearman correlation of two halves (neurons,), in [-1, 1].

    Halves that are constant are left out; None if none remains.
    """
    ranks = [spearman(np.asarray(a, float), np.asarray(b, float)) for a, b in halves]
    defined = [rho for rho in ranks if np.isfinite(rho)]
    return float(np.mean(defined)) if defined else None


def shared_tail(shared: int, size: int, num_lists: int, population: int) -> float:
    """Probability that num_lists random lists of `size` from a population share `shared` or more.

    Exact: what the first j lists share is hypergeometric given what the first j - 1 share. Raises
    ValueError unless 0 <= shared <= size <= population and there is a list. Cost: O(num_lists
    size^2).
    """
    if not (0 <= shared <= size <= population and num_lists > 0):
        raise ValueError(
            f"shared {shared}, size {size}, num_lists {num_lists}, population {population}: need "
            "0 <= shared <= size <= population and a list"
        )
    return min(1.0, float(_shared_chances(size, num_lists, population)[shared:].sum()))


def _shared_quantile(size: int, num_lists: int, population: int) -> int:
    """97.5 % quantile of what random lists share."""
    reached = _shared_chances(size, num_lists, population).cumsum()
    return int(np.argmax(reached >= 0.975))


def _shared_chances(size: int, num_lists: int, population: int) -> np.ndarray:
    """(size + 1,) probability that random lists share 0, 1, ... of the population."""
    counts = np.arange(size + 1)
    chances = (counts == size).astype(float)
    step = stats.hypergeom.pmf(counts[None, :], population, counts[:, None], size)
    for _ in range(num_lists - 1):
        chances = chances @ step
    return chances


def _finite(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    return array[np.isfinite(array)]


def _most_important(importance: np.ndarray, top_n: int, rng: np.random.Generator) -> set[int]:
    """Numbers of the top_n largest; of equal ones, a random choice.

    By number, neurons that are alike in every text, such as those that never fire, would stand on
    all lists: agreement where there is none.
    """
    shuffled = rng.permutation(len(importance))
    return set(shuffled[np.argsort(importance[shuffled], kind="stable")[-top_n:]].tolist())


def _squared_standard_error(x: np.ndarray) -> float:
    """Variance of the mean of x, its tokens discounted for autocorrelation as an AR(1) series."""
    if x.var() == 0:
        return 0.0
    r = float(np.clip(autocorrelation(x[:, None], 1)[1, 0], 0.0, 0.99))
    return float(x.var(ddof=1) * (1 + r) / (1 - r) / len(x))
