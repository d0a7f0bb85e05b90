"""Texts of a corpus, read one after another however many there are, and shared out among tasks.

A document is a line of a `.txt`, an object of a `.jsonl`, a row of a `.parquet` or of a data set,
or with ``one_text`` a whole file. What is longer than PASSAGE characters is cut at white space into
passages, so that one document of ten million characters is no task by itself. Passages are numbered
as they come; of n tasks, task r reads those whose number is r modulo n. Only what a task reads is
decoded, unless a document may be longer than one passage.

What cannot be read is a passage with a failure in place of its text: it has a number too, so that
exactly one task tells of it.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import importlib
import importlib.util
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.paths import user_path

PASSAGE = 32_768
"""Characters of a passage; longer documents are cut."""

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")

READABLE = (".txt", ".text", *JSON_LINES, ".parquet")

_END_READ = 1 << 16  # bytes at either end of a file that its fingerprint is made of


@dataclass(frozen=True)
class Source:
    """Where a corpus is read from; one of the first three is given."""

    files: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    dataset: str | None = None
    split: str = "train"
    text_field: str = "text"
    one_text: bool = False

    def described(self) -> dict[str, Any]:
        """What tells this corpus from another: names, sizes and a digest of the ends of files."""
        found = asdict(self) | {"files": [_fingerprint(Path(name)) for name in self.files]}
        found["texts"] = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()
        return found


class Passage(NamedTuple):
    """A document, or a part of one."""

    index: int
    """among all passages of the corpus"""
    document: int
    """among its documents"""
    start: int
    """characters of the document before it"""
    text: str | None
    """None with a failure"""
    place: str
    """file and line"""
    failure: str | None = None
    """why it cannot be read"""


class _Record(NamedTuple):
    """A document that has not been decoded."""

    place: str
    size: int  # at least its characters
    load: Callable[[], str]


def find_source(
    named: str | None,
    texts: Sequence[str] = (),
    *,
    dataset: str | None = None,
    split: str = "train",
    text_field: str = "text",
    one_text: bool = False,
) -> Source:
    """The corpus that a user named: a file, a folder, a glob of files, a data set, or texts.

    Raises ValueError for what does not exist or is of no kind that is read, for standard input,
    which no second task could read, and where the package that reads a kind is not installed.
    """
    options: dict[str, Any] = {"text_field": text_field, "one_text": one_text}
    if dataset is not None:
        _needed("datasets", f"the data set {quoted(dataset)}")
        return Source(dataset=dataset, split=split, **options)
    if named is None:
        return Source(texts=tuple(texts), **options)
    if named == "-":
        raise ValueError(
            "texts-file is -, standard input, which can be read only once; save it as a file, "
            "which every task can read"
        )
    files = _files(named)
    if one_text and any(_suffix(path) in (*JSON_LINES, ".parquet") for path in files):
        raise ValueError(f"{quoted(named)} holds records, each with a text: leave out --one-text")
    if any(_suffix(path) == ".parquet" for path in files):
        _needed("pyarrow", f"the parquet files of {quoted(named)}")
    return Source(files=tuple(str(path) for path in files), **options)


def _files(named: str) -> list[Path]:
    path = user_path(named, "file of texts")
    if not named:
        raise ValueError("the name of the texts is empty; pass a file, a folder or a glob")
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in READABLE)
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        raise ValueError(
            f"{quoted(named)} is no file, no folder and no glob of files with texts "
            f"({', '.join(READABLE)}, text also gzipped)"
        )
    for one in found:
        if _suffix(one) not in READABLE:
            raise ValueError(
                f"{quoted(str(one))} is no {', '.join(READABLE)} (text also gzipped): write one "
                'text a line as .txt, or objects like {"text": "..."} as .jsonl'
            )
    return [one.resolve() for one in found]


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _needed(package: str, what: str) -> None:
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module that was put there without a spec
        found = True
    if found is None:
        raise ValueError(f"{what} cannot be read without {package}: pip install {package}")


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        digest.update(handle.read(_END_READ))
        handle.seek(max(0, size - _END_READ))
        digest.update(handle.read(_END_READ))
    return {"name": path.name, "bytes": size, "ends_sha256": digest.hexdigest()}


def passages(source: Source, rank: int = 0, world_size: int = 1) -> Iterator[Passage]:
    """The passages of one task, in order; whole documents if ``source`` is read so.

    Cost: every file is read through by every task, but decoded only where it is this task's.
    """
    yield from _shared_out(_records(source), rank, world_size, PASSAGE)


def whole_documents(source: Source, rank: int = 0, world_size: int = 1) -> Iterator[Passage]:
    """As :func:`passages`, with no document cut: for reading on with the state carried."""
    yield from _shared_out(_records(source), rank, world_size, None)


def _shared_out(
    records: Iterator[_Record], rank: int, world_size: int, longest: int | None
) -> Iterator[Passage]:
    index = 0
    for document, record in enumerate(records):
        if longest is None or record.size <= longest:
            if index % world_size == rank:
                yield _loaded(record, index, document)
            index += 1
            continue
        whole = _loaded(record, index, document)
        if whole.text is None:
            if index % world_size == rank:
                yield whole
            index += 1
            continue
        for start, stop in _cuts(whole.text, longest):
            if index % world_size == rank:
                yield whole._replace(index=index, start=start, text=whole.text[start:stop])
            index += 1


def _loaded(record: _Record, index: int, document: int) -> Passage:
    try:
        return Passage(index, document, 0, record.load(), record.place)
    except ValueError as error:
        return Passage(index, document, 0, None, record.place, str(error))


def _cuts(text: str, longest: int) -> Iterator[tuple[int, int]]:
    """Ends of the passages of a text: behind the last white space that fits, if there is any."""
    start = 0
    while len(text) - start > longest:
        stop = max(text.rfind(mark, start + longest // 2, start + longest) for mark in " \n\t") + 1
        stop = stop if stop > start else start + longest
        yield start, stop
        start = stop
    yield start, len(text)


def _records(source: Source) -> Iterator[_Record]:
    for number, text in enumerate(source.texts):
        yield _Record(f"text {number}", len(text), lambda text=text: _not_blank(text))
    for name in source.files:
        path = Path(name)
        if _suffix(path) == ".parquet":
            yield from _parquet_rows(path, source.text_field)
        elif source.one_text:
            yield _Record(path.name, 4 * _largest(path), lambda path=path: _whole(path))
        else:
            yield from _lines(path, source.text_field)
    if source.dataset is not None:
        yield from _dataset_rows(source)


def _largest(path: Path) -> int:
    """Bytes that a file may hold: its size, or anything where it is compressed."""
    size = path.stat().st_size
    return size if not _is_gzipped(path) else max(size * 1000, PASSAGE + 1)


def _is_gzipped(path: Path) -> bool:
    with open(path, "rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if _is_gzipped(path) else open(path, "rb")


_UNREADABLE = (OSError, EOFError, zlib.error)


def _whole(path: Path) -> str:
    try:
        with _opened(path) as handle:
            raw = handle.read()
    except _UNREADABLE as error:
        raise ValueError(f"cannot be read: {_reason(error)}") from error
    return _not_blank(_decoded(raw).replace("\r\n", "\n"))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or reason_of(error))


def _lines(path: Path, field: str) -> Iterator[_Record]:
    """The lines of a file that are not blank; where it breaks off, a record that says so."""
    is_json = _suffix(path) in JSON_LINES
    number = 0
    try:
        with _opened(path) as handle:
            for number, raw in enumerate(handle, 1):
                if raw.strip():
                    read = _json_text if is_json else _line_text
                    place = f"{path.name}, line {number}"
                    yield _Record(place, len(raw), lambda raw=raw, read=read: read(raw, field))
    except _UNREADABLE as error:
        said = f"cannot be read on: {_reason(error)}; what follows in this file is left out"
        yield _Record(f"{path.name}, after line {number}", 0, lambda: _refused(said))


def _refused(said: str) -> str:
    raise ValueError(said)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise ValueError(f"not UTF-8: byte {error.start} is 0x{bad:02x}") from error


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("empty or white space")
    return text


def _line_text(raw: bytes, _: str) -> str:
    return _not_blank(_decoded(raw).rstrip("\r\n"))


def _json_text(raw: bytes, field: str) -> str:
    try:
        record = json.loads(_decoded(raw))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("brackets too deep to read") from error
    if not isinstance(record, dict):
        raise ValueError(f"an object is asked for, this is of type {type(record).__name__}")
    return _field_of(record, field)


def _field_of(record: Any, field: str) -> str:
    if field not in record:
        raise ValueError(f"no field {quoted(field)}, only {quoted(sorted(map(str, record)))}")
    text = record[field]
    if not isinstance(text, str):
        raise ValueError(f"{quoted(field)} is of type {type(text).__name__}, not a string")
    return _not_blank(text)


def _parquet_rows(path: Path, field: str) -> Iterator[_Record]:
    parquet = importlib.import_module("pyarrow.parquet")
    number = -1
    try:
        with open(path, "rb") as handle:
            file = parquet.ParquetFile(handle)
            if field not in file.schema_arrow.names:
                names = quoted(file.schema_arrow.names)
                said = f"no column {quoted(field)}, only {names}; name it by --text-field"
                yield _Record(path.name, 0, lambda: _refused(said))
                return
            for batch in file.iter_batches(columns=[field], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _row(f"{path.name}, row {number}", {field: text}, field)
    except Exception as error:  # what pyarrow raises for a damaged file changes with its versions
        said = f"cannot be read on: {reason_of(error)}; what follows in this file is left out"
        yield _Record(f"{path.name}, after row {number}", 0, lambda: _refused(said))


def _row(place: str, row: Any, field: str) -> _Record:
    text = row.get(field)
    size = len(text) if isinstance(text, str) else 0
    return _Record(place, size, lambda: _field_of(row, field))


def _dataset_rows(source: Source) -> Iterator[_Record]:
    datasets = importlib.import_module("datasets")
    name = source.dataset or ""
    try:
        if os.path.isdir(name) and (Path(name) / "state.json").is_file():
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, split=source.split, streaming=True)
    except Exception as error:  # of the loader, the network, the data set's own files
        raise ValueError(f"data set {quoted(name)} cannot be loaded: {reason_of(error)}") from error
    for number, row in enumerate(rows):
        yield _row(f"{name}, row {number}", row, source.text_field)
