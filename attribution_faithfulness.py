"""Do attributions say what the model uses? Perturbation, agreement and randomisation tests.

For each text and method of ``input_attribution`` the tokens are replaced by the baseline, in the
order of their scores, and f is measured on the way (``causal_interventions.perturbation_curves``,
which defines delta_af, comprehensiveness and sufficiency). A replaced token keeps its place, since
distances are what a recurrence decays by.

All are in the unit of the target, by default a logit. delta_af and comprehensiveness are better
when larger, sufficiency when smaller; a random order has delta_af 0 on average. Whatever a method
reaches is compared with random orders of the same texts, and with rivals text by text; intervals
hold 95 %, over 5 texts or more, and the p of a gain is of a paired test that flips its signs. On
fewer than ENOUGH_TEXTS texts methods of like faithfulness change places by chance.

What stands in for a token decides much. delta_af_other_text is the same order of the same scores
with the tokens of another text in place of the baseline: a method is better where both say so. No
figure compares with one of another model, baseline or length, published ones included. ERASER's
comprehensiveness and sufficiency are of a class probability and delete tokens; here they are of the
target and replace them.

Beside that: Spearman's agreement with what occlusion and knockout measure, relevance conservation,
and the randomisation test [1]: scores must change when the weights that they explain do.

Reference:
  [1] Adebayo et al. 2018, Sanity checks for saliency maps, cascading from the output down

From a shell: ``python attribution_faithfulness.py --texts-file FILE``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import attribution_faithfulness_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(attribution_faithfulness_options)

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.explained import Explained, explain
from causal_interventions.faithfulness_tables import (
    Estimate,
    FaithfulnessTable,
    MethodFaithfulness,
)
from causal_interventions.perturbation_curves import PerturbationCurves, perturbation_curves
from causal_interventions.targets import Target, resolve_target
from input_attribution import (
    ATTRIBUTION_METHODS,
    InputAttribution,
    attribute,
)
from mamba_mixers.exclusive_use import copy_of
from mamba_mixers.placement import bring_into_memory
from mamba_mixers.sites import find_mixers, model_layers
from recursive_visualizer import write_figures
from result_views.answers import terminal_width
from result_views.faithfulness_rows import (
    CURVE_MEASURES,
    OTHER_TEXT,
    REFERENCES,
    RIVALS,
    format_rows,
)
from result_views.terminal_lines import wrapped
from suite_plumbing.arguments import numpy_rng, torch_rng, validate_choice, validate_int
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    texts_from_options,
    write_step_results,
)
from suite_plumbing.messages import quoted
from suite_plumbing.models import load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.result_files import (
    finite_or_none,
    read_json,
    write_csv,
    written_together,
)
from suite_plumbing.texts import EncodedText, read_texts, tokenized
from token_statistics.association import spearman
from token_statistics.intervals import mean_interval
from token_statistics.text_groups import group_means

if TYPE_CHECKING:
    pass


ENOUGH_TEXTS = 50
"""Texts from which on methods are told apart: the interval of a gain is then about a quarter of the
spread between texts on either side."""

_NUM_FLIPS = 9999


class _TextResult(NamedTuple):
    """What one text contributes."""

    attributions: dict[str, InputAttribution]
    # Of methods whose scores rank something; several for the random orders.
    curves: dict[str, list[PerturbationCurves]]
    other_text: dict[str, list[PerturbationCurves]]  # with another text's tokens as the baseline


def faithfulness_table(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    encoded: Sequence[EncodedText],
    methods: Sequence[str] | None = None,
    *,
    target: Target | str = "logit",
    baseline: str | int = "mean",
    num_steps: int = 10,
    num_random: int = 4,
    num_randomised_texts: int = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> FaithfulnessTable:
    """Faithfulness of attribution methods over some texts.

    ``methods``: names in ``ATTRIBUTION_METHODS``; None is all. "random" is always among them. The
    methods in ``REFERENCES`` serve as the truth of the agreement when they are among them.
    ``num_random`` orders of each text are averaged. Raises ValueError for an unknown method or
    target, naming the known ones, and for no texts.
    Cost, a text of l tokens: 2 l forward passes for the references, 40 a method and random order
    at 10 steps, and 64 forward and backward passes for the integrated gradients; the
    randomisation test is one attribution a layer and method for each of its texts.
    """
    names = _checked_methods(methods)
    if not encoded:
        raise ValueError("encoded is empty; pass at least one encoded text")
    num_random = validate_int("num_random", num_random, 1)
    num_steps = validate_int("num_steps", num_steps, 2)
    num_randomised_texts = validate_int("num_randomised_texts", num_randomised_texts, 0)
    seed = validate_int("seed", seed, 0)
    target = resolve_target(target, tokenizer) if isinstance(target, str) else target
    explained = [
        explain(
            model,
            text.input_ids,
            target,
            baseline=baseline,
            batch_size=batch_size,
            seed=seed,
            tokenizer=tokenizer,
        )
        for text in encoded
    ]
    others = _tokens_of_other_texts(model, explained)
    results = [
        _evaluate(text, other, names, num_steps, num_random, seed + index)
        for index, (text, other) in enumerate(
            progress(list(zip(explained, others, strict=True)), desc="texts")
        )
    ]
    changed = randomisation_test(explained[:num_randomised_texts], names, seed)
    groups = [one.group for one in read_texts(encoded)]
    return FaithfulnessTable(
        {name: _summary(results, name, changed.get(name, []), seed, groups) for name in names},
        [step / num_steps for step in range(num_steps + 1)],
        target.to_dict(),
        explained[0].baseline_name,
        None if len(encoded) > 1 else "one text; no other stands in for it",
        len(encoded),
        len(set(groups)),
        sum(text.num_tokens for text in explained),
        num_random,
        min(num_randomised_texts, len(encoded)),
        seed,
    )


@torch.inference_mode(False)
def randomisation_test(
    explained: Sequence[Explained], methods: Sequence[str], seed: int = 0
) -> dict[str, list[Estimate]]:
    """Spearman of scores with those of models whose last 1, 2, ... layers are randomised.

    A layer is randomised by permuting the entries of each of its weight tensors, which keeps
    their distribution and thereby the scale of what the layer computes; the token embeddings
    stay. Methods that measure interventions, and "recency" and "random", are left out. A method
    whose scores keep their order when all layers are randomised explains, say, positions alone.
    Cost: a copy of the model, and one attribution a layer, method and text. The copy's randomised
    layers lie in memory, also of a model that is offloaded.
    """
    asking = [name for name in methods if name not in ("recency", "random")]
    names = [name for name in asking if not ATTRIBUTION_METHODS[name].is_intervention]
    if not explained or not names:
        return {}
    model = copy_of(explained[0].model)
    generator = torch_rng(seed)
    before = [{name: attribute(text, name).scores for name in names} for text in explained]
    result: dict[str, list[Estimate]] = {name: [] for name in names}
    for site in progress(reversed(list(find_mixers(model).values())), desc="randomised layers"):
        bring_into_memory(site.block)
        _permute_weights(site.block, generator)
        after = [_attributed_by(model, text, names) for text in explained]
        for name in names:
            pairs = zip(before, after, strict=True)
            result[name].append(
                _estimate([spearman(old[name], new[name]) for old, new in pairs], seed, bound=1.0)
            )
    return result


def _tokens_of_other_texts(
    model: PreTrainedModel, explained: Sequence[Explained]
) -> list[Explained | None]:
    """Each text with the next one's tokens as its baseline, place by place, from the start again
    where that is shorter; None for a single text."""
    if len(explained) < 2:
        return [None] * len(explained)
    others = []
    for text, donor in zip(explained, [*explained[1:], explained[0]], strict=True):
        place = torch.arange(text.num_tokens, device=text.input_ids.device) % donor.num_tokens
        vectors = donor.embeddings[0, place]
        others.append(replace(text, baseline=vectors, baseline_name="another text"))
    return others


def _evaluate(
    explained: Explained,
    other: Explained | None,
    names: Sequence[str],
    num_steps: int,
    num_random: int,
    seed: int,
) -> _TextResult:
    """Attributions of one text by all methods, and the curves of their orders."""
    attributions = {name: attribute(replace(explained, seed=seed), name) for name in names}
    generator = torch_rng(seed)
    orders = [
        torch.rand(explained.num_tokens, generator=generator, dtype=torch.float64)
        for _ in range(num_random)
    ]
    ranked = [name for name in names if name != "random" and attributions[name].reason is None]
    scores = [attributions[name].scores for name in ranked] + orders

    def by_name(text: Explained) -> dict[str, list[PerturbationCurves]]:
        curves = perturbation_curves(text.values, scores, num_steps, seed)
        named = {name: [curve] for name, curve in zip(ranked, curves, strict=False)}
        return {**named, "random": curves[len(ranked) :]}

    return _TextResult(attributions, by_name(explained), {} if other is None else by_name(other))


def _summary(
    results: Sequence[_TextResult],
    name: str,
    randomised: list[Estimate],
    seed: int,
    groups: Sequence[int],
) -> MethodFaithfulness:
    """One method over all texts."""
    estimate = partial(_estimate, seed=seed, groups=groups)
    per_text = {measure: _by_text(results, name, measure) for measure in CURVE_MEASURES}
    rivals = [rival for rival in RIVALS if rival in results[0].attributions and rival != name]
    found = [result.attributions[name] for result in results]
    references = [ref for ref in REFERENCES if ref in results[0].attributions and ref != name]
    errors = [a.conservation_error for a in found if a.conservation_error is not None]
    shares = [a.bias_share for a in found if a.bias_share is not None]
    curves = [curve for result in results for curve in result.curves.get(name, ())]
    return MethodFaithfulness(
        {m: estimate(per_text[m]) for m in CURVE_MEASURES},
        {rival: _gains(results, per_text, rival, seed, groups) for rival in rivals},
        {ref: estimate([_against(r, name, ref) for r in results]) for ref in references},
        {
            "median": float(np.median(errors)) if errors else None,
            "max": max(errors) if errors else None,
        },
        float(np.median(shares)) if shares else None,
        _mean_curve([curve.most_first for curve in curves]),
        _mean_curve([curve.least_first for curve in curves]),
        {m: [finite_or_none(value) for value in values] for m, values in per_text.items()},
        randomised,
        next((a.reason for a in found if a.reason), None),
    )


def _mean_curve(curves: Sequence[Tensor]) -> list[float] | None:
    return torch.stack(list(curves)).mean(0).tolist() if curves else None


def _gains(
    results: Sequence[_TextResult],
    per_text: dict[str, list[float]],
    rival: str,
    seed: int,
    groups: Sequence[int],
) -> dict[str, Estimate]:
    """Each measure minus that of another method on the same text."""
    gains = {}
    for measure, values in per_text.items():
        gained = np.subtract(values, _by_text(results, rival, measure))
        independent = np.ravel(group_means(list(gained[:, None]), groups)).tolist()
        gains[measure] = replace(
            _estimate(independent, seed), p_value=_sign_flip_p(independent, seed)
        )
    return gains


def _by_text(results: Sequence[_TextResult], name: str, measure: str) -> list[float]:
    """A measure of one method by text; nan where its scores rank nothing."""
    of_curves = "delta_af" if measure == OTHER_TEXT else measure
    given = [r.other_text if measure == OTHER_TEXT else r.curves for r in results]
    return [_mean_of(curves[name], of_curves) if name in curves else math.nan for curves in given]


def _sign_flip_p(gains: Sequence[float], seed: int) -> float | None:
    """Two-sided p of a mean of 0, by flipping the signs of the texts' gains; None below 2 texts."""
    defined = [gain for gain in gains if math.isfinite(gain)]
    if len(defined) < 2:
        return None
    test = stats.permutation_test(
        (defined,), np.mean, permutation_type="samples", n_resamples=_NUM_FLIPS,
        rng=numpy_rng(seed), vectorized=True,
    )  # fmt: skip
    return float(test.pvalue)


def _mean_of(curves: Sequence[PerturbationCurves], measure: str) -> float:
    return float(np.mean([getattr(curve, measure) for curve in curves]))


def _against(result: _TextResult, name: str, reference: str) -> float:
    return spearman(result.attributions[name].scores, result.attributions[reference].scores)


def _estimate(
    values: Sequence[float],
    seed: int,
    groups: Sequence[int] | None = None,
    bound: float = math.inf,
) -> Estimate:
    """Mean and interval of the defined values, of related texts their mean; |values| <= bound."""
    means = group_means([[value] for value in values], groups)
    defined = [float(mean[0]) for mean in means if math.isfinite(mean[0])]
    return Estimate(*mean_interval(defined, seed=seed, least=-bound, largest=bound)[:4])


@torch.no_grad()
def _permute_weights(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _attributed_by(
    model: PreTrainedModel, explained: Explained, names: Sequence[str]
) -> dict[str, Tensor]:
    """Scores of the same text, for the same tokens' f, by another model with its embeddings."""
    text = replace(explained, model=model)
    unperturbed = torch.ones_like(text.input_ids, dtype=torch.bool)
    text = replace(text, f=float(text.values(unperturbed)))
    return {name: attribute(text, name).scores for name in names}


def _checked_methods(methods: Sequence[str] | None) -> list[str]:
    names = list(ATTRIBUTION_METHODS if methods is None else methods)
    for name in names:
        validate_choice("method", name, ATTRIBUTION_METHODS)
    return list(dict.fromkeys([*names, "random"]))


def format_table(table: FaithfulnessTable) -> str:
    """The table for a terminal, one line a method; with 95 % intervals for the areas."""
    return format_rows(table.rows())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write it as JSON and CSV."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = attribution_faithfulness_options(argv)
    job = _job(args, command_line("attribution_faithfulness.py", argv))
    baseline = int(args.baseline) if args.baseline.isdecimal() else args.baseline
    table = faithfulness_table(
        job.model, job.tokenizer, job.encoded, args.methods, target=args.target, baseline=baseline,
        num_steps=args.num_steps, num_random=args.num_random,
        num_randomised_texts=args.num_randomised_texts, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    results = {"faithfulness": table.to_dict()}
    with written_together():
        path = write_step_results(job, "attribution_faithfulness.json", results)
        write_csv(job.output_dir / "attribution_faithfulness.csv", table.rows())
    write_figures(read_json(path), job.output_dir, formats=args.formats)
    print("\n".join(_lines(table, args.target)))
    print(f"Wrote {path}; attribution_faithfulness.csv and its figure beside it.")
    return 0


def _lines(table: FaithfulnessTable, target: str) -> list[str]:
    """The table with what it rests on, for a terminal."""
    made = (
        f"{table.num_texts} texts, {table.num_tokens} tokens; target {target}; a token is replaced "
        f"by {table.baseline}, or another text's; {table.num_random} random orders a text"
    )
    few = (
        f"Methods of like faithfulness change places by chance below {ENOUGH_TEXTS} texts; these "
        f"are {table.num_texts}."
    )
    shown = format_rows(table.rows(), terminal_width())
    return [*wrapped([made]), shown, *wrapped([few] * (table.num_texts < ENOUGH_TEXTS))]


def _job(args: argparse.Namespace, command: Sequence[str]) -> Job:
    """The job on the texts that are long enough, ``num_texts`` of them spread over all."""
    texts = texts_from_options(args)
    tokenizer = load_tokenizer(args.model if args.tokenizer is None else args.tokenizer)
    minimum = args.min_tokens
    lengths = [
        len(tokenized(tokenizer, text, f"text {i} ({quoted(text, 40)})")["input_ids"])
        for i, text in enumerate(texts)
    ]
    long = [text for text, length in zip(texts, lengths, strict=True) if length >= minimum]
    if not long:
        raise ValueError(f"none of the {len(texts)} texts has {minimum} tokens; lower --min-tokens")
    count = min(args.num_texts, len(long))
    args.text, args.texts_file = [long[i * len(long) // count] for i in range(count)], None
    return job_from_options(args, model_layers, command).of_distinct_texts()


if __name__ == "__main__":
    raise SystemExit(main())
