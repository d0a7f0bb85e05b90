"""The benchmarks compare ways that give the same numbers, and tell whether a goal is met."""

import re
import time
from functools import partial

import pytest
import torch

from attribution_faithfulness import faithfulness_table
from benchmarks import faithfulness, other_ways, speed, whole_run
from benchmarks.speed import MEASURED, ROWS, SMOKE, Bench, Row, Sizes, main, table
from suite_plumbing.texts import EXAMPLE_TEXTS
from token_statistics.description import relative_error

OPERANDS = other_ways.random_operands(12, 6, 4)


@pytest.mark.parametrize("way", [other_ways.token_loop_states, other_ways.dense_states])
def test_other_ways_give_our_states(way):
    # float32 rounding of sums over 12 tokens.
    assert relative_error(way(OPERANDS), speed.our_states(OPERANDS)) <= 1e-5


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("way", [other_ways.row_by_row_map, other_ways.dense_map])
def test_other_ways_give_our_maps(way, absolute):
    assert relative_error(way(OPERANDS, absolute), speed.our_map(OPERANDS, absolute)) <= 1e-5


def test_both_passes_are_of_one_model():
    bench = Bench(SMOKE, runs=1)
    assert relative_error(bench.fast_forward(8), bench.stock_forward(8)) <= 1e-5
    # The suite's bound on gradients in float32.
    assert relative_error(bench.fast_backward(8), bench.stock_backward(8)) <= 1e-4
    assert bench.captured(8).layers == [0, 3]
    assert torch.equal(bench.ids(8), bench.ids(8))


def test_every_row_runs_and_stands_in_the_table(monkeypatch, capsys):
    asked: list[str] = []

    def peak(way: str, sizes: object) -> float:
        asked.append(way)
        return 0.5

    monkeypatch.setattr(speed, "peak_memory_gb", peak)  # one process each; see below
    assert main(["--smoke", "--runs", "1", "--include-hopeless"]) == 0
    assert sorted(asked) == sorted(MEASURED)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + 1 + 1 + 1 + 1 + 4 + 1 + 1 + 4 + 3 + 6
    widths = {line.count("|") for line in lines}
    assert widths == {8}


def test_small_and_large_figures_are_legible():
    rows = [Row("w", figure, None, "", "GB", 1.0, "", None) for figure in (5.9e-7, 0.1234, 12345.6)]
    shown = [line.split("|")[2].strip() for line in table(rows).splitlines()[2:]]
    assert shown == ["5.9e-07 GB", "0.123 GB", "12,346 GB"]


def test_rows_can_be_chosen(capsys):
    assert main(["--smoke", "--runs", "1", "--rows", "mean_map,absolute_map"]) == 0
    out = capsys.readouterr().out
    assert "mean map of magnitudes" in out
    assert "forward" not in out.split("| work")[1]


def test_times_are_medians_of_turns(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 22, 30, 37, 40, 43, 50, 59])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(clock)))
    calls: list[str] = []
    times = Bench(SMOKE, runs=3).times(lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3
    assert times == [3.0, 7.0]  # of 5, 2, 3 and of 1, 7, 9


def test_a_goal_is_an_upper_bound():
    row = Row("work", 2.0, 8.0, "stock", "s", 0.25, "F", 0.25)
    assert row.is_met is True
    assert row._replace(measured=0.26).is_met is False
    assert row._replace(goal=None).is_met is None
    assert "| work | 2 s | stock: 8 s | 4 x | 0.25 F | ≤ 0.25 F | yes |" in table([row])
    assert "| 0.26 F | ≤ 0.25 F | no |" in table([row._replace(measured=0.26)])
    assert "| work | 2 s |  |  | 0.25 F |  |  |" in table([row._replace(other=None, goal=None)])
    grown = row._replace(other_way="ours, shorter", unit_of_goal="linear")
    assert "| work | 2 s | ours, shorter: 8 s |  | 0.25 linear |" in table([grown])


def test_memory_is_measured_in_a_process_of_its_own():
    gigabytes = speed.peak_memory_gb("our_states", Sizes())
    states = 512 * 1536 * 16 * 4 / 1e9
    # Below: the kernel counts pages late. Above: the decays of a block of 16 tokens, some slack.
    # The operands, a tenth of the states each, and the process itself are not in it.
    assert 0.95 * states <= gigabytes <= 1.15 * states


def test_a_way_that_cannot_be_measured_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="measure is 'no_such_way'; it must be one of our_states"):
        speed.peak_memory_gb("no_such_way", SMOKE)
    monkeypatch.setattr(speed.sys, "executable", "false")  # a command that fails
    with pytest.raises(OSError, match="measuring the memory of our_states failed"):
        speed.peak_memory_gb("our_states", SMOKE)


def test_smoke_runs_leave_no_results(capsys):
    assert main(["--smoke", "--save"]) == 2
    assert "--smoke and --save" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [True, False])
def test_results_are_written_only_when_asked(monkeypatch, tmp_path, saved):
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "results" / "speed.md")
    monkeypatch.setattr(speed, "Sizes", lambda **options: SMOKE)
    assert main(["--rows", "forward", "--runs", "1", *(["--save"] if saved else [])]) == 0
    assert speed.RESULTS.exists() is saved
    if saved:
        text = speed.RESULTS.read_text()
        assert re.search(r"- processor: \S", text)
        assert f"torch {torch.__version__}" in text
        assert "| forward with our scan |" in text


@pytest.mark.parametrize("options", [["--rows", "forwards"], ["--runs", "0"], ["--length", "one"]])
def test_bad_arguments_exit_with_2(options, capsys):
    try:
        status = main(["--smoke", *options])
    except SystemExit as exit_:  # argparse leaves by itself
        status = exit_.code
    assert status == 2
    assert "error" in capsys.readouterr().err


def test_an_unknown_row_is_answered_with_the_known_ones(capsys):
    assert main(["--smoke", "--rows", "everything"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ROWS)


def test_every_figure_of_a_whole_run_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(whole_run, "SMOKE", SMOKE._replace(length=16, vocabulary=2048))
    written = []

    def takes_its_time(ours, count):
        written.append(count)
        time.sleep(0.001 * count)

    monkeypatch.setattr(whole_run, "analyse_and_write", takes_its_time)
    for name in whole_run.FIGURES:
        assert whole_run.main(["--smoke", "--measure", name]) == 0
        figures = [float(figure) for figure in capsys.readouterr().out.split()[-2:]]
        assert all(figure >= 0 for figure in figures)
    assert written == [1, 1, whole_run.FEW, 2]
    assert whole_run.main(["--smoke", "--save"]) == 2
    assert "tiny sizes are no result" in capsys.readouterr().err


def test_faithfulness_tables(tiny_model_dir, tmp_path, capsys, monkeypatch):
    few = partial(faithfulness_table, methods=["mamba_lrp", "occlusion", "rollout"])
    monkeypatch.setattr(faithfulness, "faithfulness_table", few)
    path = tmp_path / "text.txt"
    # Passages of one sentence that repeats are one text, of which there is no interval.
    path.write_text(" ".join(EXAMPLE_TEXTS), encoding="utf-8")
    options = ["--model", str(tiny_model_dir), "--texts", "5", "--tokens", "8"]
    assert faithfulness.main([str(path), *options, "--neuron-texts", "2", "--neurons", "4"]) == 0
    out = capsys.readouterr().out.replace("\\", "")  # what Markdown escapes, as it is read
    for method in ("mamba_lrp", "occlusion", "random"):
        assert re.search(rf"^\| {method} \| -?\d+\.\d\d \[", out, re.MULTILINE)
    assert "| layer | attention_weighted, mean | gradient_guided, mean | rollout, mean |" in out
    assert faithfulness.main([str(path), *options, "--neuron-texts", "9"]) == 2
    assert "neuron-texts" in capsys.readouterr().err
