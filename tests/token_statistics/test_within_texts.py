"""Rank correlations within texts: offsets, drifts and slow change are no tie; a tie is found."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false

import numpy as np
import pytest
from scipy import stats

from token_statistics.within_texts import spearman_within_texts

TEXTS, PER_TEXT = 3, 16
NUMBERS = np.repeat(np.arange(TEXTS), PER_TEXT)
POSITIONS = np.concatenate([np.linspace(8, 70 + 10 * i, PER_TEXT) for i in range(TEXTS)])


def slow_noise(rng, ar):
    noise = rng.standard_normal((TEXTS, PER_TEXT + 30))
    for i in range(1, noise.shape[1]):
        noise[:, i] = ar * noise[:, i - 1] + np.sqrt(1 - ar**2) * noise[:, i]
    return noise[:, 30:].reshape(-1)


def noise_of(kind, rng):
    """Two sides that nothing ties but what texts and positions have in common."""
    if kind == "slow change":
        return slow_noise(rng, 0.8), slow_noise(rng, 0.8)
    x, y = rng.standard_normal((2, len(NUMBERS)))
    if kind == "offsets":
        x, y = x + rng.standard_normal(TEXTS)[NUMBERS], y + rng.standard_normal(TEXTS)[NUMBERS]
    course = {
        "drift": (POSITIONS - POSITIONS.mean()) / POSITIONS.std(),
        "warm-up": 3 * np.exp(-POSITIONS / 20),
    }.get(kind, np.zeros_like(x))
    return x + course, y + course


@pytest.mark.parametrize("kind", ["nothing", "offsets", "drift", "warm-up", "slow change"])
def test_noise_is_above_its_null_no_more_often_than_chance(kind):
    above, seeds = 0, 300
    for seed in range(seeds):
        x, y = noise_of(kind, np.random.default_rng(seed))
        test = spearman_within_texts(x, y, NUMBERS, POSITIONS, num_draws=199, seed=seed).tests[0]
        above += test.value > 0 and test.p_value <= 0.1
    # 5 % on one side; 3 standard deviations of 300 beyond.
    assert above / seeds <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / seeds)


def test_a_tie_is_found_beside_offsets_and_drift():
    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((2, len(NUMBERS)))
        y = y + 0.7 * x + 3 * rng.standard_normal(TEXTS)[NUMBERS] + POSITIONS / 50
        test = spearman_within_texts(x, y, NUMBERS, POSITIONS, num_draws=199, seed=seed).tests[0]
        found += test.value > test.null_high
    assert found >= 80


def test_the_value_is_that_of_ranks_within_texts_without_a_quadratic_course():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, len(NUMBERS)))
    order = rng.permutation(len(NUMBERS))
    test = spearman_within_texts(x[order], y[order], NUMBERS[order], POSITIONS[order]).tests[0]
    left = []
    for side in (x, y):
        parts = []
        for text in range(TEXTS):
            ranks, where = stats.rankdata(side[text == NUMBERS]), POSITIONS[text == NUMBERS]
            parts.append(ranks - np.polyval(np.polyfit(where, ranks, 2), where))
        left.append(np.concatenate(parts))
    assert test.value == pytest.approx(np.corrcoef(*left)[0, 1], rel=1e-9)
    assert (test.n, test.num_draws) == (48, 999)


def test_columns_are_moved_together():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, len(NUMBERS)))
    found = spearman_within_texts(
        np.stack([x, x], 1), np.stack([y, -y], 1), NUMBERS, POSITIONS, seed=1
    )
    assert found.tests[0].value == pytest.approx(-found.tests[1].value)
    assert found.mean.value == pytest.approx(0.0, abs=1e-12)
    assert found.mean.null_high == pytest.approx(0.0, abs=1e-12)


def test_what_allows_no_test_says_why():
    x, y = np.random.default_rng(5).standard_normal((2, len(NUMBERS)))
    short = spearman_within_texts(x[:7], y[:7], NUMBERS[:7], POSITIONS[:7])
    assert short.mean.reason == "7 samples, in no text 8 or more"
    one = spearman_within_texts(x[:16], y[:16], NUMBERS[:16], POSITIONS[:16])
    assert one.tests[0].reason == "16 distinct shifts within 1 text(s); a null needs 20"
    flat = spearman_within_texts(
        np.stack([x, POSITIONS], 1), np.stack([y, y], 1), NUMBERS, POSITIONS
    )
    assert "varies by no more than its course" in flat.tests[1].reason
    assert flat.mean.value == flat.tests[0].value is not None
    # A text of too few samples is left out of one that has enough beside it.
    number = np.append(NUMBERS, [9, 9])
    more = spearman_within_texts(np.append(x, [5, 6]), np.append(y, [5, 6]), number,
                                 np.append(POSITIONS, [1, 2]))  # fmt: skip
    assert more.tests == spearman_within_texts(x, y, NUMBERS, POSITIONS).tests
