"""Delta's memory in closed form and against loops; the tokens that open and close the gate."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from delta_extraction import (
    TIME_SCALES,
    TOKEN_CLASSES,
    DeltaExtractor,
    delta_memory,
    gate_tokens,
    layer_components,
    main,
    token_pieces,
)
from ssm_component_extractor import SSMComponents, capture, capture_texts
from utils import EXAMPLE_TEXTS, encode_texts


def known(value: Any) -> Any:
    """The value of a statistic that must not be undefined here."""
    assert value is not None
    return value


def components(delta, A):
    """Components of one text with this delta (l, d_inner) and A (d_inner, N); the rest is noise."""
    delta, A = torch.as_tensor(delta, dtype=torch.float32)[None], torch.as_tensor(A)
    generator = torch.Generator().manual_seed(0)
    _, length, d_inner = delta.shape
    noise: dict[str, Any] = {
        name: torch.randn(1, length, d_inner, generator=generator)
        for name in ("u", "gate", "y", "gated", "conv_input")
    }
    return SSMComponents(
        A=A.float(),
        B=torch.randn(1, length, A.shape[1], generator=generator),
        C=torch.randn(1, length, A.shape[1], generator=generator),
        D=torch.ones(d_inner),
        delta=delta,
        mixer_output=torch.randn(1, length, 4, generator=generator),
        attention_mask=torch.ones(1, length),
        replay_errors=(0.0,),
        **noise,
    )


@pytest.fixture
def extractor(tiny_model, tiny_tokenizer):
    return DeltaExtractor(tiny_model, tokenizer=tiny_tokenizer)


def test_constant_delta_has_the_closed_form():
    half_lives = torch.tensor([[2.0, 1.0], [8.0, 4.0], [50.0, 25.0]])
    delta = torch.tensor([0.1, 0.05, 0.2])
    A = -math.log(2) / (half_lives * delta[:, None])
    memory = delta_memory([components(delta.expand(300, 3), A)])
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
        [components(torch.tensor([0.1, 0.05, 0.2]).expand(50, 3), -torch.ones(3, 1))]
    )
    assert memory.selectivity == pytest.approx(0.0, abs=1e-12)
    assert memory.temporal_variance == pytest.approx(0.0, abs=1e-12)
    assert memory.consistency == pytest.approx(1.0)
    assert memory.autocorrelation.reason == "no channel varies within a text"
    flat = delta_memory([components(torch.full((50, 3), 0.1), -torch.ones(3, 1))])
    assert (flat.selectivity, flat.consistency) == (None, None)


def test_varying_delta_equals_the_loops():
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.rand(n, 4, generator=generator) * 0.3 + 0.01 for n in (23, 9)]
    A = -torch.rand(4, 2, generator=generator) - 0.2
    memory = delta_memory([components(delta, A) for delta in deltas])
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
    for lag, survival in zip(memory.lags, memory.survival, strict=True):
        values = [
            math.exp(float(a) * float(delta[t - lag + 1 : t + 1, c].double().sum()))
            for delta in deltas
            for t in range(lag, len(delta))
            for c in range(4)
            for a in A[c]
        ]
        assert survival == pytest.approx(np.mean(values), rel=1e-5)  # exponentials are float32


def test_one_token_is_defined():
    memory = delta_memory([components([[0.1, 0.2, 0.3]], -torch.ones(3, 2))])
    assert memory.lags == memory.survival == ()
    assert (memory.consistency, memory.temporal_variance) == (None, None)
    assert memory.selectivity == pytest.approx(0.0, abs=1e-12)
    assert memory.autocorrelation.reason == "a text has one token"
    assert json.dumps(memory.to_dict(), allow_nan=False)


def test_thirds_of_the_channels_are_ordered_by_half_life():
    memory = delta_memory([components(torch.full((5, 7), 0.1), -torch.linspace(1, 7, 7)[:, None])])
    thirds = [memory.by_time_scale[name] for name in TIME_SCALES]
    assert [third.num_channels for third in thirds] == [3, 2, 2]
    assert known(thirds[0].half_life["max"]) < known(thirds[1].half_life["min"])
    assert known(thirds[1].half_life["max"]) < known(thirds[2].half_life["min"])


def planted_gate(pieces, opened, seed=0):
    """Delta three times as large where `opened`, in every channel, with a little noise."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.array(opened), 0.3, 0.1)[:, None] * rng.uniform(0.9, 1.1, (len(pieces), 6))
    return components(torch.from_numpy(scale), -torch.ones(6, 2))


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
    assert known(punctuation.difference.value) > 2.0
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
    assert test.value == pytest.approx(openness[digits].mean() - openness[~digits].mean())


def test_constant_delta_opens_at_no_token():
    pieces = [" a", "b"] * 30
    found = gate_tokens([components(torch.full((60, 3), 0.1), -torch.ones(3, 1))], [pieces])
    assert found.opening == found.closing == ()
    reason = found.by_class["space_leading"].difference.reason
    assert reason == "delta is the same at every token"
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_pieces_are_the_text_itself(tiny_tokenizer):
    ids = tiny_tokenizer(EXAMPLE_TEXTS[0])["input_ids"]
    pieces = token_pieces(tiny_tokenizer, ids)
    assert "".join(pieces) == EXAMPLE_TEXTS[0]
    assert any(piece.startswith(" ") for piece in pieces)


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
    texts = layer_components([captured], 0)
    with pytest.raises(ValueError, match=r"texts of \[2, 3\] tokens, the components \[3, 3\]"):
        gate_tokens(texts, [["a", "b"], ["a", "b", "c"]])


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


def test_the_command_writes_its_files(tiny_model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--quiet", "--device", "cpu"]
    text = EXAMPLE_TEXTS[0][:150]
    assert main([*options, "--text", text, "--output-dir", str(out)]) == 0
    written = json.loads((out / "delta_analysis.json").read_text())
    assert set(written) == {"layer_0", "layer_2"}
    layer = written["layer_2"]
    assert set(layer) == {"memory", "gate_tokens", "neuron_correlation", "sensitivity"}
    rows = (out / "delta_by_token.csv").read_text().splitlines()
    assert rows[0] == "layer,text,position,token,mean_delta,openness"
    assert len(rows) == 1 + 2 * layer["memory"]["num_tokens"]
    assert (out / "delta.safetensors").exists()
    assert "delta_analysis.json" in capsys.readouterr().out
