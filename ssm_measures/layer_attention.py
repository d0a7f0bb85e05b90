"""Implicit attention of captured layers: maps and measures, as objects that show themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from mamba_mixers.weights import MixerParameters
from ssm_measures.attention_maps import absolute_maps, limited_by_text, mean_map
from ssm_measures.attention_measures import (
    MemoryKernel,
    QueryStatistics,
    map_agreement,
    memory_kernel,
    query_statistics,
    synthetic_attention,
)
from ssm_measures.components import Capture, SSMComponents, extracted_layer
from ssm_measures.shown_objects import ShownObject, named_layer, per_token
from suite_plumbing.parallel import by_layer
from suite_plumbing.result_files import (
    StrPath,
    check_output_dir,
    table_html,
    three_digits,
    written_together,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LayerAttention(ShownObject):
    """Attention of one layer on a batch; maps are (b, l, l), query by source, zero at padding."""

    signed: Tensor
    """mean of alpha over heads"""
    absolute: Tensor
    """mean of |alpha| over heads"""
    synthetic: Tensor
    """causal softmax of the cosine of states: see
    :func:`ssm_measures.attention_measures.synthetic_attention`"""
    statistics: QueryStatistics
    """of ``absolute``, by query"""
    kernel: MemoryKernel
    """of ``absolute``, by lag"""
    agreement: tuple[float | None, ...]
    """per text: Spearman of ``absolute`` with ``synthetic`` over s <= t, mean over queries; None
    for a text of fewer than 3 tokens"""
    limited: tuple[bool, ...]
    """per text: whether the kernel's lags are limited by the text, see
    :func:`ssm_measures.attention_maps.limited_by_text`"""
    layer: int | None = None
    """number of the layer; None where nobody said"""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """by text, its tokens without padding; None where only ids were at hand"""
    written: Tensor | None = None
    """mean of |alpha u| over channels: see :func:`ssm_measures.attention_maps.written_map`"""

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token, as a query: entropy, strength, shares and mean distance of its row."""
        columns = {
            name: getattr(self.statistics, name) for name in self.statistics.__dataclass_fields__
        }
        mask = (~self.statistics.strength.isnan()).long()
        return per_token(self.layer, self.tokens, mask, columns)

    def figure(self) -> Figure:
        """The map of mean |alpha| of the first text, and its memory kernel."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.object_figures import figure_attention

        keep = ~self.statistics.strength[0].isnan()
        tokens = None if self.tokens is None else self.tokens[0]
        shown = self.absolute[0][keep][:, keep].double().numpy()
        kernel = self.kernel.kernel[0][: len(shown)].double().numpy()
        return figure_attention(f"Attention of {named_layer(self.layer)}", shown, kernel, tokens)

    def _line(self) -> str:
        count = int((~self.statistics.strength.isnan()).sum())
        lags = ", ".join(f"{lag:.3g}" for lag in self.kernel.median_lag)
        return f"LayerAttention of {named_layer(self.layer)}: {count} tokens, median lag {lags}"

    def to_dict(self) -> dict:
        """Summaries for JSON, with entropy, strength and mean distance by query of each text."""
        by_query = ("entropy", "strength", "mean_distance")
        return {
            "statistics": self.statistics.to_dict(),
            "by_query": {
                name: [
                    [three_digits(x) for x in row]
                    for row in getattr(self.statistics, name).tolist()
                ]
                for name in by_query
            },
            "memory_kernel": {**self.kernel.to_dict(), "limited_by_text": list(self.limited)},
            "agreement_with_synthetic": list(self.agreement),
        }


@dataclass(frozen=True, eq=False, repr=False)
class AttentionData:
    """Attention of the captured layers, with what the neuron methods need beside it."""

    captured: Capture
    """tokens, components and residual stream"""
    layers: dict[int, LayerAttention]
    """by layer"""
    parameters: dict[int, MixerParameters]
    """by layer: weights around the scan"""

    @property
    def tokens(self) -> tuple[tuple[str, ...], ...] | None:
        """By text, its tokens without padding; None where only ids were at hand."""
        return next(iter(self.captured.components.values())).tokens

    def layer(self, number: int) -> LayerAttention:
        """The attention of one layer; ValueError for one that was not asked for."""
        return extracted_layer(self.layers, number, "extract_attention_vectors")

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer and token: see `LayerAttention.to_dataframe`."""
        return pd.concat([part.to_dataframe() for part in self.layers.values()], ignore_index=True)

    def figure(self, layer: int | None = None) -> Figure:
        """Of one layer, by default the first: see `LayerAttention.figure`."""
        return self.layer(min(self.layers) if layer is None else layer).figure()

    def save(self, folder: StrPath) -> list[Path]:
        """Write each layer's attention to a file of a folder; `LayerAttention.load` reads one."""
        place = check_output_dir(folder)
        paths = [place / f"layer_{number}.attention.safetensors" for number in self.layers]
        with written_together():
            for path, part in zip(paths, self.layers.values(), strict=True):
                part.save(path)
        return paths

    def __repr__(self) -> str:
        numbers = ", ".join(map(str, self.layers))
        count = int(self.captured.attention_mask.sum())
        return f"<AttentionData of layers {numbers}: {count} tokens>"

    def _repr_html_(self) -> str:
        columns = ("entropy", "self_share", "first_share", "recent_share", "mean_distance")
        tables = {number: part.to_dataframe() for number, part in self.layers.items()}
        means = pd.DataFrame(
            {"layer": number, **{name: table[name].mean() for name in columns}}
            for number, table in tables.items()
        )
        return f"<p>{escape(repr(self)[1:-1])}; means over tokens</p>{table_html(means)}"

    def to_dict(self) -> dict:
        """Summaries by layer, for JSON."""
        return {f"layer_{layer}": parts.to_dict() for layer, parts in self.layers.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Maps for safetensors: ``layer_3.attention`` (b, l, l), ``.absolute``, ``.synthetic``."""
        maps = {"attention": "signed", "absolute": "absolute", "synthetic": "synthetic"}
        return {
            f"layer_{layer}.{name}": getattr(parts, field)
            for layer, parts in self.layers.items()
            for name, field in maps.items()
        }


def layer_attention(components: SSMComponents) -> LayerAttention:
    """Maps of one layer and their measures.

    Cost: :func:`selective_scan.attention_map`, :func:`selective_scan.magnitude_maps` and inner
    products of the states; memory 4 maps of b l^2 floats and what those functions state.
    """
    mask = components.attention_mask
    (absolute, written), synthetic = absolute_maps(components), synthetic_attention(components)
    return LayerAttention(
        signed=mean_map(components),
        absolute=absolute,
        synthetic=synthetic,
        statistics=query_statistics(absolute, mask),
        kernel=memory_kernel(absolute, mask),
        agreement=map_agreement(absolute, synthetic, mask),
        limited=limited_by_text(components),
        written=written,
    )


def attention_data(captured: Capture, parameters: Mapping[int, MixerParameters]) -> AttentionData:
    """Attention of every captured layer; ``parameters`` of :func:`layer_parameters`."""

    def of_layer(layer: int) -> LayerAttention:
        parts = captured.components[layer]
        return replace(layer_attention(parts), layer=layer, tokens=parts.tokens)

    layers = by_layer(of_layer, captured.layers)
    return AttentionData(captured, layers, {layer: parameters[layer] for layer in layers})
