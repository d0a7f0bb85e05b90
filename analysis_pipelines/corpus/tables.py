"""Tables of a corpus by layer, neuron and token, and the contents of its atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.corpus.parts import Part, sums_of, windows_by_layer
from analysis_pipelines.corpus.results import (
    QUANTILES,
    Sums,
    layer_rates,
    layer_sums,
    neuron_density,
    neuron_moments,
    token_count,
)
from attention_neurons import NEURON_METHODS, layer_parameters
from mamba_mixers.sites import UnsupportedModelError
from mamba_mixers.weights import logit_directions
from selective_scan.scan import half_life
from suite_plumbing.corpus_texts import Source
from suite_plumbing.result_files import three_digits
from suite_plumbing.texts import token_pieces
from token_statistics.description import FloatArray, IntArray
from token_statistics.fixed_bins import quantiles
from token_statistics.kept_windows import BEFORE, KINDS

PROMOTED = 8
"""Tokens named that a neuron promotes, and as many that it suppresses."""

LEVELS = 9
"""Steps of a neuron's activation in a context, of the largest magnitude shown of that neuron."""

_AT_ONCE = 256  # neurons whose logits are made at once


class NeuronFacts:
    """What a table and the atlas say of the neurons of one layer, one row a neuron."""

    def __init__(
        self, sums: Sums, rates: torch.Tensor, importance: Mapping[str, FloatArray]
    ) -> None:
        count = token_count(sums)
        self.moments = neuron_moments(sums, count)
        self.density = neuron_density(sums["neuron_bins"])
        self.quantiles = quantiles(sums["neuron_bins"], np.array(QUANTILES))
        neurons, heads = len(self.density), len(sums["delta"])
        lives = half_life(torch.from_numpy(sums["delta"] / count), rates).amax(1).numpy()
        # In Mamba-2 the channels of a head share its delta.
        self.delta = np.repeat(sums["delta"] / count, neurons // heads)
        self.half_life = np.repeat(lives, neurons // heads)
        self.importance = importance

    def row(self, neuron: int) -> dict[str, Any]:
        """One line of the table; None where undefined."""
        values = {name: three(x[neuron]) for name, x in self.moments.items()}
        found = {
            f"q{100 * q:g}": three(x)
            for q, x in zip(QUANTILES, self.quantiles[neuron], strict=True)
        }
        return {
            "neuron": neuron, **values, **found, "density": three(self.density[neuron]),
            "mean_delta": three(self.delta[neuron]), "half_life": three(self.half_life[neuron]),
            **{f"importance_{k}": three(x[neuron]) for k, x in self.importance.items()},
        }  # fmt: skip


def three(value: Any) -> float | None:
    """Five significant digits, None where undefined."""
    number = float(value)
    return float(f"{number:.5g}") if np.isfinite(number) else None


def neuron_facts(
    part: Part, model: PreTrainedModel, layers: Sequence[int]
) -> dict[int, NeuronFacts]:
    """By layer; layers that no text reached are left out."""
    found = layer_sums(part, layers)
    rates = layer_rates(model, list(found))
    return {k: NeuronFacts(sums, rates[k], _importance(part, k)) for k, sums in found.items()}


def _importance(part: Part, layer: int) -> dict[str, FloatArray]:
    """By method: a neuron's share of the layer's importance, mean over the windows that gave it."""
    sums = sums_of(part, f"layer_{layer}/importance_")
    if not sums:
        return {}
    count = part.arrays["importance_windows"][0]
    return {name: sums[f"{name}_1"] / count for name in NEURON_METHODS}


def promoted_tokens(
    model: PreTrainedModel, layers: Sequence[int], known: Sequence[int]
) -> dict[int, tuple[IntArray, IntArray]] | None:
    """By layer: ids of the tokens whose logits each neuron raises, and lowers, most when it is
    positive, each (neurons, PROMOTED); None for a model without a final RMS norm.

    Directly, through the unembedding, with the final norm's scale left out. ``known``: the ids that
    are ranked; those that a corpus holds, for the rows of others may never have been trained. Cost:
    V d_model d_inner multiply-adds a layer.
    """
    try:
        directions = logit_directions(model)[list(known)]
    except UnsupportedModelError:
        return None
    ids = np.asarray(known)
    number = min(PROMOTED, len(ids))
    found = {}
    for layer, weights in layer_parameters(model, layers).items():
        parts = weights.out_weight.to(directions).split(_AT_ONCE, dim=1)
        logits = ((directions @ part).mT for part in parts)
        ends = [(x.topk(number).indices, (-x).topk(number).indices) for x in logits]
        up, down = (torch.cat(side).numpy() for side in zip(*ends, strict=True))
        found[layer] = ids[up], ids[down]
    return found


def neuron_rows(
    facts: Mapping[int, NeuronFacts],
    promoted: Mapping[int, tuple[IntArray, IntArray]] | None,
    pieces: Sequence[str],
) -> list[dict[str, Any]]:
    """The table of all neurons."""
    rows = []
    for layer, of_layer in facts.items():
        for neuron in range(len(of_layer.density)):
            row = {"layer": layer, **of_layer.row(neuron)}
            if promoted is not None:
                for name, ids in zip(("promotes", "suppresses"), promoted[layer], strict=True):
                    row[name] = " ".join(repr(pieces[i]) for i in ids[neuron])
            rows.append(row)
    return rows


def token_rows(
    part: Part, layers: Mapping[int, Sums], pieces: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each token of the vocabulary that was read, the most frequent first."""
    counts, predicted = part.arrays["token_counts"], part.arrays["token_predicted"]
    order = np.lexsort((np.arange(len(counts)), -counts))
    rows = []
    for token in order[: int((counts > 0).sum())]:
        n = counts[token]
        row = {
            "token_id": int(token), "token": pieces[token], "count": int(n),
            "loss": _mean(part.arrays["token_loss"][token], predicted[token]),
        }  # fmt: skip
        for layer, sums in layers.items():
            mapped = sums["mapped"][token]
            row |= {
                f"layer_{layer}_log_delta": _mean(sums["token_log_delta"][token], n),
                f"layer_{layer}_written": _mean(sums["token_written"][token], n),
                f"layer_{layer}_received": _mean(sums["received"][token], mapped),
                f"layer_{layer}_paid": _mean(sums["paid"][token], mapped),
            }
        rows.append(row)
    return rows


def _mean(total: Any, count: Any) -> float | None:
    return three(total / count) if count > 0 else None


def layer_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer, of its section of the results."""
    rows = []
    for name, section in results["layers"].items():
        maps = section["maps"] or {}
        rows.append(
            {
                "layer": int(name.removeprefix("layer_")),
                "mean_delta": section["delta"]["mean"],
                "selectivity": section["selectivity"],
                "half_life_median": section["half_life_median"],
                "written_norm": section["written_norm"],
                "participation_ratio": section["participation_ratio"],
                **{k: maps.get(k) for k in (
                    "entropy_share", "mean_distance", "self_share", "first_share", "recent_share",
                    "sink", "state_norm", "retained_norm", "state_share_of_output",
                )},
                "lag_90": maps["kernel"]["lag_90"][0] if maps else None,
                "copying_gain": maps["copying"]["value"] if maps else None,
                "copying_null_high": maps["copying"]["null_high"] if maps else None,
            }
        )  # fmt: skip
    return rows


def vocabulary_pieces(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Every id below ``size`` as its text; those that stand for no token as their number."""
    names = set(tokenizer.get_vocab().values())
    known = [i for i in range(size) if i in names]
    found = dict(zip(known, token_pieces(tokenizer, known), strict=True))
    return [found.get(i, f"<{i}>") for i in range(size)]


# The atlas


def atlas_contents(
    part: Part,
    results: Mapping[str, Any],
    facts: Mapping[int, NeuronFacts],
    promoted: Mapping[int, tuple[IntArray, IntArray]] | None,
    pieces: Sequence[str],
    source: Source,
    model_name: str,
) -> dict[str, Any]:
    """What the atlas shows: ``about``, ``pieces`` of the tokens in it, ``tokens``, and ``layers``
    with one entry a neuron.

    Everything is rounded to what is shown; a context's activations are whole steps of the largest
    magnitude that is shown of the neuron.
    """
    layers = layer_sums(part, list(facts))
    kept = windows_by_layer(part, list(facts))
    pushed = dict.fromkeys(facts) if promoted is None else promoted
    return {
        "about": {
            "model": model_name,
            "windows": part.counts["windows"],
            "tokens": part.counts["tokens"],
            "documents": part.counts["documents"],
            "loss": three_digits(results["corpus"]["loss"]),
            "levels": LEVELS,
            "peak": BEFORE,
            "one_text": source.one_text,
        },
        "pieces": list(pieces),
        "tokens": [_token_entry(row, list(layers)) for row in token_rows(part, layers, pieces)],
        "layers": {
            str(layer): {
                "summary": _layer_entry(results["layers"][f"layer_{layer}"]),
                "neurons": [
                    _neuron_entry(facts[layer], kept[layer], pushed[layer], neuron)
                    for neuron in range(len(facts[layer].density))
                ],
            }
            for layer in facts
        },
    }  # fmt: skip


def _token_entry(row: Mapping[str, Any], layers: Sequence[int]) -> list[Any]:
    """[id, count, loss, ln delta by layer, received by layer]."""
    return [
        row["token_id"], row["count"], three_digits(row["loss"]),
        [three_digits(row[f"layer_{k}_log_delta"]) for k in layers],
        [three_digits(row[f"layer_{k}_received"]) for k in layers],
    ]  # fmt: skip


def _layer_entry(section: Mapping[str, Any]) -> dict[str, Any]:
    maps = section["maps"]
    return {
        "delta": three_digits(section["delta"]["mean"]),
        "half_life": three_digits(section["half_life_median"]),
        "lag_90": maps and maps["kernel"]["lag_90"][0],
        "first_share": maps and three_digits(maps["first_share"]),
        "copying": maps and three_digits(maps["copying"]["value"]),
        "copying_chance": maps and three_digits(maps["copying"]["null_high"]),
    }


def _neuron_entry(
    facts: NeuronFacts,
    kept: Mapping[str, np.ndarray],
    promoted: tuple[IntArray, IntArray] | None,
    neuron: int,
) -> dict[str, Any]:
    row = facts.row(neuron)
    shown = ("mean", "std", "kurtosis", "density", "mean_delta", "half_life")
    contexts = {kind: _contexts(kept, kind, neuron) for kind in KINDS}
    largest = max((abs(c[2]) for found in contexts.values() for c in found), default=0.0)
    return {
        "s": [three_digits(row[name]) for name in shown],
        "i": [three_digits(x[neuron]) for x in facts.importance.values()],
        "p": [] if promoted is None else [side[neuron].tolist() for side in promoted],
        "c": {
            kind: [_packed(kept, kind, neuron, slot, largest) for slot, _, _ in found]
            for kind, found in contexts.items()
        },
    }


def _contexts(
    kept: Mapping[str, np.ndarray], kind: str, neuron: int
) -> list[tuple[int, int, float]]:
    """Slot, document and value of each kept window of a kind, the largest magnitude first; a window
    shown among the extremes is not shown again."""
    documents, values = kept[f"{kind}/document"][neuron], kept[f"{kind}/value"][neuron]
    shown: set[int] = set()
    if kind == "drawn":
        shown = {int(n) for end in ("highest", "lowest") for n in kept[f"{end}/number"][neuron]}
    numbers = kept[f"{kind}/number"][neuron]
    found = [
        (slot, int(documents[slot]), float(values[slot]))
        for slot in range(len(values))
        if documents[slot] >= 0 and int(numbers[slot]) not in shown
    ]
    return sorted(found, key=lambda one: (-abs(one[2]), one[0]))


def _packed(
    kept: Mapping[str, np.ndarray], kind: str, neuron: int, slot: int, largest: float
) -> list[Any]:
    """[value, document, token ids, place of the peak among them, steps as a text].

    A step is a letter: "a" to "s" for -LEVELS to LEVELS.
    """
    ids = kept[f"{kind}/ids"][neuron, slot]
    inside = ids >= 0
    steps = np.rint(LEVELS * kept[f"{kind}/values"][neuron, slot] / (largest or 1.0)).astype(int)
    letters = "".join(chr(ord("a") + LEVELS + int(s)) for s in steps.clip(-LEVELS, LEVELS)[inside])
    return [
        three_digits(kept[f"{kind}/value"][neuron, slot]),
        int(kept[f"{kind}/document"][neuron, slot]), ids[inside].tolist(),
        int(inside[:BEFORE].sum()), letters,
    ]  # fmt: skip
