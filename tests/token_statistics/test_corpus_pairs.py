"""Correlations from sums are those of the tokens themselves, the course over position taken out."""

import numpy as np
import pytest
import torch
from defined import known

from token_statistics.corpus_pairs import (
    NUM_MOVES,
    SMALLEST_MOVE,
    PairsOfLayers,
    cka_of_all,
    pairs_of,
    participation_ratios,
    position_bins,
)

WIDTH = 6


def made_texts(count=12, tied=1.0, course=0.0, seed=0):
    """Streams of three layers: the second follows the first by ``tied``, the third is its own."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        length = int(rng.integers(3 * SMALLEST_MOVE, 120))
        noise = rng.standard_normal((3, length, WIDTH))
        ramp = course * np.log1p(np.arange(length))[:, None]
        first = noise[0] + ramp
        streams = (first, tied * noise[0] + noise[1] + ramp, noise[2] + ramp)
        texts.append([torch.from_numpy(x) for x in streams])
    return texts


def summed(texts, numbers=None, seed=0):
    pairs = PairsOfLayers(3, WIDTH, 128, seed)
    for number, streams in zip(numbers or range(len(texts)), texts, strict=True):
        pairs.add([x[:, pairs.chosen] for x in streams], number)
    return pairs.sums


def without_course(texts, layer):
    """(n, channels) with the mean of every bin of positions taken out."""
    values = np.concatenate([text[layer].numpy() for text in texts])
    bins = np.concatenate([position_bins(len(text[layer])) for text in texts])
    for b in np.unique(bins):
        values[bins == b] -= values[bins == b].mean(0)
    return values


def test_r_and_cka_are_those_of_the_tokens():
    texts = made_texts(course=1.0)
    first, second = pairs_of(summed(texts), [4, 7, 9])
    assert (first.layers, second.layers) == ((4, 7), (7, 9))
    x, y = (without_course(texts, layer) for layer in (0, 1))
    r = np.abs(np.corrcoef(x.T, y.T)[:WIDTH, WIDTH:])
    assert first.mean_abs_r.value == pytest.approx(r.mean(), rel=1e-9)
    x, y = x - x.mean(0), y - y.mean(0)
    cka = np.square(x.T @ y).sum() / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert first.cka.value == pytest.approx(cka, rel=1e-9)
    matrix = cka_of_all(summed(texts), 3)
    assert matrix[0, 1] == pytest.approx(cka, rel=1e-9)
    np.testing.assert_allclose(matrix.diagonal(), 1.0, rtol=1e-12)


def test_only_what_is_tied_lies_above_its_null():
    """Beside a course over position as large as the noise, in twenty draws of the data."""
    above = np.zeros(2, dtype=int)
    for seed in range(20):
        both = pairs_of(summed(made_texts(course=1.0, seed=seed)), [0, 1, 2])
        above += [known(pair.cka.value) > known(pair.cka.null_high) for pair in both]
        assert both[0].cka.p_value == pytest.approx(2 / (NUM_MOVES + 1))
    assert above[0] == 20
    assert above[1] <= 3  # 2.5 % each: more than 3 of 20 once in 1,000 times


def test_sums_do_not_depend_on_parts_and_moves_go_by_the_texts_number():
    texts, numbers = made_texts(), list(range(100, 112))
    whole = summed(texts, numbers)
    parts = [summed(texts[i::3], numbers[i::3]) for i in range(3)]
    for name, x in whole.items():
        total = sum(part[name] for part in parts)
        np.testing.assert_allclose(total, x, rtol=1e-12, atol=1e-12 * np.abs(x).max())
    assert not np.allclose(
        summed(texts, list(range(12)))["moved_products"], whole["moved_products"]
    )


def test_short_texts_and_too_few_tokens():
    short = [[torch.zeros(3 * SMALLEST_MOVE - 1, WIDTH)] * 3]
    sums = summed(short)
    assert not any(x.any() for x in sums.values())
    assert known(pairs_of(sums, [0, 1, 2])[0].cka.reason).startswith("n = 0 tokens")


def test_participation_ratio_of_independent_channels_is_their_number():
    ratios = participation_ratios(summed(made_texts(60)), 3)
    # n about 5,000: the ratio falls short by a share of about channels / n.
    np.testing.assert_allclose(ratios, WIDTH, rtol=0.01)


def test_bins_of_positions_are_eighths_of_an_octave():
    bins = position_bins(4096)
    assert bins[:12].tolist() == list(range(12))
    assert (position_bins(100) == bins[:100]).all()
    place = np.arange(4096)
    for number in range(20, int(bins[-1])):
        inside = place[bins == number] + 1
        assert (inside[-1] + 1) / inside[0] <= 2 ** (1 / 8) * (1 + 1 / inside[0])
