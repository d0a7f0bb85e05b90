"""Total effects against forward passes with a write taken away by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.family_models import make_model
from causal_interventions.total_effects import agreement, layer_effects, source_effects
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.sites import blocks_of, find_mixers
from mamba_mixers.stream_writes import record_writes
from mamba_mixers.weights import mixer_parameters
from ssm_measures.neuron_shares import neuron_shares

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9]])

TOKEN, CONTRAST = 7, 30


def logit_without(model: Any, layer: int, taken: torch.Tensor | None) -> float:
    """The logit difference where a vector, or all of the layer's write (None), is missing."""

    def hook(block, args, kwargs, output):
        stream = output[0] if isinstance(output, tuple) else output
        before = args[0] if args else kwargs["hidden_states"]
        changed = stream.clone()
        lost = stream[0, -1] - before[0, -1] if taken is None else taken
        changed[0, -1] -= lost
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with torch.no_grad(), forward_hooks([(blocks_of(model)[layer], hook)]):
        logits = model(input_ids=IDS, use_cache=False).logits[0, -1]
    return float(logits[TOKEN] - logits[CONTRAST])


@pytest.fixture(scope="module", params=["mamba", "mamba2", "zamba", "falcon_h1", "jamba"])
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def test_a_layers_effect_is_that_of_taking_its_write_away(model):
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits[0, -1]
    clean = float(logits[TOKEN] - logits[CONTRAST])
    effects = layer_effects(model, IDS, TOKEN, CONTRAST)
    assert list(effects) == list(range(len(blocks_of(model))))
    for layer, effect in effects.items():
        expected = clean - logit_without(model, layer, None)
        # Float32, and the suite's scan beside the model's own code.
        assert effect == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("batch_size", [3, 32])
def test_a_sources_effect_is_that_of_taking_its_part_away(model, batch_size):
    writes = record_writes(model, IDS)
    layer = next(iter(find_mixers(model)))
    trace = writes.layers[layer].trace
    assert trace is not None
    parameters = mixer_parameters(find_mixers(model)[layer])
    given = neuron_shares(trace, parameters).by_source @ parameters.out_weight.mT
    effects = source_effects(model, IDS, writes, layer, TOKEN, CONTRAST, batch_size=batch_size)
    assert effects.shape == (IDS.shape[1],)
    clean = logit_without(model, layer, torch.zeros_like(given[0]))
    for source in (0, 4, IDS.shape[1] - 1):
        expected = clean - logit_without(model, layer, given[source])
        assert float(effects[source]) == pytest.approx(expected, abs=2e-4)


def test_agreement_of_two_columns():
    direct = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    found = agreement(direct, -2 * direct)
    assert found.count == 4
    assert found.spearman == pytest.approx(-1.0)
    assert found.r2 == pytest.approx(1.0)
    assert agreement([1.0, 2.0], [1.0, 2.0]).r2 is None
    assert agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).spearman is None
