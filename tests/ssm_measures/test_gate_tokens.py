"""The tokens that open and close the gate: planted ones are found, others lie within the null."""

import json

import numpy as np
import pytest
import reference
import torch
from component_cases import components

from ssm_measures.gate_tokens import TOKEN_CLASSES, gate_tokens
from suite_plumbing.texts import EXAMPLE_TEXTS, token_pieces


def planted_gate(pieces, opened, seed=0):
    """Delta three times as large where `opened`, in every channel, with a little noise."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.array(opened), 0.3, 0.1)[:, None] * rng.uniform(0.9, 1.1, (len(pieces), 6))
    return components(scale)


def test_a_gate_that_opens_at_punctuation_is_found_there():
    pieces = [" the", "n", ",", " 12", " the", "."] * 10
    found = gate_tokens([planted_gate(pieces, [p in ",." for p in pieces])], [pieces], top_k=20)
    assert {token.token for token in found.opening} == {",", "."}
    assert [token.openness for token in found.opening] == sorted(
        (token.openness for token in found.opening), reverse=True
    )
    assert all(token.openness < 0 for token in found.closing)
    punctuation = found.by_class["punctuation"]
    assert punctuation.count == 20
    assert punctuation.mean_delta == pytest.approx(0.3, rel=0.02)
    assert punctuation.difference.value is not None
    assert punctuation.difference.value > 2.0
    assert {name: found.by_class[name].count for name in TOKEN_CLASSES} == {
        "first": 1,
        "space_leading": 30,
        "line_break": 0,
        "punctuation": 20,
        "digits": 10,
        "repeated": 55,
    }
    empty = found.by_class["line_break"]
    assert empty.mean_delta is None
    assert (
        empty.difference.reason == "0 of 60 tokens are of this class; a difference needs both kinds"
    )


def test_a_class_without_effect_is_inside_the_null():
    rng = np.random.default_rng(3)
    pieces = list(rng.choice([" a", "b", "!", "7"], 200))
    found = gate_tokens([planted_gate(pieces, rng.random(200) < 0.5)], [pieces])
    tests = [found.by_class[name].difference for name in ("space_leading", "punctuation", "digits")]
    assert [test.outside_null for test in tests] == [False] * 3


def test_a_planted_difference_survives_its_null_and_equals_the_loop():
    rng = np.random.default_rng(4)
    pieces = list(rng.choice([" a", "b", "7"], 120))
    text = planted_gate(pieces, [p == "7" for p in pieces])
    test = gate_tokens([text], [pieces]).by_class["digits"].difference
    assert test.outside_null is True
    logs = np.log(text.delta[0].double().numpy())
    openness = ((logs - logs.mean(axis=0)) / logs.std(axis=0)).mean(axis=1)
    digits = np.array([p == "7" for p in pieces])
    starts = reference.warm_up(text.gated[0].norm(dim=1).double().numpy()[:, None], [120])
    left, _ = reference.without_position(openness[:, None], [120], starts)
    digits = digits[starts[0] :]
    assert test.value == pytest.approx(left[digits].mean() - left[~digits].mean())


def test_constant_delta_opens_at_no_token():
    pieces = [" a", "b"] * 30
    found = gate_tokens([components(torch.full((60, 3), 0.1))], [pieces])
    assert found.opening == found.closing == ()
    reason = found.by_class["space_leading"].difference.reason
    assert reason == "delta is the same at every token"
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_pieces_are_the_text_itself(tiny_tokenizer):
    ids = tiny_tokenizer(EXAMPLE_TEXTS[0])["input_ids"]
    pieces = token_pieces(tiny_tokenizer, ids)
    assert "".join(pieces) == EXAMPLE_TEXTS[0]
    assert any(piece.startswith(" ") for piece in pieces)


def test_pieces_of_other_lengths_are_refused():
    texts = [components(np.full((3, 2), 0.1)), components(np.full((3, 2), 0.1))]
    with pytest.raises(ValueError, match=r"texts of \[2, 3\] tokens, the components \[3, 3\]"):
        gate_tokens(texts, [["a", "b"], ["a", "b", "c"]])
