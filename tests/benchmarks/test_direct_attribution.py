"""The benchmark of direct attribution: what it counts, on numbers known beforehand."""

import pytest
import torch
from conftest import make_tiny_model

from benchmarks import direct_attribution as benchmark
from benchmarks.passages import LAG, REACH


def test_auc_counts_the_others_below_and_half_of_the_equal():
    assert benchmark.auc(torch.tensor([3.0, 1.0, 2.0]), 0) == 1.0
    assert benchmark.auc(torch.tensor([0.0, 1.0, 2.0]), 0) == 0.0
    assert benchmark.auc(torch.tensor([1.0, 1.0, 2.0, 0.0]), 0) == pytest.approx(0.5)


def test_shares_are_of_magnitude_among_far_sources():
    t = LAG + 40
    values = torch.ones(t + 1)
    values[t - REACH + 1 :] = 100.0  # what the convolution reaches does not count
    values[t - LAG] = -3.0
    share, around = benchmark._shares(values, t)
    count = t - REACH + 1
    assert share == pytest.approx(3 / (count + 2))
    assert around == pytest.approx(1 / (count + 2))


def test_the_benchmark_on_a_tiny_model():
    model = make_tiny_model()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 64, (2, 192), generator=generator)
    found = benchmark.copied(model, rows, [140, 150])
    assert set(found.auc) == set(benchmark.RANKED)
    assert found.share.value is not None
    assert 0 < found.share.value < 1
    assert len(benchmark.copied_table({"tiny": found})) == 3
    agreed = benchmark.foretold(model, rows[:, :8])
    assert list(agreed) == [0, 1, 2, 3, "all"]
    assert agreed["all"].count == 4 * 2 * 8
    seconds, stock = benchmark.cost(model, 8, repeats=1)
    assert seconds > 0
    assert stock > 0
