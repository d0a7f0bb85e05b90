"""Sets of neurons: what one method says of the d_inner channels of one layer, and what follows.

A neuron is a channel at a mixer's out_proj: the gated output. Its column of out_proj's weight is
what it writes into the residual stream. A method (``attention_neurons.NEURON_METHODS``) gives each
neuron a value at each token and one importance; here are their statistics and the profile of
single neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ssm_measures.shown_objects import ShownObject
from suite_plumbing.precision import full_precision
from suite_plumbing.result_files import finite_or_none, table_html
from suite_plumbing.texts import ids_of_tokens
from token_statistics.description import kurtosis, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TOP_NEURONS = 20
"""Neurons of a set that go to JSON and are profiled by default."""

_CONTEXT_TOKENS = 8

# Fields of a NeuronSet with one number a neuron, beside its importance.
_STATISTICS = ("mean", "std", "maximum", "kurtosis", "within_text_share")


@dataclass(frozen=True, eq=False)
class NeuronImportance:
    """What one method says of a layer's neurons, without how it came to it."""

    importance: Tensor
    """(d_inner,) >= 0: see `NeuronSet`"""

    @property
    def ranking(self) -> Tensor:
        """(d_inner,) neurons by importance, largest first; ties by number."""
        return self.importance.argsort(descending=True, stable=True)


@dataclass(frozen=True, eq=False, repr=False)
class NeuronSet(ShownObject):
    """One method's neurons of one layer; statistics are over the tokens of all texts."""

    method: str
    """key of ``attention_neurons.NEURON_METHODS``"""
    layer: int
    activations: Tensor
    """(b, l, d_inner) the method's value of each neuron at each token; zero at padding"""
    attention: Tensor
    """(b, l, l) the map that the method used"""
    importance: Tensor
    """(d_inner,) >= 0; what it measures is the method's: see its docstring"""
    mean: Tensor
    """(d_inner,) mean of activations"""
    std: Tensor
    """(d_inner,) standard deviation (n - 1); nan for a single token"""
    maximum: Tensor
    """(d_inner,) largest activation"""
    maximum_at: Tensor
    """(d_inner, 2) text, and token within it, of the largest activation"""
    kurtosis: Tensor
    """(d_inner,) excess kurtosis, 0 for a Gaussian; nan for a constant neuron"""
    within_text_share: Tensor
    """(d_inner,) in [0, 1], share of the variance over tokens that the neuron keeps once each
    text's mean is taken off: 1 where texts do not differ on average, 0 where it only tells texts
    apart; by chance 1 - (texts - 1) / (tokens - 1) for independent tokens; nan for a single text
    or a constant neuron"""
    input_ids: Tensor
    """(b, l) the tokens"""
    attention_mask: Tensor
    """(b, l) 0 at padding"""
    target: dict | None = None
    """what was differentiated; None for methods without a target"""
    note: str | None = None
    """what the result leaves out"""
    gathered: Tensor | None = None
    """(b, l, d_inner) the channels that ``attention`` gathered: activations = attention @ gathered
    at tokens; None where the values are no such gathering"""
    tokens: tuple[tuple[str, ...], ...] | None = None
    """by text, its tokens without padding; None where only ids were at hand"""

    @property
    def ranking(self) -> Tensor:
        """(d_inner,) neurons by importance, largest first; ties by number."""
        return NeuronImportance(self.importance).ranking

    def to_dict(self) -> dict:
        """Summaries, concentration and the most important neurons, for JSON."""
        names = ("importance", *_STATISTICS)
        return {
            "method": self.method,
            "target": self.target,
            "note": self.note,
            "num_neurons": len(self.importance),
            **{name: summarise(getattr(self, name)) for name in names},
            "concentration": importance_concentration(self.importance),
            "top_neurons": self.top_neurons(),
        }

    def top_neurons(self, count: int = TOP_NEURONS) -> list[dict]:
        """The first rows of :meth:`to_dataframe`, for JSON: undefined statistics are None."""
        columns = self._columns(self.ranking[:count])
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors: ``layer_3.rollout.activations``, ``.attention`` and ``.importance``."""
        return {
            f"layer_{self.layer}.{self.method}.{name}": getattr(self, name)
            for name in ("activations", "attention", "importance")
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row a neuron, the most important first; undefined statistics are NaN."""
        return pd.DataFrame(self._columns(self.ranking))

    def _columns(self, order: Tensor) -> dict[str, np.ndarray]:
        """By name, of neurons in this order, which is that of their importance."""
        columns = {
            name: getattr(self, name)[order].numpy() for name in ("importance", *_STATISTICS)
        }
        return {
            "layer": np.full(len(order), self.layer),
            "neuron": order.numpy(),
            "rank": np.arange(1, len(order) + 1),
            **columns,
            "maximum_text": self.maximum_at[order, 0].numpy(),
            "maximum_token": self.maximum_at[order, 1].numpy(),
        }

    def figure(self) -> Figure:
        """Importance by rank, and what the most important neurons do on the first text."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.neuron_figures import figure_neuron_set

        keep = self.attention_mask[0].bool()
        return figure_neuron_set(
            self._title, self.ranking.numpy(), self.importance.numpy(),
            self.activations[0, keep].numpy(),
        )  # fmt: skip

    @property
    def _title(self) -> str:
        return f"Neurons by {self.method.replace('_', '-')}, layer {self.layer}"

    def _line(self) -> str:
        return f"{self._title}: {len(self.importance)}, the first {self.ranking[:3].tolist()}"

    def _repr_html_(self) -> str:
        table = table_html(self.to_dataframe().head(TOP_NEURONS))
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        total = f"the first {TOP_NEURONS} of {len(self.importance)}"
        return f"<p>{escape(self._title)}: {total}</p>{note}{table}"


RankedNeurons = NeuronSet | NeuronImportance
"""What has the importance of a layer's neurons, and their ranking."""


def neuron_set(
    method: str,
    layer: int,
    activations: Tensor,
    attention: Tensor,
    importance: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    **details,
) -> NeuronSet:
    """A :class:`NeuronSet` with the statistics of these activations (b, l, d_inner)."""
    keep = attention_mask.bool()
    values = activations[keep]
    maximum, where = values.max(0)
    text = keep.nonzero()[where, 0]
    position = (attention_mask.cumsum(1) - 1)[keep][where]
    return NeuronSet(
        method=method,
        layer=layer,
        activations=zero_at_padding(activations, attention_mask),
        attention=attention,
        importance=importance,
        mean=values.mean(0),
        std=values.std(0) if len(values) > 1 else torch.full_like(maximum, math.nan),
        maximum=maximum,
        maximum_at=torch.stack([text, position], dim=1),
        kurtosis=torch.from_numpy(kurtosis(values)).to(values),
        within_text_share=_within_text_share(activations, keep),
        input_ids=input_ids,
        attention_mask=attention_mask,
        **details,
    )


def zero_at_padding(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Values (b, l, p) with 0 at padding; without any, these values themselves."""
    if bool(attention_mask.all()):
        return values
    return values * attention_mask.unsqueeze(-1).to(values)


def _within_text_share(activations: Tensor, keep: Tensor) -> Tensor:
    """Sum of squares around each text's own mean over that around the mean of all tokens."""
    values = activations.double()
    if len(values) == 1:
        return torch.full_like(activations[0, 0], math.nan)
    weight = keep.unsqueeze(-1).to(values)
    own_mean = (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    within = ((values - own_mean).square() * weight).sum((0, 1))
    total = (values[keep] - values[keep].mean(0)).square().sum(0)
    return torch.where(total > 0, within / total, math.nan).to(activations)


def importance_concentration(importance: Tensor) -> dict:
    """How unequally importance (n,), >= 0, is spread over neurons.

    ``gini``: 0 all equal, 1 - 1/n one neuron alone. ``participation``: (sum)^2 / (n sum of
    squares), in [1/n, 1], the share of neurons that carry it. ``top_5_percent_share``: share of the
    total in the top 5 % (at least one neuron). None for importance that is all zero.
    """
    total, count = importance.double().sum(), len(importance)
    if not total > 0:
        return {"gini": None, "participation": None, "top_5_percent_share": None}
    ascending = importance.double().sort().values / total
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    return {
        "gini": float((2 * rank - count - 1) @ ascending / count),
        "participation": float(1 / (count * ascending.square().sum())),
        "top_5_percent_share": float(ascending[-max(1, round(0.05 * count)) :].sum()),
    }


@dataclass(frozen=True, eq=False)
class NeuronProfile:
    """One neuron: its statistics, where it is strongest, and what it writes."""

    neuron: int
    """channel number"""
    statistics: dict
    """importance, its rank from 1, mean, std, maximum, kurtosis and within_text_share as in
    :class:`NeuronSet`; None where undefined"""
    top_tokens: list[dict]
    """the tokens with its largest |activation|: text, position, token, context before, value"""
    promoted: list[dict]
    """tokens whose logit its column of out_proj raises most: token, logit per unit of activation"""
    suppressed: list[dict]
    """tokens whose logit it lowers most"""


@dataclass(frozen=True, eq=False)
class NeuronBehavior:
    """Profiles of the most important neurons of a set."""

    method: str
    layer: int
    profiles: list[NeuronProfile]

    def to_dict(self) -> dict:
        """Everything, for JSON."""
        profiles = [dict(vars(profile)) for profile in self.profiles]
        return {"method": self.method, "layer": self.layer, "neurons": profiles}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a neuron: statistics, its strongest tokens, and the tokens that it promotes."""
        return pd.DataFrame(
            {
                "layer": self.layer,
                "neuron": profile.neuron,
                **profile.statistics,
                "top_tokens": _joined(profile.top_tokens),
                "promoted": _joined(profile.promoted),
                "suppressed": _joined(profile.suppressed),
            }
            for profile in self.profiles
        )

    def _repr_html_(self) -> str:
        table = table_html(self.to_dataframe())
        method = escape(self.method.replace("_", "-"))
        return f"<p>Neurons by {method}, layer {self.layer}</p>{table}"


def _joined(rows: Sequence[Mapping]) -> str:
    """Tokens as one cell of a table, each in quotation marks, white space and the like escaped."""
    return ", ".join(repr(row["token"]) for row in rows)


def neuron_behavior(
    neurons: NeuronSet,
    out_weight: Tensor,
    logit_directions: Tensor,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    num_neurons: int = TOP_NEURONS,
    num_tokens: int = 5,
) -> NeuronBehavior:
    """Statistics, strongest tokens with context, and promoted tokens of the top neurons.

    What neuron i promotes is ``logit_directions`` (V, d_model) times its column of ``out_weight``
    (d_model, d_inner): the change of each logit per unit of the *channel's* activation, along the
    direct path, without later layers and without the final norm's division. Logits are relative to
    their mean over the vocabulary, which softmax does not see. Rows of a padded vocabulary that the
    tokenizer has no token for are left out. Without a tokenizer tokens are their ids. Cost: one
    (V, d_model) by (d_model, num_neurons) product.
    """
    top = neurons.ranking[:num_neurons]
    known = torch.tensor(ids_of_tokens(tokenizer, len(logit_directions)), dtype=torch.long)
    with full_precision():
        logits = logit_directions[known] @ out_weight[:, top]
    logits = logits - logits.mean(0)
    table = neurons.to_dataframe().head(len(top)).to_dict(orient="records")
    names = ("importance", "rank", *_STATISTICS)
    profiles = [
        NeuronProfile(
            neuron=int(neuron),
            statistics={name: _plain(row[name]) for name in names},
            top_tokens=_top_tokens(neurons, int(neuron), tokenizer, num_tokens),
            promoted=_extreme_logits(column, known, tokenizer, num_tokens, largest=True),
            suppressed=_extreme_logits(column, known, tokenizer, num_tokens, largest=False),
        )
        for neuron, row, column in zip(top, table, logits.T, strict=True)
    ]
    return NeuronBehavior(neurons.method, neurons.layer, profiles)


def _top_tokens(
    neurons: NeuronSet, neuron: int, tokenizer: PreTrainedTokenizerBase | None, count: int
) -> list[dict]:
    """The tokens at which a neuron is strongest, of either sign, with the text before them."""
    keep = neurons.attention_mask.bool()
    values = neurons.activations[..., neuron][keep]
    where = keep.nonzero()
    rows = []
    for index in values.abs().argsort(descending=True, stable=True)[:count].tolist():
        text, column = where[index].tolist()
        ids = neurons.input_ids[text, keep[text]].tolist()
        position = int(keep[text, : column + 1].sum()) - 1
        rows.append(
            {
                "text": text,
                "position": position,
                "token": _as_text(ids[position : position + 1], tokenizer),
                "context": _as_text(ids[max(0, position - _CONTEXT_TOKENS) : position], tokenizer),
                "value": float(values[index]),
            }
        )
    return rows


def _extreme_logits(
    logits: Tensor,
    token_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
    count: int,
    *,
    largest: bool,
) -> list[dict]:
    values, places = logits.topk(min(count, len(logits)), largest=largest)
    return [
        {"token": _as_text([token], tokenizer), "token_id": token, "logit": value}
        for value, token in zip(values.tolist(), token_ids[places].tolist(), strict=True)
    ]


def _as_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids))
    return str(tokenizer.decode(list(ids)))


def _plain(value: float | int) -> float | int | None:
    """A table's cell for JSON: None for NaN."""
    return finite_or_none(value) if isinstance(value, float) else int(value)
