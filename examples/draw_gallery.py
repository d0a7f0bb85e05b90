"""Draw the pictures of the documentation: the demo model on the built-in texts.

Run it anew when the demo model or a figure has changed; it writes ``docs/*.png``, quantised to few
colours so that they stay small. Cost: the main and the memory analysis, about a minute.

``python examples/draw_gallery.py``
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

from PIL import Image

# ruff: noqa: E402 - the suite's modules lie beside this folder
from corrected_recursive_ssm_attention_analyzer import CorrectedRecursiveSSMAttentionNeuronAnalyzer
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from recursive_visualizer import Results
from result_views.figures import analysis_panels, memory_panels
from result_views.figures.pages import page, styled
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.commands import run_main
from suite_plumbing.result_files import check_output_dir
from suite_plumbing.result_reading import text_sections
from suite_plumbing.texts import EXAMPLE_TEXTS

GALLERY = {
    "main": ("overview", "ssm_analysis", "attention_analysis", "neuron_evolution",
             "correlation_analysis",
             "consistency_analysis", "recursive_state_vs_activation", "findings"),
    "memory": ("neuron_activation_patterns", "memory_effects", "recursive_patterns",
               "cross_layer_correlations", "ssm_neuron_correlations", "causal_memory"),
}  # fmt: skip
"""Figures of the gallery by analysis."""

_DPI = 80
_COLOURS = 192
_MAP_TOKENS = 48


@styled
def figure_first_look(main: Mapping[str, Any], memory: Mapping[str, Any], tensors: Any) -> Any:
    """Three panels: a map of implicit attention, the memory kernels, and what a reset costs."""
    layer = main["analysis_metadata"]["layer_indices"][-1]
    tokens = main["individual_texts"]["text_0"]["tokens"][:_MAP_TOKENS]
    matrix = tensors[f"text_0.layer_{layer}.attention"][:_MAP_TOKENS, :_MAP_TOKENS].numpy()
    figure, axes = page(
        main, "What the state of a Mamba carries, and what predictions lose without it",
        f"Left: implicit attention of layer {layer}, mean over channels, first {_MAP_TOKENS} "
        "tokens of a text. Middle: share of attention by lag, a line a layer and text. Right: KL "
        "of the next-token distribution after the state is erased, by the tokens since: one layer "
        "alone, or (black) all of them. Colours are layers.",
        [(3, 1.5)], {},
    )  # fmt: skip
    analysis_panels.plot_attention_map(matrix, tokens, axes[0][0], "Implicit attention")
    analysis_panels.plot_memory_kernel(text_sections(main, "attention_data"), axes[0][1])
    memory_panels.plot_causal(memory["memory"]["causal_memory"], "reset", axes[0][2])
    return figure


def write_small(figure: Any, path: Path, dpi: int = _DPI) -> Path:
    """Save a figure as a PNG of few colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def analyses(model: Any, texts: Sequence[str], **options: Any) -> dict[str, Results]:
    """Results of both analyses; ``options`` go to both analyzers."""
    main = CorrectedRecursiveSSMAttentionNeuronAnalyzer(model, **options)
    memory = MemoryRecursionNeuronAnalyzer(model, **options)
    return {
        "main": main.analyze_recursive_ssm_attention_effects(texts),
        "memory": memory.analyze_memory_recursion_effects(texts),
    }


def draw(found: Mapping[str, Results], folder: Path) -> list[Path]:
    """Write the first look and the gallery; returns the paths."""
    main, memory = found["main"], found["memory"]
    first = figure_first_look(main, memory, main.tensors)
    paths = [write_small(first, folder / "first_look.png", dpi=120)]
    return paths + [
        write_small(found[kind].figure(name), folder / f"{name}.png")
        for kind, names in GALLERY.items()
        for name in names
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the documentation's pictures."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Draw the pictures of the documentation from the demo model.",
        epilog="example: python examples/draw_gallery.py --output-dir docs",
    )
    parser.add_argument("--output-dir", default=str(ROOT / "docs"), metavar="FOLDER")
    folder = check_output_dir(parser.parse_args(argv).output_dir)
    for path in draw(analyses(DEMO_MODEL_PATH, list(EXAMPLE_TEXTS)), folder):
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
