"""Findings: sentences, rows, and what stands beside twins."""

import json
from dataclasses import replace

import numpy as np
import pytest

from token_statistics.findings import (
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_LITTLE,
    Finding,
    caveat,
    compared,
    number,
    sentence,
    undecided,
)

FINDING = Finding(
    claim="Memory is long",
    statistic="mean lag, tokens",
    value=0.12345,
    interval=(0.1, 0.2),
    null=None,
    n=7,
    unit="texts",
    verdict=SUPPORTED,
    reason=None,
    path="memory.memory_kernel.*",
    rule="r",
    details={"layer_0": {"value": 1.0}},
)


def test_a_sentence_carries_its_number_and_its_bounds():
    assert sentence(FINDING) == (
        "Found: Memory is long. Mean lag, tokens: 0.123 (interval 0.1 to 0.2; n = 7 texts)."
    )
    refused = replace(FINDING, verdict=NOT_SUPPORTED, interval=None, null=(0.1, 0.2))
    assert sentence(refused).startswith("Not found: Memory is long. Mean lag, tokens: 0.123 (null ")
    beside = refused.beside([replace(FINDING, value=v) for v in (0.5, 0.2)])
    # mean 0.35, s 0.2121, t 63.66 at one degree of freedom: 0.35 + 63.66 * 0.2121 * sqrt(1.5).
    assert compared(beside) == "null 0.1 to 0.2; 2 untrained: 0.2 to 0.5, bound 16.9; n = 7 texts"
    assert compared(replace(refused, hits=3)) == "null 0.1 to 0.2; in 3 of 7 texts"
    open_ = undecided("Memory is long", "mean lag", "texts", "2 texts", "p")
    assert sentence(open_) == "Undecided: Memory is long. 2 texts."


def test_numbers():
    assert [number(x) for x in (None, 3, 0.00012345, 1234.5)] == [
        "undefined", "3", "0.000123", "1.23e+03",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "finding",
    [
        FINDING,
        undecided("c", "s", "texts", "why", "p", n=1),
        replace(FINDING, null=(0.0, 1.0)).beside([FINDING]),
    ],
)
def test_a_finding_survives_json(finding):
    written = json.dumps(finding.to_dict(), allow_nan=False)
    assert Finding.from_dict(json.loads(written)) == finding
    assert "details" not in finding.row()


def test_a_row_has_the_ends_of_intervals():
    row = FINDING.row()
    assert (row["interval_low"], row["interval_high"], row["null_low"]) == (0.1, 0.2, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "perhaps"}, "verdict is 'perhaps'; it must be one of"),
        ({"value": None}, "a reason and no value go with"),
        ({"reason": "but"}, "a reason and no value go with"),
        ({"verdict": TOO_LITTLE}, "a reason and no value go with"),
    ],
)
def test_findings_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(FINDING, **changes)


def test_a_twin_of_another_claim_is_refused():
    with pytest.raises(ValueError, match=r"the twins' claims are \['other'\]"):
        FINDING.beside([replace(FINDING, claim="other")])


def test_what_an_untrained_twin_reaches_too_is_not_supported():
    below, above = replace(FINDING, value=0.05), replace(FINDING, value=0.3)
    beaten = FINDING.beside([below, below])
    assert (beaten.verdict, beaten.twins, beaten.num_twins) == (SUPPORTED, (0.05, 0.05), 2)
    assert FINDING.beside([below, FINDING]).verdict == NOT_SUPPORTED  # a tie is not above
    matched = FINDING.beside([below, above])
    assert (matched.verdict, matched.twins, matched.twins_supported) == (
        NOT_SUPPORTED, (0.05, 0.3), 2,
    )  # fmt: skip
    open_ = undecided(FINDING.claim, "s", "texts", "why", "p")
    assert FINDING.beside([open_]) == FINDING  # no value to compare with
    assert open_.beside([above]).verdict == TOO_LITTLE


def test_supported_claims_without_twins_are_said_to_be_open():
    beside = FINDING.beside([replace(FINDING, value=v) for v in (0.05, 0.05)])
    refused = replace(FINDING, verdict=NOT_SUPPORTED)
    assert caveat([beside, refused, replace(FINDING, learned=False)]) == ""
    assert caveat([beside, FINDING]).startswith(
        "Claims supported without a look at untrained models: 1."
    )


def test_few_twins_have_a_bound_that_another_twin_seldom_exceeds():
    rng = np.random.default_rng(0)
    supported = 0
    for _ in range(2000):
        value, *twins = rng.normal(size=6).tolist()
        found = replace(FINDING, value=value).beside([replace(FINDING, value=v) for v in twins])
        assert found.twin_bound is not None
        assert found.twin_bound > max(twins)
        supported += found.verdict == SUPPORTED
    # 10 of 2,000 expected; 25 would be five standard deviations off. Above the maximum: 333.
    assert supported < 25
    far = replace(FINDING, value=20.0).beside([replace(FINDING, value=v) for v in (1.0, 2.0, 3.0)])
    assert far.verdict == SUPPORTED
