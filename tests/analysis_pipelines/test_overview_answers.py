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
    limited = {"lag_90": 96.0, "limited_by_text": True}
    one = said(layer_row(0, 8.1), layer_row(1, 912.0, **limited), layer_row(2, 7.9, lag_90=41.0),
               layer_row(3, 1514.0, **{**limited, "lag_90": 105.0}))  # fmt: skip
    assert one["memory"].sentence == (
        "Layers 1 and 3 have a median half-life of 910 to 1,500, layers 0 and 2 of 7.9 to 8.1 "
        "tokens (of a layer's states, as A and the mean delta set it; no text here is longer than "
        "120 tokens). 90 % of |alpha| lies within 96 to 105 and 20 to 41 tokens, limited by the "
        "texts' length in layers 1 and 3."
    )
    assert one["memory"].null is None
    assert (one["memory"].n, one["memory"].num_texts) == (300, 2)


def test_the_lag_is_said_whether_or_not_layers_fall_into_groups():
    alike = said(layer_row(0), layer_row(1, lag_90=31.0, limited_by_text=True))["memory"].sentence
    assert alike == (
        "No layer keeps tokens much longer than another: median half-life 8 tokens in all of them. "
        "90 % of |alpha| lies within 20 to 31 tokens, limited by the texts' length in layer 1."
    )
    every = said(layer_row(0, limited_by_text=True))["memory"].sentence
    assert every.endswith("within 20 tokens, limited by the texts' length.")
    assert "|alpha|" not in said(layer_row(0, lag_90=None))["memory"].sentence


def test_one_layer_that_keeps_tokens_is_a_singular():
    one = said(layer_row(0, 8.0), layer_row(1, 100.0))["memory"]
    assert one.sentence.startswith("Layer 1 has a median half-life of 100, layer 0 of 8 tokens ")
    assert "longer" not in one.sentence


def test_a_layer_that_copies():
    row = layer_row(11, copying=shift_test(3.64, 0.01, (0.72, 1.18), n=90, unit="repeated tokens"))
    one = said(layer_row(2), row)["copying"]
    assert one.sentence == (
        "Layer 11 copies what followed a token when it was last read: there 3.6 times the "
        "contributions of the lags around (chance: 0.7 to 1.2); the others at most 1.1, not above "
        "chance."
    )
    assert (one.layers, one.values, one.null, one.n) == ((11,), (3.64,), (0.72, 1.18), 90)


def test_layers_above_chance_beside_one_that_copies_are_told_from_the_others():
    high, some = (shift_test(x, 0.01, (0.8, 1.2)) for x in (3.6, 1.9))
    one = said(layer_row(2, copying=some), layer_row(4), layer_row(11, copying=high))["copying"]
    assert one.sentence.endswith(
        "; layer 2 1.9, above chance too but below 2.5; the others at most 1.1, not above chance."
    )
    assert one.layers == (11,)


@pytest.mark.parametrize(
    ("key", "least"), [("copying", COPY_GAIN), ("reset", RESET_COST), ("sink", SINK_GAIN)]
)
@pytest.mark.parametrize(("factor", "p"), [(0.99, 0.01), (1.01, 0.06), (1.01, None)])
def test_neither_a_small_effect_nor_one_that_chance_gives_is_said(key, least, factor, p):
    more: dict[str, Any] = {"heads": []} if key == "sink" else {}
    tests: dict[str, Any] = {key: shift_test(factor * least, p, **more), "first_share": 0.5}
    row = layer_row(4, **tests)
    assert not said(row)[key].said


def test_no_layer_does_it_only_where_chance_would_not_hide_it():
    small = said(layer_row(4))
    assert small["copying"].sentence == (
        "No layer copies what followed a token before: at most 1.1 times the lags around (layer 4; "
        "chance: 0.8 to 1.2; p 0.4), below the 2.5 times asked for."
    )
    # One layer whose null is wider than the effect asked for, beside one of a larger value.
    wide = shift_test(0.005, 0.9, (-0.3, 0.4))
    one = said(layer_row(4), layer_row(5, reset=wide))["reset"]
    assert one.sentence == (
        "Not shown that a layer is missed by the next tokens when its state alone is erased: at "
        "most 0.005 nats a token (layer 5; chance: -0.3 to 0.4; p 0.9), and chance alone reaches "
        "the 0.02 asked for."
    )
    assert not one.said


def test_value_null_and_p_are_of_one_layer():
    """The smallest p of the question is another layer's."""
    big, other = shift_test(3.454, 0.126, (-1.0, 3.9)), shift_test(0.01, 0.0575, (-0.01, 0.01))
    one = said(layer_row(9, reset=other), layer_row(11, reset=big))["reset"]
    assert "at most 3.5 nats a token (layer 11; chance: -1 to 3.9; p 0.13)" in one.sentence
    assert one.sentence.startswith("Not shown")
    assert (one.layers, one.null, one.p_value) == ((11,), (-1.0, 3.9), 0.126)
    # 0.126 among 0.4, 0.5, 0.6 and 0.6, adjusted.
    assert one.adjusted_p == pytest.approx(0.6)


def test_an_effect_above_chance_in_a_layer_but_not_over_all_questions():
    alone = shift_test(9.0, 0.04, (0.5, 8.0))
    one = said(layer_row(4, copying=alone))["copying"]
    assert one.sentence == (
        "Not shown that a layer copies what followed a token before: at most 9.0 times the lags "
        "around (layer 4; chance: 0.5 to 8.0; p 0.04), not enough where 5 questions are asked."
    )


def test_what_is_above_chance_and_small_is_said_as_that():
    small = shift_test(0.012, 0.01, (-0.01, 0.01))
    one = said(layer_row(4), layer_row(9, reset=small), layer_row(5, reset=small))["reset"]
    assert one.sentence == (
        "Layer 9's state erased alone costs 0.012 nats a token (chance: -0.01 to 0.01; p 0.01): "
        "above chance, but below the 0.02 asked for; 1 more above chance is smaller; the others at "
        "most 0.001, not above chance."
    )
    assert not one.said
    assert one.p_value == 0.01


def test_of_some_layers_none_is_not_no_layer():
    one = said(layer_row(4), layer_row(5, reset=untested("not erased")))["reset"]
    assert one.sentence.startswith("None of the 1 layers tried is missed by the next tokens ")


def test_a_ratio_of_two_numbers_near_zero_is_no_copy():
    row = layer_row(4, copying=shift_test(90.0, 0.01, (0.5, 10.0), share=1e-9))
    one = said(row)["copying"]
    assert not one.said
    assert one.sentence.endswith(": above chance, but of next to nothing: 1e-09 of what a query "
                                 "takes.")  # fmt: skip


def test_a_state_is_needed_where_the_erasure_of_all_costs_too():
    rows = layer_row(3, reset=shift_test(0.53)), layer_row(4, reset=shift_test(0.2, late=0.1))
    one = said(*rows, all_states=shift_test(0.4))["reset"]
    assert one.sentence == (
        "Layers 3 and 4 hold what the next tokens need: a state erased alone costs 0.53 and 0.2 "
        "nats a token (chance: -0.1 to 0.1; above 0 in 3 and 3 of 3 independent texts). From the "
        "fourth prediction on they cost 0.53 and 0.1, all states erased together 0.4 (chance: -0.1 "
        "to 0.1)."
    )
    alone = said(rows[0], all_states=shift_test(0.4))["reset"]
    assert alone.sentence.startswith("Layer 3 holds what the next tokens need: its state erased ")


@pytest.mark.parametrize(
    ("late", "all_states"),
    [(0.46, shift_test(0.001, 0.7, (-0.3, 0.4))), (0.46, shift_test(0.3, 0.06)),
     (0.46, shift_test(0.027, 0.01, (-0.4, -0.1), interval=[-0.12, 0.17])),
     (0.46, shift_test(0.027, 0.01, (-0.4, -0.1), texts_above=2)),
     (0.001, shift_test(0.4))],
)  # fmt: skip
def test_an_erasure_that_costs_alone_shows_no_need(late, all_states):
    row = layer_row(11, reset=shift_test(0.71, 0.01, (-1.5, 0.5), late=late))
    one = said(row, all_states=all_states)["reset"]
    low, high = all_states["null_low"], all_states["null_high"]
    assert one.sentence == (
        "Layer 11's state erased alone costs 0.71 nats a token (chance: -1.5 to 0.5; above 0 in 3 "
        f"of 3 independent texts). From the fourth prediction on it costs {late:.2g}, all states "
        f"erased together {all_states['value']:.2g} (chance: {low:.2g} to {high:.2g}): that the "
        "next tokens need what was erased is not shown."
    )
    assert one.said
    assert (one.n, one.unit, one.num_texts) == (40, "predictions", 3)


def test_context_beyond_the_last_tokens():
    one = said(layer_row(0), all_states=shift_test(0.4))["context"]
    assert one.said
    assert "a token costs 0.4 nats more (chance: -0.1 to 0.1); of |alpha| 30%" in one.sentence
    assert one.path == "overview.all_states"


@pytest.mark.parametrize(
    ("test", "beginning", "end"),
    [(shift_test(0.001, 0.7, (-0.35, 0.4)), "Not shown whether predictions lean on more ",
      "(chance: -0.35 to 0.4; p 0.7), and chance alone reaches the 0.02 asked for."),
     (shift_test(0.001, 0.7, (-0.003, 0.004)), "No sign that predictions lean on more ",
      "(chance: -0.003 to 0.004; p 0.7), below the 0.02 asked for."),
     (shift_test(0.012, 0.01, (-0.003, 0.004)), "All states erased four tokens or more before ",
      "(chance: -0.003 to 0.004; p 0.01): above chance, but below the 0.02 asked for.")],
)  # fmt: skip
def test_no_sign_of_context_only_where_chance_would_not_hide_it(test, beginning, end):
    one = said(layer_row(0), all_states=test)["context"]
    assert one.sentence.startswith(beginning)
    assert one.sentence.endswith(end)
    assert not one.said


def test_a_cost_above_its_null_and_about_zero_over_texts_is_no_need():
    """Other tokens gain by the erasure: 0 lies above the null."""
    null, three = (-0.4, -0.1), "3 independent texts alone."
    spread = said(layer_row(0), all_states=shift_test(0.027, 0.01, null, interval=[-0.12, 0.17]))
    assert spread["context"].sentence == (
        "Not shown whether predictions lean on more than the last tokens: all states erased four "
        "tokens or more before cost 0.027 nats a token (chance: -0.4 to -0.1; p 0.01), and 95 % "
        "over 3 texts, -0.12 to 0.17, leaves room for 0."
    )
    two = said(layer_row(0), all_states=shift_test(0.027, 0.01, null, texts_above=2))["context"]
    assert two.sentence.endswith(f"(chance: -0.4 to -0.1; p 0.01), above 0 in 2 of {three}")
    assert not any(one.said for one in (spread["context"], two))
    wide = shift_test(0.001, 0.7, (-0.003, 0.004), interval=[-0.1, 0.1])
    assert said(layer_row(0), all_states=wide)["context"].sentence.endswith(
        "(chance: -0.003 to 0.004; p 0.7), and 95 % over 3 texts, -0.1 to 0.1, leaves room for the "
        "0.02 asked for."
    )
    sure = shift_test(0.2, 0.01, null, interval=[0.1, 0.3])
    assert said(layer_row(0), all_states=sure)["context"].said


@pytest.mark.parametrize(
    ("key", "value", "none"), [("copying", 3.2, 1), ("reset", 0.7, 0), ("sink", 4.0, 1)]
)
def test_an_effect_whose_interval_over_texts_leaves_room_for_none_is_not_said(key, value, none):
    more: dict[str, Any] = {"heads": []} if key == "sink" else {}
    for low, is_said in ((none - 0.1, False), (none + 0.1, True)):
        test = shift_test(value, 0.01, (-0.1, 0.1), interval=[low, 9.0], **more)
        tests: dict[str, Any] = {key: test, "first_share": 0.5}
        one = said(layer_row(4, **tests))[key]
        assert one.said == is_said
        if not is_said:
            assert one.sentence.endswith(f"{low:.2g} to 9, leaves room for {none}.")


def test_gates_by_direction_and_kind():
    opens, shuts, more = (
        {"space_leading": shift_test(x), "digits": untested()} for x in (0.5, -0.7, -0.2)
    )
    one = said(layer_row(1, gate=opens), layer_row(2, gate=shuts), layer_row(3, gate=shuts),
               layer_row(4, gate=more))["gate"]  # fmt: skip
    assert one.sentence == (
        "Layer 1 opens the gate at tokens that begin a word (+0.5 standard deviations of ln delta; "
        "chance: -0.1 to 0.1; 25 different ones, 15 others); layers 2 and 3 close the gate at "
        "tokens that begin a word (-0.7; chance: -0.1 to 0.1); 1 smaller difference lies "
        "above chance."
    )
    assert one.layers == (1, 2, 3)
    small = {"space_leading": shift_test(-0.99 * GATE_DIFFERENCE), "digits": untested()}
    one = said(layer_row(1, gate=small))["gate"]
    assert not one.said
    assert one.sentence == (
        "Layer 1 closes the gate at tokens that begin a word by -0.3 standard deviations of ln "
        "delta (chance: -0.1 to 0.1; p 0.01): above chance, but below the 0.3 asked for."
    )


def test_a_sink_needs_a_share_too():
    gain = shift_test(6.0, 0.01, (0.5, 1.5), heads=[3, 8])
    one = said(layer_row(1, sink=gain))["sink"]
    assert not one.said
    assert one.sentence == (
        "Layer 1 pays the first token 6.0 times what it pays those after it, 1.0% of |alpha| "
        "(chance: 0.5 to 1.5; p 0.01): above chance, but below the tenth asked for."
    )
    one = said(layer_row(1, sink=gain, first_share=0.42))["sink"]
    assert one.sentence == (
        "Layer 1 rests on the first token: it takes 42% of |alpha|, 6.0 times what those after it "
        "take (chance: 0.5 to 1.5); 2 of 64 channels pay it half or more."
    )


def test_a_large_share_without_a_gain_is_no_sink_and_a_gain_below_three_is_said():
    """A short text gives the first token much of |alpha| in every layer: that has no null."""
    most = layer_row(2, first_share=0.324)
    nothing = said(most)["sink"]
    assert nothing.sentence == (
        "No layer rests on the first token: at most 1.0 times what those after it take (layer 2; "
        "chance: 0.5 to 1.5; p 0.5), below the 3 times asked for."
    )
    assert nothing.path == "overview.layers[].sink"
    some = shift_test(2.48, 0.01, (0.5, 2.1), heads=[])
    one = said(most, layer_row(9, sink=some, first_share=0.085))["sink"]
    assert one.sentence == (
        "Layer 9 pays the first token 2.5 times what it pays those after it, 8.5% of |alpha| "
        "(chance: 0.5 to 2.1; p 0.01): above chance, but below the 3 times and the tenth asked "
        "for; the others at most 1.0, not above chance."
    )
    assert (one.layers, one.values, one.null, one.p_value) == ((9,), (2.48,), (0.5, 2.1), 0.01)


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
