"""Layer activations and recursive patterns against loops and plants."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from defined import known

from layer_correlation_analyzer import (
    LayerCorrelationAnalyzer,
    corpus_cross_layer_correlations,
    cross_layer_correlations,
    main,
    pooled_activations,
    recursive_patterns,
    summarise_activations,
)
from ssm_component_extractor import capture, capture_texts
from suite_plumbing.texts import EXAMPLE_TEXTS, encode_texts


@pytest.fixture
def captures(tiny_model, tiny_tokenizer):
    encoded = encode_texts(tiny_tokenizer, list(EXAMPLE_TEXTS), 60)
    return capture_texts(tiny_model, encoded, [0, 2, 3])


@pytest.fixture
def analyzer(tiny_model, tiny_tokenizer):
    return LayerCorrelationAnalyzer(tiny_model, tokenizer=tiny_tokenizer)


def test_pooled_activations_hold_every_token_once_and_no_padding(tiny_model, captures):
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    batch = capture(tiny_model, ids, mask, [1])
    for stream, source in (
        ("residual", batch.block_outputs[1]),
        ("mixer", batch.components[1].mixer_output),
    ):
        pooled = pooled_activations([batch], 1, stream)
        assert pooled.lengths == (3, 5)
        expected = torch.cat([source[0, 2:], source[1]]).double().numpy()
        np.testing.assert_array_equal(pooled.values, expected)
    assert pooled_activations(captures, 2).lengths == (60, 60, 60)


def test_extracted_activations_are_the_streams_of_the_model(tiny_model, analyzer):
    text = EXAMPLE_TEXTS[0][:40]
    residual = analyzer.extract_layer_activations([0, 1], text)
    mixer = analyzer.extract_layer_activations([1], text, stream="mixer")[1]
    ids = torch.tensor([analyzer.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = tiny_model(ids, output_hidden_states=True).hidden_states
    # Mamba's hidden_states[i] is the stream after layer i.
    torch.testing.assert_close(residual[1], states[1])
    # The residual stream is a sum: float32 rounding of one addition and one subtraction.
    torch.testing.assert_close(mixer, residual[1] - residual[0], atol=1e-5, rtol=1e-4)


def test_a_batch_gives_what_its_texts_give_one_by_one(tiny_model, tiny_tokenizer, analyzer):
    texts = [EXAMPLE_TEXTS[0][:150], EXAMPLE_TEXTS[1][:90]]
    analyzer.extract_layer_activations([0, 3], texts)
    together = analyzer.compute_cross_layer_correlations()["layer_0_to_3"]
    encoded = encode_texts(tiny_tokenizer, texts, 500)
    singly = capture_texts(tiny_model, encoded, [0, 3], batch_size=1)
    alone = cross_layer_correlations(singly)["layer_0_to_3"]
    assert together.num_tokens == alone.num_tokens
    assert together.mean_abs.value == pytest.approx(alone.mean_abs.value, abs=1e-5)
    assert together.cka.value == pytest.approx(alone.cka.value, abs=1e-5)


def test_consecutive_pairs_are_the_default_and_others_can_be_named(captures):
    assert list(cross_layer_correlations(captures)) == ["layer_0_to_2", "layer_2_to_3"]
    named = cross_layer_correlations(captures, [(0, 3)], stream="mixer")
    assert list(named) == ["layer_0_to_3"]
    pair = named["layer_0_to_3"]
    assert (pair.layers, pair.stream, pair.shares_residual) == ((0, 3), "mixer", False)
    assert cross_layer_correlations(captures)["layer_0_to_2"].shares_residual is True


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "name each pair once"),
        ([(0, 2), (0, 2)], "name each pair once"),
        ([(0, 1)], r"names \[1\]; the layers captured are \[0, 2, 3\]"),
        ([(0,)], r"pass pairs of layers such as \[\(0, 3\)"),
        ((0, 2), "pass pairs of layers"),
        ([(0.5, 2)], "pass pairs of layers"),
    ],
)
def test_wrong_pairs_are_refused(captures, pairs, message):
    with pytest.raises(ValueError, match=message):
        cross_layer_correlations(captures, pairs)


def test_a_single_layer_has_nothing_to_correlate_with(tiny_model):
    single = capture(tiny_model, torch.arange(5)[None], None, [2])
    with pytest.raises(ValueError, match="only layer 2 was captured"):
        cross_layer_correlations([single])


def test_other_bad_input_is_named(captures, analyzer):
    with pytest.raises(ValueError, match="stream is 'sum'; it must be one of residual, mixer"):
        pooled_activations(captures, 0, "sum")
    with pytest.raises(ValueError, match=r"layer 1 was not captured; those that were: \[0, 2, 3\]"):
        recursive_patterns(captures, 1)
    for call in (cross_layer_correlations, lambda none: recursive_patterns(none, 0)):
        with pytest.raises(ValueError, match="captures is empty"):
            call([])
    for method in (analyzer.compute_cross_layer_correlations, analyzer.analyze_recursive_patterns):
        with pytest.raises(RuntimeError, match="call extract_layer_activations"):
            method(*((0,) if method == analyzer.analyze_recursive_patterns else ()))


def test_a_stream_of_captures_gives_what_they_give_together(captures):
    together = cross_layer_correlations(captures, [(0, 2)], stream="mixer")["layer_0_to_2"]
    streamed = corpus_cross_layer_correlations(iter(captures), [(0, 2)], stream="mixer")
    found = streamed["layer_0_to_2"]
    assert (found.num_tokens, found.num_segments, found.stream) == (180, 3, "mixer")
    assert found.shares_residual is False
    # Sums of 180 float32 products against float64.
    assert found.values["mean_abs"] == pytest.approx(together.mean_abs.value, abs=1e-5)
    assert found.values["cka"] == pytest.approx(together.cka.value, abs=1e-4)
    with pytest.raises(ValueError, match="batches is empty"):
        corpus_cross_layer_correlations([], [(0, 2)])
    with pytest.raises(ValueError, match=r"names \[1\]"):
        corpus_cross_layer_correlations(captures, [(0, 1)])


def naive_changes(x):
    """|x_t - x_{t-1}| / mean |x| by a loop over tokens."""
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    scale = np.mean([np.linalg.norm(row) for row in x])
    return [np.linalg.norm(x[t] - x[t - 1]) / scale for t in range(1, len(x))]


def test_changes_equal_the_loop(captures):
    result = recursive_patterns(captures, 2, stream="mixer")
    states, activations = [], []
    for captured in captures:
        parts = captured.components[2]
        h = torch.zeros(parts.A.shape, dtype=torch.float64)
        trajectory = []
        for t in range(60):
            delta = parts.delta[0, t].double()[:, None]
            write = delta * parts.B[0, t].double() * parts.u[0, t].double()[:, None]
            h = torch.exp(delta * parts.A.double()) * h + write
            trajectory.append(h)
        states += naive_changes(torch.stack(trajectory))
        activations += naive_changes(parts.mixer_output[0])
    # States are float32 sums over 60 tokens.
    np.testing.assert_allclose(np.array(result.state_change, float), states, rtol=1e-5)
    np.testing.assert_allclose(np.array(result.activation_change, float), activations, rtol=1e-5)
    assert result.change_correlation.n == 3 * 55  # four changes of each text are warm-up
    assert (result.num_tokens, result.num_texts) == (180, 3)


def test_activations_with_a_planted_memory_are_recognised(captures):
    noise = torch.randn(1, 60, 32, generator=torch.Generator().manual_seed(1))
    moving = noise + noise.roll(1, 1) + noise.roll(2, 1)
    planted = [replace(c, block_outputs={**c.block_outputs, 0: moving}) for c in captures]
    assert recursive_patterns(planted, 0).autocorrelation.memory_time == 3


def test_one_token_and_a_silent_layer_are_defined(tiny_model, captures):
    single = recursive_patterns([capture(tiny_model, torch.tensor([[3]]), None, [0])], 0)
    assert single.autocorrelation.reason == "a text has one token"
    assert single.state_change == single.activation_change == ()
    assert single.change_correlation.value is None
    silent = [replace(c, block_outputs={0: torch.zeros(1, 60, 32)}) for c in captures]
    result = recursive_patterns(silent, 0)
    assert set(result.activation_change) == {None}
    assert "all zero" in known(result.change_correlation.reason)
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_the_summary_of_activations_is_that_of_the_tensors(captures):
    summary = summarise_activations(captures[0], 2)
    residual = captures[0].block_outputs[2][0].double()
    added = captures[0].components[2].mixer_output[0].double()
    assert summary["residual_norm"]["mean"] == pytest.approx(float(residual.norm(dim=1).mean()))
    share = float((added.norm(dim=1) / residual.norm(dim=1)).mean())
    assert summary["mixer_share"]["mean"] == pytest.approx(share)
    assert 1 <= summary["participation_ratio"] <= 32


def test_a_summary_of_a_batch_has_the_tokens_that_are_new(tiny_model):
    ids = torch.randint(1, 64, (1, 30), generator=torch.Generator().manual_seed(1))
    other = torch.cat([ids[:, :20], ids[:, 20:].flip(1)], dim=1)
    alone, both = (capture(tiny_model, x, None, [1]) for x in (ids, torch.cat([ids, other])))
    assert summarise_activations(both, 1)["num_tokens"] == 40
    again = capture(tiny_model, ids.expand(3, -1), None, [1])
    once, thrice = (summarise_activations(x, 1)["residual_norm"] for x in (alone, again))
    assert thrice["n"] == once["n"] == 30
    assert thrice["mean"] == pytest.approx(once["mean"], rel=1e-6)  # float32, by batch


def test_the_command_writes_its_files(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--quiet", "--device", "cpu"]
    assert main([*options, "--output-dir", str(out)]) == 0
    written = json.loads((out / "layer_correlations.json").read_text())
    pair = written["layer_correlations"]["mixer"]["layer_0_to_2"]
    assert pair["enough_tokens"] is True
    assert math.isfinite(pair["mean_abs"]["value"])
    assert written["provenance"]["command"][:2] == ["python", "layer_correlation_analyzer.py"]
    assert set(written["recursive_patterns"]) == {"layer_0", "layer_2"}
    header = (out / "top_pairs.csv").read_text().splitlines()[0]
    assert header.startswith("stream,layer_a,layer_b,channel_a,channel_b,r")
    assert (out / "layer_activations.safetensors").exists()
    printed = capsys.readouterr().out
    assert "layer_correlations.json" in printed
    assert "One independent text" not in printed
    assert main([*options, "--layers", "9", "--output-dir", str(out)]) == 2


@pytest.mark.parametrize("streamed", [[], ["--stream", "mixer"]])
def test_near_copies_are_said_to_be_one_text(tiny_model_dir, tmp_path, capsys, streamed):
    words = [f"{a}{b}" for a in "abcdefgh" for b in "klmnopqr"]
    texts = [" ".join([*words, end]) for end in ("one", "two")]
    given = [part for text in texts for part in ("--text", text)]
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--quiet", "--device", "cpu"]
    assert main([*options, *given, *streamed, "--output-dir", str(tmp_path / "out")]) == 0
    assert "One independent text: what its layers share" in capsys.readouterr().out


def test_the_command_streams_a_corpus(tiny_model_dir, tmp_path, capsys):
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--quiet", "--device", "cpu"]
    out = tmp_path / "out"
    output = ["--stream", "mixer", "--output-dir", str(out)]
    assert main([*options, *output]) == 0
    written = json.loads((out / "layer_correlations.json").read_text())
    pair = written["layer_correlations"]["mixer"]["layer_0_to_2"]
    assert (pair["num_segments"], pair["enough_tokens"]) == (3, True)
    assert pair["tests"]["mean_abs"]["num_draws"] == 39
    names = ["layer_correlations.json", "layer_correlations.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    printed = capsys.readouterr().out
    assert "layer_correlations.json and layer_correlations.png beside it" in printed
    assert f"{pair['tests']['mean_abs']['value']:.3g}" in printed
    assert main([*options, *output, "--layers", "1"]) == 2
