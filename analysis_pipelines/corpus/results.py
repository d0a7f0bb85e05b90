"""The results of a corpus from its merged sums: what JSON holds, and the tensors beside it.

All of it is made from the merged part and the model's weights: nothing depends on who computed the
parts. The JSON does not grow with the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis_pipelines.corpus.findings import corpus_findings, findings_json
from analysis_pipelines.corpus.parts import LARGEST, Part, sums_of
from analysis_pipelines.corpus.plan import Settings
from mamba_mixers.families import decay_rates
from mamba_mixers.replay_check import replay_check
from mamba_mixers.sites import find_mixers
from selective_scan.scan import half_life
from ssm_measures.attention_measures import kernel_of_means
from ssm_measures.corpus_maps import QUERY_SUMS, autocorrelation_of
from suite_plumbing.result_files import finite_or_none, six_digits, three_digits
from token_statistics.corpus_pairs import (
    cka_of_all,
    pairs_of,
    participation_ratios,
    position_bins,
)
from token_statistics.description import FloatArray, IntArray, summarise
from token_statistics.fixed_bins import HALF, edges, quantiles
from token_statistics.intervals import mean_interval
from token_statistics.time_shift_nulls import against_null, undefined

FAILURES_SHOWN = 100

QUANTILES = (0.01, 0.5, 0.99, 0.999)

DENSE_SHARE = 0.1
"""A neuron counts as active at a token where its magnitude is above so much of its 99.9 %
quantile."""

Sums = Mapping[str, np.ndarray]


def layer_sums(part: Part, layers: Sequence[int]) -> dict[int, dict[str, np.ndarray]]:
    """The sums of each layer by name; a layer that no text reached is left out."""
    found = {layer: sums_of(part, f"layer_{layer}/") for layer in layers}
    return {layer: sums for layer, sums in found.items() if "delta" in sums}


def corpus_results(part: Part, model: Any, settings: Settings) -> dict[str, Any]:
    """``corpus``, ``layers``, ``pairs``, ``cka``, ``findings``, ``failures``, ``self_check``.

    Raises ValueError where no text of the corpus gave a window.
    """
    if part.counts["windows"] == 0:
        first = f"; the first failure: {part.failures[0]['reason']}" if part.failures else ""
        raise ValueError(
            f"the corpus has no text of 2 tokens or more ({part.counts['passages']} texts, "
            f"{part.counts['failures']} of them unreadable{first})"
        )
    layers = layer_sums(part, settings.layers)
    pairs_sums = sums_of(part, "pairs/")
    pairs = pairs_of(pairs_sums, list(layers)) if pairs_sums and len(layers) > 1 else []
    ratios = participation_ratios(pairs_sums, len(layers)) if pairs_sums else None
    rates = layer_rates(model, list(layers))
    found = corpus_findings(layers, pairs, part.counts["documents"], settings.seed)
    return {
        "corpus": corpus_section(part, settings),
        "layers": {
            f"layer_{layer}": layer_section(sums, rates[layer])
            | {"participation_ratio": None if ratios is None else finite_or_none(ratios[i])}
            for i, (layer, sums) in enumerate(layers.items())
        },
        "by_position": position_section(part, layers),
        "pairs": {
            f"layer_{a}_to_{b}": {
                "mean_abs_r": pair.mean_abs_r.to_dict(), "cka": pair.cka.to_dict()
            }
            for pair in pairs for a, b in [pair.layers]
        },
        "cka": None if not pairs else _rounded(cka_of_all(pairs_sums, len(layers))),
        "findings": findings_json(found),
        "failures": part.failures[:FAILURES_SHOWN],
        "self_check": replay_check(model, _replay_errors(part, settings)),
    }  # fmt: skip


def layer_rates(model: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    """A (H, N or 1) of these layers, float64, on the CPU."""
    sites = find_mixers(model)
    return {layer: decay_rates(sites[layer].mixer).detach().double().cpu() for layer in layers}


def _replay_errors(part: Part, settings: Settings) -> dict[str, dict[str, float]]:
    errors = part.arrays[f"{LARGEST}replay_error"]
    by_layer = {f"layer_{k}": float(x) for k, x in zip(settings.layers, errors, strict=True)}
    return {} if settings.carry else {"corpus": by_layer}


def corpus_section(part: Part, settings: Settings) -> dict[str, Any]:
    """How much was read, and the mean loss with its interval over documents."""
    arrays = part.arrays
    predicted = arrays["block_predicted"]
    some = predicted > 0
    by_block = arrays["block_loss"][some] / predicted[some]
    interval = mean_interval(by_block, seed=settings.seed, least=0.0)
    loss = float(arrays["token_loss"].sum() / max(1.0, arrays["token_predicted"].sum()))
    return {
        **part.counts,
        "tasks": settings.tasks,
        "loss": loss,
        "perplexity": finite_or_none(math.exp(min(loss, 700.0))),
        "loss_by_document": interval._asdict(),
        "distinct_tokens": int((arrays["token_counts"] > 0).sum()),
        "maps_every": settings.maps_every,
        "importance_every": settings.importance_every,
        "importance_windows": int(arrays.get("importance_windows", np.zeros(1))[0]),
        "max_sequence_length": settings.max_sequence_length,
        "carry": settings.carry,
    }


def layer_section(sums: Sums, rates: Tensor) -> dict[str, Any]:
    """One layer over the corpus, in a few numbers and short curves."""
    count = token_count(sums)
    mean = torch.from_numpy(sums["delta"] / count)
    half_lives = half_life(mean, rates)
    return {
        "num_tokens": int(count),
        "delta": summarise(mean),
        "selectivity": _selectivity(sums, count),
        "log_delta": summarise(sums["log_delta"] / count),
        "half_life": summarise(half_lives.amax(1)),
        "half_life_median": float(half_lives.median()),
        "written_norm": float(sums["token_written"].sum() / count),
        "neurons": neuron_summary(sums, count),
        **map_section(sums),
    }


def token_count(sums: Sums) -> float:
    """Tokens that a layer has read."""
    return float(sums["blocks"][:, 0].sum())


def _selectivity(sums: Sums, count: float) -> float | None:
    """Share of the variance of delta that lies between tokens of one head, in [0, 1]."""
    mean = sums["delta"] / count
    within = (sums["delta_squares"] / count - mean**2).clip(min=0).sum()
    total = within + np.square(mean - mean.mean()).sum()
    return float(within / total) if total > 0 else None


def map_section(sums: Sums) -> dict[str, Any]:
    """What takes a map or the states, of the windows that gave them; None without any."""
    counts = sums["map_query_counts"].sum(1)
    states = sums["state_counts"].sum()
    if states == 0:
        return {"maps": None}
    queries = {
        name: finite_or_none(total / n) if n else None
        for name, total, n in zip(QUERY_SUMS, sums["map_queries"].sum(1), counts, strict=True)
    }
    lags = sums["lag_counts"] > 0
    kernel = kernel_of_means(
        torch.from_numpy(sums["lag_sums"][lags] / sums["lag_counts"][lags])[None]
    )
    direct, state = sums["output_squares"]
    series = autocorrelation_of(
        *(sums[f"series_{name}"] for name in ("products", "ends", "counts"))
    )
    return {
        "maps": {
            **queries,
            "kernel": kernel.to_dict(),
            "sink": _ratio(sums["sinks"][0]),
            "copying": copying_section(sums["copying"]),
            "state_norm": float(sums["state_norm"].sum() / states),
            "retained_norm": float(sums["retained_norm"].sum() / states),
            "written_norm": float(sums["written_norm"].sum() / states),
            "state_share_of_output": float(state / (state + direct))
            if state + direct > 0
            else None,
            "openness_autocorrelation": [three_digits(x) for x in series],
        }
    }


def _ratio(pair: np.ndarray) -> float | None:
    return float(pair[0] / pair[1]) if pair[1] > 0 else None


def copying_section(sums: FloatArray) -> dict[str, Any]:
    """The gain at the copying source, beside queries moved in time (`copying`)."""
    pairs = int(sums[0, 2])
    if pairs == 0 or sums[0, 1] == 0:
        return undefined("no token was read before in its window", pairs).to_dict()
    known = sums[:, 1] > 0
    gains = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=known)
    return against_null(float(gains[0]), gains[1:][known[1:]], pairs).to_dict()


def position_section(part: Part, layers: Mapping[int, Sums]) -> dict[str, Any]:
    """Means by bins of positions: loss, and of each layer ln delta and the norm of the state."""
    counts = part.arrays["position_counts"]
    longest = int(np.flatnonzero(counts)[-1]) + 1
    bins = position_bins(longest)
    used = np.unique(bins)

    def means(sums: np.ndarray, n: np.ndarray) -> list[float | None]:
        total, number = (np.bincount(bins, x[:longest])[used] for x in (sums, n))
        return [three_digits(a / b) if b else None for a, b in zip(total, number, strict=True)]

    first = [int(np.flatnonzero(bins == b)[0]) for b in used]
    predicted = part.arrays["position_predicted"]
    return {
        "first_position": first,
        "loss": means(part.arrays["position_loss"], predicted),
        "log_delta": {
            f"layer_{k}": means(s["position_log_delta"], counts) for k, s in layers.items()
        },
        "state_norm": {
            f"layer_{k}": means(s["state_norm"], s["state_counts"]) for k, s in layers.items()
        },
    }


def neuron_moments(sums: Sums, count: float) -> dict[str, FloatArray]:
    """By neuron: mean, standard deviation, skewness and excess kurtosis; nan without variance."""
    m1, m2, m3, m4 = sums["neuron_sums"] / count
    variance = (m2 - m1**2).clip(min=0)
    # What float64 leaves of a constant is no variance.
    std = np.sqrt(np.where(variance > 1e-12 * m2, variance, 0.0))
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness, kurtosis = third / std**3, fourth / std**4 - 3
    return {"mean": m1, "std": std, "skewness": skewness, "kurtosis": kurtosis}


def neuron_density(counts: IntArray) -> FloatArray:
    """Share of tokens at which a neuron is active, from its bins (neurons, bins); see
    DENSE_SHARE."""
    folded = counts[:, HALF:].copy()
    folded[:, 1:] += counts[:, :HALF][:, ::-1]
    ends = edges()[HALF + 1 :]
    magnitudes = np.zeros_like(counts)
    magnitudes[:, HALF:] = folded
    limit = DENSE_SHARE * quantiles(magnitudes, np.array([0.999]))[:, 0]
    upper = np.broadcast_to(ends, folded.shape)
    lower = np.concatenate([np.zeros((len(counts), 1)), upper[:, :-1]], axis=1)
    above = ((upper - limit[:, None]) / (upper - lower)).clip(0.0, 1.0)
    return (above * folded).sum(1) / folded.sum(1)


def neuron_summary(sums: Sums, count: float) -> dict[str, Any]:
    """The layer's neurons in a few numbers."""
    moments = neuron_moments(sums, count)
    kurtosis = moments["kurtosis"]
    return {
        "kurtosis": summarise(kurtosis[np.isfinite(kurtosis)])
        if np.isfinite(kurtosis).any()
        else None,
        "density": summarise(neuron_density(sums["neuron_bins"])),
        "std": summarise(moments["std"]),
    }


def corpus_tensors(part: Part, layers: Mapping[int, Sums]) -> dict[str, Tensor]:
    """The merged sums and counts by name, but for the kept windows: what any number of the results
    can be made from again."""
    kept = ("token_", "position_", "block_", "pairs/", "importance_windows")
    chosen = {name: x for name, x in part.arrays.items() if name.startswith(kept)}
    for layer, sums in layers.items():
        chosen |= {f"layer_{layer}/{name}": x for name, x in sums.items()}
    return {
        name: torch.from_numpy(np.ascontiguousarray(x)).reshape(x.shape)
        for name, x in chosen.items()
    }


def _rounded(matrix: FloatArray) -> list[list[float | None]]:
    return [[three_digits(x) for x in row] for row in matrix]


def rounded_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with six digits a number, as JSON holds them."""
    return six_digits(dict(results))
