"""Interventions in a Mamba's memory: small pieces that compose, each exact.

An intervention is ``{layer: LayerEdit}``, what ``mamba_mixers.fast_scan`` takes as ``edits``: the
mixer computes everything that follows from the changed quantity by its own code.

    with fast_scan(model, edits=compose(reset_state(12, [3]), scale_delta(0.5, [5]))):
        logits = model(input_ids, use_cache=False).logits

Rows. Where a piece takes a token (or neurons) for each row, one text branches into that many rows
at the first edited layer; the layers before it run once. A single token holds for every row. Tokens
are counted from the first real one of each row. Letters: the glossary of ``selective_scan``.

``model.generate`` works with all pieces that need no token yet to come: ``reset_state``,
``scale_delta``, ``hide_source``, ``patch_state`` and ``set_neuron`` to zero, to what the whole text
read at once gives. ``freeze_delta`` and ``set_neuron`` to other values need the whole text and
refuse (ValueError) a call with a cache. In one, a token that never comes changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mamba_mixers.replay import EDITABLE
from mamba_mixers.token_positions import (
    entered_before,
    keep_for_edit,
    kept_by_edit,
    reads_in_parts,
    token_positions,
    tokens_read_before,
)
from selective_scan.scan import selective_scan_chunk
from ssm_measures.components import SSMComponents
from suite_plumbing.arguments import validate_choice, validate_int, validate_number, whole_numbers
from suite_plumbing.messages import quoted

T = TypeVar("T")


Layers = int | Sequence[int]

Rows = int | Sequence[int] | Tensor
"""A number for every row, or one for each row, (rows,)."""

NEURON_VALUES = ("zero", "mean")
"""What :func:`set_neuron` can set a neuron to by name; "mean" is over the tokens of its text."""


class Change(NamedTuple):
    """What happens to one stage of a mixer."""

    stage: str
    """one of ``mamba_mixers.EDITABLE``"""
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    """(tensor, stages before it as they were in the end) -> tensor; not in place"""
    num_rows: int
    """rows that it is made for; 1 fits any number"""
    hidden: tuple[tuple[int, int | None], ...] = ()
    """(source, query) that each row hides; query None is every later token"""


class LayerEdit:
    """The changes of one layer as an edit (stage, tensor) -> tensor, in order.

    A change sees what earlier stages were after every change of theirs: hiding a source under a
    scaled delta hides what that source contributes under the scaled delta.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = tuple(changes)
        _check_hidden_once(self.changes)
        self.num_rows = _common_rows(self.changes)
        # The scan's operands must have a row each; the neurons can branch after it.
        late = all(change.stage == "gated" for change in changes if change.num_rows > 1)
        self._branches_at = "gated" if late else "u"
        # By thread: models of several threads may be run under one intervention.
        self._seen: dict[int, dict[str, Tensor]] = {}

    def __call__(self, stage: str, x: Tensor) -> Tensor:
        thread = threading.get_ident()
        seen = self._seen.setdefault(thread, {}) if stage != EDITABLE[0] else {}
        self._seen[thread] = seen
        if stage == self._branches_at:
            x = self._branched(x)
        for change in self.changes:
            if change.stage == stage:
                x = change.function(x, seen)
        seen[stage] = x
        if stage == EDITABLE[-1]:
            del self._seen[thread]
        return x

    def _branched(self, x: Tensor) -> Tensor:
        if self.num_rows > 1 and len(x) not in (1, self.num_rows):
            raise ValueError(
                f"the intervention is made for {self.num_rows} rows, the batch has {len(x)}; pass "
                f"one text, or {self.num_rows}"
            )
        return x.expand(max(len(x), self.num_rows), *x.shape[1:])


Intervention = dict[int, LayerEdit]


def compose(*interventions: Mapping[int, LayerEdit]) -> Intervention:
    """All of these interventions in one: within a stage of a layer, the first one acts first.

    Raises ValueError where they are made for different numbers of rows.
    """
    layers = sorted({layer for one in interventions for layer in one})
    changes = {
        layer: [change for one in interventions if layer in one for change in one[layer].changes]
        for layer in layers
    }
    composed = {layer: LayerEdit(of_layer) for layer, of_layer in changes.items()}
    _common_rows([change for of_layer in changes.values() for change in of_layer])
    return composed


def reset_state(token: Rows, layers: Layers) -> Intervention:
    """Forget everything before ``token``: its state starts from h_{token-1} = 0.

    From this token on y holds of earlier ones what the convolution brings, no more. So a reset in
    every layer is no cut through the model: the tokens just before it remember, and the next
    layers' convolutions read them. A reset at token 0 changes nothing. The token must exist
    (ValueError when the text runs). No extra cost.
    """
    tokens = _row_numbers("token", token)

    def change(carry: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        return carry.masked_fill(_at(tokens, "token", carry), 0.0)

    return _in_layers(layers, Change("carry", change, len(tokens)))


def scale_delta(
    factor: float, layers: Layers, tokens: Sequence[int] | Tensor | None = None
) -> Intervention:
    """Multiply delta by ``factor`` > 0 in every channel: at all tokens, or at some.

    Above 1 a token writes more and forgets more. ``tokens`` holds for every row, or is (rows, k).
    Raises ValueError for a factor that is not a positive number.
    """
    factor = validate_number("factor", factor)
    if factor <= 0:
        raise ValueError(f"factor is {factor}; it must be a positive number")
    chosen = None if tokens is None else _number_table("tokens", tokens)

    def change(delta: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        if chosen is None:
            return delta * factor
        marked = _marked_tokens(chosen, "tokens", delta)
        return torch.where(_like(marked, delta), delta * factor, delta)

    return _in_layers(layers, Change("delta", change, 1 if chosen is None else len(chosen)))


def freeze_delta(layers: Layers) -> Intervention:
    """Set delta of each channel to its mean over the text: a fixed step, no longer selective.

    With a cache the mean would be over tokens that are yet to come: refused (ValueError).
    """

    def change(delta: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        _check_whole("freeze_delta")
        return delta.mean(1, keepdim=True).expand_as(delta)

    return _in_layers(layers, Change("delta", change, 1))


def hide_source(source: Rows, layers: Layers, query: Rows | None = None) -> Intervention:
    """Knock out what ``source`` gives later tokens through the state: y_t - alpha[t, s] u_s.

    For every t > s, or for t = ``query`` >= s alone. What the source gives through D, the
    convolution and its own residual stream stays, and so does what every other source gives (in a
    Mamba-3 of several ranks with a norm, as it was normed before). By a
    second scan in which this source alone writes, so that alpha is never built. Raises ValueError
    for a query before its source; when the text runs, for a token that it does not have, or with a
    cache for a source that was read before the edit came; and when composed with a piece that hides
    the same source from the same query of a layer, for what it gives would be taken out twice.
    Cost: one more scan, O(l H P N); with a cache a second state beside it.
    """
    sources = _row_numbers("source", source)
    queries = None if query is None else _row_numbers("query", query)
    if queries is not None and len({len(sources), len(queries)} - {1}) > 1:
        raise ValueError(f"{len(queries)} queries for {len(sources)} sources; pass as many, or one")
    if queries is not None and bool((queries < sources).any()):
        raise ValueError(f"query is {query}, source {source}; a source is read at or after itself")

    def change(y: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        u, delta, A, B, C = _scan_operands(seen)
        writes = _at(sources, "source", y)
        reads = token_positions(y) > sources.to(y.device)[:, None]
        reads = reads if queries is None else _at(queries, "query", y)
        written = u * _like(writes, u)
        alone, left = selective_scan_chunk(
            written, delta, A, B, C, None, _written_before(change, sources, u),
            carry=seen["carry"], own_share=seen.get("own_share"),
        )  # fmt: skip
        keep_for_edit(change, left)
        return y - alone * _like(reads, y)

    heard = [None] * len(sources) if queries is None else queries.tolist()
    rows = max(len(sources), len(heard))
    pairs = zip(_each_row(sources.tolist(), rows), _each_row(heard, rows), strict=True)
    return _in_layers(layers, Change("y", change, rows, tuple(pairs)))


def set_neuron(
    layer: int, neurons: Rows | Sequence[Sequence[int]], value: str | Tensor = "zero"
) -> Intervention:
    """Set neurons, channels of the gated output, to zero, to their mean, or to other values.

    ``neurons``: numbers set together in every row, or (rows, k). ``value``: one of
    ``NEURON_VALUES``, or the gated output (l, d_inner) or (b, l, d_inner) of another text of the
    same length, of which these channels are taken. Raises ValueError for an unknown value, and
    when the text runs for a neuron that does not exist or values of another shape; with a cache for
    any value but "zero", for the text's mean and length are those of tokens yet to come.
    """
    if not isinstance(value, Tensor):
        validate_choice("value", value, NEURON_VALUES)
    chosen = _number_table("neurons", neurons)

    def change(gated: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        marked = _marked(chosen, gated.shape[2], "neurons", gated.device)
        if isinstance(value, Tensor) or value == "mean":
            _check_whole("set_neuron to other values than zero")
        if isinstance(value, Tensor):
            new = _values_like(value, gated)
        else:
            new = gated.mean(1, keepdim=True) * float(value == "mean")
        return torch.where(marked[:, None], new, gated)

    return _in_layers(layer, Change("gated", change, len(chosen)))


def hold_layers(components: Mapping[int, SSMComponents], layers: Layers) -> Intervention:
    """Let layers write what they wrote in this text as it was, whatever reaches them.

    ``components`` by layer, of one text without padding. Composed with an intervention in an
    earlier layer, what is left is its direct effect: what that layer adds to the stream goes to the
    prediction past these. Attention and feed-forward layers of a hybrid stay free. Raises
    ValueError for a layer that ``components`` lack. No extra cost.
    """
    numbers = [layers] if isinstance(layers, int) else list(layers)
    if missing := sorted(set(numbers) - set(components)):
        raise ValueError(f"layers {missing} were not captured; those that were: {[*components]}")
    return compose(
        *(set_neuron(i, range(components[i].gated.shape[2]), components[i].gated) for i in numbers)
    )


def patch_state(layer: int, token: Rows, state: Tensor) -> Intervention:
    """Put ``state`` in place of the state h after ``token``; later tokens go on from it.

    ``state``: (d_inner, N), or one for each row, (rows, d_inner, N): see :func:`state_after`. y_t
    for t > token is what the scan gives from that state; y up to the token stays. A reset at the
    token that follows has no effect on the patched state. A Mamba-3's state is that of its own text
    and token, in a frame that turns: `activation_patching` turns it for another. Raises ValueError
    for a state of another shape, and when the text runs for a token that it does not have, or with
    a cache for one that was passed before the edit came. Cost: one more scan; with a cache a second
    state beside it.
    """
    tokens = _row_numbers("token", token)
    if not isinstance(state, Tensor):
        raise ValueError(f"state is of type {type(state).__name__}; pass a tensor (d_inner, N)")
    if state.dim() not in (2, 3) or not state.is_floating_point():
        raise ValueError(f"state has shape {tuple(state.shape)}; pass (d_inner, N) of one text")
    states = state if state.dim() == 3 else state[None]

    def cut(carry: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        _at(tokens, "token", carry)
        return carry.masked_fill(_since(tokens, carry) == 1, 0.0)

    def add(y: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        _check_no_rank_norm(seen)
        u, delta, A, B, C = _scan_operands(seen)
        since = _since(tokens, y)
        # Without a step nothing decays: the state reaches its token as it is.
        step = delta * _like(since > 0, delta)
        kept = torch.where(since > 1, seen["carry"], 1.0)
        initial = kept_by_edit(add)
        if initial is None:
            _check_to_come(tokens + 1, "token", tokens)
            initial = states.to(y).expand(len(u), *states.shape[1:])
        read, left = selective_scan_chunk(
            torch.zeros_like(u), step, A, B, C, None, initial, carry=kept
        )
        keep_for_edit(add, left)
        return y + read * _like(since > 0, y)

    return _in_layers(layer, Change("carry", cut, len(tokens)), Change("y", add, len(states)))


def state_after(components: SSMComponents, token: int) -> Tensor:
    """State h (d_inner, N) of one captured text after ``token``, for :func:`patch_state`.

    In Mamba-3 what the next token takes over, the share that it writes of this one included.
    Raises ValueError for a batch and for a token that the text does not have. Cost: one scan.
    """
    rows, length = components.attention_mask.shape
    if rows != 1:
        raise ValueError(f"components holds {rows} texts; pass components.text(row)")
    stop = validate_int("token", token, 0, length - 1) + 1
    u, delta, B, C = (getattr(components, name)[:, :stop] for name in ("u", "delta", "B", "C"))
    return selective_scan_chunk(u, delta, components.A, B, C)[1][0]


def _written_before(key: Any, sources: Tensor, u: Tensor) -> Tensor | None:
    """(b, d_inner, N) what each row's source, read by an earlier call, has left in the state."""
    left = kept_by_edit(key)
    if left is None:
        _check_to_come(sources, "source", sources)
        return None
    entered = entered_before()
    if entered is None:
        return left
    # In Mamba-3 the first token at hand writes a share of the one before it, which may be ours.
    is_last = (tokens_read_before() - 1 == sources).to(u.device)
    return left + entered * is_last[:, None, None]


def _check_to_come(needed: Tensor, name: str, tokens: Tensor) -> None:
    """ValueError where a token that an edit has to see was read before it came."""
    late = needed < tokens_read_before()
    if bool(late.any()):
        token = int(tokens.expand(len(late))[late][0])
        raise ValueError(
            f"{name} {token} was read before this edit came; read the whole text under it"
        )


def _common_rows(changes: Sequence[Change]) -> int:
    """The number of rows that all of these changes fit."""
    counts = {change.num_rows for change in changes if change.num_rows > 1}
    if len(counts) > 1:
        raise ValueError(
            f"the interventions are made for {sorted(counts)} rows; give each the same number of "
            "tokens or neurons, or a single one"
        )
    return max(counts, default=1)


def _check_hidden_once(changes: Sequence[Change]) -> None:
    """ValueError where two changes of a layer take the same out of the same query of a row."""
    for one, other in combinations([change.hidden for change in changes if change.hidden], 2):
        rows = max(len(one), len(other))
        pairs = zip(_each_row(one, rows), _each_row(other, rows), strict=False)
        if twice := next(((a, b) for a, b in pairs if _overlap(a, b)), None):
            source = twice[0][0]
            query = next((q for _, q in twice if q is not None), None)
            heard = "later tokens" if query is None else f"token {query}"
            raise ValueError(
                f"source {source} is hidden twice from {heard} in a layer; hide it once"
            )


def _overlap(a: tuple[int, int | None], b: tuple[int, int | None]) -> bool:
    """Whether two (source, query) have a query in common; None is every token after the source."""
    queries = {query for _, query in (a, b)}
    return a[0] == b[0] and (len(queries) == 1 or (None in queries and a[0] not in queries))


def _each_row(values: Sequence[T], rows: int) -> Sequence[T]:
    """One for each row; a single value holds for all."""
    return list(values) * rows if len(values) == 1 else values


def _in_layers(layers: Layers, *changes: Change) -> Intervention:
    return {layer: LayerEdit(changes) for layer in whole_numbers("layers", layers, 0)}


def _row_numbers(name: str, value: Rows) -> Tensor:
    """(rows,) whole numbers >= 0 from one number or one for each row."""
    return torch.tensor(whole_numbers(name, value, 0))


def _number_table(name: str, value: Rows | Sequence[Sequence[int]]) -> Tensor:
    """(rows, k) whole numbers >= 0; a list of numbers is one row."""
    listed: Any = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    nested = isinstance(listed, (list, tuple)) and any(isinstance(x, (list, tuple)) for x in listed)
    rows = [whole_numbers(name, row, 0, empty=True) for row in (listed if nested else [listed])]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(f"{name} is {quoted(value)}; pass whole numbers (k,), or (rows, k)")
    return torch.tensor(rows)


def _at(numbers: Tensor, name: str, x: Tensor) -> Tensor:
    """(rows, l) whether a token is the row's number; ValueError for one past the text."""
    return _marked_tokens(numbers[:, None], name, x)


def _marked_tokens(table: Tensor, name: str, x: Tensor) -> Tensor:
    """(rows, l) whether a token is one of the numbers of its row (rows or 1, k)."""
    positions = token_positions(x)
    if not reads_in_parts():
        _check_below(table, int(positions.max()) + 1, name)
    return (positions[:, :, None] == table.to(x.device)[:, None]).any(-1)


def _since(numbers: Tensor, x: Tensor) -> Tensor:
    """(rows, l) tokens from the row's number to each token; below 0 before it."""
    return token_positions(x) - numbers.to(x.device)[:, None]


def _marked(table: Tensor, size: int, name: str, device: torch.device) -> Tensor:
    """(rows, size) True at the numbers of each row."""
    _check_below(table, size, name)
    marked = torch.zeros(len(table), size, dtype=torch.bool)
    return marked.scatter_(1, table, True).to(device)


def _check_below(table: Tensor, size: int, name: str) -> None:
    if int(table.max()) >= size:
        raise ValueError(f"{name} names {int(table.max())}; there are 0 to {size - 1}")


def _check_whole(piece: str) -> None:
    if reads_in_parts():
        raise ValueError(f"{piece} needs the whole text at once; call with use_cache=False")


def _like(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (rows, l) with the further axes of x."""
    return mask.view(*mask.shape, *[1] * (x.dim() - 2))


def _check_no_rank_norm(seen: Mapping[str, Tensor]) -> None:
    if "rank_scale" in seen:
        raise ValueError(
            "patch_state would hold the norms of a Mamba-3's ranks, which a state put in place "
            "changes; use reset_state, scale_delta or set_neuron"
        )


def _scan_operands(seen: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """u, delta, A, B, C as they entered the layer's scan, u and B rounded as A is there."""
    A = seen["A"]
    return seen["u"].to(A), seen["delta"], A, seen["B"].to(A), seen["C"]


def _values_like(value: Tensor, gated: Tensor) -> Tensor:
    if value.shape[-2:] != gated.shape[1:] or value.dim() not in (2, 3):
        raise ValueError(
            f"value has shape {tuple(value.shape)}; pass the gated output of a text of the same "
            f"length, (l, d_inner) = {tuple(gated.shape[1:])}"
        )
    return value.to(gated)
