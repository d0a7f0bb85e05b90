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

import argparse
import base64
import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from findings import NOT_SUPPORTED, SUPPORTED, TOO_LITTLE, Finding, compared, sentence
from memory_figures import MEMORY_FIGURES
from panel_primitives import Section
from recursive_visualizer import CORRECTED_FIGURES, DEFAULT_RESULTS, load_results, write_figures
from report_content import ReportContent, check_results, report_content
from report_markdown import markdown_report
from report_measures import MEASURES
from report_tables import between, shown
from report_view import deflated_json, neuron_tables, token_view, view_maps
from utils import (
    SCHEMA_VERSION,
    StrPath,
    add_common_options,
    check_output_dir,
    configure_logging,
    read_json,
    run_main,
    write_atomically,
)

DEFAULT_OUTPUT_DIR = "recursive_analysis_reports"
TEMPLATE_DIR = Path(__file__).resolve().parent / "report_template"

VERDICT_MARKS = {SUPPORTED: "●", NOT_SUPPORTED: "○", TOO_LITTLE: "–"}
"""By verdict, a mark that is told apart without colour."""

# Wide enough for a page, small enough for the file; figures beside it keep their full size.
_FIGURE_WIDTH = 1152
_FIGURE_QUALITY = 60


def write_report(
    results: Section,
    save_dir: StrPath,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Sequence[Path] = (),
    memory: Section | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into a folder; returns their paths.

    ``figures``: figure files as `write_figures` wrote them; PNG files are embedded in the HTML,
    any are linked from the Markdown by their path relative to the folder. ``tensors``: those beside
    the results; without them the token view has no maps. ``memory``: results of the memory
    analysis. Each file is written whole or not at all. Raises ValueError for results that are
    damaged, tensors of another run and a folder that cannot be written.
    Cost: about 2 s for three texts of 512 tokens and five layers.
    """
    folder = check_output_dir(save_dir)
    content = report_content(results, tensors, memory)
    view = token_view(results, tensors or {})
    linked = {_relative(path, folder): _figure_words(path) for path in _one_of_each(figures)}
    pages = {
        "report.html": _render(content, view, view_maps(results, tensors or {}), figures),
        "report.md": markdown_report(content, linked, neuron_tables(view)),
    }
    paths = []
    for name, page in pages.items():
        with write_atomically(folder / name) as handle:
            handle.write(page)
        paths.append(folder / name)
    return paths[0], paths[1]


def report_html(
    results: Section,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Sequence[Path] = (),
    memory: Section | None = None,
) -> str:
    """The report as one HTML text: see :func:`write_report`."""
    content = report_content(results, tensors, memory)
    view = token_view(results, tensors or {})
    return _render(content, view, view_maps(results, tensors or {}), figures)


def report_markdown(
    results: Section,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    figures: Sequence[Path] = (),
    memory: Section | None = None,
) -> str:
    """The report as Markdown, its figures linked by their paths: see :func:`write_report`."""
    linked = {path.as_posix(): _figure_words(path) for path in _one_of_each(figures)}
    content = report_content(results, tensors, memory)
    return markdown_report(content, linked, neuron_tables(token_view(results, tensors or {})))


def _render(
    content: ReportContent,
    view: Mapping[str, Any],
    maps: Mapping[str, Any],
    figures: Sequence[Path],
) -> str:
    images = [(_embedded(path), *_figure_words(path)) for path in figures if path.suffix == ".png"]
    return _template().render(
        content=content,
        measures=MEASURES,
        view=deflated_json(view),
        maps=maps,
        has_maps=any(by_layer for by_layer in maps.values()),
        levels=_levels(maps),
        figures=images,
        verdict_marks=VERDICT_MARKS,
    )


def finding_strip(finding: Finding) -> dict[str, Any] | None:
    """Where value, null, interval and zero lie on one axis, in percent of its width.

    None where there is no value.
    """
    if finding.value is None:
        return None
    pairs = {"null": finding.null, "interval": finding.interval, "twins": finding.twins}
    ends = [end for pair in pairs.values() if pair is not None for end in pair]
    low, high = min(0.0, finding.value, *ends), max(0.0, finding.value, *ends)
    width = (high - low) or 1.0

    def place(x: float) -> float:
        return round(4 + 92 * (x - low) / width, 2)

    strip: dict[str, Any] = {"value": place(finding.value), "zero": place(0.0)}
    for name, pair in pairs.items():
        strip[name] = None if pair is None else (place(pair[0]), place(pair[1]))
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
        "source_hash": _source_hash, "shown": shown, "sentence": sentence, "compared": compared,
        "between": between, "strip": finding_strip,
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


def _embedded(path: Path) -> str:
    """A figure as the address of an image that is in the page: WebP, at most _FIGURE_WIDTH wide."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise ValueError(f"figure {str(path)!r} cannot be read: {error}") from error
    picture.thumbnail((_FIGURE_WIDTH, picture.height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_FIGURE_QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure_words(path: Path) -> tuple[str, str]:
    """Title of a figure file and what it shows: the first line of its function's docstring."""
    draw = {**CORRECTED_FIGURES, **MEMORY_FIGURES}.get(path.stem)
    title = path.stem.replace("_", " ").capitalize()
    line = ((draw.__doc__ if draw else None) or title).splitlines()[0]
    return title, line.partition(": ")[2].capitalize() if line.startswith("Figure ") else line


def _one_of_each(figures: Sequence[Path]) -> list[Path]:
    """One file of every figure, the first format given."""
    return list({path.stem: path for path in reversed(figures)}.values())[::-1]


def _relative(path: Path, folder: Path) -> str:
    """Path of a figure as seen from the folder of the report."""
    return Path(os.path.relpath(path, folder)).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a results file; exit status 2 where it cannot be read."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Report of an analysis, from its files: report.html, to open in a browser, "
        "and report.md.",
        epilog="example: python recursive_analysis_report.py "
        "--results my_analysis/analysis_results.json --output-dir my_report. Exit status: 0 "
        "written, 2 results that cannot be read or a folder that cannot be written.",
    )
    parser.add_argument(
        "--results", default=DEFAULT_RESULTS, metavar="FILE",
        help=f"results of the main analysis, with its tensors beside it "
        f"(default: {DEFAULT_RESULTS})",
    )  # fmt: skip
    parser.add_argument(
        "--memory-results", metavar="FILE",
        help="results of the memory analysis, to report them too (default: none)",
    )  # fmt: skip
    add_common_options(parser, "output_dir", "formats", "debug", "quiet")
    parser.set_defaults(output_dir=DEFAULT_OUTPUT_DIR)
    args = parser.parse_args(argv)
    configure_logging(args.debug, args.quiet)
    results, tensors = load_results(args.results)
    memory = None if args.memory_results is None else read_memory_results(args.memory_results)
    report_content(results, tensors, memory)  # what is wrong is said before figures are drawn
    folder = check_output_dir(args.output_dir)
    formats = list(dict.fromkeys(["png", *args.formats]))
    figures = write_figures(results, folder, tensors=tensors, formats=formats)
    if memory is not None:
        figures += write_figures(memory, folder, figures=MEMORY_FIGURES, formats=formats)
    page, text = write_report(
        results, folder, tensors=tensors, figures=figures, memory=memory
    )  # fmt: skip
    if not args.quiet:
        print(f"Wrote {page} (open it in a browser), {text} and {len(figures)} figure files.")
    return 0


def read_memory_results(path: StrPath) -> dict[str, Any]:
    """Results of the memory analysis; raises ValueError for another file or schema version."""
    results = read_json(path)
    version = results.get("schema_version") if isinstance(results, dict) else None
    if str(version).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise ValueError(
            f"results file {str(path)!r} has schema_version {version!r}; this version reports "
            f"{SCHEMA_VERSION!r}: run the memory analysis again"
        )
    check_results(results, f"results file {str(path)!r}", ("text",))
    return results


if __name__ == "__main__":
    raise SystemExit(main())
