"""Generation is timed by turns, every way to the same tokens."""

import torch

from benchmarks import generation
from benchmarks.generation import Times, main, table, ways_of


def test_every_way_generates_the_same_tokens():
    torch.manual_seed(0)
    for make in generation.MODELS.values():
        model = make(64, 2, 100).eval()
        ids, found = torch.tensor([[3, 7, 5, 2]]), []
        for context in ways_of(model).values():
            with context():
                found.append(model.generate(ids, max_new_tokens=5, do_sample=False))
        assert all(torch.equal(tokens, found[0]) for tokens in found)


def test_a_step_is_what_is_left_of_the_whole_after_the_prompt(monkeypatch):
    seconds = {1: 0.5, 5: 2.5}
    monkeypatch.setattr(generation, "_seconds", lambda model, ids, new: seconds[new])
    rows = generation.measured(generation.mamba(64, 2, 100), 4, 5, 1, 2)
    assert rows == [Times(way, 0.5, 0.5) for way in ("stock", "fast_scan", "fast_scan with edits")]


def test_ratios_are_to_stock():
    lines = table({"Mamba": [Times("stock", 2.0, 0.02), Times("fast_scan", 0.5, 0.03)]})
    assert lines.splitlines()[-1] == "| Mamba | fast_scan | 0.500 | 0.25 | 30.0 | 1.50 |"


def test_the_command_prints_a_row_a_model_and_way(capsys):
    assert main(["--smoke", "--runs", "1", "--new", "2", "--prompt", "3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| Mamba")]
    assert len(lines) == 6
