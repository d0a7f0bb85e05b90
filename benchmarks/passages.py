"""Passages of a book: spread over it, of equal length, and some of them read a second time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from suite_plumbing.texts import EncodedText, encode_texts

PASSAGE = 64  # tokens of a passage that is read twice
GAP = 64  # tokens between its readings
LAG = PASSAGE + GAP - 1  # tokens, from a query of the second reading to what it needs
SKIPPED = 8  # tokens at the start of the second reading that nothing tells to be a repeat
REACH = 4  # tokens that the convolution mixes: width of the window of lags
NEIGHBOURS = 4  # windows on either side that the window at the lag is compared with
AROUND = [k * REACH for k in range(-NEIGHBOURS, NEIGHBOURS + 1) if k]  # those windows' offsets


def spread_starts(num_tokens: int, count: int, length: int) -> list[int]:
    """Where ``count`` pieces of ``length`` tokens start, the first at 0, the last ending the text.

    Raises ValueError for a text of fewer than count * length tokens.
    """
    if num_tokens < count * length:
        raise ValueError(
            f"the text has {num_tokens} tokens; {count} passages of {length} need "
            f"{count * length}. Give a longer text, or fewer or shorter passages"
        )
    return np.linspace(0, num_tokens - length, count).astype(int).tolist()


def spread_rows(ids: Sequence[int], count: int, length: int) -> Tensor:
    """(count, length) rows of a text's ids, spread evenly over it."""
    starts = spread_starts(len(ids), count, length)
    return torch.tensor([list(ids[start : start + length]) for start in starts])


def repeated_rows(ids: Sequence[int], count: int) -> Tensor:
    """(count, PASSAGE + GAP + PASSAGE) rows: text, and its first PASSAGE tokens again."""
    rows = spread_rows(ids, count, PASSAGE + GAP)
    return torch.cat([rows, rows[:, :PASSAGE]], dim=1)


def encoded_passages(
    text: str, tokenizer: PreTrainedTokenizerBase, count: int, length: int
) -> list[EncodedText]:
    """``count`` passages of about ``length`` tokens, each from the start of a token to its end.

    Raises ValueError for a text with fewer than count * length tokens.
    """
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    starts = spread_starts(len(offsets), count, length)
    pieces = [text[offsets[i][0] : offsets[i + length - 1][1]] for i in starts]
    # A passage's first word may be cut into more tokens by itself than it is inside the text.
    return encode_texts(tokenizer, pieces, 2 * length)
