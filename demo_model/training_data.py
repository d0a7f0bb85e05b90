"""What the demo model is trained on: texts, their tokenizer, and the rows of each training step.

Everything about a step follows from the seed and the step's number, so that a run that stops and
goes on reads what an uninterrupted one would have read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
LONG_ROW = 512  # tokens of a long training row; a short row is half of it
LONG_SHARE = 0.25  # share of the steps with long rows
PASSAGE_TOKENS = (16, 96)  # shortest and longest repeated passage
GAP_TOKENS = (8, 160)  # shortest and longest gap between its readings
MADE_UP_TOKENS = (8, 48)  # shortest and longest made-up passage
RAMP_TOKENS = 1_000_000  # the start of a run, in which there are more repeats and shorter gaps
START_SHARE = 0.6  # share of the rows with repeats at the very start
MADE_UP_SHARES = (0.7, 0.2)  # share of made-up rows among those, at the start and after it
REREAD_TOKENS = 5_200_000  # from here on, with prose well known, later readings count for more
REREAD_WEIGHT = 4.0  # weight in the loss of a token that is read again
ROW_KINDS = ("prose", "repeats", "made_up")
LONG_PARAGRAPH = 200  # characters from which on the same paragraph twice is no coincidence


def check_held_out(texts: list[str], held_out: str) -> None:
    """Raise ValueError when a paragraph (200 characters or more) of ``held_out`` is in ``texts``.

    A score on text that the model was trained on would measure its memory of the training.
    """
    own = {line for line in held_out.splitlines() if len(line) >= LONG_PARAGRAPH}
    for text in texts:
        if shared := own.intersection(text.splitlines()):
            raise ValueError(
                f"--held-out shares {len(shared)} paragraphs with a training text, for example "
                f"{min(shared)[:60]!r}; keep it out of the training texts"
            )


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on ``texts``: every string has tokens, none is unknown.

    Id 0 is ``<|endoftext|>``, which is also the padding, put on the left; nothing is added to a
    text by default. Raises ValueError when ``vocab_size`` has no room for the 256 bytes.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 257 (256 bytes + 1)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = (line for text in texts for line in text.splitlines(keepends=True))
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """The tokens of a training text (n,), ``<|endoftext|>`` in front of it."""
    # Line by line: a call on a whole book would warn of its length.
    lines = text.splitlines(keepends=True)
    encodings = tokenizer.backend_tokenizer.encode_batch(lines)
    ids = [token for encoding in encodings for token in encoding.ids]
    return np.array([tokenizer.eos_token_id, *ids], dtype=np.int64)


@lru_cache(maxsize=2)
def _epoch_order(windows: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """Phase in 0..511 and the order in which the windows of one epoch are read."""
    rng = np.random.default_rng([seed, 1, epoch])
    return int(rng.integers(LONG_ROW)), rng.permutation(windows)


class TrainingRows(NamedTuple):
    """The rows of one step."""

    tokens: np.ndarray
    """(rows, length + 1)"""
    kinds: np.ndarray
    """(rows,) index into ``ROW_KINDS``"""
    weights: np.ndarray
    """(rows, length) float32, in the loss, of the token that is predicted"""


def training_rows(
    tokens: np.ndarray,
    counts: np.ndarray,
    step: int,
    batch_tokens: int,
    *,
    seed: int,
    repeat_share: float,
) -> TrainingRows:
    """Rows of one step, their kinds, and weights of 1 but for tokens that are read again.

    ``tokens`` (n,) are the tokens of the training texts, ``counts`` (vocabulary,) how often each
    occurs there.

    An epoch reads all windows of 512 tokens of ``tokens`` once, in a random order and from a
    random phase. A step's rows are windows, or halves of windows in three steps of four; labels
    are the rows shifted by one. ``repeat_share`` of the rows are put through
    :func:`repeat_passages` or replaced by :func:`made_up_row`, more of them at the start.
    Raises ValueError for fewer tokens than two windows.
    """
    windows = (len(tokens) - 1) // LONG_ROW - 1
    if windows < 1:
        raise ValueError(
            f"the training texts have {len(tokens)} tokens; at least {2 * LONG_ROW + 1} are needed"
        )
    count = batch_tokens // LONG_ROW
    starts = []
    for index in range(step * count, (step + 1) * count):
        epoch, position = divmod(index, windows)
        phase, order = _epoch_order(windows, seed, epoch)
        starts.append(phase + int(order[position]) * LONG_ROW)
    rng = np.random.default_rng([seed, 2, step])
    length = LONG_ROW if rng.random() < LONG_SHARE else LONG_ROW // 2
    starts = [start + offset for start in starts for offset in range(0, LONG_ROW, length)]
    rows = np.stack([tokens[start : start + length + 1] for start in starts])
    tokens_read = step * batch_tokens
    ramp = min(1.0, tokens_read / RAMP_TOKENS)
    weights = np.ones((len(rows), length), dtype=np.float32)
    kinds = rng.choice(3, size=len(rows), p=_kind_shares(repeat_share, ramp))
    for row, row_weights, kind in zip(rows, weights, kinds, strict=True):
        if kind == ROW_KINDS.index("repeats"):
            row[:], again = repeat_passages(row, rng, ramp)
            if tokens_read >= REREAD_TOKENS:
                row_weights[again[1:]] = REREAD_WEIGHT
        elif kind == ROW_KINDS.index("made_up"):
            row[:] = made_up_row(len(row), counts, rng)
    return TrainingRows(rows, kinds, weights)


def _kind_shares(repeat_share: float, ramp: float) -> list[float]:
    """Shares of the kinds of rows: more repeats and more made-up ones at the start."""
    if repeat_share == 0.0:
        return [1.0, 0.0, 0.0]
    share = repeat_share + (1.0 - ramp) * max(0.0, START_SHARE - repeat_share)
    made_up = share * (MADE_UP_SHARES[0] + ramp * (MADE_UP_SHARES[1] - MADE_UP_SHARES[0]))
    return [1.0 - share, share - made_up, made_up]


def made_up_row(length: int, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A passage of 8 to 48 tokens drawn at random, over and over: only memory predicts it.

    ``counts`` (vocabulary,) are the tokens' counts in the training texts. Tokens are drawn in
    proportion to counts ** a, with a new in each row from 0 (all alike) to 1 (as in prose): a
    model that saw one of the two alone would learn to tell it from prose and recall nothing there.
    Token 0, the end of text, is never drawn.
    """
    weights = (counts[1:] + 1.0) ** rng.random()
    period = int(rng.integers(MADE_UP_TOKENS[0], MADE_UP_TOKENS[1] + 1))
    passage = 1 + rng.choice(len(weights), period, p=weights / weights.sum())
    return np.resize(passage, length)


def repeat_passages(
    row: np.ndarray, rng: np.random.Generator, ramp: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of ``row`` (l,) in which a passage is read again after a gap, and again, to the end.

    Up to 31 tokens as they are, a passage of 16 to 96 tokens, and then by turns a gap of 8 to 160
    tokens of the same text, short ones more often (uniform in their logarithm), and the passage.
    ``ramp`` in [0, 1] is for the start of a run: at 0 the passage has at most 32 tokens and there
    is no gap, from there to 1 both grow. Also returns which tokens are read again (l,) bool.
    """
    row, is_again = row.copy(), np.zeros(len(row), dtype=bool)
    shortest, longest = PASSAGE_TOKENS
    start = int(rng.integers(0, 32))
    longest = int(2 * shortest + ramp * (longest - 2 * shortest))
    length = int(rng.integers(shortest, longest + 1))
    passage = row[start : start + length].copy()
    again = start + length
    while again < len(row):
        again += int(ramp * np.exp(rng.uniform(*np.log(GAP_TOKENS))))
        row[again : again + length] = passage[: max(0, len(row) - again)]
        is_again[again : again + length] = True
        again += length
    return row, is_again
