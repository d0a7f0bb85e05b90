"""Figures of the results of any analysis, drawn from the saved files alone.

Here are the six figures of the main analysis: of the result dict, live or loaded from JSON, and for
the attention maps of the tensors beside it. Those of the memory analysis, of causal memory, of
faithfulness and of the findings are in modules of their own; `figures_of` knows which a result
dict has. No model is loaded and no statistic computed.

From a shell: ``python recursive_visualizer.py corrected_mamba_analysis/analysis_results.json``.
"""

from __future__ import annotations

from suite_plumbing.analysis_options import recursive_visualizer_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(recursive_visualizer_options)

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from result_views.answers import overview_rows
from result_views.figures import analysis_panels as panels
from result_views.figures import neuron_panels
from result_views.figures.attribution_figures import DIRECT_ATTRIBUTION_FIGURES
from result_views.figures.comparison_figures import COMPARISON_FIGURES
from result_views.figures.corpus_figures import CORPUS_FIGURES
from result_views.figures.faithfulness_figures import FAITHFULNESS_FIGURES
from result_views.figures.finding_figures import finding_figures
from result_views.figures.long_memory_figures import LONG_MEMORY_FIGURES
from result_views.figures.memory_figures import CAUSAL_FIGURES, MEMORY_FIGURES
from result_views.figures.null_looks import MAGNITUDES_SAY, POINTS_SAY
from result_views.figures.overview_figures import OVERVIEW_FIGURES
from result_views.figures.pages import page, styled
from result_views.figures.patching_figures import PATCHING_FIGURES
from result_views.figures.single_panels import draw_panel, panels_of
from result_views.figures.steering_figures import STEERING_FIGURES
from result_views.figures.step_figures import LAYER_CORRELATION_FIGURES, figure_by_layer
from result_views.figures.titles import (
    attention_title,
    change_title,
    consistency_title,
    correlation_title,
    neuron_title,
    ssm_title,
)
from result_views.figures.token_score_figures import TOKEN_SCORE_FIGURES
from result_views.summaries import Row, check_lines, finding_frame, layer_rows, run_summary
from suite_plumbing.arguments import validate_choice
from suite_plumbing.commands import run_main
from suite_plumbing.errors import failure_of
from suite_plumbing.options import FIGURE_FORMATS
from suite_plumbing.output_folders import claim_output_dir
from suite_plumbing.progress import configure_logging, progress
from suite_plumbing.result_files import StrPath, check_output_dir, table_html, write_atomically
from suite_plumbing.result_reading import (
    Section,
    Tensors,
    all_layers,
    cross_text_section,
    drawing_from,
    load_results,
    text_sections,
    usable,
)

logger = logging.getLogger(__name__)


_MAX_CHANGE_PANELS = 24

# A text's date would make two runs differ.
# Without dates. Packed harder, a PNG takes twice as long and is 2 % smaller.
_SAVING: dict[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": 3}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}


@styled
def figure_ssm_analysis(results: Section) -> Figure:
    """Figure 1: half-lives, what survives, spectral radius, Δ, A, and what is written and kept."""
    sections = text_sections(results, "ssm_components")
    figure, axes = page(
        results,
        ssm_title(results),
        "Line: median; band: the middle half of the values, over channels and states, and over "
        "tokens where the quantity has them (spectral radius, Δ). A single dark line: the texts "
        "lie upon each other. Written and kept: mean, band of one standard deviation over tokens. "
        "Half-lives at the channel's mean Δ. A is of the model, not of the text.",
        [(2, 1.1)] * 3,
        sections,
    )
    panels.plot_half_life(sections, axes[0][0])
    panels.plot_survival(sections, axes[0][1])
    panels.plot_delta(sections, axes[1][0])
    panels.plot_decay_rate(sections, axes[1][1])
    panels.plot_spectral_radius(sections, axes[2][0])
    panels.plot_state_energy(sections, axes[2][1])
    return figure


@styled
def figure_attention_analysis(results: Section, tensors: Tensors | None = None) -> Figure:
    """Figure 2: how far attention reaches back, where it goes, and with tensors its maps."""
    sections = text_sections(results, "attention_data")
    maps = _attention_maps(results, tensors or {})
    figure, axes = page(
        results,
        attention_title(results),
        "α: implicit attention of the selective scan, exact; measures are of the mean of |α| over "
        "heads, per query. Kernel: a line a layer and text. Distance of each query: share of the "
        "queries of all texts whose mean distance is so large or smaller. Shares of |α|: on a "
        "query's last four tokens, on itself, on the text's first token. Entropy: median, band of "
        "the middle half of the queries. Synthetic attention: causal softmax of the cosine of "
        "states. " + (_MAP_CAPTION if maps else "Maps are drawn where the tensors are given."),
        [(2, 1.25), (3, 1.0), *([(len(maps), 1.5)] if maps else [])],
        sections,
    )
    panels.plot_memory_kernel(sections, axes[0][0], legend=False)
    panels.plot_reach(sections, axes[0][1])
    panels.plot_attention_shares(sections, axes[1][0])
    panels.plot_entropy_share(sections, axes[1][1])
    panels.plot_synthetic_agreement(sections, axes[1][2])
    for i, (title, tokens, matrix) in enumerate(maps):
        span = (0, min(MAP_TOKENS, len(tokens)))
        ax = panels.plot_attention_map(matrix, tokens, axes[2][i], title, span=span)
        if i > 0:  # the same tokens as in the first map
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    return figure


MAP_TOKENS = 64
"""Tokens of a map on a page; more cannot be told apart. `Results.figure` draws any others."""

_MAP_CAPTION = (
    f"Maps: query by source, the first {MAP_TOKENS} tokens of the first text in the first, middle "
    "and last layer; the colours end at the 99th percentile of |α|."
)


def _attention_maps(results: Section, tensors: Tensors) -> list[tuple[str, list[str], Any]]:
    """Title, tokens and map of three layers of the first text whose maps are given."""
    for text, part in results["individual_texts"].items():
        layers = [
            layer
            for layer in results["analysis_metadata"]["layer_indices"]
            if f"{text}.layer_{layer}.attention" in tensors
        ]
        chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]}) if layers else []
        if chosen:
            return [
                (
                    f"Mean α over heads\n{text.replace('_', ' ')}, layer {layer}",
                    part["tokens"],
                    tensors[f"{text}.layer_{layer}.attention"].float().numpy(),
                )
                for layer in chosen
            ]
    return []


@styled
def figure_neuron_evolution(results: Section) -> Figure:
    """Figure 3: how far neurons of successive layers go together, by method, beside the null."""
    sections = text_sections(results, "neuron_evolution")
    figure, axes = page(
        results,
        neuron_title(results),
        "Agreement: Spearman over queries of the attention paid to a lag, mean over lags; grey: "
        "95 % interval of time shifts. CKA of the neurons over the same tokens (a neuron's number "
        "has no counterpart in another layer); grey: null of time shifts, mean to largest draw. "
        "Filled points lie outside the grey (CKA: above it), hollow ones do not, half-filled ones "
        "have no null. A method whose values stand on single tokens is left out.",
        [(1, 1.9)],
        sections,
    )
    neuron_panels.plot_neuron_transitions(sections, axes[0][0])
    return figure


@styled
def figure_correlation_analysis(results: Section) -> Figure:
    """Figure 4: correlations across layers, over time, and of the SSM with its attention."""
    sections = text_sections(results, "layer_correlations")
    patterns = text_sections(results, "recursive_patterns")
    longest = _longest(results, patterns)
    figure, axes = page(
        results,
        correlation_title(results),
        "Pearson r of every pair of channels of successive layers. Grey: 95 % interval of the null "
        f"(circular time shifts; for the autocorrelation, shuffled tokens); {MAGNITUDES_SAY}; "
        "crosses: within it (mean |r|: not above it); ?: no null; hatched: missing. Of a single "
        "text a smooth course over position is taken out, and what it leaves may tie layers. The "
        "residual stream of a later "
        "layer contains that of an earlier one: compare the mixers' outputs, above. By lag: all "
        f"texts together. Autocorrelation: {longest.replace('_', ' ')}, the longest. SSM and "
        "attention: Spearman, one column a text, in their order.",
        [(3, 1.0), (3, 1.0), (2, 1.15), (1, 1.25)],
        sections,
    )
    for row, stream in enumerate(("mixer", "residual")):
        for ax, statistic in zip(axes[row], panels.PAIR_STATISTICS, strict=True):
            panels.plot_pair_statistic(sections, stream, statistic, ax)
    patterns_of_all = cross_text_section(results, "correlation_patterns")
    pooled = patterns_of_all.get("residual", patterns_of_all)
    panels.plot_lagged_correlation(pooled, axes[2][0])
    panels.plot_autocorrelation(patterns.get(longest, {}), axes[2][1])
    panels.plot_ssm_attention(text_sections(results, "ssm_attention_correlations"), axes[3][0])
    return figure


def _longest(results: Section, sections: Mapping[str, Section]) -> str:
    """The text with the most tokens among those that have a result."""
    texts = usable(sections) or sections
    return max(texts, key=lambda text: len(results["individual_texts"][text]["tokens"]), default="")


@styled
def figure_consistency(results: Section) -> Figure:
    """Figure 5: how far the texts agree, beside what chance gives."""
    figure, axes = page(
        results,
        consistency_title(results),
        "Spread: standard deviation of the texts' means over that expected if all had one mean "
        "(autocorrelation within the texts accounted for); grey: the central 95 % of what chance "
        f"gives for so many texts; {POINTS_SAY}. Shared neurons: on the lists of the most "
        "important of two texts, mean over pairs of texts, hollow where for some pair p > 0.05 "
        "(hypergeometric, Bonferroni over pairs). Agreement: rank correlation of importance over "
        "all neurons, mean over pairs, without a null. Grey lines: by chance.",
        [(2, 1.2)] * 2,
        {},
    )
    ssm, attention, neurons = (
        cross_text_section(results, name)
        for name in ("ssm_consistency", "attention_consistency", "neuron_consistency")
    )
    panels.plot_text_spread(ssm, axes[0][0], "Spread between texts, SSM")
    panels.plot_text_spread(attention, axes[0][1], "Spread between texts, attention")
    neuron_panels.plot_neuron_overlap(neurons, axes[1][0])
    neuron_panels.plot_neuron_rank_agreement(neurons, axes[1][1])
    return figure


@styled
def figure_state_vs_activation_change(results: Section, *, scatters: bool = False) -> Figure:
    """Figure 6: change of state against change of activation, layer by layer.

    With ``scatters`` a panel a layer below it, a point a token.
    """
    sections = text_sections(results, "recursive_patterns")
    every = all_layers(sections) if scatters else []
    shown = every[:: -(-len(every) // _MAX_CHANGE_PANELS)] if every else []
    columns = next((n for most, n in ((3, len(shown)), (9, 3), (16, 4)) if len(shown) <= most), 6)
    rows = -(-len(shown) // max(columns, 1))
    figure, axes = page(
        results,
        change_title(results),
        "‖hₜ − hₜ₋₁‖ over the mean ‖h‖ and the same of the residual stream, L2 norms: Spearman "
        f"over tokens; grey: 95 % interval of circular time shifts; {POINTS_SAY}. "
        "Norms: mean over tokens, a line a text where the texts differ."
        + (" Per layer: change of state (across) and of activation (up)." if shown else "")
        + (f" {len(shown)} of {len(every)} layers are shown." if len(shown) < len(every) else ""),
        [(2, 1.3), *[(columns, 1.15 if columns <= 3 else 0.8)] * rows],
        sections,
    )
    panels.plot_change_correlation(sections, axes[0][0])
    components, activations = (
        text_sections(results, name) for name in ("ssm_components", "layer_activations")
    )
    panels.plot_norms(components, activations, axes[0][1])
    cells = [ax for row in axes[1:] for ax in row]
    for ax in cells[len(shown) :]:
        ax.remove()
    for layer, ax in zip(shown, cells, strict=False):
        panels.plot_changes(sections, layer, ax)
    return figure


CORRECTED_FIGURES: dict[str, Callable[..., Figure]] = {
    "ssm_analysis": figure_ssm_analysis,
    "attention_analysis": figure_attention_analysis,
    "neuron_evolution": figure_neuron_evolution,
    "correlation_analysis": figure_correlation_analysis,
    "consistency_analysis": figure_consistency,
    "recursive_state_vs_activation": figure_state_vs_activation_change,
}
"""By file name: functions of (results) or (results, tensors)."""

_BY_KEY = (
    ("memory", MEMORY_FIGURES),
    ("faithfulness", FAITHFULNESS_FIGURES),
    ("input_attribution", TOKEN_SCORE_FIGURES),
    ("direct_attribution", DIRECT_ATTRIBUTION_FIGURES),
    ("layer_correlations", LAYER_CORRELATION_FIGURES),
    ("reset", CAUSAL_FIGURES),
    ("knockout", CAUSAL_FIGURES),
    ("readings", LONG_MEMORY_FIGURES),
    ("corpus", CORPUS_FIGURES),
    ("patching", PATCHING_FIGURES),
    ("by_coefficient", STEERING_FIGURES),
    ("pairs", COMPARISON_FIGURES),
)
"""Figures of the results other than the main analysis's, by a key that these hold."""


def figures_of(results: Section) -> dict[str, Callable[..., Figure]]:
    """The figures that results hold the numbers for, by file name; functions of the results.

    Results of the main analysis, of the memory analysis, of ``intervention_study``,
    ``attribution_faithfulness``, ``direct_attribution``, ``activation_patching``, ``steering``,
    ``model_comparison``, ``long_memory`` or ``corpus_analysis``, live or from JSON. Raises
    ValueError for a dict that is none.
    """
    if "cross_text_analysis" in results:
        figures = OVERVIEW_FIGURES if overview_rows(results) else {}
        figures = {**figures, **CORRECTED_FIGURES}
        if len(results.get("individual_texts", {})) < 2:  # there is nothing to be consistent with
            figures.pop("consistency_analysis", None)
        if "attribution_faithfulness" in results["cross_text_analysis"]:
            figures |= FAITHFULNESS_FIGURES
    else:
        found = next((figures for key, figures in _BY_KEY if key in results), None)
        if found is None:
            raise ValueError(
                f"results hold the keys {sorted(results)}; figures are drawn of the results of the "
                "main or memory analysis, intervention_study, attribution_faithfulness, "
                "direct_attribution, activation_patching, steering, model_comparison, long_memory "
                "or corpus_analysis"
            )
        figures = dict(found)
    return figures | finding_figures(results)


def write_figures(
    results: Section,
    save_dir: StrPath,
    *,
    tensors: Tensors | None = None,
    formats: Sequence[str] = ("png",),
    figures: Mapping[str, Callable[..., Figure]] | None = None,
    failures: dict[str, Any] | None = None,
) -> list[Path]:
    """Draw figures (default: `figures_of`) and write each in each format; returns the paths.

    A file is written whole or not at all. A figure that fails costs itself alone: the others are
    written, and then its error is raised, or recorded by name in ``failures`` where that is given.
    Raises ValueError for an unknown format and a folder that cannot be written. Cost: about half a
    second a figure.
    """
    for name in formats:
        validate_choice("format", name, FIGURE_FORMATS)
    folder = check_output_dir(save_dir)
    paths, errors = [], {}
    wanted = figures_of(results) if figures is None else figures
    for name, draw in progress(list(wanted.items()), desc="figures"):
        try:
            figure = _drawn(draw, results, tensors)
            for kind in formats:
                paths.append(_write(figure, folder / f"{name}.{kind}", kind))
        except Exception as error:
            logger.warning("no figure %s: %s", name, error, exc_info=logger.isEnabledFor(10))
            errors[name] = error
    if errors and failures is None:
        raise next(iter(errors.values()))
    if failures is not None:
        failures.update({name: failure_of(error) for name, error in errors.items()})
    return paths


def write_step_figure(
    folder: Path,
    name: str,
    title: str,
    rows: Sequence[Row],
    caption: str = "",
    formats: Sequence[str] = ("png",),
) -> Path:
    """The picture of a step's table by layer; returns the path of its first format."""
    draw = {name: lambda _: figure_by_layer(title, rows, caption)}
    return write_figures({}, folder, formats=formats, figures=draw)[0]


def figure_files(folder: Path, figures: Iterable[str]) -> list[Path]:
    """Files of these figures, and of pages of findings, that lie in a folder, in any format."""
    names = re.compile(rf"({'|'.join(map(re.escape, figures))}|findings(_\d+)?)")
    return [
        path
        for kind in FIGURE_FORMATS
        for path in folder.glob(f"*.{kind}")
        if names.fullmatch(path.stem)
    ]


def draw_figure(
    results: Section, name: str, tensors: Tensors | None = None, **choices: Any
) -> Figure:
    """One of the figures of `figures_of`, or of the panels of `panels_of`, by name.

    Raises ValueError, listing the names, for an unknown one, and for choices of a whole figure.
    """
    figures, panels = figures_of(results), panels_of(results)
    if name in panels:
        return draw_panel(results, name, tensors, **choices)
    draw = figures[validate_choice("figure", name, [*figures, *panels])]
    if choices:
        raise ValueError(
            f"figure {name!r} takes no choices, {sorted(choices)} were given; panels do: "
            f"{', '.join(panels)}"
        )
    return _drawn(draw, results, tensors)


def _drawn(draw: Callable[..., Figure], results: Section, tensors: Tensors | None) -> Figure:
    takes_tensors = "tensors" in inspect.signature(draw).parameters
    return draw(results, tensors) if takes_tensors else draw(results)


@styled
def _write(figure: Figure, path: Path, kind: str) -> Path:
    with write_atomically(path, "wb") as handle:
        figure.savefig(handle, format=kind, **_SAVING[kind])
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figures of a results file; exit status 2 where it cannot be read."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = recursive_visualizer_options(argv)
    configure_logging(args.debug, args.quiet)
    results, tensors = load_results(args.results)
    claim_output_dir(args.output_dir)
    with drawing_from(args.results):
        paths = write_figures(results, args.output_dir, tensors=tensors, formats=args.formats)
    if not args.quiet:
        print("\n".join(f"Wrote {path}" for path in paths))
    return 0


class Results(dict[str, Any]):
    """A result dict, strict JSON, with its tensors; shown in a notebook as its tables."""

    def __init__(self, results: Row, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(results)
        self.tensors: Mapping[str, Tensor] = {} if tensors is None else tensors
        self._path: StrPath | None = None

    @classmethod
    def open(cls, path: StrPath) -> Results:
        """The results of a JSON file, with the tensors beside it.

        Raises ValueError as `load_results`, and for a file that lacks what its tables are made of.
        """
        opened = cls(*load_results(path))
        opened._path = path
        with drawing_from(path):
            # The tables that a notebook shows.
            for made in (Results.to_dataframe, finding_frame, check_lines):
                made(opened)
        return opened

    @property
    def figure_names(self) -> list[str]:
        """What `figure` can draw of these results."""
        return list(figures_of(self))

    @property
    def panel_names(self) -> list[str]:
        """The single panels that `figure` can draw of these results."""
        return list(panels_of(self))

    def figure(self, name: str, **choices: Any) -> Figure:
        """One of the figures, or a single panel, by name.

        ``choices`` are a panel's: ``text`` and ``layer`` for every one, and its own, as in
        ``figure("attention_map", layer=11, text=0, tokens=(0, 40))``. Raises ValueError, listing
        what there is, for an unknown name or choice.
        """
        if self._path is None:
            return draw_figure(self, name, self.tensors, **choices)
        with drawing_from(self._path):
            return draw_figure(self, name, self.tensors, **choices)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer (main analysis: a text and layer); None where a step gave no result."""
        return pd.DataFrame(list(self.get("memory_by_layer", ())) or layer_rows(self))

    def __repr__(self) -> str:
        """The end of a run in place of megabytes of numbers; `dict(results)` shows those."""
        return run_summary(
            self, [f"Figures, by .figure(name): {', '.join(self.figure_names)}"], claims=False
        )

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in check_lines(self))
        findings = finding_frame(self)
        tables = [frame for frame in (findings, self.to_dataframe()) if not frame.empty]
        names = ", ".join(f"<code>{escape(name)}</code>" for name in self.figure_names)
        shown = "".join(map(table_html, tables))
        # The classes keep a notebook from reading $ as mathematics.
        return (
            f'<div class="tex2jax_ignore mathjax_ignore">{lines}{shown}'
            f"<p>Figures, by <code>.figure(name)</code>: {names}</p></div>"
        )


if __name__ == "__main__":
    raise SystemExit(main())
