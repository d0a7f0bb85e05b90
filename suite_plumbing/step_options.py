"""The options of the commands that take one step: components, neurons, interventions, attributions.

Each function returns the options of the command that it is named after. The names of methods,
targets and kinds repeat those of the modules that know them, and a test compares the two.
"""

from __future__ import annotations

import argparse

from suite_plumbing.checks import validate_choice, validate_int
from suite_plumbing.command_lines import (
    Argv,
    add_number,
    new_parser,
    parse_numbers,
    parse_whole,
    read_options,
)
from suite_plumbing.options import STEP_OPTIONS, add_common_options, refuse_both

TARGETS = ("log_probability", "logit", "logit_difference", "loss")

ATTRIBUTION_METHODS = (
    "gradient_x_input", "integrated_gradients", "mamba_lrp", "rollout", "hidden_attention",
    "gradient_rollout", "mamba_attribution", "occlusion", "knockout", "recency", "random",
)  # fmt: skip

STEERING_SITES = ("residual", "mixer", "neurons", "delta", "state")

STEERING_METHODS = ("mean", "pca")

STEERING_MODES = ("add", "project", "scale")

PATCHING_SITES = (
    "residual", "mixer", "u", "delta", "B", "C", "gate", "y", "state", "window",
)  # fmt: skip

PATCHING_METRICS = ("logit_difference", "log_probability", "kl")


def ssm_component_extractor_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Components (A, B, C, D, delta) and state dynamics of Mamba layers.",
        "ssm_component_extractor.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.set_defaults(output_dir="ssm_components")
    return read_options(parser, argv)


def delta_extraction_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Delta of Mamba layers: memory, gate, and the neurons that depend on it.",
        "delta_extraction.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.set_defaults(output_dir="delta_analysis")
    return read_options(parser, argv)


def layer_correlation_analyzer_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Correlations across Mamba layers and recursive patterns within them.",
        "layer_correlation_analyzer.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.add_argument(
        "--stream",
        choices=["residual", "mixer"],
        help="correlate layers over the texts, read batch by batch with nothing kept: for corpora; "
        "of the residual stream or of the mixers' outputs",
    )
    parser.set_defaults(output_dir="layer_correlations")
    return read_options(parser, argv)


def attention_neurons_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Implicit attention of Mamba layers, and neurons by three methods.",
        "attention_neurons.py --text 'some text' --layers 0,3 --ablate 32",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.add_argument("--target", default="log_probability", choices=TARGETS)
    parser.add_argument("--token", help="token that the target is about (default: the likeliest)")
    parser.add_argument("--contrast", help="second token of --target logit_difference")
    add_number(parser, "ablate", 0, "check the methods against ablating N random neurons a layer")
    parser.set_defaults(output_dir="attention_neurons")
    args = read_options(parser, argv)
    validate_int("ablate", args.ablate, 0)
    return args


def intervention_study_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Causal memory of Mamba layers: KL after resetting the state, or hiding one "
        "source, by the lag.",
        "intervention_study.py --text 'some text' --layers 0,3",
    )
    add_common_options(parser, *STEP_OPTIONS, "formats")
    parser.add_argument(
        "--kind", choices=["reset", "knockout", "both"], default="both",
        help="the state erased, one source hidden from it, or both (default: both)",
    )  # fmt: skip
    add_number(parser, "num-positions", 32, "tokens of each text at which that is done")
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
    args = read_options(parser, argv)
    validate_int("num-positions", args.num_positions, 1)
    return args


def input_attribution_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
        "Attribution of a scalar of the model's output to the tokens of its input.",
        "input_attribution.py --text 'some text' --method mamba_lrp",
    )
    add_common_options(parser, *(name for name in STEP_OPTIONS if name != "layers"), "formats")
    parser.add_argument("--method", choices=ATTRIBUTION_METHODS, default="mamba_lrp")
    parser.add_argument("--target", choices=TARGETS, default="logit")
    parser.add_argument("--token", help="token explained (default: the likeliest next one)")
    parser.add_argument("--contrast", help="second token of a logit_difference")
    parser.set_defaults(output_dir="input_attribution", layers=None)
    return read_options(parser, argv)


def direct_attribution_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name."""
    parser = new_parser(
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
    return read_options(parser, argv)


def attribution_faithfulness_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `methods` is None for all of them."""
    parser = new_parser(
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
    args = read_options(parser, argv)
    validate_int("min-tokens", args.min_tokens, 2)
    validate_int("num-texts", args.num_texts, 1)
    args.methods = None if args.methods is None else args.methods.split(",")
    for name in args.methods or ():
        validate_choice("method", name, ATTRIBUTION_METHODS)
    return args


def activation_patching_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `sites` as a list of names."""
    parser = new_parser(
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
    add_number(parser, "steps", 5, "points of the path that attribution takes gradients at; 0: one")
    parser.add_argument("--no-control", action="store_true", help="no patches from unrelated pairs")
    parser.add_argument(
        "--circuit", action="store_true",
        help="also circuits of the strongest edges, beside random ones: some 500 forwards a pair",
    )  # fmt: skip
    parser.set_defaults(output_dir="activation_patching")
    args = read_options(parser, argv)
    validate_int("steps", args.steps, 0)
    args.sites = args.sites.split(",")
    for site in args.sites:
        validate_choice("site", site, PATCHING_SITES)
    return args


def steering_options(argv: Argv = None) -> argparse.Namespace:
    """Of the command of that name; `coefficients` as numbers, `position` None for the mean."""
    parser = new_parser(
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
    add_number(parser, "start", 0, "first token of a text that is steered, from 0 at its start")
    parser.add_argument("--prompt", action="append", help="text whose continuation is steered")
    parser.add_argument("--token", help="token whose probability is followed (default: the first "
                        "prompt's likeliest next one)")  # fmt: skip
    add_number(parser, "num-random", 20, "random vectors of the same norm, at least 20")
    add_number(parser, "generate", 24, "tokens that the first prompt is continued by, steered")
    names = (*(name for name in STEP_OPTIONS if name not in ("layers", "batch_size")), "formats")
    add_common_options(parser, *names)
    parser.set_defaults(output_dir="steering", layers=None)
    args = read_options(parser, argv)
    validate_int("num-random", args.num_random, 20)
    validate_int("generate", args.generate, 0)
    validate_int("start", args.start, 0)
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
