"""Untrained twins: the same shape, other weights, and nothing else touched."""

import pytest
import torch

from mamba_mixers.untrained_twins import twin_seeds, untrained_twin


def weights(model):
    return {name: x.clone() for name, x in model.named_parameters()}


def test_a_twin_has_the_shape_of_its_model_and_weights_of_its_own(tiny_model):
    before, state = weights(tiny_model), torch.get_rng_state()
    twin = untrained_twin(tiny_model, 3)
    assert {n: x.shape for n, x in weights(twin).items()} == {n: x.shape for n, x in before.items()}
    assert any(not torch.equal(x, before[name]) for name, x in weights(twin).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in weights(tiny_model).items())
    assert (twin.training, twin.dtype) == (False, tiny_model.dtype)
    assert twin.config is not tiny_model.config


def test_twins_depend_on_their_seed_alone(tiny_model):
    one, same, other = (weights(untrained_twin(tiny_model, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(x, same[name]) for name, x in one.items())
    assert any(not torch.equal(x, other[name]) for name, x in one.items())


def test_precision_is_that_of_the_model(tiny_model):
    assert untrained_twin(tiny_model.double(), 0).dtype == torch.float64


def test_seeds_are_distinct_and_counted():
    assert len(set(twin_seeds(20, 5))) == 20
    assert twin_seeds(0) == []
    with pytest.raises(ValueError, match="count is -1"):
        twin_seeds(-1)
