"""Whether the replayed mixers are the model's own, and what a difference means for the results.

States, delta, attention and all that is made of them are those of the replay. Where its output is
not the mixer's real output, either the suite or ``transformers`` computes something else than the
family's definition: the result says so, by layer, and nothing is put right in silence.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mamba_mixers.sites import find_mixers
from suite_plumbing.precision import autocast_dtypes

logger = logging.getLogger(__name__)


REPLAY_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}
"""Largest relative error that rounding explains, by the mixers' dtype; 1e-2 for half precision.

In float64 ``transformers`` still rounds u and B to float32 on their way into the state. Replayed
numbers that differ in the sixteenth digit may round to the other side, 6e-8 of the number: seldom,
but in a layer where few numbers weigh most such a one is all of the error."""

UNTRUSTED = (
    "delta, A, B, C, u, gate, y, states, neurons and implicit attention of these layers, what is "
    "made of them, and whatever was computed with edited or differentiated mixers"
)

TRUSTED = "the residual stream around the layers and what the mixers returned"

_KERNELS = ("mamba_ssm", "causal_conv1d", "kernels")


def replay_tolerance(model: nn.Module) -> float:
    """Largest replay error that rounding explains.

    By the coarsest dtype that the mixers compute in: of their own parameters, whatever the rest of
    the model has; of ``torch.autocast``; and float32 in a Mamba-2, which scans in it in any dtype.
    """
    sites = find_mixers(model).values()
    dtypes = {p.dtype for site in sites for p in site.mixer.parameters()} | set(autocast_dtypes())
    if any(site.family.scans_in_float32 for site in sites):
        dtypes.add(torch.float32)
    return max(REPLAY_TOLERANCE.get(dtype, 1e-2) for dtype in dtypes)


def replay_check(model: nn.Module, errors: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Strict JSON of replay errors by text and layer: the largest, the tolerance, a mismatch.

    ``replay_mismatch`` is None where every error is within the tolerance; else it names the
    family, the version of ``transformers``, the path that its code took, the layers, and what of
    the result is not to be trusted. A warning is logged then.
    """
    tolerance = replay_tolerance(model)
    largest = max((e for by_layer in errors.values() for e in by_layer.values()), default=None)
    agrees = None if largest is None else largest <= tolerance
    mismatch = _mismatch(model, errors, tolerance) if agrees is False else None
    if mismatch is not None:
        logger.warning("%s", mismatch["message"])
    return {
        "replay_error": {text: dict(by_layer) for text, by_layer in errors.items()},
        "largest_replay_error": largest,
        "replay_tolerance": tolerance,
        "replay_agrees": agrees,
        "replay_mismatch": mismatch,
    }


def _mismatch(model: nn.Module, errors: Mapping[str, Mapping[str, float]], tolerance: float):
    worst: dict[str, float] = {}
    for by_layer in errors.values():
        for layer, error in by_layer.items():
            worst[layer] = max(error, worst.get(layer, 0.0))
    beyond = {layer: error for layer, error in worst.items() if not error <= tolerance}
    family = next(iter(find_mixers(model).values())).family.model_type
    version, path = importlib.metadata.version("transformers"), _path(model)
    message = (
        f"the replayed mixers of {family} differ from those of transformers {version} ({path}) by "
        f"up to {max(beyond.values()):.1e}, where rounding explains {tolerance:.0e}; not to be "
        f"trusted: {UNTRUSTED}; still the model's own: {TRUSTED}. docs/families.md lists known "
        "faults of transformers"
    )
    return {
        "family": family,
        "transformers": version,
        "path": path,
        "layers": beyond,
        "not_to_be_trusted": UNTRUSTED,
        "still_the_models_own": TRUSTED,
        "message": message,
    }


def _path(model: nn.Module) -> str:
    """Where the mixers ran, and which packages of kernels they could have taken."""
    kernels = [name for name in _KERNELS if importlib.util.find_spec(name) is not None]
    device = next(model.parameters()).device.type
    return f"{device}, {' and '.join(kernels)} installed" if kernels else f"{device}, torch code"
