"""A text in chunks is the text as a whole; windows score the same tokens; nothing grows with it."""

import gc
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model
from hand_weighted import constant_half_life, induction
from torch import Tensor
from transformers import MambaForCausalLM

import long_memory as long
from delta_extraction import delta_memory
from long_memory import (
    compare_readings,
    loss_along,
    loss_by_context,
    main,
    read_through,
    readings_table,
    window_losses,
)
from ssm_component_extractor import capture, recursive_dynamics
from ssm_measures.attention_maps import mean_map
from ssm_measures.attention_measures import memory_kernel
from ssm_measures.components import Capture
from suite_plumbing.result_files import read_json
from suite_plumbing.texts import EXAMPLE_TEXTS
from token_statistics.description import relative_error


def make_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(
        1, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)
    )  # fmt: skip


@torch.no_grad()
def stock_losses(model: MambaForCausalLM, ids: Tensor) -> Tensor:
    """-ln p of each next token by transformers' own forward pass on the whole text."""
    log_p = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return -log_p.gather(1, ids[1:, None])[:, 0]


def whole(model: MambaForCausalLM, ids: Tensor) -> Capture:
    return capture(model, ids[None], None, [0, 2])


@pytest.mark.parametrize("chunk_size", [2, 3, 16, 50, 101, 200])
def test_a_text_read_through_in_chunks_is_the_whole_text(chunk_size):
    model, ids = make_tiny_model(), make_ids(101)
    reading = read_through(model, ids, chunk_size=chunk_size, layers=[0, 2])
    # float32, through every layer of the model.
    torch.testing.assert_close(
        reading.loss.double(), stock_losses(model, ids), rtol=1e-5, atol=1e-5
    )
    for layer, parts in whole(model, ids).components.items():
        h = parts.hidden_states[:, -1]
        assert relative_error(reading.memories[layer].state, h) <= 1e-5


def test_a_reading_in_float64_is_the_whole_text_to_its_precision():
    model: Any = make_tiny_model()
    model.double()
    ids = make_ids(61)
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits
    memories: dict = {}
    with torch.no_grad(), long.fast_scan(model, memories=memories):
        parts = [model(x[None], use_cache=False).logits for x in ids.split(7)]
    assert relative_error(torch.cat(parts, 1), logits) <= 1e-10


def test_statistics_along_a_reading_are_those_of_the_whole_text():
    model, ids = make_tiny_model(), make_ids(96)
    reading = read_through(model, ids, chunk_size=32, layers=[0, 2])
    for layer, parts in whole(model, ids).components.items():
        found, memory = reading.layers[layer], delta_memory([parts], layer)
        norms = recursive_dynamics(parts).state_norm[0]
        # Sums of float32 numbers in another order.
        assert relative_error(found.state_norm, norms.view(3, 32).mean(1)) <= 1e-5
        assert relative_error(found.mean_delta, parts.delta[0].mean(0)) <= 1e-5
        assert relative_error(found.half_life, memory.half_life) <= 1e-5
        assert found.selectivity == pytest.approx(memory.selectivity, rel=1e-5)
        kept = [
            float(torch.exp(x.double().sum(0)[:, None] * parts.A.double()).mean())
            for x in parts.delta[0].split(32)
        ]
        assert found.survival.tolist() == pytest.approx(kept, rel=1e-5)


def test_the_kernel_of_a_reading_is_the_mean_over_pairs_of_the_same_chunk():
    model, ids = make_tiny_model(), make_ids(72)
    found = read_through(model, ids, chunk_size=32, layers=[2], kernel_every=1).layers[2].kernel
    absolute = mean_map(whole(model, ids).components[2], absolute=True)[0].double()
    means = []
    for lag in range(32):
        pairs = [(t, t - lag) for t in range(72) if t - lag >= 0 and t // 32 == (t - lag) // 32]
        means.append(sum(float(absolute[t, s]) for t, s in pairs) / len(pairs))
    kernel = torch.tensor(means) / sum(means)
    assert relative_error(found.kernel[0], kernel) <= 1e-5  # float32
    assert found.mean_lag[0] == pytest.approx(float(kernel @ torch.arange(32.0)), rel=1e-4)


def test_a_kernel_of_one_chunk_is_that_of_the_text():
    model, ids = make_tiny_model(), make_ids(40)
    found = read_through(model, ids, chunk_size=64, layers=[0]).layers[0].kernel
    parts = whole(model, ids).components[0]
    expected = memory_kernel(mean_map(parts, absolute=True), parts.attention_mask)
    assert relative_error(found.kernel, expected.kernel) <= 1e-6  # float32
    assert found.median_lag == expected.median_lag


def test_a_planted_half_life_survives_the_chunks():
    # delta is 0.1 everywhere and a state halves in 300 tokens: 2^(-64 / 300) is left after 64.
    found = read_through(constant_half_life(300.0), [1, 2] * 128, chunk_size=64, layers=[0])
    assert found.layers[0].half_life[0, 0] == pytest.approx(300, rel=1e-3)
    assert found.layers[0].survival.tolist() == pytest.approx([2 ** (-64 / 300)] * 4, rel=1e-3)


def test_memory_is_worth_what_was_planted():
    # An induction head: what followed a token last follows it again, 8 tokens on. Windows of 6
    # never hold the earlier occurrence.
    ids = [1, 2, 3, 4, 5, 0, 2, 5] * 24
    model = induction(rate=0.01)
    reading = read_through(model, ids, chunk_size=10)
    windows = window_losses(model, ids, 4)
    rows = compare_readings(reading.loss, {4: windows}, block=16)
    assert rows[1]["difference"] == pytest.approx(float((windows - reading.loss).mean()), rel=1e-6)
    assert rows[1]["low"] > 0
    assert rows[1]["num_blocks"] == 11


@pytest.mark.parametrize("width", [1, 7, 16, 64])
def test_windows_predict_every_token_but_the_first_once(width):
    model, ids = make_tiny_model(), make_ids(50)
    found = window_losses(model, ids, width)
    assert found.shape == (49,)
    for t in range(1, 50):
        start = (t - 1) // width * width
        expected = stock_losses(model, ids[start : t + 1])[-1]
        assert float(found[t - 1]) == pytest.approx(float(expected), abs=1e-4)  # float32
    by_context = loss_by_context(found, width)
    assert sum(row["num_tokens"] for row in by_context) == 49
    assert by_context[-1]["last"] == min(width, 49)


def test_loss_by_context_and_along_are_means_of_the_tokens_meant():
    losses = torch.arange(1.0, 11.0)
    # Windows of 4: contexts 1 2 3 4 1 2 3 4 1 2.
    assert loss_by_context(losses, 4) == [
        {"first": 1, "last": 1, "loss": (1 + 5 + 9) / 3, "num_tokens": 3},
        {"first": 2, "last": 2, "loss": (2 + 6 + 10) / 3, "num_tokens": 3},
        {"first": 3, "last": 4, "loss": (3 + 4 + 7 + 8) / 4, "num_tokens": 4},
    ]
    assert [row["last"] for row in loss_by_context(losses)] == [1, 2, 4, 8, 10]
    assert loss_along(losses, 4) == [2.5, 6.5, 9.5]


def test_too_short_a_text_has_a_difference_and_no_interval():
    whole, other = torch.zeros(30), torch.ones(30)
    row = compare_readings(whole, {8: other}, block=20)[1]
    assert (row["difference"], row["low"]) == (1.0, None)
    assert row["reason"] == "blocks of 20 tokens: n = 1; an interval needs 5"
    with pytest.raises(ValueError, match=r"windows\[8\] has 29 losses, whole 30"):
        compare_readings(whole, {8: other[1:]})
    assert "an interval needs 5" in readings_table([row])[-1]


def live_tensor_bytes() -> int:
    gc.collect()
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if issubclass(type(x), torch.Tensor)  # isinstance wakes deprecated objects
    }
    return sum(storages.values())


def test_nothing_but_losses_grows_with_the_text(monkeypatch):
    held: list[int] = []

    def watched(starts: range, **options):
        for number, start in enumerate(starts):
            if number % 32 == 31:
                held.append(live_tensor_bytes())
            yield start

    monkeypatch.setattr(long, "progress", watched)
    length, chunk = 16384, 128
    model: Any = make_tiny_model()
    model.backbone.layers = model.backbone.layers[:1]
    read_through(model, make_ids(length), chunk_size=chunk, layers=[0], kernel_every=64)
    grown = [later - held[0] for later in held[1:]]
    assert len(grown) == 3
    for quarter, growth in enumerate(grown, 1):
        # Losses were made at once; keeping delta alone would be 256 bytes a token.
        assert growth <= 1 * quarter * 32 * chunk


def test_bad_input_is_refused():
    model = make_tiny_model()
    with pytest.raises(ValueError, match=r"input_ids has shape \(1, 1\).*at least 2"):
        read_through(model, [3])
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 4\)"):
        read_through(model, torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=f"the model knows 0 to {VOCAB_SIZE - 1}"):
        read_through(model, [1, VOCAB_SIZE])
    with pytest.raises(ValueError, match="chunk_size"):
        read_through(model, [1, 2], chunk_size=1)
    with pytest.raises(ValueError, match="width"):
        window_losses(model, [1, 2], 0)


def test_the_command_reads_a_book(tmp_path: Path, tiny_model_dir: Path, capsys):
    book = tmp_path / "book.txt"
    book.write_text(" ".join(EXAMPLE_TEXTS) * 2)
    folder = tmp_path / "out"
    options = ["--model", str(tiny_model_dir), "--layers", "0,2", "--windows", "16,64,100000"]
    status = main([str(book), *options, "--output-dir", str(folder), "--max-tokens", "300",
                   "--chunk-size", "50", "--quiet"])  # fmt: skip
    assert status == 0
    results = read_json(folder / "long_memory.json")
    assert results["num_tokens"] == 300
    # A window longer than the text is the whole text.
    assert [row["width"] for row in results["readings"]] == [None, 16, 64]
    for row in results["readings"]:
        assert row["num_tokens"] == 299
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert len(results["layers"]["layer_2"]["state_norm"]) == 6
    json.dumps(results, allow_nan=False)
    assert (folder / "readings.csv").read_text().startswith("reading,")
    assert (folder / "long_memory.png").exists()
    printed = capsys.readouterr().out
    assert f"whole text       {results['readings'][0]['loss']:.4f}" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert main([str(tmp_path / "none.txt"), "--output-dir", str(folder)]) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("The storm passed.", ["--max-tokens", "-3"], "max-tokens is -3 .*at least 2"),
        ("The storm passed.", ["--max-tokens", "0"], "max-tokens is 0 .*at least 2"),
        ("e", [], r"book '.*book\.txt' has 1 token\(s\); losses need at least 2"),
    ],
)
def test_the_command_refuses_a_book_of_no_length(
    text: str, options: list[str], message: str, tmp_path: Path, tiny_model_dir: Path, capsys
):
    book = tmp_path / "book.txt"
    book.write_text(text)
    common = ["--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "out")]
    assert main([str(book), *common, *options]) == 2
    assert re.search(message, capsys.readouterr().err)
