"""All that the suite does with ``transformers``' Mamba models: find the mixers, record, run them.

A mixer is replayed: from the input that it received in a forward pass, its own modules and the
suite's own scan, its intermediate quantities are computed again (u, delta, B, C, gate, y), and the
output that follows from them is compared with the output that the mixer really gave. Hooks inside
a mixer would not do: on current ``transformers`` those on ``conv1d`` and ``dt_proj`` never fire.

What is particular to a model family is in ``mixer_families``, the replay in ``mixer_replay``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixer_families import FAMILIES, MixerFamily, at_least_float32, gated_norm
from mixer_placement import linear_weight, parameters_at_hand
from mixer_replay import (
    EDITABLE,
    GRADIENT,
    LRP,
    Edit,
    MixerMemory,
    MixerReplay,
    Rules,
    compute_replay,
)
from mixer_sites import (
    MixerSite,
    UnsupportedModelError,
    blocks_of,
    find_mixers,
    model_family,
    num_layers,
)
from utils import forward_hooks

__all__ = [
    "EDITABLE",
    "FAMILIES",
    "GRADIENT",
    "LRP",
    "Edit",
    "LayerRecord",
    "MixerFamily",
    "MixerMemory",
    "MixerParameters",
    "MixerReplay",
    "MixerSite",
    "Rules",
    "UnsupportedModelError",
    "bias_parameters",
    "check_has_logits",
    "embedding_scale",
    "fast_scan",
    "find_mixers",
    "forward_from",
    "input_embeddings",
    "logit_directions",
    "mixer_parameters",
    "num_layers",
    "record_layers",
    "record_streams",
    "replay_mixer",
]

Observer = Callable[[int, MixerReplay], None]

FINAL_NORMS = ("norm_f", "final_layernorm", "norm")
"""Names of the norm between the last layer and the unembedding."""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One layer of one forward pass: the replayed mixer, and the residual stream around it."""

    replay: MixerReplay
    mixer_output: Tensor
    """(b, l, d_model) what the mixer really returned"""
    replay_error: Tensor
    """(b,) norm of replayed minus real output over the norm of the real, without padding"""
    block_input: Tensor
    """(b, l, d_model) residual stream before the layer"""
    block_output: Tensor
    """(b, l, d_model) residual stream after the layer"""
    output_scale: float
    """what the block multiplies the mixer's output by before adding it to the residual stream"""


class MixerParameters(NamedTuple):
    """Weights around a mixer's scan, detached, on the CPU; float32 unless they are float64."""

    conv_weight: Tensor
    """(d_inner, K) depthwise causal convolution; the last entry weighs the token itself"""
    conv_bias: Tensor | None
    """(d_inner,)"""
    out_weight: Tensor
    """(d_model, d_inner) out_proj, times the block's scale of the mixer's output where there is
    one: column i is what neuron i writes to the residual stream"""
    out_bias: Tensor | None
    """(d_model,)"""


def mixer_parameters(site: MixerSite) -> MixerParameters:
    """The convolution and output projection of one mixer: what lies around its scan.

    Of the convolution the channels that become u; in Mamba-2 B and C pass it too. Weights of
    quantised layers are given as their modules multiply by them.
    """
    conv, out = site.mixer.conv1d, site.mixer.out_proj
    scale = _output_scale(site)
    d_inner = out.in_features
    with parameters_at_hand(conv, out):
        return MixerParameters(
            _weights(conv.weight)[:d_inner].squeeze(1),
            None if conv.bias is None else _weights(conv.bias)[:d_inner],
            linear_weight(out) * scale,
            None if out.bias is None else _weights(out.bias) * scale,
        )


def _output_scale(site: MixerSite) -> float:
    name = site.family.output_scale
    return float(getattr(site.block, name)) if name else 1.0


def logit_directions(model: nn.Module) -> Tensor:
    """(V, d_model) direction of the residual stream behind the last layer that raises each logit.

    The unembedding's rows times the weight of the final norm: logit = direction . x / rms(x). On
    the CPU, detached. Raises UnsupportedModelError for a model without an unembedding or without
    a final norm of a known name. Cost: one copy of the unembedding.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    base = getattr(model, "base_model", model)
    norm = next((getattr(base, name) for name in FINAL_NORMS if hasattr(base, name)), None)
    if head is None or norm is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no logits, or its final norm is none of "
            f"{', '.join(FINAL_NORMS)}; load it with AutoModelForCausalLM.from_pretrained"
        )
    with parameters_at_hand(head, norm):
        return linear_weight(head) * _weights(norm.weight) * _logit_scale(model)


def _logit_scale(model: nn.Module) -> float:
    family = model_family(model)
    scale = getattr(model.config, family.logit_scale) if family.logit_scale else 1.0
    return scale / (getattr(model.config, family.logit_divisor) if family.logit_divisor else 1.0)


def replay_mixer(
    site: MixerSite,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    edit: Edit | None = None,
    rules: Rules = GRADIENT,
    memory: MixerMemory | None = None,
) -> MixerReplay:
    """Compute the mixer's quantities from its input (b, l, d_model), differentiably.

    ``attention_mask`` (b, l) is 0 at padding; one of another shape is not a padding mask and is
    left out, as the mixers do. ``edit(stage, tensor)`` may return another tensor for any stage of
    ``EDITABLE``; what follows is computed from it, so that an intervention is exact. ``rules``
    says how gradients pass the non-linear operations. ``memory`` is the replay's of the chunk
    before this one; None starts a text. Raises ValueError for a memory of another batch size.
    Cost: the mixer's own matrix products and one scan.
    """
    if attention_mask is not None and attention_mask.shape != hidden_states.shape[:2]:
        attention_mask = None
    if memory is not None and len(memory.state) != len(hidden_states):
        raise ValueError(
            f"memory is that of {len(memory.state)} texts, the chunk has {len(hidden_states)}; "
            "go on with the same texts, in the same order"
        )
    with parameters_at_hand(site.mixer, gated_norm(site.mixer)):
        return compute_replay(
            site.mixer, site.family, hidden_states, attention_mask, edit, rules, memory
        )


@torch.no_grad()
def record_layers(
    model: nn.Module, layers: list[int], input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[int, LayerRecord]:
    """Run the model once and record these layers; the forward stops after the last of them.

    The model itself runs its own code, untouched: what is recorded is what it computes, and
    ``replay_error`` says how well the replay reproduces it. Hooks are removed after any exception.
    Raises UnsupportedModelError, KeyError for a layer without a mixer, and RuntimeError when a
    mixer was never called.
    """
    sites = find_mixers(model)
    records: dict[int, LayerRecord] = {}
    last = max(layers)
    outputs: dict[int, tuple[MixerReplay, Tensor]] = {}

    def on_mixer(layer: int):
        def hook(mixer, args, kwargs, output):
            hidden_states, mask, _ = _bind(mixer, args, kwargs)
            outputs[layer] = replay_mixer(sites[layer], hidden_states, mask), output

        return hook

    def on_block(layer: int):
        def hook(block, args, kwargs, output):
            block_input, block_output = _stream_around(args, kwargs, output)
            replay, mixer_output = outputs.pop(layer)
            error = _relative_error(replay.output, mixer_output, attention_mask)
            records[layer] = LayerRecord(
                replay, mixer_output, error, block_input, block_output, _output_scale(sites[layer])
            )
            if layer == last:
                raise _LastLayerReached

        return hook

    hooks = [(sites[layer].mixer, on_mixer(layer)) for layer in layers]
    hooks += [(sites[layer].block, on_block(layer)) for layer in layers]
    with forward_hooks(hooks), suppress(_LastLayerReached):
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    if missing := [layer for layer in layers if layer not in records]:
        raise RuntimeError(f"the forward pass never called the mixers of layers {missing}")
    return records


@torch.no_grad()
def record_streams(
    model: nn.Module, layers: Sequence[int], input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[int, tuple[Tensor, Tensor]]:
    """Residual stream (b, l, d_model) before and after these layers, with an SSM or without.

    Raises UnsupportedModelError for a model without any SSM. Cost: a forward pass up to the last
    of the layers.
    """
    blocks = blocks_of(model)
    streams: dict[int, tuple[Tensor, Tensor]] = {}

    def on_block(layer: int):
        def hook(block, args, kwargs, output):
            streams[layer] = _stream_around(args, kwargs, output)
            if layer == max(layers):
                raise _LastLayerReached

        return hook

    hooks = [(blocks[layer], on_block(layer)) for layer in layers]
    with forward_hooks(hooks), suppress(_LastLayerReached):
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return streams


@contextmanager
def fast_scan(
    model: nn.Module,
    *,
    edits: Mapping[int, Edit] | None = None,
    observe: Observer | None = None,
    rules: Rules = GRADIENT,
    memories: MutableMapping[int, MixerMemory] | None = None,
    recompute: Collection[int] = (),
) -> Iterator[nn.Module]:
    """Within this context the model's mixers run by replay, with the suite's scan.

    That makes the forward pass of Mamba-1 on a CPU faster than the stock token loop and its
    backward pass feasible. ``edits`` changes quantities of chosen layers (see
    :func:`replay_mixer`); ``observe(layer, replay)`` sees each mixer's quantities, inside the
    autograd graph. A call with a cache goes to the mixer's own code, or is refused (RuntimeError)
    when there is an edit for that layer. ``rules`` other than ``GRADIENT`` apply to the mixers and
    to the model's RMS norms. Both are restored on leaving, whatever happened.

    ``memories`` makes consecutive calls the chunks of one text, of any length from one token on:
    each mixer starts from its layer's entry (none: an empty memory) and leaves its memory there,
    detached. Chunks then give what the whole text gives. Edits count tokens from the chunk's
    start. Raises UnsupportedModelError for a model with attention, which would need its own cache.

    A backward pass needs some 12 tensors (b, l, d_inner) of every block. Those of the layers in
    ``recompute`` are not kept, but computed a second time by it, to the same bits: a block's
    forward for its memory. Edits and observers of these layers are then called a second time too,
    and the gradient has to be taken inside the context. Raises ValueError beside ``memories``,
    which a second time would confuse.
    """
    sites = find_mixers(model)
    if memories is not None:
        if recompute:
            raise ValueError(f"recompute is {recompute} beside memories; use one of the two")
        _check_that_all_memory_is_in_mixers(model)
    edits = dict(edits or {})
    if unknown := sorted(set(edits) - set(sites)):
        raise ValueError(
            f"edits names layers {unknown} without an SSM; those with one: {list(sites)}"
        )
    with ExitStack() as stack:
        for site in sites.values():
            forward = _replaying_forward(site, edits.get(site.layer), observe, rules, memories)
            stack.enter_context(_replaced_forward(site.mixer, forward))
        for block in (
            blocks_of(model) if edits and model_family(model).reads_embeddings_again else ()
        ):
            stack.enter_context(_replaced_forward(block, _with_rows_alike(block)))
        for norm in _rms_norms(model) if rules is not GRADIENT else ():
            forward = partial(rules.elementwise, norm.forward)
            stack.enter_context(_replaced_forward(norm, forward))
        blocks = blocks_of(model) if recompute else ()
        for block in (blocks[layer] for layer in recompute):
            forward = partial(checkpoint, block.forward, use_reentrant=False)
            stack.enter_context(_replaced_forward(block, forward))
        yield model


def forward_from(
    model: nn.Module, layer: int, hidden_states: Tensor, input_ids: Tensor | None = None
) -> Tensor:
    """Logits (b, l, V) of the model when ``hidden_states`` (b, l, d_model) enter block ``layer``.

    The residual stream before that block is the given one, without padding; the blocks before it
    are not run, and everything after it is the model's own code. Works inside ``fast_scan``.
    ``input_ids`` (b, l) are the text's tokens: Zamba and Zamba2 read their embeddings again in
    later layers, the others do without.
    Raises ValueError for a layer that the model does not have and for tokens that are missing, and
    UnsupportedModelError for a model without a selective SSM or without logits. Cost: a forward
    pass of the remaining blocks.
    """
    blocks = blocks_of(model)
    check_has_logits(model)
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer is {layer}; the model has layers 0 to {len(blocks) - 1}")
    inputs = hidden_states
    if model_family(model).reads_embeddings_again and layer > 0:
        if input_ids is None:
            raise ValueError(
                f"input_ids is None, but layers of {type(model).__name__} read the embeddings "
                "again: pass the text's tokens"
            )
        inputs = input_embeddings(model, input_ids)
    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(_replaced_forward(block, _skip))
        entered = _entered_by(blocks[layer].forward, hidden_states)
        stack.enter_context(_replaced_forward(blocks[layer], entered))
        return model(inputs_embeds=inputs, use_cache=False).logits


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


def _rms_norms(model: nn.Module) -> list[nn.Module]:
    """The model's RMS norms, x * weight / rms(x), known by the end of their class's name."""
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def _replaying_forward(
    site: MixerSite,
    edit: Edit | None,
    observe: Observer | None,
    rules: Rules,
    memories: MutableMapping[int, MixerMemory] | None,
) -> Callable[..., Any]:
    """A ``forward`` for this mixer that replays it; a call with a cache is left to its own code."""
    mixer = site.mixer
    stock_forward = mixer.forward

    def forward(*args, **kwargs):
        hidden_states, mask, cache = _bind(mixer, args, kwargs)
        if cache is not None:
            if edit is not None:
                raise RuntimeError("an edited mixer cannot use a cache: call with use_cache=False")
            return stock_forward(*args, **kwargs)
        memory = None if memories is None else memories.get(site.layer)
        replay = replay_mixer(site, hidden_states, mask, edit, rules, memory)
        if memories is not None:
            # Cloned: a view of a few tokens would keep the inputs of the whole chunk alive.
            memories[site.layer] = MixerMemory(*(x.detach().clone() for x in replay.memory))
        if observe is not None:
            observe(site.layer, replay)
        return replay.output

    return forward


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give this one module a ``forward`` of its own; its class and other models stay as is."""
    own_forward = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own_forward is None:
            del module.forward
        else:
            module.forward = own_forward


class _LastLayerReached(Exception):
    """Ends a forward pass whose later layers nobody asked for."""


def _stream_around(args: tuple, kwargs: dict, output: Any) -> tuple[Tensor, Tensor]:
    """What a block got and gave; some models' blocks give a tuple."""
    block_input = args[0] if args else kwargs["hidden_states"]
    return block_input, output[0] if isinstance(output, tuple) else output


def _skip(hidden_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
    """Instead of a block whose output nobody reads, for the next one is skipped too or given
    another input. Some models take a block's output as it is, others as the first of two."""
    return hidden_states, None


def _entered_by(forward: Callable[..., Any], hidden_states: Tensor) -> Callable[..., Any]:
    """A block's ``forward`` with this residual stream in place of what it is called with."""

    def entered(*args, **kwargs):
        if args:
            return forward(hidden_states, *args[1:], **kwargs)
        return forward(**{**kwargs, "hidden_states": hidden_states})

    return entered


def _with_rows_alike(block: nn.Module) -> Callable[..., Any]:
    """The ``forward`` of a block that reads the embeddings again, when an edit before it has
    branched one text into several rows."""
    forward, signature = block.forward, inspect.signature(type(block).forward)

    def with_rows_alike(*args, **kwargs):
        bound = signature.bind(block, *args, **kwargs)
        rows = len(bound.arguments["hidden_states"])
        embeddings = bound.arguments["original_hidden_states"]
        bound.arguments["original_hidden_states"] = embeddings.expand(rows, -1, -1)
        return forward(*bound.args[1:], **bound.kwargs)

    return with_rows_alike


def _weights(parameter: nn.Parameter) -> Tensor:
    return at_least_float32(parameter.detach().cpu())


def _check_that_all_memory_is_in_mixers(model: nn.Module) -> None:
    names = {type(module).__name__ for module in model.modules()}
    if attention := sorted(name for name in names if "Attention" in name):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be read in chunks: its {', '.join(attention)} "
            "remembers outside the SSM mixers. Give the text as a whole"
        )


def _bind(mixer: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None, Any]:
    """Hidden states, attention mask and cache of a mixer call, however they were passed."""
    bound = inspect.signature(type(mixer).forward).bind(mixer, *args, **kwargs).arguments
    hidden_states = bound["hidden_states" if "hidden_states" in bound else "input_states"]
    cache = bound.get("cache_params", bound.get("past_key_values"))
    return hidden_states, bound.get("attention_mask"), cache


def _relative_error(replayed: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
    """(b,) norm of the difference over that of the real output, without padding."""
    real = real.double()
    keep = torch.ones_like(real[..., :1]) if mask is None else mask[:, :, None].to(real)
    difference = ((replayed.double() - real) * keep).flatten(1).norm(dim=1)
    scale = (real * keep).flatten(1).norm(dim=1)
    return difference / scale.clamp_min(torch.finfo(torch.float32).tiny)
