"""Figure of the findings: each claim with its value beside its null or interval, and the verdict.

Reads the rows that ``findings`` writes into the results; computes no statistic.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from result_views.figures.drawing import PALETTE, drawable_text
from result_views.figures.pages import page, styled
from result_views.figures.panel_primitives import NULL_COLOUR, as_array, write_reason
from suite_plumbing.result_reading import Section

VERDICT_COLOURS = {
    "supported": PALETTE[2],
    "above chance, untrained not tried": PALETTE[0],
    "not supported": PALETTE[3],
    "too few twins": "0.45",
    "too little data": "0.45",
}
"""By verdict; the verdict is written beside the colour."""

TWIN_MARKS = ((-0.72, "D"), (-0.9, "s"))
"""Height and marker of the twins of each kind: fresh, then permuted weights."""

ROWS_PER_PAGE = 17
"""Findings of a page."""

_CLAIM_WIDTH = 62

_TEXT_WIDTH = 72

_LINE_POINTS = 8.2


@styled
def figure_findings(results: Section, *, first: int = 0) -> Figure:
    """Claims tried on the data: value, null or interval, the untrained twins, verdict.

    As many as a page holds, from number ``first`` on.
    """
    rows = results.get("findings", [])
    shown = rows[first : first + ROWS_PER_PAGE]
    part = f"{first + 1} to {first + len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
    figure, axes = page(
        results,
        f"Findings {part}".rstrip(),
        "Point: what was measured, filled where the claim is supported. Grey: 95 % interval of the "
        "null, the value where nothing ties the two sides. Line: 95 % interval of the value. From "
        "the smallest to the largest of untrained models: diamonds with fresh, squares with "
        "permuted weights. Each row has a scale of its own. n is what the value rests on.",
        [(2, 0.34)] * len(shown) or [(1, 0.6)],
        {},
    )
    if not shown:
        write_reason(axes[0][0], "no findings in these results")
    for row, (left, right) in zip(shown, axes if shown else [], strict=True):
        write_claim(row, left)
        plot_finding(row, right)
    return figure


def finding_figures(results: Section) -> dict[str, Callable[..., Figure]]:
    """The pages of findings by file name, functions of the results; none without findings."""
    starts = range(0, len(results.get("findings", ())), ROWS_PER_PAGE)
    return {
        f"findings_{i + 1}" if i else "findings": functools.partial(figure_findings, first=start)
        for i, start in enumerate(starts)
    }


def write_claim(row: Section, ax: Axes) -> Axes:
    """Claim, statistic, verdict and n of a finding as text in a panel without axes."""
    ax.set_axis_off()
    claim = _wrapped(row["claim"], _CLAIM_WIDTH)
    statistic = _wrapped(row["statistic"], _TEXT_WIDTH)
    verdict = f"{row['verdict']}, n = {row['n']} {row['unit']}"
    down = 6.0
    for lines, weight, colour in (
        (claim, "bold", "black"),
        (statistic, "normal", "0.35"),
        ([verdict], "normal", VERDICT_COLOURS[row["verdict"]]),
    ):
        ax.annotate(
            "\n".join(lines), (0, 1), (0, down), "axes fraction", "offset points", va="top",
            fontsize=6.5, in_layout=False, parse_math=False, annotation_clip=False,
            fontweight=weight, color=colour,
        )  # fmt: skip
        down -= _LINE_POINTS * len(lines)
    return ax


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(drawable_text(text), width, max_lines=2, placeholder=" …")


def plot_finding(row: Section, ax: Axes) -> Axes:
    """Value of a finding beside its null, its interval and those of untrained twins."""
    ax.set_ylim(-1, 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if row["value"] is None:
        return _write_why(ax, row["reason"])
    if row["null"] is not None:
        low, high = row["null"]
        ax.barh(0, high - low, 1.1, low, color=NULL_COLOUR, alpha=0.5, linewidth=0)
        # A null of no width still has a place.
        ax.vlines([low, high], -0.55, 0.55, color=NULL_COLOUR, linewidth=1.0)
    if row["interval"] is not None:
        ax.hlines(0, *row["interval"], color="0.2", linewidth=1.4)
        ax.axvline(0, color="0.4", linewidth=0.6, linestyle=":")
    for twin, (height, marker) in zip(row["twins"], TWIN_MARKS, strict=False):
        ax.plot(
            [twin["low"], twin["high"]], [height] * 2, marker=marker, linestyle="-", color="0.3",
            markerfacecolor="white", markersize=3, linewidth=0.8,
        )  # fmt: skip
    colour = VERDICT_COLOURS[row["verdict"]]
    face = colour if row["verdict"] == "supported" else "white"
    ax.plot(row["value"], 0, "o", color=colour, markerfacecolor=face, markersize=5)
    if row["null"] is row["interval"] is None and not row["twins"]:
        ax.set_xticks([row["value"]], [f"{row['value']:.3g}"])
        return ax
    _widen(ax, row)
    ax.locator_params(axis="x", nbins=6)
    return ax


def _widen(ax: Axes, row: Section) -> None:
    """Room beside the outermost mark, so that none lies on the edge."""
    interval = [0.0, *row["interval"]] if row["interval"] else []
    given = [row["value"], *(row["null"] or ()), *interval]
    given += [twin[end] for twin in row["twins"] for end in ("low", "high")]
    ends = as_array([end for end in given if end is not None])
    room = 0.12 * (ends.max() - ends.min()) or 0.5
    ax.set_xlim(ends.min() - room, ends.max() + room)


def _write_why(ax: Axes, reason: str) -> Axes:
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    lines = "\n".join(_wrapped(reason, _TEXT_WIDTH))
    ax.text(0, 0.5, lines, transform=ax.transAxes, va="center", color="0.35", fontsize=6.5,
            in_layout=False, parse_math=False)  # fmt: skip
    return ax
