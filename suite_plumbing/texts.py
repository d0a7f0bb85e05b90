"""What a user passes in: choices, integers, devices, layers and texts.

All of it is checked before any model runs. Every refusal is a ValueError that names the argument,
what came and what is allowed.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import index as as_int
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_LAYERS = (0, 3, 6, 9, 12)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

EXAMPLE_TEXTS = (
    "Mrs. Alder kept the harbour lamp for thirty years. Every evening Mrs. Alder climbed the "
    "narrow stair, trimmed the wick, and wrote the hour in a blue ledger. When the storm broke "
    "the window, her grandson Tom held a blanket against the wind while she lit the harbour lamp "
    "again. The fishermen saw it and turned for home. In the morning Tom opened the blue ledger "
    "and found the hour written there, in the same steady hand, as if there had been no storm.",
    "The copper kettle came first, then the map, then the letter. Daniel laid the three things "
    "on the table and asked his sister which of them their father would have wanted to keep. "
    "Ruth said that the map was wrong and the letter was cruel, but the copper kettle had never "
    "lied to anyone. So they burned the letter, sold the map, and Daniel filled the copper kettle "
    "with water. Ruth laughed. It was the first time she had laughed in their father's house.",
    "A tide pool is a small sea that is made again twice a day. When the tide goes out, the water "
    "left among the rocks grows warm and salt; when the tide comes in, it is cold again. The crab "
    "hides under the weed, the limpet shuts its shell, and the small fish wait. Whoever lives in "
    "a tide pool must remember two worlds, the warm one and the cold one, and must know which of "
    "the two is coming next.",
)
"""Three short English texts, written for this suite; names and phrases come back in each."""


def validate_choice(name: str, value: T, allowed: Iterable[T]) -> T:
    """Return `value` if it is one of `allowed`; else raise ValueError that lists them."""
    known = list(allowed)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")
    return value


def validate_int(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int within the bounds; bool and float are refused with a ValueError."""
    number = _int_or_none(value)
    if number is None or number < minimum or (maximum is not None and number > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(
            f"{name} is {value!r} ({type(value).__name__}); it must be an integer of at least "
            f"{minimum}{upper}"
        )
    return number


def _int_or_none(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return as_int(value)
    except TypeError:
        return None


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a usable torch device; None is "cuda" where there is one, else "cpu"."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("tensors there have no values")
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        # Of torch's messages, some of them paragraphs, the first sentence.
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}); pass 'cpu', or 'cuda' where torch "
            "sees a GPU"
        ) from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the torch dtype of that name; None is float32, in which replay is exact to 1e-5."""
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype):
        return validate_choice("dtype", dtype, DTYPES.values())
    return DTYPES[validate_choice("dtype", dtype, DTYPES)]


def resolve_layer_indices(
    layer_indices: Sequence[int] | str | None, available: Sequence[int], num_layers: int
) -> list[int]:
    """Return the layers to analyse, ascending, as indices from 0.

    layer_indices: a list (negatives count from the end), "all" = every one of `available`, or
    None = [0, 3, 6, 9, 12] where all of these are available, else five evenly spaced ones (fewer
    where the model has fewer).
    available: the layers that hold what is analysed; num_layers: the model's depth.
    Raises ValueError for an empty list, an entry that is not an int (bool included), one out of
    range, one named twice, and a layer that is not available (the message lists those that are).
    """
    known = sorted(available)
    if not known:
        raise ValueError(f"none of the model's {num_layers} layers can be analysed")
    if layer_indices is None:
        return _default_layers(known)
    if isinstance(layer_indices, str):
        validate_choice("layer_indices", layer_indices, ["all"])
        return known
    if not isinstance(layer_indices, Iterable):
        raise ValueError(f"layer_indices is {layer_indices!r}; pass a list, 'all' or None")
    chosen = [_resolve_layer(entry, known, num_layers) for entry in layer_indices]
    if not chosen:
        raise ValueError("layer_indices is empty; name at least one layer, 'all' or None")
    for layer in chosen:
        if chosen.count(layer) > 1:
            raise ValueError(f"layer {layer} is named twice in layer_indices {layer_indices!r}")
    return sorted(chosen)


def _default_layers(known: Sequence[int]) -> list[int]:
    if set(DEFAULT_LAYERS) <= set(known):
        return list(DEFAULT_LAYERS)
    positions = np.linspace(0, len(known) - 1, num=min(5, len(known)))
    return [known[round(position)] for position in positions]


def _resolve_layer(entry: Any, known: Sequence[int], num_layers: int) -> int:
    number = _int_or_none(entry)
    if number is None:
        raise ValueError(f"layer_indices holds {entry!r} ({type(entry).__name__}), not an integer")
    if not -num_layers <= number < num_layers:
        raise ValueError(
            f"layer {number} is out of range: the model has {num_layers} layers, 0 to "
            f"{num_layers - 1} (or -{num_layers} to -1 from the end)"
        )
    layer = number % num_layers
    if layer not in known:
        raise ValueError(f"layer {layer} cannot be analysed; those that can are {list(known)}")
    return layer


@dataclass(frozen=True)
class EncodedText:
    """One text as the model reads it."""

    text: str
    """The whole text, also where its tokens were cut."""
    input_ids: list[int]
    """Token ids, at most `max_length` of them, at least 2."""
    tokens: list[str]
    """The vocabulary's spelling of each token ("\u0120the" for " the" in byte-level ones)."""
    offsets: list[tuple[int, int]] | None
    """Start and end of each token in `text`, in characters; None for a tokenizer without them."""
    num_tokens_before_truncation: int
    """Length of the whole text, in tokens."""
    truncated: bool
    """Whether tokens were cut off the end."""


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """Return the texts as a list; a string is one text.

    Raises ValueError for no texts, and, naming the index, for a text that is not a string, is
    empty or has nothing but white space.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, (list, tuple)):
        raise ValueError(
            f"texts is of type {type(texts).__name__}; pass a string or a list of them"
        )
    if not texts:
        raise ValueError("texts is empty; pass at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {index} is of type {type(text).__name__}, not a string")
        if not text.strip():
            raise ValueError(f"text {index} is empty or white space ({text!r}); leave it out")
    return list(texts)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    max_length: int,
    *,
    vocab_size: int | None = None,
    reader: str = "the model",
) -> list[EncodedText]:
    """Encode each text by itself, cut at `max_length` tokens (a warning is logged, and recorded).

    Special tokens are those that the tokenizer adds by default, no others.
    Raises ValueError for texts that `check_texts` refuses or the tokenizer cannot take,
    `max_length` below 2, a text of fewer than 2 tokens (named by its index): a single token has no
    dynamics to analyse; and a token of `vocab_size` or above, which `reader` does not have.
    """
    limit = validate_int("max_length", max_length, 2)
    encoded = [_encode(tokenizer, text, i, limit) for i, text in enumerate(check_texts(texts))]
    for index, text in enumerate(encoded):
        if vocab_size is not None and max(text.input_ids) >= vocab_size:
            raise ValueError(
                f"text {index} has the token id {max(text.input_ids)} for {reader}, which knows 0 "
                f"to {vocab_size - 1}; pass the tokenizer that belongs to this model"
            )
    return encoded


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, index: int, max_length: int
) -> EncodedText:
    has_offsets = bool(getattr(tokenizer, "is_fast", False))
    try:
        # verbose=False: the tokenizer's own remark on its model_max_length; ours follows below.
        encoding = tokenizer(text, return_offsets_mapping=has_offsets, verbose=False)
    except Exception as error:  # the tokenizers package raises the bare class
        raise ValueError(
            f"text {index} ({text[:40]!r}) cannot be tokenized: {type(error).__name__}: {error}; "
            "leave out what the tokenizer does not know, such as half of a surrogate pair"
        ) from error
    ids: list[int] = list(encoding["input_ids"])
    if len(ids) < 2:
        raise ValueError(
            f"text {index} ({text[:40]!r}) has {len(ids)} token(s); an analysis needs at least 2"
        )
    if len(ids) > max_length:
        logger.warning("text %d has %d tokens; cut to the first %d", index, len(ids), max_length)
    kept = ids[:max_length]
    offsets = [tuple(span) for span in encoding["offset_mapping"]] if has_offsets else None
    return EncodedText(
        text=text,
        input_ids=kept,
        tokens=[str(token) for token in tokenizer.convert_ids_to_tokens(kept)],
        offsets=None if offsets is None else offsets[:max_length],
        num_tokens_before_truncation=len(ids),
        truncated=len(ids) > max_length,
    )


def repeated_texts(encoded: Sequence[EncodedText]) -> dict[int, int]:
    """Texts that have the tokens of an earlier one: their number, and that one's.

    Pooled as texts of their own they would count as evidence that there is not: noise in a text
    given three times exceeds the null of any statistic over texts nearly always.
    """
    first: dict[tuple[int, ...], int] = {}
    for index, text in enumerate(encoded):
        first.setdefault(tuple(text.input_ids), index)
    earlier = {index: first[tuple(text.input_ids)] for index, text in enumerate(encoded)}
    return {index: number for index, number in earlier.items() if index != number}


def text_origins(encoded: Sequence[EncodedText]) -> dict[str, dict[str, Any]]:
    """By text, for the provenance: how many tokens it has, and had before it was cut; ``same_as``
    names an earlier text of the same tokens."""
    origins: dict[str, dict[str, Any]] = {
        f"text_{i}": {
            "num_tokens": len(text.input_ids),
            "num_tokens_before_truncation": text.num_tokens_before_truncation,
            "truncated": text.truncated,
        }
        for i, text in enumerate(encoded)
    }
    for repeated, first in repeated_texts(encoded).items():
        origins[f"text_{repeated}"]["same_as"] = f"text_{first}"
    return origins


def distinct_texts(encoded: Sequence[EncodedText]) -> list[EncodedText]:
    """The texts without `repeated_texts`; a warning is logged for each that is left out."""
    repeated = repeated_texts(encoded)
    for index, number in repeated.items():
        logger.warning("text %d is text %d again and does not count a second time", index, number)
    return [text for index, text in enumerate(encoded) if index not in repeated]


def pad_batch(encoded: Sequence[EncodedText], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return `input_ids (b, l)` and `attention_mask (b, l)`, int64, padded on the LEFT to one l.

    On the left, since a state must not run on over padding after the text; the mask is 1 on text.
    """
    if not encoded:
        raise ValueError("no encoded texts to pad into a batch")
    pad_token_id = validate_int("pad_token_id", pad_token_id, 0)
    length = max(len(item.input_ids) for item in encoded)
    ids = torch.full((len(encoded), length), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(encoded):
        start = length - len(item.input_ids)
        ids[row, start:] = torch.tensor(item.input_ids)
        mask[row, start:] = 1
    return ids, mask


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the padding token, else end of text, else 0 (it is masked)."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token_id for token_id in candidates if isinstance(token_id, int))


def batches_by_length(encoded: Sequence[EncodedText], batch_size: int) -> list[list[int]]:
    """Return indices into `encoded`, in batches of texts of similar length (little padding).

    Shortest first, ties in the order given; every index once; the last batch may be smaller.
    """
    size = validate_int("batch_size", batch_size, 1)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids))
    return [order[start : start + size] for start in range(0, len(order), size)]


_NOT_LINES_OF_TEXT = (".json", ".csv", ".tsv")


def read_texts_file(path_or_dash: str | Path) -> list[str]:
    """Read texts from a UTF-8 file, or from standard input for "-".

    `.jsonl`: one object a line, with its text under "text". Any other name, and "-": one text a
    line. Blank lines are skipped.
    Raises ValueError for a file that is missing or cannot be read, one whose name says that its
    lines are not texts (`.json`, `.csv`, ...), bytes that are not UTF-8 (with their position), a
    `.jsonl` line that is wrong (with its number), and a file without texts.
    """
    if (suffix := Path(path_or_dash).suffix.lower()) in _NOT_LINES_OF_TEXT:
        raise ValueError(
            f"texts file {str(path_or_dash)!r} is {suffix}, whose lines are not texts; write one "
            'text a line as .txt, or objects like {"text": "..."} as .jsonl'
        )
    from_stdin = str(path_or_dash) == "-"
    name = "standard input" if from_stdin else f"texts file {str(path_or_dash)!r}"
    content = _decoded(sys.stdin.buffer.read if from_stdin else Path(path_or_dash).read_bytes, name)
    # Not splitlines(): it also splits at characters that may stand inside a JSON string.
    lines = content.split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    is_jsonl = str(path_or_dash).lower().endswith(".jsonl")
    texts = [_jsonl_text(line, f"{name}, line {n}") if is_jsonl else line for n, line in numbered]
    if not texts:
        raise ValueError(f"{name} holds no text; write one text a line")
    return texts


def read_book(path: str | Path) -> str:
    """A UTF-8 file as one text; ValueError, with the reason, if it cannot be read or is blank."""
    text = _decoded(Path(path).read_bytes, f"book {str(path)!r}")
    if not text.strip():
        raise ValueError(f"book {str(path)!r} is empty; give a file with text")
    return text


def _decoded(read: Callable[[], bytes], name: str) -> str:
    """UTF-8 text without byte order mark, its lines ended by "\\n" alone."""
    try:
        return read().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; "
            "save it as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error


def _jsonl_text(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError(f"{place}: brackets too deep to read; write an object a line") from error
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError(f'{place}: no "text" field; each line is an object like {{"text": "..."}}')
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f'{place}: "text" is of type {type(text).__name__}, not a string')
    if not text.strip():
        raise ValueError(f'{place}: "text" is empty or white space')
    return text
