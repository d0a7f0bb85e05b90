"""Figure of the findings: the claims tried on the data, each on the scale of its own null.

Reads the rows that ``findings`` writes into the results; computes no statistic but the division by
the null's half-width, which puts claims of different units on one axis.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import NULL_ALPHA, NULL_COLOUR, PALETTE, drawable_text
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import begin, write_reason
from result_views.figures.titles import finding_title
from suite_plumbing.result_reading import Section

VERDICT_COLOURS = {
    "supported": PALETTE[2],
    "above chance, untrained not tried": PALETTE[0],
    "not supported": PALETTE[3],
    "too few twins": "0.45",
    "too little data": "0.45",
}
"""By verdict; the verdict is written beside the colour."""

TWIN_MARKS = ((0.22, "D"), (0.38, "s"))
"""Place below the row and marker of the twins of each kind: fresh, then permuted weights."""

MAX_ROWS = 12
"""Claims that are drawn: those furthest from their null; all stand in the report."""

_CLAIM_WIDTH = 46

# Beyond so many half-widths the axis is logarithmic, so that the near ones stay apart.
_LINEAR_TO = 3.0


@styled
def figure_findings(results: Section) -> Figure:
    """The claims furthest from their null, a row each, with untrained twins and verdict."""
    rows = results.get("findings", [])
    shown = placed_findings(rows)[:MAX_ROWS]
    figure, axes = page(
        results,
        finding_title(rows),
        "Across: value minus the middle of its null, in half-widths of the null's 95 % interval "
        "(grey), so that claims of different units share an axis; for a claim with an interval in "
        "place of a null, the value in half-widths of that interval (line), where 0 lies outside "
        "it beyond 1. Filled: supported. Not supported though outside the grey: too small to be "
        "worth a name, or another part of its rule does not hold. From the smallest to the largest "
        "of untrained models: diamonds with fresh, squares with permuted weights. "
        f"{len(shown)} of {len(rows)} claims: those with the largest effects; the report has all, "
        "with what they rest on.",
        [(1, 0.5 + 0.2 * len(shown))],
        {},
    )
    plot_findings(rows, axes[0][0])
    return figure


def placed_findings(rows: Sequence[Section]) -> list[tuple[Section, float, list[list[float]]]]:
    """Each finding that has a scale with its effect and twins on it, the largest effect first."""
    placed = []
    for row in rows:
        scale = _scale(row)
        if row["value"] is not None and scale is not None:
            middle, half = scale
            twins = [[(end - middle) / half for end in ends] for ends in twin_ranges(row)]
            placed.append((row, (row["value"] - middle) / half, twins))
    return sorted(placed, key=lambda one: -abs(one[1]))


def _scale(row: Section) -> tuple[float, float] | None:
    """The place that counts as no effect, and the half-width that counts as 1; None without any."""
    if row["null"] is not None:
        low, high = row["null"]
        return ((low + high) / 2, (high - low) / 2) if high > low else None
    if row["interval"] is not None:
        low, high = row["interval"]
        return (0.0, (high - low) / 2) if high > low else None
    return None


def twin_ranges(row: Section) -> list[list[float]]:
    """Smallest and largest value of the untrained twins of each kind that has values."""
    return [[one["low"], one["high"]] for one in row["twins"] or () if one["low"] is not None]


def plot_findings(rows: Sequence[Section], ax: Axes | None = None) -> Axes:
    """Effects of the claims over the half-width of their null, the largest on top."""
    ax = begin(ax, "Effect over the null", "half-widths of the null", "")
    shown = placed_findings(rows)[:MAX_ROWS]
    if not shown:
        reason = next((row["reason"] for row in rows if row["reason"]), None)
        return write_reason(ax, reason or "no findings with a null or an interval")
    ax.axvspan(-1, 1, color=NULL_COLOUR, alpha=NULL_ALPHA, linewidth=0, zorder=0)
    for y, (row, effect, twins) in enumerate(shown):
        if row["null"] is None:
            ax.hlines(y, effect - 1, effect + 1, color="0.2", linewidth=1.2)
        for (down, marker), ends in zip(TWIN_MARKS, twins, strict=False):
            ax.plot(ends, [y + down] * 2, marker=marker, color="0.3", markerfacecolor="white",
                    markersize=2.5, linewidth=0.7)  # fmt: skip
        colour = VERDICT_COLOURS.get(row["verdict"], "0.45")
        filled = row["verdict"] == "supported"
        ax.plot([effect], [y], "o", color=colour, markersize=5,
                markerfacecolor=colour if filled else "white")  # fmt: skip
        ax.text(
            1.01, y, f"{row['value']:.3g}, {row['verdict']}".replace("chance, ", "chance,\n"),
            transform=ax.get_yaxis_transform(),
            va="center", fontsize=6, color=colour, parse_math=False,
        )  # fmt: skip
    effects = [effect for _, effect, _ in shown]
    ends = np.array(effects + [x for _, _, twins in shown for pair in twins for x in pair])
    if np.abs(ends).max() > 4 * _LINEAR_TO:
        ax.set_xscale("symlog", linthresh=_LINEAR_TO)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(min(ends.min(), -1) - 0.5, max(ends.max(), 1) * 1.15)
    ax.set_yticks(range(len(shown)), [_written(row["claim"]) for row, _, _ in shown], fontsize=6)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    return ax


def _written(claim: str) -> str:
    lines = textwrap.wrap(drawable_text(claim), _CLAIM_WIDTH, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def finding_figures(results: Section) -> dict[str, Callable[..., Figure]]:
    """The figure of findings by file name, a function of the results; none without findings."""
    return {"findings": figure_findings} if results.get("findings") else {}
