"""One row a layer: the numbers of the memory analysis side by side, read from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from suite_plumbing.result_reading import entry_at

CAUSAL_KINDS = ("reset", "knockout")


def memory_by_layer(sections: Mapping[str, Any], layers: Sequence[int]) -> list[dict[str, Any]]:
    """One row a layer of the steps' JSON: what ``memory_by_layer.csv`` holds; None where undefined.

    ``kernel_...``: lags of the kernel of all texts together, as far as the longest reaches;
    ``kernel_limited_by_text`` where they are the texts' doing; ``tokens_to_half`` the median over
    heads, None where the texts are too short for it; ``reset_kl`` and ``knockout_kl`` means over
    positions and lags in nats; `..._low` and `..._high` the interval of the null (correlations).
    """
    return [_layer_row(sections, layer) for layer in layers]


def _layer_row(sections: Mapping[str, Any], layer: int) -> dict[str, Any]:
    def at(*path: str) -> Any:
        return entry_at(sections, *path)

    key = f"layer_{layer}"
    memory, kernel = ("delta", key, "memory"), ("memory_kernel", key)
    states = [part for part in (at("state", key) or {}).values() if isinstance(part, Mapping)]
    row = {
        "layer": layer,
        "mean_delta": at(*memory, "delta", "mean"),
        "median_half_life": at(*memory, "channel_half_life", "median"),
        "tokens_to_half": at(*memory, "tokens_to_half", "median"),
        **{
            name: at(*memory, name)
            for name in ("persistence", "selectivity", "consistency", "temporal_variance")
        },
        **{
            f"kernel_{name}": at(*kernel, "pooled", name)
            for name in ("mean_lag", "median_lag", "lag_90")
        },
        "kernel_limited_by_text": at(*kernel, "limited_by_text"),
        **{
            f"state_{name}": _mean([part[name] for part in states])
            for name in ("write", "retain", "retained_share", "last_over_first",
                         "last_over_third", "participation_ratio")
        },
        "memory_time": at("recursive_patterns", key, "mixer", "autocorrelation", "memory_time"),
        "rhythm_period": at(
            "recursive_patterns", key, "mixer", "autocorrelation", "rhythm", "period"
        ),
    }  # fmt: skip
    tests = {
        "delta_activation": ("delta_neurons", key, "observed", "mean_abs"),
        "delta_memory": ("delta_neurons", key, "delta_with_memory"),
    }
    for name, path in tests.items():
        row |= {f"{name}{end}": at(*path, field) for end, field in _TEST_COLUMNS.items()}
    for kind in CAUSAL_KINDS:
        values = at("causal_memory", kind, "layers", key, "kl") or []
        row[f"{kind}_kl"] = _mean(values)
        agreement = ("causal_memory", kind, "kernel_agreement", key, "spearman")
        row[f"{kind}_kernel_agreement"] = at(*agreement)
    row["ablation_effect"] = at("ablation_memory", key, "effect", "mean")
    return row


_TEST_COLUMNS = {"": "value", "_low": "null_low", "_high": "null_high"}


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None without one."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
