"""Steering vectors: a direction at one site of one layer, from contrastive texts or given.

    residual   (d_model) the residual stream that enters the layer
    mixer      (d_model) the mixer's output, before a family's multiplier of it
    neurons    (d_inner) the gated output
    delta      (H) the step size
    state      (d_inner, N) the state that a token leaves and the next one finds; in Mamba-3 as the
               token reads it, in the token's own frame

The first is there in every layer of a hybrid, the others in those with an SSM. Letters: the
glossary of ``selective_scan``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mamba_mixers.families import norms_ranks
from mamba_mixers.recording import LayerRecord, record_layers, record_streams
from mamba_mixers.sites import find_mixers, num_layers
from selective_scan.scan import scan_hidden_states
from ssm_measures.states import unrotated
from suite_plumbing.arguments import int_or_none, validate_choice
from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.models import execution_device
from suite_plumbing.paths import user_path
from suite_plumbing.result_files import StrPath, is_finite, write_tensors
from suite_plumbing.result_reading import TensorFile
from suite_plumbing.texts import EncodedText, pad_batch

SITES = ("residual", "mixer", "neurons", "delta", "state")
"""Where a vector can be read and applied."""

METHODS = ("mean", "pca")
"""How a vector is made of contrastive texts: see :func:`contrast`."""

_BATCH = 8


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at one site of one layer."""

    values: Tensor
    """float32, on the CPU, of the site's shape"""
    layer: int
    site: str
    """one of ``SITES``"""
    source: str
    """how it was made: "mean", "pca", "given", "random", "channels" """

    @property
    def norm(self) -> float:
        """L2 norm over all numbers."""
        return float(self.values.norm())

    def to_dict(self) -> dict[str, Any]:
        """What the vector is, without its values, for JSON."""
        return {
            "layer": self.layer,
            "site": self.site,
            "source": self.source,
            "shape": list(self.values.shape),
            "norm": self.norm,
        }

    def save(self, path: StrPath) -> Path:
        """Write a safetensors file: the values under "site.layer_N.source"."""
        name = f"{self.site}.layer_{self.layer}.{self.source}"
        return write_tensors(path, {name: self.values})


def load_vector(path: StrPath) -> SteeringVector:
    """The vector of a file that ``SteeringVector.save`` wrote.

    Raises ValueError for a file that cannot be read or holds something else.
    """
    place = user_path(path, "vector")
    try:
        tensors = TensorFile(place)
    except Exception as error:
        raise ValueError(
            f"vector {quoted(str(path))} cannot be read ({reason_of(error)}); pass a file that "
            "SteeringVector.save wrote"
        ) from error
    names = list(tensors)
    parts = names[0].split(".") if len(names) == 1 else []
    number = parts[1].removeprefix("layer_") if len(parts) == 3 else ""
    if not number.isdigit() or parts[0] not in SITES:
        raise ValueError(
            f"{quoted(str(path))} holds {quoted(json.dumps(names))}, no steering vector; pass a "
            "file that SteeringVector.save wrote"
        )
    return SteeringVector(tensors[names[0]].float(), int(number), parts[0], parts[2])


def check_site(model: PreTrainedModel, layer: Any, site: str) -> int:
    """The layer's number, from 0; ValueError for an unknown site, for a layer without it, and for
    the state of a Mamba-3 with a norm on each rank's output."""
    validate_choice("site", site, SITES)
    if site == "state" and any(norms_ranks(one.mixer) for one in find_mixers(model).values()):
        raise ValueError(
            "site 'state' of a Mamba-3 with a norm on each rank's output is not steered, for the "
            "norms would be held as they were: use residual, mixer, neurons or delta"
        )
    known = range(num_layers(model)) if site == "residual" else list(find_mixers(model))
    number = int_or_none(layer)
    number = number if number is None or number >= 0 else number + num_layers(model)
    if number is None or number not in known:
        raise ValueError(
            f"layer is {quoted(layer)}; site {quoted(site)} is there in layers {quoted([*known])}"
        )
    return number


def site_shape(model: PreTrainedModel, layer: int, site: str) -> tuple[int, ...]:
    """Shape of a vector at this site, see the module. Cost: two tokens up to the layer."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=execution_device(model))
    return tuple(_values(model, layer, site, ids, torch.ones_like(ids)).shape[2:])


def given_vector(
    model: PreTrainedModel, values: Any, layer: int, site: str, source: str = "given"
) -> SteeringVector:
    """A vector of one's own; ValueError for another shape, for NaN or infinity, and for zeros."""
    number = check_site(model, layer, site)
    try:
        tensor = torch.as_tensor(values).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"vector is {quoted(values)}; pass numbers") from error
    shape = site_shape(model, number, site)
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"vector has shape {tuple(tensor.shape)}; site {quoted(site)} of this model takes "
            f"{shape}"
        )
    if not is_finite(tensor):
        raise ValueError("vector holds NaN or infinity; pass finite numbers")
    if not bool(tensor.any()):
        raise ValueError("vector is all zeros; it points nowhere")
    return SteeringVector(tensor, number, site, source)


def random_vectors(vector: SteeringVector, count: int, generator: torch.Generator) -> list[Tensor]:
    """Directions drawn evenly, of the vector's shape and norm."""
    drawn = (torch.randn(vector.values.shape, generator=generator) for _ in range(count))
    return [x * (vector.norm / x.norm()) for x in drawn]


def contrast(positive: Tensor, negative: Tensor, method: str = "mean") -> Tensor:
    """Direction from ``negative`` to ``positive``, (n, ...) and (m, ...) values of texts.

    "mean": the difference of their means. "pca": the first right singular vector of the pairs'
    differences, uncentred, n = m >= 2, with the sign and the length of the mean difference's
    projection on it. Raises ValueError for an unknown method, and for pairs that it cannot take.
    """
    validate_choice("method", method, METHODS)
    difference = positive.mean(0) - negative.mean(0)
    if method == "mean":
        return difference
    if len(positive) != len(negative) or len(positive) < 2:
        raise ValueError(
            f"method 'pca' needs pairs, at least 2; there are {len(positive)} positive and "
            f"{len(negative)} negative texts"
        )
    pairs = (positive - negative).flatten(1).double()
    first = torch.linalg.svd(pairs, full_matrices=False).Vh[0].float().view_as(difference)
    return first * (first * difference).sum()


@torch.no_grad()
def site_values(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    layer: int,
    site: str,
    position: int | None,
    padding: int,
) -> Tensor:
    """(texts, ...) value at this site of each text, after one token or as a mean over all of them.

    ``position`` counts from the text's start, or from its end when negative; None is the mean over
    the text's tokens. Raises ValueError for a position outside a text. Cost: a forward pass up to
    the layer.
    """
    cut = [_up_to(text, index, position) for index, text in enumerate(encoded)]
    values = []
    for start in range(0, len(cut), _BATCH):
        ids, mask = pad_batch(cut[start : start + _BATCH], padding)
        device = execution_device(model)
        of_tokens = _values(model, layer, site, ids.to(device), mask.to(device))
        if position is None:
            weight = mask.to(of_tokens).view(*mask.shape, *[1] * (of_tokens.dim() - 2))
            values.append((of_tokens * weight).sum(1) / weight.sum(1))
        else:
            values.append(of_tokens[:, -1])
    return torch.cat(values).float().cpu()


def _values(model: PreTrainedModel, layer: int, site: str, ids: Tensor, mask: Tensor) -> Tensor:
    """(b, l, ...) values of every token."""
    if site == "residual":
        return record_streams(model, [layer], ids, mask)[layer][0]
    return _of_record(record_layers(model, [layer], ids, mask)[layer], site)


def _of_record(record: LayerRecord, site: str) -> Tensor:
    replay = record.replay
    if site == "state":
        u, B = replay.u.to(replay.A), replay.B.to(replay.A)
        h = scan_hidden_states(u, replay.delta, replay.A, B, own_share=replay.own_share)
        if replay.angle is None:
            return h
        theta = replay.angle.repeat_interleave(h.shape[2] // replay.angle.shape[2], 2)
        return unrotated(h, theta, halves=replay.skip is not None)
    # The replay's output: of a single token some mixers of transformers 4 give another shape.
    return {"mixer": replay.output, "neurons": replay.gated, "delta": replay.delta}[site]


def _up_to(text: EncodedText, index: int, position: int | None) -> EncodedText:
    """The text up to this token: what comes after it changes no value there."""
    length = len(text.input_ids)
    if position is None:
        return text
    place = int_or_none(position)
    if place is None or not -length <= place < length:
        raise ValueError(
            f"position is {quoted(position)}, but text {index} has {length} tokens; positions "
            "count from 0, or from -1 at the end, and None is the mean over all"
        )
    end = place % length + 1
    return EncodedText(
        text=text.text,
        input_ids=text.input_ids[:end],
        tokens=text.tokens[:end],
        offsets=None if text.offsets is None else text.offsets[:end],
        num_tokens_before_truncation=text.num_tokens_before_truncation,
        truncated=True,
    )
