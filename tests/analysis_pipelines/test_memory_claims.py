"""Claims about memory on constructed results: supported, refused, and left open."""

import numpy as np

from analysis_pipelines.memory_claims import claims_on, group_claims, position_values
from token_statistics.findings import NOT_SUPPORTED, SUPPORTED, TOO_LITTLE


def by_group(early, middle, late, positions=12):
    rng = np.random.default_rng(2)
    levels = {0: early, 3: middle, 6: middle, 9: late, 12: late}
    return {
        f"layer_{i}": (v + 0.01 * rng.normal(size=positions)).tolist() for i, v in levels.items()
    }


def test_a_peak_in_the_middle_and_elsewhere():
    flat = by_group(0.1, 0.1, 0.1)
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 1), by_group(0.1, 0.2, 0.5))]
    assert verdicts == [SUPPORTED, SUPPORTED, SUPPORTED]
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 3), flat)]
    assert verdicts == [SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED]
    verdicts = [row.verdict for row in group_claims(by_group(3, 2, 1), by_group(0.1, 0.6, 0.5))]
    assert verdicts == [NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED]


def test_a_model_without_late_layers_leaves_those_claims_open():
    kl = {name: row for name, row in by_group(1, 2, 1).items() if int(name[6:]) < 9}
    rows = group_claims(kl, kl)
    assert [row.verdict for row in rows] == [SUPPORTED, TOO_LITTLE, TOO_LITTLE]


def test_positions_without_a_value_are_left_out_of_every_layer():
    layers = {"layer_0": {"kl": [1.0, None, 3.0]}, "layer_2": {"kl": [4.0, 5.0, 6.0]}}
    causal = {"knockout": {"layers": layers}}
    found = position_values(causal, "knockout", [0, 2], "kl")
    assert found == {"layer_0": [1.0, 3.0], "layer_2": [4.0, 6.0]}


def test_without_results_every_claim_is_open():
    failed = {"error": {"type": "AnalysisError", "message": "no"}}
    names = ("delta_neurons", "ablation_memory", "causal_memory", "recursive_patterns",
             "memory_kernel", "cross_layer_correlations")  # fmt: skip
    for sections in ({}, dict.fromkeys(names, failed)):
        rows = claims_on({**sections}, [0, 3], 100)
        assert {row.verdict for row in rows} == {TOO_LITTLE}
        assert all(row.reason and row.path.startswith("memory.") for row in rows)
