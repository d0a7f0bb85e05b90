"""Which attributions and which neuron rankings say what a model uses? On passages of a book.

Attributions to input tokens are tried by perturbation (``attribution_faithfulness``), neuron
methods by ablating random neurons of every layer (``causal_interventions.neuron_effects``).
Passages of equal length, spread evenly over the text, each from the start of a token to its end.

How to run (any plain text that the model was not trained on; the demo model is the default)::

    python benchmarks/faithfulness.py treasure_island.txt --save
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# The suite's folder has to be on the path when this file is run as a script.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from suite_plumbing.command_lines import wait_passively

if __name__ == "__main__":
    wait_passively()

import pandas as pd
from transformers import PreTrainedModel

from attention_neurons import NEURON_METHODS, attention_data, layer_parameters
from attribution_faithfulness import FaithfulnessTable, faithfulness_table
from benchmarks.commands import RESULTS_FOLDER, add_book_options, benchmark_parser, keep
from benchmarks.passages import encoded_passages
from causal_interventions.neuron_effects import ABLATION_VALUES, ablation_check
from causal_interventions.targets import resolve_target
from mamba_mixers.sites import model_layers
from result_views.report.markdown import markdown_table
from ssm_component_extractor import capture_texts
from suite_plumbing.arguments import validate_int
from suite_plumbing.commands import run_main
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.result_files import write_json
from suite_plumbing.texts import EncodedText, read_book
from token_statistics.intervals import MeanInterval, mean_interval

RESULTS = RESULTS_FOLDER / "faithfulness.md"

Estimates = dict[str, dict[int, MeanInterval]]
"""By method and kind of ablation, by layer: mean over texts, and its 95 % interval."""


def neuron_agreement(
    model: PreTrainedModel, encoded: Sequence[EncodedText], num_neurons: int, seed: int
) -> Estimates:
    """Spearman of each neuron method's importance with |ablation effect|, by layer and by what the
    neuron is set to: its mean, zero, or its values on the next text."""
    layers, target = model_layers(model, "all"), resolve_target()
    parameters = layer_parameters(model, layers)
    found: dict[str, dict[int, list[float]]] = {}
    others = [*encoded[1:], encoded[0]]
    for text, other in progress(list(zip(encoded, others, strict=True)), desc="texts"):
        captured, donor = capture_texts(model, [text, other], layers, batch_size=1)
        data = attention_data(captured, parameters)
        sets = {name: make(data, model, target) for name, make in NEURON_METHODS.items()}
        checked = ablation_check(
            model, captured, sets, target, num_neurons, seed=seed, values=ABLATION_VALUES,
            donor=donor,
        )  # fmt: skip
        for layer, check in checked.items():
            for value, part in check["by_value"].items():
                for method, agreement in part["agreement"].items():
                    if agreement["spearman"] is not None:
                        by_layer = found.setdefault(f"{method}, {value}", {})
                        by_layer.setdefault(layer, []).append(agreement["spearman"])
    return {
        method: {
            layer: mean_interval(values, least=-1.0, largest=1.0)
            for layer, values in by_layer.items()
        }
        for method, by_layer in found.items()
    }


def attribution_table(table: FaithfulnessTable) -> str:
    """Markdown: a row a method, the best first."""
    columns = {
        "method": lambda row: row["method"],
        "ΔA^F": lambda row: _interval(row, "delta_af"),
        "ΔA^F, another text's tokens": lambda row: _interval(row, "delta_af_other_text"),
        "over random": lambda row: _interval(row, "delta_af_over_random"),
        "over recency": lambda row: _interval(row, "delta_af_over_recency"),
        "p of that": lambda row: _number(row["delta_af_over_recency_p"], ".2g"),
        "over rollout": lambda row: _interval(row, "delta_af_over_rollout"),
        "compr.": lambda row: f"{row['comprehensiveness']:.2f}",
        "suff.": lambda row: f"{row['sufficiency']:.2f}",
        "Spearman with occlusion": lambda row: _interval(row, "spearman_occlusion"),
        "conservation error: median, largest": _conservation,
        "Spearman, all layers randomised": lambda row: _number(
            row["spearman_all_layers_randomised"], ".2f"
        ),
    }
    rows = [row | {"num_texts": table.num_texts} for row in table.rows()]
    cells = [{name: cell(row) for name, cell in columns.items()} for row in rows]
    return _markdown(pd.DataFrame(cells))


def neuron_table(estimates: Estimates) -> str:
    """Markdown: a row a layer, a column a neuron method."""
    methods = list(estimates)
    rows = [
        {"layer": layer}
        | {name: estimates[name][layer].text(".2f") for name in methods if layer in estimates[name]}
        for layer in sorted(estimates[methods[0]])
    ]
    return _markdown(pd.DataFrame(rows).fillna(""))


def _markdown(frame: pd.DataFrame) -> str:
    body = [list(map(str, row)) for row in frame.itertuples(index=False)]
    return "\n".join(markdown_table(list(map(str, frame.columns)), body)).rstrip("\n")


def _interval(row: Mapping, name: str) -> str:
    n = row["num_texts"]
    return MeanInterval(row[name], row[f"{name}_low"], row[f"{name}_high"], n).text(".2f")


def _conservation(row: Mapping) -> str:
    median, largest = row["conservation_error_median"], row["conservation_error_max"]
    return "" if median is None else f"{median:.1e}, {largest:.1e}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables, and with --save keep them under benchmarks/results."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    parser = benchmark_parser(
        __doc__, "two tables: attributions by method, neuron methods by layer"
    )
    add_book_options(parser)
    parser.add_argument("--texts", type=int, default=100, help="passages for the attributions")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--neuron-texts", type=int, default=12, help="passages for the neurons")
    parser.add_argument("--neurons", type=int, default=32, help="neurons ablated a layer and text")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    count, length = validate_int("texts", args.texts, 2), validate_int("tokens", args.tokens, 8)
    validate_int("neuron-texts", args.neuron_texts, 2, count)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    encoded = encoded_passages(read_book(args.text), tokenizer, count, length)
    table = faithfulness_table(model, tokenizer, encoded, seed=args.seed)
    chosen = encoded[:: count // args.neuron_texts][: args.neuron_texts]
    neurons = neuron_agreement(model, chosen, validate_int("neurons", args.neurons, 3), args.seed)
    report = (
        f"{count} passages of about {length} tokens; target: the logit of the model's own most "
        f"likely next token; a token is replaced by {table.baseline}; {table.num_random} random "
        "orders a passage; 95 % intervals by resampling passages.\n\n"
        f"{attribution_table(table)}\n\n"
        f"Spearman of a neuron method's importance with the effect of setting a neuron to its "
        f"mean: {args.neurons} random neurons of each layer, {args.neuron_texts} passages; target: "
        f"log-probability of that token.\n\n{neuron_table(neurons)}\n"
    )
    print(report)
    if args.save:
        keep(RESULTS, report)
        write_json(RESULTS.with_suffix(".json"), {"attributions": table.to_dict()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
