"""How often is an untrained model said to do something by the overview's answers?

Twins of the demo model, with fresh weights and with permuted ones, on the built-in texts: how many
of them have an answer to any of the five questions that are tested, and to which. Permuted weights
keep time scales, and half-lives with them: those are the weights' own and are not counted.

How to run::

    python benchmarks/untrained_answers.py --seeds 50 --save
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.overview import overview
from analysis_pipelines.overview_answers import QUESTIONS
from benchmarks.commands import RESULTS_FOLDER, add_model_option, benchmark_parser, keep
from mamba_mixers.untrained_twins import untrained_twin
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.texts import EXAMPLE_TEXTS, EncodedText, encode_texts
from token_statistics.twin_bounds import TWIN_KINDS

RESULTS = RESULTS_FOLDER / "untrained_answers.md"

TESTED = tuple(name for name in QUESTIONS if name != "memory")


def answered(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
) -> dict[str, list[tuple[str, ...]]]:
    """By kind of twin, of each seed: the tested questions that are answered."""
    found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in TWIN_KINDS}
    for kind, rows in found.items():
        for seed in seeds:
            section = overview(untrained_twin(model, seed, kind), encoded, tokenizer)
            said = {one["question"] for one in section["answers"] if one["said"]}
            rows.append(tuple(name for name in TESTED if name in said))
    return found


def table(found: dict[str, list[tuple[str, ...]]]) -> str:
    """Markdown: a row a kind of twin."""
    lines = ["| twins | any question | " + " | ".join(TESTED) + " |", "|---" * 7 + "|"]
    for kind, rows in found.items():
        counts = Counter(name for row in rows for name in row)
        cells = [f"{sum(map(bool, rows))} of {len(rows)}", *(str(counts[name]) for name in TESTED)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a kind of twins")
    add_model_option(parser)
    parser.add_argument("--seeds", type=int, default=50, help="twins of each kind (default: 50)")
    args = parser.parse_args(argv)
    seeds = range(validate_int("seeds", args.seeds, 1))
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    encoded = encode_texts(tokenizer, list(EXAMPLE_TEXTS), 512)
    report = table(answered(model, encoded, tokenizer, seeds))
    print(report)
    if args.save:
        keep(RESULTS, f"Models that are said to do something, of {len(seeds)}.\n\n{report}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
