"""The findings that analyses of this kind report, recomputed on passages of a book.

The main analysis of a model on passages spread over a plain text, and of untrained twins of both
kinds on the same passages: each claim with its number, its null, the twins' range and the verdict.
The text is read and not kept: the table holds numbers only. With --parts a run that was stopped
goes on with the twin it had come to.

How to run (any plain text that the model was not trained on; the demo model is the default; half an
hour on one core)::

    python benchmarks/key_findings.py treasure_island.txt --save
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.analysis_results import Settings
from benchmarks.commands import (
    RESULTS_FOLDER,
    add_book_options,
    add_parts_option,
    benchmark_parser,
    keep,
    kept_part,
)
from benchmarks.passages import encoded_passages
from corrected_recursive_ssm_attention_analyzer import findings_alone
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import ENOUGH_TWINS, twins_to_make, untrained_twin
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.options import parse_layers
from suite_plumbing.progress import progress
from suite_plumbing.texts import EncodedText, read_book
from token_statistics.findings import SUPPORTED, Finding, compared, judged, number
from token_statistics.twin_bounds import TWIN_KINDS
from token_statistics.verdict_rules import MIN_TEXTS

RESULTS = RESULTS_FOLDER / "key_findings.md"


def table(findings: Sequence[Finding]) -> str:
    """Markdown: a row a finding."""
    lines = ["| claim | measured | value | compared with | verdict |", "|---|---|---|---|---|"]
    for row in findings:
        measured = row.statistic.replace("|", "\\|")
        value = number(row.value) if row.value is not None else ""
        against = compared(row) if row.value is not None else row.reason
        lines.append(f"| {row.claim} | {measured} | {value} | {against} | {row.verdict} |")
    return "\n".join(lines)


def verdicts(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    parts: Path | None = None,
) -> list[Finding]:
    """The findings of a model beside ``settings.num_twins`` twins of each kind.

    As `analyze` has them, without the rest of an analysis; ``parts``: where what each model gives
    is kept. Cost: see `findings_alone`, for each model.
    """

    def found(name: str, one: Callable[[], PreTrainedModel], how: Settings) -> list[Finding]:
        rows = kept_part(
            parts,
            name,
            lambda: [row.to_dict() for row in findings_alone(one(), encoded, tokenizer, how)],
        )
        return [Finding.from_dict(row) for row in rows]

    own = found("model", lambda: model, replace(settings, num_twins=0))
    alone = replace(settings, num_twins=0, num_ablations=0)
    twins: dict[str, list[list[Finding]]] = {kind: [] for kind in TWIN_KINDS}
    wanted = twins_to_make(settings.num_twins, settings.seed)
    # Kinds in turn, so that what a stopped run has kept is of both.
    for kind, seed in progress(sorted(wanted, key=lambda twin: twin[1]), desc="twins"):
        name = f"{kind.split()[0]}_{seed}"
        make = partial(untrained_twin, model, seed, kind)
        twins[kind].append(found(name, make, alone))
    return judged(own, twins if settings.num_twins else None)


def _counted(findings: Sequence[Finding]) -> str:
    """How many of the claims that training could make true are supported."""
    learned = [row for row in findings if row.learned and row.value is not None]
    supported = sum(row.verdict == SUPPORTED for row in learned)
    chance = sum(row.chance_p is not None and row.chance_p <= 0.05 for row in learned)
    return (
        f"Of {len(learned)} claims about what was learned that these texts can decide, {supported} "
        f"are supported; by its null alone, p <= 0.05, {chance} would be."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a claim")
    add_book_options(parser)
    add_parts_option(parser)
    parser.add_argument("--passages", type=int, default=MIN_TEXTS)
    parser.add_argument("--tokens", type=int, default=96, help="of a passage (default: 96)")
    parser.add_argument("--layers", default="all", help="such as 0,3,6 (default: all)")
    parser.add_argument(
        "--twins", type=int, default=ENOUGH_TWINS, help="of each kind (default: 19)"
    )
    parser.add_argument("--ablate", type=int, default=12, help="random neurons of each layer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    count, length = (validate_int(n, getattr(args, n), 2) for n in ("passages", "tokens"))
    twins, ablations = (validate_int(n, getattr(args, n), 0) for n in ("twins", "ablate"))
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    layers = model_layers(model, parse_layers(args.layers))
    encoded = encoded_passages(read_book(args.text), tokenizer, count, length)
    settings = Settings(layers, seed=args.seed, num_ablations=ablations, num_twins=twins)
    findings = verdicts(model, encoded, tokenizer, settings, args.parts)
    report = (
        f"{count} passages of {length} tokens, layers {layers}; {twins} untrained twins of "
        f"each kind, which a supported claim has to exceed. {_counted(findings)}\n\n"
        f"{table(findings)}\n"
    )
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
