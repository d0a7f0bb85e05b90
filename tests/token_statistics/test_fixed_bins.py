"""Bins of half octaves: every number in one, quantiles to the width of a bin."""

import numpy as np
import torch

from token_statistics.fixed_bins import (
    HALF,
    HIGHEST,
    LOWEST,
    NUM_BINS,
    bin_numbers,
    counts_by_channel,
    edges,
    quantiles,
)


def test_each_value_lies_in_the_bin_that_its_number_says():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator) * torch.exp(
        4 * torch.randn(5000, generator=generator)
    )
    values = values[(values.abs() >= 2.0**LOWEST) & (values.abs() < 2.0**HIGHEST)]
    numbers, ends = bin_numbers(values).numpy(), edges()
    assert len(ends) == NUM_BINS + 1
    assert (np.diff(ends) > 0).all()
    magnitude = np.abs(values.numpy())
    low, high = ends[numbers], ends[numbers + 1]
    assert (np.minimum(np.abs(low), np.abs(high)) <= magnitude).all()
    assert (magnitude <= np.maximum(np.abs(low), np.abs(high))).all()
    assert (np.sign(low + high) == np.sign(values.numpy())).all()


def test_what_is_too_small_is_zero_and_what_is_too_large_is_in_the_last():
    odd = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, float("inf"), float("nan")])
    assert bin_numbers(odd).tolist()[:7] == [HALF] * 4 + [NUM_BINS - 1, 0, NUM_BINS - 1]
    assert bin_numbers(odd)[7] in (0, NUM_BINS - 1)


def test_quantiles_are_those_of_the_samples_to_a_bin():
    values = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [0.01, 1.0, 50.0]
    )
    shares = np.array([0.01, 0.25, 0.9, 0.999])
    found = quantiles(counts_by_channel(values), shares)
    exact = np.quantile(values.numpy(), shares, axis=0).T
    # A bin is at most half of its lower end wide.
    assert (np.abs(found - exact) <= 0.5 * np.abs(exact)).all()
    assert np.isnan(quantiles(np.zeros((1, NUM_BINS), np.int64), shares)).all()


def test_counts_of_parts_add_up():
    values = torch.randn(101, 4, generator=torch.Generator().manual_seed(2))
    parts = [counts_by_channel(values[:40]), counts_by_channel(values[40:])]
    assert (parts[0] + parts[1] == counts_by_channel(values)).all()
