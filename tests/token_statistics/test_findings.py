"""Findings: sentences, rows, what stands beside twins, and beside the other claims of a run."""

# A value is None only where it is undefined: pyright is told not to mind here.
# pyright: reportOperatorIssue=false

import json
from dataclasses import replace

import numpy as np
import pytest

from token_statistics.findings import (
    ABOVE_CHANCE,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW_TWINS,
    TOO_LITTLE,
    Finding,
    caveat,
    compared,
    judged,
    number,
    sentence,
    twins_section,
    undecided,
)
from token_statistics.twin_bounds import FRESH, PERMUTED, TWIN_KINDS

FINDING = Finding(
    claim="Memory is long",
    statistic="mean lag, tokens",
    value=0.12345,
    interval=(0.1, 0.2),
    null=None,
    n=7,
    unit="texts",
    verdict=ABOVE_CHANCE,
    reason=None,
    path="memory.memory_kernel.*",
    rule="r",
    details={"layer_0": {"value": 1.0}},
    chance_p=0.01,
)


def valued(*values):
    return [replace(FINDING, value=value) for value in values]


def both(*values):
    return {kind: valued(*values) for kind in TWIN_KINDS}


def test_a_sentence_carries_its_number_and_its_bounds():
    measured = "Memory is long. Mean lag, tokens: 0.123 (interval 0.1 to 0.2"
    assert sentence(FINDING) == (f"Above chance, untrained not tried: {measured}; n = 7 texts).")
    refused = replace(FINDING, verdict=NOT_SUPPORTED, interval=None, null=(0.1, 0.2))
    assert sentence(refused).startswith("Not found: Memory is long. Mean lag, tokens: 0.123 (null ")
    assert compared(replace(refused, hits=3)) == "null 0.1 to 0.2; in 3 of 7 texts"
    open_ = undecided("Memory is long", "mean lag", "texts", "2 texts", "p")
    assert sentence(open_) == "Undecided: Memory is long. 2 texts."


def test_a_sentence_says_which_twins_were_not_exceeded():
    beside = FINDING.beside({FRESH: valued(0.01, 0.0101), PERMUTED: valued(0.5, 0.2)})
    # mean 0.35, s 0.2121, t 63.66 at one degree of freedom: 0.35 + 63.66 * 0.2121 * sqrt(1.5).
    assert sentence(beside) == (
        "Not found: Memory is long. Mean lag, tokens: 0.123 (interval 0.1 to 0.2; "
        "2 of fresh weights: 0.01 to 0.0101, bound 0.0156; "
        "2 of permuted weights: 0.2 to 0.5, bound 16.9; n = 7 texts; "
        "not above twins of permuted weights)."
    )
    neither = FINDING.beside(both(0.5, 0.2))
    assert neither.reason == "not above twins of fresh weights or of permuted weights"


def test_numbers():
    assert [number(x) for x in (None, 3, 0.00012345, 1234.5)] == [
        "undefined", "3", "0.000123", "1.23e+03",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "finding",
    [
        FINDING,
        undecided("c", "s", "texts", "why", "p", n=1),
        *judged([replace(FINDING, null=(0.0, 1.0))], {kind: [[FINDING]] for kind in TWIN_KINDS}),
    ],
)
def test_a_finding_survives_json(finding):
    written = json.dumps(finding.to_dict(), allow_nan=False)
    assert Finding.from_dict(json.loads(written)) == finding
    assert "details" not in finding.row()


def test_a_row_has_the_ends_of_intervals_and_twins():
    row = FINDING.row()
    assert (row["interval_low"], row["interval_high"], row["null_low"]) == (0.1, 0.2, None)
    assert (row["fresh_twins_n"], row["permuted_twins_bound"]) == (None, None)
    beside = FINDING.beside(both(0.05, 0.06)).row()
    assert beside.keys() == row.keys()
    assert (beside["fresh_twins_n"], beside["permuted_twins_high"]) == (2, 0.06)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "perhaps"}, "verdict is 'perhaps'; it must be one of"),
        ({"value": None}, "a reason and no value go with"),
        ({"reason": "but"}, "a reason and no value go with"),
        ({"verdict": TOO_LITTLE}, "a reason and no value go with"),
        ({"verdict": TOO_FEW_TWINS}, "a reason with 'too few twins' too"),
        ({"verdict": SUPPORTED}, "above twins of fresh weights and permuted weights; this one is"),
    ],
)
def test_findings_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(FINDING, **changes)


def test_a_twin_of_another_claim_is_refused():
    with pytest.raises(ValueError, match=r"the twins' claims are \['other'\]"):
        FINDING.beside({FRESH: [replace(FINDING, claim="other")]})


def test_both_kinds_of_twins_have_to_be_exceeded():
    beaten = FINDING.beside(both(0.05, 0.051, 0.052))
    assert beaten.verdict == SUPPORTED
    assert [(twin.kind, twin.n, twin.high) for twin in beaten.twins] == [
        (FRESH, 3, 0.052), (PERMUTED, 3, 0.052),
    ]  # fmt: skip
    for kind, other in ((FRESH, PERMUTED), (PERMUTED, FRESH)):
        mixed = FINDING.beside({kind: valued(0.05, 0.051, 0.052), other: valued(0.05, 0.3, 0.1)})
        assert (mixed.verdict, mixed.reason) == (NOT_SUPPORTED, f"not above twins of {other}")
        assert mixed.p_value == max(twin.p_value or 0 for twin in mixed.twins)
    tie = FINDING.beside(both(0.05, FINDING.value))
    assert tie.verdict == NOT_SUPPORTED


def test_one_kind_alone_leaves_a_claim_open():
    alone = FINDING.beside({FRESH: valued(0.05, 0.051, 0.052)})
    assert (alone.verdict, alone.reason) == (
        TOO_FEW_TWINS, "it is undefined in twins of permuted weights",
    )  # fmt: skip
    open_ = undecided(FINDING.claim, "s", "texts", "why", "p")
    assert (
        FINDING.beside({kind: [open_] for kind in TWIN_KINDS}) == FINDING
    )  # nothing to compare with
    assert open_.beside(both(0.3)).verdict == TOO_LITTLE


def test_too_few_twins_are_no_refusal():
    one = FINDING.beside(both(0.05))
    assert (one.verdict, one.reason) == (
        TOO_FEW_TWINS,
        "1 twin of fresh weights; a bound needs 2; 1 twin of permuted weights; a bound needs 2",
    )
    assert FINDING.beside(both(0.5)).verdict == NOT_SUPPORTED  # below the one there is
    share = replace(FINDING, value=0.9, scale="share", scale_n=10, interval=None)
    given = [replace(share, value=v) for v in (0.1, 0.8)]
    beside = share.beside(dict.fromkeys(TWIN_KINDS, given))
    assert beside.verdict == TOO_FEW_TWINS
    assert "the bound of 2 twins of fresh weights lies beyond what the statistic can be" in (
        beside.reason or ""
    )


def test_what_training_cannot_change_stays_as_it_is():
    shape = replace(FINDING, learned=False, verdict=SUPPORTED, chance_p=None)
    assert shape.beside(both(0.5)) == shape
    assert judged([shape], {kind: [[shape]] for kind in TWIN_KINDS}) == [shape]


def test_twins_of_another_scale_are_compared_as_they_are():
    share = replace(FINDING, value=0.9, scale="share", scale_n=10)
    beside = share.beside(both(0.1, 0.2, 0.3))
    assert beside.twins[0].bound == FINDING.beside(both(0.1, 0.2, 0.3)).twins[0].bound


def test_twins_in_which_the_rule_holds_are_counted():
    refused = replace(FINDING, value=0.02, verdict=NOT_SUPPORTED)
    beside = FINDING.beside({FRESH: [refused, *valued(0.01)], PERMUTED: valued(0.01, 0.011)})
    assert [twin.num_above_chance for twin in beside.twins] == [1, 2]


def test_claims_of_a_run_stand_beside_each_other():
    given = [replace(FINDING, claim=str(p), chance_p=p) for p in (0.001, 0.01, 0.04, 0.2)]
    given.append(undecided("open", "s", "texts", "why", "p"))
    found = judged(given)
    assert [row.adjusted_p for row in found] == pytest.approx([0.004, 0.02, 0.16 / 3, 0.2, None])
    assert [row.verdict for row in found] == [ABOVE_CHANCE] * 2 + [NOT_SUPPORTED] * 2 + [TOO_LITTLE]
    assert {row.num_claims for row in found[:4]} == {4}
    assert found[2].reason == "p 0.04 is 0.0533 over the 4 claims of the run"
    assert "p 0.004 over 4 claims" in compared(found[0])
    assert "false discovery rate of 5 %" in found[0].rule


def test_the_p_of_a_claim_is_that_of_its_null_and_of_both_kinds_of_twins():
    twins = {kind: [[one] for one in valued(0.05, 0.051, 0.052)] for kind in TWIN_KINDS}
    (found,) = judged([replace(FINDING, chance_p=0.04)], twins)
    assert found.p_value == 0.04
    twins[PERMUTED] = [[one] for one in valued(0.02, 0.05, 0.08)]
    (found,) = judged([replace(FINDING, chance_p=0.001)], twins)
    assert found.p_value == found.twins[1].p_value > found.twins[0].p_value


def test_nothing_is_supported_where_models_are_twins_of_each_other():
    rng = np.random.default_rng(0)
    supported = 0
    for row in rng.normal(size=(400, 11)):
        own = [replace(FINDING, value=row[0], chance_p=0.001)]
        fresh, permuted = ([[one] for one in valued(*part)] for part in (row[1:6], row[6:]))
        (found,) = judged(own, {FRESH: fresh, PERMUTED: permuted})
        supported += found.verdict == SUPPORTED
    # Both bounds are exceeded less often than one, in 1 of 200: at most 2 of 400 expected.
    assert supported <= 6


def test_claims_above_chance_are_said_to_be_open():
    beside = FINDING.beside(both(0.05, 0.0501))
    refused = replace(FINDING, verdict=NOT_SUPPORTED)
    shape = replace(FINDING, learned=False, verdict=SUPPORTED)
    assert caveat([beside, refused, shape]) == ""
    assert caveat([beside, FINDING]).startswith(
        "Claims above chance without a look at untrained models: 1."
    )


def test_the_section_of_twins_has_their_seeds_and_values_by_kind():
    section = twins_section([FINDING], {FRESH: {7: valued(0.1)}, PERMUTED: {7: valued(0.2)}})
    assert section == {
        FRESH: {"seeds": [7], "values": {"Memory is long": [0.1]}},
        PERMUTED: {"seeds": [7], "values": {"Memory is long": [0.2]}},
    }
