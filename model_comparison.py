"""The same texts through several models: their attention, their memory and their layers compared.

Mambas have implicit attention, transformers softmax attention, hybrids both, and each is measured
alike: how it falls off with distance, its entropy, its share on the first token and on the token
itself. Every pair of layers of every two models is compared: maps by rank agreement, the residual
stream by CKA (``token_statistics.layer_likeness``). The natural pair is a Mamba beside a GPT-NeoX:
one tokenizer, both trained on the Pile. Models with other tokenizers are compared over the pieces
of a text that their tokens have in common (``analysis_pipelines.shared_pieces``).

What can be said of it. Any two models that read the same tokens are alike beyond coincidence in
time, trained or not, for their layers carry the tokens. So a value above its null of time shifts
is no finding here; a finding compares with untrained twins, the same models with fresh and with
permuted weights, and without enough of both nothing is claimed.

From a shell: ``python model_comparison.py --model demo_model --model path/to/another``.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import model_comparison_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(model_comparison_options)

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.comparison_readings import (
    KERNEL_LAGS,
    MAP_MEASURES,
    MapReadings,
    PairValues,
    Shifts,
    Subject,
    map_measures,
    measure,
    num_pieces,
    shifts_for,
    subjects_of,
    twins_of,
)
from analysis_pipelines.shared_pieces import Pieces, shared_pieces
from mamba_mixers.replay_check import REPLAY_TOLERANCE, replay_tolerance
from mamba_mixers.untrained_twins import ENOUGH_TWINS, check_twins, untrained_twin
from recursive_visualizer import write_figures
from result_views.report.comparison_report import TABLE_COLUMNS, comparison_rows, comparison_section
from result_views.report.tables import shown
from result_views.terminal_lines import terminal_table, wrapped
from suite_plumbing.arguments import validate_int
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.commands import (
    command_line,
    run_main,
    texts_from_options,
)
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.output_folders import claim_output_dir, owning
from suite_plumbing.progress import configure_logging, progress, set_seed
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    StrPath,
    check_output_dir,
    finite_or_none,
    to_jsonable,
    write_csv,
    write_json,
    write_text,
    written_together,
)
from suite_plumbing.result_reading import run_mark
from suite_plumbing.texts import (
    EncodedText,
    check_texts,
    encode_texts,
    read_texts,
    repeated_texts,
)
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, over_run, undecided
from token_statistics.layer_likeness import (
    MIN_SOURCES,
    best_match,
    over_texts,
    plain,
    window_size,
    with_null,
)
from token_statistics.text_groups import group_means
from token_statistics.time_shift_nulls import MIN_TOKENS, against_null, undefined
from token_statistics.twin_bounds import FRESH, TWIN_KINDS
from token_statistics.verdict_rules import exceeds_null

logger = logging.getLogger(__name__)


MIN_PIECES = 4
"""Of each text: a debiased CKA of fewer is undefined."""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """All that the results are written from."""

    subjects: list[Subject]
    encoded: dict[str, list[EncodedText]]
    pieces: list[dict[str, Pieces]]
    shifts: Shifts
    found: MapReadings
    twins: dict[str, list[MapReadings]]
    """by kind"""

    @property
    def num_pieces(self) -> list[int]:
        """Pieces of every text."""
        return [num_pieces(one) for one in self.pieces]

    @property
    def groups(self) -> Sequence[int]:
        """Group of related texts of every text."""
        return self.shifts.groups

    def samples(self, counts: Sequence[int]) -> int:
        """The counts of every text added up, those of a group as one: their mean."""
        return round(float(np.sum(group_means([[n] for n in counts], self.groups))))


def compare_models(
    models: Sequence[PreTrainedModel | StrPath],
    texts: str | Sequence[str],
    *,
    tokenizers: Sequence[PreTrainedTokenizerBase | StrPath | None] | None = None,
    layer_indices: Sequence[int] | str | None = "all",
    max_sequence_length: int = 512,
    num_twins: int = 0,
    seed: int = 0,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare two or more models on the same texts; the results are strict JSON.

    ``tokenizers``: one for each model, None for the one beside its weights. ``layer_indices`` are
    taken in every model; "all" are all layers, None the suite's default ones. ``num_twins``: how
    many untrained twins of each kind of every model are compared likewise, ENOUGH_TWINS for
    verdicts.

    Keys: ``models``, ``texts``, ``unit`` ("tokens", or "pieces" that tokenizers share),
    ``attention`` by model and site, ``uniform`` (the same measures of attention spread evenly over
    the past), ``pairs``, ``findings``, ``table``, ``self_check``, ``provenance``.

    A text that a model reads as it read an earlier one is left out, with a warning.

    Raises ValueError as ``comparison_readings.subjects_of``, for texts that ``encode_texts``
    refuses or with fewer than MIN_PIECES pieces, for tokenizers that cannot be aligned, and for
    twins that cannot be made. Cost:
    for each text a forward pass or two a model, a map of magnitudes for each SSM layer, l sorts of
    each map; again for each of the 2 num_twins twins.
    """
    subjects = subjects_of(models, tokenizers, layer_indices, max_sequence_length)
    count = validate_int("num_twins", num_twins, 0)
    for subject in subjects:
        check_twins(subject.model, count)
    given = check_texts(texts)
    encoded = {one.name: _encoded(one, given) for one in subjects}
    numbers = _distinct(encoded)
    encoded = {name: [read[number] for number in numbers] for name, read in encoded.items()}
    pieces = [
        _comparable({name: read[place] for name, read in encoded.items()}, number)
        for place, number in enumerate(numbers)
    ]
    groups = [one.group for one in read_texts(encoded[subjects[0].name])]
    shifts = shifts_for(pieces, seed, groups)
    found = measure(subjects, encoded, pieces, shifts)
    twins = {
        kind: [
            measure(twins_of(subjects, number, seed, kind), encoded, pieces, shifts)
            for number in progress(range(count), desc=f"twins of {kind}")
        ]
        for kind in TWIN_KINDS
    }
    compared = _Comparison(subjects, encoded, pieces, shifts, found, twins)
    return _results(compared, seed, command)


def _encoded(subject: Subject, texts: Sequence[str]) -> list[EncodedText]:
    size = subject.model.config.vocab_size
    return encode_texts(
        subject.tokenizer, texts, subject.max_tokens, vocab_size=size, reader=subject.name
    )


def _distinct(encoded: Mapping[str, Sequence[EncodedText]]) -> list[int]:
    """Numbers of the texts that no model reads as it read an earlier one."""
    again = {
        index: first for read in encoded.values() for index, first in repeated_texts(read).items()
    }
    for index, first in sorted(again.items()):
        logger.warning("text %d is text %d again and does not count a second time", index, first)
    return [index for index in range(len(next(iter(encoded.values())))) if index not in again]


def _comparable(encodings: dict[str, EncodedText], number: int) -> dict[str, Pieces]:
    """The pieces of one text; ValueError for too few of them."""
    pieces = shared_pieces(encodings, number)
    if (count := num_pieces(pieces)) < MIN_PIECES:
        raise ValueError(
            f"text {number} has {count} tokens, or pieces that the tokenizers share; a comparison "
            f"needs {MIN_PIECES} or more of each text"
        )
    return pieces


def findings_on(
    pair: tuple[str, str],
    place: int,
    found: PairValues,
    twins: Mapping[str, Sequence[PairValues]],
    num_tokens: int,
    groups: Sequence[int] | None = None,
) -> list[Finding]:
    """Whether two models' attention, and their layers, are alike, and more than their twins'.

    ``place`` is the pair's in the results, ``twins`` are by kind, ``num_tokens`` that of all texts,
    and ``groups`` the related ones among them, which count as one. A statistic has to exceed its
    null of time shifts, and the bounds of twins of both kinds. Too little data: fewer than
    MIN_TOKENS tokens or ENOUGH_TWINS twins, or an undefined statistic.
    """
    rows = _likenesses(pair, place, found, groups)
    if few := _why_no_claim(num_tokens, min(map(len, twins.values()), default=0)):
        return [
            undecided(one.claim, one.statistic, "tokens", few, one.path, rule=one.rule,
                      n=num_tokens)
            for one in rows
        ]  # fmt: skip
    beside = {
        kind: [_likenesses(pair, place, twin, groups) for twin in of] for kind, of in twins.items()
    }
    return [
        replace(one, n=num_tokens).beside({kind: [t[i] for t in of] for kind, of in beside.items()})
        for i, one in enumerate(rows)
    ]


def _likenesses(
    pair: tuple[str, str], place: int, values: PairValues, groups: Sequence[int] | None
) -> list[Finding]:
    """The two claims, tried against time shifts alone."""
    both = f"{pair[0]} and {pair[1]}"
    windowed, draws = _means(values.windowed, values.windowed_draws, groups)
    # What the lag alone gives is no agreement: the windowed null keeps it, and it is taken off.
    by_lag = draws.mean(axis=0) if len(draws) else np.nan
    likeness, shifted = _means(values.cka, values.cka_draws, groups)
    return [
        exceeds_null(
            f"Attention of {both} agrees beyond distance, and more than without training",
            "windowed agreement of best-matching maps, over its mean at shifted times",
            _best_match_test(windowed - by_lag, draws - by_lag),
            f"pairs[{place}].agreement.windowed",
        ),
        exceeds_null(
            f"Layers of {both} are alike, and more than without training",
            "CKA of best-matching layers",
            _best_match_test(likeness, shifted),
            f"pairs[{place}].cka",
        ),
    ]


def _means(
    values: list[FloatArray], draws: list[FloatArray], groups: Sequence[int] | None
) -> tuple[FloatArray, FloatArray]:
    """Over texts: of a statistic (p, q), and of each of its draws (m, p, q)."""
    mean, _ = over_texts(values, groups)
    drawn = [over_texts(draw, groups)[0] for draw in zip(*draws, strict=True)]
    return mean, np.array(drawn).reshape(-1, *mean.shape)


def _best_match_test(value: FloatArray, draws: FloatArray) -> dict[str, Any]:
    return against_null(best_match(value), np.array([best_match(x) for x in draws]), 0).to_dict()


def _why_no_claim(num_tokens: int, num_twins: int) -> str | None:
    if num_tokens < MIN_TOKENS:
        return f"{num_tokens} tokens; a claim needs at least {MIN_TOKENS}"
    if num_twins < ENOUGH_TWINS:
        return (
            "models that read the same tokens are alike without any training; a claim needs "
            f"{ENOUGH_TWINS} untrained twins of each kind (--twins {ENOUGH_TWINS}), this run has "
            f"{num_twins}"
        )
    return None


def _results(compared: _Comparison, seed: int, command: Sequence[str] | None) -> dict[str, Any]:
    subjects, found = compared.subjects, compared.found
    tokens = compared.samples(compared.num_pieces)
    pairs = list(found.pairs.items())
    verdicts = [
        finding
        for place, (pair, values) in enumerate(pairs)
        for finding in findings_on(
            pair,
            place,
            values,
            {kind: [twin.pairs[pair] for twin in of] for kind, of in compared.twins.items()},
            tokens,
            compared.groups,
        )
    ]
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "unit": "tokens" if _are_tokens(compared.pieces) else "pieces",
        "models": {one.name: _described(one) for one in subjects},
        "texts": [_text(compared, index) for index in range(len(compared.pieces))],
        "num_twins": len(compared.twins[FRESH]),
        "attention": {one.name: _attention(one, compared) for one in subjects},
        "uniform": _uniform(compared.num_pieces),
        "pairs": [_pair(pair, values, compared) for pair, values in pairs],
        "findings": [finding.to_dict() for finding in over_run(verdicts)],
        "self_check": _self_check(compared),
    }
    results["table"] = comparison_rows(results)
    return to_jsonable(results | {"provenance": _provenance(compared, seed, command)})


def _are_tokens(pieces: Sequence[Mapping[str, Pieces]]) -> bool:
    return all(one.are_tokens for aligned in pieces for one in aligned.values())


def _described(subject: Subject) -> dict[str, Any]:
    return {
        "class": type(subject.model).__name__,
        "num_layers": subject.num_layers,
        "layers": subject.layers,
        "sites": [str(site) for site in subject.sites],
        "max_tokens": subject.max_tokens,
    }


def _text(compared: _Comparison, index: int) -> dict[str, Any]:
    """What every model read of a text, and how many of its own tokens that was."""
    encodings = {name: texts[index] for name, texts in compared.encoded.items()}
    aligned = compared.pieces[index]
    covered = next(iter(aligned.values())).num_characters
    return {
        "text": next(iter(encodings.values())).text,
        "num_characters_read": covered,
        "num_pieces": compared.num_pieces[index],
        "num_tokens": {name: len(one.groups) for name, one in aligned.items()},
        "num_tokens_before_truncation": {
            name: one.num_tokens_before_truncation for name, one in encodings.items()
        },
    }


def _attention(subject: Subject, compared: _Comparison) -> dict[str, Any]:
    """By site: each measure with its spread and that of twins of each kind, and the kernel."""
    name, groups = subject.name, compared.groups
    tokens = compared.samples(compared.num_pieces)
    by_text = compared.found.measures[name]
    mean, spread = over_texts(list(by_text), groups)
    untrained = {
        kind: [over_texts(list(twin.measures[name]), groups)[0] for twin in of]
        for kind, of in compared.twins.items()
    }
    kernel, kernel_spread = over_texts(list(compared.found.kernels[name]), groups)
    sections = {}
    for i, site in enumerate(subject.sites):
        measures = {
            measure_name: {
                "value": finite_or_none(mean[i, k]),
                "text_std": finite_or_none(spread[i, k]),
                "num_texts": int(np.isfinite(by_text[:, i, k]).sum()),
                "n": tokens,
                "untrained": {
                    kind: _beside_twins(mean[i, k], [twin[i, k] for twin in of], tokens)
                    for kind, of in untrained.items()
                },
            }
            for k, measure_name in enumerate(MAP_MEASURES)
        }
        kernels = {"kernel": plain(kernel[i : i + 1])[0],
                   "kernel_text_std": plain(kernel_spread[i : i + 1])[0]}  # fmt: skip
        sections[str(site)] = measures | kernels
    return sections


def _beside_twins(value: float, twins: Sequence[float], n: int) -> dict[str, Any]:
    """A measure beside the same of untrained twins of one kind, two-sided."""
    if len(twins) < ENOUGH_TWINS:
        return undefined(f"{len(twins)} untrained twins; a null needs {ENOUGH_TWINS}", n).to_dict()
    return against_null(value, np.array(twins), n).to_dict()


def _uniform(counts: Sequence[int]) -> dict[str, Any]:
    """The measures of attention that is the same for every token of the past, mean over texts."""
    ones = [torch.ones(n, n, dtype=torch.float32) for n in counts]
    shares = [one.tril() / torch.arange(1, len(one) + 1)[:, None] for one in ones]
    found = [map_measures(one) for one in shares]
    lags = min(KERNEL_LAGS, *(len(kernel) for _, kernel in found))
    mean, _ = over_texts([np.array([values]) for values, _ in found])
    return {
        **{name: finite_or_none(x) for name, x in zip(MAP_MEASURES, mean[0], strict=True)},
        "kernel": np.mean([kernel[:lags] for _, kernel in found], axis=0).tolist(),
    }


def _pair(pair: tuple[str, str], values: PairValues, compared: _Comparison) -> dict[str, Any]:
    by_name = {one.name: one for one in compared.subjects}
    lengths, reason, groups = compared.num_pieces, compared.shifts.reason, compared.groups
    queries = compared.samples([length - window_size(length) for length in lengths])
    causal, spread = over_texts(values.causal, groups)
    other = over_texts(values.other_text)[0] if values.other_text else np.full_like(causal, np.nan)
    cka = with_null(values.cka, values.cka_draws, compared.samples(lengths), reason, groups)
    return {
        "models": list(pair),
        "agreement": {
            "sites": [[str(site) for site in by_name[name].sites] for name in pair],
            "causal": {
                "value": plain(causal),
                "text_std": plain(spread),
                "lag_only": plain(over_texts(values.lag_only, groups)[0]),
                "other_text": plain(other),
                "n": compared.samples([max(0, n - MIN_SOURCES + 1) for n in lengths]),
                "num_texts": len(values.causal),
                "num_other_texts": len(values.other_text),
            },
            "windowed": with_null(values.windowed, values.windowed_draws, queries, reason, groups),
        },
        "cka": {"layers": [by_name[name].layers for name in pair], **cka},
    }


def _self_check(compared: _Comparison) -> dict[str, Any]:
    errors = compared.found.replay_errors
    tolerances = {
        one.name: replay_tolerance(one.model)
        if any(site.kind == "implicit" for site in one.sites)
        else REPLAY_TOLERANCE.get(one.model.dtype, 1e-2)
        for one in compared.subjects
    }
    return {
        "replay_error": errors,
        "replay_tolerance": tolerances,
        "replay_agrees": all(e is None or e <= tolerances[name] for name, e in errors.items()),
    }


def _provenance(compared: _Comparison, seed: int, command: Sequence[str] | None) -> dict[str, Any]:
    """As of any result, with what is particular to each model under ``models``."""
    subjects = compared.subjects
    origins = {one.name: provenance(one.model, command=command, seed=seed) for one in subjects}
    own = ("model", "dtype", "device")
    models = {name: {key: origin.pop(key) for key in own} for name, origin in origins.items()}
    texts = {f"text_{i}": {"num_tokens": count} for i, count in enumerate(compared.num_pieces)}
    return {
        **next(iter(origins.values())),
        "model": {"id": " and ".join(models)},
        "models": models,
        "texts": texts,
    }


_RANGES = {
    "mean distance": "mean_distance", "90 % within": "kernel_lag_90", "on itself": "self_share",
    "on the first": "first_share",
}  # fmt: skip


def _measure_lines(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where each model's attention goes, smallest to largest over its layers, as lines of text."""
    rows = []
    for name in dict.fromkeys(row["model"] for row in table):
        layers = [row for row in table if row["model"] == name]
        rows.append([name, str(len(layers)), *(_range(layers, key) for key in _RANGES.values())])
    return terminal_table(["model", "layers", *_RANGES], rows)


def _range(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    known = [row[key] for row in rows if row[key] is not None]
    return f"{shown(min(known))} to {shown(max(known))}" if known else "-"


def write_comparison(
    results: Mapping[str, Any], folder: StrPath, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write ``model_comparison.json``, ``.csv`` (a row a layer), ``.md``, and the figures."""
    target = check_output_dir(folder)
    with owning(target), written_together():
        paths = [
            write_json(target / "model_comparison.json", results),
            write_csv(target / "model_comparison.csv", results["table"], TABLE_COLUMNS),
            write_text(
                target / "model_comparison.md",
                f"{comparison_section(results)}\n{run_mark(results)}\n",
            ),
        ]
    return [*paths, *write_figures(results, target, formats=formats)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare models; write results, a table, a report and a figure."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = model_comparison_options(argv)
    configure_logging(args.debug, args.quiet)
    set_seed(args.seed)
    texts, folder = texts_from_options(args), claim_output_dir(args.output_dir)
    names = [str(DEMO_MODEL_PATH)] if args.model is None else args.model
    given = names if args.tokenizer is None else args.tokenizer
    if len(given) not in (1, len(names)):
        raise ValueError(
            f"--tokenizer is given {len(given)} times for {len(names)} models; give one for all, "
            "or one for each"
        )
    models = [load_model(name, device=args.device, dtype=args.dtype) for name in names]
    tokenizers = [load_tokenizer(name) for name in (given * len(names))[: len(names)]]
    if len(models) == 1:
        print(f"One model: {names[0]} is compared with an untrained twin of itself.")
        models.append(untrained_twin(models[0], args.seed))
        models[1].config.name_or_path = f"{Path(names[0]).name}, untrained"
        tokenizers *= 2
    results = compare_models(
        models,
        texts,
        tokenizers=tokenizers,
        layer_indices="all" if args.layers is None else args.layers,
        max_sequence_length=args.max_sequence_length,
        num_twins=args.twins,
        seed=args.seed,
        command=command_line("model_comparison.py", argv),
    )
    paths = write_comparison(results, folder, args.formats)
    said = [f"{row['verdict']}: {row['claim']}" for row in results["findings"]]
    print("\n".join([*_measure_lines(results["table"]), *wrapped(said, indent="  ")]))
    print(f"Wrote {', '.join(path.name for path in paths)} to {folder}.")
    return 0 if results["self_check"]["replay_agrees"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
