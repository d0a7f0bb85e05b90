"""The main analysis as a user runs it: contract, independence of texts, failures, bad input."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from safetensors.torch import load_file

import corrected_recursive_ssm_attention_analyzer as module
import ssm_component_extractor
from analysis_pipelines.step_runner import Step
from corrected_recursive_ssm_attention_analyzer import (
    TEXT_STEPS,
    CorrectedRecursiveSSMAttentionNeuronAnalyzer,
    main,
)
from recursive_visualizer import figures_of
from suite_plumbing.errors import AnalysisError
from suite_plumbing.result_reading import read
from token_statistics.findings import Finding
from token_statistics.twin_bounds import TWIN_KINDS

TEXTS = [
    "the cat sat on the mat and the dog sat on the log, while the cat saw the dog",
    "a b c d a b c d a b c d a b c d",
    "rain in the morning, sun at noon, and rain again in the evening; so it goes, rain and sun",
]
STEPS = [
    "ssm_components", "attention_data", "neurons", "layer_activations", "layer_correlations",
    "recursive_patterns", "ssm_attention_correlations", "neuron_evolution",
]  # fmt: skip


@pytest.fixture
def analyzer(tiny_model, tiny_tokenizer):
    return CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model, batch_size=2, tokenizer=tiny_tokenizer
    )


def _numbers(value, path=""):
    """Every number of a nested result with its key path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, f"{path}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _numbers(entry, f"{path}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def test_result_has_the_documented_keys(analyzer):
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 2, 3])
    assert list(results["individual_texts"]) == ["text_0", "text_1", "text_2"]
    for index, text in enumerate(results["individual_texts"].values()):
        assert text["text"] == TEXTS[index]
        assert list(text["analysis"]) == STEPS
    assert list(results["cross_text_analysis"]) == [
        "ssm_consistency", "attention_consistency", "neuron_consistency", "correlation_patterns",
    ]  # fmt: skip
    metadata = results["analysis_metadata"]
    assert metadata["layer_indices"] == [0, 2, 3]
    assert metadata["num_texts"] == 3
    assert "synthetic_attention" in metadata["methods_used"]
    assert results["self_check"]["replay_agrees"] is True
    assert results["self_check"]["without_result"] == {}
    assert results["provenance"]["texts"]["text_1"]["truncated"] is False
    first = results["individual_texts"]["text_0"]
    assert first["offsets"][-1][1] == len(first["text"])
    components = first["analysis"]["ssm_components"]["layer_2"]
    assert [len(row) for row in components["by_token"]["delta"]] == [len(first["tokens"])]


def test_findings_stand_beside_untrained_twins(tiny_model, tiny_tokenizer, caplog):
    caplog.set_level("INFO")
    started = time.perf_counter()
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model, tokenizer=tiny_tokenizer, num_twins=2
    )
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [0, 2])
    # The seconds are those of all of it, the log says which twin is read: a line each.
    seconds = time.perf_counter() - started
    assert 0.5 * seconds < results["provenance"]["run"]["seconds"] <= seconds
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "twin" in line] == [
        f"untrained twin {i + 1} of 4: {kind}, seed {1000 + i % 2}"
        for i, kind in enumerate(kind for kind in TWIN_KINDS for _ in range(2))
    ]
    assert sum(line.startswith("analysing text") for line in lines) == 2
    findings = [Finding.from_dict(row) for row in results["findings"]]
    for finding in findings:
        assert (finding.value is None) == (not read(results, finding.path)) or finding.reason
        assert all(twin.n <= 2 for twin in finding.twins)
    assert {twin.kind for f in findings for twin in f.twins if twin.n == 2} == set(TWIN_KINDS)
    assert results["untrained_twins"].keys() == set(TWIN_KINDS)
    for twins in results["untrained_twins"].values():
        assert len(twins["seeds"]) == 2
        assert set(twins["values"]) == {finding.claim for finding in findings}
        assert twins["cross_text_analysis"].keys() == results["cross_text_analysis"].keys()
    assert json.dumps(results, allow_nan=False)


def test_twins_that_cannot_be_made_are_refused_before_anything_runs(monkeypatch, tiny_tokenizer):
    model: Any = make_tiny_model()
    model.backbone.layers[0].mixer.D = torch.nn.Parameter(torch.ones(3))
    monkeypatch.setattr(module, "_analyze_alone", None)  # which would raise TypeError
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        model, tokenizer=tiny_tokenizer, num_twins=1
    )
    with pytest.raises(ValueError, match="no untrained twin of this MambaForCausalLM"):
        analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0])


def test_what_is_returned_is_what_is_saved(analyzer, tmp_path):
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [0, 2])
    path = analyzer.save_analysis_results(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse) == results
    tensors = load_file(tmp_path / "results.safetensors")
    length = results["provenance"]["texts"]["text_0"]["num_tokens"]
    assert tensors["text_0.layer_2.delta"].shape == (length, 64)
    assert tensors["text_0.layer_2.absolute"].shape == (length, length)
    assert (tmp_path / "results_neurons.csv").read_text().startswith("text,method,layer,neuron")


def test_a_long_text_takes_less_than_two_megabytes_in_a_model_of_24_layers(analyzer, tmp_path):
    # Statistics do not grow with the model's width: layers and tokens make the size.
    text = " ".join(TEXTS * 40)
    sizes = []
    for layers in ([0, 1], [0, 1, 2, 3]):
        results = analyzer.analyze_recursive_ssm_attention_effects(text, layers)
        assert results["provenance"]["texts"]["text_0"]["num_tokens"] == 512
        sizes.append(analyzer.save_analysis_results(tmp_path / "results.json").stat().st_size)
    a_layer = (sizes[1] - sizes[0]) / 2
    assert sizes[1] + 20 * a_layer < 2e6
    numbers = dict(_numbers(results["individual_texts"]["text_0"]["analysis"]))
    assert all(value == float(f"{value:.6g}") for value in numbers.values() if value % 1)


def test_texts_differ_and_each_equals_a_run_of_its_own(analyzer):
    together = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 3])["individual_texts"]
    assert together["text_0"]["analysis"] != together["text_1"]["analysis"]
    for index, text in enumerate(TEXTS):
        alone = analyzer.analyze_recursive_ssm_attention_effects(text, [0, 3])["individual_texts"]
        expected = dict(_numbers(alone["text_0"]["analysis"]["ssm_components"]))
        found = dict(_numbers(together[f"text_{index}"]["analysis"]["ssm_components"]))
        assert expected.keys() == found.keys()
        for path, value in expected.items():
            if "replay_error" not in path:  # itself rounding error
                # Batched matrix products round otherwise than single ones: 1e-5 of float32.
                assert found[path] == pytest.approx(value, rel=1e-4, abs=1e-6), path


def test_two_runs_with_one_seed_agree_but_for_the_time(tiny_model, tiny_tokenizer):
    def run():
        analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
            tiny_model, tokenizer=tiny_tokenizer
        )
        results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [0, 2])
        del results["provenance"]["run"]
        return results

    assert run() == run()


@pytest.mark.parametrize("layers", [[1], "all", None, [-1, 0]])
def test_layers_as_a_user_may_ask_for_them(analyzer, layers):
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], layers)
    expected = {"[1]": [1], "all": [0, 1, 2, 3], "None": [0, 1, 2, 3], "[-1, 0]": [0, 3]}
    assert results["analysis_metadata"]["layer_indices"] == expected[str(layers)]
    assert results["self_check"]["without_result"] == {}


def test_two_tokens_give_reasons_not_failures(analyzer):
    results = analyzer.analyze_recursive_ssm_attention_effects("ab", [0, 1])
    assert results["self_check"]["without_result"] == {}
    pair = results["individual_texts"]["text_0"]["analysis"]["layer_correlations"]["residual"]
    assert pair["layer_0_to_1"]["enough_tokens"] is False
    assert pair["layer_0_to_1"]["mean_abs"]["value"] is None


def _with_failing(step_name, error):
    def fail(*_):
        raise error

    return tuple(
        Step(step.name, fail, step.needs) if step.name == step_name else step for step in TEXT_STEPS
    )


def test_a_failed_step_leaves_the_rest_whole(analyzer, monkeypatch, tmp_path):
    error = AnalysisError("no attention today")
    monkeypatch.setattr(module, "TEXT_STEPS", _with_failing("attention_data", error))
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [0, 2])
    analysis = results["individual_texts"]["text_0"]["analysis"]
    assert list(analysis) == STEPS
    assert analysis["attention_data"]["error"] == {
        "type": "AnalysisError", "message": "no attention today",
    }  # fmt: skip
    for dependent in ("neurons", "neuron_evolution", "ssm_attention_correlations"):
        assert "skipped" in analysis[dependent]
    assert analysis["ssm_components"]["layer_0"]["dynamics"]["is_stable"] is True
    assert "mean_delta" in results["cross_text_analysis"]["ssm_consistency"]["layer_0"]
    assert set(results["self_check"]["without_result"]) == {"text_0", "text_1"}
    analyzer.save_analysis_results(tmp_path / "results.json")
    assert analyzer.visualize_analysis_results(tmp_path)


def test_a_forward_pass_that_fails_loses_its_text_only(analyzer, monkeypatch):
    capture = ssm_component_extractor.capture
    longest = max(len(analyzer.tokenizer(text)["input_ids"]) for text in TEXTS)

    def scarce(model, input_ids, mask, layers):
        if int(mask.sum()) >= longest:  # two texts at once, or the longest alone
            raise torch.OutOfMemoryError("tried to allocate 80 GB")
        return capture(model, input_ids, mask, layers)

    monkeypatch.setattr(ssm_component_extractor, "capture", scarce)
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 2])
    ((failed, steps),) = results["self_check"]["without_result"].items()
    assert steps["ssm_components"]["error"]["message"] == "tried to allocate 80 GB"
    for index, text in enumerate(results["individual_texts"].values()):
        if f"text_{index}" != failed:
            assert all("error" not in text["analysis"][step] for step in STEPS)


def _change_layer(model, layer, change):
    with torch.no_grad():
        change(model.backbone.layers[layer].mixer)


def test_a_text_given_again_is_no_further_evidence(analyzer):
    once = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [0, 2])
    again = analyzer.analyze_recursive_ssm_attention_effects([*TEXTS[:2], TEXTS[0]], [0, 2])
    texts = again["individual_texts"]
    # Rounding in a batch of other texts is not that of the text alone.
    means = [
        texts[name]["analysis"]["ssm_components"]["layer_2"]["delta"]["mean"]
        for name in ("text_0", "text_2")
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    assert again["provenance"]["texts"]["text_2"]["same_as"] == "text_0"
    for results in (once, again):
        patterns = results["cross_text_analysis"]["correlation_patterns"]["mixer"]
        assert patterns["layer_0_to_2"]["num_texts"] == 2
    counted = [[(row["claim"], row["n"], row["verdict"]) for row in r["findings"]]
               for r in (once, again)]  # fmt: skip
    # The first claim is of the replay, which is checked on every text.
    assert counted[0][1:] == counted[1][1:]


SILENT = {
    "writes nothing": lambda mixer: mixer.out_proj.weight.zero_(),
    "all weights zero": lambda mixer: [weight.zero_() for weight in mixer.parameters()],
    "reads nothing": lambda mixer: mixer.x_proj.weight[-4:].zero_(),
}


@pytest.mark.parametrize("how", SILENT)
def test_a_silent_layer_has_reasons_figures_and_no_claims(analyzer, tmp_path, how):
    _change_layer(analyzer.model, 2, SILENT[how])
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 2, 3])
    assert results["self_check"]["without_result"] == {}
    assert analyzer.visualize_analysis_results(tmp_path)
    agreement = results["cross_text_analysis"]["neuron_consistency"]["layer_2"]
    if how == "all weights zero":
        assert agreement["attention_weighted"]["shared_p_value"] is None
        assert agreement["attention_weighted"]["reason"] == "the importance of a text is constant"


def test_numbers_that_overflow_are_an_error_of_their_step(analyzer):
    _change_layer(analyzer.model, 3, lambda mixer: mixer.out_proj.weight.mul_(1e30))
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:1], [0, 3])
    failed = results["self_check"]["without_result"]["text_0"]["ssm_components"]["error"]
    assert failed["type"] == "AnalysisError"
    assert "of layer 3 holds NaN, infinity or numbers near the largest" in failed["message"]


def test_logits_that_overflow_leave_the_steps_that_need_none(analyzer):
    with torch.no_grad():
        analyzer.model.backbone.norm_f.weight.fill_(3e38)
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:1], [0])
    failed = results["self_check"]["without_result"]["text_0"]
    assert failed["neurons"]["error"]["type"] == "AnalysisError"
    assert "ssm_components" not in failed


def test_a_model_without_logits_is_refused_before_it_runs(tiny_model, tiny_tokenizer):
    bare = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model.backbone, tokenizer=tiny_tokenizer
    )
    with pytest.raises(ValueError, match="MambaModel has no logits; load it with AutoModel"):
        bare.analyze_recursive_ssm_attention_effects(TEXTS)


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_the_seed_is_checked_when_the_analyzer_is_made(tiny_model, seed):
    with pytest.raises(ValueError, match="seed is"):
        CorrectedRecursiveSSMAttentionNeuronAnalyzer(tiny_model, seed=seed)


def test_programming_errors_go_through(analyzer, monkeypatch):
    steps = _with_failing("neurons", TypeError("a bug"))
    monkeypatch.setattr(module, "TEXT_STEPS", steps)
    with pytest.raises(TypeError, match="a bug"):
        analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0])


def test_long_texts_are_cut_by_tokens_and_it_is_recorded(tiny_model, tiny_tokenizer, caplog):
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model, max_sequence_length=10, tokenizer=tiny_tokenizer
    )
    with caplog.at_level(logging.WARNING):
        results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0])
    origin = results["provenance"]["texts"]["text_0"]
    assert origin["num_tokens"] == 10
    assert origin["num_tokens_before_truncation"] > 10
    assert origin["truncated"] is True
    assert "cut to the first 10" in caplog.text


def test_memory_is_measured_and_clean_up_can_be_switched_off(analyzer):
    analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0])
    stats = analyzer.get_memory_stats()
    # And once after the text, the overview, and the predictions with their parts.
    assert stats["cleanup_count"] == len(TEXT_STEPS) + len(module.CROSS_TEXT_STEPS) + 3
    assert stats["peak_memory_usage"] > 0.05  # torch alone takes more
    analyzer.reset_memory_stats()
    analyzer.memory_cleanup_enabled = False
    analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0])
    assert analyzer.get_memory_stats()["cleanup_count"] == 0


def test_debug_logs_every_step_and_restores_the_level(analyzer, caplog):
    level = logging.getLogger().level
    analyzer.analyze_recursive_ssm_attention_effects(TEXTS[0], [0], debug=True)
    for step in STEPS:
        assert f"step {step} took" in caplog.text
    assert logging.getLogger().level == level


@pytest.mark.parametrize(
    ("texts", "layers", "message"),
    [
        ([], None, "at least one text"),
        (["fine text", ""], None, "text 1 is empty"),
        (["fine text", 3], None, "text 1 is of type int"),
        ("a", None, "has 1 token"),
        ("fine text", [7], "7"),
        ("fine text", [0, 0], "twice"),
        ("fine text", [], "layer"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(analyzer, texts, layers, message):
    def never(*_):
        raise AssertionError("the model ran")

    analyzer.model.register_forward_pre_hook(never)
    with pytest.raises(ValueError, match=message):
        analyzer.analyze_recursive_ssm_attention_effects(texts, layers)


def test_results_are_asked_for_after_the_analysis_only(analyzer, tmp_path):
    for call in (
        analyzer.visualize_analysis_results,
        analyzer.save_analysis_results,
        analyzer.plot_recursive_state_vs_activation_change,
    ):
        with pytest.raises(
            RuntimeError, match=r"analyze_recursive_ssm_attention_effects\(\.\.\.\) first"
        ):
            call(tmp_path)


def test_command_writes_everything(tiny_model_dir, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--model", str(tiny_model_dir), "--text", TEXTS[0], "--output-dir", str(output)]
    assert main([*arguments, "--layers", "0,2", "--formats", "png,svg"]) == 0
    names = {path.name for path in output.iterdir()}
    assert {"analysis_results.json", "analysis_results.safetensors"} <= names
    assert "analysis_results_neurons.csv" in names
    drawn = set(figures_of(json.loads((output / "analysis_results.json").read_text())))
    assert {"overview", "ssm_analysis", "findings"} <= drawn
    for kind in (".png", ".svg"):
        assert {Path(name).stem for name in names if name.endswith(kind)} == drawn
    printed = capsys.readouterr().out
    assert "Largest replay error" in printed
    error = float(printed.split("Largest replay error: ")[1].split(",")[0])
    assert math.isfinite(error)
    assert error < 1e-5


def test_many_texts_are_told_of_the_analysis_of_corpora(
    tiny_model_dir, tmp_path, monkeypatch, capsys
):
    class Reached(Exception):
        pass

    def stop(*_, **__):
        raise Reached

    monkeypatch.setattr(module, "MemoryTracker", stop)
    for number, told in ((module.MANY_TEXTS, False), (module.MANY_TEXTS + 1, True)):
        texts = [word for i in range(number) for word in ("--text", f"the cat sat on mat {i}")]
        with pytest.raises(Reached):
            main(["--model", str(tiny_model_dir), "--output-dir", str(tmp_path / "out"), *texts])
        assert ("corpus_analysis.py reads any number" in capsys.readouterr().err) == told


def test_command_ends_with_1_when_a_step_failed(tiny_model_dir, tmp_path, monkeypatch, capsys):
    steps = _with_failing("neurons", AnalysisError("no neurons"))
    monkeypatch.setattr(module, "TEXT_STEPS", steps)
    arguments = ["--model", str(tiny_model_dir), "--text", TEXTS[0], "--layers", "0,2"]
    assert main([*arguments, "--output-dir", str(tmp_path), "--quiet"]) == 1
    assert "Without result: text_0.neurons" in capsys.readouterr().out
    assert (tmp_path / "analysis_results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--text", "x y", "--texts-file", "f.txt"], "both given"),
        (["--texts-file", "missing.txt"], "missing.txt"),
        (["--layers", "99"], "99"),
    ],
)
def test_bad_arguments_end_with_2(tiny_model_dir, tmp_path, arguments, message, capsys):
    given = ["--output-dir", str(tmp_path), "--model", str(tiny_model_dir), *arguments]
    assert main([*given, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_an_output_folder_in_the_way_is_said_before_the_model_runs(
    tiny_model_dir, tmp_path, capsys
):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("here already")
    assert main(["--model", str(tiny_model_dir), "--output-dir", str(in_the_way), "--quiet"]) == 2
    assert "file" in capsys.readouterr().err
    assert in_the_way.read_text() == "here already"


def test_ablation_and_faithfulness_are_added_on_request(tiny_model, tiny_tokenizer, tmp_path):
    analyzer = CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model, tokenizer=tiny_tokenizer, num_ablations=8, faithfulness=True
    )
    results = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[:2], [1])
    assert results["self_check"]["without_result"] == {}
    check = results["individual_texts"]["text_0"]["analysis"]["neuron_ablation"]["layer_1"]
    assert len(check["effects"]) == 8
    assert set(check["agreement"]) == {"attention_weighted", "gradient_guided", "rollout"}
    assert set(check["by_value"]) == {"mean", "zero", "other_text"}
    assert len(check["by_value"]["other_text"]["effects"]) == 8
    analyzer.save_analysis_results(tmp_path / "out.json")
    head, *rows = (tmp_path / "out_ablation.csv").read_text().splitlines()
    assert head == "text,layer,neuron,effect_mean,effect_zero,effect_other_text"
    assert len(rows) == 2 * 8
    table = results["cross_text_analysis"]["attribution_faithfulness"]
    assert table["num_texts"] == 2
    assert "mamba_lrp" in table["methods"]
