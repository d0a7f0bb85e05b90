"""Findings over a corpus, with intervals over documents.

A sample is a document, or a group of documents where there are more than BLOCKS of them. Each claim
is about the mean over all layers that were read, so that no layer is picked by what is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssm_measures.corpus_layer import BLOCK_SUMS, BLOCKS
from ssm_measures.corpus_maps import MAP_BLOCK_SUMS
from token_statistics.corpus_pairs import LayerPair
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, judged
from token_statistics.verdict_rules import above_null, exceeds_zero

LEAST_TOKENS = 100
"""Tokens, or queries, of either side that a document needs to be a sample."""


def corpus_findings(
    layers: Mapping[int, Mapping[str, np.ndarray]],
    pairs: Sequence[LayerPair],
    documents: int,
    seed: int,
) -> list[Finding]:
    """The findings of a run from the sums by layer; p adjusted over them."""
    unit = "documents" if documents <= BLOCKS else "groups of documents"
    found = [
        exceeds_zero(
            "Tokens new to their window open the gates further than tokens it had before",
            "mean ln delta of new tokens less that of known ones, mean over heads and layers",
            {"all layers": new_against_known(layers)}, "layers.*.log_delta", unit, seed,
        ),
        exceeds_zero(
            "Attention goes to what followed an earlier occurrence of the same token more than to "
            "its neighbours",
            "share of |alpha u| at the copying source less the mean share around it, mean over "
            "layers",
            {"all layers": copying_by_document(layers)}, "layers.*.copying", unit, seed,
        ),
    ]  # fmt: skip
    for name, statistic in (
        ("mean_abs_r", "mean |r| of sampled channels of the residual stream"),
        ("cka", "linear CKA of sampled channels of the residual stream"),
    ):
        tests = {f"layer_{a}_to_{b}": getattr(pair, name).to_dict() for pair in pairs
                 for a, b in [pair.layers]}  # fmt: skip
        found.append(
            above_null(
                f"Neighbouring layers go together beyond texts moved in time ({name})",
                statistic, tests, f"pairs.*.{name}", "pairs of layers",
            )
        )  # fmt: skip
    return judged(found)


def new_against_known(layers: Mapping[int, Mapping[str, np.ndarray]]) -> FloatArray:
    """(documents,) mean over layers of the difference in ln delta, of documents with enough tokens
    of both kinds."""
    column = {name: i for i, name in enumerate(BLOCK_SUMS)}
    blocks = np.array([sums["blocks"] for sums in layers.values()])
    new, known = blocks[0, :, column["new"]], blocks[0, :, column["known"]]
    enough = (new >= LEAST_TOKENS) & (known >= LEAST_TOKENS)
    means = [
        blocks[:, enough, column[f"log_delta_{name}"]] / count[enough]
        for name, count in (("new", new), ("known", known))
    ]
    return (means[0] - means[1]).mean(0)


def copying_by_document(layers: Mapping[int, Mapping[str, np.ndarray]]) -> FloatArray:
    """(documents,) mean over layers of the share at the source less that around it."""
    column = {name: i for i, name in enumerate(MAP_BLOCK_SUMS)}
    blocks = np.array([sums["map_blocks"] for sums in layers.values()])
    pairs = blocks[0, :, column["pairs"]]
    enough = pairs >= LEAST_TOKENS
    difference = blocks[..., column["at_source"]] - blocks[..., column["around"]]
    return (difference[:, enough] / pairs[enough]).mean(0)


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Strict JSON."""
    return [finding.to_dict() for finding in findings]
