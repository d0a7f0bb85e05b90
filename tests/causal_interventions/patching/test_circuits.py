"""Circuits: all edges are the clean run, none the corrupt one, the planted ones are enough."""

import numpy as np
import pytest
import torch
from hand_weighted import two_layers
from patching_cases import runs_of

from benchmarks.family_models import ALL_MODELS, make_model
from causal_interventions.patching.circuits import (
    all_edges,
    circuit_curve,
    circuit_values,
    edge_names,
)
from causal_interventions.patching.exact import pair_runs
from causal_interventions.patching.gradients import edge_scores, gradients_of
from causal_interventions.patching.pairs import text_pairs
from mamba_mixers.sites import model_family, num_layers

# Sums of writes are rounded otherwise than the stream.
CLOSE = 5e-4


@pytest.mark.parametrize("name", ALL_MODELS)
def test_all_edges_are_the_clean_run_and_none_the_corrupt(name):
    model = make_model(name)
    runs = runs_of(model)
    size = num_layers(model) + 1
    kept = torch.zeros(2, size, size, dtype=torch.bool)
    kept[0] = True
    values = circuit_values(model, runs, kept)
    assert float((values[:, 0] - runs.clean_value).abs().max()) <= CLOSE
    if not model_family(model).reads_embeddings_again:
        assert float((values[:, 1] - runs.corrupt_value).abs().max()) <= CLOSE


def test_the_planted_circuit_is_faithful_and_complete():
    model = two_layers(passes=True)
    pairs = text_pairs(model, None, torch.tensor([[1, 3, 3, 3]]), torch.tensor([[2, 3, 3, 3]]),
                       (2, 3))  # fmt: skip
    runs = pair_runs(model, pairs, "logit_difference", 1)
    gradients = gradients_of(model, runs, "denoising", 8, states=False)
    scores = edge_scores(runs, gradients, "denoising").sum(3)[0]
    curve = circuit_curve(model, runs, scores, [0, 1, 2, 3, 6], num_random=30)
    assert set(curve.edges[:3]) == {("embedding", 0), (0, 1), (1, "logits")}
    # Features beside a constant of 1000 are rounded to 1e-3 of themselves by float32 norms.
    assert np.allclose(curve.faithfulness, [0, 0, 0, 1, 1], atol=3e-3)
    assert np.allclose(curve.without, [1, 0, 0, 0, 0], atol=3e-3)
    assert 0 < curve.random_faithfulness[:, 3].mean() < 0.3
    assert curve.to_dict()["curve"][3]["edges"] == 3
    assert len(curve.to_dataframe()) == 5


def test_edges_are_named_as_users_count():
    assert [edge_names(edge, 1) for edge in all_edges(1)] == [
        ("embedding", 0), ("embedding", "logits"), (0, "logits"),
    ]  # fmt: skip
