"""One forward pass of a model, recorded: mixers replayed, and the residual stream around them.

A mixer is replayed: from the input that it received in a forward pass, its own modules and the
suite's own scan, its intermediate quantities are computed again (u, delta, B, C, gate, y), and the
output that follows from them is compared with the output that the mixer really gave. Hooks inside
a mixer would not do: on current ``transformers`` those on ``conv1d`` and ``dt_proj`` never fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mamba_mixers.calls import STREAMS, bound_by_name, mixer_call, stream_of_output
from mamba_mixers.exclusive_use import exclusive_use, replaced_forward
from mamba_mixers.hooks import forward_hooks
from mamba_mixers.replay import MixerReplay, replay_mixer
from mamba_mixers.sites import MixerSite, UnsupportedModelError, blocks_of, find_mixers


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


def block_output_scale(site: MixerSite) -> float:
    """What the block multiplies the mixer's output by before adding it to the stream."""
    name = site.family.output_scale
    return float(getattr(site.block, name)) if name else 1.0


@torch.no_grad()
def record_layers(
    model: nn.Module, layers: list[int], input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[int, LayerRecord]:
    """Run the model once and record these layers; the forward stops after the last of them.

    The model itself runs its own code, untouched: what is recorded is what it computes, and
    ``replay_error`` says how well the replay reproduces it. Hooks are removed after any exception;
    another thread that records or changes this model waits. Ids at padding may be any number.
    Raises UnsupportedModelError, also for a mixer that a pass calls twice, KeyError for a layer
    without a mixer, and RuntimeError when a mixer was never called.
    """
    sites = find_mixers(model)
    records: dict[int, LayerRecord] = {}
    last = max(layers)
    outputs: dict[int, tuple[MixerReplay, Tensor]] = {}

    def on_mixer(layer: int):
        def hook(mixer, args, kwargs, output):
            if layer in outputs or layer in records:
                raise UnsupportedModelError(
                    f"the mixer of layer {layer} runs more than once in a forward pass; the suite "
                    "reads models in which each runs once"
                )
            call = mixer_call(mixer, args, kwargs)
            replay = replay_mixer(sites[layer], call.hidden_states, call.attention_mask)
            outputs[layer] = replay, output

        return hook

    def on_block(layer: int):
        def hook(block, args, kwargs, output):
            block_input, block_output = stream_around(block, args, kwargs, output)
            replay, mixer_output = outputs.pop(layer)
            error = _relative_error(replay.output, mixer_output, attention_mask)
            records[layer] = LayerRecord(
                replay,
                mixer_output,
                error,
                block_input,
                block_output,
                block_output_scale(sites[layer]),
            )
            if layer == last:
                raise _LastLayerReached

        return hook

    hooks = [(sites[layer].mixer, on_mixer(layer)) for layer in layers]
    hooks += [(sites[layer].block, on_block(layer)) for layer in layers]
    _run_to_the_last(model, hooks, input_ids, attention_mask)
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
            streams[layer] = stream_around(block, args, kwargs, output)
            if layer == max(layers):
                raise _LastLayerReached

        return hook

    hooks = [(blocks[layer], on_block(layer)) for layer in layers]
    _run_to_the_last(model, hooks, input_ids, attention_mask)
    return streams


@contextmanager
def observing_streams(
    model: nn.Module, layers: Sequence[int], observe: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Within this context ``observe(layer, stream)`` sees the residual stream (b, l, d_model) after
    each of these layers, in every forward pass of this thread, `fast_scan`'s included.

    Raises UnsupportedModelError for a model without any SSM. Hooks are removed whatever happens.
    """
    with observing_blocks(model, layers, lambda layer, _, after: observe(layer, after)):
        yield


@contextmanager
def observing_blocks(
    model: nn.Module, layers: Sequence[int], observe: Callable[[int, Tensor, Tensor], None]
) -> Iterator[None]:
    """As `observing_streams`, of ``observe(layer, before, after)``: the stream on both sides."""
    blocks = blocks_of(model)

    def on_block(layer: int):
        def hook(block, args, kwargs, output):
            observe(layer, *stream_around(block, args, kwargs, output))

        return hook

    with forward_hooks([(blocks[layer], on_block(layer)) for layer in layers]):
        yield


@contextmanager
def kept_streams(model: nn.Module) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Within this context a forward pass leaves the residual stream before and after every layer.

    (b, l, d_model) each, on the graph of the pass. The one before layer 0 is a node of its own
    there: what Zamba and Zamba2 read of the embeddings again does not reach its gradient. A later
    pass overwrites an earlier one. Raises UnsupportedModelError for a model without any SSM.
    """
    streams: dict[int, tuple[Tensor, Tensor]] = {}
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for layer, block in enumerate(blocks_of(model)):
            stack.enter_context(replaced_forward(block, _keeping(block, layer, streams)))
        yield streams


def _keeping(block: nn.Module, layer: int, streams: dict) -> Callable[..., Any]:
    """The block's ``forward`` that keeps the stream around it."""
    forward = block.forward

    def keeping(*args: Any, **kwargs: Any) -> Any:
        given = bound_by_name(block, args, kwargs)
        name = next(name for name in STREAMS if name in given)
        if layer == 0 and torch.is_grad_enabled():
            given[name] = given[name].clone()
        output = forward(**given)
        streams[layer] = given[name], stream_of_output(output)
        return output

    return keeping


def _run_to_the_last(model: Any, hooks: list, input_ids: Tensor, mask: Tensor | None) -> None:
    # A padding id may be one that the embedding does not have: its row is masked.
    ids = input_ids if mask is None else input_ids.masked_fill(mask == 0, 0)
    with exclusive_use(model), forward_hooks(hooks), suppress(_LastLayerReached):
        model(input_ids=ids, attention_mask=mask, use_cache=False)


class _LastLayerReached(Exception):
    """Ends a forward pass whose later layers nobody asked for."""


def stream_around(
    block: nn.Module, args: tuple, kwargs: dict, output: Any
) -> tuple[Tensor, Tensor]:
    """The residual stream that a block got and gave; some models' blocks give a tuple."""
    given = bound_by_name(block, args, kwargs)
    block_input = next(given[name] for name in STREAMS if name in given)
    return block_input, stream_of_output(output)


def _relative_error(replayed: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
    """(b,) norm of the difference over that of the real output, without padding."""
    real = real.double()
    keep = torch.ones_like(real[..., :1]) if mask is None else mask[:, :, None].to(real)
    difference = ((replayed.double() - real) * keep).flatten(1).norm(dim=1)
    scale = (real * keep).flatten(1).norm(dim=1)
    return difference / scale.clamp_min(torch.finfo(torch.float32).tiny)
