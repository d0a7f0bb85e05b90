"""Layers that read chosen sums of what the layers before them wrote, in place of all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mamba_mixers.calls import STREAMS, bound_by_name
from mamba_mixers.exclusive_use import exclusive_use, replaced_forward
from mamba_mixers.sites import blocks_of

Reader = Callable[[int, list[Tensor]], Tensor]


@contextmanager
def rewired(model: nn.Module, read: Reader) -> Iterator[None]:
    """Within this context layer m reads ``read(m, written)`` in place of the residual stream.

    ``written`` lists what was written so far in this pass, (b, l, d_model) each: the stream that
    enters layer 0, then of every layer its output less its input. Their sum is the stream. The
    stream that becomes logits is ``read(number of layers, written)``. Restored on leaving. Raises
    UnsupportedModelError for a model without an SSM.
    """
    blocks, written = blocks_of(model), []
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for layer, block in enumerate(blocks):
            is_last = layer == len(blocks) - 1
            forward = _rewired_forward(block, layer, is_last, read, written)
            stack.enter_context(replaced_forward(block, forward))
        yield


def _rewired_forward(
    block: nn.Module, layer: int, is_last: bool, read: Reader, written: list[Tensor]
) -> Callable[..., Any]:
    forward = block.forward

    def rewired_forward(*args: Any, **kwargs: Any) -> Any:
        given = bound_by_name(block, args, kwargs)
        name = next(name for name in STREAMS if name in given)
        if layer == 0:
            written[:] = [given[name]]
        given[name] = read(layer, written)
        output = forward(**given)
        after = output[0] if isinstance(output, tuple) else output
        written.append(after - given[name])
        if not is_last:
            return output
        stream = read(layer + 1, written)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    return rewired_forward
