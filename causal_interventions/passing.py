"""Whether a later layer reads what an earlier one writes: the write is cut, the output compared.

Correlation of two layers' outputs says that they go together, not that anything passes between
them: both may read the same token. Here what layer a adds to the residual stream is taken out at
every token, the layers from a + 1 on run, and the mixer output of layer b is compared with the one
without the cut. Beside it, as its control, changes of the same size: the same write with its
coordinates exchanged and their signs drawn at random, alike at all tokens, so that its norm and its
course over time stay and its direction is another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mamba_mixers.replay import MixerReplay
from mamba_mixers.running import fast_scan, forward_from
from ssm_measures.components import Capture, extracted_layer
from suite_plumbing.arguments import torch_rng, validate_int
from suite_plumbing.models import execution_device

NUM_DIRECTIONS = 4
"""Default number of other directions beside a cut: where the write is one of them, it is the
largest of all with probability 1 / 5."""


class Passing(NamedTuple):
    """How much a later layer's output changes when an earlier layer writes nothing."""

    layers: tuple[int, int]
    """(a, b)"""
    cut: float | None
    """norm of the change of b's mixer output over that of the output, all tokens, >= 0; None where
    b's output is 0"""
    directions: tuple[float, ...]
    """the same when a's write in another direction is taken out instead"""
    reason: str | None
    """why ``cut`` is None"""

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "layers": list(self.layers),
            "cut": self.cut,
            "directions": list(self.directions),
            "reason": self.reason,
        }


@torch.no_grad()
def passing(
    model: PreTrainedModel,
    captured: Capture,
    first: int,
    second: int,
    *,
    num_directions: int = NUM_DIRECTIONS,
    seed: int = 0,
) -> Passing:
    """Effect on the mixer output of layer ``second`` of cutting what layer ``first`` writes.

    ``captured``: one text without padding, with layer ``first``. The effect is total: what the
    layers between make of the write counts. Raises ValueError for a batch, a layer not captured,
    layers in another order, and num_directions < 1. Cost: the layers after ``first``, for
    2 + num_directions rows.
    """
    first, second = validate_int("first", first, 0), validate_int("second", second, 0)
    if not first < second:
        raise ValueError(f"layers are {first} and {second}; the first must come before the second")
    validate_int("num_directions", num_directions, 1)
    if len(captured.input_ids) != 1 or not bool(captured.attention_mask.all()):
        raise ValueError(
            f"captured has {len(captured.input_ids)} texts, or padding; pass captured.text(row)"
        )
    written = extracted_layer(captured.components, first, "capture").written[0]
    taken = [torch.zeros_like(written), written, *_directions(written, num_directions, seed)]
    stream = captured.block_outputs[first][0]
    rows = stream - torch.stack(taken).to(stream)
    outputs = _outputs(model, captured, first + 1, second, rows)
    size = float(outputs[0].norm())
    if size == 0:
        return Passing((first, second), None, (), f"layer {second} writes nothing")
    cut, *others = ((one - outputs[0]).norm().item() / size for one in outputs[1:])
    return Passing((first, second), cut, tuple(others), None)


def _directions(written: Tensor, count: int, seed: int) -> list[Tensor]:
    """The write (l, d_model) with coordinates exchanged and signs drawn, ``count`` times."""
    generator = torch_rng(seed)
    found = []
    for _ in range(count):
        order = torch.randperm(written.shape[1], generator=generator)
        signs = torch.randint(0, 2, (written.shape[1],), generator=generator) * 2 - 1
        found.append(written[:, order] * signs)
    return found


def _outputs(
    model: PreTrainedModel, captured: Capture, entered: int, read: int, rows: Tensor
) -> Tensor:
    """(rows, l, d_model) float64 mixer outputs of layer ``read`` where the streams enter."""
    seen: dict[int, Tensor] = {}

    def observe(layer: int, replay: MixerReplay) -> None:
        if layer == read:
            seen[layer] = replay.output.double().cpu()

    device = execution_device(model)
    ids = captured.input_ids.to(device).expand(len(rows), -1)
    with fast_scan(model, observe=observe):
        forward_from(model, entered, rows.to(device), ids)
    return seen[read]
