"""Figure of a steered model: the vector over random ones, and what an effect costs."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recursive_visualizer import figures_of
from result_views.figures import steering_figures as figures


def row(coefficient, change, half):
    ends = (None, None) if half is None else (change - half, change + half)
    return {"coefficient": coefficient, "target_change": change, "low": ends[0], "high": ends[1],
            "kl": 0.1 * abs(change), "random_kl": 0.3, "perplexity_ratio": 1.2,
            "random_perplexity_ratio": 1.1}  # fmt: skip


def effect(vector, coefficient, change):
    return {"vector": vector, "coefficient": coefficient, "target_change": change, "kl": 0.2}


@pytest.fixture
def results():
    return {
        "vector": {"site": "delta", "layer": 3}, "target": {"name": "log_probability"},
        "num_prompts": 6, "num_random": 2, "num_tokens": 40,
        "by_coefficient": [row(-1.0, -2.0, 0.5), row(1.0, 3.0, 0.25)],
        "effects": [
            effect("steering", -1.0, -2.0), effect("random", -1.0, 0.5),
            effect("steering", 1.0, 3.0), effect("random", 1.0, -0.5),
        ],
    }  # fmt: skip


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def test_the_vector_stands_over_random_ones_with_its_interval(results, ax):
    figures.plot_target(results, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[-1, 0.5], [1, -0.5]])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[-1, -2], [1, 3]])
    ends = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [[-2.5, -1.5], [2.75, 3.25]]
    assert ax.get_ylabel() == "nats"


def test_few_prompts_have_no_interval(results, ax):
    results["by_coefficient"] = [row(1.0, 3.0, None)]
    figures.plot_target(results, ax)
    assert not np.isfinite(np.concatenate(ax.collections[0].get_segments())).any()


@pytest.mark.parametrize(
    ("measure", "values"), [("kl", [0.2, 0.3]), ("perplexity_ratio", [1.2] * 2)]
)
def test_costs_stand_beside_the_random_mean(results, ax, measure, values):
    figures.plot_cost(results, measure, ax)
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata()), values)
    expected = [row[f"random_{measure}"] for row in results["by_coefficient"]]
    np.testing.assert_allclose(np.asarray(ax.lines[1].get_ydata()), expected)


def test_effect_by_cost(results, ax):
    figures.plot_trade(results, ax)
    np.testing.assert_allclose(np.asarray(ax.lines[1].get_xydata()), [[0.2, -2], [0.3, 3]])


@pytest.mark.parametrize(
    ("change", "half", "said"),
    [
        (0.2, 0.5, "the vector is not found to change the log probability: +0.20, -0.30 to +0.70"),
        (-0.5, 0.1, "the vector changes the log probability no more than random ones do: -0.50"),
        (3.0, None, "by +3.00 (random vectors: -0.50 to -0.50); no interval over so few prompts"),
    ],
)
def test_what_its_interval_or_random_vectors_do_not_set_apart_is_no_change(
    results, change, half, said
):
    results["by_coefficient"] = [row(1.0, change, half)]
    assert said in figures.steering_title(results)


def test_the_figure_is_found_by_its_key(results):
    drawn = figures_of(results)["steering"](results)
    assert drawn.get_suptitle().replace("\n", " ") == (
        "Added 1 times at the delta of layer 3, the vector changes the log probability by +3.00 "
        "(random vectors: -0.50 to -0.50)"
    )
    assert len(drawn.axes) == 4
