"""Causal memory of a set of texts as the memory analysis reports it: by layer, lag and position.

Composes the curves of ``intervention_study``; the definitions of reset, knockout and their effects
are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from intervention_study import (
    KINDS,
    MIN_HISTORY,
    CausalMemoryCurve,
    causal_memory_curve,
    compare_curves,
    layer_lag_map,
    pooled_curve,
    random_positions,
    spread_positions,
)
from ssm_component_extractor import Capture
from utils import finite_or_none

MIN_CAUSAL_TOKENS = 16
"""Shorter texts have too few lags for a causal curve and are left out of it."""
MAX_CAUSAL_LAG = 64
"""Tokens; less where half of the shortest text is less."""


class Measured(NamedTuple):
    """On what causal memory is measured."""

    model: PreTrainedModel
    captures: Sequence[Capture]
    layers: Sequence[int]
    num_positions: int
    seed: int


def causal_memory(
    model: PreTrainedModel,
    captures: Sequence[Capture],
    layers: Sequence[int],
    num_positions: int,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON of both kinds: each layer alone, all together, and all at random other positions.

    ``captures``: one text each, without padding; those of fewer than MIN_CAUSAL_TOKENS tokens are
    left out, and with none left there is only a ``reason``. Cost: that of two `layer_lag_map`, and
    one more row a position and kind.
    """
    lengths = [captured.input_ids.shape[1] for captured in captures]
    chosen = [i for i, length in enumerate(lengths) if length >= MIN_CAUSAL_TOKENS]
    if not chosen:
        return {"reason": f"no text has {MIN_CAUSAL_TOKENS} tokens"}
    max_lag = min(MAX_CAUSAL_LAG, min(lengths[i] for i in chosen) // 2 - 1)
    measured = Measured(model, captures, layers, num_positions, seed)
    return {
        "texts": [f"text_{i}" for i in chosen],
        "max_lag": max_lag,
        **{kind: _causal(measured, chosen, max_lag, kind) for kind in KINDS},
    }


def _causal(measured: Measured, chosen: Sequence[int], max_lag: int, kind: str) -> dict[str, Any]:
    captures = [measured.captures[i] for i in chosen]
    found = layer_lag_map(
        measured.model,
        captures,
        measured.layers,
        max_lag,
        kind=kind,
        num_positions=measured.num_positions,
    )
    result = found.to_dict(measured.seed)
    curves = {f"layer_{layer}": curve for layer, curve in found.by_layer.items()}
    for name, curve in {**curves, "together": found.together}.items():
        part = result["together"] if name == "together" else result["layers"][name]
        part["positions"] = [[chosen[text], token] for text, token in curve.positions]
        part.update(by_position(curve))
    result["random_positions"] = _beside_random(measured, captures, found.together)
    return result


def by_position(curve: CausalMemoryCurve) -> dict[str, list[float | None]]:
    """Of each position: ``kl``, the mean over its lags (nats), and ``late_share``, the share of
    its KL that falls on the later half of the lags, in [0, 1]; None where there is no effect."""
    kl = curve.kl[:, KINDS[curve.kind].first_lag :]
    total, late = kl.nansum(1), kl[:, kl.shape[1] // 2 :].nansum(1)
    return {
        "kl": [finite_or_none(x) for x in kl.nanmean(1).tolist()],
        "late_share": [finite_or_none(x) for x in (late / total).tolist()],
    }


def _beside_random(
    measured: Measured, captures: Sequence[Capture], curve: CausalMemoryCurve
) -> dict[str, Any]:
    """The same intervention in all layers at random other positions, compared by bin of lags."""
    others = []
    for text, captured in enumerate(captures):
        length = captured.input_ids.shape[1]
        used = spread_positions(length, measured.num_positions, curve.max_lag)
        last = length - 2 - curve.max_lag
        free = last + 1 - min(MIN_HISTORY, max(last, 1)) - len(used)
        if free < 1:
            continue
        places = random_positions(
            length,
            min(len(used), free),
            curve.max_lag,
            exclude=used,
            seed=measured.seed,
        )
        layers = list(curve.layers)
        others.append(
            causal_memory_curve(
                measured.model, captured, layers, places, curve.max_lag, kind=curve.kind, text=text
            )
        )
    if not others:
        return {"reason": "the positions measured leave no others in these texts"}
    compared = compare_curves(curve, pooled_curve(others), seed=measured.seed)
    return {"num_positions": sum(len(one.positions) for one in others), "bins": compared}
