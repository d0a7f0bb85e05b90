"""The benchmark of the generations: rows, intervals, what reading again saves, the table."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from scipy import stats

from benchmarks import generations as benchmark


def test_a_row_is_of_the_text_and_one_in_four_reads_its_first_half_twice():
    ids, rng, half = np.arange(1000), np.random.default_rng(0), benchmark.ROW // 2
    rows = [benchmark.training_row(ids, rng) for _ in range(400)]
    twice = [row for row in rows if np.array_equal(row[:half], row[half:])]
    once = [row for row in rows if np.array_equal(np.diff(row), np.ones(len(row) - 1))]
    assert {len(row) for row in rows} == {benchmark.ROW}
    assert len(twice) + len(once) == 400
    # 100 of 400 expected, with a standard deviation of 8.7: five of them on either side.
    assert 56 < len(twice) < 144
    again = np.random.default_rng(0)
    assert np.array_equal(benchmark.training_row(ids, again), rows[0])


def test_every_generation_has_the_sizes_asked_for():
    for name, make in benchmark.GENERATIONS.items():
        config: Any = make(50).config
        assert config.num_hidden_layers == benchmark.LAYERS, name
        assert (config.hidden_size, config.state_size) == (benchmark.WIDTH, benchmark.STATES)


def test_intervals_are_students_over_seeds():
    mean, half = benchmark.interval([1.0, 2.0, 4.5])
    error = math.sqrt(((1.5**2) + 0.5**2 + 2.0**2) / 2 / 3)
    assert mean == pytest.approx(2.5)
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert benchmark.shown([1.0, 2.0, 4.5]) == f"2.50 ± {half:.2f}"
    assert benchmark.interval([3.0]) == (3.0, math.inf)
    assert benchmark.shown([3.0]) == "3.00"


def test_what_reading_again_saves_is_the_difference_of_the_losses():
    model = make_tiny_model()
    parts = torch.randint(1, 60, (2, benchmark.AGAIN), generator=torch.Generator().manual_seed(0))
    found = benchmark.saved_by_reading_again(model, parts)
    with torch.no_grad():
        log_p = model(torch.cat([parts, parts], 1)).logits.double().log_softmax(-1)
    twice = torch.cat([parts, parts], 1)
    nats = -log_p[:, :-1].gather(2, twice[:, 1:, None])[..., 0]
    first, second = nats[:, : benchmark.AGAIN - 1].mean(), nats[:, benchmark.AGAIN :].mean()
    assert found == pytest.approx(float(first - second), abs=1e-5)  # float32 logits


def test_texts_shorter_than_a_row_are_refused():
    with pytest.raises(ValueError, match="the training texts have 5 tokens; a row has 192"):
        benchmark.train(make_tiny_model(), np.arange(5), 1, 0)


def test_the_table_has_each_generation_with_its_intervals_and_answers():
    def run(loss: float, life: float) -> benchmark.Measures:
        return {
            "parameters": 1234, "loss": loss, "passage": 0.5, "random": -0.25,
            "half_lives": [life, 8.0], "answers": [f"loss was {loss}"],
        }  # fmt: skip

    found = {"Mamba-1": [run(5.0, 1.0), run(6.0, 4.0)], "Mamba-3": [run(4.0, 2.0), run(4.0, 2.0)]}
    lines = benchmark.report(found, 7).splitlines()
    half = stats.t.ppf(0.975, 1) * 0.5  # two values one apart
    assert (
        f"| Mamba-1 | 1,234 | 5.50 ± {half:.2f} | 0.50 ± 0.00 | -0.25 ± 0.00 | "
        "2 (1 to 4), 8 (8 to 8) |"
    ) in lines
    assert "7 steps" in lines[0]
    assert "2 seed(s)" in lines[0]
    assert lines[lines.index("**Mamba-3**") + 2] == "- loss was 4.0"
