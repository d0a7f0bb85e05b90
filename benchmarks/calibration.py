"""How often the suite's statistics find what is not there, and how often what is.

On white noise, on autocorrelated noise (AR(1), 0.95) and on models that were never trained: the
share of seeds with a false finding, beside what the same data give without correction. On planted
correlations: the share that is found.

- Noise: two layers of independent series. A finding is a statistic above its null (the rule of
  `findings.exceeds_null`), or a pair of channels at a false discovery rate of 5 %. Uncorrected: a
  pair with p <= 0.05 by Student's t over all tokens, which is how such findings are often made.
- Untrained models: the main analysis of each, its findings beside those of 19 others as its twins
  of fresh weights and of 19 more as those of permuted weights, for entries that are drawn alike
  are distributed as before when they are permuted. Uncorrected: the same claims by their nulls
  alone, where what architecture and texts bring about counts as found.
- Cases: what passes for correlation where texts are related, where the position is shared, and
  where tails are heavy: see `noise_cases`.
- Few samples, few twins, permuted demo models: see `verdict_cases`.
- Planted: pairs of channels that correlate by a given amount, in white noise, and small models in
  which half-lives, gates, copies and neurons are known: see `planted_models`.

With --parts a run that was stopped goes on with the table it had come to.

How to run (about half an hour on one core, a third of it for the permuted demo models)::

    python benchmarks/calibration.py --save
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal, stats
from transformers import MambaConfig, MambaForCausalLM

from analysis_pipelines.analysis_results import Settings
from benchmarks import noise_cases, verdict_cases
from benchmarks.commands import (
    RESULTS_FOLDER,
    add_parts_option,
    benchmark_parser,
    keep,
    kept_part,
)
from benchmarks.noise_cases import LABELS, PAIR_LABEL, TESTS, above
from benchmarks.planted_models import PLANTED
from corrected_recursive_ssm_attention_analyzer import findings_alone
from mamba_mixers.untrained_twins import ENOUGH_TWINS, untrained_twin
from suite_plumbing.arguments import validate_int
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.texts import EXAMPLE_TEXTS, encode_texts
from token_statistics.association import pearson_matrix, pearson_p_values, spearman
from token_statistics.autocorrelation import mean_autocorrelation
from token_statistics.channel_correlations import (
    CrossLayerCorrelation,
    PooledActivations,
    cross_layer_correlation,
)
from token_statistics.description import FloatArray
from token_statistics.findings import SUPPORTED, Finding, judged
from token_statistics.streamed_correlations import StreamedCorrelations
from token_statistics.time_shift_nulls import NUM_SHIFTS, spearman_shift_test
from token_statistics.twin_bounds import FRESH, PERMUTED

RESULTS = RESULTS_FOLDER / "calibration.md"
ALPHA = 0.05
CHANNELS = 16  # of each layer
NOISE_TOKENS = 1000
CORPUS_TEXTS = 5  # of as many tokens
RHYTHM_LAGS = 32
NOISE = {"white noise": 0.0, "AR(1) noise, 0.95": 0.95}
STRENGTHS = (0.3, 0.5, 0.8)
PLANTED_PAIRS = 4  # of CHANNELS^2
MOST_UNTRAINED = 60  # models, at three seconds each
POWER_TOKENS = (200, 1000, 5000)


def ar1(phi: float, tokens: int, channels: int, rng: np.random.Generator) -> FloatArray:
    """Stationary AR(1) series (tokens, channels) of unit innovations."""
    noise = rng.standard_normal((tokens + 300, channels))
    return np.asarray(signal.lfilter([1.0], [1.0, -phi], noise, axis=0))[300:]


def correlated(x: FloatArray, y: FloatArray, seed: int) -> CrossLayerCorrelation:
    """Two layers on one text."""
    layers = (PooledActivations(v, (len(v),)) for v in (x, y))
    return cross_layer_correlation(*layers, seed=seed)


def false_on_noise(phi: float, seed: int) -> dict[str, tuple[bool, bool]]:
    """By kind of finding: whether it was made on independent noise, with and without correction."""
    rng = np.random.default_rng(seed)
    x, y = (ar1(phi, NOISE_TOKENS, CHANNELS, rng) for _ in range(2))
    found = correlated(x, y, seed)
    uncorrected = _uncorrected(x, y)
    shown = {
        LABELS[name]: (above(getattr(found, name).to_dict()), bool(uncorrected.mean() > ALPHA))
        for name in TESTS
    }
    shown[PAIR_LABEL] = (
        bool(found.significant_share),
        bool(uncorrected.any()),
    )
    single = spearman_shift_test(x[:, 0], y[:, 0], [NOISE_TOKENS], seed=seed)
    plain = float(pearson_p_values([spearman(x[:, 0], y[:, 0])], NOISE_TOKENS)[0])
    shown["rank correlation of one pair above its null"] = (
        above(single.to_dict()),
        plain <= ALPHA,
    )
    shown |= false_over_corpus(phi, seed)
    swing = mean_autocorrelation(
        x, [NOISE_TOKENS], RHYTHM_LAGS, num_shuffles=NUM_SHIFTS, seed=seed
    ).rhythm
    shown["a period in the spectrum of a layer"] = (
        swing.period is not None,
        swing.rise is not None,
    )
    return shown


def false_over_corpus(phi: float, seed: int) -> dict[str, tuple[bool, bool]]:
    """The same of statistics over a corpus of CORPUS_TEXTS texts that come one by one."""
    rng = np.random.default_rng([seed, 1])  # apart from the sums' own draws
    sums, uncorrected = StreamedCorrelations([(0, 1)], batch_tokens=1, seed=seed), []
    for _ in range(CORPUS_TEXTS):
        x, y = (ar1(phi, NOISE_TOKENS, CHANNELS, rng) for _ in range(2))
        sums.update({0: torch.from_numpy(x), 1: torch.from_numpy(y)}, [NOISE_TOKENS])
        uncorrected.append(_uncorrected(x, y))
    tests = sums.results()["layer_0_to_1"].tests
    many = bool(np.mean(uncorrected) > ALPHA)
    return {
        f"{LABELS[name]}, over a corpus": (above(tests[name].to_dict()), many) for name in TESTS
    }


def _uncorrected(x: FloatArray, y: FloatArray) -> NDArray[np.bool_]:
    """By pair of channels: p <= 0.05 by Student's t over all tokens."""
    return pearson_p_values(pearson_matrix(x, y), len(x)) <= ALPHA


def case_table(num_seeds: int, parts: Path | None = None) -> str:
    """Markdown: share of seeds with a false finding, by case; of those that were tested."""
    ways = {
        **dict.fromkeys(noise_cases.CASES, noise_cases.false_in_case),
        **dict.fromkeys(noise_cases.OTHER_PASSAGES, noise_cases.false_on_other_passages),
    }
    rows = {}
    for case, way in ways.items():
        seeds = progress(range(num_seeds), desc=case)
        made = partial(_each, partial(way, case), seeds)
        rows[case] = _case_row(kept_part(parts, _part_name(case, num_seeds), made))
    labels = [*map(LABELS.__getitem__, TESTS), PAIR_LABEL]
    return _table(["case", *labels, "tested"], rows)


def _each(way: Callable[[int], Any], seeds: Iterable[int]) -> list[Any]:
    return [way(seed) for seed in seeds]


def _part_name(name: str, num_seeds: int) -> str:
    return f"{re.sub('[^a-z0-9]+', '_', name.lower())}_{num_seeds}"


def _case_row(found: Sequence[Mapping[str, bool | None]]) -> list[str]:
    tested = [one for one in found if None not in one.values()]
    if not tested:
        return [*("refused" for _ in found[0]), f"0 of {len(found)}"]
    shares = [_percent(float(np.mean([bool(one[label]) for one in tested]))) for label in found[0]]
    return [*shares, f"{len(tested)} of {len(found)}"]


def planted_table(num_seeds: int, parts: Path | None = None) -> str:
    """Markdown: share of what was planted in small models that is found."""
    rows = {}
    for name, way in PLANTED.items():
        seeds = progress(range(num_seeds), desc=name)
        found = kept_part(parts, _part_name(name, num_seeds), partial(_each, way, seeds))
        rows[name] = [_percent(float(np.mean(found)))]
    return _table(["planted", "found"], rows)


def untrained_findings(
    seeds: Sequence[int], num_tokens: int = 60, parts: Path | None = None
) -> list[list[Finding]]:
    """The key findings of untrained models of one configuration on the built-in texts."""
    tokenizer = load_tokenizer(DEMO_MODEL_PATH)
    encoded = encode_texts(tokenizer, list(EXAMPLE_TEXTS), num_tokens)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=5, state_size=4
    )
    with torch.random.fork_rng():
        model = MambaForCausalLM(config)
    settings = Settings([0, 1, 2, 3, 4])
    found = []
    for seed in progress(seeds, desc="untrained models"):

        def measured(seed: int = seed) -> list[dict[str, Any]]:
            twin = untrained_twin(model, seed)
            return [row.to_dict() for row in findings_alone(twin, encoded, tokenizer, settings)]

        rows = kept_part(parts, f"untrained_{num_tokens}_{seed}", measured)
        found.append([Finding.from_dict(row) for row in rows])
    return found


def false_on_untrained(found: Sequence[Sequence[Finding]]) -> dict[str, tuple[float, float]]:
    """By claim: share of models in which it is supported beside 19 others of each kind, and in
    which it is above its null.

    Claims about shapes, and those that the texts leave open, are left out.
    """
    rng = np.random.default_rng(0)
    beside = []
    for i, findings in enumerate(found):
        others = rng.choice(np.delete(np.arange(len(found)), i), 2 * ENOUGH_TWINS, replace=False)
        fresh, permuted = ([found[j] for j in part] for part in np.split(others, 2))
        beside.append(judged(findings, {FRESH: fresh, PERMUTED: permuted}))
    shares = {}
    for i, claim in enumerate(finding.claim for finding in found[0]):
        if found[0][i].learned and any(findings[i].value is not None for findings in found):
            shares[claim] = (
                float(np.mean([findings[i].verdict == SUPPORTED for findings in beside])),
                float(np.mean([findings[i].above_chance for findings in found])),
            )
    return shares


def power(rho: float, tokens: int, seed: int) -> tuple[float, float]:
    """Share of the planted pairs that are found, and of false ones among all that are."""
    rng = np.random.default_rng(seed)
    x, y = (ar1(0.0, tokens, CHANNELS, rng) for _ in range(2))
    planted = range(PLANTED_PAIRS)
    for i in planted:
        y[:, i] = rho * x[:, i] + np.sqrt(1 - rho**2) * y[:, i]
    pairs = [p for p in correlated(x, y, seed).top_pairs if p.adjusted_p <= ALPHA]
    true = sum(p.channel_a == p.channel_b and p.channel_a in planted for p in pairs)
    return true / PLANTED_PAIRS, (len(pairs) - true) / max(len(pairs), 1)


def noise_table(
    num_seeds: int, way: Callable[..., dict] = false_on_noise, parts: Path | None = None
) -> str:
    """Markdown: share of seeds with a false finding, by noise and kind of finding."""
    columns, rows = [], {}
    for name, phi in NOISE.items():
        made = partial(_each, partial(way, phi), progress(range(num_seeds), desc=name))
        results = kept_part(parts, _part_name(name, num_seeds), made)
        columns += [name, "uncorrected"]
        for label in results[0]:
            shares = np.mean([result[label] for result in results], axis=0)
            rows.setdefault(label, []).extend(shares.tolist())
    return _table(["finding", *columns], {label: map(_percent, row) for label, row in rows.items()})


def untrained_table(shares: Mapping[str, tuple[float, float]]) -> str:
    """Markdown: share of untrained models in which each claim is supported."""
    rows = {claim: map(_percent, pair) for claim, pair in shares.items()}
    mean = np.mean(list(shares.values()), axis=0)
    return _table(
        ["claim", f"beside {ENOUGH_TWINS} twins of each kind", "by its null alone"],
        {**rows, "mean of all claims": map(_percent, mean)},
    )


def power_table(num_seeds: int, parts: Path | None = None) -> str:
    """Markdown: share of planted correlations that are found, by strength and tokens."""
    rows = {}
    for tokens in POWER_TOKENS:
        cells = []
        for rho in STRENGTHS:
            made = partial(_each, partial(power, rho, tokens), range(num_seeds))
            name = _part_name(f"power {rho} {tokens}", num_seeds)
            found = np.mean(kept_part(parts, name, made), axis=0)
            cells.append(f"{found[0]:.0%} (false: {found[1]:.1%})")
        rows[f"{tokens:,}"] = cells
    return _table(["tokens", *(f"planted r = {rho}" for rho in STRENGTHS)], rows)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _table(head: Sequence[str], rows: Mapping[str, Iterable[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines)


def report(num_seeds: int, parts: Path | None = None) -> str:
    """The whole calibration in Markdown."""
    limit, far = (stats.binom.ppf(q, num_seeds, ALPHA) / num_seeds for q in (0.975, 0.999))
    num_models = min(num_seeds, MOST_UNTRAINED)
    found = untrained_findings(range(num_models), parts=parts)
    return "\n\n".join(
        [
            f"False findings over {num_seeds} seeds; at a true rate of 5 %, up to {limit:.1%} of "
            f"the seeds is within chance, and more than {far:.1%} comes once in 1,000 times. A "
            "statistic that is above its null by the rule of claims is so in 2.5 % where nothing "
            "is.",
            f"**Noise**: two layers of {CHANNELS} independent series, {NOISE_TOKENS:,} tokens. "
            "Uncorrected, for statistics of all pairs: more than 5 % of the pairs have p <= 0.05; "
            "for a pair: any has; for one pair: it has. Over a corpus: "
            f"{CORPUS_TEXTS} such texts, uncorrected text by text. For a period: a frequency has "
            "more power than shuffled tokens have at any.",
            noise_table(num_seeds, parts=parts),
            f"**Cases**: the same with two layers of {noise_cases.CHANNELS} channels, and layers "
            "of the demo model that read other passages; cases that a null of time-shifts alone "
            "takes for findings.",
            case_table(num_seeds, parts),
            "Slow noise on texts too short for it (AR(1) 0.95 on texts of a few hundred tokens) is "
            "not tested at all: see `token_statistics.time_shift_nulls.why_too_slow`.",
            f"**Untrained models**: {num_models} of one configuration (5 layers of d_model 24) on "
            "three texts of up to 60 tokens; share in which a claim is supported.",
            untrained_table(false_on_untrained(found)),
            f"**Power**: {PLANTED_PAIRS} of {CHANNELS**2} pairs planted in white noise, "
            f"{num_seeds} seeds; share found at a false discovery rate of 5 %, and share of "
            "false pairs among those found, mean over seeds.",
            power_table(num_seeds, parts),
            f"**Planted**: small models with weights set by hand, {num_seeds} seeds.",
            planted_table(num_seeds, parts),
            *verdict_cases.sections(10 * num_seeds, parts=parts),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(
        __doc__, "tables: noise, untrained models, power, few samples, permuted models"
    )
    parser.add_argument("--seeds", type=int, default=200, help="of each case (default: 200)")
    add_parts_option(parser)
    args = parser.parse_args(argv)
    seeds = validate_int("seeds", args.seeds, 2 * ENOUGH_TWINS + 1)
    text = report(seeds, args.parts)
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
