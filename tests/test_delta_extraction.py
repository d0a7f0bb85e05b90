"""Delta's memory in closed form and against loops; the extractor and its command."""

import json
import math

import numpy as np
import pytest
import torch
from component_cases import components
from defined import known
from safetensors.torch import load_file

import delta_extraction
from delta_extraction import (
    TIME_SCALES,
    DeltaExtractor,
    delta_memory,
    main,
    survival,
    tokens_to_half,
)
from ssm_component_extractor import capture, capture_texts
from ssm_measures.components import layer_components
from suite_plumbing.texts import EXAMPLE_TEXTS, encode_texts


@pytest.fixture
def extractor(tiny_model, tiny_tokenizer):
    return DeltaExtractor(tiny_model, tokenizer=tiny_tokenizer)


def test_constant_delta_has_the_closed_form():
    half_lives = torch.tensor([[2.0, 1.0], [8.0, 4.0], [50.0, 25.0]])
    delta = torch.tensor([0.1, 0.05, 0.2])
    A = -math.log(2) / (half_lives * delta[:, None])
    memory = delta_memory([components(delta.expand(300, 3), A=A)])
    # Set half-lives are reported to 0.1 %; float32 keeps them to 1e-6.
    torch.testing.assert_close(memory.half_life, half_lives, rtol=1e-5, atol=0)
    torch.testing.assert_close(memory.channel_half_life, half_lives[:, 0], rtol=1e-5, atol=0)
    assert memory.lags == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    survival = [float((0.5 ** (lag / half_lives.double())).mean()) for lag in memory.lags]
    # The sum of 300 steps of a delta that float32 rounds: 1e-5 at the longest lag.
    np.testing.assert_allclose(memory.survival, survival, rtol=1e-4)
    assert memory.persistence == pytest.approx(survival[0], rel=1e-5)
    for index, name in enumerate(TIME_SCALES):
        third = memory.by_time_scale[name]
        assert third.num_channels == 1
        assert third.mean_delta == pytest.approx(float(delta[index]))
        expected = [
            float((0.5 ** (lag / half_lives[index].double())).mean()) for lag in memory.lags
        ]
        np.testing.assert_allclose(third.survival, expected, rtol=1e-4, atol=1e-12)


def test_constant_delta_selects_nothing():
    memory = delta_memory(
        [components(torch.tensor([0.1, 0.05, 0.2]).expand(50, 3), A=-torch.ones(3, 1))]
    )
    assert memory.selectivity == pytest.approx(0.0, abs=1e-12)
    assert memory.temporal_variance == pytest.approx(0.0, abs=1e-12)
    assert memory.consistency == pytest.approx(1.0)
    assert memory.autocorrelation.reason == "no channel varies within a text"
    flat = delta_memory([components(torch.full((50, 3), 0.1), A=-torch.ones(3, 1))])
    assert (flat.selectivity, flat.consistency) == (None, None)


def test_varying_delta_equals_the_loops():
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.rand(n, 4, generator=generator) * 0.3 + 0.01 for n in (23, 9)]
    A = -torch.rand(4, 2, generator=generator) - 0.2
    memory = delta_memory([components(delta, A=A) for delta in deltas])
    pooled = torch.cat(deltas).double().numpy()
    assert memory.temporal_variance == pytest.approx(
        np.mean([np.var(c, ddof=1) / np.mean(c) ** 2 for c in pooled.T])
    )
    within = sum(((c - c.mean()) ** 2).sum() for c in pooled.T)
    assert memory.selectivity == pytest.approx(within / ((pooled - pooled.mean()) ** 2).sum())
    profiles = [
        np.corrcoef(pooled[t], np.delete(pooled, t, axis=0).mean(axis=0))[0, 1] for t in range(32)
    ]
    assert memory.consistency == pytest.approx(np.mean(profiles))
    kept = [
        math.exp(float(a) * step) for delta in pooled for step, row in zip(delta, A, strict=True)
        for a in row
    ]  # fmt: skip
    assert memory.persistence == pytest.approx(np.mean(kept), rel=1e-6)
    assert memory.lags == (1, 2, 4, 8, 16)
    for lag, share in zip(memory.lags, memory.survival, strict=True):
        values = [
            math.exp(float(a) * float(delta[t - lag + 1 : t + 1, c].double().sum()))
            for delta in deltas
            for t in range(lag, len(delta))
            for c in range(4)
            for a in A[c]
        ]
        assert share == pytest.approx(np.mean(values), rel=1e-5)  # exponentials are float32


def test_one_token_is_defined():
    memory = delta_memory([components([[0.1, 0.2, 0.3]], A=-torch.ones(3, 2))])
    assert memory.lags == memory.survival == ()
    assert (memory.consistency, memory.temporal_variance) == (None, None)
    assert memory.selectivity == pytest.approx(0.0, abs=1e-12)
    assert memory.autocorrelation.reason == "a text has one token"
    assert json.dumps(memory.to_dict(), allow_nan=False)


def test_thirds_of_the_channels_are_ordered_by_half_life():
    memory = delta_memory(
        [components(torch.full((5, 7), 0.1), A=-torch.linspace(1, 7, 7)[:, None])]
    )
    thirds = [memory.by_time_scale[name] for name in TIME_SCALES]
    assert [third.num_channels for third in thirds] == [3, 2, 2]
    assert known(thirds[0].half_life["max"]) < known(thirds[1].half_life["min"])
    assert known(thirds[1].half_life["max"]) < known(thirds[2].half_life["min"])


def test_bad_input_is_named(tiny_model):
    with pytest.raises(ValueError, match="texts is empty"):
        delta_memory([])
    captured = capture(tiny_model, torch.arange(6).view(2, 3), None, [0])
    with pytest.raises(ValueError, match="components of 2 texts"):
        delta_memory([captured.components[0]])
    with pytest.raises(ValueError, match=r"layer 2 was not captured; those that were: \[0\]"):
        layer_components([captured], 2)
    with pytest.raises(ValueError, match="captures is empty"):
        layer_components([], 2)


def test_the_extractor_gives_delta_of_the_model(extractor, tiny_model):
    text = EXAMPLE_TEXTS[2][:60]
    deltas = extractor.extract_deltas([0, 2], text)
    mixer = tiny_model.backbone.layers[2].mixer
    seen = []
    handle = mixer.x_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    ids = torch.tensor([extractor.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        tiny_model(ids)
        handle.remove()
        rank = mixer.dt_proj.weight.shape[1]
        expected = torch.nn.functional.softplus(mixer.dt_proj(seen[0][..., :rank]))
    torch.testing.assert_close(deltas[2], expected)
    assert deltas[2].shape == (1, ids.shape[1], 64)


def test_methods_need_an_extraction_and_leave_padding_out(extractor, tiny_model, tiny_tokenizer):
    for method in ("analyze_memory", "find_gate_tokens", "correlate_with_neurons"):
        with pytest.raises(RuntimeError, match=r"call extract_deltas\(...\) first"):
            getattr(extractor, method)(0)
    texts = [EXAMPLE_TEXTS[0][:120], EXAMPLE_TEXTS[1][:60]]
    extractor.extract_deltas([1], texts)
    with pytest.raises(ValueError, match=r"layer_idx is 0; the layers extracted are \[1\]"):
        extractor.analyze_memory(0)
    singly = capture_texts(tiny_model, encode_texts(tiny_tokenizer, texts, 500), [1], batch_size=1)
    alone = delta_memory(layer_components(singly, 1), 1)
    memory = extractor.analyze_memory(1)
    assert memory.num_tokens == alone.num_tokens
    # Batched and padded against one at a time: float32 rounding.
    np.testing.assert_allclose(memory.survival, alone.survival, rtol=1e-5)
    assert extractor.find_gate_tokens(1).num_tokens == alone.num_tokens
    assert extractor.correlate_with_neurons(1).num_tokens == alone.num_tokens


def test_the_command_writes_its_files(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--quiet", "--device", "cpu"]
    text = EXAMPLE_TEXTS[0][:150]
    assert main([*options, "--text", text, "--output-dir", str(out)]) == 0
    written = json.loads((out / "delta_analysis.json").read_text())
    assert set(written) == {"layer_0", "layer_2", "schema_version", "provenance"}
    layer = written["layer_2"]
    assert set(layer) == {"memory", "gate_tokens", "neuron_correlation", "sensitivity"}
    rows = (out / "delta_by_token.csv").read_text().splitlines()
    assert rows[0] == "layer,text,position,token,mean_delta,openness"
    assert len(rows) == 1 + 2 * layer["memory"]["num_tokens"]
    assert (out / "delta.safetensors").exists()
    assert "delta_analysis.json" in capsys.readouterr().out


def test_the_command_counts_a_text_given_again_once(tiny_model_dir, tmp_path):
    options = ["--model", str(tiny_model_dir), "--layers", "2", "--quiet", "--device", "cpu"]
    given = ["--text", EXAMPLE_TEXTS[0][:150]]
    assert main([*options, *given, "--output-dir", str(tmp_path / "once")]) == 0
    assert main([*options, *given, *given, "--output-dir", str(tmp_path / "twice")]) == 0
    folders = [tmp_path / run for run in ("once", "twice")]
    tables = [(folder / "delta_by_token.csv").read_bytes() for folder in folders]
    assert tables[0] == tables[1]
    # The files of tensors also hold their run's id.
    tensors = [load_file(folder / "delta.safetensors") for folder in folders]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    once, twice = (
        json.loads((tmp_path / name / "delta_analysis.json").read_text())
        for name in ("once", "twice")
    )
    assert once["layer_2"] == twice["layer_2"]
    assert once["provenance"]["texts"] == twice["provenance"]["texts"]


def loop(deltas, A, lag):
    """Mean over states and tokens of the product of `lag` decays, by head."""
    A = A.double().numpy()
    kept = [
        [
            math.prod(math.exp(a * step) for step in delta[t - lag + 1 : t + 1, head])
            for head in range(len(A))
            for a in A[head]
        ]
        for delta in deltas
        for t in range(lag, len(delta))
    ]
    return np.mean(np.array(kept).reshape(len(kept), *A.shape), axis=(0, 2))


@pytest.mark.parametrize("block_size", [1, 1 << 17])
@pytest.mark.parametrize("states", [1, 3])
def test_shares_are_those_of_the_loop(monkeypatch, block_size, states):
    monkeypatch.setattr(delta_extraction, "_BLOCK_SIZE", block_size)  # heads by 16, and all at once
    rng = np.random.default_rng(0)
    deltas = [rng.uniform(0.01, 0.3, (length, 20)) for length in (23, 5, 1)]
    A = -torch.from_numpy(rng.uniform(0.2, 4.0, (20, states)))
    with torch.autocast("cpu", torch.bfloat16):  # the caller's, for a model
        found = survival(deltas, A, 256)
    assert found.lags == (1, 2, 4, 8, 16)
    for lag, shares in zip(found.lags, found.shares, strict=True):
        np.testing.assert_allclose(shares, loop(deltas, A, lag), rtol=1e-5)  # float32
    every = np.exp(np.concatenate(deltas)[:, :, None] * A.numpy()).mean(axis=(0, 2))
    np.testing.assert_allclose(found.kept, every, rtol=1e-6)  # float32


def test_lags_end_at_the_largest_asked_for_and_at_the_longest_text():
    delta, A = np.full((40, 2), 0.1), -torch.ones(2, 1)
    assert survival([delta], A, 8).lags == (1, 2, 4, 8)
    assert survival([delta[:8]], A, 8).lags == (1, 2, 4)
    alone = survival([delta[:1]], A, 8)
    assert alone.lags == ()
    assert alone.shares.shape == (0, 2)
    np.testing.assert_allclose(alone.kept, math.exp(-0.1), rtol=1e-6)  # float32


def test_what_has_all_but_vanished_is_nothing():
    found = survival([np.full((40, 1), 1.0)], torch.tensor([[-30.0]]), 16)
    np.testing.assert_allclose(found.shares[0], math.exp(-30), rtol=1e-5)  # float32
    assert found.shares[1:].max() == 0.0  # below 1e-26


def loop_to_half(deltas, rate, head):
    """The smallest lag at which at least half of the tokens with one have half or less left."""
    for lag in range(1, max(map(len, deltas))):
        left = [
            math.prod(math.exp(-rate * step) for step in delta[s + 1 : s + lag + 1, head])
            for delta in deltas
            for s in range(len(delta) - lag)
        ]
        if sum(share <= 0.5 * (1 + 1e-9) for share in left) * 2 >= len(left):
            return lag
    return math.inf


def test_tokens_to_half_are_those_of_the_loop():
    rng = np.random.default_rng(1)
    deltas = [rng.exponential(0.2, (length, 6)) for length in (40, 9, 1)]
    rates = np.array([0.05, 0.3, 1.0, 3.0, 20.0, 0.001])
    expected = [loop_to_half(deltas, rate, head) for head, rate in enumerate(rates)]
    assert math.inf in expected
    assert tokens_to_half(deltas, rates).tolist() == expected


@pytest.mark.parametrize("half_life", [1, 4, 7.5, 20])
def test_of_a_constant_delta_they_are_the_half_life_rounded_up(half_life):
    rates = np.array([math.log(2) / (half_life * 0.1)])
    assert tokens_to_half([np.full((60, 1), 0.1)], rates).tolist() == [math.ceil(half_life)]
    assert tokens_to_half([np.full((3, 1), 0.1)], rates * 1e-3).tolist() == [math.inf]


def test_a_gated_memory_keeps_long_what_its_mean_delta_would_forget_at_once():
    """Open at one token of 50, shut in between: it keeps all but 1e-5 over ten tokens."""
    delta = np.full((200, 1), 1e-6)
    delta[::50] = 60.0
    memory = delta_memory([components(delta, A=-torch.ones(1, 1))])
    assert float(memory.channel_half_life) < 0.6
    # Half of the tokens meet an open gate within 25 tokens, fewer of those near the text's end.
    assert float(memory.tokens_to_half) == loop_to_half([delta], 1.0, 0) == 29
    said = memory.to_dict()["tokens_to_half"]
    assert (said["median"], said["num_limited_by_text"], said["reason"]) == (29.0, 0, None)


def test_what_the_text_cannot_show_is_said():
    memory = delta_memory([components(np.full((30, 2), 1e-3), A=-torch.ones(2, 1))])
    said = memory.to_dict()["tokens_to_half"]
    assert said["median"] is None
    assert said["num_limited_by_text"] == 2
    assert said["reason"] == "limited by the text: half of the heads keep longer"


def test_what_was_read_before_counts_in_no_part_of_the_memory():
    rng = np.random.default_rng(3)
    first = torch.from_numpy(rng.exponential(0.2, (60, 4))).float()
    other = torch.cat([first[:40], torch.from_numpy(rng.exponential(0.2, (20, 4))).float()])
    A = -torch.from_numpy(rng.uniform(0.1, 2.0, (4, 2))).float()
    ids = [list(range(60)), [*range(40), *range(100, 120)]]
    parts = [components(delta, A=A) for delta in (first, other)]
    found = delta_memory(parts, token_ids=ids)
    assert (found.num_tokens, found.num_texts, found.num_groups) == (80, 2, 1)
    new = torch.cat([first, other[40:]]).double()
    assert found.delta["mean"] == pytest.approx(float(new.mean()))
    # Of the second text the windows that end at a token of its own, the first 40 being their past.
    for lag, value in zip(found.lags, found.survival, strict=True):
        sums = [
            one[t - lag + 1 : t + 1].sum(0)
            for one, start in ((first.double(), lag), (other.double(), 40))
            for t in range(max(start, lag), 60)
        ]
        expected = torch.exp(torch.stack(sums)[:, :, None] * A.double()).mean()
        assert value == pytest.approx(float(expected), rel=1e-5)  # float32
    once, twice = (delta_memory(parts[:1], token_ids=ids[:1]),
                   delta_memory([parts[0]] * 3, token_ids=[ids[0]] * 3))  # fmt: skip
    assert (twice.survival, twice.consistency) == (once.survival, once.consistency)
    assert torch.equal(twice.tokens_to_half, once.tokens_to_half)
    assert twice.autocorrelation.mean == once.autocorrelation.mean
    with pytest.raises(ValueError, match="token_ids holds texts of"):
        delta_memory(parts, token_ids=ids[:1] * 2 + [[1]])
