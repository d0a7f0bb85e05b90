"""Weights that analyses read: of mixers, of the embedding, of what turns a stream into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mixers.families import at_least_float32
from mamba_mixers.placement import affine_of, parameters_at_hand
from mamba_mixers.recording import block_output_scale
from mamba_mixers.sites import MixerSite, UnsupportedModelError, model_family
from suite_plumbing.models import execution_device

FINAL_NORMS = ("norm_f", "final_layernorm", "norm")
"""Names of the norm between the last layer and the unembedding."""


class MixerParameters(NamedTuple):
    """Weights around a mixer's scan, detached, on the CPU; float32 unless they are float64."""

    conv_weight: Tensor | None
    """(d_inner, K) depthwise causal convolution; the last entry weighs the token itself; None of a
    Mamba-3, which has none"""
    conv_bias: Tensor | None
    """(d_inner,)"""
    out_weight: Tensor
    """(d_model, d_inner) out_proj, times the block's scale of the mixer's output where there is
    one: column i is what neuron i writes to the residual stream"""
    out_bias: Tensor | None
    """(d_model,)"""


def mixer_parameters(site: MixerSite) -> MixerParameters:
    """The convolution and output projection of one mixer: what lies around its scan.

    Of the convolution the channels that become u; in Mamba-2 B and C pass it too. The output
    projection is given as its module computes it, with adapters and in any storage
    (:func:`affine_of`). The convolution is read, as ``transformers`` reads it.
    """
    conv = getattr(site.mixer, "conv1d", None)
    scale = block_output_scale(site)
    with parameters_at_hand(conv, site.mixer.out_proj):
        out = affine_of(site.mixer.out_proj)
        d_inner = out.weight.shape[1]
        return MixerParameters(
            None if conv is None else _weights(conv.weight)[:d_inner].squeeze(1),
            None if conv is None or conv.bias is None else _weights(conv.bias)[:d_inner],
            out.weight * scale,
            None if out.bias is None else out.bias * scale,
        )


class Readout(NamedTuple):
    """What turns a normed stream into logits: (weight x + bias) scale; detached, on the CPU."""

    weight: Tensor
    """(V, d_model) the unembedding's rows, as its module multiplies by them"""
    bias: Tensor | None
    """(V,)"""
    scale: float
    """the family's multiplier of the logits, or one over its divisor"""

    def direction(self, token: int, contrast: int | None = None) -> Tensor:
        """(d_model,) of the normed stream that raises a token's logit, or that over a contrast's"""
        row = self.weight[token]
        return (row if contrast is None else row - self.weight[contrast]) * self.scale

    def constant(self, token: int, contrast: int | None = None) -> float:
        """What the bias adds to that logit, or to that difference."""
        if self.bias is None:
            return 0.0
        entry = self.bias[token]
        return float(entry if contrast is None else entry - self.bias[contrast]) * self.scale


def readout_of(model: nn.Module) -> Readout:
    """The unembedding of a model and its scale.

    Raises UnsupportedModelError for a model without logits. Cost: none for a plain float32 or
    float64 unembedding on the CPU, whose own rows are returned; else a copy.
    """
    check_has_logits(model)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    with parameters_at_hand(head):
        return Readout(*affine_of(head), logit_scale(model))


def final_norm(model: nn.Module) -> Any:
    """The norm between the last layer and the unembedding.

    Raises UnsupportedModelError for a model without logits, or without a final RMS norm of a
    known name.
    """
    check_has_logits(model)
    base = getattr(model, "base_model", model)
    norm = next((getattr(base, name) for name in FINAL_NORMS if hasattr(base, name)), None)
    if norm is None or not is_rms_norm(norm):
        raise UnsupportedModelError(_no_final_norm(model))
    return norm


def _no_final_norm(model: nn.Module) -> str:
    if model_family(model).is_own:
        return (
            "the final norm of this model is no RMS norm (weight / rms(x)), through which alone "
            "logits are led back to the residual stream"
        )
    return (
        f"the final norm of {type(model).__name__} is no RMSNorm called "
        f"{', '.join(FINAL_NORMS)}; load it with AutoModelForCausalLM.from_pretrained"
    )


@torch.no_grad()
def logits_of_stream(model: Any, stream: Tensor) -> Tensor:
    """(..., V) logits of a residual stream (..., d_model) behind any layer, through the final norm.

    The model's own modules, with the family's scale: of the stream after the last layer, what the
    model gives. Raises UnsupportedModelError as :func:`final_norm`.
    """
    head, norm = model.get_output_embeddings(), final_norm(model)
    # A model in half precision may keep its stream in float32, as Mamba-1 does.
    return head(norm(stream).to(model.dtype)) * logit_scale(model)


def convolved_change(site: MixerSite, change: Tensor) -> Tensor:
    """(b, l, channels) what a change of the convolution's input changes of its output.

    Both before the activation; in Mamba-2 B and C are among the channels. The bias does not enter.
    """
    conv = site.mixer.conv1d
    with parameters_at_hand(conv):
        weight = conv.weight.to(change)
    length = change.shape[1]
    padded = F.conv1d(change.mT, weight, padding=weight.shape[-1] - 1, groups=len(weight))
    return padded[..., :length].mT


def logit_directions(model: nn.Module) -> Tensor:
    """(V, d_model) direction of the residual stream behind the last layer that raises each logit.

    The unembedding's rows, as its module multiplies by them, times the weight of the final norm:
    logit = direction . x / rms(x). On the CPU, detached. Raises UnsupportedModelError for a model
    without an unembedding, or without a final RMS norm of a known name. Cost: one copy of the
    unembedding.
    """
    norm, readout = final_norm(model), readout_of(model)
    with parameters_at_hand(norm):
        return readout.weight * _weights(norm.weight) * readout.scale


def is_rms_norm(module: nn.Module) -> bool:
    """Whether the module scales by weight / rms(x): known by the end of its class's name."""
    return any(cls.__name__.endswith("RMSNorm") for cls in type(module).__mro__)


def logit_scale(model: nn.Module) -> float:
    """What the model multiplies its unembedding's output by to give logits: 1 in most families."""
    family = model_family(model)
    scale = getattr(model.config, family.logit_scale) if family.logit_scale else 1.0
    return scale / (getattr(model.config, family.logit_divisor) if family.logit_divisor else 1.0)


def check_has_logits(model: nn.Module) -> None:
    """Raise UnsupportedModelError for a model that predicts nothing, such as a bare backbone."""
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no logits; load it with AutoModelForCausalLM"
        )


def input_embeddings(model: Any, input_ids: Tensor) -> Tensor:
    """(b, l, d_model) what as ``inputs_embeds`` means the same as these tokens: their embeddings.

    Falcon-H1 multiplies embeddings by a constant, but not those that are given: these are
    multiplied here.
    """
    return model.get_input_embeddings()(input_ids) * embedding_scale(model)


def num_embeddings(model: Any) -> int:
    """Rows of the embedding: the ids that the model knows are 0 to one less."""
    return len(model.get_input_embeddings().weight)


def stream_width(model: Any) -> int:
    """d_model: numbers of the residual stream at a token."""
    return model.get_input_embeddings().weight.shape[1]


@torch.no_grad()
def embeddings_of(model: Any, token_ids: Sequence[int]) -> Tensor:
    """(k, d_model) the embeddings of these tokens, each by itself, as ``inputs_embeds`` has them.

    By the embedding's module, which may hold an adapter or lie offloaded.
    """
    ids = torch.tensor(token_ids, dtype=torch.long, device=execution_device(model))
    return input_embeddings(model, ids[None])[0]


def embedding_scale(model: Any) -> float:
    """What a row of the embedding's weight has to be multiplied by to be given as an embedding."""
    name = model_family(model).embedding_scale
    return float(getattr(model.config, name)) if name else 1.0


def bias_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's additive constants by name, that of the step size (dt) included.

    Raises UnsupportedModelError where some are offloaded, for these are no part of a graph.
    """
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    if offloaded := [name for name, bias in biases.items() if bias.is_meta]:
        raise UnsupportedModelError(
            f"{len(offloaded)} biases of {type(model).__name__} are offloaded ({offloaded[0]}, "
            "...), which gives them no gradient: load the model without offloading"
        )
    return biases


def _weights(parameter: nn.Parameter) -> Tensor:
    return at_least_float32(parameter.detach().cpu())
