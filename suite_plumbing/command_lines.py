"""The options of every command, read before torch and the other large packages are loaded.

Each function here returns the options of the command that it is named after. A module of the root
calls it in its `main`, and, run as a script, hands it to `parse_first` before it imports what takes
seconds, so that `--help` and a wrong option are answered at once. The names of methods, targets and
kinds repeat those of the modules that know them, and a test compares the two.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from suite_plumbing.checks import validate_choice, validate_int
from suite_plumbing.messages import quoted, shortened
from suite_plumbing.no_memory import one_line_without_memory
from suite_plumbing.options import COMMON_OPTIONS, STEP_OPTIONS, add_common_options, refuse_both
from suite_plumbing.signals import end_at_once_on_signals

Argv = Sequence[str] | None
"""Arguments of a command; None is those of the process."""

TARGETS = ("log_probability", "logit", "logit_difference", "loss")

ATTRIBUTION_METHODS = (
    "gradient_x_input", "integrated_gradients", "mamba_lrp", "rollout", "hidden_attention",
    "gradient_rollout", "mamba_attribution", "occlusion", "knockout", "recency", "random",
)  # fmt: skip

STEERING_SITES = ("residual", "mixer", "neurons", "delta", "state")

STEERING_METHODS = ("mean", "pca")

STEERING_MODES = ("add", "project", "scale")

A_ACTIVATIONS = ("softplus", "heavy_tail")

MAIN_OUTPUT_DIR = "corrected_mamba_analysis"

MEMORY_OUTPUT_DIR = "memory_recursion_analysis"

DEFAULT_RESULTS = f"{MAIN_OUTPUT_DIR}/analysis_results.json"
"""Where the main analysis leaves its results unless told otherwise."""


def parse_first(options: Callable[[Argv], argparse.Namespace], argv: Argv = None) -> None:
    """Answer `--help` and refuse wrong options at once; return where there is work to do.

    Ends the process with argparse's statuses, 0 and 2, or with 2 and one line on stderr for a
    ValueError of `options`, as `run_main` would. Until `run_main` begins, a signal ends the process
    at once, and memory that does not suffice for the libraries is one line. Call it before torch is
    imported.
    """
    end_at_once_on_signals()
    one_line_without_memory()
    wait_passively()
    try:
        options(argv)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


def wait_passively() -> None:
    """Let torch's threads sleep while they wait, unless the environment says otherwise.

    By default OpenMP's threads spin for a while, which beside other work on the same cores makes
    small operations 30 to 100 times slower. Read once, when torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _read(parser: argparse.ArgumentParser, argv: Argv) -> argparse.Namespace:
    args = parser.parse_args(argv)
    refuse_both(args, "text", "texts_file")
    if getattr(args, "one_text", False) and args.texts_file is None:
        raise ValueError("--one-text is given without a --texts-file, which it is about")
    refuse_both(args, "debug", "quiet")
    return args


class _Parser(argparse.ArgumentParser):
    """argparse, but a value of any length makes a message of one line."""

    def error(self, message: str) -> NoReturn:
        super().error(shortened(message, 400))


def _parser(description: str, example: str) -> argparse.ArgumentParser:
    return _Parser(description=description, epilog=f"example: python {example}")


def _add_number(parser: argparse.ArgumentParser, name: str, default: int, said: str) -> None:
    """A whole number N, whose help ends with its default."""
    said = f"{said} (default: {default})"
    parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=said)


# Analyses


def main_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of `corrected_recursive_ssm_attention_analyzer`."""
    parser = _parser(
        "Eight-step analysis of recursion, attention and neurons in a Mamba.",
        "corrected_recursive_ssm_attention_analyzer.py "
        "--texts-file my_texts.txt --layers all --output-dir my_analysis",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    _add_number(
        parser, "ablate", 0, "check the neuron methods by ablating N random neurons a layer"
    )
    _add_number(
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
    args = _read(parser, argv)
    validate_int("ablate", args.ablate, 0)
    validate_int("twins", args.twins, 0)
    return args


def memory_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of `run_memory_recursion_analysis` and `memory_recursion_neuron_analyzer`."""
    parser = _parser(
        "Memory of a Mamba: what its states keep, and what its predictions owe to it.",
        "run_memory_recursion_analysis.py --texts-file my_texts.txt --layers all "
        "--num-positions 32",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    _add_number(parser, "num-positions", 16, "tokens of each text at which memory is taken away")
    _add_number(parser, "ablate", 16, "random neurons of each layer that are ablated, at least 3")
    _add_number(
        parser, "num-random", 2,
        "random tokens, and random neurons of the same norm, that each effect is compared with",
    )  # fmt: skip
    _add_number(
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
    args = _read(parser, argv)
    for name, least in (("num_positions", 1), ("ablate", 3), ("num_random", 1), ("twins", 0)):
        validate_int(name.replace("_", "-"), getattr(args, name), least)
    return args


def model_comparison_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
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
    _add_number(
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
    args = _read(parser, argv)
    validate_int("twins", args.twins, 0)
    return args


# Steps


def ssm_component_extractor_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Components (A, B, C, D, delta) and state dynamics of Mamba layers.",
        "ssm_component_extractor.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS)
    parser.set_defaults(output_dir="ssm_components")
    return _read(parser, argv)


def delta_extraction_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Delta of Mamba layers: memory, gate, and the neurons that depend on it.",
        "delta_extraction.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS)
    parser.set_defaults(output_dir="delta_analysis")
    return _read(parser, argv)


def layer_correlation_analyzer_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Correlations across Mamba layers and recursive patterns within them.",
        "layer_correlation_analyzer.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS)
    parser.add_argument(
        "--stream",
        choices=["residual", "mixer"],
        help="correlate layers over the texts, read batch by batch with nothing kept: for corpora; "
        "of the residual stream or of the mixers' outputs",
    )
    parser.set_defaults(output_dir="layer_correlations")
    return _read(parser, argv)


def attention_neurons_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Implicit attention of Mamba layers, and neurons by three methods.",
        "attention_neurons.py --text 'some text' --layers 0,3 --ablate 32",
    )
    add_common_options(parser, *STEP_OPTIONS)
    parser.add_argument("--target", default="log_probability", choices=TARGETS)
    parser.add_argument("--token", help="token that the target is about (default: the likeliest)")
    parser.add_argument("--contrast", help="second token of --target logit_difference")
    _add_number(parser, "ablate", 0, "check the methods against ablating N random neurons a layer")
    parser.set_defaults(output_dir="attention_neurons")
    args = _read(parser, argv)
    validate_int("ablate", args.ablate, 0)
    return args


def intervention_study_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Causal memory of Mamba layers: KL after resetting the state, or hiding one "
        "source, by the lag.",
        "intervention_study.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.add_argument(
        "--kind", choices=["reset", "knockout", "both"], default="both",
        help="the state erased, one source hidden from it, or both (default: both)",
    )  # fmt: skip
    _add_number(parser, "num-positions", 32, "tokens of each text at which that is done")
    parser.add_argument("--max-lag", type=int, metavar="TOKENS", help="default: half a text, or 64")
    parser.add_argument(
        "--direct", action="store_true",
        help="effects with every later SSM layer held at what it wrote (default: total effects)",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", action="store_true",
        help="also intervene in every two of the layers at once, beside each alone",
    )  # fmt: skip
    parser.set_defaults(output_dir="intervention_study")
    args = _read(parser, argv)
    validate_int("num-positions", args.num_positions, 1)
    return args


def input_attribution_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Attribution of a scalar of the model's output to the tokens of its input.",
        "input_attribution.py --text 'some text' --method mamba_lrp",
    )
    add_common_options(parser, *(name for name in STEP_OPTIONS if name != "layers"), "formats")
    parser.add_argument("--method", choices=ATTRIBUTION_METHODS, default="mamba_lrp")
    parser.add_argument("--target", choices=TARGETS, default="logit")
    parser.add_argument("--token", help="token explained (default: the likeliest next one)")
    parser.add_argument("--contrast", help="second token of a logit_difference")
    parser.set_defaults(output_dir="input_attribution", layers=None)
    return _read(parser, argv)


def direct_attribution_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
        "Direct attribution of a logit to layers, paths, source tokens and neurons; logit lens.",
        "direct_attribution.py --text 'some text' --token ' word' --total-effects",
    )
    add_common_options(parser, *(name for name in STEP_OPTIONS if name != "layers"), "formats")
    parser.add_argument("--token", help="token whose logit is attributed (default: the likeliest)")
    parser.add_argument("--contrast", help="token whose logit is subtracted (default: none)")
    parser.add_argument(
        "--position", type=int, default=-1, metavar="N",
        help="token after which the prediction is read; negative from the end (default: -1)",
    )  # fmt: skip
    parser.add_argument(
        "--total-effects", action="store_true",
        help="also take each layer's write away and measure the logit",
    )  # fmt: skip
    parser.add_argument(
        "--tuned-lens", action="store_true",
        help="also fit a tuned lens to all texts but the last, and measure it on that one",
    )  # fmt: skip
    parser.set_defaults(output_dir="direct_attribution", layers=None)
    return _read(parser, argv)


def attribution_faithfulness_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `methods` is None for all of them."""
    parser = _parser(
        "Faithfulness of attributions to input tokens, against random orders.",
        "attribution_faithfulness.py --texts-file book.txt --num-texts 100",
    )
    add_common_options(parser, *(name for name in STEP_OPTIONS if name != "layers"), "formats")
    parser.add_argument(
        "--methods", help=f"with commas between; of {', '.join(ATTRIBUTION_METHODS)}"
    )
    parser.add_argument("--target", choices=TARGETS, default="logit")
    parser.add_argument("--baseline", default="mean", help="mean, padding, zero, or a token id")
    parser.add_argument("--num-texts", type=int, default=100, help="at most, spread over the file")
    parser.add_argument("--min-tokens", type=int, default=16, help="shorter texts are left out")
    parser.add_argument("--num-steps", type=int, default=10, help="points of the curves")
    parser.add_argument("--num-random", type=int, default=4, help="random orders of each text")
    parser.add_argument("--num-randomised-texts", type=int, default=8, help="0: no such test")
    parser.set_defaults(
        output_dir="attribution_faithfulness", layers=None, max_sequence_length=64, batch_size=32
    )
    args = _read(parser, argv)
    validate_int("min-tokens", args.min_tokens, 2)
    validate_int("num-texts", args.num_texts, 1)
    args.methods = None if args.methods is None else args.methods.split(",")
    for name in args.methods or ():
        validate_choice("method", name, ATTRIBUTION_METHODS)
    return args


def steering_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `coefficients` as numbers, `position` None for the mean."""
    parser = _parser(
        "A Mamba steered: a vector from contrastive texts, what it does and what it costs.",
        "steering.py --positive 'the sea' --negative 'the house' --token ' sea' --layer 6",
    )
    for kind in ("positive", "negative"):
        parser.add_argument(f"--{kind}", action="append", metavar="TEXT", help=_CONTRAST_HELP[kind])
        parser.add_argument(f"--{kind}-file", metavar="FILE", help="the same, as --texts-file")
    parser.add_argument("--vector", metavar="FILE", help="a saved vector in place of such texts")
    parser.add_argument(
        "--layer", type=int, metavar="N", help="default: the middle one with an SSM"
    )
    parser.add_argument("--site", choices=STEERING_SITES, default="residual")
    parser.add_argument("--method", choices=STEERING_METHODS, default="mean")
    parser.add_argument(
        "--position", default="mean", metavar="N|mean",
        help="token of the texts that is read, -1 is the last (default: the mean over all)",
    )  # fmt: skip
    parser.add_argument("--mode", choices=STEERING_MODES, default="add")
    parser.add_argument("--coefficients", default="-4,-2,-1,-0.5,0.5,1,2,4", metavar="-1,1")
    parser.add_argument("--prompt", action="append", help="text whose continuation is steered")
    parser.add_argument("--token", help="token whose probability is followed (default: the first "
                        "prompt's likeliest next one)")  # fmt: skip
    _add_number(parser, "num-random", 20, "random vectors of the same norm, at least 20")
    _add_number(parser, "generate", 24, "tokens that the first prompt is continued by, steered")
    names = (*(name for name in STEP_OPTIONS if name not in ("layers", "batch_size")), "formats")
    add_common_options(parser, *names)
    parser.set_defaults(output_dir="steering", layers=None)
    args = _read(parser, argv)
    validate_int("num-random", args.num_random, 20)
    validate_int("generate", args.generate, 0)
    args.coefficients = parse_numbers("coefficients", args.coefficients)
    args.position = None if args.position == "mean" else parse_whole("position", args.position)
    _check_contrast(args)
    return args


_CONTRAST_HELP = {
    "positive": "text that the vector leads to; may be given several times",
    "negative": "text that it leads away from; may be given several times",
}


def _check_contrast(args: argparse.Namespace) -> None:
    refuse_both(args, "positive", "positive_file")
    refuse_both(args, "negative", "negative_file")
    given = [
        getattr(args, kind) or getattr(args, f"{kind}_file") for kind in ("positive", "negative")
    ]
    if args.vector is not None and any(given):
        raise ValueError("--vector and contrastive texts are both given; pass one of them")
    if any(given) and not all(given):
        raise ValueError("contrastive texts are of one kind only; pass --positive and --negative")


def parse_numbers(name: str, listed: str) -> list[float]:
    """Numbers from "-1,0.5"; ValueError for anything else."""
    try:
        return [float(part) for part in listed.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name} is {quoted(listed)}; pass numbers, as in -1,0.5") from None


def parse_whole(name: str, value: str) -> int:
    """A whole number, or ValueError."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} is {quoted(value)}; pass a whole number, or mean") from None


def long_memory_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `windows` as a list of widths."""
    parser = _parser(
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
    args = _read(parser, argv)
    args.windows = parse_widths(args.windows)
    if args.max_tokens is not None:
        validate_int("max-tokens", args.max_tokens, 2)
    return args


ENGINES = ("processes", "datatrove", "slurm", "ray")


def corpus_analysis_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
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
    _add_number(parser, "workers", 1, "tasks run at once; the result does not depend on it")
    parser.add_argument(
        "--engine", choices=ENGINES, default="processes",
        help="who runs them: processes of this machine, or datatrove's executors, which need "
        "requirements-scale.txt (default: processes)",
    )  # fmt: skip
    _add_number(parser, "max-failures", 100, "texts of a task that may be unreadable")
    _add_number(parser, "batch-tokens", 1024, "tokens of a batch, padding included")
    _add_number(parser, "maps-every", 4, "one text in N gives attention maps, states and pairs")
    _add_number(parser, "importance-every", 64, "one in N gives importance by gradients; 0: none")
    parser.add_argument(
        "--carry", action="store_true",
        help="read each document as one stream, its state carried from window to window",
    )  # fmt: skip
    _add_number(parser, "threads", 1, "of each worker; they decide over last bits")
    parser.add_argument("--slurm-time", default="12:00:00", metavar="H:M:S", help="for slurm")
    parser.add_argument("--slurm-partition", default="cpu", metavar="NAME", help="for slurm")
    parser.set_defaults(output_dir="corpus_analysis")
    return _checked_corpus(_read(parser, argv))


def _checked_corpus(args: argparse.Namespace) -> argparse.Namespace:
    refuse_both(args, "dataset", "texts_file")
    refuse_both(args, "dataset", "text")
    least = {"workers": 1, "max_failures": 0, "batch_tokens": 2, "maps_every": 1,
             "importance_every": 0, "threads": 1}  # fmt: skip
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


def parse_widths(listed: str) -> list[int]:
    """Widths of windows from "128,512"; ValueError for anything but whole numbers."""
    try:
        return [int(part) for part in listed.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"windows is {quoted(listed)}; pass whole numbers, as in 128,512"
        ) from None


PATCHING_SITES = (
    "residual", "mixer", "u", "delta", "B", "C", "gate", "y", "state", "window",
)  # fmt: skip

PATCHING_METRICS = ("logit_difference", "log_probability", "kl")


def activation_patching_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `sites` as a list of names."""
    parser = _parser(
        "Values of a clean run put into a corrupt one: which layer, token and stage decides.",
        "activation_patching.py pairs.jsonl --sites state,window",
    )
    parser.add_argument(
        "pairs", metavar="PAIRS.jsonl",
        help="an object a line, with the texts clean and corrupt, and answers, two tokens",
    )  # fmt: skip
    add_common_options(
        parser, "model", "tokenizer", "device", "dtype", "output_dir", "formats", "seed", "debug",
        "quiet",
    )  # fmt: skip
    parser.add_argument(
        "--sites", default=",".join(PATCHING_SITES), metavar="state,window",
        help=f"with commas between; of {', '.join(PATCHING_SITES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--metric", choices=PATCHING_METRICS, default="logit_difference")
    parser.add_argument("--direction", choices=["denoising", "noising"], default="denoising")
    parser.add_argument(
        "--position", type=int, default=-1, metavar="N",
        help="token after which the prediction is read, -1 is the last (default: -1)",
    )  # fmt: skip
    _add_number(
        parser, "steps", 5, "points of the path that attribution takes gradients at; 0: one"
    )
    parser.add_argument("--no-control", action="store_true", help="no patches from unrelated pairs")
    parser.add_argument(
        "--circuit", action="store_true",
        help="also circuits of the strongest edges, beside random ones: some 500 forwards a pair",
    )  # fmt: skip
    parser.set_defaults(output_dir="activation_patching")
    args = _read(parser, argv)
    validate_int("steps", args.steps, 0)
    args.sites = args.sites.split(",")
    for site in args.sites:
        validate_choice("site", site, PATCHING_SITES)
    return args


# Readers of results


def recursive_visualizer_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
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
    return _read(parser, argv)


def recursive_analysis_report_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `results` is given by its place or by its option."""
    parser = _parser(
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
    args = _read(parser, argv)
    if args.named is not None and args.results is not None:
        raise ValueError("results are named twice, by their place and by --results; pass one")
    given = args.results if args.named is None else args.named
    args.results = DEFAULT_RESULTS if given is None else given
    return args


def convert_checkpoint_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = _parser(
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
    return _read(parser, argv)
