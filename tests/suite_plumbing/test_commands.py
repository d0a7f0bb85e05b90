"""Hooks leave no trace, options are read, commands end with the right status."""

import argparse
import signal
import sys
from pathlib import Path

import pytest
import torch

import utils
from suite_plumbing.commands import run_main, texts_from_options
from suite_plumbing.errors import AnalysisError
from suite_plumbing.texts import EXAMPLE_TEXTS

# Hooks


def given(text: list[str] | None = None, texts_file: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(text=text, texts_file=texts_file)


def test_texts_from_options_reads_the_file_and_refuses_both(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("from a file\n")
    assert texts_from_options(given()) == list(EXAMPLE_TEXTS)
    assert texts_from_options(given(text=["one", "two"])) == ["one", "two"]
    assert texts_from_options(given(texts_file=str(path))) == ["from a file"]
    with pytest.raises(ValueError, match="--text and --texts-file are both given"):
        texts_from_options(given(text=["x"], texts_file=str(path)))
    with pytest.raises(ValueError, match="text 1 is empty"):
        texts_from_options(given(text=["x", ""]))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("layer 9 is out\nof range"), 2, "error: layer 9 is out of range\n"),
        (AnalysisError("one token"), 1, "error: one token\n"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left\n"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: CUDA out of memory\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_main_turns_errors_into_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: list[str]) -> int:
        raise error

    assert run_main(command, ["--seed", "1"]) == status
    assert capsys.readouterr().err == line
    assert run_main(command, ["--debug"]) == status
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith(line)


def test_run_main_removes_unfinished_files_when_terminated(tmp_path: Path) -> None:
    def command(argv: list[str]) -> int:
        with utils.write_atomically(tmp_path / "result.json") as handle:
            handle.write("half")
            signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run_main(command, [])
    assert caught.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_main_passes_arguments_status_and_programming_errors_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_main(len, ["a", "b", "c"]) == 3
    monkeypatch.setattr(sys, "argv", ["command.py", "x"])
    assert run_main(len) == 1

    def broken(argv: list[str]) -> int:
        return {}["key"]

    with pytest.raises(KeyError):
        run_main(broken, [])
