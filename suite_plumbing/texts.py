"""Texts: checked, read from files, encoded, batched; and tokens as a reader sees them.

All of it is checked before any model runs. Every refusal is a ValueError that names the argument,
what came and what is allowed.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from suite_plumbing.arguments import validate_int
from suite_plumbing.errors import reading
from suite_plumbing.messages import quoted, reason_of
from suite_plumbing.paths import user_path
from suite_plumbing.related_texts import Reading, readings

logger = logging.getLogger(__name__)


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
            raise ValueError(f"text {index} is empty or white space ({quoted(text)}); leave it out")
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


def tokenized(
    tokenizer: PreTrainedTokenizerBase, text: str, shown: str, **options: Any
) -> Mapping[str, Any]:
    """What a tokenizer says of one text; ``shown`` says in a message what text it is.

    Raises ValueError, in one sentence, whatever the tokenizer raises.
    """
    advice = "leave out what the tokenizer does not know, such as half of a surrogate pair"
    # verbose=False: the tokenizer's own remark on its model_max_length, which is not meant here.
    with reading(f"{shown} cannot be tokenized", advice):
        return tokenizer(text, verbose=False, **options)


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, index: int, max_length: int
) -> EncodedText:
    has_offsets = bool(getattr(tokenizer, "is_fast", False))
    shown = f"text {index} ({quoted(text, 40)})"
    encoding = tokenized(tokenizer, text, shown, return_offsets_mapping=has_offsets)
    ids: list[int] = list(encoding["input_ids"])
    if len(ids) < 2:
        raise ValueError(f"{shown} has {len(ids)} token(s); an analysis needs at least 2")
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


def read_texts(encoded: Sequence[EncodedText]) -> list[Reading]:
    """What each text adds to those before it, and which texts are related (`related_texts`)."""
    return readings(text.input_ids for text in encoded)


def repeated_texts(encoded: Sequence[EncodedText]) -> dict[int, int]:
    """Texts that have the tokens of an earlier one: their number, and that one's.

    Of what was read before these have all and nothing else: see `related_texts`. A text that an
    earlier one begins with is not among them: where it ends, something else may be asked of it.
    """
    repeated: dict[int, int] = {}
    for index, read in enumerate(read_texts(encoded)):
        if read.same_as is not None:
            earlier = (i for i in range(index) if encoded[i].input_ids == encoded[index].input_ids)
            if (first := next(earlier, None)) is not None:
                repeated[index] = first
    return repeated


def text_origins(encoded: Sequence[EncodedText]) -> dict[str, dict[str, Any]]:
    """By text, for the provenance: how many tokens it has, and had before it was cut.

    ``num_read_before``: tokens at its beginning that an earlier text began with too, which count in
    no statistic again; ``group``: the first of the texts that it is related to, itself if to none:
    texts of one group are one sample. ``same_as`` names an earlier text of the same tokens.
    """
    origins: dict[str, dict[str, Any]] = {
        f"text_{i}": {
            "num_tokens": len(text.input_ids),
            "num_tokens_before_truncation": text.num_tokens_before_truncation,
            "truncated": text.truncated,
            "num_read_before": read.num_seen,
            "group": f"text_{read.group}",
        }
        for i, (text, read) in enumerate(zip(encoded, read_texts(encoded), strict=True))
    }
    for repeated, first in repeated_texts(encoded).items():
        origins[f"text_{repeated}"]["same_as"] = f"text_{first}"
    return origins


def distinct_texts(encoded: Sequence[EncodedText]) -> list[EncodedText]:
    """The texts without `repeated_texts`; a warning is logged for each that is left out, and one
    that names the groups of related texts among the others."""
    repeated = repeated_texts(encoded)
    groups: dict[int, list[int]] = {}
    for index, read in enumerate(read_texts(encoded)):
        if index not in repeated:
            groups.setdefault(read.group, []).append(index)
    for related in groups.values():
        if len(related) > 1:
            logger.warning("texts %s share much and count as one", ", ".join(map(str, related)))
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


def batches_by_length(
    encoded: Sequence[EncodedText], batch_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Return indices into `encoded`, in batches of texts of similar length (little padding).

    Shortest first, ties in the order given; every index once. A batch has at most `batch_size`
    texts and, with its padding, `max_tokens` tokens, but for a text that has more of them alone.
    """
    size = validate_int("batch_size", batch_size, 1)
    batches: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids)):
        count = len(batches[-1]) + 1 if batches else size + 1
        tokens = count * len(encoded[index].input_ids)  # the longest so far
        if count > size or (max_tokens is not None and tokens > max_tokens):
            batches.append([])
        batches[-1].append(index)
    return batches


_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")

_NOT_TEXTS = {
    **dict.fromkeys((".json", ".csv", ".tsv"), "whose lines are not texts"),
    **dict.fromkeys((".md", ".markdown", ".rst", ".tex", ".html", ".htm"),
                    "a document of many lines: pass --one-text to read it as one text"),
    **dict.fromkeys((".zip", ".7z", ".tar", ".tgz", ".bz2", ".xz", ".zst"),
                    "an archive: unpack it and name a file of it"),
    **dict.fromkeys((".pdf", ".docx", ".epub", ".parquet", ".arrow", ".npy", ".bin"),
                    "not plain text: save its text as UTF-8"),
}  # fmt: skip
"""By suffix, why a file is not taken for one text a line."""

_DOCUMENTS = (".md", ".markdown", ".rst", ".tex", ".html", ".htm")

_HOW_TO_WRITE = 'write one text a line as .txt, or objects like {"text": "..."} as .jsonl'


def read_texts_file(path_or_dash: str | Path, *, one_text: bool = False) -> list[str]:
    """Read texts from a UTF-8 file, or from standard input for "-"; what is gzipped is unpacked.

    JSON lines, by name (`.jsonl`, `.ndjson`, `.jsonlines`) or by a first line that is a JSON
    object: one object a line, with its text under "text". Otherwise one text a line, or with
    ``one_text`` the whole file as one text. Blank lines are skipped. A warning is logged where the
    lines look like those of one text, wrapped.
    Raises ValueError for a file that is missing or cannot be read, one whose name or beginning says
    that its lines are not texts (`.json`, `.csv`, `.md`, `.zip`, ...), bytes that are not UTF-8
    (with their position), a line of JSON that is wrong or stands among others (with its number),
    and a file without texts.
    """
    from_stdin = isinstance(path_or_dash, str) and path_or_dash == "-"
    path = Path("-") if from_stdin else _file(path_or_dash)
    name = "standard input" if from_stdin else f"texts file {quoted(str(path_or_dash))}"
    suffix = "" if from_stdin else _suffix(path)
    if suffix in _NOT_TEXTS and not (one_text and suffix in _DOCUMENTS):
        raise ValueError(f"{name} is {suffix}, {_NOT_TEXTS[suffix]}; {_HOW_TO_WRITE}")
    content = _decoded(_stdin_bytes if from_stdin else path.read_bytes, name)
    # Not splitlines(): it also splits at characters that may stand inside a JSON string.
    lines = content.split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{name} holds no text; write one text a line")
    is_jsonl = suffix in _JSON_LINES or _holds_json(numbered[0][1])
    if not is_jsonl and not one_text:
        _check_no_json(numbered, name)
    if one_text and is_jsonl:
        raise ValueError(f"{name} holds JSON lines, each with a text: leave out --one-text")
    if is_jsonl:
        return [_jsonl_text(line, f"{name}, line {n}") for n, line in numbered]
    if content.lstrip()[:1] in ("{", "[") and _holds_json(content, list, dict):
        raise ValueError(f"{name} is one JSON document, whose lines are not texts; {_HOW_TO_WRITE}")
    if one_text:
        return [content.strip()]
    texts = [line for _, line in numbered]
    if width := wrapped_at(texts):
        logger.warning(
            "the lines of %s look like prose wrapped at %d characters, and each is analysed as a "
            "text of its own: --one-text reads the file as one text", name, width,
        )  # fmt: skip
    return texts


def _check_no_json(numbered: Sequence[tuple[int, str]], name: str) -> None:
    """Raise ValueError for JSON among lines of text: its brackets would be analysed as prose."""
    if len(numbered) > 1 and all(_holds_json(line, str, list) for _, line in numbered):
        raise ValueError(f"{name} holds JSON lines that are no objects; {_HOW_TO_WRITE}")
    mixed = next((n for n, line in numbered if line.lstrip()[:1] == "{" and _holds_json(line)), 0)
    if mixed:
        raise ValueError(
            f"{name}, line {mixed}: a JSON object, where the first line is none; {_HOW_TO_WRITE}"
        )


def wrapped_at(lines: Sequence[str]) -> int | None:
    """The length of the longest line if lines look like prose wrapped at a width, else None.

    They do where most of at least five break off in the middle of a sentence: they end without a
    mark that ends one, and the next begins with a small letter.
    """
    ends = [line.rstrip() for line in lines]
    width = max(map(len, ends), default=0)
    if len(ends) < 5 or not 40 <= width <= 200:
        return None
    broken = sum(
        end[-1] not in ".!?\"'”’:;)" and following.lstrip()[0].islower()
        for end, following in zip(ends, lines[1:], strict=False)
    )
    return width if broken > (len(ends) - 1) / 2 else None


def read_book(path: str | Path, kind: str = "book") -> str:
    """A UTF-8 file as one text, gunzipped if need be; ValueError, with the reason, if it cannot be
    read or is blank; ``kind`` says there what it is."""
    file = _file(path)
    name = f"{kind} {quoted(str(path))}"
    text = _decoded(file.read_bytes, name)
    if not text.strip():
        raise ValueError(f"{name} is empty; give a file with text")
    return text


def _suffix(path: Path) -> str:
    """Of "texts.jsonl.gz" it is that of "texts.jsonl"."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _file(path: str | Path) -> Path:
    file = user_path(path, "file of texts")
    if not str(path):
        raise ValueError("the name of the file of texts is empty; pass a file, or - for stdin")
    return file


def _stdin_bytes() -> bytes:
    if sys.stdin is None:
        raise OSError("there is none")
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if buffer is None else buffer.read()


def _decoded(read: Callable[[], bytes], name: str) -> str:
    """UTF-8 text without byte order mark, its lines ended by "\\n" alone."""
    try:
        raw = read()
        raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        if raw.startswith(b"PK\x03\x04"):
            raise ValueError(f"{name} is a zip archive: unpack it and name a file of it")
        if b"\0" in raw:
            raise ValueError(
                f"{name} is no text: byte {raw.index(0)} is 0, as in UTF-16 and in binary files; "
                "save it as UTF-8"
            )
        text = raw.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
        return text if "\n" in text else text.replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; "
            "save it as UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be read: {reason}") from error


def _holds_json(text: str, *types: type) -> bool:
    """Whether this is JSON of one of these types, an object if none is given."""
    try:
        return isinstance(json.loads(text), types or dict)
    except (ValueError, RecursionError):
        return False


def _jsonl_text(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        why = "brackets too deep to read" if isinstance(error, RecursionError) else reason_of(error)
        raise ValueError(f"{place}: {why}; write an object a line") from error
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError(f'{place}: no "text" field; each line is an object like {{"text": "..."}}')
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f'{place}: "text" is of type {type(text).__name__}, not a string')
    if not text.strip():
        raise ValueError(f'{place}: "text" is empty or white space')
    return text


def clean_token(token: str, max_length: int = 16) -> str:
    """A tokenizer's token as text for a matplotlib label; a cleaned label may be cleaned again.

    Byte-level tokens are decoded ("Ġthe" is " the", "Ã©" is "é"), bytes that are no whole character
    shown as "\\xe2"; SentencePiece's "▁" is a space and "<0x0A>" its byte. A token of spaces alone
    shows as "␣", control characters as escapes ("\\n"), `$` is escaped (matplotlib's mathematics),
    and anything longer than `max_length` ends in "…".
    """
    text = _decode_bytes(token.replace(r"\$", "$")).replace("\u2581", " ")
    if text and not text.strip(" "):
        text = "\u2423" * len(text)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > max_length:
        text = text[: max_length - 1] + "\u2026"
    return text.replace("$", r"\$")


def readable_token(token: str, max_length: int = 16) -> str:
    """`clean_token` for a terminal or a page, which know no mathematics: "$" is itself."""
    return clean_token(token, max_length).replace(r"\$", "$")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: itself if printable in Latin-1, else from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(256 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | stand_ins


_BYTE_ALPHABET = _byte_alphabet()


def _decode_bytes(token: str) -> str:
    """Text of a byte-level token; any other token as it is."""
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return chr(int(match[1], 16))
    if not all(character in _BYTE_ALPHABET for character in token):
        return token
    raw = bytes(_BYTE_ALPHABET[character] for character in token)
    # "é" alone is a letter of another tokenizer; stand-ins (U+0100 on) only a byte-level one has.
    errors = "backslashreplace" if max(token, default="") >= "\u0100" else "strict"
    try:
        return raw.decode("utf-8", errors)
    except UnicodeDecodeError:
        return token


def ids_of_tokens(tokenizer: PreTrainedTokenizerBase | None, size: int) -> list[int]:
    """The ids below ``size`` that stand for a token, ascending; all of them without a tokenizer.

    A model's vocabulary is often padded to a round number: its further rows are no token's.
    """
    if tokenizer is None:
        return list(range(size))
    return sorted({i for i in tokenizer.get_vocab().values() if 0 <= i < size})


def token_pieces(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """Each token decoded by itself, a leading space kept (SentencePiece's decoder drops it)."""
    ids = [int(i) for i in input_ids]
    pieces = []
    for token, token_id in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True):
        piece = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        lost_space = str(token).startswith("\u2581") and not piece.startswith(" ")
        pieces.append(" " + piece if lost_space else piece)
    return pieces
