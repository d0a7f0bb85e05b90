"""Part files: whole, checked, and merged by their rules."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpus_cases import opened, tiny_settings

from analysis_pipelines.corpus import parts as module
from analysis_pipelines.corpus.parts import (
    LARGEST,
    DamagedPart,
    OtherPart,
    Part,
    merge_parts,
    read_part,
    write_part,
)

SETTINGS = tiny_settings(Path("model"), ["one text", "another"])


def made(value, index=0, **more):
    arrays = {
        "sum": np.array([value, 0.5]), "count": np.array([1], np.int64),
        f"{LARGEST}error": np.array([value]), **more,
    }  # fmt: skip
    return Part(arrays, {"windows": 1}, [{"index": index, "place": "a", "reason": "b"}])


@pytest.fixture
def plan(tmp_path):
    return opened(tmp_path, SETTINGS)


def test_a_part_is_read_as_it_was_written(plan):
    write_part(plan, 1, made(2.0))
    found = read_part(plan, 1)
    assert found.counts == {"windows": 1}
    assert found.failures == [{"index": 0, "place": "a", "reason": "b"}]
    assert all((found.arrays[k] == x).all() for k, x in made(2.0).arrays.items())
    assert plan.missing() == [0, 2]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_part_is_named(plan, damage):
    write_part(plan, 1, made(2.0))
    path = plan.part_path(1)
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.float64(2.0).tobytes())] ^= 4
    bytes_ = {"cut": raw[:200], "flipped": raw, "empty": b"", "text": b"hello" * 50}[damage]
    path.write_bytes(bytes_)
    with pytest.raises(DamagedPart, match=r"part 'part_00001.safetensors' is damaged \("):
        read_part(plan, 1)


def test_a_part_of_another_run_or_task_is_refused(plan, tmp_path):
    other = opened(tmp_path / "other", replace(SETTINGS, seed=4))
    write_part(other, 1, made(2.0))
    raw = other.part_path(1).read_bytes()
    for task in (1, 2):
        plan.part_path(task).write_bytes(raw)
        with pytest.raises(
            OtherPart, match=f"part_0000{task}.* is of another configuration or task"
        ):
            read_part(plan, task)
    write_part(plan, 0, made(1.0))
    plan.part_path(1).write_bytes(plan.part_path(0).read_bytes())
    with pytest.raises(OtherPart):
        read_part(plan, 1)


def test_a_disk_that_is_full_leaves_no_part(plan, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("suite_plumbing.result_files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_part(plan, 0, made(1.0))
    assert not list(plan.part_path(0).parent.iterdir())


def test_parts_are_merged_by_their_rules():
    only = {"pairs/x": np.array([3.0])}
    found = merge_parts(iter([made(2.0, 9), made(5.0, 4, **only), made(-1.0, 6)]))
    assert found.arrays["sum"].tolist() == [6.0, 1.5]
    assert found.arrays["count"].tolist() == [3]
    assert found.arrays["count"].dtype == np.int64
    assert found.arrays[f"{LARGEST}error"].tolist() == [5.0]
    assert found.arrays["pairs/x"].tolist() == [3.0]
    assert found.counts == {"windows": 3}
    assert [f["index"] for f in found.failures] == [4, 6, 9]
    with pytest.raises(ValueError, match="no parts"):
        merge_parts(iter([]))


def test_only_so_many_failures_are_listed(plan, monkeypatch):
    monkeypatch.setattr(module, "_MAX_LISTED", 2)
    many = Part({"sum": np.zeros(1)}, {"failures": 5}, [{"index": i} for i in range(5)])
    write_part(plan, 0, many)
    assert len(read_part(plan, 0).failures) == 2
