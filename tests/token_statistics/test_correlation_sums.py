"""Sums over batches against plain formulas on the tokens themselves."""

import numpy as np
import pytest
import reference
import torch
from series import ar1

from token_statistics.autocorrelation import autocorrelation_within_texts
from token_statistics.correlation_sums import (
    AUTOCORRELATION_LAGS,
    ChannelSums,
    LayerSums,
    PairSums,
    correlations,
    debiased_cka,
)

# Batches are summed in float32 from columns of unit scale: a few hundred products round at 1e-6.
FLOAT32 = 2e-6
BATCHES = [(30, 12), (25,), (12, 12)]
LENGTHS = [length for batch in BATCHES for length in batch]
CHOSEN = np.array([0, 2, 3])


def tokens(channels=5, seed=0):
    """(91, channels) series of unlike means and scales."""
    return ar1(0.6, sum(LENGTHS), channels, seed) * np.logspace(-1, 1, channels) + 3.0


def in_batches(x):
    start = 0
    for lengths in BATCHES:
        yield torch.from_numpy(x[start : start + sum(lengths)]), list(lengths)
        start += sum(lengths)


def empty_sums(x):
    """Of a layer before its first batch."""
    return LayerSums(next(in_batches(x))[0], CHOSEN)


@pytest.fixture
def layer():
    sums = empty_sums(tokens())
    for values, lengths in in_batches(tokens()):
        sums.update(values, lengths)
    return sums


def test_means_deviations_and_norms_are_those_of_the_tokens(layer):
    x, scale = tokens(), layer.every.scale.numpy()
    scaled = (x - layer.offset.numpy()) / scale
    np.testing.assert_allclose(layer.every.means(), scaled.mean(axis=0), atol=FLOAT32)
    deviations = np.sqrt(np.square(scaled - scaled.mean(axis=0)).sum(axis=0))
    np.testing.assert_allclose(layer.every.deviations(), deviations, rtol=FLOAT32)
    # The squared norms about the mean sum to the total variance, in units of the largest scale.
    summed = layer.every.norm_weights() @ layer.every.products[:, -1]
    total = np.square((x - x.mean(axis=0)) / scale.max()).sum()
    assert summed == pytest.approx(total, rel=1e-5)  # three terms that partly cancel


def test_autocorrelation_is_that_within_the_texts(layer):
    expected = autocorrelation_within_texts(tokens(), LENGTHS, 7)
    np.testing.assert_allclose(layer.autocorrelation(7), expected, atol=1e-5)  # over the variance
    assert layer.autocorrelation(AUTOCORRELATION_LAGS).shape == (AUTOCORRELATION_LAGS + 1, 5)


def test_a_channel_varies_from_its_second_value_on():
    sums = LayerSums(torch.ones(4, 2), np.array([0]))
    sums.update(torch.ones(4, 2), [4])
    assert sums.varies.tolist() == [False, False]
    sums.update(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), [2])
    assert sums.varies.tolist() == [False, True]


def test_correlations_and_cka_of_all_of_some_and_of_reordered_tokens():
    x, y = tokens(seed=1), tokens(channels=4, seed=2) + tokens(seed=1)[:, :4]
    rng = np.random.default_rng(3)
    a, b = empty_sums(x), empty_sums(y)
    sums = PairSums(a, b, 11)
    reordered = []
    for (first, lengths), (second, _) in zip(in_batches(x), in_batches(y), strict=True):
        orders = np.stack([rng.permutation(len(first)) for _ in range(11)], axis=1)
        columns = a.update(first, lengths), b.update(second, lengths)
        sums.update(*columns)
        sums.add_moved(columns[0], 0, columns[1].sampled[torch.from_numpy(orders)])
        reordered.append(second.numpy()[orders])
    for found, y_used, channels in (
        (sums.every, y, slice(None)),
        (sums.sampled, y, CHOSEN),
        (sums.moved[10], np.concatenate(reordered)[:, 10], CHOSEN),
    ):
        p, q = x[:, channels], y_used[:, channels]
        sides = (a.every, b.every) if found is sums.every else (a.sampled, b.sampled)
        r = np.array([[np.corrcoef(i, j)[0, 1] for j in q.T] for i in p.T])
        np.testing.assert_allclose(correlations(found, *sides), r, atol=FLOAT32)
        cka = reference.debiased_cka(p - p.mean(axis=0), q - q.mean(axis=0))
        assert debiased_cka(found, *sides) == pytest.approx(cka, abs=1e-5)  # sums of like size


def test_a_side_without_variance_has_no_cka_and_no_correlation():
    flat = ChannelSums(torch.ones(2, dtype=torch.float64))
    columns = flat.add(torch.zeros(10, 2))
    other = ChannelSums(torch.ones(2, dtype=torch.float64))
    sums = (columns.mT @ other.add(torch.randn(10, 2, generator=torch.Generator()))).numpy()
    assert np.isnan(debiased_cka(sums, flat, other))
    np.testing.assert_array_equal(correlations(sums, flat, other), np.zeros((2, 2)))
