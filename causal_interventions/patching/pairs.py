"""Pairs of a clean and a corrupt text with their answers, as a user passes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from causal_interventions.targets import resolve_token
from mamba_mixers.weights import check_has_logits, num_embeddings
from suite_plumbing.arguments import int_or_none, validate_int, whole_numbers
from suite_plumbing.messages import quoted
from suite_plumbing.model_inputs import encode_for, token_ids
from suite_plumbing.texts import read_book, token_pieces

Texts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""One text or several: strings, or token ids (l,) or (n, l)."""


@dataclass(frozen=True, eq=False)
class TextPair:
    """A text, its corrupt twin, and what follows each."""

    clean: Tensor
    """(l',) token ids"""
    corrupt: Tensor
    """(l,)"""
    answers: tuple[int, int]
    """ids of the token that follows the clean text, and of the one that follows the corrupt"""
    alignment: Tensor
    """(l,) token of the clean text that stands at each of the corrupt one's; -1 for none"""
    tokens: list[str] | None
    """(l,) spelling of the corrupt text's tokens; None without a tokenizer"""


class PairsFile(NamedTuple):
    """The lines of a file of pairs."""

    clean: list[str]
    corrupt: list[str]
    answers: list[tuple[str | int, str | int]]


def text_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    clean: Texts,
    corrupt: Texts,
    answers: Any,
    alignment: Sequence[int] | None = None,
) -> list[TextPair]:
    """Check pairs of texts and their answers, and encode them.

    ``answers``: two tokens for all pairs, or two for each; ids, or spellings that are one token of
    the vocabulary (" the"). ``alignment``: for each token of the corrupt text the token of the
    clean text that stands for it, -1 for none; without it both have the same number of tokens.
    Raises ValueError, naming the pair, where that is not so, for as many clean as corrupt texts or
    answers, for twins that are the same, an answer that is not one token, and two answers alike.
    """
    check_has_logits(model)
    clean_ids, corrupt_ids = (
        _encoded(model, tokenizer, name, texts)
        for name, texts in (("clean", clean), ("corrupt", corrupt))
    )
    if len(clean_ids) != len(corrupt_ids):
        raise ValueError(
            f"clean has {len(clean_ids)} texts and corrupt {len(corrupt_ids)}; pass as many"
        )
    chosen = _answers(answers, len(clean_ids), tokenizer, num_embeddings(model))
    return [
        _pair(index, *parts, alignment, tokenizer)
        for index, parts in enumerate(zip(clean_ids, corrupt_ids, chosen, strict=True))
    ]


def read_pairs(path: str | Path) -> PairsFile:
    """Pairs of a ``.jsonl`` file, one object a line with clean, corrupt and answers (two tokens).

    Raises ValueError, naming the line, for one that is something else, and for no lines.
    """
    found = PairsFile([], [], [])
    for number, line in enumerate(read_book(path, "file of pairs").split("\n"), 1):
        if line.strip():
            clean, corrupt, answers = _line(line, f"line {number} of {quoted(str(path))}")
            found.clean.append(clean)
            found.corrupt.append(corrupt)
            found.answers.append(answers)
    return found


def _line(line: str, place: str) -> tuple[str, str, tuple[str | int, str | int]]:
    advice = 'write {"clean": "...", "corrupt": "...", "answers": ["...", "..."]}'
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON ({error.msg}); {advice}") from error
    keys = given if isinstance(given, dict) else {}
    if missing := [key for key in ("clean", "corrupt", "answers") if key not in keys]:
        raise ValueError(f"{place} lacks {', '.join(missing)}; {advice}")
    texts, answers = (given["clean"], given["corrupt"]), given["answers"]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: clean and corrupt must be texts; {advice}")
    if not isinstance(answers, list) or len(answers) != 2:
        raise ValueError(f"{place}: answers is {quoted(answers)}, not two tokens; {advice}")
    return *texts, (answers[0], answers[1])


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str, texts: Texts
) -> list[Tensor]:
    listed: Any = [texts] if isinstance(texts, str) else texts
    if isinstance(listed, (list, tuple)) and any(isinstance(text, str) for text in listed):
        _, encoded = encode_for(model, tokenizer, list(listed))
        return [torch.tensor(text.input_ids) for text in encoded]
    nested = isinstance(texts, (list, tuple)) and texts and not isinstance(texts[0], int)
    vocabulary = num_embeddings(model)
    rows = [token_ids(name, row, vocabulary) for row in (texts if nested else [texts])]
    return [row for part in rows for row in part]


def _answers(
    answers: Any, count: int, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> list[tuple[int, int]]:
    listed = answers.tolist() if hasattr(answers, "tolist") else answers
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ValueError(f"answers is {quoted(answers)}; pass two tokens, or two for each pair")
    if not isinstance(listed[0], (list, tuple)):
        listed = [listed] * count
    if len(listed) != count:
        raise ValueError(f"answers has {len(listed)} entries for {count} pairs; pass as many")
    return [_answer(index, two, tokenizer, vocabulary) for index, two in enumerate(listed)]


def _answer(
    index: int, two: Any, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> tuple[int, int]:
    if not isinstance(two, (list, tuple)) or len(two) != 2 or None in two:
        raise ValueError(
            f"answers of pair {index} is {quoted(two)}; pass two tokens, that of the clean text "
            "first"
        )
    first, second = (resolve_token(token, tokenizer) for token in two)
    for number in (first, second):
        validate_int(f"answer of pair {index}", number, 0, vocabulary - 1)
    if first == second:
        raise ValueError(f"both answers of pair {index} are token {first}; they must differ")
    return int_or_none(first) or 0, int_or_none(second) or 0


def _pair(
    index: int,
    clean: Tensor,
    corrupt: Tensor,
    answers: tuple[int, int],
    alignment: Sequence[int] | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> TextPair:
    if alignment is None and len(clean) != len(corrupt):
        raise ValueError(
            f"pair {index}: the clean text has {len(clean)} tokens, the corrupt one "
            f"{len(corrupt)}; "
            "choose texts of as many tokens, or, in Python, say in patch(alignment=...) which "
            "token stands for which"
        )
    if len(clean) == len(corrupt) and torch.equal(clean, corrupt):
        raise ValueError(f"pair {index}: clean and corrupt are the same text; nothing to patch")
    if alignment is None:
        aligned = torch.arange(len(corrupt))
    else:
        aligned = torch.tensor(whole_numbers("alignment", alignment, -1, len(clean) - 1))
    if len(aligned) != len(corrupt):
        raise ValueError(
            f"alignment has {len(aligned)} entries, the corrupt text of pair {index} "
            f"{len(corrupt)} tokens; pass one for each"
        )
    tokens = None if tokenizer is None else token_pieces(tokenizer, corrupt.tolist())
    return TextPair(clean, corrupt, answers, aligned, tokens)
