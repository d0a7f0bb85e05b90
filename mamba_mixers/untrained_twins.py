"""Untrained twins of a model: what a measure gives on them needs no training.

Two kinds, for they leave different things as they are, and a measure that training brought about
exceeds both:

- *fresh weights*: those of the architecture's own initialisation. What is measured there takes the
  architecture, its initialisation and the texts, no more. Trained weights are larger and less
  alike than fresh ones, so that a measure may exceed fresh twins for its weights' scale alone.
- *permuted weights*: the model's own weights, the entries of each tensor in random order. Scale,
  sparsity and outliers of every tensor stay, what is between its entries goes. ``A_log``, ``D``
  and the bias of delta are permuted by whole channels or heads, all three alike, so that a layer
  keeps its time scales.

A twin is a copy of the model object with other values in its tensors: its own class, depth, dtype,
tied weights and hooks. The one place of the suite where twins are made.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mamba_mixers.exclusive_use import copy_of
from mamba_mixers.families import time_scale_tensors
from mamba_mixers.placement import parameters_at_hand
from suite_plumbing.arguments import validate_choice, validate_int
from suite_plumbing.models import execution_device
from suite_plumbing.precision import default_dtype
from suite_plumbing.progress import progress
from token_statistics.twin_bounds import FRESH, PERMUTED, TWIN_KINDS

logger = logging.getLogger(__name__)

ENOUGH_TWINS = 19
"""Of each kind. With as many, a value above all of theirs has a probability of 1 / 20 among its
like."""


# Weights are drawn by the generator that all threads share.
_DRAWING = threading.Lock()


def untrained_twin(model: PreTrainedModel, seed: int, kind: str = FRESH) -> PreTrainedModel:
    """A copy of the model with weights that learned nothing, in eval mode: see the module.

    The weights depend on ``seed`` alone; the random state of the process and the model stay as
    they are. Of an offloaded model the twin is whole, on the device it computes on. Raises
    ValueError for a ``kind`` that is none of TWIN_KINDS, and where a twin cannot be made, saying
    why. Cost: that of drawing or permuting the weights; beside the twin, memory for 8 bytes an
    entry of the largest tensor.
    """
    values = _VALUES[validate_choice("kind", kind, TWIN_KINDS)]
    with _DRAWING, torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(validate_int("seed", seed, 0))
        return _with_values(model, values(model)).eval()


def check_twins(model: PreTrainedModel, count: int) -> None:
    """Raise ValueError where twins are asked for and cannot be made; makes one of each kind."""
    if count:
        for kind in TWIN_KINDS:
            untrained_twin(model, 0, kind)


def twin_seeds(count: int, seed: int = 0) -> list[int]:
    """Seeds of ``count`` twins, none of them that of the analysis; ValueError for count < 0."""
    return [1000 + seed + i for i in range(validate_int("count", count, 0))]


def twins_to_make(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """(kind, seed) of ``count`` twins of each kind; ValueError for count < 0."""
    return [(kind, own) for kind in TWIN_KINDS for own in twin_seeds(count, seed)]


def each_twin(count: int, seed: int = 0) -> Iterator[tuple[str, int]]:
    """(kind, seed) of `twins_to_make` one by one, each named in the log before it is given out."""
    wanted = twins_to_make(count, seed)
    for number, (kind, own) in enumerate(progress(wanted, desc="twins"), 1):
        logger.info("untrained twin %d of %d: %s, seed %d", number, len(wanted), kind, own)
        yield kind, own


def _fresh(model: PreTrainedModel) -> dict[str, Tensor]:
    """By name, what the model's class makes from its config in place of each of its tensors.

    Buffers that the class does not make are left out, for the twin to copy.
    """
    name = type(model).__name__
    try:
        # What a seed draws differs from dtype to dtype.
        with default_dtype(torch.float32):
            made = _made_anew(model)
    except Exception as error:  # a class of one's own may raise anything
        raise ValueError(
            f"no untrained twin of this {name}: it cannot be made from its config alone "
            f"({type(error).__name__}: {str(error)[:80]})"
        ) from error
    values = _named_tensors(made)
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if key not in values or values[key].shape != parameter.shape:
            raise ValueError(
                f"no untrained twin of this {name}: {key} of shape {tuple(parameter.shape)} is not "
                "what its config makes; merge adapters into the weights, or undo quantisation"
            )
    return values


def _made_anew(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and config; of one that is a user's own, what the user makes."""
    make = getattr(model, "made_anew", None)
    return type(model)(copy.deepcopy(model.config)) if make is None else make()


def _permuted(model: PreTrainedModel) -> dict[str, Tensor]:
    """By name, each parameter and saved buffer with its entries in an order of their own."""
    orders, tensors = _orders_of_channels(model), _named_tensors(model)
    values: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for prefix, module in list(model.named_modules(remove_duplicate=False)):
        with parameters_at_hand(module):  # puts others in the place of offloaded tensors
            for own in _learned_names(module):
                name = f"{prefix}.{own}" if prefix else own
                key = id(tensors[name])
                if key not in known:
                    known[key] = _reordered(getattr(module, own), orders.get(key))
                values[name] = known[key]
    return values


def _orders_of_channels(model: nn.Module) -> dict[int, Tensor]:
    """One random order of channels for each mixer, by the identity of the tensors that share it."""
    orders: dict[int, Tensor] = {}
    for module in model.modules():
        if tensors := time_scale_tensors(module):
            order = torch.randperm(min(tensor.numel() for tensor in tensors))
            orders |= {id(tensor): order for tensor in tensors}
    return orders


def _reordered(tensor: Tensor, order: Tensor | None) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(
            f"no twin of permuted weights: a weight of shape {tuple(tensor.shape)} holds "
            f"{tensor.dtype}; load the model without quantisation"
        )
    order = torch.randperm(tensor.numel()) if order is None else order
    rows = tensor.detach().reshape(len(order), -1)
    return rows[order.to(rows.device)].view(tensor.shape)


def _learned_names(module: nn.Module) -> list[str]:
    """The module's own parameters, and its buffers of floats that are saved with them."""
    saved = [
        name
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and name not in module._non_persistent_buffers_set
    ]
    return [name for name, _ in module.named_parameters(recurse=False)] + saved


def _with_values(model: PreTrainedModel, values: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of the model with these tensors in place of its own, by name; others copied."""
    device, tensors = execution_device(model), _named_tensors(model)
    memo: dict[int, Any] = {}  # by identity, for tied weights to stay tied
    for name, tensor in tensors.items():
        if name in values and id(tensor) not in memo:
            value = values[name].to(device=device, dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_weight else value
    offloaded = any(tensor.is_meta for tensor in tensors.values())
    for module in model.modules():
        memo[id(getattr(module, "_hf_hook", None))] = None  # holds the offloaded weights
    twin: Any = copy_of(model, memo)
    for module in twin.modules():
        _without_offloading(module)
    if offloaded:
        twin.tie_weights()  # offloading unties
    return twin.to(device)


def _without_offloading(module: Any) -> None:
    """Give a copied module back the forward pass of its class."""
    if "_hf_hook" in vars(module):
        del module._hf_hook
        vars(module).pop("_old_forward", None)
        vars(module).pop("forward", None)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


_VALUES: dict[str, Callable[[PreTrainedModel], dict[str, Tensor]]] = {
    FRESH: _fresh,
    PERMUTED: _permuted,
}
"""What each kind of twin has in place of each tensor, by name."""
