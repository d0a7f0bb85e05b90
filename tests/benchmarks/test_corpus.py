"""The benchmark of corpora: its table holds what was measured, and growth is one task's."""

import json

import pytest
from corpus_cases import STORY

from benchmarks import corpus as benchmark
from suite_plumbing.corpus_texts import Source


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(" ".join([STORY] * 200))
    return path


def test_the_factor_and_the_growth_are_measured(tiny_model_dir, book, monkeypatch):
    monkeypatch.setattr(benchmark, "WIDTH", 32)
    source = Source(files=(str(book),), one_text=True)
    settings = benchmark.settings_of(
        str(tiny_model_dir), source, [0, 2], max_sequence_length=32, batch_tokens=64
    )
    factor = benchmark.factor_to_stock(settings, 4)
    assert factor["factor"] == pytest.approx(factor["step"] / factor["stock"])
    with pytest.raises(ValueError, match="windows of 32 tokens; 100000 are asked"):
        benchmark.windows_of_book(settings, 100_000)
    grown = benchmark.growth(str(tiny_model_dir), str(book), 6)
    assert grown["texts"] == 6
    text = benchmark.report(factor, [grown], [{"workers": 2, "what": "whole", "digest": "ab" * 32}])
    assert f"{factor['factor']:.2f} stock forwards." in text
    assert f"| 6 | {grown['seconds']:.1f} |" in text
    assert "| 2 | whole | abababababababab |" in text


def test_digests_leave_the_provenance_out(tmp_path):
    digests = set()
    for number in (1, 2):
        results = {"provenance": {"run": number}, "corpus": {"loss": 2.0}}
        (tmp_path / "corpus_results.json").write_text(json.dumps(results))
        digests.add(benchmark.digest_of_results(tmp_path))
    assert len(digests) == 1


def test_it_prints_its_table(tiny_model_dir, book, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "WIDTH", 32)
    assert benchmark.main([str(book), "--model", str(tiny_model_dir), "--windows", "2"]) == 0
    assert capsys.readouterr().out.startswith("A window of 32 tokens, one thread: ")
