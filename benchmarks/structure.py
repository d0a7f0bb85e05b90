"""The suite as a house: rooms, arrows and floors, counted from its imports.

    python benchmarks/structure.py            # this tree
    python benchmarks/structure.py FOLDER     # another checkout, an earlier one for instance

A *module* is a file of the suite: not a test, benchmark, example or training script. A *room* is
what a newcomer sees at the root: a module there, or a folder. An *arrow* leads from a module (or
room) to another that it imports, lazy imports included. *Floors* are the modules of the longest
chain of imports. A folder's face (its ``__init__``) passes names on and counts as no module.
"""

from __future__ import annotations

import argparse
import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

BESIDE_THE_SUITE = {"tests", "benchmarks", "examples", "docs", "demo_model", "build", "dist"}


class Structure(NamedTuple):
    """Counts of one tree."""

    modules: int
    at_the_root: int
    """modules at the root"""
    folders: int
    arrows: int
    """imports between modules"""
    floors: int
    """modules of the longest chain of imports"""
    room_arrows: int
    """imports between rooms"""
    room_floors: int
    """rooms of the longest chain of imports"""


def modules_of(root: Path) -> dict[str, Path]:
    """{dotted name: file} of the suite's modules."""
    files = [
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not BESIDE_THE_SUITE & set(path.relative_to(root).parts[:-1])
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    return {
        ".".join(path.with_suffix("").parts): root / path
        for path in sorted(files)
        if path.name != "__init__.py"
    }


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """{module: modules of the suite that it imports}, wherever the import stands."""
    return {
        name: {other for other in _imported(path) if other in modules and other != name}
        for name, path in modules.items()
    }


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def structure(root: Path) -> Structure:
    """Counts of the tree at ``root``. Raises RecursionError where imports go in a circle."""
    modules = modules_of(root)
    imports = imports_of(modules)

    rooms = between_rooms(imports)
    return Structure(
        modules=len(modules),
        at_the_root=sum("." not in name for name in modules),
        folders=len({name.split(".")[0] for name in modules if "." in name}),
        arrows=sum(map(len, imports.values())),
        floors=floors(imports),
        room_arrows=sum(map(len, rooms.values())),
        room_floors=floors(rooms),
    )


def between_rooms(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """{room: other rooms that its modules import}."""
    rooms: dict[str, set[str]] = {}
    for name, others in imports.items():
        own = name.split(".")[0]
        rooms.setdefault(own, set()).update({other.split(".")[0] for other in others} - {own})
    return rooms


def floors(imports: dict[str, set[str]]) -> int:
    """Members of the longest chain of imports."""

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, imports[name]), default=0)

    return max(map(height, imports), default=0)


def main(argv: list[str] | None = None) -> int:
    """Print the counts of one tree."""
    parser = argparse.ArgumentParser(
        description="Rooms, arrows and floors of the suite. Prints a table of counts.",
        epilog="example: python benchmarks/structure.py .",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT, help="a checkout (default: this one)"
    )
    found = structure(parser.parse_args(argv).folder)
    for name, value in found._asdict().items():
        print(f"{name.replace('_', ' '):<12} {value:>4}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
