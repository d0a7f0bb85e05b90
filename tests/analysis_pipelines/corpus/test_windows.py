"""Windows do not depend on how a corpus is shared out; batches keep to their budget."""

import numpy as np
import pytest
from conftest import VOCAB_SIZE, make_tiny_tokenizer

from analysis_pipelines.corpus.windows import (
    BUFFERED,
    PLACES,
    TextWindow,
    Unread,
    as_batch,
    batched,
    gives_importance,
    gives_maps,
    one_by_one,
    windows_of,
)
from suite_plumbing.corpus_texts import Passage

TOKENIZER = make_tiny_tokenizer()


def of(text, index=5, length=8, vocabulary=VOCAB_SIZE):
    return windows_of(Passage(index, 2, 0, text, "a.txt, line 6"), TOKENIZER, length, vocabulary)


def made(lengths):
    return [TextWindow(i * PLACES, i, tuple(range(1, n + 1))) for i, n in enumerate(lengths)]


def test_windows_are_disjoint_and_give_the_text_back():
    text = "the old net held water and the lamp went out"
    windows = of(text)
    assert isinstance(windows, list)
    ids = TOKENIZER(text)["input_ids"]
    kept = [i for w in windows for i in w.ids]
    assert kept == ids[: len(kept)]
    assert len(ids) - len(kept) <= 1  # a single last token is no window
    assert [w.number for w in windows] == [5 * PLACES + 8 * i for i in range(len(windows))]
    assert [w.starts for w in windows] == [True] + [False] * (len(windows) - 1)
    assert {w.document for w in windows} == {2}


def test_what_fails_says_why():
    assert windows_of(Passage(1, 1, 0, None, "b", "not JSON"), TOKENIZER, 8, 9) == Unread(
        1, "b", "not JSON"
    )
    unknown = of("the old net", vocabulary=3)
    assert isinstance(unknown, Unread)
    assert unknown.reason.startswith("token id ")
    assert of("") == []


def test_batches_hold_every_window_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(2, 60, 300)
    batches = list(batched(made(lengths), 200))
    assert sorted(w.number for b in batches for w in b) == [i * PLACES for i in range(300)]
    assert all(len(b) * max(len(w.ids) for w in b) <= 200 for b in batches)
    # Sorted within a buffer: little of a batch is padding.
    used = sum(len(w.ids) for b in batches for w in b)
    assert used > 0.8 * sum(len(b) * max(len(w.ids) for w in b) for b in batches)
    assert len(list(batched(made([500]), 200))) == 1
    assert list(batched([], 200)) == []


def test_a_buffer_is_sorted_once_it_is_full():
    windows = made([50] * (BUFFERED * 4 + 1))
    first = next(batched(iter(windows), 200))
    assert [w.number for w in first] == [i * PLACES for i in range(4)]


def test_a_stream_is_read_in_order():
    windows = made([5, 3, 9])
    assert list(one_by_one(windows)) == [[w] for w in windows]


def test_a_batch_is_padded_behind_and_says_who_gives_maps():
    windows = made([5, 3])
    batch = as_batch(windows, 1, 0)
    assert batch.lengths == (5, 3)
    assert batch.keep.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.mapped == (0, 1)
    tokens = batch.by_token()
    assert tokens.ids.tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    assert tokens.position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert not tokens.known.any()


@pytest.mark.parametrize("every", [1, 4, 16])
def test_one_in_so_many_is_drawn(every):
    windows = made([2] * 8000)
    share = np.mean([gives_maps(w, every, 3) for w in windows])
    # Four standard errors of a share.
    assert abs(share - 1 / every) <= 4 * (1 / every * (1 - 1 / every) / 8000) ** 0.5
    assert not any(gives_importance(w, 0, 3) for w in windows[:10])
