"""A mixer's memory in the cache that ``generate`` passes from call to call.

The cache is the model's own, of whatever class its version of ``transformers`` has: what a replayed
mixer remembers is read from it and written to it as the mixer's own code does. So there is one
memory, which beams, copies and resets of the cache change with everything else in it, and which
calls outside ``fast_scan`` go on from.

Shapes: b texts, K the length of the convolution, N states.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_mixers.exclusive_use import acting_thread
from mamba_mixers.mamba3 import Mamba3Cache, Mamba3Memory
from mamba_mixers.replay import MixerMemory
from mamba_mixers.sites import UnsupportedModelError


def read_memory(mixer: Any, cache: Any, cache_position: Tensor | None) -> MixerMemory | None:
    """What the mixer remembers in this cache; None where no token has been read yet.

    ``cache_position`` is what a mixer of ``transformers`` 4 is told beside its cache: the number of
    the first token at hand. Raises UnsupportedModelError for a cache of an unknown make, and for
    one that records its past to be cut back: a state cannot be.
    """
    if isinstance(cache, Mamba3Cache):
        return _of_mamba3(cache.memories.get(mixer.layer_idx))
    _check_known(mixer, cache)
    if not _has_read(mixer, cache, cache_position):
        return None
    window, state = _tensors(mixer, cache)
    reach = mixer.conv1d.weight.shape[-1] - 1
    return MixerMemory(window[..., window.shape[-1] - reach :].mT, state.flatten(1, -2))


def write_memory(mixer: Any, cache: Any, memory: MixerMemory) -> None:
    """Leave the memory after the last token in the cache, detached.

    The state keeps the precision of the scan where the cache's class allows it: a tensor for all
    layers, which Mamba-2 has in ``transformers`` 4, rounds it to the model's dtype, as there.
    """
    layer = mixer.layer_idx
    if isinstance(cache, Mamba3Cache):
        cache.memories[layer] = _to_mamba3(mixer, memory)
        return
    # The mixers keep one input more than the next token needs; it passes out unread.
    window = F.pad(memory.conv_input.detach().mT, (1, 0))
    state = memory.state.detach().reshape(_state_shape(mixer, memory.state))
    if hasattr(cache, "conv_states"):
        cache.conv_states[layer], cache.ssm_states[layer] = window.clone(), state.clone()
        return
    cache.update_conv_state(window, layer)
    cache.update_recurrent_state(state, layer)


def _of_mamba3(memory: Mamba3Memory | None) -> MixerMemory | None:
    if memory is None:
        return None
    state, written = (x.flatten(1, 2) for x in (memory.state, memory.written))
    return MixerMemory(state[:, :0], state, memory.angle, written)


def _to_mamba3(mixer: Any, memory: MixerMemory) -> Mamba3Memory:
    shape = (len(mixer.dt_bias), -1)
    tensors = (x.detach() for x in memory[1:] if x is not None)
    state, angle, written = tensors
    return Mamba3Memory(state.unflatten(1, shape), angle, written.unflatten(1, shape))


@contextmanager
def no_lost_beams(model: Any) -> Iterator[None]:
    """Within this context, ``model.generate`` of this thread refuses beams that lose their states.

    ``generate`` reorders the cache along with the beams, except in the Mamba models of
    ``transformers`` 4, whose cache it does not know: each beam would go on from another one's past.
    """
    if "cache_params" not in inspect.signature(type(model).forward).parameters:
        yield
        return
    generate, thread, is_own = model.generate, acting_thread(), "generate" in vars(model)

    @wraps(generate)
    def with_one_beam(*args: Any, **kwargs: Any) -> Any:
        if acting_thread() == thread and _num_beams(model, args, kwargs) > 1:
            raise RuntimeError(
                "a beam search needs use_cache=False: this version of transformers does not "
                f"reorder the states of {type(model).__name__} with its beams"
            )
        return generate(*args, **kwargs)

    model.generate = with_one_beam
    try:
        yield
    finally:
        if is_own:
            model.generate = generate
        else:
            del model.generate


def _num_beams(model: Any, args: tuple, kwargs: dict[str, Any]) -> int:
    """Beams of a call of ``generate`` that keeps a cache; 1 for one without."""
    config = kwargs.get("generation_config") or next(iter(args[1:2]), None)
    config = config or model.generation_config

    def option(name: str) -> Any:
        given = kwargs.get(name)
        return getattr(config, name) if given is None else given

    return 1 if option("use_cache") is False else option("num_beams") or 1


class Counted(NamedTuple):
    """How far the texts of a cache were read, and what edits keep of them."""

    tokens: Tensor
    """(b,) real tokens read"""
    kept: dict[Any, Tensor]
    """by an edit's key, (b, ...)"""


class _Noted(NamedTuple):
    """What was so when a mixer last wrote to a cache."""

    marks: Tensor
    """(b,) what tells the states of the rows apart"""
    counted: Counted


_COUNTED: WeakKeyDictionary[Any, dict[int, _Noted]] = WeakKeyDictionary()


def counted_before(mixer: Any, cache: Any, memory: MixerMemory | None) -> Counted | None:
    """What was counted of this cache's texts when ``memory`` was read from it.

    None where somebody else has read on since :func:`count_tokens`. Rows that were reordered or
    chosen meanwhile, as by a beam search, keep what is their own.
    """
    if memory is None:
        return Counted(torch.zeros(1, dtype=torch.long), {})
    noted = _COUNTED.get(cache, {}).get(mixer.layer_idx)
    if noted is None:
        return None
    (tokens, kept), marks = noted.counted, _row_marks(mixer, cache)
    if torch.equal(marks, noted.marks):  # states alike, of which an edit can keep unlike things
        return noted.counted
    alike = marks[:, None] == noted.marks
    if not bool(alike.any(1).all()):
        return None
    order = alike.int().argmax(1)
    return Counted(tokens[order], {key: x[order.to(x.device)] for key, x in kept.items()})


def count_tokens(mixer: Any, cache: Any, counted: Counted) -> None:
    """Note how far the texts are read with the memory just written, and what edits keep."""
    noted = _Noted(_row_marks(mixer, cache), counted)
    _COUNTED.setdefault(cache, {})[mixer.layer_idx] = noted


def _row_marks(mixer: Any, cache: Any) -> Tensor:
    """(b,) the sum of a row's bits read as whole numbers: exact, in whatever order it is taken."""
    state = _tensors(mixer, cache)[1].flatten(1).contiguous()
    return state.view(torch.int16).sum(1, dtype=torch.int64).cpu()


def _state_shape(mixer: Any, state: Tensor) -> tuple[int, ...]:
    """That of the mixer's own code: by channels, by heads of channels, or (Mamba-2) by heads."""
    rows, _, states = state.shape
    by_channel = mixer.A_log.dim() > 1
    return (rows, *mixer.A_log.shape) if by_channel else (rows, len(mixer.A_log), -1, states)


def _tensors(mixer: Any, cache: Any) -> tuple[Tensor, Tensor]:
    """The convolution's window (b, channels, K) and the state (b, ..., N) of this mixer's layer."""
    layer = mixer.layer_idx
    if isinstance(cache, Mamba3Cache):
        memory = cache.memories[layer]
        return memory.written, memory.state
    if hasattr(cache, "conv_states"):
        return cache.conv_states[layer], cache.ssm_states[layer]
    of_layer = cache.layers[layer]
    return _only(of_layer.conv_states), _only(of_layer.recurrent_states)


def _has_read(mixer: Any, cache: Any, cache_position: Tensor | None) -> bool:
    if hasattr(cache, "layers"):
        layers = cache.layers
        return mixer.layer_idx < len(layers) and _only(layers[mixer.layer_idx].has_previous_state)
    if hasattr(cache, "has_previous_state"):
        return bool(cache.has_previous_state)
    # The caches of Mamba models in version 4 hold zeros before the text, and count no tokens.
    return cache_position is not None and int(cache_position[0]) > 0


def _only(states: Any) -> Any:
    """Version 5.15 and later number the states of a layer; a mixer has one."""
    return states[0] if isinstance(states, dict) else states


def _check_known(mixer: nn.Module, cache: Any) -> None:
    of_version_4 = hasattr(cache, "conv_states") and hasattr(cache, "ssm_states")
    of_version_5 = all(hasattr(cache, name) for name in ("layers", "update_recurrent_state"))
    if not (of_version_4 or of_version_5):
        raise UnsupportedModelError(
            f"{type(mixer).__name__} was given a cache of class {type(cache).__name__}, which is "
            "none of those of transformers' Mamba models; pass the model's own, or use_cache=False"
        )
    layer: Any = mixer.layer_idx
    recording = getattr(cache, "is_recording_past", None)
    if recording is not None and layer < len(cache.layers) and recording(layer):
        raise UnsupportedModelError(
            "the cache records its past to be cut back, but the state of an SSM cannot be cut "
            "back; generate without an assistant model, or call with use_cache=False"
        )
