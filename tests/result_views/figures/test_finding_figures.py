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


def test_a_supported_finding_is_a_filled_point_beside_its_null(ax):
    figures.plot_finding(row(), ax)
    (null,) = ax.patches
    assert (null.get_x(), null.get_width()) == (0.0, 0.25)
    point = ax.lines[-1]
    np.testing.assert_array_equal(point.get_xydata(), [[0.75, 0]])
    assert to_hex(point.get_markerfacecolor()) == to_hex(figures.VERDICT_COLOURS["supported"])
    low, high = ax.get_xlim()
    assert low < 0 < 0.75 < high


def test_one_that_is_not_supported_is_hollow_on_its_interval_with_zero_in_sight(ax):
    interval = {"null": None, "interval": (1.0, 3.0), "value": 2.0}
    figures.plot_finding(row("not supported", **interval), ax)
    assert to_hex(ax.lines[-1].get_markerfacecolor()) == "#ffffff"
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0][:, 0], [1, 3])
    assert ax.get_xlim()[0] < 0


def test_the_untrained_twins_are_diamonds_and_squares_below(ax):
    figures.plot_finding(row(), ax)
    fresh, permuted = ax.lines[:2]
    np.testing.assert_array_equal(fresh.get_xdata(), [0.25, 0.5])
    np.testing.assert_array_equal(permuted.get_xdata(), [0.3, 0.4])
    assert np.all(np.asarray(permuted.get_ydata()) < np.asarray(fresh.get_ydata()))
    assert np.all(np.asarray(fresh.get_ydata()) < 0)
    assert (fresh.get_marker(), permuted.get_marker()) == ("D", "s")


def test_every_verdict_has_a_colour():
    assert set(figures.VERDICT_COLOURS) == set(VERDICTS)


def test_too_little_data_gives_the_reason(ax):
    figures.plot_finding(row("too little data", **UNDECIDED), ax)
    assert ax.texts[0].get_text() == "3 positions; a difference needs 8"
    assert not ax.lines


def test_claim_statistic_and_verdict_are_written(ax):
    figures.write_claim(row(claim="A $claim$ of " + "many words " * 40), ax)
    claim, statistic, verdict = (text.get_text() for text in ax.texts)
    assert claim.startswith("A $claim$ of many")
    assert claim.endswith(" …")
    assert len(claim.splitlines()) == 2
    assert (statistic, verdict) == ("share", "supported, n = 4 layers")


def test_a_value_that_is_compared_with_nothing_is_written_out(ax):
    figures.plot_finding(row("not supported", value=256.0, null=None), ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["256"]


def test_a_row_a_finding_and_as_many_pages_as_it_takes():
    results = {"findings": [row(), row("too little data", **UNDECIDED)]}
    assert list(figures.finding_figures(results)) == ["findings"]
    assert len(figures.figure_findings(results).axes) == 4
    many = {"findings": [row(value=i) for i in range(figures.ROWS_PER_PAGE + 3)]}
    pages = {name: draw(many) for name, draw in figures.finding_figures(many).items()}
    assert list(pages) == ["findings", "findings_2"]
    second = pages["findings_2"]
    assert second.get_suptitle() == "Findings 18 to 20 of 20"
    values = [ax.lines[-1].get_xdata() for ax in second.axes if ax.lines]
    np.testing.assert_array_equal(np.concatenate(values), [17, 18, 19])
    assert pages["findings"].get_figheight() < 11.7  # A4
    assert figures.finding_figures({}) == {}


def test_no_findings_are_said_to_be_none():
    figure = figures.figure_findings({"findings": []})
    assert "no findings" in figure.axes[0].texts[0].get_text()
