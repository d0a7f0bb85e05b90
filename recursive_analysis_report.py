"""The report of an analysis: one HTML file to explore, and the same as Markdown.

Both are made from the results alone, live or loaded from the files that the main analysis wrote;
no model is loaded and no statistic computed. ``report.html`` holds everything in itself, loads
nothing and runs offline: findings with their verdicts, the texts with what every token attends to,
neurons, tables, figures, checks and provenance. Text of the analysed kind is shown as itself
wherever it stands: autoescaped in HTML, escaped in Markdown, and the page's own policy lets no
script but its own run.

From a shell: ``python recursive_analysis_report.py`` after the main analysis.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import recursive_analysis_report_options
from suite_plumbing.command_lines import parse_first
from suite_plumbing.messages import quoted

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(recursive_analysis_report_options)

import base64
import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from recursive_visualizer import figures_of, write_figures
from result_views.claims import figure_of
from result_views.figures.finding_figures import finding_figures
from result_views.glossary import MEASURES
from result_views.report.content import NO_PREDICTIONS, SECTIONS, report_content
from result_views.report.markdown import markdown_report
from result_views.report.tables import between, shown
from result_views.report.token_view import deflated_json, neuron_tables, token_view, view_maps
from suite_plumbing.commands import run_main
from suite_plumbing.output_folders import claim_output_dir
from suite_plumbing.progress import configure_logging, progress
from suite_plumbing.result_files import (
    StrPath,
    check_output_dir,
    write_text,
    written_together,
)
from suite_plumbing.result_reading import (
    RUN_ID,
    Section,
    drawing_from,
    entry_at,
    load_results,
    run_mark,
)
from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW_TWINS,
    TOO_LITTLE,
    Finding,
    compared,
)

REPORT_NAMES = ("report.html", "report.md")

TEMPLATE_DIR = Path(__file__).resolve().parent / "result_views" / "report"

VERDICT_MARKS = {
    SUPPORTED: "●",
    ABOVE_CHANCE: "◐",
    NOT_SUPPORTED: "○",
    TOO_FEW_TWINS: "–",
    TOO_LITTLE: "–",
}
"""By verdict, a mark that is told apart without colour."""

# Wide enough for a page, small enough for the file; figures beside it keep their full size.
_FIGURE_WIDTH = 1040

_FIGURE_QUALITY = 55

_WEBP_HEIGHT = 16_383  # pixels: a WebP image can have no more


def write_report(
    results: Section,
    save_dir: StrPath,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Sequence[Path] = (),
    memory: Section | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into a folder; returns their paths.

    ``tensors``: those beside the results; without them the token view has no maps. ``figures``:
    files that `write_figures` wrote; the PNG files are embedded in the HTML, and one file of each
    is linked from the Markdown by its path relative to the folder. ``memory``: results of the
    memory analysis. Each file is written whole or not at all. Raises ValueError for results that
    are damaged, tensors of another run, a figure that cannot be read and a folder that cannot be
    written. Cost: about 3 s for three texts of 512 tokens and five layers, most of it packing.
    """
    folder = check_output_dir(save_dir)
    pages = _pages(results, tensors or {}, figures, memory, folder)
    with written_together():
        for name, text in pages.items():
            write_text(folder / name, text)
    return folder / "report.html", folder / "report.md"


def report_html(
    results: Section,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Sequence[Path] = (),
    memory: Section | None = None,
) -> str:
    """The report as one HTML text that holds everything it shows: see :func:`write_report`."""
    return _pages(results, tensors or {}, figures, memory, Path())["report.html"]


def _pages(
    results: Section,
    tensors: Mapping[str, Tensor],
    figures: Sequence[Path],
    memory: Section | None,
    folder: Path,
) -> dict[str, str]:
    content = report_content(results, tensors, memory)
    view = token_view(results, tensors)
    drawn = {**figures_of(results), **({} if memory is None else figures_of(memory))}
    words = {path: _figure_words(path.stem, drawn) for path in figures}
    linked = {_relative(path, folder): words[path] for path in _one_of_each(figures)}
    # The findings stand on the page already.
    findings = {*finding_figures(results), *finding_figures(memory or {})}
    shown_figures = [
        path for path in figures if path.suffix == ".png" and path.stem not in findings
    ]
    maps = view_maps(results, tensors, functools.partial(progress, desc="report"))
    page = _template().render(
        sections=SECTIONS,
        run_id=entry_at(results, *RUN_ID),
        content=content,
        measures=MEASURES,
        view=deflated_json(view),
        maps=maps,
        levels=_levels(maps),
        no_predictions=NO_PREDICTIONS,
        figures=[(path.stem, *_embedded(path), *words[path]) for path in shown_figures],
        figure_ids={path.stem for path in shown_figures},
        verdict_marks=VERDICT_MARKS,
    )
    return {
        "report.html": page,
        "report.md": f"{markdown_report(content, linked, neuron_tables(view))}\n"
        f"{run_mark(results)}\n",
    }


def finding_strip(finding: Finding) -> dict[str, Any] | None:
    """Where value, null, interval and zero lie on one axis, in percent of its width.

    None where there is no value.
    """
    if finding.value is None:
        return None
    pairs = {"null": finding.null, "interval": finding.interval}
    twins = [(twin.low, twin.high) for twin in finding.twins]
    ends = [end for pair in [*pairs.values(), *twins] if pair is not None for end in pair]
    low, high = min(0.0, finding.value, *ends), max(0.0, finding.value, *ends)
    width = (high - low) or 1.0

    def place(x: float) -> float:
        return round(4 + 92 * (x - low) / width, 2)

    strip: dict[str, Any] = {"value": place(finding.value), "zero": place(0.0)}
    for name, pair in pairs.items():
        strip[name] = None if pair is None else (place(pair[0]), place(pair[1]))
    strip["twins"] = [(place(low), place(high)) for low, high in twins]
    return strip


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_DIR),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "source_hash": _source_hash, "shown": shown, "compared": compared,
        "between": between, "strip": finding_strip, "figure_of": figure_of,
    }  # fmt: skip
    return environment.get_template("report.html.jinja")


def _source_hash(source: str) -> str:
    """How the page's policy names the one script, or style, that it allows."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _levels(maps: Mapping[str, Any]) -> int | None:
    """The fewest levels among the packed maps: what their values are rounded to."""
    return min(
        (part["levels"] for by_layer in maps.values() for found in by_layer.values()
         for part in found.values()),
        default=None,
    )  # fmt: skip


def _embedded(path: Path) -> tuple[str, tuple[int, int]]:
    """A figure as the address of an image that is in the page, and its width and height in pixels:
    WebP, at most _FIGURE_WIDTH wide."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise ValueError(f"figure {quoted(str(path))} cannot be read: {error}") from error
    picture.thumbnail((_FIGURE_WIDTH, min(picture.height, _WEBP_HEIGHT)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_FIGURE_QUALITY, method=3)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return address, picture.size


def _figure_words(name: str, drawn: Mapping[str, Callable[..., Any]]) -> tuple[str, str]:
    """Title of a figure and what it shows: the first line of its function's docstring."""
    title = name.replace("_", " ").capitalize().replace("Ssm", "SSM")
    draw = drawn.get(name)
    draw = getattr(draw, "func", draw)  # of a partial, whose own docstring is partial's
    lines = (getattr(draw, "__doc__", None) or title).splitlines()
    words = lines[0].partition(": ")[2] if lines[0].startswith("Figure ") else lines[0]
    return title, words[:1].upper() + words[1:]


def _one_of_each(figures: Sequence[Path]) -> list[Path]:
    """One file of every figure, the first format given."""
    first: dict[Path, Path] = {}
    for path in figures:
        first.setdefault(path.with_suffix(""), path)
    return list(first.values())


def _relative(path: Path, folder: Path) -> str:
    """Path of a figure as seen from the folder of the report."""
    return Path(os.path.relpath(path, folder)).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a results file; exit status 2 where it cannot be read."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = recursive_analysis_report_options(argv)
    configure_logging(args.debug, args.quiet)
    given = args.results
    results, tensors = load_results(given)
    memory = None if args.memory_results is None else load_results(args.memory_results)[0]
    with drawing_from(given):
        report_content(results, tensors, memory)  # what is wrong is said before figures are drawn
    folder = claim_output_dir(args.output_dir)
    formats = list(dict.fromkeys(["png", *args.formats]))
    failures: dict[str, Any] = {}
    figures = write_figures(results, folder, tensors=tensors, formats=formats, failures=failures)
    if memory is not None:
        figures += write_figures(memory, folder / "memory", formats=formats, failures=failures)
    with drawing_from(given):
        page, text = write_report(results, folder, tensors=tensors, figures=figures, memory=memory)
    if not args.quiet:
        print(f"Wrote {page} (open it in a browser), {text} and {len(figures)} figure files.")
    for name, failure in failures.items():
        print(f"No figure {name}: {failure['error']['message']}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
