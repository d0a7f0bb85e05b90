"""The benchmark beside a GPT-NeoX: it learns, reads held-out passages, and keeps its report."""

import numpy as np
import pytest
import torch

from benchmarks import beside_attention as benchmark
from suite_plumbing.texts import EXAMPLE_TEXTS

TEXT = " ".join(EXAMPLE_TEXTS)


def test_training_lowers_the_loss_and_is_seeded():
    ids = np.tile(np.arange(1, 9), 40)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(benchmark.train(benchmark.small_neox(16), ids, 6, seed=0))
    assert losses[0] == losses[1]
    # A cycle of eight tokens: from about ln 16 towards 0.
    assert losses[0][-1] < 0.7 * losses[0][0]
    with pytest.raises(ValueError, match="have 5 tokens; a row has 256"):
        benchmark.train(benchmark.small_neox(16), ids[:5], 1, 0)


def test_passages_are_spread_and_begin_with_a_word(monkeypatch):
    monkeypatch.setattr(benchmark, "PASSAGE", 60)
    found = benchmark.passages(TEXT, 3)
    assert [len(one) for one in found] == [60] * 3
    assert all(TEXT[TEXT.index(one) - 1] == " " for one in found)
    with pytest.raises(ValueError, match="characters; 100 passages spread over it need 12000"):
        benchmark.passages(TEXT, 100)


def test_the_benchmark_runs_and_keeps_its_report(tmp_path, tiny_model_dir, capsys, monkeypatch):
    own, held_out = tmp_path / "own.txt", tmp_path / "held_out.txt"
    own.write_text(EXAMPLE_TEXTS[0] * 2)
    held_out.write_text(EXAMPLE_TEXTS[1])
    monkeypatch.setattr(benchmark, "PASSAGE", 100)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results" / "beside_attention.md")
    options = ["--steps", "1", "--passages", "1", "--twins", "0", "--save"]
    arguments = [str(own), "--held-out", str(held_out), "--model", str(tiny_model_dir), *options]
    assert benchmark.main(arguments) == 0
    said = capsys.readouterr().out
    assert benchmark.RESULTS.read_text().endswith(said[:-1])
    assert "trained for 1 steps" in said
    assert "`small GPT-NeoX` (GPTNeoXForCausalLM, 4 layers)" in said


def test_a_held_out_text_that_was_trained_on_is_refused(tmp_path, tiny_model_dir, capsys):
    own = tmp_path / "own.txt"
    own.write_text(EXAMPLE_TEXTS[0])
    arguments = [str(own), "--held-out", str(own), "--model", str(tiny_model_dir)]
    assert benchmark.main(arguments) == 2
    assert "--held-out shares 1 paragraphs" in capsys.readouterr().err
