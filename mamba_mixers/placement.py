"""Parameters that are not where a computation needs them: offloaded, or quantised.

``device_map="auto"`` and its like keep some layers in main memory or on disk. Their parameters are
then on the ``meta`` device, without values, but for the time of each module's own forward pass.
Layers in 8 bits store integers. What calls a module notices neither; what reads a weight does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def parameters_at_hand(*modules: nn.Module | None) -> Iterator[None]:
    """Within this context the parameters of these modules themselves hold their values.

    Their submodules' are left where they are: these are called. Raises ImportError where some are
    offloaded and ``accelerate``, which knows where to, is missing.
    """
    offloaded = [module for module in modules if module is not None and _is_offloaded(module)]
    if not offloaded:
        yield
        return
    try:
        from accelerate.utils import align_module_device
    except ImportError as error:
        raise ImportError(
            "the model is offloaded (its parameters are on the meta device), and accelerate, which "
            "knows where they are, is not installed: pip install accelerate, or load the model "
            "without device_map"
        ) from error
    with ExitStack() as stack:
        for module in offloaded:
            stack.enter_context(align_module_device(module))
        yield


def linear_weight(linear: Any) -> Tensor:
    """(out, in) what a linear layer multiplies by, detached, on the CPU, in float32 or float64.

    Read off its weight, or for a layer that stores something else, such as integers with scales,
    off its output for each unit vector: its inputs are then quantised too, which leaves unit
    vectors as they are. Cost: that of one call on ``in`` vectors.
    """
    weight = linear.weight.detach()
    if weight.is_floating_point() and weight.shape == (linear.out_features, linear.in_features):
        weight = weight.cpu()
        return weight if weight.dtype == torch.float64 else weight.float()
    floats = [p.dtype for p in linear.parameters() if p.is_floating_point()]
    dtype = floats[0] if floats else torch.float16
    with torch.no_grad():
        columns = linear(torch.eye(linear.in_features, dtype=dtype, device=weight.device))
        bias = 0 if linear.bias is None else linear.bias
        return (columns - bias).float().cpu().mT


def _is_offloaded(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters(recurse=False))
