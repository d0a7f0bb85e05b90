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


def test_every_reading_that_the_legend_names_has_a_point(results, ax):
    bins = [{"first": first, "last": 2 * first - 1, "loss": 4.0} for first in (64, 128, 256)]
    results["by_context"] = {"whole text": bins, "windows of 8": bins[:1]}
    figures.plot_by_context(results, ax)
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == [line.get_label() for line in ax.lines] == ["whole text", "windows of 8"]
    assert [len(line.get_xdata()) for line in ax.lines] == [2, 1]


def test_what_has_no_interval_or_holds_zero_is_not_told_as_a_saving(results):
    (draw,) = figures_of(results).values()
    results["readings"][1] = reading("windows of 8", 0.22)
    figure = draw(results)
    assert figure.get_suptitle().replace("\n", " ") == (
        "Without memory beyond 8 tokens the loss of this text is 0.22 nats a token higher; "
        "no interval"
    )
    assert "(none here: one block)" in " ".join(figure.texts[-1].get_text().split())
    results["readings"][1] = reading("windows of 8", 0.1, 0.25)
    assert draw(results).get_suptitle().replace("\n", " ") == (
        "Memory beyond 8 tokens is not found to help or to harm: +0.1 nats a token, interval "
        "-0.15 to +0.35"
    )


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
    results["readings"][1] = reading("windows of 8", -0.25, 0.125)
    assert draw(results).get_suptitle() == "Memory beyond 8 tokens costs 0.25 nats a token"
    results["readings"] = results["readings"][:1]
    assert draw(results).get_suptitle() == "A long text read through"
