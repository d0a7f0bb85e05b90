"""Figure of a long text: differences with intervals, losses by context and along the text."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recursive_visualizer import figures_of
from result_views.figures import long_memory_figures as figures


def reading(name, difference=None, half=None):
    ends = (None, None) if half is None else (difference - half, difference + half)
    return {"reading": name, "difference": difference, "low": ends[0], "high": ends[1],
            "reason": "one block"}  # fmt: skip


@pytest.fixture
def results():
    rows = [{"first": 1, "last": 1, "loss": 5.0}, {"first": 3, "last": 12, "loss": 4.0}]
    return {
        "num_tokens": 41, "block": 20, "chunk_size": 10,
        "readings": [reading("whole text"), reading("windows of 8", 0.5, 0.25)],
        "by_context": {"whole text": rows, "windows of 8": rows[:1]},
        "along": {"whole text": [4.0, 3.0], "windows of 8": [4.5, 3.5]},
        "layers": {"layer_2": {"state_norm": [1.0, 2.0, 3.0, 3.0]}},
    }  # fmt: skip


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def test_differences_beside_zero_with_their_intervals(results, ax):
    figures.plot_differences(results, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.5, 0]])
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0][:, 0], [0.25, 0.75])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["windows of 8"]


def test_a_text_without_windows_says_so(results, ax):
    results["readings"] = results["readings"][:1]
    figures.plot_differences(results, ax)
    assert "no windows" in ax.texts[0].get_text()


def test_context_stands_at_the_middle_of_its_bin(results, ax):
    figures.plot_by_context(results, ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 5], [6, 4]])
    assert ax.get_xscale() == "log"


def test_losses_and_norms_stand_at_their_tokens(results, ax):
    figures.plot_along(results, ax)
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[10, 4.5], [30, 3.5]])
    other = Figure().subplots()
    figures.plot_state_norm(results, other)
    np.testing.assert_array_equal(other.lines[0].get_xdata(), [5, 15, 25, 35])


def test_no_layers_are_said_to_be_none(results, ax):
    figures.plot_state_norm({**results, "layers": {}}, ax)
    assert "no layers" in ax.texts[0].get_text()


def test_the_results_of_the_command_draw_it(results):
    (draw,) = figures_of(results).values()
    assert draw(results).get_suptitle() == "Memory beyond 8 tokens saves 0.5 nats a token"
    results["readings"][1]["difference"] = -0.25
    assert draw(results).get_suptitle() == "Memory beyond 8 tokens costs 0.25 nats a token"
    results["readings"] = results["readings"][:1]
    assert draw(results).get_suptitle() == "A long text read through"
