"""Direct attribution of a logit: what each layer, path, source token and neuron itself gave to it.

With x_L the residual stream of the token read after the last layer, gamma and r the final norm's
weight and root mean square, d the unembedding's row of a token (or the difference of two), k the
family's multiplier of the logits and w = gamma * d,

    logit = k (w . x_0 + sum_l w . out_l) / r + k b_head

exactly, where x_0 is the embedding and out_l all that layer l wrote, each with the family's
multipliers, and r stands at its real value. What a layer wrote is led further back: through
out_proj to neurons and heads; by ``ssm_measures.neuron_shares`` to paths and source tokens; of
softmax attention by its weights, at their value, to sources; an MLP's part is the token's own.

Direct means what a layer wrote itself. What later layers made of it is not in it: that total
effect is a knockout's (``layer_effects``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from torch import Tensor

from causal_interventions.total_effects import Agreement, agreement
from mamba_mixers.sites import find_mixers
from mamba_mixers.stream_writes import LayerWrite, MixerTrace, record_writes
from mamba_mixers.weights import MixerParameters, mixer_parameters, readout_of
from selective_scan.scan import half_life
from ssm_measures.neuron_shares import neuron_shares
from suite_plumbing.arguments import validate_int
from suite_plumbing.messages import quoted
from suite_plumbing.precision import in_full_precision
from suite_plumbing.result_files import table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF_LIFE_GROUPS = ("short", "middle", "long")
"""Thirds of a Mamba-1 layer's channels by half-life."""


class Part(NamedTuple):
    """One summand of a logit."""

    layer: int | str
    """the layer's number, "embedding", or "bias" (of the unembedding)"""
    path: str
    """"embedding"; in a mixer "skip", "convolution", "state" and "bias"; "attention", "mlp"; or
    "bias", of the unembedding or of a projection"""
    source: int | str
    """number of the token that it came from, or "bias" for additive constants"""
    value: float
    """in the unit of logits"""


class NeuronParts(NamedTuple):
    """What the neurons of one layer gave."""

    activation: Tensor
    """(d_inner,) the neurons at the token read"""
    value: Tensor
    """(d_inner,) activation times what a unit of it adds to the logit"""
    half_life: Tensor
    """(H,) tokens, of each head's slowest state at its mean delta; in Mamba-1 a head is a channel
    """
    bias: float
    """what out_proj's bias gave"""


@dataclass(frozen=True, eq=False)
class LogitParts:
    """One logit, or the difference of two, as a sum over layers, paths and source tokens."""

    token: int
    """id of the token whose logit it is"""
    contrast: int | None
    """id of the token whose logit is subtracted"""
    position: int
    """number of the token after which the prediction is read"""
    logit: float
    """what the model gave"""
    largest_logit: float
    """largest |logit| of the position: rounding is a share of it"""
    parts: list[Part]
    """by layer, path and source; they sum to the logit"""
    neurons: dict[int, NeuronParts]
    """by layer with a mixer"""
    tokens: tuple[str, ...] | None = None
    """spelling of each token up to the position, where a tokenizer was at hand"""
    names: tuple[str, str | None] | None = None
    """spelling of the token and of the contrast"""
    total_effects: dict[int, float] | None = None
    """by layer, what the logit loses without all that the layer wrote at the position:
    ``total_effects.layer_effects``; None where they were not asked for"""

    @property
    def rounding(self) -> float:
        """The logit minus the sum of its parts: what the model's own dtype rounded away."""
        return self.logit - sum(part.value for part in self.parts)

    def to_dataframe(self) -> pd.DataFrame:
        """Columns layer, path, value: one row a path of a layer, in the order of the model."""
        sums = _sums((part.layer, part.path, part.value) for part in self.parts)
        return _table(["layer", "path", "value"], sums)

    @property
    def by_source(self) -> pd.DataFrame:
        """Columns layer (int), source, value: what each layer wrote, by the token it came from."""
        written = (part for part in self.parts if isinstance(part.layer, int))
        sums = _sums((part.layer, part.source, part.value) for part in written)
        return _table(["layer", "source", "value"], sums)

    def by_layer(self) -> pd.DataFrame:
        """Columns layer, direct, total: nan in ``total`` where it was not measured."""
        return _table(["layer", "direct", "total"], self._direct_and_total())

    def _direct_and_total(self) -> list[tuple[int | str, float, float]]:
        effects = self.total_effects or {}
        return [
            (layer, value, effects.get(layer, math.nan) if isinstance(layer, int) else math.nan)
            for layer, value in _sums((part.layer, part.value) for part in self.parts)
        ]

    @property
    def agreement(self) -> Agreement:
        """Of the direct and the total effects of the layers, where both are known."""
        rows = self._direct_and_total()
        return agreement([direct for _, direct, _ in rows], [total for _, _, total in rows])

    def source_totals(self) -> pd.DataFrame:
        """Columns source, token, value: what each source gave through all layers, the embedding
        of the token read among them; "bias" is what the additive constants gave."""
        sums = _sums((part.source, part.value) for part in self.parts)
        sums.sort(key=lambda row: row[0] if isinstance(row[0], int) else math.inf)
        rows = [(source, self._spelled(source), value) for source, value in sums]
        return _table(["source", "token", "value"], rows)

    def _spelled(self, source: int | str) -> str:
        return self.tokens[source] if self.tokens and isinstance(source, int) else ""

    def __repr__(self) -> str:
        name = quoted(self.names[0]) if self.names else f"token {self.token}"
        return f"<logit of {name} after token {self.position}: {self.logit:.4f}>"

    def _repr_html_(self) -> str:
        return table_html(self.to_dataframe())

    def figure(self) -> Figure:
        """Bars by layer and path, and by source token."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.attribution_figures import figure_logit_parts

        return figure_logit_parts(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: by path, by source over all layers, and beside the total effects."""
        return {
            "token": self.names[0] if self.names else self.token,
            "contrast": self.names[1] if self.names else self.contrast,
            "position": self.position,
            "logit": self.logit,
            "largest_logit": self.largest_logit,
            "rounding": self.rounding,
            "parts": self.to_dataframe().to_dict("records"),
            "by_source": self.source_totals().to_dict("records"),
            "total_effects": self.total_effects,
            "agreement": None if self.total_effects is None else self.agreement._asdict(),
        }

    def by_neuron(self, layer: int) -> pd.DataFrame:
        """Columns neuron, activation, value: what each channel at out_proj's input gave.

        Together with out_proj's bias they sum to what the mixer gave. Raises ValueError for a layer
        without a mixer.
        """
        parts = self._mixer_of(layer)
        return pd.DataFrame(
            {
                "neuron": range(len(parts.value)),
                "activation": parts.activation.tolist(),
                "value": parts.value.tolist(),
            }
        )

    def by_head(self, layer: int) -> pd.DataFrame:
        """Columns head, half_life (tokens), value: what each head's channels gave.

        In Mamba-1, where a channel is a head, three groups of channels by half-life ("short",
        "middle", "long") with the median half-life of each. Raises ValueError as ``by_neuron``.
        """
        parts = self._mixer_of(layer)
        heads = len(parts.half_life)
        if heads < len(parts.value):
            values = parts.value.unflatten(0, (heads, -1)).sum(1)
            groups = [(head, parts.half_life[head], values[head]) for head in range(heads)]
        else:
            order = parts.half_life.argsort(stable=True).tensor_split(len(HALF_LIFE_GROUPS))
            groups = [
                (name, parts.half_life[members].median(), parts.value[members].sum())
                for name, members in zip(HALF_LIFE_GROUPS, order, strict=True)
                if len(members)
            ]
        rows = [(name, float(life), float(value)) for name, life, value in groups]
        return _table(["head", "half_life", "value"], rows)

    def _mixer_of(self, layer: int) -> NeuronParts:
        if layer not in self.neurons:
            raise ValueError(f"layer is {layer}; the layers with an SSM are {list(self.neurons)}")
        return self.neurons[layer]


@in_full_precision
def logit_parts(
    model: Any, input_ids: Tensor, token: int | None = None, contrast: int | None = None
) -> LogitParts:
    """Attribute a logit after the last token of one text (1, l) to all that summed to it.

    ``token`` None is the model's own likeliest one. Raises ValueError for a token that the model
    does not have, UnsupportedModelError as ``record_writes``. Cost: one forward pass by the suite's
    scan and, for every layer, one row of implicit attention.
    """
    readout = readout_of(model)
    for name, value in (("token", token), ("contrast", contrast)):
        if value is not None:
            validate_int(name, value, 0, len(readout.weight) - 1)
    writes = record_writes(model, input_ids)
    token = int(writes.logits.argmax()) if token is None else token
    if token == contrast:
        raise ValueError(f"token and contrast are both token {token}: their difference is 0")
    direction = readout.direction(token, contrast).to(writes.final) * writes.norm_factor
    last = input_ids.shape[1] - 1
    parts = [Part("embedding", "embedding", last, _along(writes.layers[0].before, direction))]
    neurons: dict[int, NeuronParts] = {}
    sites = find_mixers(model)
    for layer, write in enumerate(writes.layers):
        if write.trace is not None:
            parameters = mixer_parameters(sites[layer])
            neurons[layer] = _neuron_parts(write.trace, parameters, direction)
            parts += _mixer_parts(layer, write.trace, parameters, direction)
        parts += _other_parts(layer, write, direction, last)
    if readout.bias is not None:
        parts.append(Part("bias", "bias", "bias", readout.constant(token, contrast)))
    logit = float(writes.logits[token] - (0.0 if contrast is None else writes.logits[contrast]))
    largest = float(writes.logits.abs().max())
    return LogitParts(token, contrast, last, logit, largest, parts, neurons)


def _sums(rows: Iterable[tuple]) -> list[tuple]:
    """Rows that are alike but for their last entry, a number, summed; in order of appearance."""
    sums: dict[tuple, float] = {}
    for *key, value in rows:
        sums[tuple(key)] = sums.get(tuple(key), 0.0) + value
    return [(*key, value) for key, value in sums.items()]


def _table(columns: Sequence[str], rows: Sequence[tuple]) -> pd.DataFrame:
    """Rows as a table; numbers and words may share a column."""
    data: dict[str, Any] = {
        name: pd.Series([row[i] for row in rows], dtype=None if i == len(columns) - 1 else object)
        for i, name in enumerate(columns)
    }
    return pd.DataFrame(data)


def _along(x: Tensor, direction: Tensor) -> float:
    return float(x @ direction.to(x))


def _mixer_parts(
    layer: int, trace: MixerTrace, parameters: MixerParameters, direction: Tensor
) -> list[Part]:
    """By path and source; a source that gave nothing by a path has no part."""
    through = direction @ parameters.out_weight.to(direction)
    shares = neuron_shares(trace, parameters)
    parts = [Part(layer, "skip", len(trace.u) - 1, _along(shares.skip, through))]
    for path, by_source in (("convolution", shares.convolution), ("state", shares.state)):
        values = by_source @ through.to(by_source)
        parts += [
            Part(layer, path, source, value)
            for source, value in enumerate(values.tolist())
            if value != 0.0
        ]
    constant = _along(shares.bias, through)
    if parameters.out_bias is not None:
        constant += _along(parameters.out_bias, direction)
    if parameters.conv_bias is not None or parameters.out_bias is not None:
        parts.append(Part(layer, "bias", "bias", constant))
    return parts


def _other_parts(layer: int, write: LayerWrite, direction: Tensor, last: int) -> list[Part]:
    """What a layer's attention and other modules gave."""
    parts = []
    if write.attention is not None:
        values = write.attention.from_sources(direction).tolist()
        parts += [Part(layer, "attention", source, value) for source, value in enumerate(values)]
        if write.attention.out_bias is not None:
            bias = _along(write.attention.out_bias, direction)
            parts.append(Part(layer, "bias", "bias", bias))
    if write.rest is not None:
        parts.append(Part(layer, "mlp", last, _along(write.rest, direction)))
    return parts


def _neuron_parts(trace: MixerTrace, parameters: MixerParameters, direction: Tensor) -> NeuronParts:
    through = direction @ parameters.out_weight.to(direction)
    bias = 0.0 if parameters.out_bias is None else _along(parameters.out_bias, direction)
    life = half_life(trace.delta.mean(0), trace.A).amax(1)
    return NeuronParts(trace.gated, trace.gated * through.to(trace.gated), life, bias)
