"""TransformerLens, where it is installed: residual patching for ``patching_cost.py``, and the
residual streams of a pass for ``speed.py``.

Its bridge wraps the model of ``transformers`` in place. Its ``generic_activation_patch``, which
``get_act_patch_resid_pre`` calls for every layer and token, runs the whole corrupt text once a
patch, by the stock code with a hook. TransformerLens is no dependency of the suite.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from causal_interventions.patching.exact import PairRuns
from suite_plumbing.memory_usage import MemoryTracker

_STREAM = "hook_resid_pre"


class TheirPatches(NamedTuple):
    """Some patches of the residual stream by TransformerLens."""

    places: list[tuple[int, int]]
    """(layer, token) of each"""
    values: Tensor
    """(patches,) float64 metric of each patched run"""
    preparing: float
    """seconds of wrapping the model and of the clean run's cache"""
    seconds: float
    """of all patches"""
    memory: float | None
    """GB, peak above what the process held before"""


def is_at_hand() -> bool:
    """Whether TransformerLens, with a bridge for Mambas, can be imported."""
    if importlib.util.find_spec("transformer_lens") is None:
        return False
    return importlib.util.find_spec("transformer_lens.model_bridge.sources") is not None


def version() -> str:
    """The installed version of TransformerLens."""
    return importlib.metadata.version("transformer_lens")


def spread_places(layers: int, length: int, count: int) -> list[tuple[int, int]]:
    """``count`` places (layer, token), evenly over all of them in the order of their numbers."""
    places = layers * length
    chosen = torch.linspace(0, places - 1, min(count, places), dtype=torch.float64).round().long()
    return [divmod(place, length) for place in chosen.tolist()]


def bridged(model: Any) -> Any:
    """TransformerLens' bridge around a model of ``transformers``, which it changes in place."""
    bridges = importlib.import_module("transformer_lens.model_bridge.sources")
    return bridges.build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


@torch.no_grad()
def cached_streams(bridge: Any, input_ids: Tensor) -> Any:
    """Its cache of the residual stream before every layer, of one pass by the stock code."""
    return bridge.run_with_cache(input_ids, names_filter=lambda name: name.endswith(_STREAM))[1]


@torch.no_grad()
def patched_by_transformer_lens(
    model: Any, runs: PairRuns, places: list[tuple[int, int]]
) -> TheirPatches:
    """Patch the clean text's residual stream before these layers and tokens into the corrupt run.

    ``model`` is a `MambaForCausalLM`, which the bridge changes in place; ``runs`` are of one pair.
    Cost: a stock forward pass a patch, and one for the cache.
    """
    patching = importlib.import_module("transformer_lens.patching")

    def metric(logits: Tensor) -> Tensor:
        return runs.value(logits[:, -runs.back], torch.arange(1))[0]

    memory = _started()
    start = time.monotonic()
    bridge = bridged(model)
    cache = cached_streams(bridge, runs.clean.input_ids)
    prepared = time.monotonic()
    with _silent():
        values = patching.generic_activation_patch(
            bridge, runs.corrupt.input_ids, cache, metric, patching.layer_pos_patch_setter,
            _STREAM.removeprefix("hook_"), index_df=pd.DataFrame(places, columns=["layer", "pos"]),
        )  # fmt: skip
    done = time.monotonic()
    return TheirPatches(
        places, values.double(), prepared - start, done - prepared, above_baseline(memory)
    )


def measured_memory(work: Callable[[], Any]) -> tuple[Any, float | None]:
    """What a call gives, and GB of its peak above what the process held before."""
    memory = _started()
    return work(), above_baseline(memory)


def above_baseline(memory: MemoryTracker) -> float | None:
    """GB between a tracker's baseline and its peak; None where one of them is not known."""
    stats = memory.stats()
    peak, baseline = stats["peak_memory_usage"], stats["baseline_memory_usage"]
    return None if peak is None or baseline is None else peak - baseline


def _started() -> MemoryTracker:
    memory = MemoryTracker()
    memory.cleanup()
    memory.reset()
    return memory


@contextlib.contextmanager
def _silent():
    """Without the bar that the sweep draws."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
