"""Parameters that are not where a computation needs them: offloaded, or quantised.

``device_map="auto"`` and its like keep some layers in main memory or on disk. Their parameters are
then on the ``meta`` device, without values, but for the time of each module's own forward pass.
Layers in 8 bits store integers. What calls a module notices neither; what reads a weight does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_mixers.sites import UnsupportedModelError
from suite_plumbing.precision import full_precision


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


@torch.no_grad()
def bring_into_memory(module: nn.Module) -> None:
    """Fetch the offloaded parameters of this module and its parts, and keep them there for good.

    What is written to a parameter on ``meta`` is lost. Raises UnsupportedModelError where values
    cannot be had. Cost: the memory of the module's parameters.
    """
    for part in [part for part in module.modules() if _is_offloaded(part)]:
        with parameters_at_hand(part):
            tensors = {
                name: x.detach().clone() for name, x in part._parameters.items() if x is not None
            }
            buffers = {name: x.clone() for name, x in part._buffers.items() if x is not None}
        if any(x.is_meta for x in tensors.values()):
            raise UnsupportedModelError(
                f"the parameters of a {type(part).__name__} are on the meta device, and accelerate "
                "cannot fetch them; load the model without offloading"
            )
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(part)
        for name, x in tensors.items():
            was = part._parameters[name]
            part._parameters[name] = nn.Parameter(
                x, requires_grad=was is not None and was.requires_grad
            )
        part._buffers.update(buffers)


class Affine(NamedTuple):
    """What a linear layer computes, x weight^T + bias; detached, on the CPU, float32 or float64."""

    weight: Tensor
    """(out, in)"""
    bias: Tensor | None
    """(out,)"""


def affine_of(linear: Any) -> Affine:
    """What a linear layer multiplies by and adds.

    Of a plain ``nn.Linear`` its parameters. Any other layer, one with an adapter, a hook or a
    parametrization, and one that stores integers with scales is asked for its output of each unit
    vector and of its opposite. (One that quantises its inputs too leaves unit vectors as they
    are.) Raises UnsupportedModelError where the layer is not linear. Cost: that of two calls on
    ``in`` vectors.
    """
    if _is_plain(linear):
        bias = None if linear.bias is None else _kept(linear.bias)
        return Affine(_kept(linear.weight), bias)
    floats = [p.dtype for p in linear.parameters() if p.is_floating_point()]
    dtype = floats[0] if floats else torch.float16
    width = getattr(linear, "in_features", None) or linear.weight.shape[-1]
    devices = [p.device for p in linear.parameters() if not p.is_meta]
    device = devices[0] if devices else torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad(), full_precision():
        unit = torch.eye(width, dtype=dtype, device=device)
        there, back = _kept(linear(unit)), _kept(linear(-unit))
        bias = (there[0] + back[0]) / 2
        found = Affine((there - back).mT / 2, bias if bool(bias.any()) else None)
        probe = torch.cos(torch.arange(1, width + 1, device=device)).to(dtype)
        _check_linear(linear, found, _kept(probe), _kept(linear(probe[None])[0]))
    return found


def linear_weight(linear: Any) -> Tensor:
    """(out, in) what a linear layer multiplies by: see :func:`affine_of`."""
    return affine_of(linear).weight


def _is_plain(linear: Any) -> bool:
    """Whether the layer's parameters are all that it computes with: it is nn.Linear, no subclass,
    nothing hangs on it but what fetches offloaded parameters, and they are numbers of that shape.
    """
    hooked = linear._forward_hooks or linear._forward_pre_hooks
    has_own_forward = "forward" in vars(linear) and not hasattr(linear, "_hf_hook")
    if type(linear) is not nn.Linear or hooked or has_own_forward:
        return False
    weight = linear.weight
    return weight.is_floating_point() and weight.shape == (linear.out_features, linear.in_features)


def _check_linear(linear: Any, found: Affine, x: Tensor, y: Tensor) -> None:
    """Refuse a layer whose output y for x is not what its answers to unit vectors add up to.

    Eight bits and half precision round by up to a few hundredths of the output, and half precision
    may overflow on a vector that is no text's.
    """
    dtypes = {parameter.dtype for parameter in linear.parameters()}
    rounding = 1e-3 if dtypes <= {torch.float32, torch.float64} else 0.1
    expected = found.weight @ x + (0.0 if found.bias is None else found.bias)
    if bool(y.isfinite().all()) and float((y - expected).norm()) > rounding * float(y.norm()):
        raise UnsupportedModelError(
            f"a {type(linear).__name__} of the model is not linear, so that no weight stands for "
            "it; merge or remove its adapter"
        )


def _kept(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x if x.dtype == torch.float64 else x.float()


def _is_offloaded(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters(recurse=False))
