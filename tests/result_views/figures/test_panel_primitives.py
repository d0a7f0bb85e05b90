"""What panels share: failures, texts' colours, layers, nulls, logarithmic axes."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from result_views.beside_nulls import INSIDE, OUTSIDE
from result_views.figures import panel_primitives as primitives
from result_views.figures.panel_primitives import text_style

ERROR = {"error": {"type": "AnalysisError", "message": "too flat"}}
SKIPPED = {"skipped": "needs attention_data, which gave no result"}


@pytest.fixture
def ax():
    return Figure(figsize=(4, 3)).subplots()


def summary(mean, std=1.0, low=-1.0, median=0.5, high=2.0):
    return {"mean": mean, "std": std, "lower_quartile": low, "median": median,
            "upper_quartile": high}  # fmt: skip


def texts_of(ax):
    return " ".join(" ".join(text.get_text() for text in ax.texts).split())


def null_test(value, low, high, reason=None):
    return {"value": value, "null_low": low, "null_high": high, "reason": reason}


def test_texts_are_told_apart_by_colour_and_marker():
    styles = [text_style(f"text_{i}") for i in range(14)]
    assert len(set(styles)) == 14
    assert len({colour for colour, _ in styles[:7]}) == 7


def test_summary_draws_median_and_quartiles(ax):
    sections = {"text_1": {f"layer_{i}": {"delta": summary(0, median=i, low=i - 1, high=i + 2)}
                           for i in (0, 3, 12)}}  # fmt: skip
    primitives.draw_summary(sections, "delta", ax, "Step size", "tokens")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [3, 3], [12, 12]])
    assert ax.lines[0].get_color() == text_style("text_1")[0]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.y0, band.x1, band.y1) == (0, -1, 12, 14)
    assert (ax.get_title(), ax.get_ylabel()) == ("Step size", "tokens")
    assert list(ax.get_xticks()) == [0, 3, 12]


def of_texts(*medians):
    return {f"text_{i}": {f"layer_{k}": {"x": summary(median, median=median)}
                          for k, median in enumerate(line)}
            for i, line in enumerate(medians)}  # fmt: skip


def test_texts_that_lie_upon_each_other_are_one_line_and_others_are_not(ax):
    primitives.draw_summary(of_texts([1.0, 9.0], [1.01, 9.0]), "x", ax, "", "")
    (line,) = ax.lines
    assert line.get_label() == "all texts"
    other = Figure().subplots()
    primitives.draw_summary(of_texts([1.0, 9.0], [2.0, 9.0]), "x", other, "", "")
    assert [line.get_label() for line in other.lines] == ["text_0", "text_1"]
    # On a logarithmic axis 1 and 1.2 of a range from 1 to 9 are apart.
    apart = Figure().subplots()
    primitives.draw_summary(of_texts([1.0, 9.0], [1.2, 9.0]), "x", apart, "", "", log=True)
    assert len(apart.lines) == 2


def test_a_single_layer_shows_its_range_as_a_bar(ax):
    sections = {"text_0": {"layer_5": {"delta": summary(0)}}}
    primitives.draw_summary(sections, "delta", ax, "", "")
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0], [[5, -1], [5, 2]])


def test_what_is_undefined_leaves_a_gap_and_all_undefined_a_reason(ax):
    undefined = dict.fromkeys(("mean", "std", "min", "median", "max"))
    sections = {"text_0": {"layer_0": {"x": undefined}, "layer_1": {"x": summary(0)}}}
    primitives.draw_summary(sections, "x", ax, "", "")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 0.5])
    empty = Figure().subplots()
    primitives.draw_summary({"text_0": {"layer_0": {"x": undefined}}}, "x", empty, "", "")
    assert texts_of(empty) == "not available undefined in these texts"


@pytest.mark.parametrize(("section", "reason"), [(ERROR, "too flat"), (SKIPPED, "skipped: needs")])
def test_failed_sections_are_named_where_no_text_has_a_result(ax, section, reason):
    primitives.draw_summary({"text_0": section}, "delta", ax, "Step size", "")
    assert reason in texts_of(ax)
    assert not ax.lines


def test_a_reason_is_drawn_as_it_is_written(ax):
    primitives.write_reason(ax, "cost $5 and $6 \U0001f642")
    assert texts_of(ax) == "not available cost $5 and $6 \\U0001f642"
    ax.figure.savefig(io.BytesIO(), format="svg")  # a missing glyph would warn


def test_tests_show_the_null_and_fill_what_lies_outside(ax):
    tests = [
        null_test(0.5, -0.1, 0.2),
        null_test(0.1, -0.3, 0.4),
        null_test(-0.6, None, None),
        null_test(None, None, None, "flat"),
    ]
    labels = ["a", "b", "c", "d"]
    primitives.draw_tests(ax, {"text_0": {"layer_0": 1}}, labels, {"text_0": tests})
    bars = [(bar.get_y(), bar.get_height()) for bar in ax.patches[:2]]
    np.testing.assert_allclose(bars, [(-0.1, 0.3), (-0.3, 0.7)])
    _, filled, hollow, without = ax.lines
    np.testing.assert_array_equal(filled.get_xydata(), [[0, 0.5]])
    np.testing.assert_array_equal(hollow.get_xydata(), [[1, 0.1]])
    np.testing.assert_array_equal(without.get_xydata(), [[2, -0.6]])
    assert without.get_fillstyle() == "left"
    assert to_hex(filled.get_markerfacecolor()) == to_hex(text_style("text_0")[0])
    assert to_hex(hollow.get_markerfacecolor()) == "#ffffff"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c", "d"]


def test_tests_without_any_value_give_the_reason(ax):
    tests = {"text_0": [null_test(None, None, None, "5 tokens; a claim needs at least 40")]}
    primitives.draw_tests(ax, {"text_0": {"layer_0": 1}}, ["0→1"], tests)
    assert texts_of(ax) == "not available 5 tokens; a claim needs at least 40"


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def drawn_points(ax):
    """Values by look, of all groups."""
    found = {"filled": [], "hollow": [], "half": []}
    for line in ax.lines:
        if line.get_marker() not in ("None", ""):
            face = to_hex(line.get_markerfacecolor())
            half = line.get_fillstyle() == "left"
            look = "half" if half else "hollow" if face == "#ffffff" else "filled"
            found[look] += np.asarray(line.get_ydata()).tolist()
    return found


def test_points_beside_chance_in_outline_where_it_is_not_excluded(ax):
    section = {"layer_0": {}, "layer_3": {}}
    points = {"rollout": [4.0, 2.0], "gradient": [1.0, None]}
    standings = {"rollout": [OUTSIDE, INSIDE], "gradient": [INSIDE, None]}
    primitives.draw_points(ax, section, points, 1.5, None, standings=standings)
    assert drawn_points(ax) == {"filled": [4], "hollow": [2, 1], "half": []}
    assert np.asarray(ax.lines[-1].get_ydata()).tolist() == [1.5, 1.5]
    assert legend_of(ax) == ["rollout", "gradient"]


def test_points_go_by_the_interval_of_chance_and_are_half_filled_without_any(ax):
    section = {"layer_0": {}, "layer_3": {}}
    null = {"a": ([0.2, 0.2], [1.9, 1.9])}
    primitives.draw_points(ax, section, {"a": [2.3, 1.0]}, 1.0, None, null=null)
    assert drawn_points(ax) == {"filled": [2.3], "hollow": [1.0], "half": []}
    other = Figure().subplots()
    primitives.draw_points(other, section, {"a": [0.5, 0.6]}, 0.0, None)
    assert drawn_points(other)["half"] == [0.5, 0.6]


def test_a_legend_names_as_undefined_what_has_no_point(ax):
    section = {"layer_0": {}, "layer_3": {}}
    primitives.draw_points(ax, section, {"a": [1.0, 2.0], "b": [None, None]}, 0.0, None)
    assert legend_of(ax) == ["a", "b: undefined"]
    other = Figure().subplots()
    other.plot([0, 1], [np.nan, np.nan], label="lag")
    other.errorbar([0, 1], [np.nan, np.nan], [1, 1], label="mean")
    other.plot([0, 1], [np.nan, 1.0], label="half-life")
    other.bar([0], [1], label="bar")
    primitives.legend_above(other, 4)
    assert legend_of(other) == ["lag: undefined", "half-life", "mean: undefined", "bar"]


def test_a_legend_stands_above_the_data(ax):
    ax.plot([0, 1], [0, 1], label="a")
    primitives.legend_above(ax, 1)
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_lags_are_logarithmic_with_a_place_for_0_and_end_where_the_data_do(ax):
    ax.plot(range(130), range(130))
    primitives.lag_axis(ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "0", "1", "2", "5", "10", "20", "50", "100",
    ]  # fmt: skip
    low, high = ax.get_xlim()
    assert low < 0
    assert 129 < high < 150


@pytest.mark.parametrize(("count", "names"), [(3, "legend"), (24, "colour bar")])
def test_layers_in_colours_are_named(ax, count, names):
    series = {"lags": [1, 2], "share": [0.5, 0.25]}
    sections = {"text_0": {f"layer_{i}": series for i in range(count)}}
    primitives.draw_lines_by_layer(sections, ax, lambda part: (part["lags"], part["share"]))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.5], [2, 0.25]])
    colours = primitives.layer_colours(list(range(count)))
    assert to_rgba(ax.lines[1].get_color()) == colours[1] != colours[0]
    if names == "legend":
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["layer 0", "layer 1", "layer 2"]
    else:
        bar = ax.figure.axes[1]
        assert bar.get_ylabel() == "layer"
        assert [label.get_text() for label in bar.get_yticklabels()][:2] == ["0", "3"]


def test_long_labels_are_thinned_more(ax):
    primitives.thin_ticks(ax, "x", [str(i) for i in range(24)])
    assert len(ax.get_xticks()) <= primitives.MAX_TICKS
    primitives.thin_ticks(ax, "x", [f"{i}→{i + 1}" for i in range(23)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0→1", "6→7", "12→13", "18→19"]


def test_a_short_logarithmic_range_has_more_labels_than_powers_of_ten(ax):
    ax.plot([0, 1], [0.02, 0.6])
    primitives.log_axis(ax, "y")
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"0.02", "0.05", "0.1", "0.2", "0.5"} <= set(labels)


def test_powers_of_ten_are_plain_text(ax):
    ax.plot([0, 1], [2e-4, 3.0])
    primitives.log_axis(ax, "y")
    ax.figure.canvas.draw()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"10⁻³", "10⁻¹", "10⁰"} <= set(labels)
    assert [primitives.power_of_ten(x) for x in (0.0, 2e-12, 5e3)] == ["0", "2×10⁻¹²", "5×10³"]


def test_zeros_stay_on_a_linear_axis(ax):
    ax.plot([0, 1], [0, 0])
    assert primitives.log_axis(ax, "y").get_yscale() == "linear"
