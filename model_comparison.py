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
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.comparison_findings import findings_on as findings_on
from analysis_pipelines.comparison_readings import (
    Subject,
    measure,
    num_pieces,
    shifts_for,
    subjects_of,
    twins_of,
)
from analysis_pipelines.comparison_results import Comparison, comparison_results
from analysis_pipelines.shared_pieces import Pieces, shared_pieces
from mamba_mixers.untrained_twins import check_twins, untrained_twin
from recursive_visualizer import write_figures
from result_views.report.comparison_report import TABLE_COLUMNS, comparison_section
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
from suite_plumbing.one_thread import fit_threads
from suite_plumbing.output_folders import claim_output_dir, owning
from suite_plumbing.progress import configure_logging, progress, set_seed
from suite_plumbing.result_files import (
    StrPath,
    check_output_dir,
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
from token_statistics.twin_bounds import TWIN_KINDS

logger = logging.getLogger(__name__)


MIN_PIECES = 4
"""Of each text: a debiased CKA of fewer is undefined."""


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
            measure(_twins(subjects, number, seed, kind), encoded, pieces, shifts)
            for number in progress(range(count), desc=f"twins of {kind}")
        ]
        for kind in TWIN_KINDS
    }
    compared = Comparison(subjects, encoded, pieces, shifts, found, twins)
    return comparison_results(compared, seed, command)


def _twins(subjects: Sequence[Subject], number: int, seed: int, kind: str) -> list[Subject]:
    logger.info("untrained twins %d of the models: %s", number + 1, kind)
    return twins_of(subjects, number, seed, kind)


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
    fit_threads(*models)
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
