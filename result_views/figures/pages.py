"""Pages of the figures: style, title, legend of texts, caption with model and n, rows of panels.

A figure is a `matplotlib.figure.Figure` outside pyplot's state: no backend is chosen, nothing has
to be closed, and a notebook shows what a function returns.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from result_views.figures.drawing import drawable_text, font_families
from result_views.figures.panel_primitives import text_style
from suite_plumbing.result_reading import Section, failure

STYLE: dict[str, Any] = {
    "font.family": font_families(),
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.7,
    "text.hinting": "none",  # at 200 dpi fitting glyphs to pixels costs time and their shape
    "axes.linewidth": 0.6,
    "axes.titley": 1.0,  # nothing stands above the axes that matplotlib would have to measure
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "recursive_visualizer",
}
"""Matplotlib's defaults but for these, whatever the user's own settings are."""

# A page's width between margins, inches; a figure is at most as high as the page.
_WIDTH = 7.2

_LINE = 0.13

_CHARACTERS_PER_LINE = 155

_MAX_LACKING = 10  # texts without a result that a caption names

_MAX_LEGEND = 24  # texts in the legend: more would be higher than the page

_LABEL_LENGTH = 36  # characters of a text in the legend

_TITLE_WIDTH = 88  # characters of a title's line


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw in STYLE, and leave the user's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **options: Any) -> Any:
        with matplotlib.style.context(["default", STYLE]):
            return draw(*args, **options)

    return wrapper


class PageFigure(Figure):
    """A figure that a notebook shows as a picture, and that is saved in STYLE wherever it is."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save as `Figure.savefig` does, in STYLE: 200 dpi, text that can be edited."""
        with matplotlib.style.context(["default", STYLE]):
            engine, dpi = self.get_layout_engine(), self.dpi
            try:
                if engine is not None:
                    # Widths of text depend on the resolution that it is drawn at.
                    self.dpi = options.get("dpi") or matplotlib.rcParams["savefig.dpi"]
                    engine.execute(self)
                # With an engine matplotlib draws all once more, for the layout that stands.
                self.set_layout_engine(None)
                super().savefig(fname, **options)
            finally:
                self.dpi = dpi
                self.set_layout_engine(engine)

    def _repr_png_(self) -> bytes:
        """What a notebook shows, also where no backend of pyplot was chosen."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


def page(
    results: Section,
    title: str,
    caption: str,
    rows: Sequence[tuple[int, float]],
    sections: Mapping[str, Section],
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with title, legend of texts and caption, and its axes by row.

    `rows`: number of panels, and height in units of 1.75 inches. `sections`: the texts that the
    figure shows; the legend is left out for a single text or none, and names the first 24.
    """
    heading = balanced_lines(title, _TITLE_WIDTH)
    lines = textwrap.wrap(f"{caption} {_origin(results, sections)}", _CHARACTERS_PER_LINE)
    handles = text_handles(results) if len(sections) > 1 else []
    if len(results.get("individual_texts", {})) > len(handles) > 0:
        count = len(results["individual_texts"])
        lines.append(f"Of the {count} texts the first {len(handles)} are named.")
    legend_lines = -(-len(handles) // 2)
    content = 1.75 * sum(height for _, height in rows)
    foot = _LINE * (len(lines) + 1.2 * legend_lines + 1)
    height = content + foot + 0.14 + 0.16 * len(heading)
    figure = PageFigure(figsize=(_WIDTH, height))
    figure.set_layout_engine(
        ConstrainedLayoutEngine(rect=(0, foot / height, 1, content / height), h_pad=0.06)
    )
    figure.suptitle(
        "\n".join(heading), fontsize=9.5, fontweight="bold", y=1 - 0.08 / height, va="top"
    )
    figure.text(
        0.01, 0.06 / height, "\n".join(lines), fontsize=6, va="bottom", parse_math=False,
        linespacing=1.25,
    )  # fmt: skip
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=2,
            bbox_to_anchor=(0.5, _LINE * (len(lines) + 0.7) / height), borderaxespad=0,
        )  # fmt: skip
    grid = figure.add_gridspec(len(rows), 1, height_ratios=[height for _, height in rows])
    axes = [
        list(grid[i].subgridspec(1, count).subplots(squeeze=False)[0])
        for i, (count, _) in enumerate(rows)
    ]
    return figure, axes


def balanced_lines(text: str, width: int) -> list[str]:
    """As few lines of at most so many characters as possible, about equally long."""
    lines = textwrap.wrap(text, width)
    for narrower in range(width - 1, 0, -1):
        closer = textwrap.wrap(text, narrower, break_long_words=False)
        if len(closer) > len(lines):
            break
        lines = closer
    return lines


def text_handles(results: Section, *, start: bool = True) -> list[Line2D]:
    """Entries of the legend for the first texts, no more of them than fit on a page.

    ``start``: with the number of tokens, and how each begins.
    """
    names = list(results.get("individual_texts", {}))[:_MAX_LEGEND]
    return [_text_handle(results, name, start) for name in names]


def _text_handle(results: Section, name: str, start: bool) -> Line2D:
    """Entry of a text in the legend: its colour, number of tokens, and how it begins."""
    part = results["individual_texts"][name]
    label = name.replace("_", " ")
    if start:
        label += f" (n = {len(part['tokens'])} tokens): {_beginning(part['text'])}"
    colour, marker = text_style(name)
    return Line2D([], [], color=colour, marker=marker, label=label)


def _beginning(text: str) -> str:
    """How a text begins, on one line, with nothing in it that matplotlib takes for mathematics."""
    start = " ".join(text[: 4 * _LABEL_LENGTH].split())
    printable = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in start
    )
    # One more than is shown, so that a cut is marked where the whole text is longer.
    return drawable_text(printable[: _LABEL_LENGTH + 1], _LABEL_LENGTH).replace("$", r"\$")


def _origin(results: Section, sections: Mapping[str, Section]) -> str:
    """The end of a caption: model, n, and the texts that are missing with their reasons; empty for
    a part of results that does not say where it is from."""
    if "provenance" not in results and "individual_texts" not in results:
        return ""
    model = str(results.get("provenance", {}).get("model", {}).get("id") or "unnamed")
    counts = _token_counts(results)
    texts = f"{len(counts)} texts" if len(counts) != 1 else "1 text"
    lacking = {text: why for text in sections if (why := failure(sections[text])) is not None}
    shown = [f" Without {text.replace('_', ' ')}: {why}." for text, why in lacking.items()]
    more = f" And {len(shown) - _MAX_LACKING} more texts." if len(shown) > _MAX_LACKING else ""
    return drawable_text(
        f"Model {Path(model).name if Path(model).is_absolute() else model}"
        + (f"; n\u00a0=\u00a0{sum(counts)} tokens of {texts}." if counts else ".")
        + "".join(shown[:_MAX_LACKING])
        + more
    )


def _token_counts(results: Section) -> list[int]:
    """Tokens of each text; empty where the file of results does not say."""
    if "individual_texts" in results:
        return [len(part["tokens"]) for part in results["individual_texts"].values()]
    return [part["num_tokens"] for part in results.get("provenance", {}).get("texts", {}).values()]
