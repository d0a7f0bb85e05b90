"""A checkpoint of mamba_ssm's or mambapy's, written as a folder that ``transformers`` reads.

The suite reads such checkpoints as they are (``load_model``); this is for other programs, and for
a Mamba-3, whose activation is then named in its config.json. No pickle is run.

From a shell: ``python convert_checkpoint.py path/to/mamba-130m path/to/mamba-130m-hf``.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import convert_checkpoint_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(convert_checkpoint_options)

from collections.abc import Sequence
from pathlib import Path

from suite_plumbing.commands import run_main
from suite_plumbing.loud_libraries import loading_bar_on_terminals
from suite_plumbing.messages import quoted
from suite_plumbing.model_folders import TOKENIZER_FILES
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.native_checkpoints import is_native
from suite_plumbing.paths import StrPath, user_path
from suite_plumbing.progress import configure_logging


def convert_checkpoint(
    folder: StrPath,
    out: StrPath,
    *,
    dtype: str = "float32",
    a_activation: str | None = None,
) -> Path:
    """Write the native checkpoint in ``folder`` as a model folder ``out``; return that folder.

    config.json, model.safetensors in ``dtype``, and the tokenizer where one lies beside the
    weights. ``a_activation`` is that of a Mamba-3's decay rates ("softplus" or "heavy_tail").
    Raises ValueError for a folder that holds no native checkpoint or a damaged one, and where
    ``out`` is there and not empty. Cost: the model in memory.
    """
    source, target = user_path(folder, "folder"), user_path(out, "out")
    if not is_native(source):
        raise ValueError(
            f"folder {quoted(str(source))} holds no config.json with d_model and without "
            "model_type: no checkpoint of mamba_ssm's or mambapy's"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"out {quoted(str(target))} is there already; name a new folder")
    model = load_model(source, device="cpu", dtype=dtype, a_activation=a_activation)
    unfinished = target.with_name(f".{target.name}.unfinished")
    with loading_bar_on_terminals():
        model.save_pretrained(unfinished)
    if any((source / file).is_file() for file in TOKENIZER_FILES):
        load_tokenizer(source).save_pretrained(unfinished)
    unfinished.replace(target)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a checkpoint; exit status 2 where it cannot be read."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = convert_checkpoint_options(argv)
    configure_logging(args.debug, args.quiet)
    path = convert_checkpoint(
        args.folder, args.out, dtype=args.dtype, a_activation=args.a_activation
    )
    if not args.quiet:
        print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
