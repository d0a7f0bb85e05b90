"""Circuits of edges between layers: what is left of an effect when only they carry the clean run.

An edge is what one layer, or the embedding, writes, as one later layer reads it, or the logits. In
a circuit's run, kept edges carry what is written in that run, all others what was written in the
corrupt one [1].

    faithfulness   normalised metric with the circuit's edges alone: 1 where they suffice
    without        the same with all edges but the circuit's: 0 where nothing else can do it; the
                   circuit is complete then

Both by the number of edges kept, the strongest first, beside random edges of the same number.
Zamba's and Zamba2's layers read the embeddings a second time, past all edges: those of the clean
text.

References:
  [1] Conmy et al. 2023, ACDC (arXiv 2304.14997)
  [2] Marks et al. 2024, Sparse feature circuits (arXiv 2403.19647): faithfulness, completeness
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from causal_interventions.patching.exact import TOKENS_PER_PASS, PairRuns
from causal_interventions.patching.gradients import written
from mamba_mixers.rewiring import rewired
from mamba_mixers.running import fast_scan
from suite_plumbing.arguments import torch_rng
from suite_plumbing.precision import in_full_precision

NUM_RANDOM = 20
"""Random choices of edges beside each circuit."""


@dataclass(frozen=True, eq=False)
class CircuitCurve:
    """What circuits of growing size keep of the effect; 0 the corrupt run, 1 the clean one."""

    edges: list[tuple[int | str, int | str]]
    """(writer, reader), the strongest first: "embedding" or a layer, a layer or "logits" """
    counts: list[int]
    """edges kept"""
    faithfulness: np.ndarray
    """(counts,) with the first edges alone"""
    without: np.ndarray
    """(counts,) with all but these"""
    random_faithfulness: np.ndarray
    """(draws, counts) as many edges at random alone"""
    random_without: np.ndarray
    """(draws, counts)"""

    def rows(self) -> list[dict[str, Any]]:
        """One row a number of edges, for a table."""
        return [
            {
                "edges": count,
                "faithfulness": float(self.faithfulness[i]),
                "without": float(self.without[i]),
                "random_faithfulness": float(self.random_faithfulness[:, i].mean()),
                "random_without": float(self.random_without[:, i].mean()),
                "share_of_random_below": float(
                    (self.random_faithfulness[:, i] < self.faithfulness[i]).mean()
                ),
            }
            for i, count in enumerate(self.counts)
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"order": [list(edge) for edge in self.edges], "curve": self.rows()}


def all_edges(num_layers: int) -> list[tuple[int, int]]:
    """(writer, reader) numbers of every edge: writers count from the embedding, 0, readers from
    layer 0; reader ``num_layers`` is the logits."""
    return [(i, j) for i in range(num_layers + 1) for j in range(i, num_layers + 1)]


def edge_names(edge: tuple[int, int], num_layers: int) -> tuple[int | str, int | str]:
    """An edge as users read it."""
    writer, reader = edge
    return "embedding" if writer == 0 else writer - 1, "logits" if reader == num_layers else reader


@torch.inference_mode(False)
@torch.no_grad()
@in_full_precision
def circuit_values(model: PreTrainedModel, runs: PairRuns, kept: Tensor) -> Tensor:
    """(b, circuits) float64 metric of every pair in every circuit.

    ``kept`` (circuits, L + 1, L + 1) says which edges (writer, reader) a circuit keeps. Cost: a
    forward pass for each pair and circuit.
    """
    length = runs.clean.input_ids.shape[1]
    parts = kept.split(max(1, TOKENS_PER_PASS // length))
    return torch.stack(
        [
            torch.cat([_values_of_text(model, runs, text, part) for part in parts])
            for text in range(len(runs.clean.input_ids))
        ]
    )


def _values_of_text(model: PreTrainedModel, runs: PairRuns, text: int, kept: Tensor) -> Tensor:
    corrupt = [runs.corrupt.streams[0][text]]
    corrupt += [written(runs.corrupt, layer)[text] for layer in runs.corrupt.streams]

    def read(reader: int, carried: list[Tensor]) -> Tensor:
        chosen = kept[:, : len(carried), reader, None, None].to(carried[0].device)
        stream = torch.zeros_like(carried[0])
        for writer, now in enumerate(carried):
            stream = stream + torch.where(chosen[:, writer], now, corrupt[writer].to(now))
        return stream

    ids = runs.clean.input_ids[text].expand(len(kept), -1)
    with fast_scan(model), rewired(model, read):
        logits = model(input_ids=ids, use_cache=False, return_dict=True).logits[:, -runs.back]
    texts = torch.full((len(kept),), text, device=logits.device)
    return runs.value(logits, texts).cpu()


def circuit_curve(
    model: PreTrainedModel,
    runs: PairRuns,
    scores: Tensor,
    counts: list[int],
    *,
    num_random: int = NUM_RANDOM,
    seed: int = 0,
) -> CircuitCurve:
    """Circuits of the strongest edges by |scores| (L + 1, L + 1), beside random ones.

    Cost: 2 (1 + num_random) forward passes for each pair and count.
    """
    layers = len(scores) - 1
    edges = sorted(all_edges(layers), key=lambda edge: -abs(float(scores[edge])))
    orders = [list(range(len(edges)))]
    generator = torch_rng(seed)
    orders += [torch.randperm(len(edges), generator=generator).tolist() for _ in range(num_random)]
    kept = torch.stack(
        [_mask([edges[i] for i in order[:count]], layers) for order in orders for count in counts]
    )
    both = torch.cat([kept, _mask(edges, layers) & ~kept])
    values = circuit_values(model, runs, both)
    apart = float((runs.clean_value - runs.corrupt_value).mean())
    share = (values.mean(0) - float(runs.corrupt_value.mean())) / apart
    table = share.view(2, len(orders), len(counts)).numpy()
    names = [edge_names(edge, layers) for edge in edges]
    return CircuitCurve(names, counts, table[0, 0], table[1, 0], table[0, 1:], table[1, 1:])


def _mask(edges: list[tuple[int, int]], layers: int) -> Tensor:
    kept = torch.zeros(layers + 1, layers + 1, dtype=torch.bool)
    for writer, reader in edges:
        kept[writer, reader] = True
    return kept
