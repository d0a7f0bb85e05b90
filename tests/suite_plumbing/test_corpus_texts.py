"""Texts of a corpus: every task reads its own, and what cannot be read is told once."""

import gzip
import importlib.util
import json
import re
import sys
from types import ModuleType

import pytest
from defined import known

from suite_plumbing.corpus_texts import PASSAGE, Source, find_source, passages, whole_documents


def shared(source, tasks):
    """The passages of all tasks, in order of their numbers."""
    found = [p for rank in range(tasks) for p in passages(source, rank, tasks)]
    return sorted(found, key=lambda p: p.index)


def text_of(passage):
    """The text of a passage that was read."""
    return known(passage.text)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def mixed(tmp_path):
    """A folder of a .txt, a .jsonl with bad lines, a gzipped .jsonl that breaks off, and others."""
    folder = tmp_path / "texts"
    folder.mkdir()
    written(folder, "a.txt", b"one\n\n two \r\n\xff\n")
    lines = [
        '{"text": "three"}',
        "{not json",
        '{"body": "x"}',
        '{"text": 4}',
        '{"text": " "}',
        "[1]",
    ]
    written(folder, "b.jsonl", "\n".join(lines))
    whole = gzip.compress(
        "\n".join(json.dumps({"text": f"t{i} " * 40}) for i in range(400)).encode()
    )
    written(folder, "c.jsonl.gz", whole[: len(whole) // 2])
    written(folder, "d.txt", "last")
    written(folder, "picture.png", b"\x89PNG")
    return folder


def test_every_document_is_read_by_one_task_with_its_place_and_its_failure(mixed):
    found = shared(find_source(str(mixed)), 3)
    assert [p.index for p in found] == list(range(len(found)))
    told = {p.place: p.failure for p in found if p.failure}
    assert told.pop("a.txt, line 4") == "not UTF-8: byte 0 is 0xff"
    assert told.pop("b.jsonl, line 2").startswith("not JSON (Expecting property name")
    assert told.pop("b.jsonl, line 3") == "no field 'text', only ['body']"
    assert told.pop("b.jsonl, line 4") == "'text' is of type int, not a string"
    assert told.pop("b.jsonl, line 5") == "empty or white space"
    assert told.pop("b.jsonl, line 6") == "an object is asked for, this is of type list"
    ((place, reason),) = told.items()
    assert place.startswith("c.jsonl.gz, after line ")
    assert reason.startswith("cannot be read on: ")
    assert [p.text for p in found if p.text][:3] == ["one", " two ", "three"]
    assert found[-1].text == "last"  # the file after the broken one


@pytest.mark.parametrize("tasks", [1, 2, 5, 1000])
def test_the_number_of_tasks_changes_nothing(mixed, tasks):
    source = find_source(str(mixed))
    assert shared(source, tasks) == list(passages(source))


def test_a_long_document_is_cut_at_white_space_and_nothing_is_lost(tmp_path):
    text = " ".join(f"word{i}" for i in range(30_000))
    path = written(tmp_path, "long.txt", "short\n" + text + "\nshort too")
    found = shared(find_source(str(path)), 4)
    inner = [p for p in found if p.document == 1]
    assert len(found) == len(inner) + 2
    assert "".join(map(text_of, inner)) == text
    assert all(len(text_of(p)) <= PASSAGE for p in inner)
    assert all(text_of(p).endswith(" ") for p in inner[:-1])
    starts = [p.start for p in inner]
    assert starts == [sum(len(text_of(p)) for p in inner[:i]) for i in range(len(inner))]
    assert [p.document for p in found] == sorted(p.document for p in found)
    (whole,) = [p for p in whole_documents(find_source(str(path))) if p.document == 1]
    assert whole.text == text


def test_a_word_of_ten_million_characters_is_cut_too():
    found = list(passages(Source(texts=("x" * 10_000_000,))))
    assert sum(len(text_of(p)) for p in found) == 10_000_000
    assert max(len(text_of(p)) for p in found) == PASSAGE


def test_one_text_reads_a_file_as_a_document(tmp_path):
    written(tmp_path, "a.txt", "one\ntwo\n")
    written(tmp_path, "b.txt.gz", gzip.compress(b"three\r\nfour"))
    found = list(passages(find_source(str(tmp_path), one_text=True)))
    assert [p.text for p in found] == ["one\ntwo\n", "three\nfour"]


def test_a_glob_and_a_field(tmp_path):
    written(tmp_path, "a.jsonl", '{"body": "yes"}')
    written(tmp_path, "b.txt", "no")
    source = find_source(str(tmp_path / "*.jsonl"), text_field="body")
    assert [p.text for p in passages(source)] == ["yes"]


@pytest.mark.parametrize(
    ("named", "options", "message"),
    [
        ("-", {}, "texts-file is -, standard input, which can be read only once"),
        ("", {}, "the name of the texts is empty"),
        ("nothing*.txt", {}, "'nothing*.txt' is no file, no folder and no glob of files"),
        ("x.csv", {}, "x.csv' is no .txt, .text, .jsonl"),
        ("x.jsonl", {"one_text": True}, "holds records, each with a text: leave out --one-text"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path, monkeypatch, named, options, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "x.csv", "a,b")
    written(tmp_path, "x.jsonl", "{}")
    with pytest.raises(ValueError, match=re.escape(message)):
        find_source(named, **options)


def test_a_corpus_is_told_from_another(tmp_path):
    path = written(tmp_path, "a.txt", "one")
    first = find_source(str(path)).described()
    assert first == find_source(str(path)).described()
    written(tmp_path, "a.txt", "two")
    assert first != find_source(str(path)).described()


def test_parquet_is_read_where_pyarrow_is_and_refused_where_not(tmp_path, monkeypatch):
    path = written(tmp_path, "a.parquet", b"PAR1 broken")
    real = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "pyarrow" else real(name, *rest)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", hidden)
        with pytest.raises(ValueError, match="cannot be read without pyarrow: pip install pyarrow"):
            find_source(str(path))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    assert "cannot be read on" in str(next(passages(find_source(str(path)))).failure)
    parquet.write_table(pyarrow.table({"body": ["one", None, "two"]}), path)
    found = list(passages(find_source(str(path), text_field="body")))
    assert [p.text for p in found] == ["one", None, "two"]
    assert found[1].failure == "'body' is of type NoneType, not a string"
    (missing,) = passages(find_source(str(path)))
    assert missing.failure == "no column 'text', only ['body']; name it by --text-field"


def test_a_data_set_is_read_where_datasets_is_and_refused_where_not(monkeypatch):
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(ValueError, match="cannot be read without datasets: pip install"):
            find_source(None, dataset="org/name")
    stand_in = ModuleType("datasets")
    asked = []

    def load_dataset(name, *, split, streaming):
        asked.append((name, split, streaming))
        if name == "gone":
            raise FileNotFoundError("no such data set")
        return [{"text": "one"}, {"text": "two"}]

    vars(stand_in)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    source = find_source(None, dataset="org/name", split="test")
    assert [p.text for p in passages(source, 1, 2)] == ["two"]
    assert asked == [("org/name", "test", True)]
    with pytest.raises(ValueError, match="data set 'gone' cannot be loaded: no such data set"):
        list(passages(find_source(None, dataset="gone")))
