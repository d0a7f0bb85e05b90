"""Texts read for the memory analysis: its numbers are the same from files and from memory."""

import gc
from weakref import WeakSet

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer

from analysis_pipelines.memory_reading import Reading, captured_by
from analysis_pipelines.memory_steps import MemorySettings
from memory_recursion_neuron_analyzer import analyze_memory
from ssm_measures.components import SSMComponents
from suite_plumbing.texts import encode_texts

TEXTS = [
    "the cat sat on the mat and the dog sat on the log, while the cat saw the dog",
    "rain in the morning, sun at noon, and rain again in the evening; so it goes",
    "a long road, a short night, and a road again",
]
ENCODED = encode_texts(make_tiny_tokenizer(), TEXTS, 512)
SETTINGS = MemorySettings([0, 3], num_positions=2, num_ablations=3, num_random=1, num_twins=1)


def analysed(folder=None):
    return analyze_memory(
        make_tiny_model(), ENCODED, make_tiny_tokenizer(), SETTINGS, folder=folder
    )


@pytest.fixture(scope="module")
def at_hand():
    return analysed()


def test_the_analysis_is_the_same_from_files(at_hand, tmp_path):
    kept = analysed(tmp_path / "captures")
    for part in at_hand.results.keys() - {"provenance"}:
        assert kept.results[part] == at_hand.results[part], part
    for name, tensor in at_hand.tensors.items():
        assert torch.equal(kept.tensors[name], tensor)
    assert list((tmp_path / "captures").iterdir()) == []


def test_of_captures_in_files_one_text_is_in_memory(monkeypatch, tmp_path):
    alive, most = WeakSet(), []
    make = SSMComponents.__init__

    def counted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(SSMComponents, "__init__", counted)
    number = 6
    reading = Reading(ENCODED[:1] * number, [0, 3], 1, 0, tmp_path)
    with captured_by(make_tiny_model(), reading) as captures:
        gc.collect()
        most.clear()
        for layer in (0, 3):
            assert len([one.components[layer].delta for one in captures]) == number
    # The one that is being read, and the one before it that a loop's variable still names.
    assert max(most) <= 2
