"""Cases of few samples, few twins and permuted weights: short runs, and the tables."""

import numpy as np
import pytest

from benchmarks import verdict_cases as cases
from token_statistics.findings import ABOVE_CHANCE, Finding


def finding(value, p=0.001, claim="c"):
    return Finding(claim, "s", float(value), None, (-9.0, -8.0), 3, "texts", ABOVE_CHANCE, None,
                   "p", chance_p=p)  # fmt: skip


@pytest.mark.parametrize(("name", "least"), [("normal", 0.90), ("exponential", 0.86)])
def test_intervals_of_eight_samples_hold_the_mean(name, least):
    # 200 seeds: a standard error of 1.5 to 2 %; least is 2 to 3 of them below what is held.
    assert least <= (cases.coverage(*cases.DISTRIBUTIONS[name], 8, 200) or 0.0) <= 0.985


def test_differences_of_no_mean_are_seldom_claimed():
    # 2.3 % for normal differences: 14 of 200 would be four standard deviations more.
    normal, skewed = (cases.DISTRIBUTIONS[name] for name in ("normal", "exponential"))
    assert (cases.above_zero(*normal, 8, 200) or 0.0) <= 0.065
    assert (cases.above_zero(*skewed, 8, 200) or 0.0) <= 0.02


def test_too_few_samples_are_refused():
    normal = cases.DISTRIBUTIONS["normal"]
    assert cases.coverage(*normal, 4, 3) is None
    assert cases.above_zero(*normal, 5, 3) is None
    assert cases.percents({"2": [None, 0.5]}) == {"2": ["refused", "50.0%"]}


def test_a_mean_that_is_there_is_claimed():
    draw, _ = cases.DISTRIBUTIONS["normal"]
    assert cases.above_zero(draw, -2.0, 12, 50) == 1.0  # six standard errors above 0


@pytest.mark.parametrize("twins", cases.TWINS)
def test_a_model_seldom_exceeds_its_like(twins):
    # 1 in 200; 5 of 400 are more than that in 5 % of such tests alone.
    assert cases.above_its_like(cases.DISTRIBUTIONS["normal"][0], twins, 400) <= 0.02


def test_permuted_models_that_are_alike_support_next_to_nothing():
    rng = np.random.default_rng(0)
    drawn = [[finding(v)] for v in rng.normal(size=40)]
    found = cases.PermutedDemo(drawn[:20], drawn[20:])
    survived = cases.surviving_claims(found)["c"]
    assert (survived.chance, survived.models) == (20, 20)
    assert survived.both <= survived.fresh_alone <= 1


def test_what_the_scale_of_the_weights_gives_is_seen_by_permuted_twins_alone():
    rng = np.random.default_rng(1)
    permuted = [[finding(5 + v)] for v in rng.normal(size=20)]
    fresh = [[finding(0.1 * v)] for v in rng.normal(size=19)]
    survived = cases.surviving_claims(cases.PermutedDemo(permuted, fresh))["c"]
    assert survived.fresh_alone == 20
    assert survived.both <= 1
    lines = cases.survivors_table({"c": survived}).splitlines()
    assert lines[-2] == f"| c | {survived.both} of 20 | 20 | 20 |"
    assert lines[-1].startswith("| mean of all claims | ")


def test_claims_without_a_value_are_left_out():
    open_ = Finding("open", "s", None, None, None, 0, "texts", "too little data", "why", "p")
    found = cases.PermutedDemo([[open_], [open_]], [[open_]])
    assert cases.surviving_claims(found) == {}


def test_permuted_demo_models_are_analysed(monkeypatch):
    monkeypatch.setattr(cases, "PASSAGES", 1)
    monkeypatch.setattr(cases, "LAYERS", [0, 1])
    found = cases.permuted_demo_findings(1, 1, tokens=24)
    assert [len(found.permuted), len(found.fresh)] == [1, 1]
    (permuted,), (fresh,) = found
    assert [row.claim for row in permuted] == [row.claim for row in fresh]
    assert [row.value for row in permuted] != [row.value for row in fresh]


def test_tables_have_a_row_a_number_of_samples(monkeypatch):
    monkeypatch.setattr(cases, "SAMPLES", (5,))
    monkeypatch.setattr(cases, "DIFFERENCES", (8,))
    monkeypatch.setattr(cases, "TWINS", (2,))
    monkeypatch.setattr(
        cases, "permuted_demo_findings", lambda *_, **__: cases.PermutedDemo([[finding(1)]] * 3, [])
    )
    text = cases.sections(4)
    assert text[1].splitlines()[2].startswith("| 5 | ")
    assert len(text[3].splitlines()[2].split("|")) == 8
    assert text[-1].startswith("| claim | supported |")
