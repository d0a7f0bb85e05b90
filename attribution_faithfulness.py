"""Do attributions say what the model uses? Perturbation, agreement and randomisation tests.

For each text and method of ``input_attribution`` the tokens are replaced by the baseline, in the
order of their scores, and f is measured on the way (``causal_interventions.perturbation_curves``,
which defines delta_af, comprehensiveness and sufficiency). A replaced token keeps its place, since
distances are what a recurrence decays by.

All are in the unit of the target, by default a logit. delta_af and comprehensiveness are better
when larger, sufficiency when smaller; a random order has delta_af 0 on average. Whatever a method
reaches is compared with random orders of the same texts; intervals are 95 % bootstraps over texts.
Beside that: Spearman's agreement with what occlusion and knockout measure, relevance conservation,
and the randomisation test [1]: scores must change when the weights that they explain do.

Reference:
  [1] Adebayo et al. 2018, Sanity checks for saliency maps, cascading from the output down

From a shell: ``python attribution_faithfulness.py --texts-file FILE``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import attribution_faithfulness_options, parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(attribution_faithfulness_options)

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.perturbation_curves import PerturbationCurves, perturbation_curves
from causal_interventions.targets import Target, resolve_target
from input_attribution import (
    ATTRIBUTION_METHODS,
    Explained,
    InputAttribution,
    attribute,
    explain,
)
from mamba_mixers.placement import bring_into_memory
from mamba_mixers.sites import find_mixers, model_layers
from suite_plumbing.arguments import validate_choice, validate_int
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    texts_from_options,
    write_step_results,
)
from suite_plumbing.models import load_tokenizer
from suite_plumbing.progress import progress
from suite_plumbing.result_files import table_html, write_csv
from suite_plumbing.texts import EncodedText
from token_statistics.association import spearman
from token_statistics.description import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CURVE_MEASURES = ("delta_af", "comprehensiveness", "sufficiency")

REFERENCES = ("occlusion", "knockout")
"""The methods that measure an effect; the others' agreement with them is reported."""

RIVALS = ("random", "recency", "rollout")
"""The methods that each method is compared with, text by text; the first two do not look at the
model."""


@dataclass(frozen=True)
class Estimate:
    """Mean over texts with its 95 % bootstrap interval."""

    mean: float | None
    """over the texts where the quantity is defined; None where it is for none"""
    low: float | None
    """2.5 % bound; None for fewer than 2 texts"""
    high: float | None
    """97.5 % bound"""
    num_texts: int
    """texts where the quantity is defined"""


@dataclass(frozen=True, eq=False)
class MethodFaithfulness:
    """How one method fares over all texts; measures in the unit of the target."""

    measures: dict[str, Estimate]
    """by name in ``CURVE_MEASURES``"""
    over: dict[str, dict[str, Estimate]]
    """by name in ``RIVALS``, by measure: the measure minus the rival's on the same text; above 0
    is better, and for sufficiency below 0"""
    agreement: dict[str, Estimate]
    """by name in ``REFERENCES``: Spearman with its scores over the tokens of a text"""
    conservation_error: dict[str, float | None]
    """median and max over texts of |sum R - total| / |total|; None where a sum means nothing"""
    bias_share: float | None
    """median over texts of the share of the additive constants; None without a total"""
    most_first: list[float]
    """mean over texts of the MoRF curve, at ``FaithfulnessTable.fractions``"""
    least_first: list[float]
    """mean over texts of the LeRF curve"""
    per_text: dict[str, list[float]]
    """each measure by text, in the order given"""
    randomised: list[Estimate]
    """Spearman of the scores with those after the last 1, 2, ... layers are randomised"""


@dataclass(frozen=True, eq=False)
class FaithfulnessTable:
    """Faithfulness of attribution methods on one model, one target and some texts."""

    methods: dict[str, MethodFaithfulness]
    """by name"""
    fractions: list[float]
    """nominal share of the tokens replaced at each point of the curves"""
    target: dict
    """what was explained"""
    baseline: str
    """what replaced a token"""
    num_texts: int
    """texts"""
    num_tokens: int
    """tokens of all texts"""
    num_random: int
    """random orders of each text"""
    num_randomised_texts: int
    """texts of the randomisation test"""
    seed: int
    """of random orders, ties, bootstrap and randomised weights"""

    def to_dict(self) -> dict:
        """The table for JSON."""
        return asdict(self)

    def rows(self) -> list[dict]:
        """One flat row a method, the best delta_af first, for CSV."""
        rows = [_flat_row(name, method) for name, method in self.methods.items()]
        return sorted(rows, key=lambda row: -row["delta_af"])

    def to_dataframe(self) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows())

    def figure(self) -> Figure:
        """Areas with intervals beside random orders, curves, agreement and randomisation."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.faithfulness_figures import figure_faithfulness

        return figure_faithfulness({"faithfulness": self.to_dict()})

    def _repr_html_(self) -> str:
        return table_html(self.to_dataframe())


class _TextResult(NamedTuple):
    """What one text contributes."""

    attributions: dict[str, InputAttribution]
    curves: dict[str, list[PerturbationCurves]]  # several for the random orders


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
    Cost, a text of l tokens: 2 l forward passes for the references, 20 a method and random order
    at 10 steps, and 64 forward and backward passes for the integrated gradients; the
    randomisation test is one attribution a layer and method for each of its texts.
    """
    names = _checked_methods(methods)
    if not encoded:
        raise ValueError("encoded is empty; pass at least one encoded text")
    validate_int("num_random", num_random, 1)
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
    results = [
        _evaluate(text, names, num_steps, num_random, seed + index)
        for index, text in enumerate(progress(explained, desc="texts"))
    ]
    changed = randomisation_test(explained[:num_randomised_texts], names, seed)
    return FaithfulnessTable(
        {name: _summary(results, name, changed.get(name, []), seed) for name in names},
        [step / num_steps for step in range(num_steps + 1)],
        target.to_dict(),
        explained[0].baseline_name,
        len(encoded),
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
    model = copy.deepcopy(explained[0].model)
    generator = torch.Generator().manual_seed(seed)
    before = [{name: attribute(text, name).scores for name in names} for text in explained]
    result: dict[str, list[Estimate]] = {name: [] for name in names}
    for site in progress(reversed(list(find_mixers(model).values())), desc="randomised layers"):
        bring_into_memory(site.block)
        _permute_weights(site.block, generator)
        after = [_attributed_by(model, text, names) for text in explained]
        for name in names:
            pairs = zip(before, after, strict=True)
            result[name].append(
                _estimate([spearman(old[name], new[name]) for old, new in pairs], seed)
            )
    return result


def _evaluate(
    explained: Explained, names: Sequence[str], num_steps: int, num_random: int, seed: int
) -> _TextResult:
    """Attributions of one text by all methods, and the curves of their orders."""
    attributions = {name: attribute(replace(explained, seed=seed), name) for name in names}
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.rand(explained.num_tokens, generator=generator, dtype=torch.float64)
        for _ in range(num_random)
    ]
    ranked = [name for name in names if name != "random"]
    scores = [attributions[name].scores for name in ranked] + orders
    curves = perturbation_curves(explained.values, scores, num_steps, seed)
    by_name = {name: [curve] for name, curve in zip(ranked, curves, strict=False)}
    return _TextResult(attributions, {**by_name, "random": curves[len(ranked) :]})


def _summary(
    results: Sequence[_TextResult], name: str, randomised: list[Estimate], seed: int
) -> MethodFaithfulness:
    """One method over all texts."""
    per_text = {m: [_mean_of(r.curves[name], m) for r in results] for m in CURVE_MEASURES}
    rivals = [rival for rival in RIVALS if rival in results[0].curves and rival != name]
    found = [result.attributions[name] for result in results]
    references = [ref for ref in REFERENCES if ref in results[0].attributions and ref != name]
    errors = [a.conservation_error for a in found if a.conservation_error is not None]
    shares = [a.bias_share for a in found if a.bias_share is not None]
    curves = [curve for result in results for curve in result.curves[name]]
    return MethodFaithfulness(
        {m: _estimate(per_text[m], seed) for m in CURVE_MEASURES},
        {rival: _gains(results, per_text, rival, seed) for rival in rivals},
        {ref: _estimate([_against(r, name, ref) for r in results], seed) for ref in references},
        {
            "median": float(np.median(errors)) if errors else None,
            "max": max(errors) if errors else None,
        },
        float(np.median(shares)) if shares else None,
        torch.stack([curve.most_first for curve in curves]).mean(0).tolist(),
        torch.stack([curve.least_first for curve in curves]).mean(0).tolist(),
        per_text,
        randomised,
    )


def _gains(
    results: Sequence[_TextResult], per_text: dict[str, list[float]], rival: str, seed: int
) -> dict[str, Estimate]:
    """Each measure minus that of another method on the same text."""
    gains = {}
    for measure, values in per_text.items():
        theirs = [_mean_of(result.curves[rival], measure) for result in results]
        gains[measure] = _estimate(np.subtract(values, theirs).tolist(), seed)
    return gains


def _mean_of(curves: Sequence[PerturbationCurves], measure: str) -> float:
    return float(np.mean([getattr(curve, measure) for curve in curves]))


def _against(result: _TextResult, name: str, reference: str) -> float:
    return spearman(result.attributions[name].scores, result.attributions[reference].scores)


def _estimate(values: Sequence[float], seed: int) -> Estimate:
    """Mean and bootstrap interval of the defined values."""
    defined = [value for value in values if math.isfinite(value)]
    if not defined:
        return Estimate(None, None, None, 0)
    low, high = bootstrap_interval(defined, seed=seed) if len(defined) > 1 else (None, None)
    return Estimate(float(np.mean(defined)), low, high, len(defined))


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


def _flat_row(name: str, method: MethodFaithfulness) -> dict:
    row: dict = {"method": name}
    for measure, estimate in method.measures.items():
        row |= _cells(measure, estimate)
    for rival in RIVALS:
        row |= _cells(f"delta_af_over_{rival}", method.over.get(rival, {}).get("delta_af"))
    for reference in REFERENCES:
        row |= _cells(f"spearman_{reference}", method.agreement.get(reference))
    row["conservation_error_median"] = method.conservation_error["median"]
    row["conservation_error_max"] = method.conservation_error["max"]
    row["bias_share"] = method.bias_share
    last = method.randomised[-1].mean if method.randomised else None
    return row | {"spearman_all_layers_randomised": last}


def _cells(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None,) * 3
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


_HEADINGS = {
    "delta_af": "delta_af",
    "delta_af_over_random": "over random",
    "delta_af_over_recency": "over recency",
    "delta_af_over_rollout": "over rollout",
    "comprehensiveness": "compr.",
    "sufficiency": "suff.",
    "spearman_occlusion": "occlusion",
    "spearman_knockout": "knockout",
    "conservation_error_median": "conserv.",
    "spearman_all_layers_randomised": "randomised",
}


def format_table(table: FaithfulnessTable) -> str:
    """The table for a terminal, one line a method; with 95 % intervals for the areas."""
    lines = [
        {"method": row["method"]} | {text: _cell(row, name) for name, text in _HEADINGS.items()}
        for row in table.rows()
    ]
    return pd.DataFrame(lines).to_string(index=False)


def _cell(row: dict, name: str) -> str:
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "-"
    if low is None or not name.startswith("delta_af"):
        return f"{value:.2g}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write it as JSON and CSV."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = attribution_faithfulness_options(argv)
    job = _job(args, command_line("attribution_faithfulness.py", argv))
    baseline = int(args.baseline) if args.baseline.isdigit() else args.baseline
    table = faithfulness_table(
        job.model, job.tokenizer, job.encoded, args.methods, target=args.target, baseline=baseline,
        num_steps=args.num_steps, num_random=args.num_random,
        num_randomised_texts=args.num_randomised_texts, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    print(
        f"{table.num_texts} texts, {table.num_tokens} tokens; target {args.target}; "
        f"a token is replaced by {table.baseline}; {table.num_random} random orders a text"
    )
    print(format_table(table))
    results = {"faithfulness": table.to_dict()}
    path = write_step_results(job, "attribution_faithfulness.json", results)
    write_csv(job.output_dir / "attribution_faithfulness.csv", table.rows())
    print(f"Wrote {path} and attribution_faithfulness.csv beside it.")
    return 0


def _job(args: argparse.Namespace, command: Sequence[str]) -> Job:
    """The job on the texts that are long enough, ``num_texts`` of them spread over all."""
    texts, tokenizer = texts_from_options(args), load_tokenizer(args.model)
    minimum = args.min_tokens
    long = [text for text in texts if len(tokenizer(text, verbose=False)["input_ids"]) >= minimum]
    if not long:
        raise ValueError(f"none of the {len(texts)} texts has {minimum} tokens; lower --min-tokens")
    count = min(args.num_texts, len(long))
    args.text, args.texts_file = [long[i * len(long) // count] for i in range(count)], None
    return job_from_options(args, model_layers, command).of_distinct_texts()


if __name__ == "__main__":
    raise SystemExit(main())
