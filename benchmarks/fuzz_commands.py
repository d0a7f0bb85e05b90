"""Command lines that the fuzzer tries: of every command, with options that mean nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import activation_patching
import attention_neurons
import attribution_faithfulness
import convert_checkpoint
import corpus_analysis
import corrected_recursive_ssm_attention_analyzer
import delta_extraction
import direct_attribution
import input_attribution
import intervention_study
import layer_correlation_analyzer
import long_memory
import mamba_recursive_analysis
import memory_recursion_neuron_analyzer
import model_comparison
import recursive_analysis_report
import recursive_visualizer
import run_memory_recursion_analysis
import ssm_component_extractor
import steering
from benchmarks.fuzz_inputs import TEXT, Case, Stand

STRINGS = (
    "", " ", "x", "-1", "0", "1.5", "nan", "1e999", "9" * 401, "0,0", "0,99", "all", "ALL", ",",
    "²", "~nosuchuser/x", "a" * 300, "\ud800", "\x1b[31m", "..", ".", "/dev/null", "None", "0x10",
    "--", "hpu", "cuda:99", "mps", "float99", "💥" * 50, "a" * 100_000, "\n", "png,exe",
)  # fmt: skip

_SHARED = (
    "--model", "--tokenizer", "--text", "--texts-file", "--layers", "--max-sequence-length",
    "--batch-size", "--device", "--dtype", "--output-dir", "--seed",
)  # fmt: skip

_MAIN = ("--ablate", "--twins", "--formats", "--faithfulness", "--resume", "--one-text")

_MEMORY = ("--num-positions", "--ablate", "--num-random", "--twins", "--formats", "--resume")

_FLAGS = ("--faithfulness", "--resume", "--one-text", "--direct", "--pairs", "--total-effects",
          "--tuned-lens")  # fmt: skip

_MAY_BE_EMPTY = ("--token", "--contrast", "--text")
"""Options of which an empty value may be meant, or is one of several."""


class _Command(NamedTuple):
    main: Callable[[list[str]], int]
    own: tuple[str, ...] = ()
    """options of its own that are spoilt beside the shared ones"""
    cheap: tuple[str, ...] = ()
    """what makes a run that is let through short"""
    reads: str = "model"
    """what it works on: a model with texts, a file of texts, of pairs or a book; results; or a
    checkpoint"""


COMMANDS = {
    "ssm_component_extractor": _Command(ssm_component_extractor.main),
    "delta_extraction": _Command(delta_extraction.main),
    "layer_correlation_analyzer": _Command(layer_correlation_analyzer.main, ("--stream",)),
    "attention_neurons": _Command(
        attention_neurons.main, ("--target", "--token", "--contrast", "--ablate")
    ),
    "input_attribution": _Command(
        input_attribution.main, ("--method", "--target", "--token", "--contrast")
    ),
    "direct_attribution": _Command(
        direct_attribution.main,
        ("--token", "--contrast", "--position", "--total-effects", "--tuned-lens", "--formats"),
    ),
    "activation_patching": _Command(
        activation_patching.main,
        ("--sites", "--metric", "--direction", "--position", "--steps", "--formats"),
        ("--sites", "residual", "--steps", "0"), "pairs",
    ),
    "steering": _Command(
        steering.main,
        ("--layer", "--site", "--method", "--mode", "--position", "--coefficients", "--vector",
         "--prompt", "--token", "--num-random", "--formats"),
        ("--positive", "the sea", "--negative", "the lamp", "--coefficients", "1", "--generate",
         "2"),
    ),
    "intervention_study": _Command(
        intervention_study.main,
        ("--kind", "--num-positions", "--max-lag", "--direct", "--pairs"),
        ("--num-positions", "2"),
    ),
    "attribution_faithfulness": _Command(
        attribution_faithfulness.main,
        ("--methods", "--baseline", "--num-texts", "--min-tokens", "--num-steps", "--num-random"),
        ("--methods", "recency", "--num-randomised-texts", "0"),
    ),
    "corrected_recursive_ssm_attention_analyzer": _Command(
        corrected_recursive_ssm_attention_analyzer.main, _MAIN, ("--layers", "0")
    ),
    "mamba_recursive_analysis": _Command(mamba_recursive_analysis.main, _MAIN, ("--layers", "0")),
    "memory_recursion_neuron_analyzer": _Command(
        memory_recursion_neuron_analyzer.main, _MEMORY,
        ("--layers", "0", "--num-positions", "1", "--ablate", "3", "--num-random", "1"),
    ),
    "run_memory_recursion_analysis": _Command(
        run_memory_recursion_analysis.main, _MEMORY,
        ("--layers", "0", "--num-positions", "1", "--ablate", "3", "--num-random", "1"),
    ),
    "model_comparison": _Command(
        model_comparison.main, ("--twins", "--formats", "--one-text"), ("--layers", "0,1")
    ),
    "corpus_analysis": _Command(
        corpus_analysis.main,
        ("--split", "--text-field", "--tasks", "--workers", "--engine", "--max-failures",
         "--batch-tokens", "--maps-every", "--importance-every", "--threads", "--slurm-time",
         "--slurm-memory"),
        ("--layers", "0", "--importance-every", "0"), "texts",
    ),
    "long_memory": _Command(
        long_memory.main, ("--max-tokens", "--chunk-size", "--windows", "--formats"),
        ("--windows", "8", "--layers", "0"), "book",
    ),
    "recursive_visualizer": _Command(recursive_visualizer.main, ("--formats",), (), "results"),
    "recursive_analysis_report": _Command(
        recursive_analysis_report.main, ("--formats", "--results", "--memory-results"), (),
        "results",
    ),
    "convert_checkpoint": _Command(
        convert_checkpoint.main, ("--a-activation", "--dtype"), (), "checkpoint"
    ),
}  # fmt: skip


def command_line(stand: Stand, rng: random.Random, folder: Path) -> Case:
    """A command on a tiny model or its results, with one or two options spoilt."""
    name = rng.choice(list(COMMANDS))
    command = COMMANDS[name]
    argv = _right(command, stand, folder)
    num_right = len(argv)
    shared = (
        _SHARED
        if command.reads in ("model", "texts")
        else ("--output-dir", "--nonsense", "--debug=1")
    )
    for _ in range(rng.choice((1, 1, 2))):
        option = rng.choice(command.own or shared) if rng.random() < 0.5 else rng.choice(shared)
        argv = _with_option(argv, option, rng, folder)
    if command.reads not in ("model", "texts") and rng.random() < 0.3:
        argv = [_place(stand, rng, folder), *argv[1:]]
    given = dict(pairwise(argv))
    empty = any(
        value == "" and key.startswith("--") and key not in _MAY_BE_EMPTY
        for key, value in given.items()
    )
    shown = [one if len(one) < 60 else f"{one[:40]}...({len(one)})" for one in argv[num_right:]]
    # In a folder of its own: what is written by a relative name stays there.
    return Case(
        "command line", f"{name} {shown} {argv[0][-40:]!r}",
        lambda: _in_folder(folder, command.main, argv), empty, (f"{name}.py", *argv),
    )  # fmt: skip


def _right(command: _Command, stand: Stand, folder: Path) -> list[str]:
    """Arguments of a short run that is right; what the command works on stands first."""
    out = ["--output-dir", str(folder / "out"), "--quiet"]
    model = ["--model", str(stand.model_folder)]
    if command.reads == "book":
        (folder / "book.txt").write_text(TEXT)
        return [str(folder / "book.txt"), *model, *out, *command.cheap]
    if command.reads == "pairs":
        pair = {"clean": "the lamp burned", "corrupt": "the tide burned", "answers": [3, 4]}
        (folder / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n")
        return [str(folder / "pairs.jsonl"), *model, *out, *command.cheap]
    if command.reads == "texts":
        (folder / "texts.txt").write_text(f"{TEXT}\n{TEXT[::-1]}\n")
        return ["--texts-file", str(folder / "texts.txt"), *model, *out, *command.cheap]
    if command.reads == "results":
        return [str(stand.results), *out, *command.cheap]
    if command.reads == "checkpoint":
        return [str(stand.model_folder), str(folder / "out"), "--quiet"]
    return [*model, *out, *command.cheap, "--text", TEXT[:40]]


def _with_option(argv: list[str], option: str, rng: random.Random, folder: Path) -> list[str]:
    if option in _FLAGS:
        return [*argv, option]
    value = _texts_file(rng, folder) if option == "--texts-file" else rng.choice(STRINGS)
    # A folder for the output is made wherever it may be: only within that of this input.
    if option == "--output-dir" and value and value.isascii():
        value = str(folder / value)
    if option == "--texts-file" and "--text" in argv:
        argv = argv[: argv.index("--text")]
    return [*argv, option, value]


def _place(stand: Stand, rng: random.Random, folder: Path) -> str:
    """What stands in the place of a book or of results, and is neither as a rule."""
    (folder / "empty.json").write_text("{}")
    shutil.copy(stand.model_folder / "model.safetensors", folder / "weights.json")
    other = (str(stand.folder), str(stand.model_folder / "config.json"),
             str(folder / "empty.json"), str(folder / "weights.json"))  # fmt: skip
    return rng.choice((*other, *(one for one in STRINGS if not one.startswith("-"))))


def _in_folder(folder: Path, main: Callable[[list[str]], int], argv: list[str]) -> int:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return main(argv)
    finally:
        os.chdir(before)


def _texts_file(rng: random.Random, folder: Path) -> str:
    name = rng.choice(("a.txt", "a.jsonl", "a.ndjson", "a.md", "a.gz", "a.zip", "a", "a.csv"))
    contents = (
        b"", b"\n\n", b"\xff\xfe", b"{", b'{"text": 5}\n', b'{"text": "a b c d"}\n', b"[]",
        b'{"text": "\\ud800 a b"}\n', b"\x1f\x8b\x08", b"PK\x03\x04", b"a b c d\n", b"a\x00b\n",
        b"[" * 50_000, b'{"text": ' + b"9" * 5000 + b"}",
    )  # fmt: skip
    (folder / name).write_bytes(rng.choice(contents))
    return str(folder / name)
