"""Files of results: written whole or not at all, strict JSON, CSV and safetensors.

A reader of a result must never meet half a file, or a `NaN` that other JSON readers refuse. Each
writer here builds the whole file beside its target and moves it into place in one step, so that an
interrupted run or a full disk leaves the earlier file as it was.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows has no such module.
    fcntl = None

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.paths import StrPath, user_path
from suite_plumbing.runs import current_run

# More than a double holds may stand behind these; a faster parser reads everything else.
_MAYBE_TOO_LARGE = re.compile(rb"[eE]\+?\d{3}|\d{19}")

RUN_KEY = "run"
"""Under which the metadata of tensors and pages hold the id of the run that wrote them."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output_dir(path: StrPath) -> Path:
    """Make a folder and prove, by writing a byte, that results can be stored in it.

    Call it before the model runs: hours of work should not end at a read-only folder.
    Raises ValueError when the folder cannot be made or written, with the system's own reason, and
    OSError for a disk that is full: that is no fault of the name.
    """
    folder = user_path(path, "output folder")
    if not os.fspath(path).strip():
        raise ValueError("the name of the output folder is blank; pass '.' for the current one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        if error.errno in _DISK_FULL:
            error.filename = error.filename or str(folder)
            raise
        raise ValueError(
            f"output folder {quoted(str(path))} cannot be written ({error.strerror or error}); "
            "name a folder, new or existing, in which you may create files"
        ) from error
    return folder


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process, until it is closed; False where another has it.

    A process that ends, however it does, loses its locks. Where the system has no such locks
    (Windows) every file counts as locked by whoever asks. Raises OSError where the file system
    has none.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def write_atomically(path: StrPath, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place only once it is complete on disk.

    `mode` is "w" (UTF-8 text, newlines as written) or "wb". Whatever is raised inside the block,
    an interrupt or a full disk included, goes on to the caller after the temporary file has been
    removed; the earlier file at `path` is then still whole. A symbolic link is followed.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is {quoted(mode)}; a file is written whole, in mode 'w' or 'wb'")
    target = Path(os.path.realpath(user_path(path, "file")))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "")
    try:
        # "x" gives the file the permissions of any new file; tempfile's would be private.
        with open(temporary, mode.replace("w", "x"), encoding=encoding, newline=newline) as handle:
            with suppress(OSError):
                try_lock(handle.fileno())  # tells the next run that this file has a writer
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        waiting = _together.get()
        if waiting is None:
            os.replace(temporary, target)
        else:
            waiting.append((temporary, target))
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # A full disk is reported by the file's number, of which the message says nothing.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        raise


_together: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("together", default=None)


@contextmanager
def written_together(stale: Iterable[Path] = ()) -> Iterator[None]:
    """Files written within this context take their places together at its end, or none does.

    A set of files that belong to one another is then of one run, whatever interrupts it. ``stale``:
    files of an earlier run that would stand beside the set as if they were of it; they are removed
    first, but for those that are written again. Moving files takes no room on a disk.
    """
    waiting: list[tuple[Path, Path]] = []
    token = _together.set(waiting)
    try:
        yield
        _together.reset(token)
        written = {target for _, target in waiting}
        old = [path for path in stale if Path(os.path.realpath(path)) not in written]
        try:
            _place(waiting, old)
        except OSError:
            raise
        except BaseException:  # an interrupt: what was begun is ended, and then it goes on
            _place(waiting, old)
            raise
    finally:
        if _together.get() is waiting:
            _together.reset(token)
        for temporary, _ in waiting:
            with suppress(OSError):
                temporary.unlink()


def _place(waiting: Sequence[tuple[Path, Path]], stale: Sequence[Path]) -> None:
    for path in stale:
        path.unlink(missing_ok=True)
    for temporary, target in waiting:
        with suppress(FileNotFoundError):  # it is in its place already
            os.replace(temporary, target)


def finite_or_none(value: Any) -> float | None:
    """Return `value` as a float, or None where it is None, NaN or infinite.

    For statistics that are undefined; the caller states the reason beside the None.
    """
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def five_digits(value: Any) -> float | None:
    """`value` to five significant digits, more than a figure or a table shows; None as above.

    For series that would fill the JSON with digits of rounding error.
    """
    return _significant(value, 5)


def three_digits(value: Any) -> float | None:
    """`value` to three significant digits, as a curve shows them; None as above.

    For curves that are drawn and never compared: by query, by lag.
    """
    return _significant(value, 3)


def _significant(value: Any, digits: int) -> float | None:
    number = finite_or_none(value)
    return None if number is None else float(f"{number:.{digits}g}")


def six_digits(obj: Any) -> Any:
    """What JSON can hold (see :func:`to_jsonable`) with its floats at six significant digits.

    float32 has seven; the rest of the seventeen that JSON would be given is rounding error, and
    half of a file's size.
    """
    if isinstance(obj, float):
        return float(f"{obj:.6g}")
    if isinstance(obj, Mapping):
        return {key: six_digits(value) for key, value in obj.items()}
    return [six_digits(item) for item in obj] if isinstance(obj, (list, tuple)) else obj


_PLAIN = frozenset({str, int, bool, type(None)})


def to_jsonable(obj: Any, key_path: str = "") -> Any:
    """Return `obj` made of dict, list, str, int, float, bool and None alone.

    Scalars of numpy and torch become Python's, tuples become lists, paths become strings, integer
    keys become strings. Order is kept.
    Raises ValueError, naming the key path, for NaN and infinity, for tensors and arrays (they
    belong into safetensors), for other types and for two keys that are one key in JSON.
    """
    if type(obj) in _PLAIN:  # nearly every entry: the checks below cost ten times as much
        return obj
    if type(obj) is not float and (
        (isinstance(obj, Tensor) and obj.ndim == 0) or isinstance(obj, np.generic)
    ):
        obj = obj.item()
    if obj is None or isinstance(obj, (str, bool, int)):
        return obj
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{_named(key_path)} is {obj}: JSON has no such number; write None")
        return float(obj)
    if isinstance(obj, Mapping):
        return _jsonable_mapping(obj, key_path)
    if isinstance(obj, (list, tuple)):
        if all(type(item) is float for item in obj) and all(map(math.isfinite, obj)):
            return list(obj)
        return [to_jsonable(item, f"{key_path}[{i}]") for i, item in enumerate(obj)]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, (Tensor, np.ndarray)):
        raise ValueError(
            f"{_named(key_path)} is a tensor of shape {tuple(obj.shape)}: no tensor belongs into "
            "JSON; store it by write_tensors, or a short vector by .tolist()"
        )
    raise ValueError(f"{_named(key_path)} is of type {type(obj).__name__}, which JSON cannot hold")


def _jsonable_mapping(obj: Mapping[Any, Any], key_path: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in obj.items():
        if isinstance(key, bool) or not isinstance(key, (str, int, np.integer)):
            raise ValueError(f"{_named(key_path)} has the key {quoted(key)}; keys are str or int")
        name = str(key)
        if name in result:
            raise ValueError(f"{_named(key_path)} has two keys that are written {quoted(name)}")
        result[name] = to_jsonable(value, f"{key_path}.{name}" if key_path else name)
    return result


def _named(key_path: str) -> str:
    return key_path or "the value"


def write_json(path: StrPath, obj: Any) -> Path:
    """Write `obj` as strict JSON (see `to_jsonable`), keys in their order, indented by one space.

    A list or dict of scalars takes one line.
    Nothing is written when `obj` cannot be: the conversion comes before the file.
    """
    text = _json_text(to_jsonable(obj), "\n")
    with write_atomically(path) as handle:
        handle.write(text + "\n")
    return Path(path)


def _json_text(obj: Any, newline: str) -> str:
    """JSON indented by a space a level, with a list or dict of scalars on one line.

    A number a line makes a file twice as large, and no easier to read. `newline` is the line break
    at this level.
    """
    deeper = newline + " "
    values = list(obj.values()) if isinstance(obj, dict) else obj if isinstance(obj, list) else []
    if not any(isinstance(value, (dict, list)) for value in values):
        # Lists are series of numbers over tokens: without a space they are a ninth shorter.
        between = ", " if isinstance(obj, dict) else ","
        return json.dumps(obj, allow_nan=False, separators=(between, ": "))
    items = [_json_text(value, deeper) for value in values]
    opening, closing = "[", "]"
    if isinstance(obj, dict):
        items = [f"{json.dumps(key)}: {item}" for key, item in zip(obj, items, strict=True)]
        opening, closing = "{", "}"
    return opening + deeper + ("," + deeper).join(items) + newline + closing


def write_text(path: StrPath, text: str) -> Path:
    """Write a text as UTF-8, with what a terminal would obey written as what it is."""
    with write_atomically(path) as handle:
        handle.write(visible_controls(text))
    return Path(path)


_CONTROLS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
}
"""Control characters by what shows them: ␛ for an escape, \\x9b for one of the second set."""

_ANY_CONTROL = re.compile(f"[{re.escape(''.join(map(chr, _CONTROLS)))}]")


def visible_controls(text: str) -> str:
    """A text with its control characters, but for tab and line feed, written as visible signs.

    A text that was analysed may hold an escape sequence, which a terminal that shows the page
    would obey: move its cursor, rename its window, worse.
    """
    plain = text.replace("\r\n", "\n")
    # Most pages hold none, which a search says in a tenth of the time.
    return plain.translate(_CONTROLS) if _ANY_CONTROL.search(plain) else plain


def read_json(path: StrPath) -> Any:
    """Read a strict JSON file.

    Raises ValueError for a missing file, bad bytes, bad JSON, NaN, and a number that is too large
    for a double or for an integer of 64 bits.
    """
    file = user_path(path, "results file")
    try:
        raw = file.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"results file {quoted(str(path))} cannot be read: {reason}") from error
    large: dict[str, Any] = {"parse_float": _finite, "parse_int": _of_64_bits}
    try:
        return json.loads(
            raw, parse_constant=_refused, **(large if _MAYBE_TOO_LARGE.search(raw) else {})
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"results file {quoted(str(path))} is not strict JSON: {reason_of(error)}"
        ) from error


def _refused(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"it holds the number {quoted(digits)}, which is too large")
    return number


def _of_64_bits(digits: str) -> int:
    # Python itself refuses to read more than 4300 digits.
    if len(digits) > 20 or abs(int(digits)) >= 2**63:
        raise ValueError(f"it holds the number {quoted(digits)}, which is too large")
    return int(digits)


def write_csv(
    path: StrPath, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> Path:
    """Write one table: a header, then one line a row; None is an empty cell.

    columns: default, the rows' keys in order of first appearance. Cells are scalars; numpy's and
    torch's become Python's. Raises ValueError for NaN or infinity, a cell that is a collection,
    a key not among `columns`, or no columns at all.
    """
    names = list(columns) if columns else list(dict.fromkeys(key for row in rows for key in row))
    if not names:
        raise ValueError(
            f"the table {quoted(str(path))} has no rows to take columns from; pass columns"
        )
    table = [_csv_row(row, names, index) for index, row in enumerate(rows)]
    with write_atomically(path) as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(table)
    return Path(path)


def _csv_row(row: Mapping[str, Any], names: Sequence[str], index: int) -> list[Any]:
    unknown = [key for key in row if key not in names]
    if unknown:
        raise ValueError(f"row {index} has the columns {unknown}, which are not among {names}")
    cells = [to_jsonable(row.get(name), f"row {index}, column {quoted(name)}") for name in names]
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, (list, dict)):
            raise ValueError(f"row {index}, column {quoted(name)} holds a collection, not a scalar")
    return cells


def table_html(table: pd.DataFrame) -> str:
    """A table as HTML for a notebook: escaped, without its index, `$` not taken for mathematics."""
    return table.to_html(
        index=False, na_rep="", border=0, classes=["tex2jax_ignore", "mathjax_ignore"]
    )


_TENSOR_TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What a safetensors file calls the dtypes that results have."""


def write_tensors(
    path: StrPath, tensors: Mapping[str, Tensor], run_id: str | None = None, *, finite: bool = True
) -> Path:
    """Write named tensors as one safetensors file; each is stored contiguous, from the CPU.

    ``run_id`` (default: that of the command that runs) is kept in the file's metadata. Tensors of a
    mapping that reads them when asked are read twice, one at a time: what is in memory is one.
    Wider numbers come first, so that every tensor is aligned. Raises ValueError for an empty dict,
    a value that is no tensor or of a dtype without a name there, and, where they are to be
    ``finite``, for NaN or infinity (named).
    """
    if not tensors:
        raise ValueError(f"no tensors to write into {quoted(str(path))}")
    found = {name: _checked_entry(name, tensors[name], finite) for name in tensors}
    names = sorted(found, key=lambda name: -found[name].width)
    header = _tensor_header(names, found, run_id or _id_of_current_run())
    with write_atomically(path, "wb") as handle:
        handle.write(header)
        for name in names:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            handle.write(flat.view(torch.uint8).numpy().data)
    return Path(path)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


class _TensorEntry(NamedTuple):
    """What a safetensors file says of a tensor, but for its place."""

    dtype: str
    shape: list[int]
    width: int
    """bytes a number"""

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.width


def _checked_entry(name: str, tensor: Tensor, finite: bool) -> _TensorEntry:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{quoted(name)} is of type {type(tensor).__name__}, not a tensor")
    if tensor.dtype not in _TENSOR_TYPES:
        raise ValueError(f"tensor {quoted(name)} is of dtype {tensor.dtype}, which is not written")
    if finite and not is_finite(tensor):
        raise ValueError(f"tensor {quoted(name)} holds NaN or infinity and is not written")
    return _TensorEntry(_TENSOR_TYPES[tensor.dtype], list(tensor.shape), tensor.element_size())


def _tensor_header(
    names: Sequence[str], entries: Mapping[str, _TensorEntry], run_id: str | None
) -> bytes:
    """The head of a safetensors file: its length in 8 bytes, then JSON, padded to 8 bytes."""
    described: dict[str, Any] = {} if run_id is None else {"__metadata__": {RUN_KEY: run_id}}
    end = 0
    for name in names:
        start, end = end, end + entries[name].size
        described[name] = {
            "dtype": entries[name].dtype,
            "shape": entries[name].shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _id_of_current_run() -> str | None:
    run = current_run()
    return None if run is None else run.id


def beside(path: StrPath, ending: str) -> Path:
    """The file that belongs to a JSON file: its name without ".json", and the ending after it.

    Only ".json" is left out: "lr0.1" and "lr0.2" are two names, and "a.safetensors" is not where
    the tensors beside it go.
    """
    path = Path(path)
    name = path.stem if path.suffix == ".json" else path.name
    return path.with_name(f"{name}{ending}")
