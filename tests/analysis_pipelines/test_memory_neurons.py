"""Neurons over texts: shares of importance, mean sizes of effects, joined tests."""

# Stand-ins have the fields in use: pyright is told not to mind.
# pyright: reportArgumentType=false

import math
from types import SimpleNamespace

import pytest
import torch

from analysis_pipelines.memory_neurons import TextNeurons, mean_effects, rank_test


def test_texts_count_alike_in_the_importance():
    def text(*importance):
        return {"m": {0: SimpleNamespace(importance=torch.tensor(importance))}}

    found = TextNeurons([text(1.0, 3.0), text(300.0, 100.0)]).importance("m", 0)
    assert found.tolist() == [0.5, 0.5]
    assert TextNeurons([text(0.0, 0.0)]).importance("m", 0).tolist() == [0, 0]


def test_effects_are_averaged_in_size():
    texts = {"text_0": {"effects": {"7": -2.0, "1": 1.0}},
             "text_1": {"effects": {"7": 4.0, "1": 0.0}}}  # fmt: skip
    ids, effects = mean_effects(texts)
    assert ids.tolist() == [7, 1]
    assert effects.tolist() == [3.0, 0.5]


def test_undefined_channels_are_left_out_of_a_rank_test():
    x = torch.arange(20.0)
    y = x.clone()
    y[3] = math.nan
    found = rank_test(x, y, seed=0)
    assert (found.n, found.value) == (19, pytest.approx(1.0, abs=1e-12))  # rounding of a sum
    assert rank_test(x[:5], y[:5], seed=0).value is None
