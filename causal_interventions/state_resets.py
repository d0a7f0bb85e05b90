"""What erasing a layer's state costs the next predictions: one erasure a layer, in one pass.

A text is read up to some token, and goes on in a row for each layer tried, with the state of that
layer erased there, beside a row with nothing erased and one with the states of all layers. A
layer's row begins at that layer: before it, it is the row with nothing erased. What the
convolutions know of the last tokens stays. The cost is the loss of the next tokens with the
state erased minus that without. Chance: the same with other tokens of the text in place of those
that really come next, taken from k tokens before them, in all texts from as many: what an erasure
does to any token is no cost of what comes.

A layer whose state is erased alone no longer goes with the others: its cost is no sign that what it
held is needed. Of that the erasure of all states tells, from FIRST_LATE on: before, few of the last
tokens have been read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mamba_mixers.replay import MixerMemory
from mamba_mixers.running import fast_scan, row_added_before
from suite_plumbing.models import execution_device
from token_statistics.description import FloatArray

MAX_LAYERS = 16
"""Layers whose states are erased one by one; of a deeper model so many, evenly spaced."""

_SHARE_READ_ON = 0.35

_LEAST_READ_ON = 200

RESET_SHIFTS = 199
"""Draws of the null: the tokens that come next are taken from 1 to 199 tokens before."""

FIRST_LATE = 3
"""After all states are erased, the prediction from which on four tokens or more have been read."""


class ResetCosts(NamedTuple):
    """Erasures in one text: nats, sums over the predictions after them."""

    layers: tuple[int, ...]
    by_layer: FloatArray
    """(1 + RESET_SHIFTS, layers) change of -ln p of the next tokens, then under each shift"""
    by_layer_late: FloatArray
    """(layers,) of by_layer's first row, what predictions from FIRST_LATE on cost"""
    all_states: FloatArray
    """(1 + RESET_SHIFTS,) all layers' states erased, predictions from FIRST_LATE on"""
    num_predictions: int
    """behind by_layer"""
    num_late: int
    """behind all_states and by_layer_late"""


def erased_layers(layers: Sequence[int]) -> list[int]:
    """At most MAX_LAYERS of these, evenly spaced, the first and the last among them."""
    last, count = len(layers) - 1, min(len(layers), MAX_LAYERS)
    return [layers[i * last // max(1, count - 1)] for i in range(count)]


def tokens_read_on(length: int, num_layers: int) -> int:
    """Tokens at the end of a text that are read once more for each of so many layers and twice.

    Over all rows 35 % of the text or 200 tokens; in a row 8 to 64, and at most a quarter of the
    text.
    """
    rows = num_layers + 2
    wanted = int(max(_LEAST_READ_ON, _SHARE_READ_ON * length)) // rows
    return min(max(8, wanted), 64, length // 4)


@torch.no_grad()
def reset_costs(
    model: PreTrainedModel,
    memories: Mapping[int, MixerMemory],
    input_ids: Sequence[int],
    start: int,
    layers: Sequence[int],
) -> ResetCosts:
    """Costs of erasing the state of each of ``layers`` before token ``start``, over what follows.

    ``memories``: of all SSM layers after the tokens before ``start``, as `fast_scan` leaves them.
    Raises ValueError unless 2 <= start <= l - 2. Cost: one pass over the rest of the text for each
    layer, from that layer on, and twice more, batched.
    """
    length = len(input_ids)
    if not 2 <= start <= length - 2:
        raise ValueError(f"start is {start}; a text of {length} tokens allows 2 to {length - 2}")
    rest = torch.tensor([input_ids[start:]], device=execution_device(model))
    rows = {layer: _in_rows(layer, memory, layers) for layer, memory in memories.items()}
    with row_added_before(model, layers), fast_scan(model, memories=rows):
        logits = model(input_ids=rest.expand(2, -1), use_cache=False, return_dict=True).logits
    change = _loss_changes(logits[:, :-1], torch.tensor(input_ids), start)
    order = np.argsort(np.argsort(layers))  # rows come by depth
    by_layer, late = (change[:, :, start:].sum(2).cpu().numpy() for start in (0, FIRST_LATE))
    return ResetCosts(
        tuple(layers),
        by_layer[:, 2:][:, order],
        late[0, 2:][order],
        late[:, 1],
        change.shape[2],
        max(0, change.shape[2] - FIRST_LATE),
    )


def _in_rows(layer: int, memory: MixerMemory, layers: Sequence[int]) -> MixerMemory:
    """A layer's memory in the rows that have come so far: nothing erased, all, one a layer.

    Its state is erased in the second and, where it is one of those tried, in the last.
    """
    so_far = sum(other <= layer for other in layers)
    rows = memory.each(lambda x: x.expand(so_far + 2, *x.shape[1:]).clone())
    # In Mamba-3 the next token still writes a share of the last one: that is memory too.
    for erased in (rows.state, rows.written):
        if erased is not None:
            erased[1] = 0.0
            if layer in layers:
                erased[-1] = 0.0
    return rows


def _loss_changes(logits: Tensor, ids: Tensor, start: int) -> Tensor:
    """(1 + RESET_SHIFTS, rows, predictions) -ln p minus that of row 0, of the tokens that come
    next, and of those 1, 2, ... tokens before them."""
    ids = ids.to(logits.device)
    normaliser = logits.float().logsumexp(-1)
    following = torch.arange(start + 1, start + 1 + logits.shape[1], device=logits.device)
    shifts = torch.arange(1 + RESET_SHIFTS, device=logits.device)
    # A shift by the text's length would be none.
    shifts[1:] = 1 + (shifts[1:] - 1) % (len(ids) - 1)
    tokens = ids[(following - shifts[:, None]) % len(ids)]
    chosen = tokens.T.expand(len(logits), -1, -1)
    log_p = logits.float().gather(2, chosen) - normaliser.unsqueeze(2)
    return (log_p[:1] - log_p).permute(2, 0, 1).double()
