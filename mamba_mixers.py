"""All that the suite knows of ``transformers``' Mamba code: find the mixers, replay them, run them.

A mixer is replayed: from the input that it received in a forward pass, its own modules and the
suite's own scan, its intermediate quantities are computed again (u, delta, B, C, gate, y), and the
output that follows from them is compared with the output that the mixer really gave. Hooks inside
a mixer would not do: on current ``transformers`` those on ``conv1d`` and ``dt_proj`` never fire.

``FAMILIES`` is the table of model families; a family is a row of it. Names used by
``transformers`` and the suite's (see the glossary of ``selective_scan``):

    in_proj       hidden states -> [conv_input | gate], each (b, l, d_inner)
    conv1d, act   causal depthwise convolution and SiLU: conv_input -> u
    x_proj        u -> [dt (dt_rank) | B (N) | C (N)]
    dt_proj       dt -> softplus -> delta (b, l, d_inner)
    A_log, D      A = -exp(A_log); D
    out_proj      y * SiLU(gate) -> the mixer's output (b, l, d_model)

Checked against transformers 5.23.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selective_scan import selective_scan_chunk
from utils import forward_hooks

Edit = Callable[[str, Tensor], Tensor]
Observer = Callable[[int, "MixerReplay"], None]

FINAL_NORMS = ("norm_f",)
"""Names of the norm between the last layer and the unembedding."""

EDITABLE = ("u", "A", "B", "C", "delta", "carry", "y", "gated")
"""Stages, in the order in which an edit is called on them. ``carry`` (b, l) is 1 everywhere
and scales the state that a token takes over from the one before: 0 resets the memory there."""


class Rules(NamedTuple):
    """How gradients pass the non-linear operations of a model; the values stay what they are.

    The default is the plain gradient. ``LRP`` is that of layer-wise relevance propagation.
    """

    elementwise: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = lambda f, x: f(x)
    """an activation f, or a norm that scales its input x elementwise, applied to x"""
    product: Callable[[Tensor, Tensor], Tensor] = torch.mul
    """the gate: y times the activated z"""
    coefficient: Callable[[Tensor], Tensor] = lambda x: x
    """delta, B and C, on which the scan's decay, write and read-out depend"""


def _ratio_rule(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) as x times the constant f(x) / x: SiLU with sigma(x) held, a norm with 1 / rms held."""
    with torch.no_grad():
        ratio = torch.where(x == 0, 0.0, f(x) / x)
    return x * ratio


def _half_rule(x: Tensor, y: Tensor) -> Tensor:
    """x y with each factor's gradient halved: without that a product counts its relevance twice."""
    product = x * y
    return 0.5 * product + 0.5 * product.detach()


GRADIENT = Rules()
LRP = Rules(_ratio_rule, _half_rule, Tensor.detach)
"""MambaLRP (Jafari et al. 2024, arXiv 2406.07592, section 4): under it the model is, as autograd
sees it, linear in its embeddings and biases, so that input times gradient conserves relevance."""


class UnsupportedModelError(ValueError):
    """The model has no selective SSM mixer of a family in ``FAMILIES``."""


class MixerMemory(NamedTuple):
    """All that a mixer knows of the tokens before: from it, what follows is exactly the same."""

    conv_input: Tensor
    """(b, K - 1, d_inner) the convolution's inputs at the last tokens, the last one last; zeros
    before the text"""
    state: Tensor
    """(b, d_inner, N) h after the last token"""


@dataclass(frozen=True, eq=False)
class MixerReplay:
    """The quantities inside one mixer for one batch, in the order in which they are computed.

    Shapes are those of Mamba-1 in ``selective_scan``'s glossary. Attached to the autograd graph
    when gradients are enabled.
    """

    conv_input: Tensor
    """(b, l, d_inner) first half of in_proj's output, before the convolution"""
    gate: Tensor
    """(b, l, d_inner) z, before SiLU"""
    u: Tensor
    """(b, l, d_inner) SSM input: SiLU of the convolution; zero at padding"""
    delta: Tensor
    """(b, l, d_inner) step size after softplus, > 0"""
    A: Tensor
    """(d_inner, N) negative"""
    B: Tensor
    """(b, l, N)"""
    C: Tensor
    """(b, l, N)"""
    D: Tensor
    """(d_inner,)"""
    y: Tensor
    """(b, l, d_inner) scan output with D u, before the gate"""
    gated: Tensor
    """(b, l, d_inner) y * SiLU(gate): out_proj's input, the neurons"""
    output: Tensor
    """(b, l, d_model) the mixer's output"""
    memory: MixerMemory
    """after the last token, from which the next chunk of the text goes on"""


class MixerFamily(NamedTuple):
    """What is particular to one family of mixers."""

    model_type: str
    """the family's name in ``transformers``"""
    mixer_class: str
    """class of the mixer; a subclass counts as its base"""
    attributes: tuple[str, ...]
    """what such a mixer has; a class of this name without them is not replayed"""
    replay: Callable[..., MixerReplay]
    """(mixer, hidden states, mask or None, edit, rules, memory or None)"""


class MixerSite(NamedTuple):
    """Where a selective SSM mixer sits in a model."""

    layer: int
    block: nn.Module
    mixer: Any
    family: MixerFamily


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


class MixerParameters(NamedTuple):
    """Weights around a mixer's scan, detached, on the CPU; float32 unless they are float64."""

    conv_weight: Tensor
    """(d_inner, K) depthwise causal convolution; the last entry weighs the token itself"""
    conv_bias: Tensor | None
    """(d_inner,)"""
    out_weight: Tensor
    """(d_model, d_inner) out_proj: column i is what neuron i writes to the residual stream"""
    out_bias: Tensor | None
    """(d_model,)"""


def find_mixers(model: nn.Module) -> dict[int, MixerSite]:
    """Every selective SSM mixer of the model, by the number of the layer that holds it.

    Found by class and structure, not by attribute name or config. Raises UnsupportedModelError
    for a model without one; models that have an ``A_log`` but follow the delta rule
    (Gated DeltaNet and its kin) are refused too.
    """
    sites = {}
    for name, module in model.named_modules():
        family = _family_of(module)
        if family is not None:
            block_name, layer = _block_of(name)
            sites[layer] = MixerSite(layer, model.get_submodule(block_name), module, family)
    if not sites:
        raise UnsupportedModelError(_refusal(model))
    return dict(sorted(sites.items()))


def num_layers(model: nn.Module) -> int:
    """Number of layers of the model, those without an SSM included."""
    return len(_blocks(model))


def mixer_parameters(site: MixerSite) -> MixerParameters:
    """The convolution and output projection of one mixer: what lies around its scan."""
    conv, out = site.mixer.conv1d, site.mixer.out_proj
    return MixerParameters(
        _weights(conv.weight).squeeze(1),
        None if conv.bias is None else _weights(conv.bias),
        _weights(out.weight),
        None if out.bias is None else _weights(out.bias),
    )


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
    return _weights(head.weight) * _weights(norm.weight)


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
    return site.family.replay(
        site.mixer, hidden_states, attention_mask, edit or _no_edit, rules, memory
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
            block_input = args[0] if args else kwargs["hidden_states"]
            block_output = output[0] if isinstance(output, tuple) else output
            replay, mixer_output = outputs.pop(layer)
            error = _relative_error(replay.output, mixer_output, attention_mask)
            records[layer] = LayerRecord(replay, mixer_output, error, block_input, block_output)
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


@contextmanager
def fast_scan(
    model: nn.Module,
    *,
    edits: Mapping[int, Edit] | None = None,
    observe: Observer | None = None,
    rules: Rules = GRADIENT,
    memories: MutableMapping[int, MixerMemory] | None = None,
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
    """
    sites = find_mixers(model)
    if memories is not None:
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
        for norm in _rms_norms(model) if rules is not GRADIENT else ():
            forward = partial(rules.elementwise, norm.forward)
            stack.enter_context(_replaced_forward(norm, forward))
        yield model


def forward_from(model: nn.Module, layer: int, hidden_states: Tensor) -> Tensor:
    """Logits (b, l, V) of the model when ``hidden_states`` (b, l, d_model) enter block ``layer``.

    The residual stream before that block is the given one, without padding; the blocks before it
    are not run, and everything after it is the model's own code. Works inside ``fast_scan``.
    Raises ValueError for a layer that the model does not have and UnsupportedModelError for a
    model without a selective SSM or without logits. Cost: a forward pass of the remaining blocks.
    """
    blocks = _blocks(model)
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer is {layer}; the model has layers 0 to {len(blocks) - 1}")
    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(_replaced_forward(block, _pass_on))
        output = model(inputs_embeds=hidden_states, use_cache=False)
    if not hasattr(output, "logits"):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no logits; load it with AutoModelForCausalLM"
        )
    return output.logits


def bias_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's additive constants by name, that of the step size (dt) included."""
    return {name: p for name, p in model.named_parameters() if name.endswith("bias")}


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


def _replay_mamba1(
    mixer: Any,
    hidden_states: Tensor,
    mask: Tensor | None,
    edit: Edit,
    rules: Rules,
    memory: MixerMemory | None,
) -> MixerReplay:
    """Mamba-1: in_proj, convolution, x_proj and dt_proj, scan, gate, out_proj ([1], fig. 3)."""
    rank = mixer.dt_proj.weight.shape[1]
    conv_input, gate = mixer.in_proj(_masked(hidden_states, mask)).chunk(2, dim=-1)
    p, conv_memory = _convolved(mixer.conv1d, conv_input, memory)
    u = edit("u", _masked(rules.elementwise(mixer.act, p).mT, mask))
    dt, B, C = mixer.x_proj(u).split([rank, mixer.A_log.shape[1], mixer.A_log.shape[1]], dim=-1)
    # transformers takes these in float32, whatever the model's dtype (float64 included); the same
    # rounding here is what lets a float64 replay agree with it to float64 precision.
    A, D = edit("A", -torch.exp(mixer.A_log.float())), mixer.D.float()
    B, C = rules.coefficient(edit("B", B).float()), rules.coefficient(edit("C", C))
    delta = edit("delta", F.softplus(_at_least_float32(mixer.dt_proj(dt))))
    delta = rules.coefficient(delta)
    carry = None if edit is _no_edit else edit("carry", torch.ones_like(delta[..., 0]))
    before = None if memory is None else memory.state
    scanned, state = selective_scan_chunk(u.float(), delta, A, B, C, None, before, carry=carry)
    y = edit("y", scanned + u * D)
    gated = edit("gated", rules.product(y, rules.elementwise(F.silu, gate)))
    output = mixer.out_proj(gated.to(hidden_states.dtype))
    remembered = MixerMemory(conv_memory, state)
    return MixerReplay(conv_input, gate, u, delta, A, B, C, D, y, gated, output, remembered)


def _convolved(conv: Any, x: Tensor, memory: MixerMemory | None) -> tuple[Tensor, Tensor]:
    """The causal convolution (b, channels, l) of x (b, l, channels) after the memory's tokens, and
    the inputs that the tokens after x will need (b, K - 1, channels)."""
    reach, length = conv.weight.shape[-1] - 1, x.shape[1]
    if memory is None:
        known, skipped = x, 0
        last = F.pad(x, (0, 0, max(0, reach - length), 0))
    else:
        known, skipped = torch.cat([memory.conv_input.to(x), x], 1), reach
        last = known
    return conv(known.mT)[..., skipped : skipped + length], last[:, last.shape[1] - reach :]


_MAMBA1_ATTRIBUTES = (
    "A_log", "D", "act", "conv1d", "dt_proj", "in_proj", "out_proj", "x_proj"
)  # fmt: skip

FAMILIES = (MixerFamily("mamba", "MambaMixer", _MAMBA1_ATTRIBUTES, _replay_mamba1),)


class _LastLayerReached(Exception):
    """Ends a forward pass whose later layers nobody asked for."""


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _no_edit(stage: str, tensor: Tensor) -> Tensor:
    return tensor


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _weights(parameter: nn.Parameter) -> Tensor:
    return _at_least_float32(parameter.detach().cpu())


def _family_of(module: nn.Module) -> MixerFamily | None:
    names = {cls.__name__ for cls in type(module).__mro__}
    for family in FAMILIES:
        if family.mixer_class in names and all(hasattr(module, a) for a in family.attributes):
            return family
    return None


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Every layer of the model, in order; they lie beside that of the first mixer."""
    names = (n for n, module in model.named_modules() if _family_of(module) is not None)
    if (site_name := next(names, None)) is None:
        raise UnsupportedModelError(_refusal(model))
    block_name, _ = _block_of(site_name)
    return list(model.get_submodule(block_name.rpartition(".")[0]).children())


def _block_of(name: str) -> tuple[str, int]:
    """("backbone.layers.3", 3) for "backbone.layers.3.mixer"."""
    parts = name.split(".")
    position = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: position + 1]), int(parts[position])


def _check_that_all_memory_is_in_mixers(model: nn.Module) -> None:
    names = {type(module).__name__ for module in model.modules()}
    if attention := sorted(name for name in names if "Attention" in name):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be read in chunks: its {', '.join(attention)} "
            "remembers outside the SSM mixers. Give the text as a whole"
        )


def _refusal(model: nn.Module) -> str:
    lookalikes = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "A_log")})
    reason = (
        f"its {', '.join(lookalikes)} layers have an A_log but are not a selective SSM of these"
        if lookalikes
        else "none of its layers is a selective SSM"
    )
    families = ", ".join(f"{family.model_type} ({family.mixer_class})" for family in FAMILIES)
    return (
        f"{type(model).__name__} cannot be analysed: {reason}. Supported families: {families}. "
        "Load a model of one of these, e.g. with AutoModelForCausalLM.from_pretrained."
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
