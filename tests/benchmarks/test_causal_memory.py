"""The benchmark of causal memory: it finds a planted recall, and none where nothing is recalled."""

import math
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model
from defined import known
from hand_weighted import induction
from torch import Tensor

from benchmarks import causal_memory as benchmark
from benchmarks.causal_memory import (
    knockout_curves,
    lag_effect,
    reset_cost,
    reset_table,
    sources_of,
    unrelated_rows,
)
from benchmarks.passages import LAG, PASSAGE, repeated_rows
from suite_plumbing.texts import EXAMPLE_TEXTS


def rows_of(vocabulary: int, count: int = 3) -> Tensor:
    """Repeated rows of tokens at random."""
    generator = torch.Generator().manual_seed(0)
    return repeated_rows(torch.randint(1, vocabulary, (3000,), generator=generator).tolist(), count)


def test_a_planted_recall_peaks_at_the_lag_and_is_lost_by_a_reset():
    # Every token of a passage is another one: what follows it is known once it was read. Rows that
    # follow each other share none, so that an unrelated passage says nothing of what comes.
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(128, generator=generator) + 128 * (i % 2) for i in range(6)]
    rows = torch.stack([torch.cat([order, order[:PASSAGE]]) for order in orders])
    model = induction(vocab_size=256, rate=0.001)
    curves = knockout_curves(model, rows, 2)
    assert list(curves) == ["0", "together"]
    effect = lag_effect(curves["together"])
    assert effect.peak == LAG
    # A token occurs nowhere else: alpha is exactly 0 at every other lag.
    assert known(effect.kl.low) > 1e-3
    assert effect.gain is None
    cost = reset_cost(model, rows)
    assert known(cost.benefit.low) > 0.1
    assert cost.share == pytest.approx(1.0, abs=0.01)
    assert abs(known(cost.unrelated.value)) < 1e-3


def test_control_rows_differ_in_the_first_reading_alone():
    rows = rows_of(60)
    control = unrelated_rows(rows)
    assert torch.equal(control[:, PASSAGE:], rows[:, PASSAGE:])
    assert torch.equal(control[0, :PASSAGE], rows[1, :PASSAGE])
    assert torch.equal(control[-1, :PASSAGE], rows[0, :PASSAGE])


def test_what_memory_is_worth_in_any_text_is_no_recall():
    """A reset that helps or costs alike after an unrelated passage leaves no recall."""
    generator = torch.Generator().manual_seed(1)
    passage = torch.randint(0, 40, (1, PASSAGE), generator=generator)
    rows = torch.randint(0, 40, (2, 192), generator=generator)
    rows[:, :PASSAGE] = passage  # both controls begin as the rows themselves
    cost = reset_cost(induction(vocab_size=40, rate=0.001), rows)
    assert abs(known(cost.cost.value)) > 1e-3
    assert cost.recall.value == pytest.approx(0.0, abs=1e-6)
    assert cost.share is None


def test_an_untrained_model_recalls_nothing():
    rows = rows_of(60)
    model = make_tiny_model()
    cost = reset_cost(model, rows)
    assert cost.share is None
    assert abs(known(cost.recall.value)) < 1e-3
    # Three passages: means, and no interval.
    assert reset_table({"tiny": cost})[-1].count("(n = 3)") == 4
    effect = lag_effect(knockout_curves(model, rows, 2)["together"])
    assert known(effect.kl.value) < 1e-6


def test_windows_are_of_equal_width_around_the_lag():
    curves = torch.full((5, 192), 2.0)
    curves[:, 124:128] = 6.0
    curves[:, 0] = math.nan
    effect = lag_effect(curves)
    assert effect.kl[:3] == (6.0, 6.0, 6.0)
    assert known(effect.gain)[:3] == (3.0, 3.0, 3.0)
    assert effect.peak == 124
    assert known(effect.gain).text() == "3 [3, 3]"


def test_sources_are_spread_over_the_first_reading():
    assert sources_of(3) == [8, 36, 63]


def test_the_benchmark_runs_on_a_text(tmp_path: Path, tiny_model_dir: Path, capsys, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text(" ".join(EXAMPLE_TEXTS))
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.md")
    options = ["--model", str(tiny_model_dir), "--passages", "2", "--sources", "1", "--texts", "1"]
    assert benchmark.main([str(book), *options, "--save"]) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "results.md").read_text().endswith(shown[:-1])
    for line in ("| together |", "| trained |", "| untrained |", "agreement with the kernel |"):
        assert line in shown
