"""Effects as ratios of means, their intervals, and what of them goes to files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from causal_interventions.patching.patching_results import (
    AttributionResult,
    PatchingResult,
    check_apart,
)


def made(n: int = 8, shift: float = 0.0) -> PatchingResult:
    """Pairs that differ by 1 to n in the metric; layer 1, token 2 of "state" brings half back."""
    clean = torch.arange(1.0, n + 1).double()
    corrupt = torch.zeros(n).double()
    patched = torch.zeros(n, 2, 3).double()
    patched[:, 1, 2] = 0.5 * clean + shift
    return PatchingResult(
        "logit_difference", "denoising", ["a", "b", "c"], {"state": [0, 3]}, {"state": patched},
        {"state": patched * 0.1}, clean, corrupt, None, 0,
    )  # fmt: skip


def test_an_effect_is_the_ratio_of_means_by_layer_and_token():
    found = made()
    table = found.effect["state"]
    assert table.loc[3, 2] == 0.5
    assert table.index.tolist() == [0, 3]
    assert math.isclose(found.control["state"].loc[3, 2], 0.05)
    # A share that is the same in every pair has no spread.
    assert found.interval["state"].low.loc[3, 2] == pytest.approx(0.5)
    at = found.at("state", torch.full((8,), 2))
    assert at[3].value == pytest.approx(0.5)
    assert at[0].value == 0


def test_the_interval_is_that_of_a_ratio():
    """Pairs that bring a constant back: the share varies with the pair."""
    found = made(40, shift=2.0)
    bounds = found.ratio(found.patched["state"][:, 1, 2])
    assert bounds.value == pytest.approx(0.5 + 2.0 / 20.5)
    assert bounds.low is not None
    assert bounds.high is not None
    assert bounds.low < 0.5 + 2.0 / 20.5 < bounds.high
    few = made(3).ratio(made(3).patched["state"][:, 1, 2])
    assert few.low is None
    assert few.reason is not None


def test_places_without_a_token_are_unknown():
    found = made()
    found.patched["state"][:, :, 0] = torch.nan
    assert bool(np.isnan(found.effect["state"][0]).all())
    rows = found.rows()
    assert [row["effect"] for row in rows if row["token"] == 0] == [None, None]
    assert found.ratio(found.patched["state"][:, 0, 0]).reason == "no token is aligned"
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.to_dict()["sites"]["state"]["effect"][0][0] is None
    assert set(found.tensors()) == {"patched.state", "unrelated.state", "clean", "corrupt"}
    assert "state" in found._repr_html_()


def test_runs_that_measure_alike_are_refused():
    with pytest.raises(ValueError, match="there is no effect to share out"):
        check_apart("kl", torch.ones(3), torch.ones(3))
    check_apart("kl", torch.ones(3), torch.zeros(3))


def test_attribution_agrees_with_itself_and_not_with_other_pairs():
    found = made()
    generator = torch.Generator().manual_seed(0)
    found.patched["state"][:] = torch.rand(8, 2, 3, generator=generator)
    edges = torch.zeros(8, 3, 3, 4).double()
    edges[:, 0, 1] = 1.0
    result = AttributionResult(found, 0, edges, {3: torch.ones(8, 2, 2)}, {3: torch.ones(8, 5)})
    assert result.agreement(found) == {"state": pytest.approx(1.0)}
    reverse = replace(found, patched={"state": 1 - found.patched["state"]})
    assert result.agreement(reverse)["state"] == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="pass the result of the same pairs"):
        result.agreement(made(7))
    table = result.edge_effect
    assert table.loc["embedding", 1] == pytest.approx(4 / 4.5)
    assert bool(np.isnan(table.loc[1, 0]))
    assert result.neuron_effect(3).tolist() == [pytest.approx(1 / 4.5)] * 5
    assert result.token_effect(3).shape == (2, 2)
    with pytest.raises(ValueError, match=r"layer is 0; layers with an SSM are \[3\]"):
        result.neuron_effect(0)
    json.dumps(result.to_dict(found), allow_nan=False)
    assert "edges" in result.tensors()


def test_results_are_one_line():
    found = made()
    assert repr(found) == "<PatchingResult of state: 8 pairs, denoising, logit_difference>"
    assert repr(made(1)) == "<PatchingResult of state: 1 pair, denoising, logit_difference>"
    estimate = AttributionResult(found, 0, torch.zeros(8, 1, 1, 3), {}, {})
    assert repr(estimate) == (
        "<AttributionResult: PatchingResult of state: 8 pairs, denoising, logit_difference, to "
        "first order>"
    )
