"""Sentences of the overview, by hand: what is said, of which layers, and why nothing is."""

from typing import Any

import pytest

from analysis_pipelines.overview_answers import (
    COPY_GAIN,
    GATE_DIFFERENCE,
    RESET_COST,
    SINK_GAIN,
    answers,
    half_life_groups,
)
from suite_plumbing.result_reading import entry_at
from tests.overview_cases import layer_row, section, shift_test, untested


def said(*rows, **more):
    return {one.question: one for one in answers(section(*rows, **more))}


def test_layers_that_do_nothing_have_six_sentences_that_say_so():
    found = answers(section(layer_row(0), layer_row(1)))
    assert len(found) == 6
    assert not any(one.said for one in found)
    assert all(one.sentence.startswith("No ") for one in found)


def test_half_lives_in_groups():
    assert half_life_groups({0: 8.0, 1: 900.0, 2: 9.0, 3: 300.0}) == [[1, 3], [2, 0]]
    assert half_life_groups({0: 8.0, 1: 31.0, 2: 120.0}) == [[2, 1, 0]]  # each step is below 4
    one = said(layer_row(0, 8.1), layer_row(1, 912.0), layer_row(2, 7.9), layer_row(3, 1514.0))
    assert one["memory"].sentence == (
        "Layers 1 and 3 keep a token for 910 to 1,500, layers 0 and 2 for 7.9 to 8.1 tokens "
        "(median half-life, as A and the mean delta set it; no text here is longer than 120 "
        "tokens)."
    )
    assert one["memory"].null is None


def test_one_layer_that_keeps_tokens_is_a_singular():
    one = said(layer_row(0, 8.0), layer_row(1, 100.0))["memory"]
    assert one.sentence.startswith("Layer 1 keeps a token for about 100, layer 0 for about 8 ")
    assert "longer" not in one.sentence


def test_a_layer_that_copies():
    row = layer_row(11, copying=shift_test(3.64, 0.01, (0.72, 1.18), n=90, unit="repeated tokens"))
    one = said(layer_row(2), row)["copying"]
    assert one.sentence == (
        "Layer 11 copies what followed a token when it was last read: there 3.6 times the "
        "contributions of the lags around (chance: 0.7 to 1.2); the other layers at most 1.1."
    )
    assert (one.layers, one.values, one.null, one.n) == ((11,), (3.64,), (0.72, 1.18), 90)


@pytest.mark.parametrize(
    ("key", "least"), [("copying", COPY_GAIN), ("reset", RESET_COST), ("sink", SINK_GAIN)]
)
@pytest.mark.parametrize(("factor", "p"), [(0.99, 0.01), (1.01, 0.06), (1.01, None)])
def test_neither_a_small_effect_nor_one_that_chance_gives_is_said(key, least, factor, p):
    more: dict[str, Any] = {"heads": []} if key == "sink" else {}
    tests: dict[str, Any] = {key: shift_test(factor * least, p, **more), "first_share": 0.5}
    row = layer_row(4, **tests)
    assert not said(row)[key].said


def test_why_the_largest_effect_is_not_said():
    small, chance = (
        said(layer_row(4)),
        said(layer_row(4, copying=shift_test(9.0, 0.2, (0.5, 10.0)))),
    )
    assert small["copying"].sentence == (
        "No layer copies what followed a token before: at most 1.1 times the lags around "
        "(layer 4), below 2.5."
    )
    assert chance["copying"].sentence.endswith(
        "9.0 times the lags around (layer 4), within chance."
    )


def test_a_ratio_of_two_numbers_near_zero_is_no_copy():
    row = layer_row(4, copying=shift_test(90.0, 0.01, (0.5, 10.0), share=1e-9))
    one = said(row)["copying"]
    assert not one.said
    assert one.sentence.endswith("(layer 4), of next to nothing: 1e-09 of what a query takes.")


def test_states_that_the_next_tokens_need():
    one = said(layer_row(3, reset=shift_test(0.53)), layer_row(4, reset=shift_test(0.2)))["reset"]
    assert one.sentence == (
        "Layers 3 and 4 hold what the next tokens need: a layer's state erased costs 0.53 and 0.2 "
        "nats a token (chance: -0.1 to 0.1)."
    )
    alone = said(layer_row(3, reset=shift_test(0.53)))["reset"]
    assert alone.sentence.startswith("Layer 3 holds what the next tokens need: its state erased ")


def test_context_beyond_the_last_tokens():
    one = said(layer_row(0), all_states=shift_test(0.4))["context"]
    assert one.said
    assert "a token costs 0.4 nats more (chance: -0.1 to 0.1); of |alpha| 30%" in one.sentence
    assert one.path == "overview.all_states"


def test_gates_by_direction_and_kind():
    opens, shuts = ({"space_leading": shift_test(x), "digits": untested()} for x in (0.5, -0.7))
    one = said(layer_row(1, gate=opens), layer_row(2, gate=shuts), layer_row(3, gate=shuts))["gate"]
    assert one.sentence == (
        "Layer 1 opens the gate at tokens that begin a word (+0.5 standard deviations of ln "
        "delta); layers 2 and 3 close the gate at tokens that begin a word (-0.7 to -0.7)."
    )
    assert one.layers == (1, 2, 3)
    small = {"space_leading": shift_test(-0.99 * GATE_DIFFERENCE), "digits": untested()}
    assert not said(layer_row(1, gate=small))["gate"].said


def test_a_sink_needs_a_share_too():
    gain = shift_test(6.0, 0.01, (0.5, 1.5), heads=[3, 8])
    assert not said(layer_row(1, sink=gain))["sink"].said
    one = said(layer_row(1, sink=gain, first_share=0.42))["sink"]
    assert one.sentence == (
        "Layer 1 rests on the first token: it takes 42% of |alpha|, 6.0 times what those after it "
        "take (chance: 0.5 to 1.5); 2 of 64 channels pay it half or more."
    )


def test_what_could_not_be_measured_says_why():
    nothing: dict[str, Any] = {
        key: untested("12 tokens are too few") for key in ("copying", "reset")
    }
    row = layer_row(0, **nothing, gate={"digits": untested("no digits")},
                    sink={**untested("a short text"), "heads": []})  # fmt: skip
    found = said(row, all_states=untested("a short text"))
    for question, reason in (
        ("copying", "12 tokens are too few"), ("reset", "12 tokens are too few"),
        ("gate", "no digits"), ("sink", "a short text"), ("context", "a short text"),
    ):  # fmt: skip
        assert not found[question].said
        assert found[question].sentence.endswith(f" is not known: {reason}.")


def test_every_path_leads_somewhere():
    found = section(layer_row(0))
    for one in answers(found):
        first, *keys = one.path.split(".")
        assert first == "overview"
        keys = [key.removesuffix("[]") for key in keys]
        place = found[keys[0]]
        assert entry_at(place[0] if isinstance(place, list) else place, *keys[1:]) is not None
