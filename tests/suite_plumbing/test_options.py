"""Shared options are read as documented, and refused with their reason."""

import argparse
from pathlib import Path

import pytest
import torch

from suite_plumbing.arguments import DTYPES
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.options import (
    DTYPE_NAMES,
    add_common_options,
    parse_formats,
    parse_layers,
    refuse_both,
)


def parse(*arguments: str, names: tuple[str, ...] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_options(parser, *names)
    return parser.parse_args(arguments)


def test_common_options_have_the_documented_defaults() -> None:
    args = parse()
    assert Path(args.model) == DEMO_MODEL_PATH
    assert (args.max_sequence_length, args.batch_size, args.seed) == (512, 2, 0)
    assert (args.dtype, args.device, args.layers, args.formats) == ("float32", None, None, ["png"])
    assert (args.text, args.texts_file) == (None, None)


def test_common_options_are_read() -> None:
    args = parse(
        *("--text", "one", "--text", "two", "--layers", "0,3,-1", "--batch-size", "4"),
        *("--formats", "pdf,svg,pdf", "--max-sequence-length", "64", "--dtype", "float64"),
        *("--device", "cpu", "--seed", "5", "--output-dir", "out", "--debug", "--model", "m"),
    )
    assert args.text == ["one", "two"]
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


def test_every_dtype_of_an_option_is_one_of_torch() -> None:
    assert tuple(DTYPES) == DTYPE_NAMES
    assert all(isinstance(dtype, torch.dtype) for dtype in DTYPES.values())


def test_two_options_that_exclude_each_other_are_refused_by_their_names() -> None:
    both = argparse.Namespace(text=["x"], texts_file="y")
    with pytest.raises(ValueError, match="--text and --texts-file are both given; pass one"):
        refuse_both(both, "text", "texts_file")
    refuse_both(argparse.Namespace(text=None, texts_file="y"), "text", "texts_file")
    refuse_both(argparse.Namespace(debug=True), "debug", "quiet")  # a command without the other
