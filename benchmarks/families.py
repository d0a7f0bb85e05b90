"""How exactly mixers are rebuilt: every family, in every precision, on the installed transformers.

Tiny models with random weights, two texts of 21 tokens, the second padded on the left by 6; chunks
of 8 tokens where a family's code takes the text in chunks. Errors are relative L2 norms, the
largest over layers:

    replay   the rebuilt output of a mixer against the output that it really gave
    state    the rebuilt state after the last token against that in the model's own cache
    steps    whether all eight steps of the main analysis gave a result

How to run, once in an environment of each version; rows of other versions stay in the table::

    python benchmarks/families.py --save

Another version of transformers, in an environment that is made for it and left in --environments:
the tests of the families, then this table, without touching the environment that runs now::

    python benchmarks/families.py --versions 4.57.6 5.24.0
"""

from __future__ import annotations

import argparse
import logging
import math
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
import transformers

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from benchmarks.family_models import (
    ALL_MODELS,
    CONFIGS,
    final_states,
    make_model,
    make_tiny_tokenizer,
    ssm_layers,
)
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from mamba_mixers.recording import record_layers
from mamba_mixers.replay_check import replay_tolerance
from suite_plumbing.commands import run_main
from token_statistics.description import relative_error

RESULTS = RESULTS_FOLDER / "families.md"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COLUMNS = ("model", "transformers", "dtype", "replay", "state", "allowed", "steps", "remark")

LENGTH, PADDING, CHUNK = 21, 6, 8

ROOT = Path(__file__).resolve().parent.parent

FAMILY_TESTS = (
    "tests/mamba_mixers/test_families.py", "tests/test_families.py", "tests/test_family_loops.py",
    "tests/mamba_mixers/test_placement.py", "tests/mamba_mixers/test_replay_check.py",
    "tests/mamba_mixers/test_calls.py",
)  # fmt: skip

FOLLOWING = ("transformers", "tokenizers", "huggingface_hub", "safetensors")
"""Packages whose versions follow that of transformers."""


class FamilyRow(NamedTuple):
    """One row of the table."""

    model: str
    dtype: torch.dtype
    replay: float | None
    state: float | None
    allowed: float
    steps: str
    remark: str

    def cells(self) -> list[str]:
        """The row as Markdown has it."""
        errors = ["-" if x is None else f"{x:.1e}" for x in (self.replay, self.state)]
        name = str(self.dtype).removeprefix("torch.")
        version = transformers.__version__
        return [self.model, version, name, *errors, f"{self.allowed:.0e}", self.steps, self.remark]


def measure(name: str, dtype: torch.dtype) -> FamilyRow:
    """One model in one precision; what the model itself cannot run is told in the remark."""
    model = make_model(name).to(dtype)
    allowed = replay_tolerance(model)
    ids = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :PADDING], mask[1, :PADDING] = 0, 0
    try:
        records = record_layers(model, ssm_layers(name), ids, mask)
        states = final_states(model, ssm_layers(name), ids, mask)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:80]
        return FamilyRow(name, dtype, None, None, allowed, "-", f"transformers: {reason}")
    replay = float(torch.stack([record.replay_error.max() for record in records.values()]).max())
    rebuilt = {layer: record.replay.memory.state for layer, record in records.items()}
    state = max(
        relative_error(rebuilt[layer].double(), value.reshape(rebuilt[layer].shape).double())
        for layer, value in states.items()
    )
    remark = ""
    if math.isnan(replay):
        remark = "transformers itself gives NaN"
        return FamilyRow(name, dtype, None, None, allowed, "-", remark)
    if replay > allowed:
        short = record_layers(model, ssm_layers(name), ids[:1, :CHUNK])
        error = max(float(record.replay_error.max()) for record in short.values())
        remark = f"fault of transformers (docs/families.md); one chunk, no padding: {error:.1e}"
    return FamilyRow(name, dtype, replay, state, allowed, _steps(name, model), remark)


def _steps(name: str, model: transformers.PreTrainedModel) -> str:
    """ "8 of 8", or how many of the steps gave a result for both texts."""
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, tokenizer=make_tiny_tokenizer())
    texts = ["the net held, and the net", "one two three, one two"]
    results = analyzer.analyze_recursive_ssm_attention_effects(texts, ssm_layers(name)[:2])
    missing = results["self_check"]["without_result"]
    failed = {step for key, steps in missing.items() if key.startswith("text_") for step in steps}
    return f"{8 - len(failed)} of 8"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of the rows, in the order of the families, then of versions and precisions."""
    names = list(CONFIGS)
    order = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    ranked = sorted(rows, key=lambda row: (names.index(row[0]), row[1], order.index(row[2])))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *ranked]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def kept_rows(text: str, version: str) -> list[list[str]]:
    """Rows of other versions in an earlier table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0] in CONFIGS and row[1] != version]


def tried(version: str, args: argparse.Namespace) -> int:
    """Exit status, 0 or 1, of the families' tests and the table under this version."""
    python = args.environments / version / "bin" / "python"
    if not python.exists():
        venv.create(args.environments / version, with_pip=True)
        wanted = requirements(version)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    table = ["benchmarks/families.py", "--models", *args.models, *(["--save"] if args.save else [])]
    statuses = [
        subprocess.run([python, *command], cwd=ROOT).returncode
        for command in (["-m", "pytest", "-q", *FAMILY_TESTS], table)
    ]
    return int(any(statuses))


def requirements(version: str) -> list[str]:
    """What to install for this version of transformers: the pins of its major version's file, and
    of what hangs together with it only where the version is the pinned one."""
    oldest = (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8").splitlines()
    newest = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in (oldest if version[0] == "4" else newest) if "==" in line]
    further = [line for line in oldest if line.startswith(("accelerate", "pytest"))]
    if f"transformers=={version}" not in pins:
        pins = [pin for pin in pins if not pin.startswith(FOLLOWING)]
    return list(dict.fromkeys([*pins, *further, f"transformers=={version}"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every family and print the table; with --save put it into benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a model and precision")
    parser.add_argument("--models", nargs="*", default=ALL_MODELS, choices=ALL_MODELS)
    parser.add_argument("--versions", nargs="*", help="of transformers, each tested by itself")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "mamba_families",
        help="folder of the virtual environments of --versions",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.versions is not None:
        statuses = {version: tried(version, args) for version in args.versions}
        for version, status in statuses.items():
            print(f"transformers {version}: {'failed' if status else 'passed'}")
        return max(statuses.values(), default=0)
    transformers.logging.set_verbosity_error()
    logging.getLogger("mamba_mixers.replay_check").setLevel(logging.ERROR)
    rows = [measure(name, dtype).cells() for name in args.models for dtype in DTYPES]
    if args.save:
        earlier = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        rows += kept_rows(earlier, transformers.__version__)
        explained = (__doc__ or "").split("How to run")[0].strip()
        keep(RESULTS, f"{explained}\n\n{table(rows)}")
    print(table(rows), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
