"""Claims of a comparison follow the twins, and need tokens, twins and a value."""

import math

import numpy as np
import pytest

import model_comparison
from analysis_pipelines.comparison_findings import findings_on
from analysis_pipelines.comparison_readings import PairValues
from token_statistics.findings import NOT_SUPPORTED, SUPPORTED, TOO_LITTLE
from token_statistics.twin_bounds import PERMUTED, TWIN_KINDS


def pair_values(agreement: float, cka: float, null: float = 0.1) -> PairValues:
    """Two layers each; the best match of every one has these values."""
    one = PairValues()
    one.windowed.append(np.array([[agreement, 0.0], [0.0, agreement]]))
    one.windowed_draws.append(np.full((39, 2, 2), null))
    one.cka.append(np.array([[cka, 0.0], [0.0, cka]]))
    one.cka_draws.append(np.full((39, 2, 2), null))
    return one


def test_verdicts_follow_the_twins():
    rng = np.random.default_rng(0)
    twins = {
        kind: [pair_values(0.3 + 0.1 * rng.random(), 0.5 + 0.1 * rng.random()) for _ in range(19)]
        for kind in TWIN_KINDS
    }
    found = findings_on(("a", "b"), 0, pair_values(0.6, 0.55), twins, 100)
    assert [row.verdict for row in found] == [SUPPORTED, NOT_SUPPORTED]
    # What time shifts give is taken off, in the models and in their twins.
    assert found[0].value == pytest.approx(0.5)
    assert found[0].null == pytest.approx((0.0, 0.0))
    for twin in found[0].twins:
        assert 0.2 < twin.low < twin.high < 0.3
    assert found[1].value == pytest.approx(0.55)
    assert found[1].null == pytest.approx((0.1, 0.1))
    assert found[1].n == 100
    for twin in found[1].twins:
        assert (twin.n, twin.num_above_chance) == (19, 19)
    assert found[0].path == "pairs[0].agreement.windowed"
    higher = findings_on(("a", "b"), 0, pair_values(0.6, 0.55, null=0.4), twins, 100)
    assert higher[0].verdict == NOT_SUPPORTED
    within = findings_on(("a", "b"), 0, pair_values(0.6, 0.9, null=0.95), twins, 100)
    assert [row.verdict for row in within] == [NOT_SUPPORTED] * 2


def test_verdicts_need_tokens_twins_and_a_value():
    twins = {kind: [pair_values(0.3, 0.5)] * 19 for kind in TWIN_KINDS}
    fewer = {**twins, PERMUTED: twins[PERMUTED][:18]}
    found = pair_values(0.6, 0.9)
    for rows, why in (
        (findings_on(("a", "b"), 0, found, twins, 39), "39 tokens; a claim needs at least 40"),
        (findings_on(("a", "b"), 0, found, fewer, 100), "this run has 18"),
    ):
        assert {row.verdict for row in rows} == {TOO_LITTLE}
        assert all(why in (row.reason or "") for row in rows)
    flat = PairValues(windowed=[np.full((2, 2), math.nan)], cka=found.cka,
                      cka_draws=found.cka_draws)  # fmt: skip
    rows = findings_on(("a", "b"), 0, flat, twins, 100)
    assert [row.verdict for row in rows] == [TOO_LITTLE, SUPPORTED]


def test_the_command_passes_them_on():
    assert model_comparison.findings_on is findings_on
