"""Where in a mixer does recall sit: in convolution, state, gate, or a token's own path?

Small Mamba-1 and Mamba-2 models (``recall_models.py``), trained on one task each. A text and its
twin ask for different answers; one path of one layer is taken from the run of the twin at every
token, all else is computed on from it. The paths of a layer:

    convolution  what the convolution's earlier taps bring to a token (its own tap stays)
    state        what y takes from earlier tokens: the sum over s < t of alpha[t, s] u_s
    own          what y takes from the token itself: (alpha[t, t] + D) u_t
    gate         z

Effects are shares of what lies between both runs, 0 the corrupt one and 1 the clean one: with a
path of the clean run in the corrupt one (suffices), and one minus that with a path of the corrupt
run in the clean one (needed). Twins differ by the value asked for, or by the key that it is found
by, which says how a value is bound to its key. Intervals: 95 % over pairs, in the model of the
first seed; effects in models of other seeds, which have other initial weights and saw other rows,
stand beside them. Untrained models of the same shape too, the largest magnitude of three.

How to run (trains what the folder of models lacks, 5 to 20 minutes of one core a seed)::

    python benchmarks/recall_circuit.py --models-dir recall_models --seeds 3 --save
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import torch
from torch import Tensor
from transformers import PreTrainedModel

from activation_patching import ActivationPatching
from benchmarks.commands import (
    RESULTS_FOLDER,
    add_parts_option,
    benchmark_parser,
    keep,
    kept_part,
)
from benchmarks.recall_models import (
    FAMILIES,
    HELD_OUT_SEED,
    ITEMS,
    VOCABULARY,
    fresh_model,
    trained_model,
)
from benchmarks.recall_sources import source_agreement
from causal_interventions.patching.exact import PairRuns, pair_runs
from causal_interventions.patching.pairs import text_pairs
from causal_interventions.patching.patching_results import PatchingResult
from causal_interventions.patching.sites import Run
from causal_interventions.patching.tasks import TASKS, TaskPairs, task_pairs
from mamba_mixers.replay import Edit
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import MixerSite, find_mixers
from mamba_mixers.weights import convolved_change
from result_views.report.markdown import markdown_table
from selective_scan.scan import selective_scan
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from token_statistics.intervals import MeanInterval

PATHS = ("convolution", "state", "own", "gate")

NUM_TWINS = 3

RESULTS = RESULTS_FOLDER / "recall_circuit.md"


class PathEffect(NamedTuple):
    """One path of one layer in the pairs of a task."""

    layer: int
    path: str
    suffices: MeanInterval
    """effect of the clean run's path in the corrupt run"""
    needed: MeanInterval
    """1 minus that of the corrupt run's path in the clean run"""


def path_edit(path: str, mixer: MixerSite, base: Run, source: Run) -> Edit:
    """The edit of a layer that takes one path of every token from the source run.

    The layer's input has to be the base run's, whose texts are the rows.
    """
    own, other = (run.stages[mixer.layer] for run in (base, source))
    if path == "gate":
        return _added("gate", other["gate"] - own["gate"])
    if path == "convolution":
        change = other["conv_input"] - own["conv_input"]
        last_tap = mixer.mixer.conv1d.weight[:, 0, -1]
        return _added("convolved", convolved_change(mixer, change) - last_tap * change)
    alone = [_of_itself(mixer, stages) for stages in (own, other)]
    if path == "own":
        return _added("y", alone[1] - alone[0])
    return _added("y", (other["y"] - alone[1]) - (own["y"] - alone[0]))


def _added(wanted: str, change: Tensor) -> Edit:
    def edit(stage: str, x: Tensor) -> Tensor:
        return x + change.to(x) if stage == wanted else x

    return edit


def _of_itself(mixer: MixerSite, stages: dict[str, Tensor]) -> Tensor:
    """(b, l, d_inner) what y takes from its own token: the scan with nothing carried over."""
    u, delta, A, B, C = (stages[name] for name in ("u", "delta", "A", "B", "C"))
    D = mixer.mixer.D.detach().float().flatten()
    nothing = torch.zeros_like(stages["carry"])
    return selective_scan(u.float(), delta, A, B.float(), C, D, carry=nothing)


@torch.no_grad()
def path_values(
    model: PreTrainedModel, runs: PairRuns, layer: int, path: str, noising: bool
) -> Tensor:
    """(b,) metric of the base run with one path of the other run."""
    base, source = (runs.clean, runs.corrupt) if noising else (runs.corrupt, runs.clean)
    edit = path_edit(path, find_mixers(model)[layer], base, source)
    with fast_scan(model, edits={layer: edit}):
        logits = forward_from(model, layer, base.streams[layer], base.input_ids, last_logits=1)
    return runs.value(logits[:, 0], torch.arange(len(logits)))


def path_effects(model: PreTrainedModel, pairs: TaskPairs) -> list[PathEffect]:
    """Every path of every layer, sufficient and needed."""
    checked = text_pairs(model, None, pairs.clean, pairs.corrupt, pairs.answers)
    runs = pair_runs(model, checked, "logit_difference", 1)
    ruler = PatchingResult(
        "logit_difference", "denoising", None, {}, {}, {}, runs.clean_value, runs.corrupt_value,
        None, 0,
    )  # fmt: skip
    found = []
    for layer in find_mixers(model):
        for path in PATHS:
            there, back = (
                path_values(model, runs, layer, path, noising) for noising in (False, True)
            )
            # 1 - (m - m_corrupt) / apart is the share of m_clean + m_corrupt - m.
            missing = runs.clean_value + runs.corrupt_value - back
            found.append(PathEffect(layer, path, ruler.ratio(there), ruler.ratio(missing)))
    return found


def share_right(model: PreTrainedModel, pairs: TaskPairs) -> float:
    """Share of clean texts whose answer is the model's first choice."""
    with torch.no_grad(), fast_scan(model):
        logits: Any = model(input_ids=pairs.clean, use_cache=False).logits
    return float((logits[:, -1].argmax(-1) == pairs.answers[:, 0]).float().mean())


def experiments(tasks: Sequence[str], count: int) -> list[TaskPairs]:
    """Pairs of each task whose twins differ by the value, and by the key where they can."""
    return [
        task_pairs(task, count, items=ITEMS[task], vocabulary=VOCABULARY, corrupt=corruption,
                   seed=HELD_OUT_SEED + 1)
        for task in tasks
        for corruption in ("value", "key")
        if corruption in TASKS[task].corruptions
    ]  # fmt: skip


def twin_bounds(family: str, pairs: TaskPairs) -> list[list[float]]:
    """By layer and path in their order, the largest |suffices| and |needed| of untrained models."""
    found = [path_effects(fresh_model(family, seed), pairs) for seed in range(1, 1 + NUM_TWINS)]
    return [
        [max(abs(getattr(one, name).value or 0.0) for one in of_path)
         for name in ("suffices", "needed")]
        for of_path in zip(*found, strict=True)
    ]  # fmt: skip


def measured(model: PreTrainedModel, log: dict[str, Any], pairs: TaskPairs) -> dict[str, Any]:
    """All that is measured of one trained model in the pairs of one experiment, for JSON."""
    by_value = pairs.corruption == "value"
    return {
        "right": share_right(model, pairs),
        "steps": log["steps"],
        "seconds": log["seconds"],
        "effects": [
            {
                "layer": one.layer, "path": one.path,
                "suffices": one.suffices.value, "suffices_shown": one.suffices.text(".2f"),
                "needed": one.needed.value, "needed_shown": one.needed.text(".2f"),
            }
            for one in path_effects(model, pairs)
        ],
        "agreement": agreement_rows(model, pairs),
        "sources": source_rows(model, pairs) if by_value else [],
    }  # fmt: skip


def measured_of_seed(models_dir: Path, family: str, pairs: TaskPairs, seed: int) -> dict[str, Any]:
    """As :func:`measured`, of the model of this seed; trained first where it is not there."""
    model, log = trained_model(models_dir, family, pairs.task, seed)
    return measured(model, log, pairs)


def agreement_rows(model: PreTrainedModel, pairs: TaskPairs) -> list[list[str]]:
    """Rank agreement of attribution with exact patching by site, a row for each number of steps."""
    patching, few = ActivationPatching(model), slice(0, 5)
    given = (pairs.clean[few], pairs.corrupt[few], pairs.answers[few])
    exact = patching.patch(*given, control=False)
    rows = []
    for steps in (0, 10):
        found = patching.attribution(*given, steps=steps).agreement(exact)
        shown = ("" if (rho := found[site]) is None else f"{rho:.2f}" for site in exact.patched)
        rows.append([str(steps), *shown])
    return rows


def source_rows(model: PreTrainedModel, pairs: TaskPairs) -> list[list[str]]:
    """R2 of direct values of sources with knockouts, a row a layer, over the first 20 texts."""
    few = replace(pairs, clean=pairs.clean[:20], answers=pairs.answers[:20])
    return [
        [str(one.layer), f"{one.r2:.3f}", f"{one.slope:.2f}"]
        for one in source_agreement(model, few)
    ]


def experiment_lines(
    family: str, pairs: TaskPairs, found: Sequence[dict[str, Any]], bounds: list[list[float]]
) -> list[str]:
    """Heading and table of one experiment, ``found`` being of models by seed."""
    first, others = found[0], found[1:]
    rows = []
    for number, one in enumerate(first["effects"]):
        beside = [model["effects"][number] for model in others]
        rows.append([
            str(one["layer"]), one["path"], one["suffices_shown"], one["needed_shown"],
            *(", ".join(f"{x[name]:.2f}" for x in beside) for name in ("suffices", "needed")),
            " / ".join(f"{x:.2f}" for x in bounds[number]),
        ])  # fmt: skip
    head = ["layer", "path", "suffices", "needed", "suffices, other seeds", "needed, other seeds",
            "untrained, largest of 3"]  # fmt: skip
    right = ", ".join(f"{100 * model['right']:.1f}" for model in found)
    trained = "; ".join(f"{model['steps']} steps, {model['seconds']:.0f} s" for model in found)
    return [
        f"## {family}, {pairs.task}: twins by the {pairs.corruption}", "",
        f"{right} % of {len(pairs)} clean texts answered, by seed.", "",
        *markdown_table(head, rows), f"Trained for {trained}.", "",
    ]  # fmt: skip


AGREEMENT_HEAD = [
    "## Attribution patching beside exact patching", "",
    "Spearman over layers and tokens, 5 pairs; steps 0: the gradient of the corrupt run alone.", "",
]  # fmt: skip

SOURCES_HEAD = [
    "## Direct values of sources beside knockouts", "",
    "What the last token takes from each source through the state of a layer, onto the difference "
    "of both answers' logits, by closed form; the same by knockout. 20 texts, all sources.", "",
]  # fmt: skip

SITES = ("residual", "mixer", "u", "delta", "B", "C", "gate", "y", "state", "window")


def report(
    models_dir: Path, families: Sequence[str], tasks: Sequence[str], count: int, seeds: int = 1,
    parts: Path | None = None,
) -> str:  # fmt: skip
    """All experiments, and the agreement of attribution with exact patching."""
    lines: list[str] = [*(__doc__ or "").split("How to run")[0].splitlines()[1:]]
    agreement: list[list[str]] = []
    sources: list[list[str]] = []
    for family in families:
        for pairs in experiments(tasks, count):
            place = f"{family}_{pairs.task}_{pairs.corruption}_{count}"
            found = []
            for seed in range(seeds):
                make = partial(measured_of_seed, models_dir, family, pairs, seed)
                found.append(kept_part(parts, f"{place}_{seed}", make))
                named = [family, pairs.task, pairs.corruption, str(seed)]
                agreement += [named + row for row in found[-1]["agreement"]]
                sources += [[*named[:2], named[3], *row] for row in found[-1]["sources"]]
            untrained = partial(twin_bounds, family, pairs)
            bounds = kept_part(parts, f"{place}_untrained", untrained)
            lines += experiment_lines(family, pairs, found, bounds)
    lines += AGREEMENT_HEAD
    lines += markdown_table(["family", "task", "twins", "seed", "steps", *SITES], agreement)
    lines += SOURCES_HEAD
    head = ["family", "task", "seed", "layer", "R2", "slope of the knockout"]
    return "\n".join([*lines, *markdown_table(head, sources)]).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, patch, and print the tables."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = _options(argv)
    text = report(
        args.models_dir, args.families.split(","), args.tasks.split(","), args.pairs, args.seeds,
        args.parts,
    )  # fmt: skip
    print(text)
    if args.save:
        keep(RESULTS, text)
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = benchmark_parser(
        __doc__, "effects of paths by layer, and the agreement of attribution"
    )
    parser.add_argument("--models-dir", type=Path, default=Path("recall_models"), metavar="FOLDER",
                        help="trained models, made where they are missing")  # fmt: skip
    parser.add_argument("--families", default=",".join(FAMILIES), help="with commas between")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas between")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of each experiment")
    parser.add_argument("--seeds", type=int, default=1, metavar="N",
                        help="models of each family and task (default: 1)")  # fmt: skip
    add_parts_option(parser)
    args = parser.parse_args(argv)
    validate_int("seeds", args.seeds, 1, 99)
    validate_int("pairs", args.pairs, 5)
    return args


if __name__ == "__main__":
    raise SystemExit(main())
