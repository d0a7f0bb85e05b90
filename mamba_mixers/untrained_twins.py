"""The untrained twin of a model: same configuration, fresh weights.

What a measure gives on the twin needs no training: architecture, initialisation and the texts
suffice for it. The one place of the suite where twins are made.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from suite_plumbing.arguments import validate_int
from suite_plumbing.models import execution_device

ENOUGH_TWINS = 19
"""With as many, a value above all of theirs has a probability of 1 / 20 among its like."""


def untrained_twin(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration, dtype and device with fresh weights, in eval mode.

    The weights are those of the architecture's own initialisation and depend on ``seed`` alone;
    the random state of the process stays as it is. Cost: that of drawing the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    return twin.to(execution_device(model)).eval()


def twin_seeds(count: int, seed: int = 0) -> list[int]:
    """Seeds of ``count`` twins, none of them that of the analysis; ValueError for count < 0."""
    return [1000 + seed + i for i in range(validate_int("count", count, 0))]
