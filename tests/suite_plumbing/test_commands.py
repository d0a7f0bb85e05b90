"""Hooks leave no trace, options are read, commands end with the right status."""

import argparse
import signal
import sys
from pathlib import Path

import pytest
import torch

import utils
from suite_plumbing.commands import (
    add_common_options,
    parse_formats,
    parse_layers,
    run_main,
    texts_from_options,
)
from suite_plumbing.errors import AnalysisError
from suite_plumbing.texts import EXAMPLE_TEXTS

# Hooks


# Command lines


def parse(*arguments: str, names: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_options(parser, *names)
    return parser.parse_args(arguments)


def test_common_options_have_the_documented_defaults() -> None:
    args = parse()
    assert Path(args.model) == utils.DEMO_MODEL_PATH
    assert (args.max_sequence_length, args.batch_size, args.seed) == (512, 2, 0)
    assert (args.dtype, args.device, args.layers, args.formats) == ("float32", None, None, ["png"])
    assert texts_from_options(args) == list(EXAMPLE_TEXTS)


def test_common_options_are_read() -> None:
    args = parse(
        *("--text", "one", "--text", "two", "--layers", "0,3,-1", "--batch-size", "4"),
        *("--formats", "pdf,svg,pdf", "--max-sequence-length", "64", "--dtype", "float64"),
        *("--device", "cpu", "--seed", "5", "--output-dir", "out", "--debug", "--model", "m"),
    )
    assert texts_from_options(args) == ["one", "two"]
    assert args.layers == [0, 3, -1]
    assert args.formats == ["pdf", "svg"]
    assert (args.batch_size, args.max_sequence_length, args.seed) == (4, 64, 5)
    assert (args.debug, args.quiet, args.output_dir) == (True, False, "out")
    assert parse("--layers=-2,-1").layers == [-2, -1]
    assert parse("--layers", "all").layers == "all"


def test_add_common_options_adds_those_named_alone() -> None:
    assert vars(parse(names=("texts_file", "seed"))) == {"texts_file": None, "seed": 0}
    assert set(vars(parse(names=("output-dir",)))) == {"output_dir"}
    with pytest.raises(ValueError, match="option is 'colour'; it must be one of model, text"):
        parse(names=("colour",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0;3"], "layers is '0;3'; write 'all' or indices like 0,3,6"),
        (["--formats", "png,gif"], "format is 'gif'; it must be one of png, pdf, svg"),
        (["--batch-size", "0"], "batch-size is 0 (int); it must be an integer of at least 1"),
        (["--batch-size", "2.5"], "batch-size is '2.5' (str)"),
        (["--max-sequence-length", "1"], "max-sequence-length is 1"),
        (["--seed", "-1"], "seed is -1"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_bad_option_ends_with_status_2_and_its_reason(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_parse_layers_and_formats_raise_value_errors_in_python() -> None:
    assert parse_layers(" ALL ") == "all"
    with pytest.raises(ValueError, match="layers is ''"):
        parse_layers("")
    with pytest.raises(ValueError, match="format is ''"):
        parse_formats("png,")


def test_texts_from_options_reads_the_file_and_refuses_both(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("from a file\n")
    assert texts_from_options(parse("--texts-file", str(path))) == ["from a file"]
    with pytest.raises(ValueError, match="--text and --texts-file are both given"):
        texts_from_options(parse("--texts-file", str(path), "--text", "x"))
    with pytest.raises(ValueError, match="text 1 is empty"):
        texts_from_options(parse("--text", "x", "--text", ""))


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
