"""How fast is generation under an edit, beside the model's own? At the shape of 130m models.

Greedy generation with the model's cache from a prompt: stock, inside ``fast_scan``, and there with
an edit of every layer that changes nothing. The weights are random: speed does not depend on their
values. The ways run by turns in one process; medians; a ratio tells more than a time.

How to run::

    python benchmarks/generation.py --save
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
import transformers
from torch import Tensor

from benchmarks.commands import RESULTS_FOLDER, benchmark_parser, keep
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import find_mixers
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main

RESULTS = RESULTS_FOLDER / "generation.md"

_COMMON: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}


def mamba(hidden_size: int, layers: int, vocabulary: int) -> Any:
    """A Mamba of this width; 768, 24 and 50,280 are mamba-130m's."""
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=vocabulary, hidden_size=hidden_size, num_hidden_layers=layers, **_COMMON
        )
    )


def mamba2(hidden_size: int, layers: int, vocabulary: int) -> Any:
    """A Mamba-2 of this width, heads of 64 channels, 128 states; as mamba2-130m."""
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=vocabulary, hidden_size=hidden_size, num_hidden_layers=layers, head_dim=64,
            num_heads=hidden_size // 32, n_groups=1, state_size=128, **_COMMON,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[int, int, int], Any]] = {"Mamba": mamba, "Mamba-2": mamba2}


def unchanged(stage: str, x: Tensor) -> Tensor:
    """An edit that leaves every stage as it is: all of its cost is the suite's."""
    return x


class Times(NamedTuple):
    """Median seconds of one way."""

    way: str
    prompt: float
    """the prompt, and the first token"""
    step: float
    """a token after it"""


def ways_of(model: Any) -> dict[str, Callable[[], Any]]:
    """Contexts by name."""
    edits = dict.fromkeys(find_mixers(model), unchanged)
    return {
        "stock": nullcontext,
        "fast_scan": lambda: fast_scan(model),
        "fast_scan with edits": lambda: fast_scan(model, edits=edits),
    }


@torch.no_grad()
def measured(model: Any, prompt: int, new: int, batch: int, runs: int) -> list[Times]:
    """Seconds of every way, by turns, after one turn that counts for nothing."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.vocab_size, (batch, prompt), generator=generator)
    ways = ways_of(model)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, context in ways.items():
            with context():
                first, whole = _seconds(model, ids, 1), _seconds(model, ids, new)
            if run:
                found[name].append((first, (whole - first) / (new - 1)))
    return [
        Times(name, *(statistics.median(column) for column in zip(*pairs, strict=True)))
        for name, pairs in found.items()
    ]


def _seconds(model: Any, ids: Tensor, new: int) -> float:
    start = time.perf_counter()
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    seconds = time.perf_counter() - start
    if tokens.shape[1] != ids.shape[1] + new:
        raise RuntimeError(f"{tokens.shape[1]} tokens came, {ids.shape[1] + new} were asked for")
    return seconds


def table(results: dict[str, list[Times]]) -> str:
    """Markdown: a row a model and way, ratios to stock."""
    lines = [
        "| model | way | prompt, s | of stock | a token, ms | of stock |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        stock = rows[0]
        lines += [
            f"| {name} | {row.way} | {row.prompt:.3f} | {row.prompt / stock.prompt:.2f} | "
            f"{1000 * row.step:.1f} | {row.step / stock.step:.2f} |"
            for row in rows
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a model and way")
    parser.add_argument("--prompt", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--new", type=int, default=64, help="tokens made (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="texts (default: 1)")
    parser.add_argument("--runs", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--smoke", action="store_true", help="tiny models, to try the script")
    args = parser.parse_args(argv)
    for name, least in (("prompt", 1), ("new", 2), ("batch", 1), ("runs", 1)):
        validate_int(name, getattr(args, name), least)
    sizes = (64, 2, 100) if args.smoke else (768, 24, 50280)
    torch.manual_seed(0)
    results = {
        name: measured(make(*sizes), args.prompt, args.new, args.batch, args.runs)
        for name, make in MODELS.items()
    }
    report = (
        f"Width {sizes[0]}, {sizes[1]} layers, float32, {args.batch} text(s) of {args.prompt} "
        f"tokens, {args.new} new ones; median of {args.runs} turns; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {torch.get_num_threads()} threads.\n\n"
        f"{table(results)}\n"
    )
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
