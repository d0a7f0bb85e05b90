"""Gradients led back through a model block by block, with the graph of one block in memory.

A forward pass keeps the residual stream before every block, and no graph: that of a block is made
by computing it a second time, when the gradient has come to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mamba_mixers.calls import STREAMS, bound_by_name, stream_of_output
from mamba_mixers.exclusive_use import exclusive_use, replaced_forward
from mamba_mixers.sites import blocks_of


class _Between(NamedTuple):
    """What a model, or a user's hook, makes of the stream between two blocks."""

    left: Tensor
    """what the one block gave"""
    entered: Tensor
    """what the next one got, on the graph"""


class _Call(NamedTuple):
    """A block as it was called, but for the residual stream."""

    forward: Callable[..., Any]
    given: dict[str, Any]
    stream: str
    """name of the argument that is the stream"""
    before: _Between | None
    """None where the stream came as the block before gave it"""


class KeptBlocks:
    """The blocks of one forward pass, and the residual stream before each."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._calls: list[_Call] = []
        self._streams = torch.empty(0)
        self._end: Tensor | None = None

    @property
    def end(self) -> Tensor:
        """(b, l, d_model) the stream after the last block, where the graph of the rest begins."""
        if self._end is None:
            raise RuntimeError("no forward pass has run within the context")
        return self._end

    def lead_back(
        self, gradient: Tensor, first: int, inside: Callable[[int], Sequence[Tensor]]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """From the last layer to ``first``: its number, and the gradients in tensors inside of it.

        ``gradient`` is that in `end`; ``inside(layer)`` is called when the layer has been computed
        again, and gives the tensors of it in which gradients are wanted. What a layer needs is let
        go of when it is done. Cost: a forward and a backward pass of these blocks.
        """
        while len(self._calls) > first:
            layer, call = len(self._calls) - 1, self._calls.pop()
            stream = self._streams[layer].detach().requires_grad_()
            output = stream_of_output(call.forward(**call.given, **{call.stream: stream}))
            gradient, *found = torch.autograd.grad(output, [stream, *inside(layer)], gradient)
            del output
            yield layer, found
            if call.before is not None:
                left, entered = call.before
                (gradient,) = torch.autograd.grad(entered, left, gradient)

    def keeping(self, block: nn.Module) -> Callable[..., Any]:
        """The block's ``forward`` that keeps its call and makes no graph."""
        forward = block.forward

        def kept(*args: Any, **kwargs: Any) -> Any:
            given = bound_by_name(block, args, kwargs)
            name = next(name for name in STREAMS if name in given)
            stream = given.pop(name)
            self._keep(_Call(forward, given, name, self._made_of(stream)), stream)
            with torch.no_grad():
                output = forward(**given, **{name: stream})
            self._end = stream_of_output(output).detach().requires_grad_()
            return (self._end, *output[1:]) if isinstance(output, tuple) else self._end

        return kept

    def _made_of(self, stream: Tensor) -> _Between | None:
        last = self._end
        return None if last is None or stream is last else _Between(last, stream)

    def _keep(self, call: _Call, stream: Tensor) -> None:
        if not self._calls:
            # One tensor: many small ones that stay would keep freed memory between them.
            self._streams = stream.new_empty((self._depth, *stream.shape), requires_grad=False)
        with torch.no_grad():
            self._streams[len(self._calls)].copy_(stream)
        self._calls.append(call)


@contextmanager
def kept_blocks(model: nn.Module) -> Iterator[KeptBlocks]:
    """Within this context one forward pass leaves its blocks to be led back through.

    The graph of what follows the last block is kept, that of the blocks is not. What a hook on a
    block, or the model, does to the stream between two blocks is on it. Raises
    UnsupportedModelError for a model without any SSM.
    """
    blocks = blocks_of(model)
    found = KeptBlocks(len(blocks))
    with ExitStack() as stack:
        stack.enter_context(exclusive_use(model))
        for block in blocks:
            stack.enter_context(replaced_forward(block, found.keeping(block)))
        yield found
