"""Outside, inside and without a null are three looks, of points and of cells."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from result_views.beside_nulls import INSIDE, NO_NULL, OUTSIDE
from result_views.figures import null_looks as looks
from result_views.figures.drawing import MARKERS


@pytest.fixture
def ax():
    return Figure(figsize=(3, 2), dpi=100).subplots()


def null_test(value, low: float | None = -0.1, high: float | None = 0.2):
    return {"value": value, "null_low": low, "null_high": high}


def test_each_standing_has_its_points(ax):
    tests = [null_test(0.5), null_test(0.1), null_test(0.9, None, None), null_test(None)]
    looks.draw_beside_null(ax, range(4), tests, "#0072B2", "o")
    filled, hollow, half = ax.lines
    assert [np.asarray(line.get_xydata()).tolist() for line in ax.lines] == [
        [[0, 0.5]], [[1, 0.1]], [[2, 0.9]],
    ]  # fmt: skip
    assert (filled.get_markerfacecolor(), hollow.get_markerfacecolor()) == ("#0072B2", "white")
    assert (half.get_fillstyle(), half.get_markerfacecoloralt()) == ("left", "white")


def test_where_only_above_counts_below_is_hollow(ax):
    looks.draw_beside_null(ax, [0], [null_test(-0.5)], "black", "o", one_sided=True)
    filled, hollow = ax.lines
    assert (len(filled.get_xdata()), len(hollow.get_xdata())) == (0, 1)


@pytest.mark.parametrize("marker", MARKERS)
def test_the_three_looks_of_a_marker_differ_as_pictures(marker):
    pictures = []
    for standing in (OUTSIDE, INSIDE, NO_NULL):
        figure = Figure(figsize=(0.3, 0.3), dpi=100)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        looks.draw_standings(ax, [0.5], [0.5], [standing], "black", marker, size=12)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., 0].astype(int))
    for one, other in combinations(pictures, 2):
        assert (np.abs(one - other) > 128).sum() > 10


def test_cells_are_crossed_within_and_asked_where_there_is_no_null(ax):
    values = np.array([[0.5, 0.1, 0.4, np.nan]])
    looks.mark_standings(ax, values, [[-0.1, -0.1, np.nan, -0.1]], [[0.2, 0.2, np.nan, 0.2]])
    crossed, asked = ax.lines
    assert (crossed.get_marker(), asked.get_marker()) == ("x", "$?$")
    np.testing.assert_array_equal(crossed.get_xydata(), [[1, 0]])
    np.testing.assert_array_equal(asked.get_xydata(), [[2, 0]])


def test_without_a_lower_end_only_above_is_outside(ax):
    looks.mark_standings(
        ax, np.array([[-0.9, 0.9], [-0.9, 0.9]]), None, np.array([[0.2], [np.nan]])
    )
    crossed, asked = ax.lines
    np.testing.assert_array_equal(crossed.get_xydata(), [[0, 0]])
    np.testing.assert_array_equal(asked.get_xydata(), [[0, 1], [1, 1]])


def test_chosen_cells_are_marked(ax):
    looks.mark_cells(ax, np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])
    assert len(looks.mark_cells(ax, np.zeros((2, 2), dtype=bool)).lines) == 1
