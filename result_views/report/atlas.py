"""The atlas of a corpus: one page in which neurons and tokens are looked up, with their contexts.

Its data are deflated JSON in base64, one piece for the tokens and one a layer, which the page
unpacks when it needs them. Up to MAX_PAGE bytes they lie in the page; above, each in a script file
of the folder ``atlas_data`` beside it, which a page opened from disk may load.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from result_views.report.token_view import deflated_json
from suite_plumbing.result_files import StrPath, write_atomically

MAX_PAGE = 20_000_000
"""Bytes of a page that holds its data itself."""

DATA_FOLDER = "atlas_data"

TEMPLATE_DIR = Path(__file__).resolve().parent


def write_atlas(contents: Mapping[str, Any], folder: StrPath, max_page: int = MAX_PAGE) -> Path:
    """Write ``atlas.html`` from what `atlas_contents` made; returns its path.

    Above ``max_page`` bytes the data go into ``atlas_data`` beside it, of which files of an earlier
    run that this one does not write are removed.
    """
    folder = Path(folder)
    packed = {name: deflated_json(piece) for name, piece in _pieces(contents).items()}
    inside = sum(map(len, packed.values())) <= max_page
    stale = set((folder / DATA_FOLDER).glob("*.js")) if (folder / DATA_FOLDER).is_dir() else set()
    if not inside:
        (folder / DATA_FOLDER).mkdir(exist_ok=True)
        for name, data in packed.items():
            path = folder / DATA_FOLDER / f"{name}.js"
            _write(path, f"atlasData({json.dumps(name)}, {json.dumps(data)});\n")
            stale.discard(path)
    for path in stale:
        path.unlink(missing_ok=True)
    page = _template().render(
        about=contents["about"],
        layers=[int(layer) for layer in contents["layers"]],
        data=packed if inside else {},
        data_folder=DATA_FOLDER,
    )
    return _write(folder / "atlas.html", page)


def _pieces(contents: Mapping[str, Any]) -> dict[str, Any]:
    """The data in the pieces that the page loads: the tokens, and each layer."""
    about = {name: contents[name] for name in ("about", "pieces", "tokens")}
    return {"tokens": about} | {
        f"layer_{layer}": part for layer, part in contents["layers"].items()
    }


def _template() -> Any:
    loader = FileSystemLoader(TEMPLATE_DIR)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["source_hash"] = _source_hash
    return environment.get_template("atlas.html.jinja")


def _source_hash(source: str) -> str:
    digest = hashlib.sha256(str(source).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _write(path: Path, text: str) -> Path:
    with write_atomically(path) as handle:
        handle.write(text)
    return path
