"""Rows of the overview: kinds of token, intervals, and texts joined."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model

from analysis_pipelines import overview_rows as rows
from analysis_pipelines.overview import text_facts
from token_statistics.intervals import ratio_interval


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
    assert (found["n"], found["n_of_kind"]) == (len(means), len(sides[0]))


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


def test_an_interval_is_of_the_pooled_ratio_over_groups_of_related_texts(ids):
    """That of `ratio_interval` on the sums of the groups; a copy of a text adds nothing."""
    generator = torch.Generator().manual_seed(1)
    more = torch.randint(1, VOCAB_SIZE, (3, 60), generator=generator).tolist()
    texts = apart([facts([*some, *some]) for some in [*ids, *more]])
    alone = rows.joined(texts)
    row = alone["layers"][1]
    sums = np.array([text.layers[1].copying[0] for text in texts])
    expected = ratio_interval(sums[:, 0], sums[:, 1], positive=True)
    assert row["copying"]["interval"] == pytest.approx(expected[1:3])
    assert row["copying"]["value"] == pytest.approx(expected.value)
    assert 0 < row["copying"]["interval"][0] < row["copying"]["value"]
    assert row["sink"]["interval"][0] < row["sink"]["value"] < row["sink"]["interval"][1]
    costs = [text.costs for text in texts if text.costs is not None]
    expected = ratio_interval(
        [one.by_layer[0, 1] for one in costs], [one.num_predictions for one in costs]
    )
    assert row["reset"]["interval"] == pytest.approx(expected[1:3])
    assert row["reset"]["value"] == pytest.approx(expected.value)
    copied = rows.joined([*texts, texts[0]])["layers"][1]
    assert copied["copying"]["interval"] == pytest.approx(row["copying"]["interval"])
    assert rows.joined(texts[:4])["layers"][1]["reset"]["interval"] is None


def test_values_lie_outside_the_null_of_their_row_where_their_p_is_small(ids):
    """Of all layers together: what a table and a sentence show beside a value agrees with its p."""
    for seed in range(3):
        model = make_tiny_model(seed)
        texts = apart([text_facts(model, [*some, *some], ["w"] * 160, 1000) for some in ids])
        for row in rows.joined(texts)["layers"]:
            for name in ("copying", "sink", "reset"):
                test = row[name]
                assert (test["value"] > test["null_high"]) == (test["p_value"] <= 0.05), name


def test_independent_texts_are_counted_and_those_with_a_cost(ids):
    texts = [facts(ids[0]), facts(ids[0]), replace(facts(ids[1]), group=1)]
    found = rows.joined(texts)
    assert (found["num_texts"], found["num_independent"]) == (3, 2)
    reset, sink = (found["layers"][2][name] for name in ("reset", "sink"))
    assert (reset["num_texts"], sink["num_texts"]) == (2, 2)
    costs = [one.costs for one in (texts[0], texts[2]) if one.costs is not None]
    assert reset["texts_above"] == sum(one.by_layer[0, 2] > 0 for one in costs)
    late = sum(one.by_layer_late[2] for one in costs) / sum(one.num_late for one in costs)
    assert reset["late"] == pytest.approx(late)


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
