"""The residual stream, changed where it enters a layer; everything else is the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mamba_mixers.caches import counted_before, read_memory
from mamba_mixers.calls import CACHES, STREAMS, bound_by_name
from mamba_mixers.exclusive_use import exclusive_use, replaced_forward
from mamba_mixers.sites import blocks_of, find_mixers
from mamba_mixers.token_positions import TokensRead, reading
from suite_plumbing.messages import quoted

StreamEdit = Callable[[Tensor], Tensor]


@contextmanager
def edited_streams(model: nn.Module, edits: Mapping[int, StreamEdit]) -> Iterator[nn.Module]:
    """Within this context the stream (b, l, d_model) that enters a layer is ``edits[layer]`` of it.

    Layers with an SSM and without. Of contexts within each other, the outer one's edit of a layer
    is made last. Works inside ``fast_scan`` and around it, in ``generate`` and in this thread
    alone; restored on leaving. Raises ValueError for a layer that the model does not have.
    """
    blocks = blocks_of(model)
    if unknown := sorted(set(edits) - set(range(len(blocks)))):
        raise ValueError(f"edits names layers {unknown}; the model has 0 to {len(blocks) - 1}")
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for layer, edit in edits.items():
            stack.enter_context(replaced_forward(blocks[layer], _entered(blocks[layer], edit)))
        yield model


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context ``token_positions`` tells edits of the stream which tokens a call brings.

    As it tells edits of mixers. With a cache inside ``fast_scan`` with an edit, whatever it is, of
    the first layer with an SSM, by whose memory the tokens are counted. Raises ValueError where a
    call's attention mask is none of tokens, (b, tokens read so far and now).
    """
    first = next(iter(find_mixers(model).values())).mixer
    # Not the model around it, whose signature ``generate`` reads.
    backbone: Any = getattr(model, "base_model", model)
    forward = backbone.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with reading(_tokens_of(first, bound_by_name(backbone, args, kwargs))):
            return forward(*args, **kwargs)

    with exclusive_use(model), replaced_forward(backbone, counted):
        yield model


def _tokens_of(mixer: Any, given: Mapping[str, Any]) -> TokensRead:
    """The tokens that a call of the model brings."""
    ids = given.get("input_ids")
    length = (given["inputs_embeds"] if ids is None else ids).shape[1]
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {quoted(shape)}; tokens are counted by one of (b, l)")
    mask = None if mask is None else mask[:, -length:]
    cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
    if cache is None:
        return TokensRead(mask, None, in_parts=False)
    memory = read_memory(mixer, cache, given.get("cache_position"))
    counted = counted_before(mixer, cache, memory)
    return TokensRead(mask, None if counted is None else counted.tokens, in_parts=True)


def _entered(block: nn.Module, edit: StreamEdit) -> Callable[..., Any]:
    forward = block.forward

    def entered(*args: Any, **kwargs: Any) -> Any:
        if args:
            return forward(edit(args[0]), *args[1:], **kwargs)
        name = next(name for name in STREAMS if name in bound_by_name(block, args, kwargs))
        return forward(**{**kwargs, name: edit(kwargs[name])})

    return entered
