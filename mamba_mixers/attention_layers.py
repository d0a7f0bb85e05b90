"""Softmax attention and the residual stream of any causal language model, layer by layer.

Nothing here knows a model by name. A layer is an entry of the model's longest outermost list of
modules; an attention module is one that returns weights (b, heads, l, l) when it runs eagerly, as
those of ``transformers`` do. Weights are averaged over heads the moment they are seen and then let
go, so that one layer's are in memory at a time.

Shapes: b texts, l tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mamba_mixers.hooks import forward_hooks
from suite_plumbing.arguments import validate_int
from suite_plumbing.models import execution_device

MAX_WEIGHTS_GB = 1.0
"""Largest attention weights (heads, l, l) of one layer, in GB of 1e9 bytes, float32."""

# Tokens of the forward pass that tells which layers attend.
_PROBE_TOKENS = 4


class LayerTrace(NamedTuple):
    """What one layer of one forward pass let be seen; detached, on the CPU, at least float32."""

    softmax: Tensor | None
    """(b, l, l) attention weights, mean over heads (and attention modules, where a layer has
    several); None in a layer without softmax attention"""
    output: Tensor
    """(b, l, d_model) residual stream after the layer"""


def model_layers_by_name(model: nn.Module) -> dict[str, int]:
    """Numbers of the model's layers by their names, such as "gpt_neox.layers.3": 3.

    The layers are the longest list of modules that lies in no other list. Raises ValueError for a
    model without one, or with two of that length (an encoder beside its decoder, say).
    """
    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(p.isdigit() for p in name.split("."))
    }
    longest = [name for name, size in lists.items() if size == max(lists.values())]
    if len(longest) != 1:
        found = f"lists {', '.join(longest)} of the same length" if longest else "no list"
        raise ValueError(
            f"{type(model).__name__} has {found} of layers; a comparison needs a causal language "
            "model with one stack of layers"
        )
    return {f"{longest[0]}.{i}": i for i in range(lists[longest[0]])}


@contextmanager
def traced_layers(model: PreTrainedModel) -> Iterator[dict[int, LayerTrace]]:
    """Within this context, a forward pass without padding leaves the trace of every layer it ran.

    The model runs eager attention meanwhile, the one that has weights to show; its setting and its
    hooks are restored on leaving, whatever happened. A later pass overwrites an earlier one.
    Raises ValueError for a model that cannot run eagerly, and as ``model_layers_by_name``.
    """
    numbers = model_layers_by_name(model)
    traces: dict[int, LayerTrace] = {}
    seen: list[tuple[str, Tensor]] = []

    def on_module(name: str):
        def hook(module, args, kwargs, output):
            if name in numbers:
                traces[numbers[name]] = _trace([weights for _, weights in seen], output)
                seen.clear()
                return
            weights = attention_weights(output)
            # A module around the one that gave the weights may pass them on.
            if weights is not None and not any(inner.startswith(f"{name}.") for inner, _ in seen):
                seen.append((name, _kept(weights.mean(1))))

        return hook

    hooks = [
        (module, on_module(name))
        for name, module in model.named_modules()
        if name and any(True for _ in module.children()) and not isinstance(module, nn.ModuleList)
    ]
    with eager_attention(model), forward_hooks(hooks):
        yield traces


@torch.no_grad()
def attending_layers(model: PreTrainedModel) -> list[int]:
    """Layers with softmax attention, ascending, told from one forward pass of four tokens.

    Raises ValueError for attention that is not causal (an encoder's), and as ``traced_layers``.
    """
    ids = (
        torch.arange(_PROBE_TOKENS, device=execution_device(model))[None] % model.config.vocab_size
    )
    with traced_layers(model) as traces:
        model(input_ids=ids, use_cache=False)
    maps = {layer: trace.softmax for layer, trace in traces.items() if trace.softmax is not None}
    for layer, weights in maps.items():
        if float(weights.triu(1).abs().max()) > 1e-6:
            raise ValueError(
                f"{type(model).__name__} attends to later tokens (layer {layer}); a comparison "
                "needs causal language models, in which a token sees only those before it"
            )
    return sorted(maps)


def token_limit(model: PreTrainedModel, max_length: int) -> int:
    """Tokens that a text may have: ``max_length``, or the model's longest context if less.

    Raises ValueError where a layer's attention weights for that many tokens would exceed
    MAX_WEIGHTS_GB, with the length that does not.
    """
    limit = validate_int("max_sequence_length", max_length, 2)
    context = getattr(model.config, "max_position_embeddings", None)
    if isinstance(context, int) and context >= 2:
        limit = min(limit, context)
    heads = getattr(model.config, "num_attention_heads", None)
    size = 4 * limit**2 * (heads if isinstance(heads, int) else 1) / 1e9
    if size > MAX_WEIGHTS_GB:
        fitting = int(limit * (MAX_WEIGHTS_GB / size) ** 0.5)
        raise ValueError(
            f"max_sequence_length is {max_length}: a layer of {type(model).__name__} would hold "
            f"{size:.1f} GB of attention weights, the limit is {MAX_WEIGHTS_GB} GB. Pass "
            f"--max-sequence-length {fitting} or less"
        )
    return limit


def _trace(maps: list[Tensor], output: Any) -> LayerTrace:
    softmax = torch.stack(maps).mean(0) if maps else None
    return LayerTrace(softmax, _kept(output[0] if isinstance(output, tuple) else output))


def attention_weights(output: Any) -> Tensor | None:
    """The (b, heads, l, l) tensor beside a module's output (b, l, ...), if there is one."""
    if not isinstance(output, tuple) or not isinstance(output[0], Tensor) or output[0].ndim < 2:
        return None
    length = output[0].shape[1]
    for entry in output[1:]:
        if (
            isinstance(entry, Tensor)
            and entry.is_floating_point()
            and entry.ndim == 4
            and entry.shape[2:] == (length, length)
        ):
            return entry
    return None


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the model's attention runs eagerly, so that it has weights to show."""
    before = getattr(model.config, "_attn_implementation", None)
    if before is None or before == "eager":
        yield
        return
    try:
        model.set_attn_implementation("eager")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot run with attn_implementation='eager', which shows "
            f"attention weights ({error})"
        ) from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _kept(x: Tensor) -> Tensor:
    """Detached, on the CPU, float32 unless it is float64."""
    x = x.detach().cpu()
    return x if x.dtype == torch.float64 else x.float()
