"""Erased states: against the intervention of the same name, on the whole text, layer by layer."""

import numpy as np
import pytest
import torch

from causal_interventions.effects import intervention_effects
from causal_interventions.interventions import compose, reset_state
from causal_interventions.state_resets import (
    FIRST_LATE,
    MAX_LAYERS,
    RESET_SHIFTS,
    erased_layers,
    reset_costs,
    tokens_read_on,
)
from mamba_mixers.running import fast_scan
from ssm_component_extractor import capture
from tests.conftest import VOCAB_SIZE, make_tiny_model

LENGTH, START = 40, 28


@pytest.fixture(scope="module")
def case():
    """A model, a text, and the memories of its layers after START tokens."""
    model = make_tiny_model()
    ids = torch.randint(1, VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(0))
    memories = {}
    with torch.no_grad(), fast_scan(model, memories=memories):
        model(input_ids=ids[None, :START], use_cache=False)
    return model, ids.tolist(), memories


def test_costs_are_those_of_resets_in_the_whole_text(case):
    """Another route: the scan of the whole text with its carry set to 0 at one token."""
    model, ids, memories = case
    found = reset_costs(model, memories, ids, START, [0, 1, 3])
    captured = capture(model, torch.tensor([ids]), None, [0, 1, 2, 3])
    for i, layer in enumerate((0, 1, 3)):
        effects = intervention_effects(model, captured, reset_state(START, [layer]))
        expected = float(effects.loss_change[0, START : LENGTH - 1].sum())
        # Losses of about 6 in float32, summed over 11 tokens.
        assert found.by_layer[0, i] == pytest.approx(expected, abs=2e-5)
        late = float(effects.loss_change[0, START + FIRST_LATE : LENGTH - 1].sum())
        assert found.by_layer_late[i] == pytest.approx(late, abs=2e-5)
    together = intervention_effects(model, captured, reset_state(START, [0, 1, 2, 3]))
    late = together.loss_change[0, START + FIRST_LATE : LENGTH - 1]
    assert found.all_states[0] == pytest.approx(float(late.sum()), abs=2e-5)
    assert (found.num_predictions, found.num_late) == (11, 8)


def test_the_null_asks_for_other_tokens_of_the_text(case):
    model, ids, memories = case
    found = reset_costs(model, memories, ids, START, [3])
    clean, erased = (log_p(model, ids, edit) for edit in (None, compose(reset_state(START, [3]))))
    for shift in (1, 7, 39):
        tokens = [ids[(t + 1 - shift) % LENGTH] for t in range(START, LENGTH - 1)]
        rows = torch.arange(START, LENGTH - 1)
        expected = float((clean[rows, tokens] - erased[rows, tokens]).sum())
        assert found.by_layer[shift, 0] == pytest.approx(expected, abs=2e-5)
    # 40 tokens before is the token itself: taken from 1 before instead.
    np.testing.assert_array_equal(found.by_layer[40], found.by_layer[1])
    assert found.by_layer.shape == (1 + RESET_SHIFTS, 1)


@torch.no_grad()
def log_p(model, ids, edits):
    with fast_scan(model, edits=edits):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0].double().log_softmax(-1)


def test_the_memories_stay_as_they_were(case):
    model, ids, memories = case
    before = {layer: memory.state.clone() for layer, memory in memories.items()}
    reset_costs(model, memories, ids, START, [0])
    assert all(torch.equal(before[layer], memory.state) for layer, memory in memories.items())


@pytest.mark.parametrize("start", [1, LENGTH - 1])
def test_a_start_without_tokens_on_both_sides_is_refused(case, start):
    model, ids, memories = case
    with pytest.raises(ValueError, match=rf"start is {start}; .* allows 2 to 38"):
        reset_costs(model, memories, ids, start, [0])


def test_of_a_deep_model_layers_are_evenly_spaced():
    assert erased_layers([2, 5, 9]) == [2, 5, 9]
    chosen = erased_layers(list(range(48)))
    assert len(chosen) == MAX_LAYERS
    assert (chosen[0], chosen[-1]) == (0, 47)
    assert set(np.diff(chosen)) <= {3, 4}


def test_tokens_read_on_are_few_in_all():
    assert tokens_read_on(512, 16) == 11  # 18 rows of 200 tokens
    assert tokens_read_on(130, 13) == 13
    assert tokens_read_on(40, 4) == 10  # a quarter of the text
    assert tokens_read_on(4096, 4) == 64
