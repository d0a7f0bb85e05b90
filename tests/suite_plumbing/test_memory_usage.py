"""Memory figures are measured, and say what they are measures of."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from suite_plumbing import memory_usage
from suite_plumbing.memory_usage import MemoryTracker

MEBIBYTE = 2**20


def touch_memory(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE // 4)


def test_peak_rises_by_what_was_held_and_stays() -> None:
    tracker = MemoryTracker()
    before = tracker.stats()
    block = touch_memory(256)
    during = tracker.stats()
    del block
    after = tracker.stats()
    held = 256 * MEBIBYTE / 1e9
    # 0.9: pages that the allocator had free already need not be new to the resident set.
    assert during["current_memory_usage"] >= before["current_memory_usage"] + 0.9 * held
    assert after["peak_memory_usage"] >= before["current_memory_usage"] + 0.9 * held
    assert after["current_memory_usage"] < during["current_memory_usage"] - 0.9 * held
    assert after["source"].startswith("resident set")
    assert after["reason"] is None


def test_reset_forgets_the_peak_where_the_system_allows_it() -> None:
    tracker = MemoryTracker()
    block = touch_memory(256)
    del block
    high = tracker.stats()["peak_memory_usage"]
    tracker.reset()
    stats = tracker.stats()
    if tracker.peak_is_since_reset:
        assert stats["peak_memory_usage"] < high - 0.9 * 256 * MEBIBYTE / 1e9
    else:
        assert stats["source"].endswith("the peak is that of the process's whole life")
    assert stats["baseline_memory_usage"] <= stats["peak_memory_usage"]


def test_cleanup_is_counted_until_reset() -> None:
    tracker = MemoryTracker("cpu")
    tracker.cleanup()
    tracker.cleanup()
    assert tracker.stats()["cleanup_count"] == 2
    tracker.reset()
    assert tracker.stats()["cleanup_count"] == 0


def test_a_peak_that_cannot_be_reset_is_said_to_be_the_whole_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deny(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "write_text", deny)
    assert "the process's whole life" in MemoryTracker().stats()["source"]


def test_without_proc_there_is_a_peak_and_a_reason_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError("no /proc")

    monkeypatch.setattr(Path, "read_text", missing)
    stats = MemoryTracker().stats()
    assert stats["current_memory_usage"] is None
    assert stats["peak_memory_usage"] > 0
    assert "getrusage" in stats["source"]
    assert "no current resident set" in stats["reason"]


def test_where_nothing_can_be_measured_all_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_usage, "_memory_bytes", lambda _: (None, None, None))
    stats = MemoryTracker().stats()
    assert stats["peak_memory_usage"] is None
    assert stats["source"] is None
    assert stats["reason"] is not None


def test_one_heap_is_asked_of_glibc_alone(monkeypatch):
    asked = []
    libc = SimpleNamespace(mallopt=lambda *given: asked.append(given))
    monkeypatch.setattr(memory_usage, "_glibc", lambda: libc)
    memory_usage.one_heap()
    assert asked == [(-8, 1)]  # M_ARENA_MAX of glibc's malloc.h
    monkeypatch.setattr(memory_usage, "_glibc", lambda: None)
    memory_usage.one_heap()
    assert len(asked) == 1
