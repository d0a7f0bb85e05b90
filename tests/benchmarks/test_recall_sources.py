"""Direct values of sources beside their knockouts: alike where the norms hardly change."""

import pytest
import torch

from benchmarks.recall_circuit import experiments
from benchmarks.recall_models import FAMILIES, fresh_model
from benchmarks.recall_sources import source_agreement


@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_last_layer_of_a_fresh_model_both_go_together(family):
    """Its terms are small beside the stream: the final norm hardly changes."""
    (pairs,) = experiments(["passkey"], 4)
    found = source_agreement(fresh_model(family), pairs)
    assert [one.layer for one in found] == [0, 1]
    assert found[1].direct.shape == pairs.clean.shape
    assert torch.isfinite(found[0].knockout).all()
    if family == "mamba":
        # A gated norm that divides by what is written changes with every part of it.
        assert found[1].r2 > 0.99
        assert abs(found[1].slope - 1) < 0.1
    else:
        assert found[1].r2 > 0.5
