"""Layers whose scale depends on the position, over batches and at once."""

import numpy as np
import pytest

from token_statistics.position_scale import PositionEnergy, why_scaled_alike

POSITIONS, TEXTS = 40, 20


def energies(scales, seed=0, batches=1):
    """Noise (TEXTS * POSITIONS, 6) times a scale by position, texts to halves by turns."""
    rng, found = np.random.default_rng(seed), PositionEnergy()
    for _ in range(batches):
        values = rng.standard_normal((TEXTS // batches, POSITIONS, 6)) * scales[None, :, None]
        positions = np.tile(np.arange(POSITIONS), len(values))
        halves = np.repeat(np.arange(len(values)) % 2, POSITIONS)
        found.add(values.reshape(-1, 6), positions, halves)
    return found


@pytest.mark.parametrize("batches", [1, 5])
def test_a_scale_that_both_share_is_named_with_its_product(batches):
    scales = np.where(np.arange(POSITIONS) % 4 == 3, 2.0, 1.0)
    reason = why_scaled_alike(energies(scales, 0, batches), energies(scales, 1, batches))
    # Energies 4 at a quarter of the positions and 1 elsewhere: (16 / 4 + 3 / 4) / (7 / 4)^2 = 1.55;
    # what is more than four times usual is cut, which takes a little of the large ones.
    assert reason is not None
    assert "1.5 times as much as chance gives" in reason


def test_a_scale_of_one_side_alone_is_no_reason():
    scales = np.where(np.arange(POSITIONS) % 4 == 3, 2.0, 1.0)
    assert why_scaled_alike(energies(scales), energies(np.ones(POSITIONS), 1)) is None
    assert why_scaled_alike(energies(scales), energies(np.roll(scales, 2), 1)) is None


def test_tokens_that_are_large_in_both_are_each_texts_own():
    rng = np.random.default_rng(2)
    large = rng.random((TEXTS, POSITIONS)) < 0.02
    halves = np.repeat(np.arange(TEXTS) % 2, POSITIONS)
    sides = []
    for _ in range(2):
        values = rng.standard_normal((TEXTS, POSITIONS, 6))
        values[large] *= 10.0
        sides.append(PositionEnergy())
        sides[-1].add(values.reshape(-1, 6), np.tile(np.arange(POSITIONS), TEXTS), halves)
    assert why_scaled_alike(*sides) is None


def test_a_later_batch_may_reach_further():
    found = PositionEnergy()
    found.add(np.ones((3, 2)), np.arange(3), np.zeros(3, dtype=int))
    found.add(2.0 * np.ones((1, 2)), np.array([4]), np.ones(1, dtype=int))
    np.testing.assert_array_equal(
        found.means(), [[1, 1, 1, np.nan, np.nan], [np.nan, np.nan, np.nan, np.nan, 4]]
    )
