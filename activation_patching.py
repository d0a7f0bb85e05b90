"""Activation patching: which layer, token and stage of a run decides its answer.

A pair is a clean and a corrupt text, which ask for different answers. One value of the clean run,
such as a layer's state h after a token, is put into the corrupt run and everything that follows is
computed from it; what that does to a metric of the prediction is the effect, 0 at the corrupt run
and 1 at the clean one (:meth:`ActivationPatching.patch`). To first order the same comes from one
gradient for all places at once, by edges between layers and by pairs of tokens too
(:meth:`ActivationPatching.attribution`), and edges make circuits
(:meth:`ActivationPatching.circuit`). Sites: ``causal_interventions.patching.sites``.

    patching = ActivationPatching("demo_model")
    found = patching.patch(clean, corrupt, (" Emma", " Jane"), sites=("state", "window"))
    found.effect["state"]  # layers x tokens

From a shell: ``python activation_patching.py pairs.jsonl``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import activation_patching_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(activation_patching_options)

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.patching.circuits import (
    NUM_RANDOM,
    CircuitCurve,
    all_edges,
    circuit_curve,
)
from causal_interventions.patching.exact import (
    DIRECTIONS,
    PairRuns,
    pair_runs,
    patched_values,
)
from causal_interventions.patching.gradients import (
    edge_scores,
    gradients_of,
    neuron_scores,
    node_scores,
    token_maps,
)
from causal_interventions.patching.metrics import METRICS
from causal_interventions.patching.pairs import TextPair, Texts, read_pairs, text_pairs
from causal_interventions.patching.patching_results import (
    AttributionResult,
    PatchingResult,
    check_apart,
)
from causal_interventions.patching.sites import (
    DEFAULT_SITES,
    check_sites,
    layers_of_site,
    sites_at_hand,
)
from mamba_mixers.sites import MixerSite, find_mixers, num_layers
from mamba_mixers.weights import mixer_parameters
from recursive_visualizer import write_figures
from result_views.terminal_lines import terminal_table, wrapped
from suite_plumbing.arguments import validate_choice, validate_int, whole_numbers
from suite_plumbing.commands import command_line, run_main
from suite_plumbing.models import ModelAnalyzer, load_model, load_tokenizer, require_tokenizer
from suite_plumbing.one_thread import fit_threads
from suite_plumbing.output_folders import claim_output_dir
from suite_plumbing.progress import configure_logging, progress
from suite_plumbing.provenance import SCHEMA_VERSION, provenance
from suite_plumbing.result_files import (
    write_csv,
    write_json,
    write_tensors,
    written_together,
)

Neurons = Mapping[int, Sequence[int]]

_NUMBERS_KEPT = 1 << 28
"""Of the runs of the pairs that are patched together: bounds memory, not results."""


class ActivationPatching(ModelAnalyzer):
    """Patching of one model: exact, to first order, and by circuits.

    Texts are strings, or token ids (l,) or (n, l); ``answers`` two tokens, that of the clean text
    first, or two for each pair. All pairs of a call have texts of one length.
    """

    def patch(
        self,
        clean: Texts,
        corrupt: Texts,
        answers: Any,
        *,
        sites: str | Sequence[str] | None = None,
        metric: str = "logit_difference",
        direction: str = "denoising",
        position: int = -1,
        neurons: Neurons | None = None,
        alignment: Sequence[int] | None = None,
        control: bool = True,
        seed: int = 0,
    ) -> PatchingResult:
        """Effect of every site at every layer and token, one at a time; exact.

        ``sites``: some of ``SITES``; by default all that the model has but single neurons.
        ``metric``: see ``METRICS``, at the token ``position`` places from the end. ``direction``:
        "denoising" puts values of the clean run into the corrupt one, "noising" the other way.
        ``neurons``, {layer: channels}, are those of the site "neurons". ``control`` also patches
        with the run of another pair. Raises ValueError for what does not fit together, and where
        the metric does not tell clean from corrupt texts. Cost, for each site and pair, twice with
        a control: half a forward for each layer and token.
        """
        pairs = self._pairs(clean, corrupt, answers, alignment)
        names = _checked_sites(self.model, sites, bool(neurons))
        chosen = _checked_neurons(self.model, neurons or {})
        _check_choices(metric, direction)
        back, parts = _back(position, pairs), _parts(self.model, pairs)
        _check_metric(self.model, parts, metric, back)
        found = [
            _patched(self.model, runs, names, direction, chosen, control)
            for runs in (pair_runs(self.model, part, metric, back) for part in parts)
        ]
        self.result_ = _joined(self.model, pairs, found, names, metric, direction, chosen, seed)
        return self.result_

    def attribution(
        self,
        clean: Texts,
        corrupt: Texts,
        answers: Any,
        *,
        sites: str | Sequence[str] | None = None,
        metric: str = "logit_difference",
        direction: str = "denoising",
        steps: int = 0,
        position: int = -1,
        neurons: Neurons | None = None,
        seed: int = 0,
    ) -> AttributionResult:
        """The same to first order, and edges between layers and pairs of tokens.

        ``steps`` > 0 takes the mean gradient over as many points between both runs (EAP-IG). Texts
        of a pair have one length. Raises ValueError as :meth:`patch`. Cost for each pair: three
        forwards and a backward pass, with ``steps`` one of both for each.
        """
        pairs = self._pairs(clean, corrupt, answers, None)
        names = _checked_sites(self.model, sites, bool(neurons))
        chosen = _checked_neurons(self.model, neurons or {})
        _check_choices(metric, direction)
        validate_int("steps", steps, 0)
        back, parts = _back(position, pairs), _parts(self.model, pairs)
        found = [
            _attributed(self.model, runs, names, direction, steps, chosen)
            for runs in (pair_runs(self.model, part, metric, back) for part in parts)
        ]
        nodes = _joined(
            self.model, pairs, [part["nodes"] for part in found], names, metric, direction, chosen,
            seed, "attribution has no control: it is of the pair's own runs",
        )  # fmt: skip
        self.attribution_ = AttributionResult(
            nodes, steps, torch.cat([part["edges"] for part in found]),
            _concatenated([part["maps"] for part in found]),
            _concatenated([part["neurons"] for part in found]),
        )  # fmt: skip
        return self.attribution_

    def circuit(
        self,
        clean: Texts,
        corrupt: Texts,
        answers: Any,
        *,
        metric: str = "logit_difference",
        steps: int = 5,
        counts: Sequence[int] | None = None,
        num_random: int = NUM_RANDOM,
        position: int = -1,
        seed: int = 0,
    ) -> CircuitCurve:
        """Circuits of the strongest edges: their faithfulness, and what is left without them.

        Edges in the order of |edge attribution| over ``steps`` points, beside ``num_random``
        random orders; ``counts`` of edges kept, by default at most 12 from 1 to all. Raises
        ValueError as :meth:`patch`. Cost: 2 (1 + num_random) forwards for each pair and count.
        """
        pairs = self._pairs(clean, corrupt, answers, None)
        _check_choices(metric, "denoising")
        total = len(all_edges(num_layers(self.model)))
        kept = _counts(total) if counts is None else whole_numbers("counts", counts, 0, total)
        runs = pair_runs(self.model, pairs, metric, _back(position, pairs))
        check_apart(metric, runs.clean_value, runs.corrupt_value)
        gradients = gradients_of(self.model, runs, "denoising", validate_int("steps", steps, 0),
                                 states=False)  # fmt: skip
        scores = edge_scores(runs, gradients, "denoising").sum(3).mean(0)
        return circuit_curve(self.model, runs, scores, kept, num_random=num_random, seed=seed)

    def _pairs(
        self, clean: Texts, corrupt: Texts, answers: Any, alignment: Sequence[int] | None
    ) -> list[TextPair]:
        if self.tokenizer is None and _holds_text(clean, corrupt, answers):
            self.tokenizer = require_tokenizer(self.model)
        pairs = text_pairs(self.model, self.tokenizer, clean, corrupt, answers, alignment)
        lengths = sorted({(len(pair.clean), len(pair.corrupt)) for pair in pairs})
        if len(lengths) > 1:
            shown = ", ".join(str(length) for _, length in lengths[:4])
            raise ValueError(
                f"the pairs have texts of {shown} tokens; patch pairs of one length at a time"
            )
        return pairs


def _holds_text(*given: Any) -> bool:
    """Whether a tokenizer is needed: some text or answer is a string."""
    return any(
        isinstance(x, str) or (isinstance(x, (list, tuple)) and _holds_text(*x)) for x in given
    )


def _check_choices(metric: str, direction: str) -> None:
    validate_choice("metric", metric, METRICS)
    validate_choice("direction", direction, DIRECTIONS)


def _checked_sites(
    model: PreTrainedModel, sites: str | Sequence[str] | None, has_neurons: bool
) -> tuple[str, ...]:
    """The sites asked for, that the model has; by default all that it has."""
    at_hand = sites_at_hand(model)
    # The command's default is the same list for every model.
    is_default = sites is None or (not isinstance(sites, str) and tuple(sites) == DEFAULT_SITES)
    names = at_hand if is_default or sites is None else check_sites(sites, has_neurons)
    for name in names:
        layers_of_site(model, name, {})
    return names


def _checked_neurons(model: PreTrainedModel, neurons: Neurons) -> dict[int, list[int]]:
    sites = find_mixers(model)
    for layer in neurons:
        validate_choice("layer of neurons", layer, list(sites))
    return {
        layer: whole_numbers(f"neurons of layer {layer}", numbers, 0, _width(sites[layer]) - 1)
        for layer, numbers in neurons.items()
    }


def _back(position: int, pairs: Sequence[TextPair]) -> int:
    """Places from the end of both texts, 1 for the last token."""
    length = min(min(len(pair.corrupt), len(pair.clean)) for pair in pairs)
    place = validate_int("position", position, -length, length - 1)
    return -place if place < 0 else len(pairs[0].corrupt) - place


def _parts(model: PreTrainedModel, pairs: Sequence[TextPair]) -> list[list[TextPair]]:
    """Pairs that are run together: two at least where there are two, for a control."""
    sites = find_mixers(model)
    width = max(_width(site) for site in sites.values())
    size = 24 * len(pairs[0].corrupt) * num_layers(model) * width
    number = math.ceil(len(pairs) / max(2, _NUMBERS_KEPT // size))
    number = min(number, max(1, len(pairs) // 2))
    return [list(part) for part in _evenly(pairs, number)]


def _evenly(pairs: Sequence[TextPair], number: int) -> list[Sequence[TextPair]]:
    ends = [len(pairs) * i // number for i in range(number + 1)]
    return [pairs[start:stop] for start, stop in pairwise(ends)]


def _width(site: MixerSite) -> int:
    """d_inner."""
    return mixer_parameters(site).out_weight.shape[1]


def _check_metric(
    model: PreTrainedModel, parts: Sequence[Sequence[TextPair]], metric: str, back: int
) -> None:
    """ValueError before anything is patched where clean and corrupt runs measure alike."""
    runs = [pair_runs(model, part, metric, back) for part in parts]
    values = ([getattr(run, name) for run in runs] for name in ("clean_value", "corrupt_value"))
    check_apart(metric, *(torch.cat(value) for value in values))


def _patched(
    model: PreTrainedModel, runs: PairRuns, sites: Sequence[str], direction: str,
    neurons: dict[int, list[int]], control: bool,
) -> dict[str, Any]:  # fmt: skip
    """Exact effects in the pairs of one part, and those of values of the next pair."""
    count = len(runs.clean_value)
    others = [(i + 1) % count for i in range(count)]
    options: dict[str, Any] = {"direction": direction, "neurons": neurons}
    patched, unrelated = {}, {}
    for site in progress(sites, desc="sites"):
        patched[site] = patched_values(model, runs, site, **options)
        if control and count > 1:
            unrelated[site] = patched_values(model, runs, site, order=others, **options)
    return _measured(runs, patched, unrelated)


def _attributed(
    model: PreTrainedModel, runs: PairRuns, sites: Sequence[str], direction: str, steps: int,
    neurons: dict[int, list[int]],
) -> dict[str, Any]:  # fmt: skip
    gradients = gradients_of(model, runs, direction, steps, states="state" in sites)
    base = runs.corrupt_value if direction == "denoising" else runs.clean_value
    nodes = {
        site: base.cpu()[:, None, None]
        + node_scores(model, runs, gradients, site, layers_of_site(model, site, neurons),
                      direction, neurons)
        for site in sites
    }  # fmt: skip
    return {
        "nodes": _measured(runs, nodes, {}),
        "edges": edge_scores(runs, gradients, direction),
        "maps": token_maps(runs, gradients, direction),
        "neurons": neuron_scores(runs, gradients, direction),
    }


def _measured(runs: PairRuns, patched: dict, unrelated: dict) -> dict[str, Any]:
    return {
        "patched": patched, "unrelated": unrelated,
        "clean": runs.clean_value.cpu(), "corrupt": runs.corrupt_value.cpu(),
    }  # fmt: skip


def _concatenated(parts: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _joined(
    model: PreTrainedModel, pairs: Sequence[TextPair], parts: Sequence[dict[str, Any]],
    sites: Sequence[str], metric: str, direction: str, neurons: dict[int, list[int]], seed: int,
    reason: str | None = None,
) -> PatchingResult:  # fmt: skip
    clean, corrupt = (torch.cat([part[name] for part in parts]) for name in ("clean", "corrupt"))
    check_apart(metric, clean, corrupt)
    unrelated = _concatenated([part["unrelated"] for part in parts])
    if not unrelated and reason is None:
        reason = "one pair has no unrelated one" if len(pairs) == 1 else "no control was asked for"
    spelled = {tuple(pair.tokens or ()) for pair in pairs}
    tokens = list(spelled.pop()) if len(spelled) == 1 else None
    layers = {site: layers_of_site(model, site, neurons) for site in sites}
    patched = _concatenated([part["patched"] for part in parts])
    return PatchingResult(
        metric, direction, tokens or None, layers, patched, unrelated, clean, corrupt, reason,
        validate_int("seed", seed, 0),
    )  # fmt: skip


def _counts(total: int) -> list[int]:
    """At most 12 numbers from 1 to all, more of the small ones."""
    wanted = torch.logspace(0, 1, 12, base=float(total)).round().int().tolist()
    return sorted(set(wanted))


def main(argv: Sequence[str] | None = None) -> int:
    """Patch the pairs of a file; print the strongest places, write JSON, CSV and tensors."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = activation_patching_options(argv)
    configure_logging(args.debug, args.quiet)
    pairs, folder = read_pairs(args.pairs), claim_output_dir(args.output_dir)
    model = load_model(args.model, device=args.device, dtype=args.dtype)
    fit_threads(model)
    tokenizer = load_tokenizer(args.model if args.tokenizer is None else args.tokenizer)
    patching = ActivationPatching(model, tokenizer=tokenizer)
    options = {"metric": args.metric, "position": args.position, "seed": args.seed}
    found = patching.patch(
        *pairs, sites=args.sites, direction=args.direction, control=not args.no_control, **options
    )
    estimated = patching.attribution(
        *pairs, sites=args.sites, direction=args.direction, steps=args.steps, **options
    )
    curve = patching.circuit(*pairs, steps=args.steps, **options) if args.circuit else None
    results = {
        "schema_version": SCHEMA_VERSION,
        "patching": found.to_dict(),
        "attribution": estimated.to_dict(found),
        "circuit": None if curve is None else curve.to_dict(),
        "provenance": provenance(
            model, command=command_line("activation_patching.py", argv), seed=args.seed
        ),
    }
    with written_together():
        path = write_json(folder / "patching_results.json", results)
        write_csv(folder / "patching.csv", found.rows())
        write_tensors(folder / "patching.safetensors", found.tensors() | estimated.tensors())
    write_figures(results, folder, formats=args.formats)
    print("\n".join(_lines(found, estimated)))
    print(f"Wrote {path}; patching.csv, patching.safetensors and its figure beside it.")
    return 0


def _lines(found: PatchingResult, estimated: AttributionResult) -> list[str]:
    """The strongest place of every site, with what says how far to trust it."""
    agreement = estimated.agreement(found)
    head = ["site", "layer", "token", "effect", "95 % interval", "control", "rho"]
    rows = []
    for site, table in found.effect.items():
        layer, token = table.stack().idxmax()
        best = found.ratio(found.patched[site][:, found.layers[site].index(layer), token])
        ends = "" if best.low is None else f"{best.low:.2f} to {best.high:.2f}"
        control = f"{found.control[site].loc[layer, token]:.2f}" if found.unrelated else ""
        rho = agreement[site]
        rows.append([
            site, str(layer), _token_name(found, token), f"{best.value:.2f}", ends, control,
            "" if rho is None else f"{rho:.2f}",
        ])  # fmt: skip
    said = [
        f"{found.direction}, {found.metric}, {len(found.clean)} pairs: 0 is the corrupt run, 1 the "
        "clean one;",
        "the strongest place of each site, rho of all places with the attribution",
    ]
    return [*wrapped(said), *terminal_table(head, rows)]


def _token_name(found: PatchingResult, token: int) -> str:
    return str(token) if found.tokens is None else f"{token} {found.tokens[token]!r}"


if __name__ == "__main__":
    raise SystemExit(main())
