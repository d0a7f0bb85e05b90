"""The options of the commands that run an analysis, and of those that read what one has written.

Each function returns the options of the command that it is named after.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from suite_plumbing.checks import validate_int
from suite_plumbing.command_lines import Argv, add_number, new_parser, parse_widths, read_options
from suite_plumbing.messages import quoted
from suite_plumbing.options import COMMON_OPTIONS, STEP_OPTIONS, add_common_options, refuse_both

MAIN_OUTPUT_DIR = "corrected_mamba_analysis"

MEMORY_OUTPUT_DIR = "memory_recursion_analysis"

DEFAULT_RESULTS = f"{MAIN_OUTPUT_DIR}/analysis_results.json"
"""Where the main analysis leaves its results unless told otherwise."""

ENGINES = ("processes", "datatrove", "slurm", "ray")

A_ACTIVATIONS = ("softplus", "heavy_tail")


def main_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of `corrected_recursive_ssm_attention_analyzer`."""
    parser = new_parser(
        "Eight-step analysis of recursion, attention and neurons in a Mamba.",
        "corrected_recursive_ssm_attention_analyzer.py "
        "--texts-file my_texts.txt --layers all --output-dir my_analysis",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    add_number(parser, "ablate", 0, "check the neuron methods by ablating N random neurons a layer")
    add_number(
        parser, "twins", 0,
        "also analyse N untrained twins of each of two kinds, fresh and permuted weights, which a "
        "supported claim has to exceed: 2 N more analyses, each as long as the model's; 5 show "
        "large effects, 19 moderate ones",
    )  # fmt: skip
    parser.add_argument(
        "--faithfulness",
        action="store_true",
        help="also attribute each prediction to input tokens and measure how faithful that is",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the texts that a run of the same configuration, stopped in the same "
        "output folder, has analysed",
    )
    parser.set_defaults(output_dir=MAIN_OUTPUT_DIR)
    args = read_options(parser, argv)
    validate_int("ablate", args.ablate, 0)
    validate_int("twins", args.twins, 0)
    return args


def memory_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of `run_memory_recursion_analysis` and `memory_recursion_neuron_analyzer`."""
    parser = new_parser(
        "Memory of a Mamba: what its states keep, and what its predictions owe to it.",
        "run_memory_recursion_analysis.py --texts-file my_texts.txt --layers all "
        "--num-positions 32",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    add_number(parser, "num-positions", 16, "tokens of each text at which memory is taken away")
    add_number(parser, "ablate", 16, "random neurons of each layer that are ablated, at least 3")
    add_number(
        parser, "num-random", 2,
        "random tokens, and random neurons of the same norm, that each effect is compared with",
    )  # fmt: skip
    add_number(
        parser, "twins", 0, "also try the claims on N untrained twins of each of two kinds, fresh "
        "and permuted weights, which a supported claim has to exceed: each takes about as long as "
        "the model; 5 show large effects, 19 moderate ones",
    )  # fmt: skip
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from what a run of the same configuration, stopped in the same output folder, "
        "has measured",
    )
    parser.set_defaults(output_dir=MEMORY_OUTPUT_DIR)
    args = read_options(parser, argv)
    for name, least in (("num_positions", 1), ("ablate", 3), ("num_random", 1), ("twins", 0)):
        validate_int(name.replace("_", "-"), getattr(args, name), least)
    return args


def model_comparison_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "The same texts through several models: attention, memory and layers compared.",
        "model_comparison.py --model demo_model --model path/to/another",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME_OR_PATH",
        help="model folder or hub name; give two or more (one is compared with an untrained twin; "
        "default: the bundled demo model)",
    )
    parser.add_argument(
        "--tokenizer",
        action="append",
        metavar="NAME_OR_PATH",
        help="tokenizer of all models, or one for each (default: those beside their weights)",
    )
    add_number(
        parser,
        "twins",
        0,
        "untrained twins of each of two kinds, fresh and permuted weights, of "
        "every model to compare with: 2 N more comparisons; verdicts need 19",
    )
    layers: dict[str, Any] = COMMON_OPTIONS["layers"] | {
        "help": "layers to compare; -1 is the last (default: all)"
    }
    parser.add_argument("--layers", **layers)
    add_common_options(
        parser, "text", "texts_file", "one_text", "max_sequence_length", "device", "dtype",
        "output_dir", "formats", "seed", "debug", "quiet",
    )  # fmt: skip
    parser.set_defaults(output_dir="model_comparison")
    args = read_options(parser, argv)
    validate_int("twins", args.twins, 0)
    return args


def long_memory_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `windows` as a list of widths."""
    parser = new_parser(
        "A long text read through: what memory is worth, and what the states do.",
        "long_memory.py book.txt --max-tokens 65536",
    )
    parser.add_argument("book", help="a plain text file, read as one text")
    add_common_options(
        parser, "model", "tokenizer", "layers", "device", "dtype", "output_dir", "formats", "seed",
        "debug", "quiet",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, metavar="N", help="read no more than these")
    parser.add_argument(
        "--chunk-size", type=int, default=512, metavar="TOKENS",
        help="tokens read at once; the result does not depend on it (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "--windows", default="128,512,2048", metavar="128,512",
        help="widths of the windows, in tokens (default: 128,512,2048)",
    )  # fmt: skip
    parser.set_defaults(output_dir="long_memory")
    args = read_options(parser, argv)
    args.windows = parse_widths(args.windows)
    if args.max_tokens is not None:
        validate_int("max-tokens", args.max_tokens, 2)
    return args


def corpus_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "A corpus of any number of texts: sums by layer, neuron and token, and an atlas of them. "
        "The same command again goes on where a run was stopped.",
        "corpus_analysis.py --texts-file books/ --one-text --layers all --workers 2",
    )
    add_common_options(
        parser, "model", "tokenizer", "text", "texts_file", "one_text", "layers",
        "max_sequence_length", "device", "dtype", "output_dir", "formats", "seed", "debug", "quiet",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", metavar="NAME_OR_FOLDER", help="read this data set (needs datasets)"
    )
    parser.add_argument("--split", default="train", help="of the data set (default: train)")
    parser.add_argument(
        "--text-field", default="text", metavar="FIELD",
        help="where records have their text (default: text)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", type=int, metavar="N",
        help="parts that the corpus is shared out in; never changes within an output folder "
        "(default: 16)",
    )  # fmt: skip
    add_number(parser, "workers", 1, "tasks run at once; the result does not depend on it")
    parser.add_argument(
        "--engine", choices=ENGINES, default="processes",
        help="who runs them: processes of this machine, or datatrove's executors, which need "
        "requirements-scale.txt (default: processes)",
    )  # fmt: skip
    add_number(parser, "max-failures", 100, "texts of a task that may be unreadable")
    add_number(parser, "batch-tokens", 1024, "tokens of a batch, padding included")
    add_number(parser, "maps-every", 4, "one text in N gives attention maps, states and pairs")
    add_number(parser, "importance-every", 64, "one in N gives importance by gradients; 0: none")
    parser.add_argument(
        "--carry", action="store_true",
        help="read each document as one stream, its state carried from window to window",
    )  # fmt: skip
    add_number(parser, "threads", 1, "of each worker; they decide over last bits")
    parser.add_argument("--slurm-time", default="12:00:00", metavar="H:M:S", help="for slurm")
    parser.add_argument("--slurm-partition", default="cpu", metavar="NAME", help="for slurm")
    add_number(parser, "slurm-memory", 8, "GB of a task, for slurm")
    parser.set_defaults(output_dir="corpus_analysis")
    return _checked_corpus(read_options(parser, argv))


def _checked_corpus(args: argparse.Namespace) -> argparse.Namespace:
    refuse_both(args, "dataset", "texts_file")
    refuse_both(args, "dataset", "text")
    least = {"workers": 1, "max_failures": 0, "batch_tokens": 2, "maps_every": 1,
             "importance_every": 0, "threads": 1, "slurm_memory": 1}  # fmt: skip
    for name, minimum in least.items():
        validate_int(name.replace("_", "-"), getattr(args, name), minimum)
    if args.tasks is not None:
        validate_int("tasks", args.tasks, 1, 100_000)
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", args.slurm_time):
        raise ValueError(
            f"slurm-time is {quoted(args.slurm_time)}; pass a time as Slurm takes it, as in "
            "12:00:00 or 2-00:00:00"
        )
    if not re.fullmatch(r"[^\s,]+(,[^\s,]+)*", args.slurm_partition):
        raise ValueError(
            f"slurm-partition is {quoted(args.slurm_partition)}; name a partition, or several "
            "with commas between them"
        )
    return args


def recursive_visualizer_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Draw the figures of saved results: those of the main or memory analysis, "
        "intervention_study, attribution_faithfulness, model_comparison, long_memory or "
        "activation_patching.",
        "recursive_visualizer.py my_analysis/analysis_results.json --formats png,pdf",
    )
    parser.add_argument(
        "results", nargs="?", default=DEFAULT_RESULTS, metavar="RESULTS.json",
        help=f"what one of the commands wrote (default: {DEFAULT_RESULTS})",
    )  # fmt: skip
    add_common_options(parser, "output_dir", "formats", "debug", "quiet")
    parser.set_defaults(output_dir="recursive_analysis_plots")
    return read_options(parser, argv)


def recursive_analysis_report_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `results` is given by its place or by its option."""
    parser = new_parser(
        "Report of an analysis, from its files: report.html, to open in a browser, and report.md.",
        "recursive_analysis_report.py "
        "--results my_analysis/analysis_results.json --output-dir my_report. Exit status: 0 "
        "written, 2 results that cannot be read or a folder that cannot be written.",
    )
    parser.add_argument(
        "results", nargs="?", metavar="RESULTS.json",
        help=f"results of the main analysis, with its tensors beside it "
        f"(default: {DEFAULT_RESULTS})",
    )  # fmt: skip
    parser.add_argument(
        "--results", dest="named", metavar="RESULTS.json", help="the same, as an option"
    )
    parser.add_argument(
        "--memory-results", metavar="FILE",
        help="results of the memory analysis, to report them too (default: none)",
    )  # fmt: skip
    add_common_options(parser, "output_dir", "formats", "debug", "quiet")
    parser.set_defaults(output_dir="recursive_analysis_reports")
    args = read_options(parser, argv)
    if args.named is not None and args.results is not None:
        raise ValueError("results are named twice, by their place and by --results; pass one")
    given = args.results if args.named is None else args.named
    args.results = DEFAULT_RESULTS if given is None else given
    return args


def convert_checkpoint_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "A checkpoint of mamba_ssm's or mambapy's as a folder that transformers reads.",
        "convert_checkpoint.py path/to/mamba-130m path/to/mamba-130m-hf --dtype float16",
    )
    parser.add_argument("folder", help="holds config.json and the weights")
    parser.add_argument("out", help="a new folder")
    parser.add_argument(
        "--a-activation",
        choices=A_ACTIVATIONS,
        help="of a Mamba-3: what its decay rates pass, which its configuration does not say",
    )
    add_common_options(parser, "dtype", "debug", "quiet")
    parser.set_defaults(dtype="float32")
    return read_options(parser, argv)
