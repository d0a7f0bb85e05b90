"""Claims beside untrained twins: on weights that learned nothing, nothing learned is claimed."""

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer

from analysis_pipelines.memory_reading import Reading
from analysis_pipelines.memory_steps import MEMORY_STEPS, MemoryInputs, MemorySettings
from analysis_pipelines.memory_twins import (
    CLAIM_STEPS,
    by_kind,
    claims_measured,
    twin_findings,
)
from mamba_mixers.untrained_twins import untrained_twin
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer
from ssm_component_extractor import capture_texts
from suite_plumbing.texts import encode_texts
from token_statistics.findings import SUPPORTED, judged
from token_statistics.twin_bounds import FRESH, PERMUTED

TEXTS = [
    "the cat sat on the mat and the dog sat on the log, while the cat saw the dog",
    "rain in the morning, sun at noon, and rain again in the evening; so it goes, rain and sun",
]
LAYERS = [0, 1, 2, 3]
ENCODED = encode_texts(make_tiny_tokenizer(), TEXTS, 512)
READING = Reading(ENCODED, LAYERS, 2, 0)


def inputs_of(model, **options) -> MemoryInputs:
    settings = MemorySettings(LAYERS, num_positions=6, num_ablations=8, **options)
    return MemoryInputs(model, capture_texts(model, ENCODED, LAYERS), [], {}, settings)


def test_on_untrained_weights_no_claim_is_supported():
    base = make_tiny_model()
    found = by_kind(twin_findings(inputs_of(base, num_twins=6), READING))
    twins = {kind: list(of.values()) for kind, of in found.items()}
    alone, beside = [], []
    for seed in range(5):
        found = claims_measured(inputs_of(untrained_twin(base, seed)))
        alone += [row.claim for row in found if row.above_chance]
        beside += [row.claim for row in judged(found, twins) if row.verdict == SUPPORTED]
    assert beside == []
    # Their nulls alone do not say so: what architecture and texts give is above chance too, and of
    # a size worth a name in some claim of most seeds.
    assert len(alone) >= 5


def test_claims_measured_alone_are_those_of_the_whole_analysis():
    model = make_tiny_model()
    analyzer = MemoryRecursionNeuronAnalyzer(
        model, tokenizer=make_tiny_tokenizer(), num_positions=6, num_ablations=8, num_random=1,
        num_twins=1,
    )  # fmt: skip
    results = analyzer.analyze_memory_recursion_effects(TEXTS, LAYERS)
    found = claims_measured(inputs_of(model))
    assert [row.claim for row in found] == [row["claim"] for row in results["findings"]]
    for ours, theirs in zip(found, results["findings"], strict=True):
        # Texts run alone or in a padded batch: float32 rounding, in small effects too.
        assert (ours.value is None) == (theirs["value"] is None)
        if ours.value is not None:
            assert ours.value == pytest.approx(theirs["value"], rel=1e-3, abs=1e-8), ours.claim
    for twin, kind in zip(results["findings"][0]["twins"], (FRESH, PERMUTED), strict=True):
        section = results["untrained_twins"][kind]
        assert (twin["kind"], section["seeds"]) == (kind, [1000])
        assert section["values"][found[0].claim] == [twin["low"]] == [twin["high"]]
    report = analyzer.generate_comprehensive_report()
    assert "1 of fresh weights: " in report
    assert "1 of permuted weights: " in report


def test_twins_are_seeded_and_leave_the_random_state_as_it_is():
    inputs = inputs_of(make_tiny_model(), num_twins=1)
    state = torch.get_rng_state()
    first, again = (twin_findings(inputs, READING) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert twin_findings(inputs_of(make_tiny_model(), num_twins=0), READING) == []


def test_the_steps_for_claims_are_steps_of_the_analysis():
    assert {step.name for step in CLAIM_STEPS} <= {step.name for step in MEMORY_STEPS}
