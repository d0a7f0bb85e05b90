"""Positions that an edit is told: from the first real token, whoever read those before."""

import pytest
import torch

from mamba_mixers.token_positions import (
    TokensRead,
    reading,
    reads_in_parts,
    real_tokens,
    token_positions,
)

MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
X = torch.zeros(3, 4, 2)


def test_outside_of_a_replay_every_token_counts():
    assert token_positions(X).tolist() == [[0, 1, 2, 3]]
    assert not reads_in_parts()


def test_padding_has_no_position():
    with reading(TokensRead(MASK, None, in_parts=False)):
        assert token_positions(X).tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3], [-1, 0, 1, -1]]
        assert not reads_in_parts()


def test_parts_go_on_where_each_text_stands():
    before = torch.tensor([2, 4, 2])
    assert real_tokens(MASK, 3, 4).tolist() == before.tolist()
    assert real_tokens(None, 2, 3).tolist() == [3, 3]
    with reading(TokensRead(None, before, in_parts=True)):
        assert reads_in_parts()
        assert token_positions(X[:, :2]).tolist() == [[2, 3], [4, 5], [2, 3]]
    with reading(TokensRead(MASK, before, in_parts=True)):
        assert token_positions(X).tolist() == [[-1, -1, 2, 3], [4, 5, 6, 7], [-1, 2, 3, -1]]


def test_an_inner_reading_ends_and_uncounted_tokens_have_no_position():
    with reading(TokensRead(MASK, None, in_parts=False)):
        with (
            pytest.raises(ValueError, match="positions of its tokens are not known"),
            reading(TokensRead(None, None, in_parts=True)),
        ):
            token_positions(X)
        assert token_positions(X)[0].tolist() == [-1, -1, 0, 1]
