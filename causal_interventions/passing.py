"""Whether a later layer reads what an earlier one writes: the write is cut, the output compared.

Correlation of two layers' outputs says that they go together, not that anything passes between
them: both may read the same token. Here what layer a adds to the residual stream is taken out at
every token, the layers from a + 1 on run, and the mixer output of layer b is compared with the one
without the cut.

Beside it, as its control, the same where layer a writes in another direction: its write with the
coordinates exchanged and their signs drawn at random, alike at all tokens, so that its norm and its
course over time stay, stands in the stream, and is cut. Norms divide by what is in the stream:
another direction that was taken out of a stream without it would leave more there than the cut
does, and be outdone by it in a model of random weights as well. Where weights are random every
direction is like the write's own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
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

RARE = 1 / 41
"""How often chance alone may make all pairs of layers of a run the largest of their directions."""


def directions_for(num_pairs: int) -> int:
    """How many other directions a claim over so many pairs of layers needs: NUM_DIRECTIONS, and
    more where the write would be the largest in all pairs with a probability above `RARE`."""
    return max(NUM_DIRECTIONS, math.ceil(RARE ** (-1 / num_pairs)) - 1)


class Passing(NamedTuple):
    """How much a later layer's output changes when an earlier layer writes nothing."""

    layers: tuple[int, int]
    """(a, b)"""
    cut: float | None
    """norm of the change of b's mixer output over that of the output, all tokens, >= 0; None where
    b's output is 0"""
    directions: tuple[float, ...]
    """the same where a writes in another direction, and that is cut"""
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
    layers in another order, and num_directions < 1. The directions are those of the pair of layers
    and the seed, whatever the text: texts are no trials of their own, for whether a direction is a
    special one is a matter of the weights. Cost: the layers after ``first``, for
    2 + num_directions rows.
    """
    first, second = validate_int("first", first, 0), validate_int("second", second, 0)
    if not first < second:
        raise ValueError(f"layers are {first} and {second}; the first must come before the second")
    validate_int("num_directions", num_directions, 1)
    validate_int("seed", seed, 0)
    if len(captured.input_ids) != 1 or not bool(captured.attention_mask.all()):
        raise ValueError(
            f"captured has {len(captured.input_ids)} texts, or padding; pass captured.text(row)"
        )
    written = extracted_layer(captured.components, first, "capture").written[0]
    own = int(np.random.SeedSequence([seed, first, second]).generate_state(1)[0])
    writes = [written, *_directions(written, num_directions, own)]
    stream = captured.block_outputs[first][0]
    without = stream - written.to(stream)
    rows = torch.stack([without, stream, *(without + write.to(stream) for write in writes[1:])])
    cut, *full = _outputs(model, captured, first + 1, second, rows)
    if float(full[0].norm()) == 0:
        return Passing((first, second), None, (), f"layer {second} writes nothing")
    change, *others = (_owed(one, cut) for one in full)
    return Passing((first, second), change, tuple(others), None)


def _owed(output: Tensor, cut: Tensor) -> float:
    """Share of an output's norm by which it changes with the cut; 0 for an output of 0."""
    size = float(output.norm())
    return float((output - cut).norm()) / size if size > 0 else 0.0


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
