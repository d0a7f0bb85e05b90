"""What one layer's selective SSM computed on a batch of texts, and how its state evolved.

Letters are those of the glossary in ``selective_scan``. ``ssm_component_extractor`` makes these
from a model; nothing here knows one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from selective_scan.scan import scan_hidden_states
from ssm_measures.shown_objects import ShownObject, named_layer, per_token, sizes
from ssm_measures.states import StateMeasures, measure_states, unrotated
from suite_plumbing.checks import int_or_none
from suite_plumbing.messages import quoted
from suite_plumbing.result_files import five_digits
from token_statistics.description import FloatArray, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class SSMComponents(ShownObject):
    """What one layer's selective SSM computed on a batch; detached, float32, on the CPU.

    H heads of P channels each lie side by side: head j is channels j P to (j + 1) P - 1 of
    d_inner = H P. In Mamba-1 and its kin every channel is a head (P = 1) with rates A (d_inner,
    d_state) and a delta of its own; in Mamba-2 the channels of a head share one rate and one delta.
    What is per head stays so; ``channel_delta`` and ``channel_A`` repeat it for every channel.
    float64 models keep float64. Entries at padding (``attention_mask`` 0) mean nothing: drop
    them from every statistic.
    """

    A: Tensor
    """(H, d_state), in Mamba-2 (H, 1): continuous-time decay rate, negative, per unit of delta"""
    B: Tensor
    """(b, l, d_state) input projection; (b, l, G, d_state) where groups of heads have their own"""
    C: Tensor
    """output projection, of B's shape"""
    D: Tensor
    """(H,) skip connection"""
    delta: Tensor
    """(b, l, H) step size after softplus, > 0"""
    u: Tensor
    """(b, l, d_inner) SSM input, after convolution and SiLU"""
    gate: Tensor
    """(b, l, d_inner) z, before SiLU"""
    y: Tensor
    """(b, l, d_inner) scan output with D u, before the gate"""
    gated: Tensor
    """(b, l, d_inner) y * gating: out_proj's input, the layer's neurons"""
    conv_input: Tensor
    """(b, l, d_inner) what becomes u, before the convolution"""
    mixer_output: Tensor
    """(b, l, d_model) what the mixer returned"""
    attention_mask: Tensor
    """(b, l) 1 at tokens, 0 at padding"""
    replay_errors: tuple[float, ...]
    """per text of the batch: norm of (output rebuilt from these fields minus mixer_output) over
    the norm of mixer_output, without padding; about 1e-7 in float32"""
    norm_scale: Tensor | None = None
    """(b, l, d_inner) what Mamba-2's gated norm multiplies by: its weight over the root mean square
    of the channel's group at this token, on these data; None where the family has no such norm"""
    output_scale: float = 1.0
    """what the model multiplies mixer_output by before adding it to the residual stream"""
    layer: int | None = None
    """number of the layer; None where nobody said"""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """by text, its tokens without padding; None where only ids were at hand"""
    own_share: Tensor | None = None
    """(b, l, H) in Mamba-3 the share of what a token writes that it reads itself, the rest being
    for later tokens; None in the other families: all of it"""
    write: Tensor | None = None
    """(b, l, H) in Mamba-3, where ``delta`` is the decay alone, what a token's b x is written with,
    b being ``delta B / write``; None in the other families, where delta is both"""
    skip: Tensor | None = None
    """(b, l, d_inner) in a Mamba-3 of several ranks what multiplies u beside what is read of the
    state, D through the gates of the ranks; None elsewhere: D"""
    angle: Tensor | None = None
    """(b, l, heads, pairs) in Mamba-3 the angle by which pairs of states have turned at a token"""

    @property
    def replay_error(self) -> float:
        """The largest of ``replay_errors``."""
        return max(self.replay_errors)

    @property
    def head_width(self) -> int:
        """P, channels of a head: 1 in Mamba-1."""
        return self.u.shape[2] // self.delta.shape[2]

    @property
    def channel_delta(self) -> Tensor:
        """(b, l, d_inner) the step size of each channel: that of its head."""
        return self.delta.unsqueeze(-1).expand(-1, -1, -1, self.head_width).flatten(2)

    @property
    def channel_A(self) -> Tensor:
        """(d_inner, d_state), or in Mamba-2 (d_inner, 1): the rates of each channel."""
        return self.A.unsqueeze(1).expand(-1, self.head_width, -1).flatten(0, 1)

    @property
    def gating(self) -> Tensor:
        """(b, l, d_inner) gated / y: SiLU(gate), times ``norm_scale`` where there is a norm.

        Without a norm y enters the gated output linearly, with this factor. With one this is the
        exact factor at the data, in which the token's root mean square, which depends on y too, is
        held: what a map of the full mixer uses. In a Mamba-3 of several ranks it is 1: each rank
        has a gate of its own, and all are part of C.
        """
        if self.skip is not None:  # the ranks' gates are part of C
            return torch.ones_like(self.gate)
        activated = F.silu(self.gate)
        return activated if self.norm_scale is None else activated * self.norm_scale

    @property
    def written(self) -> Tensor:
        """(b, l, d_model) what the mixer adds to the residual stream."""
        return self.mixer_output * self.output_scale

    @property
    def channel_skip(self) -> Tensor:
        """What multiplies u beside what is read of the state: (d_inner,) D, or ``skip``."""
        return self.D.repeat_interleave(self.head_width) if self.skip is None else self.skip

    @property
    def hidden_states(self) -> Tensor:
        """(b, l, d_inner, d_state) state h_t after every token, computed anew at each access.

        In Mamba-3 in the frame in which it decays without turning: what a token reads and writes
        turns instead, so that equal numbers mean different things to different tokens; see
        ``unrotated_states``.

        Memory b * l * d_inner * d_state floats: 50 MB for mamba-130m at 512 tokens.
        """
        return scan_hidden_states(self.u, self.delta, self.A, self.B, own_share=self.own_share)

    @property
    def unrotated_states(self) -> Tensor:
        """``hidden_states`` as each token's own C before it turns reads them: in Mamba-3 turned
        back by the token's angle, elsewhere as they are."""
        return self._turned_back(self.hidden_states)

    def _turned_back(self, h: Tensor, channels: slice = slice(None)) -> Tensor:
        if self.angle is None:
            return h
        width = self.u.shape[2] // self.angle.shape[2]
        heads = torch.arange(self.u.shape[2])[channels] // width
        return unrotated(h, self.angle[:, :, heads], self.turns_halves)

    @property
    def turns_halves(self) -> bool:
        """Whether state i turns with state i + d_state / 2, as in a Mamba-3 of several ranks, and
        not with its neighbour."""
        return self.skip is not None

    @cached_property
    def states(self) -> StateMeasures:
        """Norms, steps and inner products of the states, computed once: l^2 floats a text."""
        return measure_states(
            self.u,
            self.delta,
            self.A,
            self.B,
            self.attention_mask,
            own_share=self.own_share,
            turned=self._turned_back,
        )

    def text(self, row: int) -> SSMComponents:
        """The components of one text of the batch, b = 1, without its padding.

        Views of this batch's tensors, unless padding stands between tokens; of a single text
        without padding, these components themselves.
        """
        keep = kept_tokens(self.attention_mask[row])
        if len(self.attention_mask) == 1 and bool(self.attention_mask.all()):
            return self
        fields = {name: x[row : row + 1, keep] for name, x in self._per_token().items()}
        tokens = None if self.tokens is None else (self.tokens[row],)
        return replace(self, **fields, replay_errors=(self.replay_errors[row],), tokens=tokens)

    def _per_token(self) -> dict[str, Tensor]:
        """What has a row a token (b, l, ...), by name."""
        names = ("B", "C", "delta", "u", "gate", "y", "norm_scale", "gated", "conv_input",
                 "mixer_output", "attention_mask", "own_share", "write", "skip", "angle",
                 )  # fmt: skip
        tensors = {name: getattr(self, name) for name in names}
        return {name: x for name, x in tensors.items() if x is not None}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token: mean delta over heads, and the norms of B, C, y and the output."""
        norms = {
            f"{name}_norm": getattr(self, name).flatten(2).norm(dim=2)
            for name in ("B", "C", "y", "mixer_output")
        }
        columns = {"delta": self.delta.mean(2), **norms}
        return per_token(self.layer, self.tokens, self.attention_mask, columns)

    def figure(self) -> Figure:
        """Delta, |B|, |C| and the output's norm at each token of the first text."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.object_figures import figure_by_token

        table = self.text(0).to_dataframe()
        labels = {"delta": "mean Δ", "B_norm": "|B|", "C_norm": "|C|",
                  "mixer_output_norm": "|output|"}  # fmt: skip
        tokens = None if self.tokens is None else self.tokens[0]
        series = {label: table[name].to_numpy() for name, label in labels.items()}
        return figure_by_token(f"Components of {named_layer(self.layer)}", series, tokens)

    def _line(self) -> str:
        found = sizes(tokens=int(self.attention_mask.sum()), d_inner=self.u.shape[2],
                      d_state=self.B.shape[-1])  # fmt: skip
        return (
            f"SSMComponents of {named_layer(self.layer)}: {found}, replay error "
            f"{self.replay_error:.1e}"
        )

    def to_dict(self) -> dict:
        """Shapes, summaries, and by text the mean delta of every token; tensors go elsewhere."""
        keep = self.attention_mask.bool()
        names = ("delta", "B", "C", "u", "y", *(("write",) if self.write is not None else ()))
        per_token = {name: getattr(self, name)[keep] for name in names}
        return {
            "shapes": {
                name: list(getattr(self, name).shape) for name in ("A", "B", "C", "D", "delta")
            },
            "num_tokens": int(keep.sum()),
            "A": summarise(self.A),
            "D": summarise(self.D),
            **{name: summarise(values) for name, values in per_token.items()},
            "by_token": {
                "delta": rounded_by_token(self.delta.mean(2).masked_fill(~keep, math.nan))
            },
            "replay_error": self.replay_error,
        }


def kept_tokens(mask: Tensor) -> slice | Tensor:
    """Where a text's mask (l,) is not 0: a slice, unless padding stands between tokens."""
    places = mask.nonzero()[:, 0]
    if len(places) == 0 or int(places[-1] - places[0]) >= len(places):
        return mask.bool()
    return slice(int(places[0]), int(places[-1]) + 1)


def rounded_by_token(values: Tensor) -> list[list[float | None]]:
    """(b, l) values as lists without padding, which is nan."""
    return [[five_digits(x) for x in row[~row.isnan()].tolist()] for row in values]


def mean_by_head(values: Tensor, num_heads: int) -> Tensor:
    """(H,) mean over the channels of each head of values (d_inner,); in Mamba-1 the values.

    Channels of a head share its delta: where values are related to that, heads are what is
    independent, and counting channels would count the same step size P times.
    """
    return values.unflatten(0, (num_heads, -1)).mean(1)


def layer_components(captures: Sequence[Capture], layer: int) -> list[SSMComponents]:
    """One layer's components for each text of the captures, without padding.

    Raises ValueError for no captures and for a layer that was not captured.
    """
    if not captures:
        raise ValueError("captures is empty; pass at least one")
    for captured in captures:
        if layer not in captured.components:
            raise ValueError(f"layer {layer} was not captured; those that were: {captured.layers}")
    return [
        captured.components[layer].text(row)
        for captured in captures
        for row in range(len(captured.input_ids))
    ]


def checked_deltas(texts: Sequence[SSMComponents]) -> tuple[list[FloatArray], tuple[int, ...]]:
    """Delta (l, H) of each text, and their numbers of tokens."""
    if not texts:
        raise ValueError("texts is empty; pass the components of at least one text")
    for text in texts:
        if text.delta.shape[0] != 1 or not bool(text.attention_mask.all()):
            raise ValueError(
                f"texts holds components of {text.delta.shape[0]} texts or with padding; pass one "
                "for each text: components.text(row)"
            )
    deltas = [text.delta[0].double().numpy() for text in texts]
    return deltas, tuple(len(delta) for delta in deltas)


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass on one batch of texts: tokens, components and residual stream by layer."""

    input_ids: Tensor
    """(b, l) token ids, left padded"""
    attention_mask: Tensor
    """(b, l) 1 at tokens, 0 at padding"""
    components: Mapping[int, SSMComponents]
    """by layer"""
    block_inputs: Mapping[int, Tensor]
    """by layer: (b, l, d_model) residual stream before the layer"""
    block_outputs: Mapping[int, Tensor]
    """by layer: (b, l, d_model) residual stream after the layer; with :func:`with_streams` of
    layers without an SSM too"""

    @property
    def layers(self) -> list[int]:
        """The captured layers in ascending order."""
        return sorted(self.components)

    def text(self, row: int) -> Capture:
        """The capture of one text of the batch, b = 1, without its padding: see
        :meth:`SSMComponents.text`."""
        keep = kept_tokens(self.attention_mask[row])

        def cut(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1, keep]

        return Capture(
            cut(self.input_ids),
            cut(self.attention_mask),
            {layer: parts.text(row) for layer, parts in self.components.items()},
            {layer: cut(x) for layer, x in self.block_inputs.items()},
            {layer: cut(x) for layer, x in self.block_outputs.items()},
        )


def captured_ids(captures: Sequence[Capture]) -> tuple[tuple[int, ...], ...]:
    """Token ids of every text of the captures, without padding."""
    rows = (
        pair for one in captures for pair in zip(one.input_ids, one.attention_mask, strict=True)
    )
    return tuple(tuple(ids[mask.bool()].tolist()) for ids, mask in rows)


def extracted_layer(by_layer: Mapping[int, T], layer_idx: int, method: str) -> T:
    """One layer of an earlier result; ValueError, naming the call to make, if it is not there."""
    layer = int_or_none(layer_idx)
    if layer is None or layer not in by_layer:
        raise ValueError(
            f"layer_idx is {quoted(layer_idx)}; the layers extracted are {sorted(by_layer)}. "
            f"Call {method}(...) with it first"
        )
    return by_layer[layer]
