"""What the benchmarks' commands share: a help with an example, and a table that is kept."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.result_files import to_jsonable, write_atomically, write_json

RESULTS_FOLDER = Path(__file__).resolve().parent / "results"


def benchmark_parser(doc: str | None, prints: str) -> argparse.ArgumentParser:
    """A parser with ``--save``; its help has a script's question and example from its docstring.

    ``prints`` says what the command prints, to end "Prints ...".
    """
    doc = doc or ""
    example = re.search(r"python benchmarks/[^#\n]+", doc)
    parser = argparse.ArgumentParser(
        description=f"{doc.splitlines()[0] if doc else ''} Prints {prints}.",
        epilog=f"example: {' '.join(example[0].split())}" if example else None,
    )
    parser.add_argument("--save", action="store_true", help="also write it to benchmarks/results")
    return parser


def add_book_options(parser: argparse.ArgumentParser) -> None:
    """Add the text of a benchmark that reads one, and the model that reads it."""
    parser.add_argument("text", help="a plain text file that the model was not trained on")
    add_model_option(parser)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, by default the demo model."""
    parser.add_argument(
        "--model",
        default=str(DEMO_MODEL_PATH),
        metavar="NAME_OR_PATH",
        help="model folder or hub name (default: the demo model)",
    )


def add_parts_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--parts``, for a benchmark that takes long (`kept_part`)."""
    parser.add_argument(
        "--parts",
        type=Path,
        metavar="FOLDER",
        help="keep what is done in this folder, and take from there what an earlier run with the "
        "same options left",
    )


def kept_part(folder: Path | None, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, as JSON holds it: read from the folder where it is there, else made and,
    with a folder, written there as ``name``.json."""
    path = None if folder is None else folder / f"{name}.json"
    if path is not None and path.exists():
        return json.loads(path.read_text())
    made = json.loads(json.dumps(to_jsonable(make())))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
    return made


def keep_section(path: Path, report: str) -> None:
    """Put a report that begins with a heading ``## ...`` into a file of several scripts' sections.

    It takes the place of the section of that heading, or comes last; the others stay.
    """
    heading, _, body = report.strip().partition("\n")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = re.split(r"^(## .*)$", before, flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True)) | {heading: f"\n{body}\n"}
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as handle:
        handle.write(f"# {path.stem.replace('_', ' ').capitalize()}\n")
        for title, text in sections.items():
            handle.write(f"\n{title}\n\n{text.strip()}\n")


def keep(path: Path, report: str, script: str | None = None) -> None:
    """Write a report under its title, with the command that says how to make it again.

    ``script``: the benchmark's name, where it is not that of the file.
    """
    path.parent.mkdir(exist_ok=True)
    title = path.stem.replace("_", " ").capitalize()
    how = f"`python benchmarks/{script or path.stem}.py --help` says how to make this again."
    with write_atomically(path) as handle:
        handle.write(f"# {title}\n\n{how}\n\n{report.rstrip()}\n")
