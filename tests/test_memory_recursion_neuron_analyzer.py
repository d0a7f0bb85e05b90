"""The memory analysis as a user runs it: contract, determinism, failures, report, command."""

import csv
import json
import math
import re
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, make_tiny_model, make_tiny_tokenizer
from transformers import MambaConfig, MambaForCausalLM

import memory_recursion_neuron_analyzer as module
from analysis_pipelines.memory_steps import MEMORY_STEPS
from analysis_pipelines.step_runner import Step
from memory_recursion_neuron_analyzer import MemoryRecursionNeuronAnalyzer, main
from result_views.figures.memory_figures import MEMORY_FIGURES
from suite_plumbing.errors import AnalysisError
from suite_plumbing.result_files import read_json
from token_statistics.findings import VERDICTS

TEXTS = [
    "the cat sat on the mat and the dog sat on the log, while the cat saw the dog",
    "rain in the morning, sun at noon, and rain again in the evening; so it goes, rain and sun",
]
STEPS = [step.name for step in MEMORY_STEPS]


def make_analyzer(**options):
    given = {"num_positions": 4, "num_ablations": 8, "num_random": 1, "num_twins": 0, **options}
    return MemoryRecursionNeuronAnalyzer(
        make_tiny_model(), tokenizer=make_tiny_tokenizer(), **given
    )


@pytest.fixture(scope="module")
def analyzer():
    """One analysis that the tests below only read."""
    done = make_analyzer()
    done.analyze_memory_recursion_effects(TEXTS, [0, 3])
    return done


@pytest.fixture
def results(analyzer):
    return analyzer.analysis_.results


def numbers(value, path=""):
    """Every number of a nested result with its key path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from numbers(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from numbers(entry, f"{path}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def strings(value):
    """Every string of a nested result."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)
    elif isinstance(value, str):
        yield value


def test_result_has_every_step_and_is_strict_json(results):
    assert list(results["memory"]) == STEPS
    assert results["self_check"]["without_result"] == {}
    assert results["self_check"]["replay_agrees"] is True
    assert results["analysis_metadata"]["layer_indices"] == [0, 3]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert {row["verdict"] for row in results["findings"]} <= set(VERDICTS)
    for row in results["findings"]:
        assert (row["value"] is None) == (row["verdict"] == "too little data")
        # A claim that has a value has a reason where it is refused alone.
        refused = row["verdict"] == "not supported" and row["reason"] is not None
        assert refused or (row["reason"] is None) == (row["value"] is not None)


def test_two_runs_give_the_same_and_batches_do_not_matter(results):
    again = make_analyzer(batch_size=1)
    again.analyze_memory_recursion_effects(TEXTS, [0, 3])
    other = again.analysis_.results
    mine, theirs = (dict(numbers(r["memory"]["delta"])) for r in (results, other))
    assert mine.keys() == theirs.keys()
    for path, value in mine.items():
        # Padding changes a float32 scan by rounding alone.
        assert theirs[path] == pytest.approx(value, rel=1e-4, abs=1e-6), path
    one = [row["knockout_kl"] for row in results["memory_by_layer"]]
    two = [row["knockout_kl"] for row in other["memory_by_layer"]]
    # KL of nearly equal distributions keeps fewer digits than its inputs.
    assert one == pytest.approx(two, rel=1e-2)
    same = make_analyzer(batch_size=1)
    same.analyze_memory_recursion_effects(TEXTS, [0, 3])
    for part in ("memory", "findings", "memory_by_layer"):
        assert same.analysis_.results[part] == other[part]


def with_failing(name, error):
    def fail(*_):
        raise error

    return tuple(
        Step(step.name, fail, step.needs) if step.name == name else step for step in MEMORY_STEPS
    )


def test_a_failed_step_leaves_the_rest_whole(monkeypatch, tmp_path):
    error = AnalysisError("no attention today")
    monkeypatch.setattr(module, "MEMORY_STEPS", with_failing("memory_kernel", error))
    analyzer = make_analyzer(num_positions=2)
    results = analyzer.analyze_memory_recursion_effects(TEXTS[:1], [1])
    memory = results["memory"]
    assert memory["memory_kernel"]["error"]["message"] == "no attention today"
    for name in ("neurons", "neuron_ablation", "neuron_memory", "ablation_memory"):
        assert "skipped" in memory[name]
    assert memory["delta"]["layer_1"]["memory"]["num_tokens"] > 40
    assert results["memory_by_layer"][0]["kernel_mean_lag"] is None
    assert results["memory_by_layer"][0]["reset_kl"] > 0
    assert "no attention today" in analyzer.generate_comprehensive_report()
    analyzer.save_analysis_results(tmp_path)
    figures = analyzer.visualize_memory_recursion_effects(tmp_path)
    assert [path.stem for path in figures] == [*MEMORY_FIGURES, "findings"]


def test_programming_errors_go_through(monkeypatch):
    monkeypatch.setattr(module, "MEMORY_STEPS", with_failing("delta", TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        make_analyzer().analyze_memory_recursion_effects(TEXTS[0], [0])


def test_two_tokens_give_reasons_and_open_claims():
    analyzer = make_analyzer()
    results = analyzer.analyze_memory_recursion_effects("ab", [0, 1])
    assert results["self_check"]["without_result"] == {}
    assert set(results["memory"]["causal_memory"]) == {"reason"}
    assert {row["verdict"] for row in results["findings"]} == {"too little data"}
    assert "### Too little data (" in analyzer.generate_comprehensive_report()


def test_every_number_of_the_report_stands_in_the_results(analyzer, results, tmp_path):
    path = tmp_path / "reports" / "memory.md"
    report = analyzer.generate_comprehensive_report(path)
    assert path.read_text(encoding="utf-8") == report
    known = {f"{value:.3g}" for _, value in numbers(results)}
    known |= {str(value) for _, value in numbers(results) if isinstance(value, int)}
    pattern = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
    known |= {found for text in strings(results) for found in re.findall(pattern, text)}
    found = re.findall(pattern, report)
    assert len(found) > 100
    # "lag 1" is the first lag, which stands in the results as the first of the lags.
    assert not set(found) - known


def test_the_report_says_what_each_claim_came_to(analyzer, results):
    report = analyzer.generate_comprehensive_report()
    lines = report.splitlines()
    for row in results["findings"]:
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"- {row['claim']}: "))
        heading = next(line for line in reversed(lines[:at]) if line.startswith("### "))
        assert heading.lower().startswith(f"### {row['verdict']} (")


def test_files_hold_the_results(analyzer, results, tmp_path):
    path = analyzer.save_analysis_results(tmp_path)
    assert read_json(path) == results
    with open(tmp_path / "memory_by_layer.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["layer"]) for row in rows] == [0, 3]
    assert float(rows[1]["mean_delta"]) == results["memory_by_layer"][1]["mean_delta"]
    with open(tmp_path / "findings.csv", newline="") as handle:
        verdicts = [row["verdict"] for row in csv.DictReader(handle)]
    assert verdicts == [row["verdict"] for row in results["findings"]]
    delta = analyzer.analysis_.tensors["layer_3.mean_delta"]
    # Summed in another order and precision than the summary in the results.
    assert float(delta.mean()) == pytest.approx(rows[1] and float(rows[1]["mean_delta"]), rel=1e-5)


def test_results_are_asked_for_after_the_analysis_only(tmp_path):
    analyzer = make_analyzer()
    for call in (
        analyzer.visualize_memory_recursion_effects,
        analyzer.generate_comprehensive_report,
        analyzer.save_analysis_results,
    ):
        with pytest.raises(RuntimeError, match=r"analyze_memory_recursion_effects\(\.\.\.\) first"):
            call(tmp_path / "x")


@pytest.mark.parametrize(
    ("texts", "layers", "message"),
    [([], None, "at least one text"), ("a", None, "has 1 token"), ("fine text", [7], "7")],
)
def test_bad_input_is_refused(texts, layers, message):
    with pytest.raises(ValueError, match=message):
        make_analyzer().analyze_memory_recursion_effects(texts, layers)


@pytest.mark.parametrize("option", ["num_positions", "num_ablations", "num_random", "batch_size"])
def test_options_are_checked_when_the_analyzer_is_made(option):
    with pytest.raises(ValueError, match=option):
        make_analyzer(**{option: 0})
    with pytest.raises(ValueError, match="seed is -1"):
        make_analyzer(seed=-1)


def test_a_text_given_again_is_left_out(caplog):
    with caplog.at_level("WARNING"):
        results = make_analyzer().analyze_memory_recursion_effects([TEXTS[0], TEXTS[0]], [0])
    assert results["analysis_metadata"]["num_texts"] == 1
    assert "text 1 is text 0 again" in caplog.text


def test_a_layer_of_few_neurons_and_a_silent_one(tmp_path):
    config = MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=5, expand=1, num_hidden_layers=2, state_size=2,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = MambaForCausalLM(config)
    with torch.no_grad():
        model.backbone.layers[1].mixer.out_proj.weight.zero_()
    few = MemoryRecursionNeuronAnalyzer(
        model, tokenizer=make_tiny_tokenizer(), num_positions=2, num_twins=0, num_random=2
    )
    results = few.analyze_memory_recursion_effects(TEXTS, "all")
    assert results["self_check"]["without_result"] == {}
    # Of 5 neurons 3 are tried, each beside 2 of the others.
    assert len(results["memory"]["neuron_causes"]["layer_0"]["neurons"]) == 3
    assert few.visualize_memory_recursion_effects(save_dir=tmp_path)
    few.num_random = 5
    found = few.analyze_memory_recursion_effects(TEXTS, [0])["memory"]["neuron_causes"]["layer_0"]
    assert found == {"reason": "5 neuron(s), too few to draw 5 others"}


def test_command_writes_everything(tiny_model_dir, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--model", str(tiny_model_dir), "--text", TEXTS[0], "--output-dir", str(output)]
    options = ["--layers", "0,2", "--num-positions", "2", "--ablate", "8", "--twins", "1"]
    assert main([*arguments, *options]) == 0
    names = {path.name for path in output.iterdir()}
    tables = {"memory_recursion_results.json", "memory_recursion_results.safetensors",
              "memory_by_layer.csv", "findings.csv", "memory_recursion_report.md"}  # fmt: skip
    assert names == tables | {f"{name}.png" for name in (*MEMORY_FIGURES, "findings")}
    printed = capsys.readouterr().out
    error = float(printed.split("Largest replay error: ")[1].split(",")[0])
    assert math.isfinite(error)
    assert error < 1e-5


def test_command_ends_with_1_when_a_step_failed(tiny_model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "MEMORY_STEPS", with_failing("neurons", AnalysisError("none")))
    arguments = ["--model", str(tiny_model_dir), "--text", TEXTS[0], "--layers", "0"]
    few = ["--num-positions", "2", "--ablate", "3", "--twins", "0"]
    more = [*few, "--output-dir", str(tmp_path), "--quiet"]
    assert main([*arguments, *more]) == 1
    assert "Without result: neurons" in capsys.readouterr().out
    assert (tmp_path / "memory_recursion_results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--layers", "99"], "99"),
        (["--ablate", "2"], "ablate"),
        (["--num-positions", "0"], "num-positions"),
        (["--num-random", "0"], "num-random"),
        (["--twins", "-1"], "twins"),
    ],
)
def test_bad_arguments_end_with_2(tiny_model_dir, tmp_path, arguments, message, capsys):
    given = ["--output-dir", str(tmp_path), "--model", str(tiny_model_dir), *arguments]
    assert main([*given, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_the_model_is_as_it_was():
    analyzer = make_analyzer(num_positions=2)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = analyzer.model(ids).logits
    analyzer.analyze_memory_recursion_effects(TEXTS[0], [1])
    assert torch.equal(analyzer.model(ids).logits, before)
