"""What a mixer or a block was called with, whatever a version of ``transformers`` calls it.

An argument is read by its name in the signature of ``forward``. What is neither known nor at its
default could change what the module computes, so it is refused and never passed over.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from mamba_mixers.sites import UnsupportedModelError

STREAMS = ("hidden_states", "input_states")
"""Names of a module's input in ``transformers`` 4.57 to 5.24."""

CACHES = ("cache", "cache_params", "past_key_values", "past_key_value")
"""Names of the memory of earlier calls: `cache` from 5.24 on."""

# Arguments that mixers take along, or get from a block's, and do not compute with without a cache.
_UNREAD = (
    "cache_position", "output_attentions", "output_hidden_states", "output_router_logits",
    "position_embeddings", "position_ids", "return_dict", "use_cache",
)  # fmt: skip


class MixerCall(NamedTuple):
    """The arguments of one call of a mixer."""

    hidden_states: Tensor
    """(b, l, d_model)"""
    attention_mask: Tensor | None
    cache: Any
    """memory of earlier calls, None for a call without one"""


def mixer_call(mixer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> MixerCall:
    """Hidden states, attention mask and cache of a call of a mixer.

    Raises UnsupportedModelError for an argument of another name that is not at its default (in
    ``**kwargs``: that is neither None nor False), and where no argument is the hidden states.
    """
    given = bound_by_name(mixer, args, kwargs)
    stream = next((name for name in STREAMS if name in given), None)
    if stream is None:
        raise UnsupportedModelError(
            f"{type(mixer).__name__} takes {', '.join(given)}; none of it is {' or '.join(STREAMS)}"
        )
    caches = [given[name] for name in CACHES if given.get(name) is not None]
    mixer_cache = caches[0] if caches else None
    _refuse_unknown(mixer, given)
    return MixerCall(given[stream], given.get("attention_mask"), mixer_cache)


def bound_by_name(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the module by name, those of ``**kwargs`` among them."""
    signature = forward_signature(type(module))
    bound = dict(signature.bind(module, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    bound.pop(next(iter(signature.parameters)))
    return bound


def stream_of_output(output: Any) -> Tensor:
    """The residual stream that a block gave; some models' blocks give a tuple."""
    return output[0] if isinstance(output, tuple) else output


@cache
def forward_signature(cls: type[nn.Module]) -> inspect.Signature:
    """Signature of the class's ``forward`` that names its input, or of the nearest base class's.

    A subclass's ``forward(self, *args, **kwargs)`` passes on to its base class, by whose names it
    is read.
    """
    own = inspect.signature(cls.forward)
    for base in cls.__mro__:
        forward = vars(base).get("forward")
        signature = inspect.signature(forward) if callable(forward) else None
        if signature is not None and set(STREAMS) & set(signature.parameters):
            return signature
    return own


def _refuse_unknown(mixer: nn.Module, given: Mapping[str, Any]) -> None:
    parameters = forward_signature(type(mixer)).parameters
    known = {*STREAMS, *CACHES, *_UNREAD, "attention_mask"}
    for name, value in given.items():
        if name in known or value is None:
            continue
        default = parameters[name].default if name in parameters else False
        if not (isinstance(value, type(default)) and value == default):
            raise UnsupportedModelError(
                f"{type(mixer).__name__} was called with {name}, which changes what it computes "
                "in a way that is not replayed; call the model without it"
            )
