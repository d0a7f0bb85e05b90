"""Paths as a user writes them: `~` made a folder, and what can be no path refused in one line.

Knows the standard library alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from suite_plumbing.messages import quoted

StrPath = str | os.PathLike[str]


def user_path(path: StrPath, name: str) -> Path:
    """``path`` with `~` expanded; ``name`` says in a message what it is the path of.

    Raises ValueError for what is no path at all, for the home of a user who does not exist, and for
    what no file system takes: a name of more than 255 bytes, a NUL, half of a surrogate pair, links
    in a circle. Whether a file is there is another question.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ValueError(f"{name} is {quoted(path)}, of type {type(path).__name__}; pass a path")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} {quoted(str(path))} is in the home of no user here") from error
    try:
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} {quoted(str(path))} can be no path: {reason}") from error
    return expanded
