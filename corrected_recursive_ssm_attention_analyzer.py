"""The main analysis: what recursion, implicit attention and neurons of a Mamba do on given texts.

Seven steps for every text, from one forward pass a batch, and an eighth over all texts:

    1 SSM components          5 recursive patterns
    2 attention               6 SSM-attention correlations
    3 neurons, three methods  7 neuron evolution
    4 layer activations and   8 cross-text analysis
      their correlations

Each text has what its tokens cost, and what made each prediction, too. Before the texts in the
results stands the overview: all layers in one pass, and answers made from it.

From a shell: ``python corrected_recursive_ssm_attention_analyzer.py`` runs it on the bundled demo
model and three built-in texts, offline.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import MAIN_OUTPUT_DIR, main_analysis_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(main_analysis_options)

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines import cross_text_steps, text_steps
from analysis_pipelines.analysis_results import (
    Analysis,
    Settings,
    TextAnalysis,
    TwinResults,
    assemble,
    with_findings,
    with_overview,
    with_predictions,
    with_tensors,
    without_repeats,
    write_analysis,
)
from analysis_pipelines.key_findings import key_findings
from analysis_pipelines.overview import overview
from analysis_pipelines.prediction_parts import prediction_parts
from analysis_pipelines.step_runner import Step, run_steps, step_sections
from analysis_pipelines.text_parts import TextParts, configuration_of, open_parts
from analysis_pipelines.text_steps import TextInputs, analyze_text, without_capture
from analysis_pipelines.token_predictions import token_predictions
from attention_neurons import layer_parameters
from attribution_faithfulness import faithfulness_table
from mamba_mixers.sites import model_layers
from mamba_mixers.untrained_twins import check_twins, each_twin, untrained_twin
from mamba_mixers.weights import check_has_logits
from recursive_analysis_report import REPORT_NAMES, write_report
from recursive_visualizer import (
    CORRECTED_FIGURES,
    Results,
    figure_files,
    figure_state_vs_activation_change,
    write_figures,
)
from result_views.figures.faithfulness_figures import FAITHFULNESS_FIGURES
from result_views.figures.overview_figures import OVERVIEW_FIGURES
from result_views.summaries import run_summary
from ssm_component_extractor import capture, capture_each
from ssm_measures.components import Capture
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import (
    announcement,
    command_line,
    job_from_options,
    run_main,
)
from suite_plumbing.errors import failure_of
from suite_plumbing.memory_usage import MemoryTracker
from suite_plumbing.model_inputs import encode_for
from suite_plumbing.models import ModelAnalyzer, execution_device
from suite_plumbing.other_names import also_named
from suite_plumbing.progress import debug_logging
from suite_plumbing.result_files import check_output_dir, write_json
from suite_plumbing.result_reading import load_results
from suite_plumbing.texts import (
    EncodedText,
    distinct_texts,
    padding_id,
    read_texts,
    repeated_texts,
)
from token_statistics.findings import Finding

logger = logging.getLogger(__name__)

MANY_TEXTS = 100
"""Above so many the main analysis says that there is an analysis of corpora."""

TEXT_STEPS = (
    Step("ssm_components", text_steps.components_and_memory),
    Step("attention_data", text_steps.attention_maps),
    Step("neurons", text_steps.neurons_by_method, needs=("attention_data",)),
    Step("layer_activations", text_steps.activations_by_layer),
    Step("layer_correlations", text_steps.neighbouring_layers),
    Step("recursive_patterns", text_steps.recursion_by_layer),
    Step("ssm_attention_correlations", text_steps.ssm_with_attention, needs=("attention_data",)),
    Step("neuron_evolution", text_steps.evolution_by_method, needs=("neurons",)),
)
"""1 to 7, on each text; the fourth leaves two sections."""

ABLATION_STEP = Step("neuron_ablation", text_steps.ablation_by_layer, needs=("neurons",))
"""On request, on each text: the neuron methods against ablation."""

CROSS_TEXT_STEPS = (
    Step("ssm_consistency", cross_text_steps.ssm_consistency),
    Step("attention_consistency", cross_text_steps.attention_consistency),
    Step("neuron_consistency", cross_text_steps.neuron_consistency),
    Step("correlation_patterns", cross_text_steps.correlation_patterns),
)
"""8, on what the texts have in common."""


def analyze(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    *,
    after_each: Callable[[], None] | None = None,
    parts: TextParts | None = None,
) -> Analysis:
    """Run all steps on tokenized texts.

    A step that fails leaves its error under its key and the rest intact; ``after_each`` is called
    after every step and text. A text given again is analysed, but counts once in what is compared
    or pooled over texts: a warning says so, and ``same_as`` in the provenance. With ``parts`` each
    text is kept on disk as it ends, those that are there already are not analysed again, and the
    tensors are read from there; without, all of it is in memory. Findings are computed from the
    results, and again from those of ``settings.num_twins`` untrained twins of each kind. Raises
    ValueError where these cannot be made. Cost, as much again for each of the 2 num_twins twins:
    one forward pass a batch up to the last layer asked for, one forward and backward pass a text
    for the gradient-guided neurons, and the steps. The overview is of all layers of the model
    alone, at about 0.7 of a forward pass a text.
    """
    check_twins(model, settings.num_twins)
    started = time.perf_counter()
    distinct_texts(encoded)  # says which texts come again
    analysis = _analyze_alone(model, encoded, tokenizer, settings, after_each, parts)
    streams: dict[tuple[int, ...], Tensor] = {}  # read by the overview, for the predictions too
    found = _overview(model, encoded, tokenizer, settings, after_each, streams)
    analysis = with_overview(analysis, found)
    analysis = _with_predictions(analysis, model, encoded, tokenizer, after_each, streams)
    findings = key_findings(without_repeats(analysis.results), settings.seed)
    alone = replace(settings, num_twins=0, num_ablations=0, faithfulness=False)
    twins = []
    for kind, seed in each_twin(settings.num_twins, settings.seed):
        twin = untrained_twin(model, seed, kind)
        place = f"twin_{kind.split()[0]}_{seed}"
        its_parts = None if parts is None else parts.within(place)
        one = _analyze_alone(
            twin, encoded, tokenizer, alone, after_each, its_parts, level=logging.DEBUG
        )
        found = key_findings(without_repeats(one.results), settings.seed)
        twins.append(TwinResults(kind, seed, one.results, found))
    analysis = with_findings(analysis, findings, twins)
    analysis.results["provenance"]["run"]["seconds"] = round(time.perf_counter() - started, 3)
    return analysis


def findings_alone(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
) -> list[Finding]:
    """The key findings of one model by their nulls alone, without twins and without the rest of an
    analysis; for `findings.judged` to set beside others. Cost: that of a twin in `analyze`."""
    results = _analyze_alone(model, encoded, tokenizer, settings, None, None).results
    return key_findings(without_repeats(results), settings.seed)


def _analyze_alone(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    after_each: Callable[[], None] | None,
    parts: TextParts | None,
    *,
    level: int = logging.INFO,
) -> Analysis:
    """The steps on one model; ``level`` of the log's lines, one a text."""
    started = time.perf_counter()
    pad = padding_id(tokenizer)
    texts = _each_text(model, encoded, pad, settings, after_each, parts, level)
    cross_text, lost = _together(model, encoded, tokenizer, texts, settings, after_each)
    seconds = round(time.perf_counter() - started, 3)
    return assemble(model, encoded, texts, cross_text, settings, seconds, lost)


class CorrectedRecursiveSSMAttentionNeuronAnalyzer(ModelAnalyzer):
    """The eight-step analysis of texts by a Mamba, its figures and its files.

    ``num_ablations`` random neurons of each layer are ablated to check the neuron methods,
    ``faithfulness`` adds attributions to input tokens with their faithfulness, and ``num_twins``
    untrained twins of each kind (fresh and permuted weights) are analysed beside the model, each of
    which takes as long as the model; all are off unless asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        device: str | torch.device | None = None,
        max_sequence_length: int = 512,
        batch_size: int = 2,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int = 0,
        num_ablations: int = 0,
        faithfulness: bool = False,
        num_twins: int = 0,
    ) -> None:
        super().__init__(model, device, tokenizer=tokenizer)
        self.max_sequence_length = validate_int("max_sequence_length", max_sequence_length, 2)
        self.batch_size = validate_int("batch_size", batch_size, 1)
        self.seed = validate_int("seed", seed, 0, 2**32 - 1)
        self.num_ablations = validate_int("num_ablations", num_ablations, 0)
        self.faithfulness = faithfulness
        self.num_twins = validate_int("num_twins", num_twins, 0)
        self.memory_cleanup_enabled = True
        self._memory = MemoryTracker(self.device)

    @also_named(layers="layer_indices", text="input_texts", texts="input_texts")
    def analyze_recursive_ssm_attention_effects(
        self,
        input_texts: str | Sequence[str],
        layer_indices: Sequence[int] | str | None = None,
        *,
        debug: bool = False,
    ) -> Results:
        """Analyse one text or several; what is returned is what ``save_analysis_results`` writes.

        ``layer_indices``: a list (negatives count from the end), "all", or None for the default
        layers. ``debug`` logs the time and outcome of every step, and the traceback of one that
        failed. Raises ValueError for bad texts or layers before the model runs.
        """
        layers = model_layers(self.model, layer_indices)
        check_has_logits(self.model)
        tokenizer, encoded = encode_for(
            self.model, self.tokenizer, input_texts, self.max_sequence_length
        )
        settings = Settings(
            layers,
            self.batch_size,
            self.seed,
            self.num_ablations,
            num_twins=self.num_twins,
            faithfulness=self.faithfulness,
        )
        with debug_logging(debug):
            self.analysis_ = analyze(
                self.model, encoded, tokenizer, settings, after_each=self._clean_up
            )
        return Results(self.analysis_.results, self.analysis_.tensors)

    def visualize_analysis_results(
        self, save_dir: str | Path = MAIN_OUTPUT_DIR, formats: Sequence[str] = ("png",)
    ) -> list[Path]:
        """Write the figures of the analysis; returns their paths."""
        analysis = self._analysis()
        return write_figures(
            analysis.results, check_output_dir(save_dir), tensors=analysis.tensors, formats=formats
        )

    def plot_recursive_state_vs_activation_change(
        self, save_dir: str | Path = MAIN_OUTPUT_DIR
    ) -> list[Path]:
        """Write the figure that compares change of state with change of activation by layer."""
        figure = {"recursive_state_vs_activation": figure_state_vs_activation_change}
        return write_figures(self._analysis().results, check_output_dir(save_dir), figures=figure)

    def save_analysis_results(self, path: str | Path = "analysis_results.json") -> Path:
        """Write the JSON, and beside it ``.safetensors`` (tensors) and ``_neurons.csv``."""
        return write_analysis(self._analysis(), Path(path).expanduser())

    def get_memory_stats(self) -> dict[str, Any]:
        """Measured memory in GB since the analyzer was made or reset, and clean-ups counted."""
        return self._memory.stats()

    def reset_memory_stats(self) -> None:
        """Start measuring anew."""
        self._memory.reset()

    def _clean_up(self) -> None:
        if self.memory_cleanup_enabled:
            self._memory.cleanup()

    def _analysis(self) -> Analysis:
        return self._earlier("analysis_", "analyze_recursive_ssm_attention_effects")


def _each_text(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    pad_token_id: int,
    settings: Settings,
    after_each: Callable[[], None] | None,
    parts: TextParts | None,
    level: int,
) -> list[TextAnalysis]:
    """The analysis of each text by itself, in the order given; texts of one batch share a pass.

    A batch of which a text is missing among the ``parts`` is run whole: the numbers of a text
    depend, by rounding, on what it is batched with.
    """
    parameters = layer_parameters(model, settings.layers)
    steps = (*TEXT_STEPS, *((ABLATION_STEP,) if settings.num_ablations else ()))
    texts = {} if parts is None else parts.load_all(len(encoded))
    captures = capture_each(
        model, encoded, settings.layers, batch_size=settings.batch_size, pad_token_id=pad_token_id,
        done=frozenset(texts),
    )  # fmt: skip
    for index, captured in captures:
        logger.log(level, "analysing text %d", index)
        if isinstance(captured, Exception):
            texts[index] = without_capture(captured, TEXT_STEPS)
            continue
        donor = partial(_another_text, model, encoded, index, settings.layers)
        found = analyze_text(
            TextInputs(model, captured, parameters, settings, donor), steps, after_each
        )
        texts[index] = found if parts is None else parts.keep(index, found)
        del captured
        if after_each is not None:
            after_each()  # what the capture held is given back before the next text is read
    return [texts[index] for index in range(len(encoded))]


def _another_text(
    model: PreTrainedModel, encoded: Sequence[EncodedText], index: int, layers: Sequence[int]
) -> Capture | None:
    """The next text that is not the same, captured; None where there is none."""
    own = encoded[index].input_ids
    later = [*encoded[index + 1 :], *encoded[:index]]
    other = next((text.input_ids for text in later if text.input_ids != own), None)
    return None if other is None else capture(model, torch.tensor([other]), None, layers)


def _overview(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    after_each: Callable[[], None] | None,
    streams: MutableMapping[tuple[int, ...], Tensor],
) -> dict[str, Any]:
    """What every layer does with its memory, and answers; or the failure."""
    run = partial(overview, model, encoded, tokenizer, streams=streams)
    step = Step("overview", lambda seed: run(seed=seed))
    return step_sections(run_steps([step], settings.seed, after_each), [step])["overview"]


def _with_predictions(
    analysis: Analysis,
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    after_each: Callable[[], None] | None,
    streams: Mapping[tuple[int, ...], Tensor],
) -> Analysis:
    """The analysis with what each token cost and what made each prediction, from one reading.

    Where the second fails, its failure stands there, and the texts are read for the first alone.
    ``streams``: what the overview has read already.
    """
    run = partial(prediction_parts, model, encoded, tokenizer, streams)
    both = Step("prediction_parts", lambda _: run())
    outcomes = run_steps([both], None, after_each)
    if both.name not in outcomes.failures:
        losses, parts, tensors = outcomes.results[both.name]
        analysis = with_predictions(with_predictions(analysis, losses), parts, both.name)
        return with_tensors(analysis, tensors)
    analysis = with_predictions(analysis, outcomes.failures[both.name], both.name)
    alone = Step("predictions", lambda _: token_predictions(model, encoded, tokenizer))
    found = step_sections(run_steps([alone], None, after_each), [alone])
    return with_predictions(analysis, found[alone.name])


def _together(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[TextAnalysis],
    settings: Settings,
    after_each: Callable[[], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """8: what the texts have in common, and on request the faithfulness of attributions.

    Beside it the failures of steps, of which some left a result all the same.
    """
    numbers = [i for i in range(len(texts)) if i not in repeated_texts(encoded)]
    read = read_texts(encoded)
    measures = [
        replace(found, group=read[i].group)
        for i in numbers if (found := texts[i].measures) is not None
    ]  # fmt: skip
    steps = list(CROSS_TEXT_STEPS)
    if settings.faithfulness:
        distinct = [encoded[i] for i in numbers]
        table = partial(faithfulness_table, model, tokenizer, distinct, seed=settings.seed)
        steps.append(Step("attribution_faithfulness", lambda _: table()))
    outcomes = run_steps(steps, measures, after_each)
    return step_sections(outcomes, steps), outcomes.failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole analysis and write its files; exit status 1 when a step gave no result."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = main_analysis_options(argv)
    if not args.quiet:
        print(announcement(args))
    job = job_from_options(args, model_layers, command_line(Path(__file__).name, argv))
    if len(job.encoded) > MANY_TEXTS:
        logger.warning(
            "%d texts: this analysis shows each of them by itself, and its files grow with them; "
            "corpus_analysis.py reads any number", len(job.encoded),
        )  # fmt: skip
    tracker = MemoryTracker(execution_device(job.model))
    settings = Settings(
        job.layers,
        args.batch_size,
        args.seed,
        args.ablate,
        num_twins=args.twins,
        faithfulness=args.faithfulness,
        command=job.command,
    )
    configuration = configuration_of(job.model, job.encoded, job.tokenizer, settings)
    parts = open_parts(job.output_dir, configuration, args.resume)
    with parts.announced(len(job.encoded)):
        analysis = analyze(
            job.model, job.encoded, job.tokenizer, settings, after_each=tracker.cleanup, parts=parts
        )
        path = job.output_dir / "analysis_results.json"
        write_analysis(analysis, path, stale=_earlier_pages(job.output_dir))
    parts.remove()
    results, figures = _write_pages(path, args.formats)
    print(run_summary(results, _files(path, figures, tracker.stats())))
    return 1 if results["self_check"]["without_result"] else 0


def _earlier_pages(folder: Path) -> list[Path]:
    """What an earlier run may have drawn and reported into the folder."""
    figures = figure_files(
        folder, {**CORRECTED_FIGURES, **FAITHFULNESS_FIGURES, **OVERVIEW_FIGURES}
    )
    return [*figures, *(folder / name for name in REPORT_NAMES)]


def _write_pages(path: Path, formats: Sequence[str]) -> tuple[dict[str, Any], list[Path]]:
    """Figures and report of a written analysis; what fails costs itself, and is recorded."""
    results, tensors = load_results(path)
    failures: dict[str, Any] = {}
    figures = write_figures(
        results, path.parent, tensors=tensors, formats=formats, failures=failures
    )
    try:
        write_report(results, path.parent, tensors=tensors, figures=figures)
    except Exception as error:
        logger.warning("no report: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
        failures["report"] = failure_of(error)
    if failures:
        results["self_check"]["without_result"]["pages"] = failures
        write_json(path, results)
    return results, figures


def _files(path: Path, figures: Sequence[Path], memory: dict[str, Any]) -> list[str]:
    """Where everything is, and what to do with it; the last lines of a run."""
    peak = memory["peak_memory_usage"]
    return [
        f"Peak memory: {peak:.2f} GB." if peak is not None else "Peak memory: not measurable here.",
        f"Results: {path}, its .safetensors, and a table of neurons",
        f"Figures: {len(figures)} files in {path.parent}",
        f"Report:  {path.with_name('report.html')} (open it in a browser), and report.md",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
