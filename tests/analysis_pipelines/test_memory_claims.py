"""Claims about memory on constructed results: supported, refused, and left open."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_model

from analysis_pipelines.key_findings import key_findings
from analysis_pipelines.memory_causal import MEAN_OVER_LAYERS
from analysis_pipelines.memory_claims import (
    claims_on,
    group_claims,
    passing_claim,
    text_values,
)
from analysis_pipelines.memory_steps import MemoryInputs, MemorySettings, passing_step
from causal_interventions.passing import directions_for
from ssm_component_extractor import capture
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


def passing(*cuts, pairs=4, groups=None, **more):
    texts = {f"text_{i}": passed(cut, **more) for i, cut in enumerate(cuts)}
    return passing_claim({f"layer_{i}_to_{i + 1}": texts for i in range(pairs)}, groups)


def test_passing_is_claimed_from_cuts_that_exceed_other_directions():
    found = passing(0.5, 0.6, 0.4, 0.5)
    assert (found.verdict, found.hits, found.n) == (ABOVE_CHANCE, 4, 4)
    assert found.chance_p == pytest.approx(1 / 5**4)
    assert found.details["layer_0_to_1"] == {"cut": 0.5, "largest other direction": 0.3}
    assert "or through the layers between" in found.claim
    # As large as any change of its size, and none beside a change of nothing.
    assert passing(0.2, 0.1, 0.15, 0.2).verdict == NOT_SUPPORTED
    assert passing(5e-6, 5e-6, directions=(1e-6,) * 4).verdict == NOT_SUPPORTED
    nothing = {"layers": [0, 1], "cut": None, "directions": [], "reason": "layer 1 writes nothing"}
    open_ = passing_claim({"layer_0_to_1": {"text_0": nothing}})
    assert (open_.verdict, open_.reason) == (TOO_LITTLE, "layer 1 writes nothing")
    assert passing_claim({"reason": "needs at least two layers"}).verdict == TOO_LITTLE


def test_what_exceeds_other_directions_by_a_hair_passes_nothing():
    assert passing(0.1954, directions=(0.1948, 0.19, 0.1, 0.12)).hits == 0
    assert passing(0.2054, directions=(0.1948, 0.19, 0.1, 0.12)).hits == 4


def test_texts_are_no_trials_of_their_own():
    # Twelve texts read by the same weights in the same directions: one pair, one trial.
    found = passing(*[0.5] * 12, pairs=1)
    assert (found.verdict, found.n) == (TOO_LITTLE, 1)
    assert found.reason == "1 pair(s) of layers, all of them by chance alone one time in 5"
    # With the number of directions that the step draws for one pair.
    enough = passing(0.5, pairs=1, directions=(0.1,) * directions_for(1))
    assert (enough.verdict, enough.chance_p) == (ABOVE_CHANCE, pytest.approx(1 / 41))
    # Nine copies of a text below all directions weigh as one beside two texts far above.
    cuts = [0.5, 0.5, *[0.2] * 9]
    assert passing(*cuts).hits == 0
    assert passing(*cuts, groups=[0, 1, *[2] * 9]).hits == 4


@torch.no_grad()
def test_random_weights_pass_no_more_than_chance_lets_them():
    """One pair of layers of models that learned nothing, three texts each."""
    claimed = []
    for seed in range(12):
        model, generator = make_tiny_model(seed), torch.Generator().manual_seed(seed)
        texts = [torch.randint(1, 64, (1, 12), generator=generator) for _ in range(3)]
        captures = [capture(model, text, None, [1, 2]) for text in texts]
        inputs = MemoryInputs(model, captures, [], {}, MemorySettings([1, 2], seed=seed))
        claimed.append(passing_claim(passing_step(inputs)).above_chance)
    # At most 2.5 % each: 3 of 12 come by chance in 0.3 % of such tests. Directions taken out of a
    # stream without them are exceeded in 11 of 12.
    assert sum(claimed) <= 2


def test_layers_that_differ_by_less_than_a_token_do_not_reach_differently():
    def verdict(lags):
        parts = {
            f"layer_{i}": {"by_text": {f"text_{t}": {"mean_lag": lag + 0.001 * t}
                                       for t in range(12)}}
            for i, lag in enumerate(lags)
        }  # fmt: skip
        rows = claims_on({"memory_kernel": parts}, [0, 1, 2, 3], 100)
        return next(row for row in rows if row.claim.startswith("How far back memory reaches"))

    found = verdict([3.0, 3.2, 3.4, 3.6])
    assert (found.verdict, found.value) == (NOT_SUPPORTED, pytest.approx(1.0))
    assert "at least 1 tokens" in found.rule
    assert verdict([30.0, 30.5, 31.0, 31.5]).verdict == NOT_SUPPORTED  # a twentieth of the mean
    assert verdict([3.0, 4.0, 5.0, 6.0]).verdict == ABOVE_CHANCE


def test_delta_at_sources_is_claimed_of_the_mean_over_layers_and_no_layer_against_it():
    def found(*values, mean):
        test = {"null_low": -0.4, "null_high": 0.4, "p_value": 0.01, "num_draws": 999, "n": 48}
        parts = {f"layer_{i}": {"delta_at_sources": {**test, "value": value}}
                 for i, value in enumerate(values)}  # fmt: skip
        joint = {**test, "value": mean, "null_low": -0.2, "null_high": 0.2}
        causes = {**parts, MEAN_OVER_LAYERS: {"delta_at_sources": joint}}
        rows = claims_on({"delta_causes": causes}, [0, 1, 2, 3, 4], 100)
        return next(row for row in rows if row.claim.startswith("Tokens of larger delta leave"))

    row = found(0.5, 0.5, 0.5, 0.5, 0.3, mean=0.46)
    assert (row.verdict, row.value, row.null) == (ABOVE_CHANCE, 0.46, (-0.2, 0.2))
    against = found(0.6, 0.6, -0.566, 0.6, 0.6, mean=0.37)
    assert (against.verdict, against.reason) == (NOT_SUPPORTED, "below its null in layer 2")
    # Above it in most layers, and the printed mean lies within the printed null.
    assert found(0.5, 0.5, 0.5, -0.3, -0.39, mean=0.16).verdict == NOT_SUPPORTED


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
