"""The overview on models whose answers are known, on untrained ones, and its limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from hand_weighted import constant_half_life, induction

from analysis_pipelines import overview as module
from analysis_pipelines.overview import overview, text_facts
from analysis_pipelines.overview_answers import answers
from analysis_pipelines.overview_rows import joined
from analysis_pipelines.predictions import final_stream
from benchmarks.family_models import ALL_MODELS, family_of, make_model, ssm_layers
from mamba_mixers.sites import find_mixers
from mamba_mixers.untrained_twins import FRESH, PERMUTED, untrained_twin
from suite_plumbing.errors import AnalysisError
from suite_plumbing.models import load_model, load_tokenizer
from suite_plumbing.options import DEMO_MODEL_PATH
from suite_plumbing.related_texts import readings
from suite_plumbing.texts import EXAMPLE_TEXTS, encode_texts


def random_ids(count, length, vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, vocab_size, (count, length)).tolist()


def found_on(model, texts):
    """Section and answers by question of token ids, each token a piece of its own."""
    read = readings(texts)
    facts = [
        replace(text_facts(model, ids, [f" w{token}" for token in ids], 1000), group=one.group)
        for ids, one in zip(texts, read, strict=True)
    ]
    found = joined(facts)
    return found, {one.question: one for one in answers(found)}


@pytest.fixture(scope="module")
def demo():
    return load_model(DEMO_MODEL_PATH), load_tokenizer(DEMO_MODEL_PATH)


def test_a_planted_copy_is_found():
    found, said = found_on(induction(40), random_ids(3, 120, 40))
    copying = said["copying"]
    assert copying.said
    assert copying.layers == (0,)
    assert copying.sentence.startswith("Layer 0 copies what followed a token")
    # The source takes all but what earlier occurrences of the same token take.
    assert found["layers"][0]["copying"]["value"] > 10
    # A value erased near the end is one that the next tokens' copies need.
    assert found["layers"][0]["reset"]["value"] is not None


def test_a_layer_that_takes_all_sources_alike_copies_nothing():
    found, said = found_on(constant_half_life(20.0, 40), random_ids(3, 120, 40))
    assert not said["copying"].said
    assert found["layers"][0]["copying"]["value"] == pytest.approx(1.0, abs=0.1)
    assert found["layers"][0]["median_half_life"] == pytest.approx(20.0, rel=1e-3)


def test_the_demo_model_copies_in_layer_11_and_keeps_tokens_in_odd_layers(demo):
    model, tokenizer = demo
    found = overview(model, encode_texts(tokenizer, list(EXAMPLE_TEXTS), 512), tokenizer)
    said = {one["question"]: one for one in found["answers"]}
    assert said["copying"]["layers"] == [11]
    assert said["copying"]["said"]
    assert said["memory"]["sentence"].startswith("Odd layers 1 to 11 have a median half-life of ")
    assert [row["layer"] for row in found["layers"]] == list(range(13))
    # 27 predictions: whether they lean on more than four tokens is not to be told.
    assert said["context"]["sentence"].startswith("Not shown whether ")
    assert "need what was erased is not shown" in said["reset"]["sentence"]
    for one in found["answers"]:
        assert one["num_texts"] == 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [FRESH, PERMUTED])
def test_a_model_that_learned_nothing_has_nothing_to_say(demo, kind, seed):
    """Permuted weights keep the time scales of whole channels, and half-lives with them: that is
    said as it is, without a null."""
    model, tokenizer = demo
    encoded = encode_texts(tokenizer, list(EXAMPLE_TEXTS), 512)
    found = overview(untrained_twin(model, seed, kind), encoded, tokenizer)["answers"]
    claimed = [one for one in found if one["said"]]
    assert [one["question"] for one in claimed] in ([], ["memory"])
    assert all(one["null"] is None for one in claimed)
    if kind == FRESH:
        assert claimed == []


def test_copies_of_a_text_with_some_tokens_changed_find_no_more_than_one():
    (text,) = random_ids(1, 100, VOCAB_SIZE)
    near = [[*text[:i], 1 + text[i] % (VOCAB_SIZE - 1), *text[i + 1 :]] for i in (20, 50, 80)]
    for seed in range(4):
        _, said = found_on(make_tiny_model(seed), near)
        assert not any(one.said for one in said.values())


def test_a_short_text_says_why_nothing_is_said():
    found, said = found_on(make_tiny_model(), random_ids(1, 12, VOCAB_SIZE))
    assert not any(one.said for one in said.values())
    assert "copying needs 20" in said["copying"].sentence
    assert "too short to go on from an erased state" in said["reset"].sentence
    assert "at most 12 tokens are read of a text; it takes 20" in said["sink"].sentence
    assert found["all_states"]["value"] is None


def test_a_text_of_one_token_is_no_error():
    _, said = found_on(make_tiny_model(), [[3]])
    assert not any(one.said for one in said.values())


def test_an_interval_over_texts_only_from_five_unrelated_texts():
    texts = random_ids(5, 120, 12)
    facts = [text_facts(make_tiny_model(), ids, [f" w{t}" for t in ids], 1000) for ids in texts]
    apart = [replace(one, group=group) for group, one in enumerate(facts)]
    for some, has_interval in ((apart[:4], False), (apart, True), (facts, False)):
        interval = joined(some)["layers"][0]["copying"]["interval"]
        assert (interval is not None) == has_interval


def test_the_forward_pass_leaves_the_model_as_it_was():
    model, ids = make_tiny_model(), random_ids(1, 40, VOCAB_SIZE)[0]
    before = model(torch.tensor([ids])).logits
    found_on(model, [ids])
    assert torch.equal(model(torch.tensor([ids])).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_overflows_is_an_analysis_error():
    model = make_tiny_model()
    with torch.no_grad():
        find_mixers(model)[1].mixer.out_proj.weight.fill_(math.inf)
    with pytest.raises(AnalysisError, match="output of layer 1 holds NaN or infinity"):
        found_on(model, random_ids(1, 40, VOCAB_SIZE))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_family_untrained_copies_nothing(name):
    """And where a model remembers outside its SSMs, no state is erased."""
    found, said = found_on(make_model(name), random_ids(1, 80, 60))
    assert not said["copying"].said
    assert [row["layer"] for row in found["layers"]] == ssm_layers(name)
    reset = found["layers"][0]["reset"]
    assert (reset["value"] is None) == (
        family_of(name) not in ("mamba", "falcon_mamba", "mamba2", "mamba3")
    )


@pytest.mark.parametrize("name", ["mamba", "mamba2", "jamba"])
def test_the_streams_left_are_those_of_the_whole_texts(name, tiny_tokenizer):
    """Read at once where the text is short, else in two parts, the end in a row for each reset."""
    model, streams = make_model(name), {}
    texts = encode_texts(tiny_tokenizer, ["One", "One two three. " * 20], 60)
    texts = [replace(text, input_ids=[i % 60 for i in text.input_ids]) for text in texts]
    overview(model, texts, tiny_tokenizer, streams=streams)
    for text in texts:
        # Float32 rounding: the end of a long text is read from a state.
        expected = final_stream(model, text.input_ids)
        found = streams[tuple(text.input_ids)]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_later_texts_leave_no_stream(tiny_model, tiny_tokenizer, monkeypatch):
    texts = encode_texts(tiny_tokenizer, ["Apples and pears", "Boats", "Clouds over the hill"], 60)
    streams = {}
    monkeypatch.setattr(module, "STREAM_TOKENS", len(texts[0].input_ids))
    overview(tiny_model, texts, tiny_tokenizer, streams=streams)
    assert list(streams) == [tuple(texts[0].input_ids)]
