"""Neuron sets made by hand."""

import torch
from torch import Tensor

from ssm_measures.neuron_sets import NeuronSet, neuron_set


def long_set(layer: int, activations: Tensor, method: str = "rollout") -> NeuronSet:
    """One text of these activations (l, d), attention of zeros; importance is the index."""
    length, count = activations.shape
    ids = torch.arange(length).unsqueeze(0)
    return neuron_set(
        method, layer, activations.unsqueeze(0), torch.zeros(1, length, length),
        torch.arange(count).float(), ids, torch.ones_like(ids),
    )  # fmt: skip
