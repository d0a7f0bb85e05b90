"""Mixers of which the maps are known by other routes."""

from typing import Any

import reference
import torch
import torch.nn.functional as F
from conftest import make_tiny_model
from torch import Tensor

from mamba_mixers.sites import find_mixers
from mamba_mixers.weights import MixerParameters, mixer_parameters
from ssm_component_extractor import capture
from ssm_measures.components import SSMComponents

# The suite's bounds: rounding of float32 (1e-7) and of float64 (2e-16), grown over the tokens.
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}


def make_mixer(
    length: int = 19,
    batch: int = 1,
    *,
    heads: int = 7,
    taps: int = 3,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[SSMComponents, MixerParameters]:
    """A mixer's components computed by the float64 loops from random weights; odd sizes."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    weight, b = normal(heads, taps), normal(heads) if bias else None
    x, gate, D = normal(batch, length, heads), normal(batch, length, heads), normal(heads)
    delta, A = F.softplus(normal(batch, length, heads)), -torch.exp(normal(heads, 5) - 1)
    B, C = normal(batch, length, 5), normal(batch, length, 5)
    u = reference.silu(reference.causal_convolution(x, weight, b))
    y, _ = reference.scan(u[..., None], delta, A, B[:, :, None], C[:, :, None], D)
    y = y.squeeze(-1)
    fields: dict[str, Any] = {
        "A": A, "B": B, "C": C, "D": D, "delta": delta, "u": u, "gate": gate, "y": y,
        "gated": y * reference.silu(gate), "conv_input": x,
    }  # fmt: skip
    components = SSMComponents(
        **{name: value.to(dtype) for name, value in fields.items()},
        mixer_output=torch.zeros(batch, length, 1, dtype=dtype),
        attention_mask=torch.ones(batch, length, dtype=torch.int64),
        replay_errors=(0.0,) * batch,
    )
    out_weight = normal(4, heads).to(dtype)
    conv_bias = None if b is None else b.to(dtype)
    return components, MixerParameters(weight.to(dtype), conv_bias, out_weight, None)


def reference_alpha(components: SSMComponents) -> Tensor:
    B, C = components.B[:, :, None], components.C[:, :, None]
    return reference.implicit_attention(components.delta, components.A, B, C)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def captured_layer(layer: int = 2, length: int = 40, padding: int = 0):
    """Components and parameters of a layer of the tiny model, two texts, the second padded."""
    model = make_tiny_model()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    components = capture(model, ids, mask, [layer]).components[layer]
    return components, mixer_parameters(find_mixers(model)[layer])
