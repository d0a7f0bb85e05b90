"""Causal memory: what a Mamba's predictions lose when its memory is taken away.

Effects of the interventions of ``causal_interventions.interventions`` on the next-token
distributions, as curves over the lag and as layer x lag maps. Two kinds:

    reset      the state is erased before token j: effect at t on t - j tokens later. All memory of
               tokens before j is gone, however old.
    knockout   what one source s gives later tokens through the state is taken out: effect at
               t = s + k. This is the one to compare with the memory kernel.

Effect: KL(clean || intervened) of the distributions after token t, in nats, and the change of the
loss -ln p(next token): see ``causal_interventions.effects``. It is total: what a layer loses at one
token reaches later tokens through the layers above it too, and a later layer that makes up for it
hides it. Hence pairs of layers (:func:`layer_pairs`), in both of which the intervention is made at
once: a memory that is backed up is missed by neither alone. And direct effects, with every later
SSM layer held at what it wrote. Effects below 1e-4 nats are none
(``token_statistics.smallest_effects``). Letters: the glossary of ``selective_scan``.

From a shell: ``python intervention_study.py --text "some text" --layers 0,3``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import intervention_study_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(intervention_study_options)

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.causal_curves import (
    KINDS,
    CausalMemoryCurve,
    PairEffect,
    kernel_agreement,
    pair_effect,
    pooled_curve,
)
from causal_interventions.effects import batched_effects
from causal_interventions.interventions import compose, hold_layers
from mamba_mixers.sites import find_mixers, model_layers
from recursive_visualizer import write_figures
from result_views.step_lines import step_lines
from result_views.terminal_lines import wrapped
from ssm_component_extractor import captures_of
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import memory_kernel
from ssm_measures.components import Capture, captured_ids, extracted_layer
from suite_plumbing.arguments import numpy_rng, validate_choice, validate_int, whole_numbers
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.kept_values import kept, kept_tensor, tensor_kept
from suite_plumbing.messages import quoted
from suite_plumbing.progress import progress
from suite_plumbing.related_texts import readings
from suite_plumbing.result_files import read_json, table_html, write_csv, written_together
from token_statistics.intervals import MIN_VALUES
from token_statistics.smallest_effects import KL_FLOOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NUM_POSITIONS = 32

MIN_HISTORY = 16
"""Tokens that lie before the first position of a curve, where the text is long enough."""


@dataclass(frozen=True, eq=False)
class LayerLagMap:
    """Causal memory of single layers over the lag, and of all of them together."""

    kind: str
    """key of ``KINDS``"""
    by_layer: dict[int, CausalMemoryCurve]
    """the intervention in that layer alone"""
    together: CausalMemoryCurve
    """the intervention in all of these layers at once"""
    kernel_agreement: dict[int, dict[str, Any]]
    """by layer: :func:`kernel_agreement` of its curve with its memory kernel"""

    @property
    def values(self) -> Tensor:
        """(layers, max_lag + 1) mean KL, layers in ascending order."""
        return torch.stack([self.by_layer[layer].mean_kl for layer in sorted(self.by_layer)])

    def rows(self, seed: int = 0) -> list[dict[str, Any]]:
        """One row a layer ("together" for all) and bin of lags, for a table."""
        curves = {**self.by_layer, "together": self.together}
        return [
            {"kind": self.kind, "layer": layer, **entry._asdict()}
            for layer, curve in curves.items()
            for entry in curve.bins(seed)
        ]

    def to_dataframe(self, seed: int = 0) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows(seed))

    def figure(self, seed: int = 0) -> Figure:
        """Curves by lag, bins with their intervals, and the layer x lag map."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.memory_figures import figure_causal_memory

        return figure_causal_memory({self.kind: self.to_dict(seed)})

    def _repr_html_(self) -> str:
        return table_html(self.to_dataframe())

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Curves and agreements for JSON."""
        return {
            "kind": self.kind,
            "layers": {f"layer_{k}": curve.to_dict(seed) for k, curve in self.by_layer.items()},
            "together": self.together.to_dict(seed),
            "kernel_agreement": {f"layer_{k}": v for k, v in self.kernel_agreement.items()},
        }


def causal_memory_curve(
    model: PreTrainedModel,
    captured: Capture,
    layers: int | Sequence[int],
    positions: Sequence[int],
    max_lag: int,
    *,
    kind: str = "reset",
    text: int = 0,
    direct: bool = False,
) -> CausalMemoryCurve:
    """Effect by lag of intervening at each of ``positions`` of one text, in ``layers`` together.

    ``text`` is the number under which the positions are recorded. ``direct``: every SSM layer after
    the last of them is held at what it wrote, and has to be captured too. Raises ValueError for an
    unknown kind, positions outside the text, max_lag outside 1..l-1, layers not captured, and as
    ``causal_interventions.effects``. Cost: one row a position.
    """
    chosen_kind = KINDS[validate_choice("kind", kind, KINDS)]
    chosen = sorted(set(whole_numbers("layers", layers, 0)))
    length = captured.input_ids.shape[1]
    places = whole_numbers("positions", positions, 0, length - 1)
    max_lag = validate_int("max_lag", max_lag, 1, length - 1)
    later = [layer for layer in find_mixers(model) if layer > max(chosen)] if direct else []
    held = hold_layers(captured.components, later) if later else {}

    def measured() -> list[Any]:
        found = batched_effects(
            model,
            captured,
            lambda tokens: compose(chosen_kind.intervention(tokens, chosen), held),
            places,
        )
        curves = (_by_lag(values, places, max_lag, chosen_kind.first_lag)
                  for values in (found.kl, found.loss_change))  # fmt: skip
        return [kept_tensor(curve) for curve in curves]

    name = f"curve {kind} {chosen} {places} {max_lag} {direct} of text {text}"
    kl, loss_change = map(tensor_kept, kept(name, measured))
    return CausalMemoryCurve(kind, tuple(chosen), tuple((text, j) for j in places), kl, loss_change)


def layer_lag_map(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    layers: Sequence[int],
    max_lag: int,
    *,
    kind: str = "knockout",
    num_positions: int = NUM_POSITIONS,
    direct: bool = False,
) -> LayerLagMap:
    """Causal memory curve of every layer alone and of all together, over positions of all texts.

    ``captures``: one text each. Positions: ``spread_positions`` of every text, ``num_positions`` in
    each. ``direct`` as in :func:`causal_memory_curve`. Raises ValueError for no captures, a text
    too short for ``max_lag``, and as :func:`causal_memory_curve`. Cost: for each position one
    forward pass from each layer on, and one attention map a layer for its memory kernel.
    """
    if not captures:
        raise ValueError("captures is empty; pass at least one")
    ordered = sorted(set(whole_numbers("layers", layers, 0)))
    curve = _curves_over_texts(model, captures, max_lag, kind, num_positions, direct)
    by_layer = {layer: curve([layer]) for layer in progress(ordered, desc=f"{kind} by layer")}
    together = curve(ordered) if len(ordered) > 1 else by_layer[ordered[0]]
    agreement = {
        layer: kernel_agreement(one, mean_kernel(captures, layer))
        for layer, one in by_layer.items()
    }
    return LayerLagMap(kind, by_layer, together, agreement)


def layer_pairs(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    pairs: Sequence[tuple[int, int]],
    max_lag: int,
    *,
    kind: str = "knockout",
    num_positions: int = NUM_POSITIONS,
    direct: bool = False,
    seed: int = 0,
) -> list[PairEffect]:
    """Effect of intervening in two layers at once, beside that in each alone, for each pair.

    Positions as in :func:`layer_lag_map`. Raises ValueError for no captures or pairs, a pair of one
    layer, and as :func:`causal_memory_curve`. Cost: for each position a row for each layer named
    and each pair, from the earlier of its layers on.
    """
    if not captures or not pairs:
        raise ValueError("captures or pairs is empty; pass at least one of each")
    if alike := next((pair for pair in pairs if pair[0] == pair[1]), None):
        raise ValueError(f"pairs holds {alike}; a pair is of two layers")
    curve = _curves_over_texts(model, captures, max_lag, kind, num_positions, direct)
    alone = {layer: curve([layer]) for layer in progress(sorted({*sum(pairs, ())}), desc="layers")}
    return [
        pair_effect(alone[a], alone[b], curve([a, b]), seed)
        for a, b in progress(pairs, desc="pairs of layers")
    ]


def _curves_over_texts(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    max_lag: int,
    kind: str,
    num_positions: int,
    direct: bool,
) -> Callable[[Sequence[int]], CausalMemoryCurve]:
    """From layers to the curve of intervening in them together, over positions of all texts."""
    places = [
        spread_positions(captured.input_ids.shape[1], num_positions, max_lag, f"text {i}")
        for i, captured in enumerate(captures)
    ]
    groups = [read.group for read in readings(captured_ids(captures))]

    def curve(chosen: Sequence[int]) -> CausalMemoryCurve:
        pooled = pooled_curve(
            [
                causal_memory_curve(
                    model, one, chosen, where, max_lag, kind=kind, text=text, direct=direct
                )
                for text, (one, where) in enumerate(zip(captures, places, strict=True))
            ]
        )
        return replace(pooled, groups=tuple(groups[text] for text, _ in pooled.positions))

    return curve


def mean_kernel(captures: Sequence[Capture], layer: int) -> Tensor:
    """Memory kernel of one layer, mean over texts, as far as the shortest reaches (l,)."""
    kernels = []
    for captured in captures:
        parts = extracted_layer(captured.components, layer, "capture")
        kernels.append(
            memory_kernel(mean_map(parts, absolute=True), parts.attention_mask).kernel.mean(0)
        )
    shortest = min(len(kernel) for kernel in kernels)
    return torch.stack([kernel[:shortest] for kernel in kernels]).mean(0)


def spread_positions(length: int, count: int, max_lag: int, text: str = "a text") -> list[int]:
    """At most ``count`` evenly spaced tokens of a text with every lag up to ``max_lag`` after them
    and a next token there, and with ``MIN_HISTORY`` tokens, or all that allows, before them.

    Raises ValueError, which calls it ``text``, for a text of fewer than max_lag + 3 tokens.
    """
    if length < 4:
        raise ValueError(
            f"{text} of {length} tokens is too short: curves over lags need 4 or more; leave it out"
        )
    max_lag = validate_int("max_lag", max_lag, 1)
    last = length - 2 - max_lag
    if last < 1:
        raise ValueError(
            f"max_lag is {max_lag}; {text} of {length} tokens allows 1 to {length - 3}"
        )
    count = min(validate_int("count", count, 1), last + 1)
    return np.unique(np.linspace(min(MIN_HISTORY, last), last, count).round().astype(int)).tolist()


def random_positions(
    length: int, count: int, max_lag: int, *, exclude: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Random tokens other than ``exclude``, in the range of :func:`spread_positions`; seeded.

    The baseline of positions chosen for a reason. Raises ValueError where fewer exist.
    """
    validate_int("count", count, 1)
    last = length - 2 - max_lag
    pool = sorted(set(range(min(MIN_HISTORY, max(last, 1)), last + 1)) - set(exclude))
    if len(pool) < count:
        raise ValueError(f"count is {count}; {len(pool)} other tokens have {max_lag} after them")
    return sorted(numpy_rng(seed).choice(pool, count, replace=False).tolist())


def _by_lag(values: Tensor, places: Sequence[int], max_lag: int, first_lag: int) -> Tensor:
    """(positions, max_lag + 1) of values (positions, l): column k is the token k after."""
    result = torch.full((len(places), max_lag + 1), math.nan, dtype=values.dtype)
    for row, place in enumerate(places):
        after = values[row, place + first_lag : place + max_lag + 1]
        result[row, first_lag : first_lag + len(after)] = after
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure causal memory by layer and lag; print tables, write JSON and CSV."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = intervention_study_options(argv)
    job = job_from_options(args, model_layers, command_line("intervention_study.py", argv))
    max_lag = _max_lag(job)
    job = job.of_distinct_texts()
    results, rows, pairs = _studied(job, max_lag)
    pairs_path = job.output_dir / "layer_pairs.csv"
    with written_together([pairs_path]):
        if pairs:
            results["pairs"] = [{**pair._asdict(), "backed_up": pair.backed_up} for pair in pairs]
            write_csv(pairs_path, results["pairs"])
        path = write_step_results(job, "intervention_study.json", results)
        write_csv(job.output_dir / "causal_memory.csv", rows)
    write_figures(read_json(path), job.output_dir, formats=args.formats)
    for kind in KINDS:
        if kind in results:
            print("\n".join(_table(results[kind])))
    print("\n".join(_pair_lines(pairs) + _key(results)))
    print(f"Wrote {path}; causal_memory.csv and its figure beside it.")
    return 0


def _max_lag(job: Job) -> int:
    """The largest lag; every text has to be long enough for it, which is seen before a run."""
    lengths = [len(text.input_ids) for text in job.encoded]
    given, count = job.args.max_lag, job.args.num_positions
    max_lag = min(64, max(1, min(lengths) // 2 - 1)) if given is None else given
    for index, (length, text) in enumerate(zip(lengths, job.encoded, strict=True)):
        spread_positions(length, count, max_lag, f"text {index} ({quoted(text.text, 40)})")
    return max_lag


def _studied(job: Job, max_lag: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """Results by kind, the rows of the table, and the pairs of layers where they were asked for."""
    args = job.args
    captures = captures_of(_with_later_layers(job) if args.direct else job)
    results: dict[str, Any] = {"effect": "direct" if args.direct else "total"}
    rows, pairs = [], []
    for kind in KINDS if args.kind == "both" else (args.kind,):
        options = {"kind": kind, "num_positions": args.num_positions, "direct": args.direct}
        found = layer_lag_map(job.model, captures, job.layers, max_lag, **options)
        results[kind] = found.to_dict(args.seed)
        rows += found.rows(args.seed)
        if args.pairs and len(job.layers) > 1:
            both = list(combinations(job.layers, 2))
            pairs += layer_pairs(job.model, captures, both, max_lag, seed=args.seed, **options)
    return results, rows, pairs


def _with_later_layers(job: Job) -> Job:
    """The job with every SSM layer from its first on, which direct effects hold."""
    first = min(job.layers)
    return job._replace(layers=[layer for layer in find_mixers(job.model) if layer >= first])


def _pair_lines(pairs: Sequence[PairEffect]) -> list[str]:
    """Mean KL in millinats of two layers alone and together, as lines of text; none for none."""
    if not pairs:
        return []
    rows = [
        {
            "kind": pair.kind, "layers": f"{pair.layer_a}, {pair.layer_b}",
            "first": _millinats(pair.kl_a), "second": _millinats(pair.kl_b),
            "together": _millinats(pair.kl_together), 
            "backed up": "yes" if pair.backed_up else "no",
        }
        for pair in pairs
    ]  # fmt: skip
    title = "Two layers at once: mean KL in millinats over lags, alone and together"
    return [title, *step_lines(rows), ""]


def _table(result: Mapping[str, Any]) -> list[str]:
    """Mean KL in millinats by layer and bin of lags, as lines of text."""
    texts, positions = _num_texts(result), len(result["together"]["positions"])
    title = (
        f"{_TITLES[result['kind']]}: mean KL in millinats by lag in tokens; {positions} positions, "
        f"{texts} text{'' if texts == 1 else 's'}"
    )
    curves = {**result["layers"], "together": result["together"]}
    agreement = result["kernel_agreement"]
    rows = [
        {
            "layer": name.removeprefix("layer_"),
            **{_span(entry): _millinats(entry["kl"]) for entry in curve["bins"]},
            "kernel": _correlation(agreement.get(name, {}).get("spearman")),
        }
        for name, curve in curves.items()
    ]
    return [title, *step_lines(rows), *_about_kernels(agreement), ""]


def _about_kernels(agreement: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the column "kernel" is, with the intervals or why there are none."""
    known = {name.removeprefix("layer_"): one for name, one in agreement.items()
             if one["spearman"] is not None}  # fmt: skip
    if not known:
        return []
    lags = max(one["num_lags"] for one in known.values())
    reasons = {one["reason"] for one in known.values() if one["low"] is None}
    ends = [f"layer {name} {_correlation(one['low'])} to {_correlation(one['high'])}"
            for name, one in known.items() if one["low"] is not None]  # fmt: skip
    said = [f"95 % intervals over texts: {', '.join(ends)}"] if ends else []
    said += [f"no interval: {reason}" for reason in sorted(reasons)]
    what = f"kernel: rank correlation over {lags} lags with the memory kernel, mean over texts; "
    return wrapped([what + "; ".join(said) + "."])


def _num_texts(result: Mapping[str, Any]) -> int:
    """Independent texts behind a table."""
    return result["together"]["bins"][0]["num_texts"]


def _key(results: Mapping[str, Any]) -> list[str]:
    """What all tables have in common."""
    tables = [results[kind] for kind in KINDS if kind in results]
    has_intervals = any(_num_texts(table) >= MIN_VALUES for table in tables)
    where = " Intervals of the means over texts: causal_memory.csv." if has_intervals else ""
    return wrapped([f"<{1000 * KL_FLOOR:g}: no effect worth a name.{where}"])


_TITLES = {"reset": "State reset", "knockout": "One source hidden"}


def _span(entry: Mapping[str, Any]) -> str:
    first, last = entry["first_lag"], entry["last_lag"]
    return str(first) if first == last else f"{first}-{last}"


def _millinats(kl: float | None) -> str:
    """Three digits; below the smallest effect worth a name no more than that it is below."""
    if kl is None:
        return "-"
    return f"{1000 * kl:.3g}" if kl >= KL_FLOOR else f"<{1000 * KL_FLOOR:g}"


def _correlation(rho: float | None) -> str:
    return "-" if rho is None else f"{rho:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
