"""Pieces that tokenizers share: exact spans, pooling, cut texts, and refusals."""

import pytest
import torch

from analysis_pipelines.shared_pieces import Pieces, pooled_map, pooled_rows, shared_pieces
from suite_plumbing.texts import EncodedText

TEXT = "the old lamp, relit"


def encoded(*cuts: int, truncated: bool = False, mark: bool = False, text: str = TEXT):
    """A text cut at these characters; with ``mark`` a token without characters comes first."""
    starts = [0, *cuts[:-1]]
    offsets = [(0, 0)] * mark + list(zip(starts, cuts, strict=True))
    tokens = [text[a:b] or "<s>" for a, b in offsets]
    return EncodedText(text, list(range(len(tokens))), tokens, offsets, len(tokens), truncated)


def slow(text: EncodedText) -> EncodedText:
    return EncodedText(text.text, text.input_ids, text.tokens, None, 3, False)


def test_the_same_tokens_are_the_pieces():
    one = encoded(3, 7, 12, 19)
    found = shared_pieces({"a": one, "b": one})
    assert found["a"].groups.tolist() == found["b"].groups.tolist() == [0, 1, 2, 3]
    assert (found["a"].num_pieces, found["a"].num_characters) == (4, 19)
    assert found["a"].are_tokens


def test_the_same_tokens_cut_at_different_lengths_are_cut_at_the_shorter():
    found = shared_pieces({"a": encoded(3, 7, 12, 19), "b": encoded(3, 7, 12, truncated=True)})
    assert found["a"].groups.tolist() == found["b"].groups.tolist() == [0, 1, 2]
    assert found["b"].num_characters == 12


def test_the_same_tokens_need_no_offsets():
    one = slow(encoded(3, 7, 12))
    found = shared_pieces({"a": one, "b": one})["a"]
    assert found.are_tokens
    assert found.num_characters is None


def test_pieces_end_where_every_tokenizer_has_an_end():
    found = shared_pieces({"a": encoded(1, 3, 7, 12, 13, 19), "b": encoded(3, 5, 9, 13, 16, 19)})
    assert found["a"].groups.tolist() == [0, 0, 1, 1, 1, 2]
    assert found["b"].groups.tolist() == [0, 1, 1, 1, 2, 2]
    assert not found["a"].are_tokens
    assert {one.num_pieces for one in found.values()} == {3}
    assert {one.num_characters for one in found.values()} == {19}


def test_spaces_may_belong_to_either_token():
    """Offsets that leave the space out end where those that have it in do."""
    with_space = encoded(3, 7, 12, 13, 19)
    spans = [(0, 3), (4, 7), (8, 13), (14, 19)]
    without = EncodedText(TEXT, [0, 1, 2, 3], list("abcd"), spans, 4, False)
    found = shared_pieces({"a": with_space, "b": without})
    assert found["a"].groups.tolist() == [0, 1, 2, 2, 3]
    assert found["b"].groups.tolist() == [0, 1, 2, 3]


def test_a_mark_without_characters_goes_with_its_neighbour():
    found = shared_pieces({"a": encoded(3, 7, 19, mark=True), "b": encoded(3, 7, 12, 19)})
    assert found["a"].groups.tolist() == [0, 0, 1, 2]
    ending = encoded(3, 7, 19)
    ending = EncodedText(TEXT, [0, 1, 2, 3], [*ending.tokens, "</s>"],
                         [*(ending.offsets or []), (0, 0)], 4, False)  # fmt: skip
    found = shared_pieces({"a": ending, "b": encoded(3, 19)})
    assert found["a"].groups.tolist() == [0, 1, 1, 1]


def test_a_cut_text_ends_before_the_token_that_may_be_cut():
    """The last token of a cut text may be some bytes of a character, and its end no end."""
    found = shared_pieces(
        {"a": encoded(3, 7, 12, 13, 19), "b": encoded(3, 5, 7, 12, truncated=True)}
    )
    assert found["a"].groups.tolist() == [0, 1]
    assert found["b"].groups.tolist() == [0, 1, 1]
    assert found["a"].num_characters == 7
    # Both halves of one character have its end.
    halves = EncodedText(
        TEXT, [0, 1, 2, 3], list("abcd"), [(0, 3), (3, 7), (7, 8), (7, 8)], 9, True
    )
    found = shared_pieces({"a": encoded(1, 3, 7, 8, 19), "b": halves})
    assert found["a"].num_characters == 7


def test_tokens_without_offsets_are_refused_where_they_differ():
    with pytest.raises(ValueError, match=r"text 4 differ.*tokenizer of 'b' gives.*slow"):
        shared_pieces({"a": encoded(3, 19), "b": slow(encoded(4, 19))}, 4)


def test_texts_with_too_little_in_common_are_refused():
    with pytest.raises(ValueError, match=r"fewer than 2 pieces of text 0 in common"):
        shared_pieces({"a": encoded(3, 19), "b": encoded(4, 19)})
    with pytest.raises(ValueError, match="fewer than 2 pieces"):
        shared_pieces({"a": encoded(3, 19, truncated=True), "b": encoded(4, 19)})


def test_pooled_rows_and_maps_by_hand():
    pieces = Pieces(torch.tensor([0, 0, 1]), 2, 7, False)
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 0.0]])
    assert pooled_rows(values, pieces).tolist() == [[2.0, 4.0], [5.0, 0.0]]
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.2, 0.3]])
    expected = torch.tensor([[1.0, 0.0], [0.7, 0.3]])
    torch.testing.assert_close(pooled_map(weights, pieces), expected)


def test_pooling_keeps_a_causal_map_causal_and_its_rows_sums():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(11, 11, generator=generator, dtype=torch.float64).tril()
    weights /= weights.sum(1, keepdim=True)
    pooled = pooled_map(
        weights, Pieces(torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6]), 7, 9, False)
    )
    assert torch.equal(pooled.triu(1), torch.zeros(7, 7, dtype=torch.float64))
    # A few float64 roundings.
    torch.testing.assert_close(
        pooled.sum(1), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_tokens_as_pieces_are_not_touched():
    pieces = Pieces(torch.arange(3), 3, 3, True)
    values = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert pooled_map(values, pieces) is values
    assert pooled_rows(values, pieces) is values
