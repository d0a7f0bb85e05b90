"""Rows of the overview: kinds of token, intervals, and texts joined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model

from analysis_pipelines import overview_rows as rows
from analysis_pipelines.overview import text_facts


def facts(ids, pieces=None):
    pieces = pieces or [f" w{token}" for token in ids]
    return text_facts(make_tiny_model(), list(ids), pieces, 1000)


def apart(texts):
    """The same texts as unrelated ones."""
    return [replace(one, group=number) for number, one in enumerate(texts)]


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCAB_SIZE, (2, 80), generator=generator).tolist()


def test_joined_measures_are_means_and_medians_of_the_texts(ids):
    texts = apart([facts(one) for one in ids])
    found = rows.joined(texts)
    row = found["layers"][1]
    own = [text.layers[1].measures for text in texts]
    assert row["median_half_life"] == np.median([one.half_life for one in own])
    assert row["first_share"] == np.mean([one.first_share for one in own])
    sums = np.sum([text.layers[1].copying[0] for text in texts], axis=0)
    assert row["copying"]["value"] == pytest.approx(sums[0] / sums[1])
    assert (found["num_texts"], found["num_tokens"], found["longest"]) == (2, 160, 80)


def test_copies_of_a_text_weigh_as_much_as_one(ids):
    one, other = (facts([*some, *some]) for some in ids)
    copies = [one, one, one, replace(other, group=1)]
    found, expected = rows.joined(copies), rows.joined(apart([one, other]))
    assert found["num_texts"] == 4
    for row, alone in zip(found["layers"], expected["layers"], strict=True):
        for name in ("median_half_life", "lag_90", "first_share", "write"):
            assert row[name] == pytest.approx(alone[name]), name
        for name in ("copying", "sink", "reset"):
            parts = ("value", "n", "null_mean", "p_value")
            assert [row[name][part] for part in parts] == pytest.approx(
                [alone[name][part] for part in parts]
            ), name


def test_a_kind_counts_each_different_token_once(ids):
    """Against a loop: the mean of each token's own mean, of the kind minus of the others."""
    pieces = [f" w{t}" if t % 2 else f"w{t}" for t in ids[0]]
    text = facts(ids[0], pieces)
    found = rows.joined([text])["layers"][2]["gate"]["space_leading"]
    series = text.layers[2].measures.openness
    by_piece = {}
    for piece, value in list(zip(text.pieces, series, strict=True))[4:]:
        by_piece.setdefault(piece, []).append(value)
    means = {piece: np.mean(values) for piece, values in by_piece.items()}
    sides = [[x for piece, x in means.items() if piece.startswith(" ") == side]
             for side in (True, False)]  # fmt: skip
    assert found["value"] == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
    assert found["n"] == len(sides[0])


def test_a_kind_that_opens_the_gate_is_found(ids):
    text = facts(ids[0], [f" w{t}" if t % 2 else f"w{t}" for t in ids[0]])
    opened = {
        layer: one._replace(measures=one.measures._replace(openness=np.array(
            [0.8 * piece.startswith(" ") for piece in text.pieces])
            + 0.1 * np.random.default_rng(layer).normal(size=len(text.pieces))))
        if layer == 3 else one
        for layer, one in text.layers.items()
    }  # fmt: skip
    known = rows.TextFacts(text.num_tokens, text.pieces, opened, text.costs, None)
    gates = [row["gate"]["space_leading"] for row in rows.joined([known])["layers"]]
    assert gates[3]["value"] == pytest.approx(0.8, abs=0.1)
    assert gates[3]["p_value"] <= 0.01
    assert all(one["p_value"] > 0.05 for one in gates[:3])


def test_too_few_different_tokens_of_a_kind_say_so(ids):
    gate = rows.joined([facts(ids[0])])["layers"][0]["gate"]["digits"]
    assert gate["value"] is None or gate["n"] >= rows.MIN_TYPES
    lines = rows.joined([facts(ids[0])])["layers"][0]["gate"]["line_break"]
    assert lines["reason"] == ("0 different tokens on one side; a difference needs 5 on both")


def test_an_interval_is_over_groups_of_related_texts():
    assert rows.over_texts([1.0, 2.0, 3.0, 4.0], range(4)) is None
    alone = rows.over_texts([1.0, 2.0, 3.0, 4.0, 5.0], range(5))
    assert alone is not None
    assert rows.over_texts([1.0, 2.0, 3.0, 4.0, 4.0, 6.0], [0, 1, 2, 3, 4, 4]) == alone
    assert rows.over_texts([1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 2, 3, 3]) is None


def test_unrelated_texts_are_shifted_apart_and_related_ones_together(ids):
    """Chance of two unrelated texts is of pairs of shifts; of one group of texts, of its shifts."""
    texts = [facts([*one, *one]) for one in ids]
    unrelated = rows.joined(apart(texts))
    alike = rows.joined(texts)
    tests = [found["layers"][0]["copying"] for found in (unrelated, alike)]
    assert tests[0]["value"] == pytest.approx(tests[1]["value"])
    assert tests[0]["n"] == pytest.approx(2 * tests[1]["n"], abs=1)
    assert tests[0]["num_draws"] == 199
    assert rows.MIN_DRAWS <= tests[1]["num_draws"] < 199


def test_a_short_text_has_no_more_draws_of_a_reset_than_tokens(ids):
    found = rows.joined([facts(ids[0])])
    assert found["layers"][0]["reset"]["num_draws"] == 79
    assert found["all_states"]["num_draws"] == 79
