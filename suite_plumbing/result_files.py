"""Files of results: written whole or not at all, strict JSON, CSV and safetensors.

A reader of a result must never meet half a file, or a `NaN` that other JSON readers refuse. Each
writer here builds the whole file beside its target and moves it into place in one step, so that an
interrupted run or a full disk leaves the earlier file as it was.
"""

from __future__ import annotations

import csv
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

StrPath = str | os.PathLike[str]


def check_output_dir(path: StrPath) -> Path:
    """Make a folder and prove, by writing a byte, that results can be stored in it.

    Call it before the model runs: hours of work should not end at a read-only folder.
    Raises ValueError when the folder cannot be made or written, with the system's own reason.
    """
    if not os.fspath(path):
        raise ValueError("the name of the output folder is empty; pass '.' for the current one")
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        raise ValueError(
            f"output folder {str(path)!r} cannot be written ({error.strerror or error}); "
            "name a folder, new or existing, in which you may create files"
        ) from error
    return folder


@contextmanager
def write_atomically(path: StrPath, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place only once it is complete on disk.

    `mode` is "w" (UTF-8 text, newlines as written) or "wb". Whatever is raised inside the block,
    an interrupt or a full disk included, goes on to the caller after the temporary file has been
    removed; the earlier file at `path` is then still whole. A symbolic link is followed.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is {mode!r}; a file is written whole, in mode 'w' or 'wb'")
    target = Path(os.path.realpath(Path(path).expanduser()))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "")
    try:
        # "x" gives the file the permissions of any new file; tempfile's would be private.
        with open(temporary, mode.replace("w", "x"), encoding=encoding, newline=newline) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # A full disk is reported by the file's number, of which the message says nothing.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        raise


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
    number = finite_or_none(value)
    return None if number is None else float(f"{number:.5g}")


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


def to_jsonable(obj: Any, key_path: str = "") -> Any:
    """Return `obj` made of dict, list, str, int, float, bool and None alone.

    Scalars of numpy and torch become Python's, tuples become lists, paths become strings, integer
    keys become strings. Order is kept.
    Raises ValueError, naming the key path, for NaN and infinity, for tensors and arrays (they
    belong into safetensors), for other types and for two keys that are one key in JSON.
    """
    if (isinstance(obj, Tensor) and obj.ndim == 0) or isinstance(obj, np.generic):
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
            raise ValueError(f"{_named(key_path)} has the key {key!r}; keys are str or int")
        name = str(key)
        if name in result:
            raise ValueError(f"{_named(key_path)} has two keys that are written {name!r}")
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
        return json.dumps(obj, allow_nan=False)
    items = [_json_text(value, deeper) for value in values]
    opening, closing = "[", "]"
    if isinstance(obj, dict):
        items = [f"{json.dumps(key)}: {item}" for key, item in zip(obj, items, strict=True)]
        opening, closing = "{", "}"
    return opening + deeper + ("," + deeper).join(items) + newline + closing


def read_json(path: StrPath) -> Any:
    """Read a strict JSON file. Raises ValueError for a missing file, bad bytes, bad JSON or NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}, which is not JSON")

    try:
        return json.loads(Path(path).expanduser().read_bytes(), parse_constant=refuse)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"results file {str(path)!r} cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"results file {str(path)!r} is not strict JSON: {error}") from error


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
        raise ValueError(f"the table {str(path)!r} has no rows to take columns from; pass columns")
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
    cells = [to_jsonable(row.get(name), f"row {index}, column {name!r}") for name in names]
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, (list, dict)):
            raise ValueError(f"row {index}, column {name!r} holds a collection, not a scalar")
    return cells


def table_html(table: pd.DataFrame) -> str:
    """A table as HTML for a notebook: escaped, without its index, `$` not taken for mathematics."""
    return table.to_html(
        index=False, na_rep="", border=0, classes=["tex2jax_ignore", "mathjax_ignore"]
    )


def write_tensors(path: StrPath, tensors: Mapping[str, Tensor]) -> Path:
    """Write named tensors as one safetensors file; each is stored contiguous, from the CPU.

    Raises ValueError for an empty dict, a value that is no tensor, and NaN or infinity (named).
    Cost: one copy of the data in memory while writing.
    """
    if not tensors:
        raise ValueError(f"no tensors to write into {str(path)!r}")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} is of type {type(tensor).__name__}, not a tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds NaN or infinity and is not written")
        # A copy of its own: safetensors refuses tensors that share memory.
        stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    data = safetensors.torch.save(stored)
    with write_atomically(path, "wb") as handle:
        handle.write(data)
    return Path(path)
