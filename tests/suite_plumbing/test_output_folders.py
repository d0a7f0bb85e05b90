"""One run at a time has a folder; what a killed one left is cleared by the next."""

import errno
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import suite_plumbing.output_folders as output_folders
from suite_plumbing.commands import run_main
from suite_plumbing.output_folders import (
    LOCK_NAME,
    claim_output_dir,
    owning,
    remove_unfinished,
)
from suite_plumbing.result_files import write_atomically
from suite_plumbing.runs import one_run

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys
from pathlib import Path
from suite_plumbing.output_folders import owning
with owning(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_of_another_process_is_refused_and_named(tmp_path, holder, capsys):
    assert run_main(lambda _: len(str(claim_output_dir(tmp_path))), []) == 2
    said = capsys.readouterr().err
    assert f"{str(tmp_path)!r} is being written by another run (process {holder.pid})" in said
    assert len(said.splitlines()) == 1


def test_the_folder_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with one_run():
        claim_output_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_claims_a_folder_as_often_as_it_likes_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with one_run():
        folder = claim_output_dir(tmp_path / "real")
        claim_output_dir(tmp_path / "link")
        with owning(folder):
            pass
        assert (folder / LOCK_NAME).exists()  # still its own
    assert list(folder.iterdir()) == []


def test_two_threads_do_not_share_a_folder(tmp_path):
    said = []

    def second():
        try:
            with owning(tmp_path):
                said.append("owned")
        except ValueError as error:
            said.append(str(error))

    with one_run():
        claim_output_dir(tmp_path)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is being written by another run" in said[0]


def test_outside_of_a_run_a_folder_is_checked_alone(tmp_path):
    claim_output_dir(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_unfinished_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    left = tmp_path / ".report.html.0123456789ab.tmp"
    left.write_text("half")
    kept = [tmp_path / name for name in (".hidden", "a.tmp", ".x.tmp", ".x.0123456789AB.tmp")]
    for path in kept:
        path.write_text("a user's")
    with write_atomically(tmp_path / "result.json") as handle:
        handle.write("{}")
        remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "result.json", *(path.name for path in kept)
    }  # fmt: skip


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def none(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_folders, "try_lock", none)
    with caplog.at_level(logging.WARNING), owning(tmp_path):
        pass
    assert "has no locks" in caplog.text
    assert list(tmp_path.iterdir()) == []
