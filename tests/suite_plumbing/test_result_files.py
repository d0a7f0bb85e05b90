"""Files are whole or absent, JSON is strict, provenance is the same for the same run."""

import csv
import errno
import os
import re
import resource
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from suite_plumbing import result_files
from suite_plumbing.result_files import (
    beside,
    check_output_dir,
    finite_or_none,
    five_digits,
    read_json,
    six_digits,
    to_jsonable,
    visible_controls,
    write_atomically,
    write_csv,
    write_json,
    write_tensors,
    write_text,
    written_together,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_check_output_dir_makes_nested_folders_and_leaves_them_empty(tmp_path: Path) -> None:
    folder = check_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert names_in(folder) == []


def test_check_output_dir_refuses_an_empty_name() -> None:
    with pytest.raises(ValueError, match="name of the output folder is blank; pass '.'"):
        check_output_dir("")


def test_check_output_dir_refuses_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"taken' cannot be written \(File exists\)"):
        check_output_dir(tmp_path / "taken")
    with pytest.raises(ValueError, match=r"cannot be written \(Not a directory\)"):
        check_output_dir(tmp_path / "taken" / "below")


def test_check_output_dir_refuses_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(result_files.tempfile, "TemporaryFile", deny)
    with pytest.raises(ValueError, match="Permission denied.*in which you may create files"):
        check_output_dir(tmp_path)


def test_write_atomically_replaces_the_file_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("earlier")
    with write_atomically(path) as handle:
        handle.write("new\n")
        handle.flush()
        assert path.read_text() == "earlier"
    assert path.read_bytes() == b"new\n"
    assert names_in(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("no")])
def test_write_atomically_keeps_the_earlier_file_after_any_exception(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"earlier")

    def write_half() -> None:
        with write_atomically(path, "wb") as handle:
            handle.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"earlier"
    assert names_in(tmp_path) == ["result.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("writer", ["json", "csv", "tensors"])
def test_a_full_disk_leaves_the_earlier_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, writer: str
) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"earlier")
    write = {
        "json": lambda: write_json(path, {"a": 1}),
        "csv": lambda: write_csv(path, [{"a": 1}]),
        "tensors": lambda: write_tensors(path, {"a": torch.ones(3)}),
    }[writer]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result_files.os, step, full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: {str(path)!r}")):
        write()
    assert path.read_bytes() == b"earlier"
    assert names_in(tmp_path) == ["result"]


def test_a_write_that_the_system_cuts_short_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    # A limit on file size stands in for a full disk: the kernel refuses in the middle of a write.
    path = write_json(tmp_path / "r.json", {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_json(path, {"a": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_json(path) == {"a": 1}
    assert names_in(tmp_path) == ["r.json"]


def test_write_atomically_follows_a_link_and_gives_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with write_atomically(tmp_path / "link") as handle:
        handle.write("through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "through"
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_atomically_refuses_to_append(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode is 'a'"), write_atomically(tmp_path / "x", "a"):
        pass


def test_finite_or_none() -> None:
    assert finite_or_none(torch.tensor(0.5)) == 0.5
    assert finite_or_none(np.float32(2)) == 2.0
    assert finite_or_none(None) is None
    assert finite_or_none(float("nan")) is None
    assert finite_or_none(float("-inf")) is None


def test_five_digits() -> None:
    assert five_digits(np.float32(0.1)) == 0.1
    assert five_digits(-123456.7) == -123460.0
    assert five_digits(float("inf")) is None
    assert five_digits(None) is None


def test_six_digits_leave_everything_but_floats_as_it_is():
    given = {"a": [0.123456789, 12345678, None, True], "b": ("1.23456789", -9.87654321e-20)}
    assert six_digits(given) == {
        "a": [0.123457, 12345678, None, True],
        "b": ["1.23456789", -9.87654e-20],
    }


def test_to_jsonable_converts_scalars_and_keeps_order() -> None:
    value = {
        "z": np.float32(0.5),
        3: (np.int64(7), torch.tensor(1.5), np.bool_(True)),
        "a": {"path": Path("x") / "y", "none": None, "half": torch.tensor(2.0).bfloat16()},
    }
    converted = to_jsonable(value)
    assert converted == {
        "z": 0.5,
        "3": [7, 1.5, True],
        "a": {"path": os.path.join("x", "y"), "none": None, "half": 2.0},
    }
    assert list(converted) == ["z", "3", "a"]
    assert [type(item) for item in converted["3"]] == [int, float, bool]


@pytest.mark.parametrize("bad", [float("nan"), np.float64("inf"), torch.tensor(float("-inf"))])
def test_to_jsonable_names_the_key_path_of_a_number_that_is_not_finite(bad: object) -> None:
    with pytest.raises(ValueError, match=r"a\.b\[1\]\.c is -?(nan|inf): JSON has no such number"):
        to_jsonable({"a": {"b": [1, {"c": bad}]}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"m": torch.ones(2, 3)}, r"m is a tensor of shape \(2, 3\).*write_tensors"),
        ({"m": np.ones(4)}, r"m is a tensor of shape \(4,\)"),
        ({"m": {1, 2}}, "m is of type set, which JSON cannot hold"),
        ({"m": {(0, 1): 1}}, r"m has the key \(0, 1\); keys are str or int"),
        ({True: 1}, "the value has the key True"),
        ({"1": 1, 1: 2}, "two keys that are written '1'"),
        (1j, "the value is of type complex"),
    ],
)
def test_to_jsonable_refuses_what_json_cannot_hold(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_jsonable(value)


def test_write_json_and_read_json_agree(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Zürich \u2028 \U0001f40d"}
    path = write_json(tmp_path / "r.json", value)
    assert read_json(path) == value
    assert list(read_json(path)) == ["b", "a"]
    assert path.read_text().endswith("}\n")


def test_write_json_writes_nothing_when_the_value_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x is nan"):
        write_json(tmp_path / "r.json", {"x": float("nan")})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "not strict JSON: it holds NaN"),
        (b'{"a": ', "not strict JSON: Expecting value"),
        (b"\xff\xff\xff", "not strict JSON"),
        (b"[" * 100_000, "not strict JSON"),
    ],
)
def test_read_json_refuses_what_is_not_strict(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "r.json")


def test_read_json_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.json' cannot be read: No such file"):
        read_json(tmp_path / "gone.json")


def test_write_csv_takes_columns_in_order_of_appearance(tmp_path: Path) -> None:
    rows = [{"layer": 0, "token": 'a "b",\nc'}, {"layer": np.int64(3), "value": 0.25}]
    path = write_csv(tmp_path / "t.csv", rows)
    with path.open(newline="") as handle:
        read = list(csv.reader(handle))
    assert read == [["layer", "token", "value"], ["0", 'a "b",\nc', ""], ["3", "", "0.25"]]


def test_write_csv_of_no_rows_is_a_header(tmp_path: Path) -> None:
    assert write_csv(tmp_path / "t.csv", [], ["a", "b"]).read_text() == "a,b\n"
    with pytest.raises(ValueError, match="has no rows to take columns from"):
        write_csv(tmp_path / "u.csv", [])


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"a": float("inf")}, None, "row 0, column 'a' is inf"),
        ({"a": [1, 2]}, None, "row 0, column 'a' holds a collection"),
        ({"a": 1, "b": 2}, ["a"], r"row 0 has the columns \['b'\]"),
    ],
)
def test_write_csv_refuses_bad_cells(
    tmp_path: Path, row: dict, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_csv(tmp_path / "t.csv", [row], columns)
    assert names_in(tmp_path) == []


def test_write_tensors_stores_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.T, "same": base, "row": base[1], "wide": base[:1].expand(5, 4)}
    loaded = load_file(write_tensors(tmp_path / "t.safetensors", tensors))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_write_tensors_refuses_bad_values(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="tensor 'delta' holds NaN or infinity"):
        write_tensors(path, {"delta": torch.tensor([1.0, float("nan")])})
    with pytest.raises(ValueError, match="'delta' is of type list, not a tensor"):
        write_tensors(path, {"delta": [1.0]})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no tensors to write"):
        write_tensors(path, {})
    assert names_in(tmp_path) == []


def test_a_collection_of_scalars_is_one_line(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": [[1], [2]], "c": {}, "d": [], "e": [{"f": "x"}], "g": "é\n"}
    path = write_json(tmp_path / "x.json", value)
    text = path.read_text(encoding="utf-8")
    assert '\n "a": [1,2.5,null],\n' in text
    assert '\n "b": [\n  [1],\n  [2]\n ],\n' in text
    assert '\n "e": [\n  {"f": "x"}\n ],\n' in text
    assert read_json(path) == value


DTYPES = (torch.bool, torch.float64, torch.uint8, torch.bfloat16, torch.float32, torch.int64,
          torch.float16, torch.int8, torch.int16, torch.int32)  # fmt: skip


def test_tensors_of_every_dtype_and_odd_sizes_come_back(tmp_path: Path) -> None:
    """An odd number of narrow values must not leave wider ones at a place they cannot be read."""
    tensors = {f"{i}": torch.arange(3 * i).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors["scalar"] = torch.tensor(2.5)
    tensors["view"] = torch.arange(12.0).view(3, 4).T[1:]
    write_tensors(tmp_path / "t.safetensors", tensors, "ab12")
    loaded = load_file(tmp_path / "t.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.metadata() == {"run": "ab12"}


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    alive = []

    class Counted(dict):
        def __getitem__(self, name: str) -> torch.Tensor:
            tensor = torch.full((1000,), float(name))
            alive.append(weakref.ref(tensor))
            assert sum(one() is not None for one in alive) <= 2
            return tensor

    write_tensors(tmp_path / "t.safetensors", Counted({str(i): torch.empty(0) for i in range(20)}))
    assert float(load_file(tmp_path / "t.safetensors")["7"][0]) == 7


def test_not_finite_tensors_are_written_where_that_is_asked_for(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.tensor([float("nan")])}, finite=False)
    assert load_file(tmp_path / "t.safetensors")["a"].isnan().all()
    with pytest.raises(ValueError, match="'a' is of dtype torch.complex64"):
        write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(1, dtype=torch.complex64)})


def test_a_set_takes_its_places_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("earlier")
    (tmp_path / "old.png").write_text("earlier")
    with written_together([tmp_path / "old.png", tmp_path / "b.txt", tmp_path / "gone"]):
        write_text(tmp_path / "a.txt", "new")
        write_text(tmp_path / "b.txt", "new")
        assert (tmp_path / "a.txt").read_text() == "earlier"
        assert (tmp_path / "old.png").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.txt": "new",
        "b.txt": "new",
    }
    write_text(tmp_path / "c.txt", "at once")
    assert (tmp_path / "c.txt").exists()


def test_a_set_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("earlier")

    def fail() -> None:
        with written_together([tmp_path / "a.txt"]):
            write_text(tmp_path / "b.txt", "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "earlier"}


def test_an_interrupt_between_two_files_of_a_set_waits_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def interrupted(*paths: Path) -> None:
        replace(*paths)
        calls.append(paths)
        if len(calls) == 1:
            raise KeyboardInterrupt

    def write() -> None:
        with written_together():
            write_text(tmp_path / "a.txt", "a")
            write_text(tmp_path / "b.txt", "b")
            monkeypatch.setattr(os, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names_in(tmp_path) == ["a.txt", "b.txt"]


def test_a_full_disk_is_no_fault_of_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result_files.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}'"):
        check_output_dir(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.json", "a_x.csv"), ("lr0.1", "lr0.1_x.csv"), ("a.safetensors", "a.safetensors_x.csv"),
     ("v1.2.json", "v1.2_x.csv")],
)  # fmt: skip
def test_what_lies_beside_a_results_file_has_a_name_of_its_own(name: str, expected: str) -> None:
    assert beside(f"folder/{name}", "_x.csv") == Path("folder") / expected


def test_controls_are_visible_and_the_rest_is_as_it_was() -> None:
    assert visible_controls("a\x1b[2J\r\x7f\x9b\0") == "a␛[2J␍␡\\x9b␀"
    kept = "tab\tline\nÄ سلام 👩‍👩‍👧"
    assert visible_controls(kept) == kept
    assert visible_controls("a\r\nb") == "a\nb"
