"""A corpus of any number of texts: sums by layer, neuron and token, and an atlas of its neurons.

Texts are shared out among a fixed number of tasks. Each task adds its texts to sums and writes one
part; the parts are merged in order. Nothing that is kept grows with the corpus, a run that is
stopped goes on by the same command, and the results do not depend on who did which task when: one
process, several of this machine, the ranks of torchrun or srun, or datatrove's executors.

From a shell: ``python corpus_analysis.py --texts-file texts.jsonl --workers 2``. Texts at hand, of
which one wants to see each, are for the main analysis.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import corpus_analysis_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(corpus_analysis_options)

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis_pipelines.corpus.engines import (
    check_engine,
    merging,
    rank_and_world,
    run_datatrove,
    run_here,
    run_rank,
    run_ray,
    submit_slurm,
)
from analysis_pipelines.corpus.parts import (
    DamagedPart,
    Part,
    merge_parts,
    read_part,
)
from analysis_pipelines.corpus.plan import (
    DEFAULT_TASKS,
    Plan,
    Settings,
    open_plan,
    stored_tasks,
)
from analysis_pipelines.corpus.results import (
    corpus_results,
    corpus_tensors,
    layer_sums,
    rounded_results,
)
from analysis_pipelines.corpus.step import Loaded, analyse, loaded
from analysis_pipelines.corpus.tables import (
    atlas_contents,
    layer_rows,
    neuron_facts,
    neuron_rows,
    promoted_tokens,
    token_rows,
    vocabulary_pieces,
)
from mamba_mixers.sites import model_layers
from recursive_visualizer import write_figures
from result_views.report.atlas import write_atlas
from result_views.terminal_lines import wrapped
from suite_plumbing.commands import command_line, run_main
from suite_plumbing.corpus_texts import Source, find_source, passages
from suite_plumbing.models import execution_device
from suite_plumbing.output_folders import remove_unfinished
from suite_plumbing.paths import user_path
from suite_plumbing.progress import configure_logging, set_seed
from suite_plumbing.provenance import SCHEMA_VERSION, provenance, weights_sha256
from suite_plumbing.result_files import (
    check_output_dir,
    write_csv,
    write_json,
    write_tensors,
    written_together,
)
from suite_plumbing.texts import EXAMPLE_TEXTS, ids_of_tokens
from token_statistics.findings import Finding, sentence

__all__ = ["Plan", "Settings", "analyse", "merged", "write_results"]

RESULTS_NAME = "corpus_results.json"

logger = logging.getLogger(__name__)


def merged(plan: Plan) -> Part:
    """All parts of a run as one, added in order of tasks.

    A damaged part is computed again in this process, with a warning. Raises OtherPart for one of
    another configuration. Cost: reading them; memory that of two parts.
    """
    tasks = plan.settings.tasks

    def parts():
        for task in range(tasks):
            try:
                yield read_part(plan, task)
            except DamagedPart as error:
                logger.warning("%s", error)
                plan.part_path(task).unlink(missing_ok=True)
                analyse(None, task, tasks, plan=plan)
                yield read_part(plan, task)

    return merge_parts(parts(), plan.settings.seed)


def write_results(
    plan: Plan, part: Part, reader: Loaded, described: dict[str, Any], formats: Sequence[str]
) -> dict[str, Any]:
    """Write all that is made of the merged part into the plan's folder; the results as JSON has
    them.

    ``corpus_results.json``, ``corpus_results.safetensors``, ``layers.csv``, ``neurons.csv``,
    ``tokens.csv``, ``atlas.html`` and the figures. Raises ValueError for a corpus without texts.
    """
    model, tokenizer = reader
    settings, folder = plan.settings, plan.folder
    results = rounded_results(corpus_results(part, model, settings))
    layers = layer_sums(part, settings.layers)
    facts = neuron_facts(part, model, settings.layers)
    size = model.config.vocab_size
    read = [i for i in ids_of_tokens(tokenizer, size) if part.arrays["token_counts"][i] > 0]
    promoted = promoted_tokens(model, list(facts), read)
    pieces = vocabulary_pieces(tokenizer, size)
    name = Path(settings.model).name or settings.model
    contents = atlas_contents(part, results, facts, promoted, pieces, settings.source, name)
    results |= {"schema_version": SCHEMA_VERSION, "provenance": described}
    with written_together():
        write_json(folder / RESULTS_NAME, results)
        write_tensors(
            folder / "corpus_results.safetensors", corpus_tensors(part, layers), finite=False
        )
        write_csv(folder / "layers.csv", layer_rows(results))
        write_csv(folder / "neurons.csv", neuron_rows(facts, promoted, pieces))
        write_csv(folder / "tokens.csv", token_rows(part, layers, pieces))
        write_atlas(contents, folder)
    write_figures(results, folder, formats=formats)
    return results


class _Run(NamedTuple):
    """A run after all of its options have been checked."""

    args: argparse.Namespace
    plan: Plan
    reader: Loaded
    command: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse a corpus, or go on with it; print what it says and where it was written."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = corpus_analysis_options(argv)
    configure_logging(args.debug, args.quiet)
    set_seed(args.seed)
    run = _opened(args, argv)
    missing = len(run.plan.missing())
    if missing < run.plan.settings.tasks:
        logger.info(
            "%d of %d tasks are done already",
            run.plan.settings.tasks - missing,
            run.plan.settings.tasks,
        )
    ranks = rank_and_world() if args.engine == "processes" else None
    if ranks is not None and not run_rank(run.plan, *ranks):
        return 0
    if ranks is None and missing and not _run_engine(run):
        print(
            f"Submitted to Slurm. When its jobs have ended, the same command writes {RESULTS_NAME}."
        )
        return 0
    with merging(run.plan) as is_held:
        if not is_held:
            print(f"Another run writes the results of {run.plan.folder}.")
            return 0
        described = provenance(run.reader.model, command=run.command, seed=args.seed)
        started = time.monotonic()
        part = merged(run.plan)
        results = write_results(run.plan, part, run.reader, described, args.formats)
        logger.info("merged and written in %.1f s", time.monotonic() - started)
    print("\n".join(summary(results)))
    print(f"Wrote {run.plan.folder / RESULTS_NAME}, tables and figures, and atlas.html beside it.")
    return 0


def _opened(args: argparse.Namespace, argv: Sequence[str]) -> _Run:
    """Check and load what the options name, before anything runs."""
    check_engine(args.engine)
    source = find_source(
        args.texts_file,
        list(EXAMPLE_TEXTS) if args.text is None else args.text,
        dataset=args.dataset,
        split=args.split,
        text_field=args.text_field,
        one_text=args.one_text,
    )
    _check_not_empty(source)
    folder = check_output_dir(args.output_dir).resolve()
    tasks = args.tasks or stored_tasks(folder) or DEFAULT_TASKS
    model, tokenizer = (_anywhere(name) for name in (args.model, args.tokenizer or args.model))
    reader = loaded(model, tokenizer, args.device, args.dtype)
    settings = Settings(
        source=source, model=model, tokenizer=tokenizer,
        layers=tuple(model_layers(reader.model, args.layers)), tasks=tasks,
        max_sequence_length=args.max_sequence_length, batch_tokens=args.batch_tokens,
        maps_every=args.maps_every, importance_every=args.importance_every, carry=args.carry,
        seed=args.seed, threads=args.threads, device=args.device, dtype=args.dtype,
        max_failures=args.max_failures,
    )  # fmt: skip
    device = execution_device(reader.model).type
    plan = open_plan(folder, settings, weights_sha256(reader.model), device)
    for part in (folder, plan.part_path(0).parent):
        remove_unfinished(part)
    return _Run(args, plan, reader, command_line("corpus_analysis.py", argv))


def _anywhere(name: str) -> str:
    """A folder's whole path, for workers that start elsewhere; any other name as it is."""
    return str(Path(name).resolve()) if user_path(name, "model folder").is_dir() else name


def _check_not_empty(source: Source) -> None:
    """Before a model is loaded: there is a text, and the first is one if nothing else is."""
    first = next(iter(passages(source)), None)
    if first is None:
        raise ValueError("the corpus holds no text; name a file or folder with texts")


def _run_engine(run: _Run) -> bool:
    """Run what is missing; False where it was handed to a queue."""
    args, plan = run.args, run.plan
    if args.engine == "slurm":
        submit_slurm(plan, args.workers, args.slurm_time, args.slurm_partition, args.slurm_memory)
        return False
    engines = {"processes": run_here, "datatrove": run_datatrove, "ray": run_ray}
    engines[args.engine](plan, args.workers)
    return True


def summary(results: dict[str, Any]) -> list[str]:
    """What a corpus says, in the lines that a terminal shows."""
    corpus = results["corpus"]
    lines = [
        f"{corpus['windows']:,} windows, {corpus['tokens']:,} tokens of {corpus['documents']:,} "
        f"documents; loss {corpus['loss']:.4f} nats a token.",
    ]
    if corpus["failures"]:
        shown = "; ".join(f"{one['place']}: {one['reason']}" for one in results["failures"][:3])
        lines.append(f"{corpus['failures']} texts could not be read ({shown}).")
    if corpus["short"]:
        lines.append(f"{corpus['short']:,} texts have fewer than 2 tokens and were left out.")
    lines += [sentence(Finding.from_dict(row)) for row in results["findings"]]
    return wrapped(lines, indent="  ")


if __name__ == "__main__":
    raise SystemExit(main())
