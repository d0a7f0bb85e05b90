"""What does a steering vector do at each site and layer, and what does it cost, beside random ones?

Vectors from the contrastive texts of ``steering.py`` (about the sea, about a house), means over
their tokens; the probability of " sea" is followed after its prompts. Cost: KL(clean || steered) on
the suite's built-in texts. Every vector stands beside random ones of the same norm.

How to run::

    python benchmarks/steering.py --save
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

from benchmarks.commands import RESULTS_FOLDER, add_model_option, benchmark_parser, keep
from causal_interventions.steering_vectors import SITES
from mamba_mixers.sites import find_mixers
from steering import HOUSE, PROMPTS, SEA, Steering
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.progress import progress

RESULTS = RESULTS_FOLDER / "steering.md"

COEFFICIENTS = (-4.0, 4.0)


def measured(
    steering: Steering, layers: Sequence[int], token: str, num_random: int
) -> list[dict[str, Any]]:
    """Rows of the curves of every site and layer."""
    found = []
    places = [(site, layer) for site in SITES for layer in layers]
    for site, layer in progress(places, desc="sites"):
        vector = steering.vector(SEA, HOUSE, layer, site)
        curve = steering.curve(
            vector, PROMPTS, token=token, coefficients=COEFFICIENTS, num_random=num_random
        )
        found += [{"site": site, "layer": layer, **row} for row in curve.rows()]
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a site, layer and coefficient."""
    lines = [
        "| site | layer | coefficient | target, nats | random vectors | p | KL, nats | random |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ends = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        lines.append(
            f"| {row['site']} | {row['layer']} | {row['coefficient']:g} | "
            f"{row['target_change']:+.2f}{ends} | {row['random_low']:+.2f} to "
            f"{row['random_high']:+.2f} | {row['p']:.3f} | {row['kl']:.3f} | "
            f"{row['random_kl']:.3f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save keep it under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(__doc__, "a table: a row a site, layer and coefficient")
    add_model_option(parser)
    parser.add_argument("--token", default=" sea", help="token followed (default: ' sea')")
    parser.add_argument("--num-random", type=int, default=20, metavar="N")
    args = parser.parse_args(argv)
    validate_int("num-random", args.num_random, 20)
    steering = Steering(args.model)
    layers = list(find_mixers(steering.model))
    chosen = sorted({layers[len(layers) * part // 4] for part in (1, 2, 3)})
    rows = measured(steering, chosen, args.token, args.num_random)
    report = (
        f"Change of ln p({args.token!r}) after {len(PROMPTS)} prompts, steered minus clean, with "
        f"its 95 % interval over prompts; lowest and highest of {args.num_random} random vectors "
        "of the same norm; p: share of these, and of the vector itself, that move it as far. KL on "
        f"other texts, and its mean over the random vectors.\n\n{table(rows)}\n"
    )
    print(report)
    if args.save:
        keep(RESULTS, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
