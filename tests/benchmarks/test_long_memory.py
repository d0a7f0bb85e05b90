"""The benchmark of long memory: its tables hold the results, and peak memory is measured apart."""

from pathlib import Path

import pytest
from conftest import make_tiny_model

from benchmarks import long_memory as benchmark
from long_memory import long_memory
from suite_plumbing.texts import EXAMPLE_TEXTS


def test_the_report_holds_every_reading_context_and_layer():
    ids = [1 + (7 * i) % 60 for i in range(300)]
    results = long_memory(make_tiny_model(), ids, layers=[0, 3], windows=[16, 64], chunk_size=50)
    text = benchmark.report(results, {100: 150.4}, "tiny")
    assert f"| whole text | {results['readings'][0]['loss']:.4f} |" in text
    row = next(line for line in text.splitlines() if line.startswith("| 9 to 16 |"))
    losses = [results["by_context"][name][4]["loss"] for name in results["by_context"]]
    assert row == "| 9 to 16 | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |"
    assert "| from 0 |" in text
    assert "\n| 3 | " in text
    assert "150 MB at 100 tokens" in text


def test_the_benchmark_runs_on_a_book(tmp_path: Path, tiny_model_dir: Path, capsys, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text(" ".join(EXAMPLE_TEXTS))
    saved = tmp_path / "results" / "long_memory.md"
    monkeypatch.setattr(benchmark, "RESULTS", saved)
    options = ["--model", str(tiny_model_dir), "--windows", "16", "--lengths", "", "--save"]
    assert benchmark.main([str(book), *options]) == 0
    assert saved.read_text().endswith(capsys.readouterr().out[:-1])
    assert saved.with_suffix(".png").exists()


def test_peak_memory_is_measured_in_a_process_of_its_own(tiny_model_dir: Path, monkeypatch):
    # torch and the model are there already: tens of megabytes at the least.
    assert benchmark.measured_peak(str(tiny_model_dir), 2048) > 20
    monkeypatch.setattr(benchmark.sys, "executable", "false")
    with pytest.raises(OSError, match="measuring the peak memory failed"):
        benchmark.peak_megabytes(str(tiny_model_dir), 2048)
