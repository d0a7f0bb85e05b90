"""Memory recursion: what the states of a Mamba keep, and what its neurons and predictions owe it.

One forward pass a batch, then the steps of ``analysis_pipelines.memory_steps`` over all texts
together, claims tried on their results (``analysis_pipelines.memory_claims``), figures, and a
report written from the numbers. A step that fails leaves its error under its key and the rest
intact.

From a shell: ``python run_memory_recursion_analysis.py`` runs it on the bundled demo model and
three built-in texts, offline.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import MEMORY_OUTPUT_DIR, memory_analysis_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(memory_analysis_options)

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.memory_claims import claims_on
from analysis_pipelines.memory_reading import Reading, captured_by
from analysis_pipelines.memory_steps import (
    MEMORY_STEPS,
    MemoryInputs,
    MemorySettings,
    channel_tensors,
)
from analysis_pipelines.memory_table import memory_by_layer
from analysis_pipelines.memory_twins import TwinFindings, by_kind, twin_findings
from analysis_pipelines.step_runner import StepOutcomes, run_steps, step_sections
from analysis_pipelines.text_parts import configuration_of, open_parts
from attention_neurons import NEURON_METHODS, layer_parameters
from mamba_mixers.replay_check import replay_check
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import check_twins
from mamba_mixers.weights import check_has_logits
from recursive_visualizer import Results, figure_files, write_figures
from result_views.figures.memory_figures import MEMORY_FIGURES
from result_views.report.memory_report import memory_report
from result_views.summaries import run_summary
from ssm_measures.components import Capture
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import (
    announcement,
    command_line,
    job_from_options,
    run_main,
)
from suite_plumbing.errors import failure_of
from suite_plumbing.kept_values import keeping
from suite_plumbing.model_inputs import encode_for
from suite_plumbing.models import ModelAnalyzer
from suite_plumbing.other_names import also_named
from suite_plumbing.output_folders import owning
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    check_output_dir,
    to_jsonable,
    write_csv,
    write_json,
    write_tensors,
    write_text,
    written_together,
)
from suite_plumbing.result_reading import RUN_ID, entry_at, run_mark
from suite_plumbing.texts import (
    EncodedText,
    distinct_texts,
    padding_id,
    text_origins,
    token_pieces,
)
from token_statistics.findings import Finding, judged, twins_section
from token_statistics.smallest_effects import SMALLEST_EFFECTS

logger = logging.getLogger(__name__)

REPORT_NAME = "memory_recursion_report.md"


@dataclass(frozen=True, eq=False)
class MemoryAnalysis:
    """A whole memory analysis: strict JSON, and the tensors that go beside it."""

    results: dict[str, Any]
    tensors: dict[str, Tensor]
    """by channel: see ``analysis_pipelines.memory_steps.channel_tensors``"""


def analyze_memory(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: MemorySettings,
    *,
    folder: Path | None = None,
) -> MemoryAnalysis:
    """Run the steps on tokenized texts and try the claims on what they give.

    All texts are pooled: one given again is left out, and a warning says so. ``folder``: where
    captures are kept while it runs, so that memory holds one text's at a time; None: in memory.
    Raises ValueError where twins are asked for and cannot be made.

    Cost: one forward pass a batch, one forward and backward pass a text for the gradient-guided
    neurons, for each ablated neuron and each position and kind of intervention the layers from the
    one changed on, and the steps; for each of the 2 num_twins twins the steps that claims read.
    """
    check_twins(model, settings.num_twins)
    started = time.perf_counter()
    encoded = distinct_texts(encoded)
    pieces = [token_pieces(tokenizer, text.input_ids) for text in encoded]
    parameters = layer_parameters(model, settings.layers)
    reading = Reading(encoded, settings.layers, settings.batch_size, padding_id(tokenizer), folder)
    with captured_by(model, reading) as captures:
        inputs = MemoryInputs(model, captures, pieces, parameters, settings)
        outcomes = run_steps(MEMORY_STEPS, inputs)
        twins = twin_findings(inputs, reading)
        results = _results(inputs, encoded, outcomes, twins)
        tensors = channel_tensors(inputs, outcomes.results)
    results["provenance"]["run"]["seconds"] = round(time.perf_counter() - started, 3)
    return MemoryAnalysis(to_jsonable(results), tensors)


def write_memory_analysis(
    analysis: MemoryAnalysis, folder: Path, stale: Iterable[Path] = ()
) -> Path:
    """Write results as JSON, channels as safetensors, layers and findings as CSV; returns the JSON.

    All of them or none: see `written_together`, also for ``stale``. Raises ValueError where another
    run has the folder.
    """
    run_id = entry_at(analysis.results, *RUN_ID)
    with owning(folder), written_together(stale):
        write_tensors(folder / "memory_recursion_results.safetensors", analysis.tensors, run_id)
        write_csv(folder / "memory_by_layer.csv", analysis.results["memory_by_layer"])
        found = [Finding.from_dict(row) for row in analysis.results["findings"]]
        write_csv(folder / "findings.csv", [finding.row() for finding in found])
        return write_json(folder / "memory_recursion_results.json", analysis.results)


class MemoryRecursionNeuronAnalyzer(ModelAnalyzer):
    """Memory of a Mamba's states over texts, its causal effect, its neurons, and a report of both.

    ``num_positions`` tokens of each text at which memory is taken away, ``num_ablations`` random
    neurons of each layer that are ablated (at least 3), ``num_random`` random tokens and random
    neurons of the same norm that each effect is compared with, ``num_twins`` untrained twins of
    each kind that claims have to exceed (0: none): all cost forward passes.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        device: str | device | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequence_length: int = 512,
        batch_size: int = 2,
        seed: int = 0,
        num_positions: int = 16,
        num_ablations: int = 16,
        num_random: int = 2,
        num_twins: int = 0,
    ) -> None:
        super().__init__(model, device, tokenizer=tokenizer)
        self.max_sequence_length = validate_int("max_sequence_length", max_sequence_length, 2)
        self.batch_size = validate_int("batch_size", batch_size, 1)
        self.seed = validate_int("seed", seed, 0, 2**32 - 1)
        self.num_positions = validate_int("num_positions", num_positions, 1)
        self.num_ablations = validate_int("num_ablations", num_ablations, 3)
        self.num_random = validate_int("num_random", num_random, 1)
        self.num_twins = validate_int("num_twins", num_twins, 0)

    @also_named(layers="layer_indices", text="texts")
    def analyze_memory_recursion_effects(
        self, texts: str | Sequence[str], layer_indices: Sequence[int] | str | None = None
    ) -> Results:
        """Analyse one text or several; the result is what ``save_analysis_results`` writes.

        ``layer_indices``: a list (negatives count from the end), "all", or None for the default
        layers. Raises ValueError for bad texts or layers before the model runs.
        """
        layers = model_layers(self.model, layer_indices)
        check_has_logits(self.model)
        tokenizer, encoded = encode_for(self.model, self.tokenizer, texts, self.max_sequence_length)
        settings = MemorySettings(
            layers,
            self.batch_size,
            self.seed,
            self.num_positions,
            self.num_ablations,
            self.num_random,
            self.num_twins,
        )
        self.analysis_ = analyze_memory(self.model, encoded, tokenizer, settings)
        return Results(self.analysis_.results, self.analysis_.tensors)

    def visualize_memory_recursion_effects(
        self, save_dir: str | Path = MEMORY_OUTPUT_DIR, formats: Sequence[str] = ("png",)
    ) -> list[Path]:
        """Write the figures of the analysis; returns their paths."""
        folder = check_output_dir(save_dir)
        return write_figures(self._analysis().results, folder, formats=formats)

    def generate_comprehensive_report(self, save_path: str | Path | None = None) -> str:
        """The report in Markdown, made from the results alone; also written to ``save_path``."""
        report = memory_report(self._analysis().results)
        if save_path is not None:
            folder = check_output_dir(Path(save_path).parent)
            write_text(folder / Path(save_path).name, report)
        return report

    def save_analysis_results(self, save_dir: str | Path = MEMORY_OUTPUT_DIR) -> Path:
        """Write JSON, safetensors and tables into a folder: see :func:`write_memory_analysis`."""
        return write_memory_analysis(self._analysis(), check_output_dir(save_dir))

    def _analysis(self) -> MemoryAnalysis:
        return self._earlier("analysis_", "analyze_memory_recursion_effects")


def _results(
    inputs: MemoryInputs,
    encoded: Sequence[EncodedText],
    outcomes: StepOutcomes,
    twins: Sequence[TwinFindings],
) -> dict[str, Any]:
    settings = inputs.settings
    sections = step_sections(outcomes, MEMORY_STEPS)
    num_tokens = sum(len(text.input_ids) for text in encoded)
    distinct, groups = inputs.num_distinct, inputs.groups
    alone = claims_on(sections, settings.layers, distinct, settings.seed, groups)
    found = by_kind(twins)
    findings = judged(alone, {kind: list(part.values()) for kind, part in found.items()})
    return {
        "schema_version": SCHEMA_VERSION,
        "analysis_metadata": {
            "layer_indices": settings.layers,
            "num_texts": len(encoded),
            "num_groups": len(set(groups)),
            "num_tokens": num_tokens,
            "num_positions": settings.num_positions,
            "num_ablations": settings.num_ablations,
            "num_random": settings.num_random,
            "num_twins": settings.num_twins,
            "neuron_methods": list(NEURON_METHODS),
            "smallest_effects": {name: x._asdict() for name, x in SMALLEST_EFFECTS.items()},
        },
        "self_check": _self_check(inputs, outcomes),
        "findings": [finding.to_dict() for finding in findings],
        "untrained_twins": twins_section(findings, found),
        "memory_by_layer": memory_by_layer(sections, settings.layers),
        "individual_texts": {
            f"text_{i}": {"text": text.text, "tokens": text.tokens}
            for i, text in enumerate(encoded)
        },
        "memory": sections,
        "provenance": provenance(
            inputs.model,
            command=settings.command,
            seed=settings.seed,
            texts=text_origins(encoded),
        ),
    }


def _self_check(inputs: MemoryInputs, outcomes: StepOutcomes) -> dict[str, Any]:
    """How well the replayed mixers reproduce the model's own, and every step without a result."""
    errors = {f"text_{i}": _replay_errors(one) for i, one in enumerate(inputs.captures)}
    return {
        **replay_check(inputs.model, errors),
        "without_result": outcomes.failures,
    }


def _replay_errors(captured: Capture) -> dict[str, float]:
    return {f"layer_{i}": parts.replay_error for i, parts in captured.components.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the memory analysis and write its files; exit status 1 when a step gave no result."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = memory_analysis_options(argv)
    if not args.quiet:
        print(announcement(args))
    command = command_line("run_memory_recursion_analysis.py", argv)
    job = job_from_options(args, model_layers, command)
    settings = MemorySettings(
        job.layers, args.batch_size, args.seed, args.num_positions, args.ablate,
        args.num_random, args.twins, command,
    )  # fmt: skip
    configuration = configuration_of(job.model, job.encoded, job.tokenizer, settings)
    parts = open_parts(job.output_dir, configuration, args.resume)
    with keeping(parts.values()):
        analysis = analyze_memory(
            job.model, job.encoded, job.tokenizer, settings, folder=parts.folder / "captures"
        )
    path = write_memory_analysis(analysis, job.output_dir, stale=_earlier_pages(job.output_dir))
    parts.remove()
    figures = _write_pages(analysis.results, path, args.formats)
    files = [
        f"Results: {path}, its .safetensors, findings.csv and memory_by_layer.csv",
        f"Figures: {len(figures)} files in {job.output_dir}",
        f"Report:  {job.output_dir / REPORT_NAME}",
    ]
    print(run_summary(analysis.results, files))
    return 1 if analysis.results["self_check"]["without_result"] else 0


def _earlier_pages(folder: Path) -> list[Path]:
    """What an earlier run may have drawn and reported into the folder."""
    return [*figure_files(folder, MEMORY_FIGURES), folder / REPORT_NAME]


def _write_pages(results: dict[str, Any], path: Path, formats: Sequence[str]) -> list[Path]:
    """Report and figures of a written analysis; what fails costs itself, and is recorded."""
    failures: dict[str, Any] = {}
    try:
        report = f"{memory_report(results)}\n{run_mark(results)}\n"
        write_text(path.with_name(REPORT_NAME), report)
    except Exception as error:
        logger.warning("no report: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        failures["report"] = failure_of(error)
    figures = write_figures(results, path.parent, formats=formats, failures=failures)
    if failures:
        results["self_check"]["without_result"]["pages"] = failures
        write_json(path, results)
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
