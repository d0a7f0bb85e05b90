"""Figure of the findings: value, null, interval and verdict of each, from rows of results."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from result_views.figures import finding_figures as figures
from token_statistics.findings import VERDICTS, Finding
from token_statistics.twin_bounds import FRESH, PERMUTED, BesideTwins

TWINS = (
    BesideTwins(FRESH, 3, 0.25, 0.5, 0.6, 0.001, True, 1),
    BesideTwins(PERMUTED, 3, 0.3, 0.4, 0.6, 0.001, True, 1),
)


def row(verdict="supported", **fields):
    given = {
        "twins": TWINS if verdict == "supported" else (),
        "claim": "Memory depends on the layer", "statistic": "share", "value": 0.75,
        "interval": None, "null": (0.0, 0.25), "n": 4, "unit": "layers", "verdict": verdict,
        "reason": None, "path": "memory.x",
    }  # fmt: skip
    return Finding(**{**given, **fields}).to_dict()


UNDECIDED = {"value": None, "null": None, "reason": "3 positions; a difference needs 8"}


@pytest.fixture
def ax():
    return Figure(figsize=(4, 1)).subplots()


def points(ax):
    return [line for line in ax.lines if line.get_marker() == "o"]


def test_a_supported_finding_is_a_filled_point_in_half_widths_of_its_null(ax):
    figures.plot_findings([row()], ax)
    (point,) = points(ax)
    # The null 0 to 0.25 has its middle at 0.125 and a half-width of 0.125.
    np.testing.assert_array_equal(point.get_xydata(), [[5.0, 0]])
    assert to_hex(point.get_markerfacecolor()) == to_hex(figures.VERDICT_COLOURS["supported"])
    low, high = ax.get_xlim()
    assert low < -1 < 5 < high
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Memory depends on the layer"]
    assert ax.texts[0].get_text() == "0.75, supported"


def test_one_with_an_interval_is_hollow_on_it_where_it_is_not_supported(ax):
    figures.plot_findings([row("not supported", null=None, interval=(1.0, 3.0), value=2.0)], ax)
    (point,) = points(ax)
    assert to_hex(point.get_markerfacecolor()) == "#ffffff"
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0][:, 0], [1, 3])
    assert ax.get_xlim()[0] < 0


def test_the_untrained_twins_are_diamonds_and_squares_below_on_the_same_scale(ax):
    figures.plot_findings([row()], ax)
    fresh, permuted = ax.lines[:2]
    np.testing.assert_allclose(fresh.get_xdata(), [1, 3])
    np.testing.assert_allclose(permuted.get_xdata(), [1.4, 2.2])
    # The axis runs downwards.
    assert np.all(np.asarray(permuted.get_ydata()) > np.asarray(fresh.get_ydata()))
    assert np.all(np.asarray(fresh.get_ydata()) > 0)
    assert (fresh.get_marker(), permuted.get_marker()) == ("D", "s")


def test_every_verdict_has_a_colour():
    assert set(figures.VERDICT_COLOURS) == set(VERDICTS)


def test_the_largest_effects_of_either_sign_come_first_and_twelve_of_them(ax):
    rows = [row(value=value, claim=f"claim {value}") for value in (0.5, -3.0, 0.2)]
    rows += [row("too little data", **UNDECIDED), row(null=None), row(null=(0.0, 0.0))]
    figures.plot_findings(rows, ax)
    said = [label.get_text() for label in ax.get_yticklabels()]
    assert said == ["claim -3.0", "claim 0.5", "claim 0.2"]
    many = {"findings": [row(value=float(i)) for i in range(40)]}
    (draw,) = figures.finding_figures(many).values()
    figure = draw(many)
    assert len(points(figure.axes[0])) == 12
    assert "12 of 40 claims" in figure.texts[-1].get_text()
    assert figure.get_figheight() < 11.7  # A4


def test_nothing_to_draw_gives_the_reason(ax):
    figures.plot_findings([row("too little data", **UNDECIDED)], ax)
    assert "3 positions; a difference needs" in " ".join(ax.texts[0].get_text().split())
    assert figures.finding_figures({}) == {}


def test_the_title_counts_the_verdicts():
    rows = [row(), row(), row("too little data", **UNDECIDED)]
    assert figures.figure_findings({"findings": rows}).get_suptitle() == (
        "3 claims: 2 supported; 1 too little data"
    )


def test_no_findings_are_said_to_be_none():
    figure = figures.figure_findings({"findings": []})
    assert "no findings" in figure.axes[0].texts[0].get_text()
