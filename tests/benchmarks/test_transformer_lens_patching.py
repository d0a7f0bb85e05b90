"""TransformerLens' residual patching gives our values, where it is installed."""

import pytest
import torch

from benchmarks.patching_cost import model_of_shape, one_pair
from benchmarks.transformer_lens_patching import (
    measured_memory,
    patched_by_transformer_lens,
    spread_places,
)
from causal_interventions.patching.exact import patched_values

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 32}


def test_places_are_spread_from_the_first_to_the_last():
    assert spread_places(2, 3, 100) == [(i, j) for i in range(2) for j in range(3)]
    found = spread_places(24, 64, 20)
    assert (len(set(found)), found[0], found[-1]) == (20, (0, 0), (23, 63))
    assert len({layer for layer, _ in found}) == 20


def test_memory_is_that_above_what_was_there():
    size, memory = measured_memory(lambda: len(torch.ones(4_000_000).tolist()))
    assert size == 4_000_000
    assert memory is None or 0.01 < memory < 2  # GB; 16 MB of numbers and a list of them


def test_both_give_the_same_values():
    pytest.importorskip("transformer_lens.model_bridge.sources")
    model = model_of_shape(TINY)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # so that a patch makes a difference
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    runs = one_pair(model, 7)
    ours = patched_values(model, runs, "residual")[0]
    places = spread_places(3, 7, 21)
    theirs = patched_by_transformer_lens(model, runs, places).values.view(3, 7)
    assert float((ours - ours[:, :1]).abs().max()) > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)  # float32 through three layers
