"""What each layer of one forward pass wrote into the residual stream at a text's last token.

Every block adds to the stream: its mixer's output, its attention's, each times the family's
multiplier, and what its other modules (an MLP, experts) add. The stream after the last layer is
the embedding plus all of it, up to the rounding of the model's own dtype. Zamba's and Zamba2's
shared attention feeds the mixer alone, so that nothing of it is a write of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mixers.attention_layers import attention_weights, eager_attention
from mamba_mixers.families import at_least_float32, inverse_rms
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.placement import affine_of, parameters_at_hand
from mamba_mixers.recording import block_output_scale, stream_around
from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan
from mamba_mixers.sites import (
    MixerSite,
    UnsupportedModelError,
    blocks_of,
    find_mixers,
    model_family,
)
from mamba_mixers.weights import final_norm, is_rms_norm, logit_scale

Hook = Callable[..., None]


class AttentionWrite(NamedTuple):
    """What softmax attention wrote at the last token, with what it is made of; on the CPU."""

    weights: Tensor
    """(heads, l) of the last token as query"""
    values: Tensor
    """(l, heads, width) of every source, those of a group repeated for its heads"""
    out_weight: Tensor
    """(d_model, heads width) of the output projection, times the family's multiplier"""
    out_bias: Tensor | None
    """(d_model,) times the multiplier"""
    written: Tensor
    """(d_model,) what the module really returned, times the multiplier"""

    def from_sources(self, direction: Tensor) -> Tensor:
        """(l,) what each source's value gave along a direction (d_model,)."""
        through = (direction.to(self.out_weight) @ self.out_weight).unflatten(
            0, (self.weights.shape[0], -1)
        )
        return torch.einsum("hl,lhw,hw->l", self.weights, self.values, through)


class MixerTrace(NamedTuple):
    """What the neurons of the last token are made of, for one text; on the CPU."""

    conv_input: Tensor
    """(l, d_inner) what becomes u, before the convolution"""
    u: Tensor
    """(l, d_inner) SSM input"""
    delta: Tensor
    """(l, H)"""
    A: Tensor
    """(H, N or 1)"""
    B: Tensor
    """(l, N) or (l, G, N)"""
    C: Tensor
    """as B"""
    D: Tensor
    """(H,)"""
    gating: Tensor
    """(d_inner,) gated / y at the last token: SiLU(gate), times the gated norm's factor"""
    gated: Tensor
    """(d_inner,) the neurons at the last token"""
    own_share: Tensor | None = None
    """(l, H) in Mamba-3 the share of its own write that a token reads"""
    skip: Tensor | None = None
    """(d_inner,) what multiplies the last token's u, where it is not D alone"""


@dataclass(frozen=True, eq=False)
class LayerWrite:
    """One layer at the last token: (d_model,) tensors on the CPU, float32 or float64."""

    before: Tensor
    """residual stream before the layer"""
    after: Tensor
    """residual stream after the layer"""
    trace: MixerTrace | None
    """None in a layer without a mixer"""
    mixer: Tensor | None
    """the mixer's output times the family's multiplier"""
    attention: AttentionWrite | None
    rest: Tensor | None
    """what the block's other modules added, an MLP or experts: all that is neither of the two;
    None in a block without other modules"""


@dataclass(frozen=True, eq=False)
class StreamWrites:
    """One text's last token, from the embedding to the logits; on the CPU."""

    layers: list[LayerWrite]
    """every layer of the model; the first one's ``before`` is the embedding"""
    final: Tensor
    """(d_model,) stream after the last layer"""
    norm_factor: Tensor
    """(d_model,) what the final norm multiplied each entry of the stream by: its weight over the
    root mean square, at their real values"""
    logits: Tensor
    """(V,) what the model gave, before the rounding to float32 that some families end with"""


class _Seen:
    """What one pass showed of its last token."""

    def __init__(self) -> None:
        self.traces: dict[int, MixerTrace] = {}
        self.outputs: dict[int, Tensor] = {}
        self.around: dict[int, tuple[Tensor, Tensor]] = {}
        self.values: dict[int, Tensor] = {}
        self.attention: dict[int, AttentionWrite] = {}
        self.norm: tuple[Tensor, Tensor]
        self.logits: Tensor

    def on_replay(self, layer: int, replay: MixerReplay) -> None:
        self.traces[layer] = _trace(replay)
        self.outputs[layer] = _kept(replay.output[0, -1])

    def on_block(self, layer: int) -> Hook:
        def hook(block, args, kwargs, output):
            before, after = stream_around(block, args, kwargs, output)
            self.around[layer] = _kept(before[0, -1]), _kept(after[0, -1])

        return hook

    def on_values(self, layer: int) -> Hook:
        def hook(module, args, kwargs, output):
            self.values[layer] = _kept(output[0])

        return hook

    def on_attention(self, layer: int, scale: float) -> Hook:
        def hook(module, args, kwargs, output):
            weights = attention_weights(output)
            if weights is None:
                raise UnsupportedModelError(
                    f"the {type(module).__name__} of layer {layer} gives no attention weights, so "
                    "that what it wrote cannot be led back to its sources"
                )
            self.attention[layer] = _attention_write(
                module, _kept(weights[0, :, -1]), self.values.pop(layer),
                _kept(output[0][0, -1]), scale,
            )  # fmt: skip

        return hook

    def on_norm(self, norm, args, kwargs, output) -> None:
        self.norm = _kept(args[0][0, -1]), _kept(output[0, -1])

    def on_head(self, head, args, kwargs, output) -> None:
        self.logits = _kept(output[0, -1])


@torch.no_grad()
def record_writes(model: Any, input_ids: Tensor) -> StreamWrites:
    """Run the model once on one text (1, l) by the suite's scan, and keep what its layers wrote.

    Attention layers run eagerly meanwhile. Raises UnsupportedModelError for a model without
    logits, without a final RMS norm, or without a selective SSM. Cost: that forward pass; memory
    of about 2 tensors (l, d_inner) a layer.
    """
    norm, sites, blocks = final_norm(model), find_mixers(model), blocks_of(model)
    head, attending = model.get_output_embeddings(), _attention_of(model, blocks)
    seen = _Seen()
    hooks = [(block, seen.on_block(layer)) for layer, block in enumerate(blocks)]
    for layer, module in attending.items():
        scale = _attention_scale(model, blocks[layer])
        hooks.append((module, seen.on_attention(layer, scale)))
        hooks.append((module.v_proj, seen.on_values(layer)))
    with ExitStack() as stack:
        stack.enter_context(eager_attention(model) if attending else nullcontext())
        stack.enter_context(fast_scan(model, observe=seen.on_replay))
        stack.enter_context(forward_hooks([*hooks, (norm, seen.on_norm), (head, seen.on_head)]))
        # Jamba of transformers 4 shows weights only when asked to return them.
        asked = {"output_attentions": True} if attending else {}
        model(input_ids=input_ids, use_cache=False, logits_to_keep=1, return_dict=True, **asked)
    writes = [_layer_write(seen, layer, sites.get(layer), b) for layer, b in enumerate(blocks)]
    final, normed = seen.norm
    factor = _norm_factor(norm, final, normed)
    return StreamWrites(writes, final, factor, seen.logits * logit_scale(model))


def _trace(replay: MixerReplay) -> MixerTrace:
    gating = F.silu(at_least_float32(replay.gate[0, -1]))
    if replay.skip is not None:  # the gates are part of C
        gating = torch.ones_like(gating)
    if replay.norm_scale is not None:
        gating = gating * replay.norm_scale[0, -1]
    per_token = (_kept(x[0]) for x in
                 (replay.conv_input, replay.u, replay.delta, replay.B, replay.C))  # fmt: skip
    conv_input, u, delta, B, C = per_token
    return MixerTrace(
        conv_input, u, delta, _kept(replay.A), B, C, _kept(replay.D).clone(), _kept(gating),
        _kept(replay.gated[0, -1]),
        None if replay.own_share is None else _kept(replay.own_share[0]),
        None if replay.skip is None else _kept(replay.skip[0, -1]),
    )  # fmt: skip


def _attention_of(model: nn.Module, blocks: list[nn.Module]) -> dict[int, Any]:
    """Modules of softmax attention that write to the stream, by layer."""
    if model_family(model).reads_embeddings_again:
        return {}
    return {
        layer: module
        for layer, block in enumerate(blocks)
        for module in block.children()
        if hasattr(module, "v_proj") and hasattr(module, "o_proj")
    }


def _attention_scale(model: nn.Module, block: nn.Module) -> float:
    name = model_family(model).attention_scale
    return float(getattr(block, name)) if name else 1.0


def _attention_write(
    module: Any, weights: Tensor, values: Tensor, written: Tensor, scale: float
) -> AttentionWrite:
    with parameters_at_hand(module.o_proj):
        out = affine_of(module.o_proj)
    width = out.weight.shape[1] // len(weights)
    values = values.unflatten(-1, (-1, width))
    values = values.repeat_interleave(len(weights) // values.shape[1], dim=1)
    bias = None if out.bias is None else out.bias * scale
    return AttentionWrite(weights, values, out.weight * scale, bias, written * scale)


def _layer_write(seen: _Seen, layer: int, site: MixerSite | None, block: nn.Module) -> LayerWrite:
    before, after = seen.around[layer]
    attention = seen.attention.get(layer)
    mixer = None if site is None else seen.outputs[layer] * block_output_scale(site)
    rest = after - before
    for written in (mixer, None if attention is None else attention.written):
        rest = rest if written is None else rest - written
    has_more = _has_other_modules(block, site, layer in seen.attention)
    return LayerWrite(
        before, after, seen.traces.get(layer), mixer, attention, rest if has_more else None
    )


def _has_other_modules(block: nn.Module, site: MixerSite | None, attends: bool) -> bool:
    """Whether a block has modules that write to the stream beside a mixer and attention."""
    if site is not None and site.family.reads_embeddings_again:
        return False
    if site is not None and site.family.is_own:
        return bool(block.writes_beside_mixer)
    return any(
        child is not getattr(site, "mixer", None)
        and not is_rms_norm(child)
        and not (attends and hasattr(child, "v_proj"))
        and any(True for _ in child.parameters())
        for child in block.children()
    )


def _norm_factor(norm: Any, final: Tensor, normed: Tensor) -> Tensor:
    """normed / final; by the norm's definition where an entry of the stream is next to nothing."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    with parameters_at_hand(norm):
        defined = _kept(norm.weight) * inverse_rms(final[None], epsilon)[0]
    small = final.abs() < 1e-20
    return torch.where(small, defined, normed / final.masked_fill(small, 1.0))


def _kept(x: Tensor) -> Tensor:
    """Detached, on the CPU, float32 unless it is float64."""
    return at_least_float32(x.detach().cpu())
