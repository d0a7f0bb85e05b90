"""Pairs as users pass them: texts, ids, files, and what is refused."""

import json

import pytest
import torch
from conftest import make_tiny_tokenizer

from benchmarks.family_models import make_model
from causal_interventions.patching.pairs import read_pairs, text_pairs


@pytest.fixture(scope="module")
def model():
    return make_model("mamba")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def test_texts_and_ids_are_the_same_pairs(model, tokenizer):
    clean, corrupt = "the lamp the", "the map. the"
    ids = [tokenizer(text)["input_ids"] for text in (clean, corrupt)]
    assert len(ids[0]) == len(ids[1])
    (one,) = text_pairs(model, tokenizer, clean, corrupt, ("t", "m"))
    (other,) = text_pairs(model, None, ids[0], ids[1], one.answers)
    assert torch.equal(one.clean, other.clean)
    assert torch.equal(one.corrupt, torch.tensor(ids[1]))
    assert one.answers == tuple(tokenizer.get_vocab()[token] for token in "tm")
    assert one.tokens is not None
    assert len(one.tokens) == len(ids[1])
    assert other.tokens is None
    several = text_pairs(model, None, [ids[0]] * 2, [ids[1]] * 2, [(1, 2), (3, 4)])
    assert [pair.answers for pair in several] == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([1, 2, 3], [1, 2], (1, 2)), "pair 0: the clean text has 3 tokens, the corrupt one 2"),
        (([1, 2, 3], [1, 2], (1, 2)), r"of as many tokens, or, in Python, say in patch\(alignment"),
        (([1, 2, 3], [1, 2, 3], (1, 2)), "pair 0: clean and corrupt are the same text"),
        (([[1, 2], [1, 3]], [[1, 2]], (1, 2)), "clean has 2 texts and corrupt 1; pass as many"),
        (([1, 2], [1, 3], (4, 4)), "both answers of pair 0 are token 4"),
        (([1, 2], [1, 3], (4, 64)), "answer of pair 0 is 64"),
        (([1, 2], [1, 3], 4), "answers is 4; pass two tokens"),
        (([1, 2], [1, 3], (1, 2, 3)), r"answers of pair 0 is .1, 2, 3.; pass two tokens"),
        (([1, 2], [1, 3], [(1, 2)] * 3), "answers has 3 entries for 1 pairs"),
        (([1, 99], [1, 3], (1, 2)), "clean holds ids from 1 to 99"),
        (([1, 2], [1, 3], ("t", "m")), "there is no tokenizer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(model, given, said):
    with pytest.raises(ValueError, match=said):
        text_pairs(model, None, *given)


def test_an_answer_is_one_token_of_the_vocabulary(model, tokenizer):
    with pytest.raises(ValueError, match="splits it into"):
        text_pairs(model, tokenizer, [1, 2], [1, 3], ("t", "zebra"))
    with pytest.raises(ValueError, match="alignment has 1 entries, the corrupt text of pair 0 2"):
        text_pairs(model, None, [1, 2, 3], [1, 3], (1, 2), [0])
    with pytest.raises(ValueError, match="alignment is 3"):
        text_pairs(model, None, [1, 2, 3], [1, 3], (1, 2), [0, 3])


def test_pairs_come_from_a_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"clean": "a b", "corrupt": "a c", "answers": ["x", 3]}] * 2
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    found = read_pairs(path)
    assert found.clean == ["a b"] * 2
    assert found.answers == [("x", 3)] * 2
    for text, said in (
        ("{", "line 1 of .* is no JSON"),
        ('{"clean": "a"}', "line 1 of .* lacks corrupt, answers"),
        ('{"clean": "a", "corrupt": 1, "answers": [1, 2]}', "clean and corrupt must be texts"),
        ('{"clean": "a", "corrupt": "b", "answers": [1]}', r"answers is \[1\], not two tokens"),
        (" \n", "file of pairs .* is empty"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            read_pairs(path)
