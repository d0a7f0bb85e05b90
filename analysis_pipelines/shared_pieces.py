"""Pieces of a text that several tokenizers have in common, and what models say pooled over them.

Models that read one text through different tokenizers have no tokens in common, but characters. A
token covers the characters from the end of the token before it to its own end (so that a space
belongs to the token after it, however a tokenizer counts it), and a token without characters of its
own (a beginning-of-text mark) goes with the token after it, at the end of the text with the last.
A piece is what lies between two neighbouring ends that all tokenizers share: the finest division
of the text of which every token of every tokenizer is a part.

Pooling, with piece a of |a| tokens: activations are averaged over a piece's tokens; of a map with
rows over sources, P[a, b] = 1/|a| sum over t in a, s in b of map[t, s], so that rows that sum to 1
still do, and a causal map stays causal. Where the tokens are the same, pieces are the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suite_plumbing.messages import quoted
from suite_plumbing.precision import in_full_precision
from suite_plumbing.texts import EncodedText


@dataclass(frozen=True, eq=False)
class Pieces:
    """How one model's tokens of a text fall into the pieces that all models share."""

    groups: Tensor
    """(l,) number of each token's piece, ascending from 0; of the l tokens that the model is to
    read: those beyond the last shared piece are cut off, so that all models read the same text"""
    num_pieces: int
    num_characters: int | None
    """characters of the text that the pieces cover; None where no tokenizer tells (then the tokens
    are the same)"""
    are_tokens: bool
    """whether every piece is one token of every model"""


def shared_pieces(encoded: Mapping[str, EncodedText], index: int = 0) -> dict[str, Pieces]:
    """The pieces of one text by model; ``encoded`` is the text as each model's tokenizer gives it.

    Tokens that are spelled alike from the first to the end of the shorter list are the same tokens.
    Otherwise the pieces lie between shared ends; where a text was cut, the end of its last token is
    not counted, for that token may be half a character.
    Raises ValueError, naming the text by ``index``, for tokens that differ where a tokenizer gives
    no character offsets (a slow one), and for fewer than 2 shared pieces.
    """
    same = _same_tokens(encoded)
    found = same if same is not None else _by_characters(encoded, index)
    if next(iter(found.values())).num_pieces < 2:
        raise ValueError(
            f"the models' tokenizers have fewer than 2 pieces of text {index} in common "
            f"({quoted(next(iter(encoded.values())).text, 40)}); leave it out, or raise "
            "--max-sequence-length"
        )
    return found


@in_full_precision
def pooled_map(weights: Tensor, pieces: Pieces) -> Tensor:
    """P[a, b] of the module's docstring: a map (l, l) over tokens as one (pieces, pieces)."""
    if pieces.are_tokens:
        return weights
    members = _membership(pieces).to(weights)
    return (members @ weights @ members.T) / members.sum(1, keepdim=True)


@in_full_precision
def pooled_rows(values: Tensor, pieces: Pieces) -> Tensor:
    """Mean over each piece's tokens of values (l, d): (pieces, d)."""
    if pieces.are_tokens:
        return values
    members = _membership(pieces).to(values)
    return (members @ values) / members.sum(1, keepdim=True)


def _membership(pieces: Pieces) -> Tensor:
    """(pieces, l) 1 where the token is in the piece."""
    return torch.arange(pieces.num_pieces)[:, None] == pieces.groups


def _same_tokens(encoded: Mapping[str, EncodedText]) -> dict[str, Pieces] | None:
    texts = list(encoded.values())
    length = min(len(text.tokens) for text in texts)
    if any(text.tokens[:length] != texts[0].tokens[:length] for text in texts):
        return None
    offsets = texts[0].offsets
    covered = None if offsets is None else int(_ends(offsets)[length - 1])
    pieces = Pieces(torch.arange(length), length, covered, True)
    return dict.fromkeys(encoded, pieces)


def _by_characters(encoded: Mapping[str, EncodedText], index: int) -> dict[str, Pieces]:
    ends = {}
    for name, text in encoded.items():
        if text.offsets is None:
            raise ValueError(
                f"the models' tokens of text {index} differ, and the tokenizer of {quoted(name)} "
                "gives "
                "no character offsets to align them by (it is a slow one); save the model with a "
                "fast tokenizer, or compare models with the same tokenizer"
            )
        ends[name] = _ends(text.offsets)
    known = []
    for name, text in encoded.items():
        whole = ends[name] if not text.truncated else ends[name][ends[name] < ends[name][-1]]
        known.append(set(whole.tolist()))
    shared = np.array(sorted(set.intersection(*known) - {0}), dtype=np.int64)
    found = {}
    for name in encoded:
        groups = np.searchsorted(shared, ends[name])
        kept = torch.from_numpy(groups[groups < len(shared)])
        covered = int(shared[-1]) if len(shared) else 0
        found[name] = Pieces(kept, len(shared), covered, False)
    return found


def _ends(offsets: list[tuple[int, int]]) -> np.ndarray:
    """Where each token's characters end; a token without any ends where the one before it did."""
    return np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
