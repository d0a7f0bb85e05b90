"""What memory is worth: the perplexity of a book read through, beside windows of it.

Every reading predicts the same tokens, all but the first: the whole text from everything before,
windows of w tokens from 1 to w tokens, each window starting from an empty memory. Beside that the
peak memory of reading it, at two lengths: it should not depend on the length.

How to run (any plain text; the demo model is the default)::

    python benchmarks/long_memory.py treasure_island.txt --save
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()


from benchmarks.commands import RESULTS_FOLDER, add_book_options, benchmark_parser, keep
from long_memory import BLOCK, WINDOWS, long_memory, read_through
from long_memory import readings_table as table
from mamba_mixers.sites import model_layers
from recursive_visualizer import write_figures
from suite_plumbing.arguments import validate_int
from suite_plumbing.command_lines import parse_widths
from suite_plumbing.commands import run_main
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.provenance import provenance
from suite_plumbing.texts import read_book

MAX_TOKENS = 65536
LENGTHS = (8192, 65536)  # tokens, at which peak memory is measured
RESULTS = RESULTS_FOLDER / "long_memory.md"


def report(results: Mapping[str, Any], peaks: Mapping[int, float], model: str) -> str:
    """The whole result as Markdown."""
    lines = [
        f"Loss and perplexity of {results['num_tokens'] - 1} tokens of a book, model {model}, read "
        "through and in windows that each start from an empty memory; every reading predicts "
        "the same tokens. Difference: loss minus that of the whole text, above 0 where memory "
        f"beyond the window helps; intervals by resampling blocks of {results['block']} tokens.",
        "",
        *table(results["readings"]),
        "",
        "Mean loss (nats) by the number of tokens that a token is predicted from:",
        "",
        *_context_table(results["by_context"]),
        "",
        "Mean loss (nats) along the book, in each eighth of it:",
        "",
        *_along_table(results["along"]),
        "",
        "State of each layer along the text: mean norm in the first chunk and in the last eighth "
        f"of the chunks of {results['chunk_size']} tokens; share of it left after a chunk (mean "
        "over channels and states); lags of the memory kernel below the chunk size.",
        "",
        *_layer_table(results["layers"]),
    ]
    if peaks:
        measured = ", ".join(f"{mb:.0f} MB at {length} tokens" for length, mb in peaks.items())
        lines += ["", f"Peak memory of a process that reads it through: {measured}."]
    return "\n".join(lines) + "\n"


def _context_table(by_context: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    bins = [(row["first"], row["last"]) for row in by_context["whole text"]]
    by_first = {name: {row["first"]: row["loss"] for row in rows}
                for name, rows in by_context.items()}  # fmt: skip
    lines = [
        f"| tokens of context | {' | '.join(by_context)} |",
        "|---" * (len(by_context) + 1) + "|",
    ]
    for first, last in bins:
        cells = (f"{part[first]:.3f}" if first in part else "" for part in by_first.values())
        lines.append(f"| {first} to {last} | {' | '.join(cells)} |")
    return lines


def _along_table(along: Mapping[str, Sequence[float]]) -> list[str]:
    names = list(along)
    lines = [f"| tokens | {' | '.join(names)} |", _rule(len(names) + 1)]
    count = len(along["whole text"])
    step = max(1, count // 8)
    for first in range(0, count, step):
        parts = (along[name][first : first + step] for name in names)
        cells = (f"{sum(part) / len(part):.3f}" for part in parts)
        lines.append(f"| from {first * BLOCK} | {' | '.join(cells)} |")
    return lines


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def _layer_table(layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| layer | norm, first | norm, last | left after a chunk | mean lag | 90 % lag |",
        _rule(6),
    ]
    for name, part in layers.items():
        norms, survival = part["state_norm"], part["survival"]
        last = norms[-max(1, len(norms) // 8) :]
        lines.append(
            f"| {name.removeprefix('layer_')} | {norms[0]:.3g} | {sum(last) / len(last):.3g} | "
            f"{sum(survival) / len(survival):.3g} | {part['kernel']['mean_lag'][0]:.1f} | "
            f"{part['kernel']['lag_90'][0]:.0f} |"
        )
    return lines


def peak_megabytes(model_name: str, length: int) -> float:
    """Peak memory of a process that reads so many tokens through, in MB."""
    command = [sys.executable, __file__, "-", "--model", model_name, "--measure", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"measuring the peak memory failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def measured_peak(model_name: str, length: int) -> float:
    """Peak resident memory of this process while it reads, in MB; Linux only (OSError)."""
    model = load_model(model_name)
    ids = [token % model.config.vocab_size for token in range(length)]
    layers = model_layers(model, None)
    tracker = MemoryTracker()
    read_through(model, ids, layers=layers)
    stats = tracker.stats()
    if stats["reason"] or not tracker.peak_is_since_reset:
        raise OSError(f"the peak memory cannot be measured here: {stats['reason'] or 'no reset'}")
    return 1000 * stats["peak_memory_usage"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(
        __doc__, "four tables: readings, losses by context and along the book, layers"
    )
    add_book_options(parser)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)))
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)),
                        help="tokens at which peak memory is measured; empty for none")  # fmt: skip
    parser.add_argument(
        "--measure", type=int, help="print the peak memory at so many tokens, in MB"
    )
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(measured_peak(args.model, validate_int("measure", args.measure, 2)))
        return 0
    text = read_book(args.text)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    ids = tokenizer(text, verbose=False)["input_ids"][: args.max_tokens]
    layers = model_layers(model, "all")
    results = long_memory(model, ids, layers=layers, windows=parse_widths(args.windows))
    results["provenance"] = provenance(model, command=["python", "benchmarks/long_memory.py"])
    lengths = parse_widths(args.lengths)
    peaks = {length: peak_megabytes(args.model, length) for length in lengths}
    text = report(results, peaks, str(results["provenance"]["model"]["id"]))
    print(text)
    if args.save:
        _save(results, text)
    return 0


def _save(results: Mapping[str, Any], text: str) -> None:
    keep(RESULTS, text)
    write_figures(results, RESULTS.parent)


if __name__ == "__main__":
    raise SystemExit(main())
