"""Cases that verdicts have to survive: few samples, few twins, and weights without structure.

- Intervals: how often the 95 % interval of a mean holds it, by number of samples and distribution.
- Differences: how often `exceeds_zero` finds a mean above 0 that is not there.
- Twins: how often a model exceeds the bound of its like.
- Permuted demo models: the demo model with the entries of every weight tensor permuted, of which
  nothing that it learned is left. Each stands beside the others as its twins of permuted weights.
  That is no approximation: permuting a permuted model again gives one more permutation of the same
  entries, uniform and independent, so that the others are distributed as its own twins would be.
  Its fresh twins depend on the configuration alone, and are those of the demo model.

`calibration.py` puts the tables into its report.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np

# The suite is flat: its folder has to be on the path when this file is imported by a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis_pipelines.analysis_results import Settings
from benchmarks.commands import kept_part
from benchmarks.passages import encoded_passages
from corrected_recursive_ssm_attention_analyzer import findings_alone
from mamba_mixers.untrained_twins import untrained_twin
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.provenance import DEMO_MODEL_PATH
from token_statistics.description import FloatArray
from token_statistics.findings import SUPPORTED, Finding, judged
from token_statistics.intervals import mean_interval
from token_statistics.twin_bounds import FRESH, PERMUTED, beside_twins_of
from token_statistics.verdict_rules import exceeds_zero

Draw = Callable[[np.random.Generator, int], FloatArray]

DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(1.0, n), 1.0),
    "lognormal": (lambda rng, n: rng.lognormal(0.0, 1.0, n), math.exp(0.5)),
}
"""By name: how it is drawn, and its mean."""

SAMPLES = (2, 3, 5, 8, 10, 12, 16, 20, 100)
DIFFERENCES = (5, 8, 10, 12, 16)
TWINS = (2, 5, 19)
PASSAGES, PASSAGE_TOKENS = 12, 64
LAYERS = [0, 3, 6, 9, 12]


def coverage(draw: Draw, mean: float, n: int, seeds: int) -> float | None:
    """Share of seeds in which the 95 % interval of n samples holds their true mean; None where
    there is no interval."""
    found = [mean_interval(draw(np.random.default_rng(seed), n)) for seed in range(seeds)]
    given = [one for one in found if one.low is not None and one.high is not None]
    held = [(one.low or 0) <= mean <= (one.high or 0) for one in given]
    return float(np.mean(held)) if held else None


def coverage_rows(seeds: int) -> dict[str, list[float | None]]:
    """By number of samples: coverage for each of DISTRIBUTIONS."""
    return {str(n): [coverage(*kind, n, seeds) for kind in DISTRIBUTIONS.values()] for n in SAMPLES}


def above_zero(draw: Draw, mean: float, n: int, seeds: int, sign: float = 1.0) -> float | None:
    """Share of seeds in which differences of mean 0 are claimed to be above it; None where so few
    are too little data."""
    claimed = 0
    for seed in range(seeds):
        differences = sign * (draw(np.random.default_rng(seed), n) - mean)
        row = exceeds_zero("", "", {"a": differences}, "", "samples")
        if row.value is None:
            return None
        claimed += row.above_chance
    return claimed / seeds


def above_zero_rows(seeds: int) -> dict[str, list[float | None]]:
    """By number of samples: false claims for DISTRIBUTIONS, and mirrored (long left tail)."""
    mirrored = list(DISTRIBUTIONS.values())[1:]
    return {
        str(n): [above_zero(*kind, n, seeds) for kind in DISTRIBUTIONS.values()]
        + [above_zero(*kind, n, seeds, sign=-1.0) for kind in mirrored]
        for n in DIFFERENCES
    }


def above_its_like(draw: Draw, twins: int, seeds: int) -> float:
    """Share of seeds in which one of ``twins`` + 1 draws exceeds the bound of the others."""
    rows = (draw(np.random.default_rng(seed), twins + 1) for seed in range(seeds))
    return float(np.mean([beside_twins_of("", row[0], row[1:]).exceeded for row in rows]))


def twin_rows(seeds: int) -> dict[str, list[float]]:
    """By number of twins: false claims for each of DISTRIBUTIONS, on a linear scale."""
    return {
        str(m): [above_its_like(draw, m, seeds) for draw, _ in DISTRIBUTIONS.values()]
        for m in TWINS
    }


class PermutedDemo(NamedTuple):
    """Key findings of demo models without structure, by seed of their weights."""

    permuted: list[list[Finding]]
    fresh: list[list[Finding]]


def permuted_demo_findings(
    num_permuted: int = 20,
    num_fresh: int = 19,
    *,
    tokens: int = PASSAGE_TOKENS,
    parts: Path | None = None,
) -> PermutedDemo:
    """Findings of permuted demo models and of fresh twins, on passages of Python's own manual.

    ``parts``: where what each model gives is kept. Cost: an analysis of PASSAGES short passages in
    LAYERS for each model.
    """
    model, tokenizer = load_model(DEMO_MODEL_PATH), load_tokenizer(DEMO_MODEL_PATH)
    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    encoded = encoded_passages(text, tokenizer, PASSAGES, tokens)
    settings = Settings(list(LAYERS))

    def findings_of(kind: str, seed: int) -> list[Finding]:
        def measured() -> list[dict]:
            one = untrained_twin(model, seed, kind)
            return [row.to_dict() for row in findings_alone(one, encoded, tokenizer, settings)]

        rows = kept_part(parts, f"demo_{kind.split()[0]}_{seed}", measured)
        return [Finding.from_dict(row) for row in rows]

    return PermutedDemo(
        [findings_of(PERMUTED, i) for i in progress(range(num_permuted), desc="permuted models")],
        [findings_of(FRESH, 1000 + i) for i in progress(range(num_fresh), desc="fresh models")],
    )


class Survival(NamedTuple):
    """In how many permuted models a claim is made."""

    both: int
    """beside twins of both kinds, over all claims of the run: "supported" """
    fresh_alone: int
    """above its null and the bound of fresh twins"""
    chance: int
    """above its null"""
    models: int
    """models in which the claim has a value"""


def surviving_claims(found: PermutedDemo) -> dict[str, Survival]:
    """By claim about training that has a value somewhere: in how many models it survives.

    Each permuted model stands beside the others and the fresh ones.
    """
    beside = [
        judged(one, {FRESH: found.fresh, PERMUTED: [*found.permuted[:i], *found.permuted[i + 1 :]]})
        for i, one in enumerate(found.permuted)
    ]
    result = {}
    for i, first in enumerate(found.permuted[0]):
        rows = [(one[i], verdicts[i]) for one, verdicts in zip(found.permuted, beside, strict=True)]
        rows = [(alone, judged_) for alone, judged_ in rows if alone.value is not None]
        if first.learned and rows:
            result[first.claim] = Survival(
                sum(judged_.verdict == SUPPORTED for _, judged_ in rows),
                sum(alone.above_chance and _exceeds(judged_, FRESH) for alone, judged_ in rows),
                sum(alone.above_chance for alone, _ in rows),
                len(rows),
            )
    return result


def _exceeds(finding: Finding, kind: str) -> bool:
    return any(twin.kind == kind and twin.exceeded for twin in finding.twins)


def survivors_table(survived: Mapping[str, Survival]) -> str:
    """Markdown: a row a claim, and the mean over claims."""
    rows = {
        claim: [f"{row.both} of {row.models}", f"{row.fresh_alone}", f"{row.chance}"]
        for claim, row in survived.items()
    }
    shares = np.array([[*row[:3]] for row in survived.values()], dtype=float)
    shares /= np.array([[row.models] for row in survived.values()])
    rows["mean of all claims"] = [f"{share:.1%}" for share in shares.mean(axis=0)]
    return table(["claim", "supported", "above fresh twins alone", "by its null alone"], rows)


def sections(
    seeds: int, num_permuted: int = 20, num_fresh: int = 19, parts: Path | None = None
) -> list[str]:
    """The cases in Markdown, paragraphs and tables; ``parts``: where what is done is kept."""
    names = list(DISTRIBUTIONS)
    mirrored = [f"{name}, mirrored" for name in names[1:]]

    def kept(name: str, rows: Callable[[int], Any]) -> Any:
        return kept_part(parts, f"{name}_{seeds}", lambda: rows(seeds))

    return [
        f"**Intervals**: share of {seeds:,} seeds in which the 95 % interval holds the mean; none "
        "is given below 5 samples.",
        table(["samples", *names], percents(kept("coverage", coverage_rows))),
        "**Differences**: share of seeds in which `exceeds_zero` claims a mean above 0 that is 0.",
        table(["samples", *names, *mirrored], percents(kept("differences", above_zero_rows))),
        "**Bounds of twins**: share of seeds in which a model exceeds the bound of its like.",
        table(["twins", *names], percents(kept("bounds", twin_rows))),
        f"**Permuted demo models**: {num_permuted} demo models with the entries of every weight "
        f"tensor permuted, on {PASSAGES} passages of {PASSAGE_TOKENS} tokens in layers {LAYERS}, "
        f"beside {num_permuted - 1} of their like and {num_fresh} with fresh weights: in how many "
        "of them each claim is made. Claims about shapes, and those without a value, are left out.",
        survivors_table(
            surviving_claims(permuted_demo_findings(num_permuted, num_fresh, parts=parts))
        ),
    ]


def percents(rows: Mapping[str, Sequence[float | None]]) -> dict[str, list[str]]:
    """Shares as text; None is refused."""
    return {
        name: ["refused" if share is None else f"{share:.1%}" for share in row]
        for name, row in rows.items()
    }


def table(head: Sequence[str], rows: Mapping[str, Iterable[str]]) -> str:
    """Markdown: a row a name."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)
