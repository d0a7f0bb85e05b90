"""Passages of a book are spread over all of it, and those read again are the same twice."""

import pytest
import torch

from benchmarks.passages import encoded_passages, repeated_rows, spread_rows
from suite_plumbing.bundled import DEMO_MODEL_PATH
from suite_plumbing.models import load_tokenizer

IDS = list(range(3000))


def test_rows_are_spread_from_the_first_token_to_the_last():
    assert spread_rows(IDS, 3, 4).tolist() == [[0, 1, 2, 3], [1498, 1499, 1500, 1501],
                                               [2996, 2997, 2998, 2999]]  # fmt: skip
    with pytest.raises(ValueError, match="the text has 11 tokens; 3 passages of 4 need 12"):
        spread_rows(IDS[:11], 3, 4)


def test_repeated_rows_end_as_they_begin():
    repeated = repeated_rows(IDS, 2)
    assert repeated.shape == (2, 192)
    assert torch.equal(repeated[:, 128:], repeated[:, :64])
    assert repeated[:, :128].diff(dim=1).eq(1).all()


def test_passages_of_a_text_are_cut_at_tokens():
    tokenizer = load_tokenizer(DEMO_MODEL_PATH)
    text = " ".join(f"word {i} of a long text." for i in range(200))
    cut = encoded_passages(text, tokenizer, 5, 20)
    assert cut[0].text == text[: len(cut[0].text)]
    assert text.endswith(cut[-1].text)
    assert len({one.text for one in cut}) == 5
    # A number that is cut in two by a passage's edge may take more tokens by itself.
    assert all(20 <= len(one.input_ids) <= 22 for one in cut)
    with pytest.raises(ValueError, match="passages of 2000 need 10000. Give a longer text"):
        encoded_passages(text, tokenizer, 5, 2000)
