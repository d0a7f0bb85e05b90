"""What made each prediction of a text, for the report: exact parts as tensors, their sizes as JSON.

`predictions.prediction_maps` of the likeliest token after every position, of the texts and tokens
that the prediction view shows; and from the same reading what each token cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis_pipelines.predictions import (
    ChosenLogits,
    PredictionMaps,
    chosen_logits,
    final_stream,
    maps_of_logits,
)
from analysis_pipelines.token_predictions import BLOCK, predictions_of_blocks
from mamba_mixers.sites import UnsupportedModelError
from mamba_mixers.weights import final_norm, logits_of_stream
from suite_plumbing.errors import AnalysisError
from suite_plumbing.result_files import six_digits
from suite_plumbing.texts import EncodedText

MAX_TEXTS = 12
"""Of more texts, the first are attributed: those in the report's view."""

MAX_TOKENS = 256
"""Of a longer text, the first tokens are attributed: the cost grows with the length squared."""


class Predictions(NamedTuple):
    """What each token cost and what made each prediction, from one reading of every text."""

    losses: dict[str, dict[str, list[Any]]]
    """`token_predictions`"""
    parts: dict[str, dict[str, Any]]
    """by text the section ``prediction_parts``"""
    tensors: dict[str, Tensor]
    """that go beside them"""


def prediction_parts(
    model: PreTrainedModel,
    encoded: Sequence[EncodedText],
    tokenizer: PreTrainedTokenizerBase,
    streams: Mapping[tuple[int, ...], Tensor] | None = None,
) -> Predictions:
    """By text the losses, the sections ``prediction_parts``, and the tensors that go beside them.

    A section: ``num_tokens`` that were attributed; ``token``, the likeliest after each, decoded;
    ``logit``, its logit; ``parts``, [layer, path] of each part, the layers "embedding" and
    "unembedding" (its bias) beside numbers; ``mean_magnitude`` of each, the mean |value| over the
    positions. Tensors: ``text_0.prediction_parts`` (l, parts), whose rows sum to the logits;
    ``text_0.prediction_sources`` (l, l), what token s gave to the logit after t, by all layers;
    biases are no token's. Of more than ``MAX_TEXTS`` texts the first ones, of longer ones the first
    ``MAX_TOKENS`` tokens. Raises AnalysisError for logits or parts that are NaN or infinite, and
    where the model's final norm is none through which logits are led back, or the parts do not sum
    to the logits, as with a hook between layers. ``streams``: the
    `final_stream` of texts by their ids, where `overview` has left them. Cost: one forward pass by
    the suite's scan for a text without one; a pass of the tokens attributed, and for every layer
    one map of the full mixer; memory of one layer.
    """
    _check_final_norm(model)
    losses, sections, tensors = {}, {}, {}
    for i, (name, text) in enumerate((f"text_{i}", text) for i, text in enumerate(encoded)):
        ids = text.input_ids
        known = None if streams is None else streams.get(tuple(ids))
        stream, likeliest = final_stream(model, ids) if known is None else known, []
        blocks = _logits_by_block(model, stream, likeliest)
        losses[name] = predictions_of_blocks(blocks, ids, tokenizer)
        if i >= MAX_TEXTS:
            continue
        first = ids[:MAX_TOKENS]
        chosen = _first(likeliest, len(first))
        found = maps_of_logits(model, first, stream[: len(first)], chosen)
        names, values = _parts(found)
        _check_finite(found.logits, found.sources, values)
        _check_sums(found, model.dtype)
        tensors[f"{name}.prediction_parts"] = values.float()
        tensors[f"{name}.prediction_sources"] = found.sources.float()
        sections[name] = {
            "num_tokens": len(values),
            "token": [tokenizer.decode([token]) for token in found.tokens.tolist()],
            "logit": six_digits(found.logits.tolist()),
            "parts": names,
            "mean_magnitude": six_digits(values.abs().mean(0).tolist()),
        }
    return Predictions(losses, sections, tensors)


def _logits_by_block(
    model: PreTrainedModel, stream: Tensor, likeliest: list[ChosenLogits]
) -> Iterator[Tensor]:
    """Logits of a text from its `final_stream`; ``likeliest`` takes the largest of each block."""
    for part in stream.split(BLOCK):
        logits = logits_of_stream(model, part)
        likeliest.append(chosen_logits(logits))
        _check_finite(likeliest[-1].largest)
        yield logits


def _first(blocks: Sequence[ChosenLogits], count: int) -> ChosenLogits:
    """The first positions of blocks that follow each other."""
    return ChosenLogits(*(torch.cat(parts)[:count] for parts in zip(*blocks, strict=True)))


def _check_finite(*found: Tensor) -> None:
    if not all(bool(torch.isfinite(x).all()) for x in found):
        raise AnalysisError("parts of logits are NaN or infinite: the model overflows")


def _check_sums(found: PredictionMaps, dtype: torch.dtype) -> None:
    """Raise AnalysisError where the parts are not all that the logits were made of."""
    # Rounding of float32 is below 1e-5 of the largest logit; half precision rounds the stream.
    allowed = max(1e-3, 16 * torch.finfo(dtype).eps)
    if bool((found.rounding.abs() > allowed * found.largest).any()):
        raise AnalysisError(
            "the parts of a logit do not sum to it: the model, or a hook on it, changes the stream "
            "between its layers or after them"
        )


def _check_final_norm(model: PreTrainedModel) -> None:
    try:
        final_norm(model)
    except UnsupportedModelError as error:
        raise AnalysisError(str(error)) from error


def _parts(found: PredictionMaps) -> tuple[list[list[int | str]], Tensor]:
    """Names and values (l, parts), in the order of the model."""
    names: list[list[int | str]] = [["embedding", "skip"]]
    values = [found.embedding]
    for layer, by_path in found.paths.items():
        names += [[layer, path] for path in by_path]
        values += by_path.values()
    return [*names, ["unembedding", "bias"]], torch.stack([*values, found.constant], dim=1)
