"""What stands on the axes: data, limits, labels and colours, never pixels."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import analysis_utils
from result_views.figures import drawing


@pytest.fixture
def ax():
    return Figure(figsize=(8, 4)).subplots()


def _texts(labels):
    return [label.get_text() for label in labels]


def test_analysis_utils_passes_the_primitives_on():
    for name in ("draw_heatmap", "draw_null_band", "clean_token", "token_ticks"):
        assert getattr(analysis_utils, name) is getattr(drawing, name)


def test_heatmap_shows_the_matrix_on_a_symmetric_scale(ax):
    matrix = np.array([[0.5, -2.0, np.nan], [0.0, 1.0, 0.25]])
    drawing.draw_heatmap(
        ax, matrix, diverging=True, ylabels=["a", "b"], cbar_label="r", title="Correlation"
    )
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array().filled(np.nan), matrix)
    assert image.get_clim() == (-2.0, 2.0)
    assert ax.get_title() == "Correlation"
    assert ax.figure.axes[1].get_ylabel() == "r"
    assert _texts(ax.get_yticklabels()) == ["a", "b"]


@pytest.mark.parametrize(
    ("diverging", "limit", "expected"),
    [(True, 1.0, (-1.0, 1.0)), (False, 1.0, (0.0, 1.0)), (False, None, (0.1, 0.4))],
)
def test_heatmap_limits(ax, diverging, limit, expected):
    drawing.draw_heatmap(ax, [[0.1, 0.4]], diverging=diverging, limit=limit)
    assert ax.images[0].get_clim() == expected


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.full((2, 2), np.nan)])
def test_heatmap_without_any_magnitude_still_has_a_scale(ax, matrix):
    drawing.draw_heatmap(ax, matrix, diverging=True)
    assert ax.images[0].get_clim() == (-1.0, 1.0)


def test_heatmap_refuses_wrong_shapes(ax):
    with pytest.raises(ValueError, match=r"matrix has shape \(3,\)"):
        drawing.draw_heatmap(ax, np.zeros(3), diverging=True)
    with pytest.raises(ValueError, match="xlabels has 1 entries; the matrix has 2"):
        drawing.draw_heatmap(ax, np.zeros((2, 2)), diverging=True, xlabels=["a"])


def test_line_and_band_share_a_colour_and_hold_the_data(ax):
    x, mean = np.arange(4.0), np.array([0.0, 1.0, np.nan, 3.0])
    drawing.draw_lines_with_band(ax, x, mean, mean - 1, mean + 2, "layer 3")
    (line,), (band,) = ax.lines, ax.collections
    np.testing.assert_array_equal(line.get_ydata(), mean)
    assert line.get_label() == "layer 3"
    assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
    vertices = np.concatenate([path.vertices for path in band.get_paths()])
    assert (vertices[:, 1].min(), vertices[:, 1].max()) == (-1.0, 5.0)


def test_null_band_lies_behind_the_data(ax):
    drawing.draw_null_band(ax, [0, 1], [-0.1, -0.2], [0.1, 0.2], mean=[0.0, 0.05])
    (line,) = ax.plot([0, 1], [0.5, 0.6])
    assert ax.collections[0].get_zorder() < line.get_zorder()
    assert ax.collections[0].get_label() == "null, 95 % interval"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.0, 0.05])


def test_dollar_labels_survive_a_draw(ax):
    drawing.draw_heatmap(ax, np.eye(3), diverging=False, xlabels=["$x$", "\\frac$", "Ġ$_"])
    ax.figure.draw_without_rendering()
    assert _texts(ax.get_xticklabels()) == [r"\$x\$", r"\frac\$", r" \$_"]


@pytest.mark.parametrize("axis", ["x", "y"])
def test_few_tokens_are_all_labelled_and_many_are_thinned(ax, axis):
    labels = getattr(ax, f"get_{axis}ticklabels")
    drawing.token_ticks(ax, ["Ġa", "b", "Ċ", "d", "e"], axis)
    assert _texts(labels()) == [" a", "b", r"\n", "d", "e"]
    drawing.token_ticks(ax, ["tok"] * 512, axis)
    texts = _texts(labels())
    assert 5 <= len(texts) <= 50
    step = int(texts[1].split()[0])
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert texts[:2] == ["0 tok", f"{step} tok"]


def test_token_ticks_of_nothing_and_of_an_unknown_axis(ax):
    drawing.token_ticks(ax, [], "x")
    assert _texts(ax.get_xticklabels()) == []
    with pytest.raises(ValueError, match="axis is 'z'"):
        drawing.token_ticks(ax, ["a"], "z")


def test_characters_without_a_glyph_are_named_by_their_escapes():
    with matplotlib.rc_context({"font.family": ["DejaVu Sans"]}):
        assert drawing.drawable_text("é α \u0645 x") == "é α \u0645 x"
        assert drawing.drawable_text("a\U0001f642b") == r"a\U0001f642b"
        assert drawing.drawable_text("\u0915\u093f") == r"\u0915\u093f"  # with its vowel sign
        assert drawing.drawable_text("\u0915" * 5, 9) == r"\u0915\u" + "\u2026"


def test_the_first_font_is_the_one_that_matplotlib_brings():
    assert drawing.font_families()[0] == "DejaVu Sans"
