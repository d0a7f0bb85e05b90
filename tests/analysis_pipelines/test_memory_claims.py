"""Claims about memory on constructed results: supported, refused, and left open."""

import numpy as np

from analysis_pipelines.key_findings import key_findings
from analysis_pipelines.memory_claims import (
    claims_on,
    group_claims,
    passing_claim,
    text_values,
)
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED, TOO_LITTLE


def by_group(early, middle, late, texts=12):
    rng = np.random.default_rng(2)
    levels = {0: early, 3: middle, 6: middle, 9: late, 12: late}
    return {f"layer_{i}": (v + 0.01 * rng.normal(size=texts)).tolist() for i, v in levels.items()}


def test_a_peak_in_the_middle_and_elsewhere():
    flat = by_group(0.1, 0.1, 0.1)
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 1), by_group(0.1, 0.2, 0.5))]
    assert verdicts == [ABOVE_CHANCE, ABOVE_CHANCE, ABOVE_CHANCE]
    verdicts = [row.verdict for row in group_claims(by_group(1, 2, 3), flat)]
    assert verdicts == [ABOVE_CHANCE, NOT_SUPPORTED, NOT_SUPPORTED]
    verdicts = [row.verdict for row in group_claims(by_group(3, 2, 1), by_group(0.1, 0.6, 0.5))]
    assert verdicts == [NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED]


def test_a_model_without_late_layers_leaves_those_claims_open():
    kl = {name: row for name, row in by_group(1, 2, 1).items() if int(name[6:]) < 9}
    rows = group_claims(kl, kl)
    assert [row.verdict for row in rows] == [ABOVE_CHANCE, TOO_LITTLE, TOO_LITTLE]


def test_effects_below_the_floor_are_no_memory():
    """1e-7 nats in every layer, however well the layers are told apart."""
    tiny = {name: [1e-7 * x for x in row] for name, row in by_group(1, 2, 1).items()}
    shares = by_group(0.1, 0.2, 0.5)
    verdicts = [row.verdict for row in group_claims(tiny, shares)]
    assert verdicts == [NOT_SUPPORTED, NOT_SUPPORTED, ABOVE_CHANCE]
    positions = [[i, 9] for i in range(12)]
    layers = {
        name: {"kl": row, "late_share": row, "positions": positions} for name, row in tiny.items()
    }
    causal = {"knockout": {"layers": layers}}
    found = {f.claim: f for f in claims_on({"causal_memory": causal}, [0, 3, 6, 9, 12], 100)}
    depends = found["What predictions owe to a layer's memory depends on the layer"]
    assert depends.verdict == NOT_SUPPORTED
    assert depends.value is not None
    assert depends.null is not None
    assert depends.value > depends.null[1]  # in the same order in every text
    assert depends.rule.endswith("and at least 0.0001 nats")


def test_the_layers_really_used_are_named():
    less, peak, _ = group_claims(by_group(1, 2, 1), by_group(1, 2, 1))
    assert "middle layers (3, 6) minus that of early layers (0)" in less.statistic
    assert "late layers (9, 12)" in peak.statistic


def passed(cut, directions=(0.1, 0.2, 0.3, 0.2)):
    return {"layers": [0, 1], "cut": cut, "directions": list(directions), "reason": None}


def test_passing_is_claimed_from_cuts_that_exceed_other_directions():
    def verdict(*cuts, **more):
        texts = {f"text_{i}": passed(cut, **more) for i, cut in enumerate(cuts)}
        return passing_claim({"layer_0_to_1": texts, "layer_1_to_2": texts})

    found = verdict(0.5, 0.6, 0.4, 0.5)
    assert (found.verdict, found.hits, found.n) == (ABOVE_CHANCE, 8, 8)
    assert found.details["layer_0_to_1"]["cut"] == 0.5
    # As large as any change of its size, and none beside a change of nothing.
    assert verdict(0.2, 0.1, 0.15, 0.2).verdict == NOT_SUPPORTED
    assert verdict(5e-6, 5e-6, 5e-6, 5e-6, directions=(1e-6,) * 4).verdict == NOT_SUPPORTED
    # One place: another direction is below the cut one time in five.
    assert verdict(0.5).n == 2
    nothing = {"layers": [0, 1], "cut": None, "directions": [], "reason": "layer 1 writes nothing"}
    open_ = passing_claim({"layer_0_to_1": {"text_0": nothing}})
    assert (open_.verdict, open_.reason) == (TOO_LITTLE, "layer 1 writes nothing")
    assert passing_claim({"reason": "needs at least two layers"}).verdict == TOO_LITTLE
    copies = {f"text_{i}": passed(0.5) for i in range(4)}
    assert passing_claim({"layer_0_to_1": copies}, [0, 1, 0, 0]).n == 2


def test_positions_of_a_text_are_one_sample_without_those_that_a_layer_lacks():
    places = [[0, 5], [0, 9], [2, 5], [2, 7]]
    layers = {
        "layer_0": {"positions": places, "kl": [1.0, None, 3.0, 5.0]},
        "layer_2": {"positions": places, "kl": [4.0, 5.0, 6.0, 7.0]},
    }
    causal = {"knockout": {"layers": layers}}
    found = text_values(causal, "knockout", [0, 2], "kl")
    assert found == {"layer_0": [1.0, 4.0], "layer_2": [4.0, 6.5]}
    assert text_values({}, "knockout", [0, 2], "kl") == {}
    together = text_values(causal, "knockout", [0, 2], "kl", [0, 1, 0])
    assert together == {"layer_0": [2.5], "layer_2": [5.25]}


def test_no_claim_of_the_main_analysis_has_the_same_words():
    both = [*claims_on({}, [0, 3], 100), *key_findings({})]
    assert len({finding.claim for finding in both}) == len(both)


def test_without_results_every_claim_is_open():
    failed = {"error": {"type": "AnalysisError", "message": "no"}}
    names = ("delta_neurons", "ablation_memory", "causal_memory", "recursive_patterns",
             "memory_kernel", "cross_layer_correlations")  # fmt: skip
    for sections in ({}, dict.fromkeys(names, failed)):
        rows = claims_on({**sections}, [0, 3], 100)
        assert {row.verdict for row in rows} == {TOO_LITTLE}
        assert all(row.reason and row.path.startswith("memory.") for row in rows)
