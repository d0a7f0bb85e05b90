"""What a stopped run left is looked at: planted faults are found, right ends pass."""

import json
import signal
from pathlib import Path

import pytest
import torch

from benchmarks import robustness
from benchmarks.robustness import Outcome, faults_of, peak_address_space, report
from suite_plumbing.provenance import SCHEMA_VERSION
from suite_plumbing.result_files import write_json, write_tensors


@pytest.fixture
def folder(tmp_path):
    """A folder with JSON and tensors of one run."""
    results = {"schema_version": SCHEMA_VERSION, "provenance": {"run": {"id": "a"}}}
    write_json(tmp_path / "analysis_results.json", results)
    write_tensors(tmp_path / "analysis_results.safetensors", {"x": torch.ones(1)}, "a")
    return tmp_path


def test_a_run_that_ended_right_has_no_faults(folder, tmp_path):
    assert faults_of("main", folder, 143, "terminated\n", (0, 143)) == []
    assert faults_of("main", tmp_path / "never made", 130, "interrupted\n", (0, 130)) == []


def test_statuses_tracebacks_and_leftovers_are_faults(folder):
    (folder / ".analysis_results.json.0a.tmp").touch()
    found = faults_of("main", folder, 0, "Traceback (most recent call last):", (1,))
    assert found == ["status 0", "traceback", "leftover .analysis_results.json.0a.tmp"]


def test_files_of_two_runs_half_a_file_and_pages_alone_are_faults(folder):
    write_tensors(folder / "analysis_results.safetensors", {"x": torch.ones(1)}, "b")
    assert "run" in faults_of("main", folder, 0, "", (0,))[0]
    (folder / "analysis_results.safetensors").unlink()
    results = folder / "analysis_results.json"
    results.write_text(json.dumps({"schema_version": SCHEMA_VERSION})[:-3])
    assert len(faults_of("main", folder, 0, "", (0,))) == 1
    results.unlink()
    (folder / "report.md").touch()
    assert faults_of("main", folder, 0, "", (0,)) == ["pages without results"]


def test_the_table_counts_by_way_command_and_status():
    ends = [Outcome("SIGTERM", "main", 143, ()), Outcome("SIGTERM", "main", 143, ("traceback",))]
    text = report([*ends, Outcome("full disk", "memory", 1, ())])
    assert "| SIGTERM | main | 143 | 2 | 1 |" in text
    assert "| full disk | memory | 1 | 1 | 0 |" in text
    assert "- SIGTERM, main: traceback" in text
    assert "No faults." in report(ends[:1])


def test_the_kernels_word_for_the_address_space_is_read():
    assert peak_address_space("Name:\tpython\nVmPeak:\t    2048 kB\nVmSize:\t 1024 kB\n") == 2 << 20
    assert peak_address_space("Name:\tpython\n") == 0


def test_the_kernels_word_for_handlers_is_read():
    def handle(number, frame):
        """Never called."""

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert robustness.hears(Path("/proc/self/status").read_text(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not robustness.hears("SigCgt:\t0000000000000002\n", signal.SIGINT + 1)
    assert robustness.hears("SigCgt:\t0000000000000002\n", signal.SIGINT)


def test_a_library_that_ends_the_process_is_counted_apart_and_the_next_run_looked_at(
    monkeypatch, folder
):
    ends = iter([(1, "OpenBLAS error: Memory allocation still failed after 10 retries"), (0, "")])

    def run(command, place, limit=None):
        place.mkdir(exist_ok=True)
        return next(ends)

    monkeypatch.setattr(robustness, "run", run)
    usual = robustness.Usual(1.0, 1 << 30)
    found = robustness.in_little_memory("main", usual, robustness.random.Random(0))
    assert found == Outcome("memory limit, ended by a library (OpenBLAS)", "main", 1, ())
    assert next(ends, None) is None


def test_runs_that_a_log_holds_are_not_made_again(monkeypatch, tmp_path):
    made = []

    def stopped(command, usual, draw):
        made.append((command, usual, draw.random()))
        return Outcome("full disk", command, 1, ())

    monkeypatch.setattr(robustness, "WAYS", {"disks": stopped})
    monkeypatch.setattr(robustness, "usual_run", lambda command: robustness.Usual(1.0, 2))
    log = tmp_path / "runs.jsonl"
    first = list(robustness.tried({"disks": 3}, 0, log))
    assert [one.command for one in first] == ["main", "memory", "main"]
    assert len({number for *_, number in made}) == 3
    assert list(robustness.tried({"disks": 4}, 0, log))[:3] == first
    assert len(made) == 4
