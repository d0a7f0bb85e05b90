"""Hooks leave no trace, options are read, commands end with the right status."""

import argparse
import signal
import sys
from pathlib import Path

import pytest
import torch

import utils
from mamba_mixers.sites import model_layers
from suite_plumbing import analysis_options, commands, step_options
from suite_plumbing.analysis_options import main_analysis_options, recursive_analysis_report_options
from suite_plumbing.commands import job_from_options, run_main, texts_from_options
from suite_plumbing.errors import AnalysisError
from suite_plumbing.step_options import (
    attribution_faithfulness_options,
    ssm_component_extractor_options,
)
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


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_of_a_file_is_no_missing_option(name: str) -> None:
    """What a script's empty variable leaves: not the built-in texts."""
    with pytest.raises(ValueError, match="is empty|cannot be read"):
        texts_from_options(given(texts_file=name))
    with pytest.raises(ValueError, match="--text and --texts-file are both given"):
        main_analysis_options(["--text", "x", "--texts-file", name])
    with pytest.raises(ValueError, match="text 0 is empty or white space"):
        texts_from_options(given(text=[name]))


def test_a_file_may_be_read_as_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A title\n\nand a line\n")
    args = ssm_component_extractor_options(["--texts-file", str(path), "--one-text"])
    assert texts_from_options(args) == ["# A title\n\nand a line"]
    with pytest.raises(ValueError, match="--one-text is given without a --texts-file"):
        ssm_component_extractor_options(["--one-text"])


def test_no_methods_are_not_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    for methods in ("", ",", "mamba_lrp,"):
        with pytest.raises(ValueError, match="method is ''; it must be one of gradient_x_input"):
            attribution_faithfulness_options(["--methods", methods])
    with pytest.raises(ValueError, match="results are named twice"):
        recursive_analysis_report_options(["", "--results", "a.json"])
    with pytest.raises(SystemExit):
        ssm_component_extractor_options(["--dtype", "9" * 10_000])
    assert len(capsys.readouterr().err.splitlines()[-1]) < 500


def test_the_tokenizer_may_be_elsewhere(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A model whose folder has none: refused with what to pass, and taken with it."""
    elsewhere = tmp_path / "tokenizer"
    elsewhere.mkdir()
    for path in tiny_model_dir.glob("*token*"):
        path.rename(elsewhere / path.name)
    argv = ["--model", str(tiny_model_dir), "--text", "a tide pool", "--output-dir", str(tmp_path)]
    with pytest.raises(ValueError, match="holds none of .*; name one by --tokenizer"):
        job_from_options(ssm_component_extractor_options(argv), model_layers)
    argv += ["--tokenizer", str(elsewhere)]
    job = job_from_options(ssm_component_extractor_options(argv), model_layers)
    assert job.encoded[0].text == "a tide pool"


def test_every_command_that_loads_a_model_takes_a_tokenizer() -> None:
    homes = (analysis_options.__name__, step_options.__name__)
    for name, options in {**vars(analysis_options), **vars(step_options)}.items():
        if name.endswith("_options") and options.__module__ in homes:
            given = {"long_memory_options": ["book.txt"],
                     "activation_patching_options": ["pairs.jsonl"],
                     "convert_checkpoint_options": ["folder", "out"]}  # fmt: skip
            args = options(given.get(name, []))
            assert hasattr(args, "tokenizer") == hasattr(args, "model"), name


def test_a_command_asks_for_one_heap_before_it_works(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(commands, "one_heap", lambda: asked.append("heap"))
    assert run_main(lambda argv: len(asked) - 1, []) == 0
