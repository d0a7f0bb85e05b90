"""Every refusal names what came and what is allowed; batching and padding lose no token."""

import gzip
import io
import json
import logging
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from suite_plumbing import texts
from suite_plumbing.texts import (
    EXAMPLE_TEXTS,
    EncodedText,
    batches_by_length,
    check_texts,
    distinct_texts,
    encode_texts,
    pad_batch,
    padding_id,
    read_book,
    read_texts_file,
    repeated_texts,
    wrapped_at,
)


def encoded(*lengths: int) -> list[EncodedText]:
    return [
        EncodedText("t", list(range(1, n + 1)), ["x"] * n, None, n, truncated=False)
        for n in lengths
    ]


def test_example_texts_are_of_the_promised_length_and_repeat_themselves() -> None:
    assert len(EXAMPLE_TEXTS) == 3
    for text in EXAMPLE_TEXTS:
        words = text.split()
        assert 40 <= len(words) <= 120
        pairs = list(pairwise(words))
        assert len(set(pairs)) < len(pairs)


def test_check_texts_takes_a_string_or_several() -> None:
    assert check_texts("one") == ["one"]
    assert check_texts(("one", "two")) == ["one", "two"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts is empty"),
        (None, "texts is of type NoneType"),
        ({"a": 1}, "texts is of type dict"),
        ("", r"text 0 is empty or white space \(''\)"),
        (["good", " \n\t"], "text 1 is empty or white space"),
        (["good", "good", b"bytes"], "text 2 is of type bytes, not a string"),
        (["good", None], "text 1 is of type NoneType"),
    ],
)
def test_check_texts_refuses(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_texts(texts)


def test_encode_texts_gives_the_tokenizers_own_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "the blue ledger"
    (item,) = encode_texts(tiny_tokenizer, text, 100)
    assert item.input_ids == tiny_tokenizer(text)["input_ids"]
    assert item.tokens == tiny_tokenizer.convert_ids_to_tokens(item.input_ids)
    assert item.offsets is not None
    spelled = [text[start:end] for start, end in item.offsets]
    assert [token.replace("Ġ", " ") for token in item.tokens] == spelled
    assert item.num_tokens_before_truncation == len(item.input_ids)
    assert not item.truncated


def test_encode_texts_cuts_by_tokens_warns_and_records(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encode_texts(tiny_tokenizer, EXAMPLE_TEXTS, 10_000)
    length = len(whole[1].input_ids)
    with caplog.at_level(logging.WARNING):
        cut = encode_texts(tiny_tokenizer, EXAMPLE_TEXTS, 16)
        exact = encode_texts(tiny_tokenizer, EXAMPLE_TEXTS[1], length)
    assert [item.input_ids for item in cut] == [item.input_ids[:16] for item in whole]
    assert cut[1].offsets == (whole[1].offsets or [])[:16]
    assert len(cut[1].tokens) == 16
    assert (cut[1].truncated, cut[1].num_tokens_before_truncation) == (True, length)
    assert not exact[0].truncated
    assert f"text 1 has {length} tokens; cut to the first 16" in caplog.messages
    assert len(caplog.messages) == 3


def test_encode_texts_without_offsets_of_a_slow_tokenizer() -> None:
    class SlowTokenizer:
        is_fast = False

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            assert options["return_offsets_mapping"] is False
            return {"input_ids": [ord(letter) for letter in text]}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [chr(i) for i in ids]

    slow: Any = SlowTokenizer()
    (item,) = encode_texts(slow, "abc", 2)
    assert (item.tokens, item.offsets) == (["a", "b"], None)


@pytest.mark.parametrize(
    ("texts", "max_length", "message"),
    [
        (["a tide pool", "a"], 8, r"text 1 \('a'\) has 1 token\(s\).*at least 2"),
        (["\u4e2d\u6587"], 8, r"text 0 .* has 0 token\(s\)"),
        (["a tide pool"], 1, "max_length is 1 .*at least 2"),
        (["a tide pool"], 8.0, r"max_length is 8.0 \(float\)"),
        (["a tide pool", " "], 8, "text 1 is empty"),
        (["a tide pool", "half \ud800"], 8, "text 1 .* cannot be tokenized: .*surrogate"),
    ],
)
def test_encode_texts_refuses(
    tiny_tokenizer: PreTrainedTokenizerFast, texts: Any, max_length: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_texts(tiny_tokenizer, texts, max_length)


def test_encode_texts_refuses_tokens_that_the_model_does_not_have(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    (text,) = encode_texts(tiny_tokenizer, "a tide pool", 8)
    largest = max(text.input_ids)
    assert encode_texts(tiny_tokenizer, "a tide pool", 8, vocab_size=largest + 1)
    message = f"text 0 has the token id {largest} for M, which knows 0 to {largest - 1}; pass the"
    with pytest.raises(ValueError, match=message):
        encode_texts(tiny_tokenizer, "a tide pool", 8, vocab_size=largest, reader="M")


def test_texts_that_come_again_are_named_and_left_out(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a tide pool", "the sea", "a tide pool", "a tide"]
    encoded = encode_texts(tiny_tokenizer, texts, 60)
    assert repeated_texts(encoded) == {2: 0}
    with caplog.at_level(logging.WARNING):
        assert distinct_texts(encoded) == [encoded[0], encoded[1], encoded[3]]
    assert "text 2 is text 0 again and does not count a second time" in caplog.text
    # Cut to the same tokens, they are the same to the model.
    short = len(tiny_tokenizer("a tide")["input_ids"])
    assert repeated_texts(encode_texts(tiny_tokenizer, texts, short)) == {2: 0, 3: 0}


def test_pad_batch_pads_on_the_left() -> None:
    ids, mask = pad_batch(encoded(2, 4), pad_token_id=9)
    assert ids.tolist() == [[9, 9, 1, 2], [1, 2, 3, 4]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_pad_batch_refuses() -> None:
    with pytest.raises(ValueError, match="no encoded texts"):
        pad_batch([], 0)
    with pytest.raises(ValueError, match="pad_token_id is None"):
        pad_batch(encoded(2), None)  # pyright: ignore[reportArgumentType]


def test_padding_id_falls_back_from_padding_to_end_of_text_to_zero() -> None:
    def tokenizer(pad: int | None, eos: int | None) -> Any:
        return SimpleNamespace(pad_token_id=pad, eos_token_id=eos)

    assert padding_id(tokenizer(5, 7)) == 5
    assert padding_id(tokenizer(0, 7)) == 0
    assert padding_id(tokenizer(None, 7)) == 7
    assert padding_id(tokenizer(None, None)) == 0


def test_batches_by_length_is_a_partition_from_short_to_long() -> None:
    assert batches_by_length(encoded(5, 2, 9, 2, 3), 2) == [[1, 3], [4, 0], [2]]
    assert batches_by_length(encoded(5, 2), 8) == [[1, 0]]
    # With padding [1, 3] have 4 tokens, [4, 0] would have 10; a text alone may have more.
    assert batches_by_length(encoded(5, 2, 9, 2, 3), 2, 6) == [[1, 3], [4], [0], [2]]
    assert batches_by_length(encoded(3, 3, 3), 8, 6) == [[0, 1], [2]]
    assert batches_by_length([], 2) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches_by_length(encoded(2), 0)


def test_read_texts_file_takes_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffFirst text.\r\n\r\n  \nZweiter Text: Öl\u2028x\n".encode())
    assert read_texts_file(path) == ["First text.", "Zweiter Text: Öl\u2028x"]


def test_read_texts_file_takes_the_text_field_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one\\ntwo", "id": 1}\n\n{"text": "three\u2028four"}\n')
    assert read_texts_file(path) == ["one\ntwo", "three\u2028four"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 3: not JSON"),
        ('{"text": ', "line 3: not JSON"),
        ('{"body": "x"}', 'line 3: no "text" field'),
        ('["x"]', 'line 3: no "text" field'),
        ('{"text": 5}', 'line 3: "text" is of type int, not a string'),
        ('{"text": " "}', 'line 3: "text" is empty'),
        ("[" * 100_000, "line 3: brackets too deep"),
    ],
)
def test_read_texts_file_names_the_bad_line_of_jsonl(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=f"texts.jsonl', {message}"):
        read_texts_file(path)


@pytest.mark.parametrize("suffix", ["json", "csv", "TSV"])
def test_read_texts_file_refuses_files_whose_lines_are_no_texts(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"texts.{suffix}"
    path.write_text('[{"text": "a tide pool"}]\n')
    with pytest.raises(ValueError, match=f"is .{suffix.lower()}, whose lines are not texts; write"):
        read_texts_file(path)


def test_read_texts_file_names_the_byte_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"caf\xe9 au lait\n")
    with pytest.raises(ValueError, match=r"texts.txt' is not UTF-8: byte 3 is 0xe9"):
        read_texts_file(path)
    path.write_bytes(b"\xef\xbb\xbfcaf\xe9\n")
    with pytest.raises(ValueError, match=r"byte 6 is 0xe9"):
        read_texts_file(path)


def test_read_texts_file_refuses_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone.txt' cannot be read: No such file"):
        read_texts_file(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_texts_file(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="empty.txt' holds no text"):
        read_texts_file(tmp_path / "empty.txt")


def test_read_texts_file_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    feed(b"one\ntwo\n")
    assert read_texts_file("-") == ["one", "two"]
    feed(b"")
    with pytest.raises(ValueError, match="standard input holds no text"):
        read_texts_file("-")


def test_a_book_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_book(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_book(tmp_path / "latin.txt")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        read_book(tmp_path / "blank.txt")


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("Ġthe", " the"),
        ("▁the", " the"),
        ("the", "the"),
        ("", ""),
        ("Ġ", "␣"),
        ("ĠĠ", "␣␣"),
        ("Ċ", r"\n"),
        ("ĉ", r"\t"),
        ("<0x0A>", r"\n"),
        ("Ã©", "é"),
        ("é", "é"),
        ("âĢĻ", "\u2019"),
        ("âĢ", r"\xe2\x80"),
        ("Ġ$", r" \$"),
        ("abcdefghijklmnopqrst", "abcdefghijklmno…"),
        ("$" * 20, r"\$" * 15 + "…"),
        ("a\u200bb", r"a\u200bb"),
    ],
)
def test_clean_token(token, text):
    assert texts.clean_token(token) == text
    assert texts.clean_token(text) == text


def test_all_256_bytes_are_decoded_as_the_byte_level_tokenizers_do():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(texts._BYTE_ALPHABET) == set(ByteLevel.alphabet())
    assert sorted(texts._BYTE_ALPHABET.values()) == list(range(256))
    encoded = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("Über – 中\n")
    assert texts._decode_bytes(encoded[0][0]) == "Über – 中\n"


# Files that are not called what they are

LINES = '{"text": "a tide pool"}\n{"text": "the sea"}\n'

WRAPPED = [
    "The harbour lamp was lit every evening by a woman who climbed the",
    "narrow stair with a can of oil in one hand and the ledger in the",
    "other. When the storm broke the window she sent for her grandson,",
    "who held a blanket against the wind until the lamp was burning as",
    "it had burned before, and the boats turned and came home to them.",
    "Nobody spoke of it.",
]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonlines", "a.JSONL", "a.txt", "a"])
def test_json_lines_are_read_as_such_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LINES)
    assert read_texts_file(tmp_path / name) == ["a tide pool", "the sea"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.gz", "a.jsonl"])
def test_gzipped_texts_are_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(LINES.encode()))
    assert read_texts_file(tmp_path / name) == ["a tide pool", "the sea"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a tide pool\nthe sea\n"))
    assert read_texts_file(tmp_path / "b.txt.gz") == ["a tide pool", "the sea"]
    assert read_book(tmp_path / "b.txt.gz") == "a tide pool\nthe sea\n"


@pytest.mark.parametrize("kept", [3, 12, 40])
def test_half_a_gzipped_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:kept])
    with pytest.raises(ValueError, match="a.jsonl.gz' cannot be read: "):
        read_texts_file(path)


def test_standard_input_may_be_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (LINES.encode(), gzip.compress(LINES.encode())):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert read_texts_file("-") == ["a tide pool", "the sea"]


def test_a_json_document_is_not_taken_for_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(json.dumps({"text": "a tide pool"}, indent=1))
    with pytest.raises(ValueError, match="is one JSON document, whose lines are not texts; write"):
        read_texts_file(path)
    path.write_text("[1] is a reference\n{and} this is no JSON\n")
    assert len(read_texts_file(path)) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.md", "is .md, a document of many lines: pass --one-text"),
        ("a.zip", "is .zip, an archive: unpack it"),
        ("a.tar.gz", "is .tar, an archive: unpack it"),
        ("a.pdf", "is .pdf, not plain text"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("# A title\n\nand a line\n")
    with pytest.raises(ValueError, match=words):
        read_texts_file(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ValueError, match="a.txt' is a zip archive: unpack it"):
        read_texts_file(tmp_path / "a.txt")


def test_a_file_read_as_one_text_is_one(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("\n".join(WRAPPED) + "\n\n")
        assert read_texts_file(tmp_path / name, one_text=True) == ["\n".join(WRAPPED)]
    (tmp_path / "a.jsonl").write_text(LINES)
    with pytest.raises(ValueError, match="holds JSON lines, each with a text: leave out --one-te"):
        read_texts_file(tmp_path / "a.jsonl", one_text=True)


def test_prose_wrapped_at_a_width_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(WRAPPED))
    assert read_texts_file(tmp_path / "a.txt") == WRAPPED
    assert "prose wrapped at 65 characters" in caplog.text
    assert "--one-text reads the file as one text" in caplog.text


@pytest.mark.parametrize(
    "lines",
    [
        WRAPPED[:4],
        list(EXAMPLE_TEXTS) * 3,
        ["a word and the next one"] * 9,
        ["The lamp was lit in the evening by a woman who climbed the stair."] * 9,
        ["the lamp was lit in the evening by a woman who climbed the stair."] * 9,
        ["A title of a paper that is as long as a line of prose and no longer"] * 9,
    ],
)
def test_one_text_a_line_is_not_taken_for_wrapped_prose(lines: list[str]) -> None:
    assert wrapped_at(lines) is None


def test_a_name_that_can_be_no_file_is_refused_in_one_sentence() -> None:
    for name in ("~nosuchuser/x.txt", "a" * 300, "\ud800.txt", "a\0b", ""):
        for read in (read_texts_file, read_book):
            with pytest.raises(ValueError, match="is in the home of no user|can be no path|is emp"):
                read(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("alpha beta".encode("utf-16-le"), "is no text: byte 1 is 0, as in UTF-16"),
        (b"PAR1\0\0", "byte 4 is 0"),
        (b'"alpha beta"\n"gamma"\n', "holds JSON lines that are no objects"),
        (b'["alpha beta"]\n["gamma"]\n', "holds JSON lines that are no objects"),
        (b'a plain line\n{"text": "a b"}\n', "line 2: a JSON object, where the first line is none"),
    ],
)
def test_what_is_no_line_of_text_is_not_analysed_as_one(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_texts_file(tmp_path / "a.txt")


def test_lines_that_end_as_they_once_did_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"alpha beta\rgamma delta\r")
    assert read_texts_file(tmp_path / "a.txt") == ["alpha beta", "gamma delta"]
    (tmp_path / "a.txt").write_bytes(b'"To sea," he said.\n"Now."\n{and} on\n')
    assert len(read_texts_file(tmp_path / "a.txt")) == 3
