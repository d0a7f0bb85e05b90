"""Findings over a corpus, with intervals over documents.

A sample is a document, or a group of documents where there are more than BLOCKS of them; fewer than
MIN_TEXTS of them are too few. Each claim is about the mean over all layers that were read, so that
no layer is picked by what is tested, and has to be of a size worth a name
(`token_statistics.smallest_effects`): over a large corpus nearly any difference exceeds chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssm_measures.corpus_layer import BLOCK_SUMS, BLOCKS
from ssm_measures.corpus_maps import MAP_BLOCK_SUMS
from token_statistics.corpus_pairs import LayerPair
from token_statistics.description import FloatArray
from token_statistics.findings import Finding, judged, undecided
from token_statistics.smallest_effects import beyond_chance, worth_a_name
from token_statistics.verdict_rules import MIN_TEXTS, above_null, exceeds_zero

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
    return judged(
        [
            _opened_by_new(new_against_known(layers), unit, seed),
            _copied(*copying_shares(layers), unit, seed),
            _together(pairs),
            _alike(pairs),
        ]
    )


def _opened_by_new(difference: FloatArray, unit: str, seed: int) -> Finding:
    mean = float(difference.mean()) if difference.size else 0.0
    found = _over_documents(
        "Tokens new to their window open the gates further than tokens it had before",
        "mean ln delta of new tokens less that of known ones, mean over heads and layers: a factor "
        f"of {math.exp(mean):.3g}",
        difference,
        "layers.*.log_delta",
        unit,
        seed,
    )
    return worth_a_name(found, "relative", math.expm1(mean))


def _copied(at_source: FloatArray, around: FloatArray, unit: str, seed: int) -> Finding:
    gain, beside = (float(x.mean()) if x.size else 0.0 for x in (at_source - around, around))
    excess = gain / beside if beside > 0 else math.inf
    size = f"{excess:.3g} of the latter" if beside > 0 else "the latter is 0"
    found = _over_documents(
        "Attention goes to what followed an earlier occurrence of the same token more than to its "
        "neighbours",
        "share of |alpha u| at the copying source less the mean share around it, mean over layers: "
        f"{size}",
        at_source - around,
        "layers.*.copying",
        unit,
        seed,
    )
    return worth_a_name(found, "relative", excess)


def _over_documents(
    claim: str, statistic: str, differences: FloatArray, path: str, unit: str, seed: int
) -> Finding:
    n = len(differences)
    if n < MIN_TEXTS:
        reason = f"{n} {unit} with {LEAST_TOKENS} tokens of each kind; it needs {MIN_TEXTS}"
        return undecided(claim, statistic.split(": ")[0], unit, reason, path, n=n)
    return exceeds_zero(claim, statistic, {"all layers": differences}, path, unit, seed)


def _together(pairs: Sequence[LayerPair]) -> Finding:
    tests = {name: beyond_chance(pair.mean_abs_r.to_dict()) for name, pair in _named(pairs)}
    found = above_null(
        "Neighbouring layers go together beyond texts moved in time (mean_abs_r)",
        "mean |r| of sampled channels of the residual stream, beyond chance: the root of its "
        "square less that of its mean under time shifts",
        tests, "pairs.*.mean_abs_r", "pairs of layers",
    )  # fmt: skip
    return worth_a_name(found, "correlation")


def _alike(pairs: Sequence[LayerPair]) -> Finding:
    tests = {name: _less_chance(pair.cka.to_dict()) for name, pair in _named(pairs)}
    found = above_null(
        "Neighbouring layers go together beyond texts moved in time (cka)",
        "linear CKA of sampled channels of the residual stream, beyond chance: less its mean under "
        "time shifts; its root is compared with the smallest correlation",
        tests, "pairs.*.cka", "pairs of layers",
    )  # fmt: skip
    # A CKA is a squared correlation: of one channel each it is r^2.
    return worth_a_name(found, "correlation", math.sqrt(max(0.0, found.value or 0.0)))


def _named(pairs: Sequence[LayerPair]) -> list[tuple[str, LayerPair]]:
    return [(f"layer_{a}_to_{b}", pair) for pair in pairs for a, b in [pair.layers]]


def _less_chance(test: dict[str, Any]) -> dict[str, Any]:
    """A null test less the mean of its null."""
    if test["value"] is None or test["null_mean"] is None:
        return test
    ends = ("value", "null_low", "null_high")
    return {**test, **{name: test[name] - test["null_mean"] for name in ends}}


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


def copying_shares(
    layers: Mapping[int, Mapping[str, np.ndarray]],
) -> tuple[FloatArray, FloatArray]:
    """(documents,) mean over layers of the share at the source, and of that around it."""
    column = {name: i for i, name in enumerate(MAP_BLOCK_SUMS)}
    blocks = np.array([sums["map_blocks"] for sums in layers.values()])
    pairs = blocks[0, :, column["pairs"]]
    enough = pairs >= LEAST_TOKENS
    at_source, around = (
        (blocks[:, enough, column[name]] / pairs[enough]).mean(0)
        for name in ("at_source", "around")
    )
    return at_source, around


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Strict JSON."""
    return [finding.to_dict() for finding in findings]
