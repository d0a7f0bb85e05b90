"""Figures of single result objects: what is on the axes is what was given."""

import numpy as np
import pytest

from result_views.figures.object_figures import MAX_LABELS, figure_attention, figure_by_token


@pytest.mark.parametrize("count", [5, MAX_LABELS + 1])
def test_series_by_token_with_names_where_they_fit(count):
    series = {"mean Δ": np.arange(count) / 7, "|B|": np.ones(count)}
    figure = figure_by_token("Components of layer 3", series, [f"Ġw{i}" for i in range(count)])
    assert [ax.get_ylabel() for ax in figure.axes] == list(series)
    for ax, values in zip(figure.axes, series.values(), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), values)
    named = " w0" in [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert named == (count <= MAX_LABELS)


def test_a_map_beside_its_kernel():
    attention = np.tril(np.random.default_rng(0).random((6, 6)))
    kernel = np.array([0.5, 0.3, 0.2, 0.0, 0.0, 0.0])
    figure = figure_attention("Attention of layer 3", attention, kernel, None)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(np.asarray(left.images[0].get_array()), attention)
    drawn = np.asarray(right.lines[0].get_ydata())
    np.testing.assert_array_equal(drawn[:3], kernel[:3])
    assert np.isnan(drawn[3:]).all()  # a zero has no place on a logarithmic axis
