"""What a model is called with: token ids and their mask, however a user passes them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.models import require_tokenizer
from suite_plumbing.texts import EncodedText, check_texts, encode_texts, pad_batch, padding_id


def encode_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: str | Sequence[str],
    max_length: int = sys.maxsize,
) -> tuple[PreTrainedTokenizerBase, list[EncodedText]]:
    """A model's tokenizer, the one given or its own, and texts as the model is to read them.

    Raises ValueError for bad texts, before a tokenizer is looked for, and for what `encode_texts`
    and `require_tokenizer` refuse.
    """
    checked = check_texts(texts)
    tokenizer = require_tokenizer(model, tokenizer)
    vocab_size = model.config.vocab_size
    return tokenizer, encode_texts(tokenizer, checked, max_length, vocab_size=vocab_size)


def encode_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: str | Sequence[str] | Tensor | Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, each (b, l), of texts (left padded), ids or an encoding."""
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs}
    if not isinstance(inputs, Mapping):
        tokenizer, encoded = encode_for(model, tokenizer, inputs)
        return pad_batch(encoded, padding_id(tokenizer))
    if "input_ids" not in inputs:
        raise ValueError(
            f"inputs has no input_ids, only {quoted(list(inputs))}; pass a tokenizer's output"
        )
    ids = token_ids("inputs", inputs["input_ids"], model.config.vocab_size)
    return ids, _mask_of(ids, inputs.get("attention_mask"))


def token_ids(name: str, values: Any, vocabulary: int) -> Tensor:
    """Token ids (b, l), int64, of whatever holds whole numbers (l,) or (b, l).

    A list, an array or a tensor, of any integer dtype: corpora are kept as uint16 or int32. Raises
    ValueError, naming the argument, for no ids, other shapes, fractions, and an id that a model of
    this vocabulary does not know.
    """
    ids = _whole_numbers(name, values)
    if ids.dim() != 2 or ids.numel() == 0 or not _holds_integers(ids):
        raise ValueError(
            f"{name} must be token ids (l,) or (b, l), got {tuple(ids.shape)} of {ids.dtype}"
        )
    # Of few dtypes has torch a minimum, or an embedding.
    ids = ids.to(torch.int64)
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"{name} holds ids from {ids.min()} to {ids.max()}; the model knows 0 to "
            f"{vocabulary - 1}. Was it tokenized for another model?"
        )
    return ids


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _mask_of(ids: Tensor, mask: Tensor | None) -> Tensor:
    """The attention mask that came with these ids (b, l), ones for None; checked.

    Padding stands before or after a text: between its tokens the state would run on over it.
    """
    if mask is None:
        return torch.ones_like(ids)
    mask = _whole_numbers("attention_mask", mask)
    if not mask.is_floating_point():
        mask = mask.to(torch.int64)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must be 1 at tokens and 0 at padding; it has other values")
    mask = mask.to(ids.dtype)
    starts = (mask.diff(dim=1, prepend=torch.zeros_like(mask[:, :1])) == 1).sum(1)
    if not bool((starts == 1).all()):
        row = int((starts != 1).long().argmax())
        raise ValueError(
            f"attention_mask has {int(starts[row])} runs of tokens in row {row}; each row is one "
            "text without gaps, with padding before or after it"
        )
    return mask


def _whole_numbers(name: str, values: Any) -> Tensor:
    """A tensor (b, l) of what a user passed; ValueError for what has no such shape."""
    try:
        # numpy first: a list of its integers, or of tensors, is no list of numbers to torch.
        known = isinstance(values, (Tensor, np.ndarray))
        tensor = torch.as_tensor(values if known else np.asarray(values))
    except Exception as error:
        raise ValueError(
            f"{name} cannot be taken as numbers of shape (l,) or (b, l) ({reason_of(error)}); pad "
            "texts of unequal length, as tokenizer(texts, padding=True) does"
        ) from error
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
