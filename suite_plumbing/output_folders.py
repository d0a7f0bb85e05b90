"""Output folders: each one run's own until it ends, and cleared of what a killed run left.

Two runs that write into one folder would leave the figures of one beside the numbers of the other.
A folder is therefore one run's at a time: a lock of the operating system, which goes with the
process that holds it, however that ends. What a killed run left unfinished is removed by the next.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from suite_plumbing.messages import quoted
from suite_plumbing.result_files import StrPath, check_output_dir, try_lock
from suite_plumbing.runs import current_run

logger = logging.getLogger(__name__)

LOCK_NAME = ".run.lock"
"""File in an output folder that a run holds locked, and removes at its end."""

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def claim_output_dir(path: StrPath) -> Path:
    """`check_output_dir`, and the folder is this run's own until it ends.

    Unfinished files of runs that were killed are removed. Raises ValueError where another run has
    the folder. Outside of a run of a command the folder is only checked.
    """
    folder, run = check_output_dir(path), current_run()
    if run is not None:
        run.held.enter_context(owning(folder))
        remove_unfinished(folder)
    return folder


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; within a run that has it already, nothing happens.

    Raises ValueError where another process, or another thread of this one, has it. A file system
    that knows no locks is used without, and a warning says so.
    """
    run, name = current_run(), os.path.realpath(folder)
    if run is not None and name in run.folders:
        yield
        return
    with _lock(folder, name):
        if run is not None:
            run.folders.add(name)
        try:
            yield
        finally:
            if run is not None:
                run.folders.discard(name)


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    path = Path(name) / LOCK_NAME
    descriptor = _locked_file(path, folder)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: nobody can have locked it under this name
        os.close(descriptor)


def _locked_file(path: Path, folder: Path) -> int:
    """A descriptor of the lock file, locked; ValueError where it is somebody else's."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(descriptor, folder):
                owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                raise ValueError(
                    f"output folder {quoted(str(folder))} is being written by another run"
                    f"{f' ({owner})' if owner else ''}; wait until it has ended, or name another "
                    "folder"
                )
            if _is_still_at(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    """Whether a file was not removed by its holder between opening and locking it here."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked(descriptor: int, folder: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.warning(
            "the file system of %s has no locks: start no second run in it until this has ended",
            folder,
        )
        return True


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of writers that are gone: see `result_files.write_atomically`."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError):
                _remove_unless_written(path)


def _remove_unless_written(path: Path) -> None:
    """A writer holds the lock of its temporary file as long as it lives."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if try_lock(descriptor):
            path.unlink()
            logger.info("removed %s, which a run that was killed left unfinished", path.name)
    finally:
        os.close(descriptor)
