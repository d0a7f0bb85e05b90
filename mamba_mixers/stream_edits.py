"""The residual stream, changed where it enters a layer; everything else is the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mamba_mixers.calls import STREAMS, bound_by_name
from mamba_mixers.exclusive_use import exclusive_use, replaced_forward
from mamba_mixers.sites import blocks_of

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


def _entered(block: nn.Module, edit: StreamEdit) -> Callable[..., Any]:
    forward = block.forward

    def entered(*args: Any, **kwargs: Any) -> Any:
        if args:
            return forward(edit(args[0]), *args[1:], **kwargs)
        name = next(name for name in STREAMS if name in bound_by_name(block, args, kwargs))
        return forward(**{**kwargs, name: edit(kwargs[name])})

    return entered
