"""Work is not lost: stopped runs go on, runs do not mix, and what fails costs itself alone."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_model
from safetensors import safe_open

import corrected_recursive_ssm_attention_analyzer as main_analysis
import input_attribution
import memory_recursion_neuron_analyzer as memory_analysis
import recursive_visualizer
from analysis_pipelines.step_runner import Step
from suite_plumbing.kept_values import KeptValues
from suite_plumbing.output_folders import LOCK_NAME, owning
from suite_plumbing.result_reading import load_results

ROOT = Path(__file__).resolve().parent.parent

EVERY_FIGURE = recursive_visualizer.CORRECTED_FIGURES

TEXTS = [" ".join("abcdefghijklmnopqrstuvwxyz"[i : i + 7 + i]) for i in range(5)]


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Behind a shell's & an interrupt is ignored, which would be inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def few_figures():
    """Commands draw two figures of each analysis, and those of its findings.

    What is lost or kept is the same with any number of figures, and drawing all takes three times
    as long as everything else; one test draws all of the main analysis.
    """
    main = {name: EVERY_FIGURE[name] for name in ("neuron_evolution", "consistency_analysis")}
    memory = {name: recursive_visualizer.MEMORY_FIGURES[name]
              for name in ("neuron_activation_patterns", "recursive_patterns")}  # fmt: skip
    others = tuple(pair for pair in recursive_visualizer._BY_KEY if pair[0] != "memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recursive_visualizer, "CORRECTED_FIGURES", main)
        patch.setattr(recursive_visualizer, "OVERVIEW_FIGURES", {})
        patch.setattr(recursive_visualizer, "MEMORY_FIGURES", memory)
        patch.setattr(recursive_visualizer, "_BY_KEY", (("memory", memory), *others))
        yield


def status_of(module, model_dir, folder, texts, *options):
    """Run a module's command on two layers of a model; its exit status."""
    given = [part for text in texts for part in ("--text", text)]
    return module.main(
        ["--model", str(model_dir), *given, "--layers", "0,2", "--quiet", "--output-dir",
         str(folder), *options]
    )  # fmt: skip


@pytest.fixture
def command(model_dir, tmp_path):
    """Run a module's command on the tiny model in a folder of the test's; returns its status."""

    def run(*options, module=main_analysis, folder="out", texts=TEXTS[:2]):
        return status_of(module, model_dir, tmp_path / folder, texts, *options)

    return run


@pytest.fixture(scope="module")
def model_dir(tiny_tokenizer, tmp_path_factory):
    """The tiny model, which no test changes: its folder is in the results."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tiny_tokenizer)


@pytest.fixture(scope="module")
def whole(model_dir, tmp_path_factory):
    """The folder of a run that nothing stopped, made when first asked for; tests leave it as is.

    ``figures`` names what runs draw where a test has changed that: such a run is another one.
    """

    @functools.cache
    def run(*options, module=main_analysis, count=5, figures=None):
        folder = tmp_path_factory.mktemp("whole") / "out"
        assert status_of(module, model_dir, folder, TEXTS[:count], *options) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def processor_seconds(whole, model_dir, tmp_path_factory):
    """What a run of two texts takes of a process that has made one before."""
    whole(count=2)
    start = time.process_time()
    folder = tmp_path_factory.mktemp("again") / "out"
    assert status_of(main_analysis, model_dir, folder, TEXTS[:2]) == 0
    return time.process_time() - start


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_run(results):
    """Results without what differs between two runs of one command."""
    origin = {
        key: part for key, part in results["provenance"].items() if key not in ("run", "command")
    }
    return {**results, "provenance": origin}


def assert_same_files(one: Path, other: Path, stem: str = "analysis_results") -> None:
    """Every file the same but for the run's id, time, and command with its `--resume`."""
    assert names(one) == names(other)
    results, tensors = load_results(one / f"{stem}.json")
    others, other_tensors = load_results(other / f"{stem}.json")
    assert without_run(results) == without_run(others)
    assert list(tensors) == list(other_tensors)
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    for path in one.iterdir():
        if path.suffix in (".png", ".csv"):
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@pytest.mark.parametrize("twins", ["0", "1"])
def test_a_run_stopped_at_a_text_goes_on_to_the_same_files(
    command, whole, tmp_path, monkeypatch, twins, capsys
):
    options = ("--twins", twins)
    if twins == "0":
        monkeypatch.setattr(recursive_visualizer, "CORRECTED_FIGURES", EVERY_FIGURE)
    expected = whole(*options, figures="every" if twins == "0" else None)
    analyze_text, seen = main_analysis.analyze_text, []

    def stopped(inputs, steps, after_each):
        seen.append(inputs)
        if len(seen) == (4 if twins == "0" else 8):  # of 5 texts, and 5 of each of two twins
            raise KeyboardInterrupt
        return analyze_text(inputs, steps, after_each)

    monkeypatch.setattr(main_analysis, "analyze_text", stopped)
    assert command(*options, texts=TEXTS) == 130
    assert names(tmp_path / "out") == {".texts"}
    kept = 3 if twins == "0" else 5
    assert f"{kept} of 5 texts are kept: the same command with --resume" in capsys.readouterr().err
    seen.extend([None] * 10)
    before = len(seen)
    assert command(*options, "--resume", texts=TEXTS) == 0
    assert len(seen) - before == (2 if twins == "0" else 8)
    assert_same_files(expected, tmp_path / "out")


def test_a_stopped_memory_run_goes_on_from_the_last_measurement_to_the_same_files(
    command, tmp_path, monkeypatch, capsys
):
    texts = [f"{text} and {text[::-1]} and {text}" for text in TEXTS[:3]]
    options = ("--num-positions", "2", "--ablate", "3", "--num-random", "1", "--twins", "1")
    options += ("--formats", "svg")
    run = partial(command, *options, module=memory_analysis, texts=texts)
    made: list[str] = []
    of, last = KeptValues.of, [10**9]

    def counted(self, name, make):
        def count():
            made.append(name)
            if len(made) > last[0]:
                raise KeyboardInterrupt
            return make()

        return of(self, name, count)

    monkeypatch.setattr(KeptValues, "of", counted)
    assert run(folder="whole") == 0
    total = len(made)
    assert len(set(made)) > 30
    made.clear()
    last[0] = total - 10  # in the last twin
    assert run() == 130
    assert f"{total - 10} measurements are kept: the same command with --resume" in (
        capsys.readouterr().err
    )
    values = tmp_path / "out" / ".texts" / "values.jsonl"
    with values.open("a") as file:
        file.write('["half a line that a kill cut", [1.0')
    made.clear()
    last[0] = 10**9
    assert command("--resume", *options, "--seed", "1", module=memory_analysis, texts=texts) == 2
    assert run("--resume") == 0
    assert len(made) == 10
    assert_same_files(tmp_path / "whole", tmp_path / "out", "memory_recursion_results")


def test_texts_kept_on_disk_give_what_texts_in_memory_give(whole, model_dir):
    results, tensors = load_results(whole("--twins", "0") / "analysis_results.json")
    analyzer = main_analysis.CorrectedRecursiveSSMAttentionNeuronAnalyzer(model_dir)
    returned = analyzer.analyze_recursive_ssm_attention_effects(TEXTS, [0, 2])
    assert without_run(results) == without_run(returned)
    assert set(tensors) == set(returned.tensors)
    assert all(torch.equal(tensors[name], returned.tensors[name]) for name in tensors)


KILLED = """
import os, signal, sys
import corrected_recursive_ssm_attention_analyzer as module
from analysis_pipelines.text_parts import TextParts
keep = TextParts.keep
def kept(self, index, found):
    result = keep(self, index, found)
    if len(list(self.folder.glob("text_*.json"))) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
TextParts.keep = kept
module.main(sys.argv[2:])
"""


def test_a_killed_run_goes_on_and_leaves_nothing_behind(command, whole, model_dir, tmp_path):
    folder = tmp_path / "out"
    given = [part for text in TEXTS for part in ("--text", text)]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, "3", "--model", str(model_dir), *given, "--layers",
         "0,2", "--output-dir", str(folder), "--quiet"],
        cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    assert names(folder) == {".texts", LOCK_NAME}
    (folder / ".report.html.0123456789ab.tmp").write_text("half")
    assert command("--resume", texts=TEXTS) == 0
    assert_same_files(whole("--twins", "0"), folder)


def test_resume_with_another_configuration_is_refused_before_work(
    command, tmp_path, monkeypatch, capsys
):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(main_analysis, "write_analysis", stopped)
        assert command() == 130
    monkeypatch.setattr(main_analysis, "capture_each", stopped)  # nothing runs from here on
    assert command("--resume", "--seed", "1") == 2
    assert "was 0, is 1" in capsys.readouterr().err
    assert command("--resume", texts=TEXTS[:1]) == 2
    assert "texts" in capsys.readouterr().err
    monkeypatch.undo()
    assert command("--resume") == 0


def test_a_second_run_in_the_folder_is_refused_in_one_sentence_before_work(
    command, tmp_path, capsys
):
    (tmp_path / "out").mkdir()
    for module in (main_analysis, memory_analysis, input_attribution):
        with owning(tmp_path / "out"):
            status = command(module=module) if module is not input_attribution else module.main(
                ["--output-dir", str(tmp_path / "out"), "--quiet"]
            )  # fmt: skip
        assert status == 2
        said = capsys.readouterr().err
        assert "is being written by another run" in said
        assert len(said.splitlines()) == 1
    assert names(tmp_path / "out") == set()


def test_every_file_of_a_run_has_its_id(whole):
    for module, stem in (
        (main_analysis, "analysis_results"),
        (memory_analysis, "memory_recursion_results"),
    ):
        folder = whole(module=module, count=2)
        results, tensors = load_results(folder / f"{stem}.json")
        run_id = results["provenance"]["run"]["id"]
        assert len(tensors) > 0
        with safe_open(folder / f"{stem}.safetensors", framework="pt") as file:
            assert file.metadata() == {"run": run_id}
        for page in [*folder.glob("*.md"), *folder.glob("*.html")]:
            assert run_id in page.read_text(encoding="utf-8")


def test_tensors_of_another_run_are_refused_with_the_reason(whole, tmp_path):
    one, other = whole(count=2), whole("--twins", "0")
    shutil.copy(one / "analysis_results.json", tmp_path)
    shutil.copy(other / "analysis_results.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"safetensors' is of run \w{16}, the results beside it"):
        load_results(tmp_path / "analysis_results.json")


def test_pages_of_an_earlier_run_do_not_stay_beside_the_new_numbers(command, tmp_path, monkeypatch):
    assert command("--formats", "svg") == 0
    (tmp_path / "out" / "my_own.svg").write_text("a user's")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_analysis, "write_figures", stopped)
    assert command() == 130
    assert names(tmp_path / "out") == {
        "analysis_results.json", "analysis_results.safetensors", "analysis_results_neurons.csv",
        "my_own.svg",
    }  # fmt: skip


@pytest.mark.parametrize("module", [main_analysis, memory_analysis])
def test_a_set_that_cannot_be_written_leaves_the_earlier_one_whole(
    command, tmp_path, monkeypatch, module
):
    assert command(module=module) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    if module is main_analysis:
        monkeypatch.setattr("analysis_pipelines.analysis_results.write_json", full)
    assert command(module=module) == 1
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name != ".texts"}
    assert after == before


@pytest.mark.parametrize("module", [main_analysis, memory_analysis])
def test_a_figure_and_a_report_that_fail_cost_themselves_alone(
    command, tmp_path, monkeypatch, module, capsys
):
    def broken(*_, **__):
        raise ValueError("cannot be drawn")

    registry = "CORRECTED_FIGURES" if module is main_analysis else "MEMORY_FIGURES"
    figures = getattr(recursive_visualizer, registry)
    first, second = list(figures)[:2]
    monkeypatch.setitem(figures, first, broken)
    report = "write_report" if module is main_analysis else "memory_report"
    monkeypatch.setattr(module, report, broken)
    assert command(module=module) == 1
    written = names(tmp_path / "out")
    assert f"{second}.png" in written
    assert f"{first}.png" not in written
    (path,) = (tmp_path / "out").glob("*results.json")
    failed = json.loads(path.read_text())["self_check"]["without_result"]["pages"]
    assert failed == {
        name: {"error": {"type": "ValueError", "message": "cannot be drawn"}}
        for name in (first, "report")
    }
    assert f"Without result: pages.{first}: ValueError: cannot be drawn" in capsys.readouterr().out


def test_a_disk_full_while_drawing_ends_with_1_and_keeps_the_results(
    command, tmp_path, monkeypatch, capsys
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("suite_plumbing.result_files.tempfile.TemporaryFile", full)
    monkeypatch.setattr(main_analysis, "claim_output_dir", lambda path: path, raising=False)
    monkeypatch.setattr("suite_plumbing.commands.claim_output_dir", _made)
    assert command() == 1
    assert "No space left on device" in capsys.readouterr().err
    load_results(tmp_path / "out" / "analysis_results.json")


def _made(path: str) -> Path:
    Path(path).mkdir()
    return Path(path)


def test_a_number_that_json_does_not_know_costs_itself_alone(
    command, tmp_path, monkeypatch, capsys
):
    def with_nan(step):
        def run(inputs, *needed):
            result = dict(step.run(inputs, *needed))
            return {**result, "planted": [1.0, float("nan"), {"deep": float("-inf")}]}

        return Step(step.name, run, step.needs)

    steps = tuple(
        with_nan(step) if step.name == "layer_activations" else step
        for step in main_analysis.TEXT_STEPS
    )
    monkeypatch.setattr(main_analysis, "TEXT_STEPS", steps)
    assert command() == 1
    results, tensors = load_results(tmp_path / "out" / "analysis_results.json")
    section = results["individual_texts"]["text_0"]["analysis"]["layer_activations"]
    assert section["planted"] == [1.0, None, {"deep": None}]
    assert set(section) == {"layer_0", "layer_2", "planted"}
    failed = results["self_check"]["without_result"]["text_1"]
    assert set(failed) == {"layer_activations"}
    assert failed["layer_activations"]["error"]["message"] == (
        "planted[1] is nan, planted[2].deep is -inf: written as null"
    )
    assert (tmp_path / "out" / "report.html").exists()
    assert tensors


@pytest.mark.parametrize("name", ["my.safetensors", "lr0.1", "results.json", "a.csv"])
def test_names_of_results_are_kept_apart(tiny_model, tiny_tokenizer, tmp_path, name):
    analyzer = main_analysis.CorrectedRecursiveSSMAttentionNeuronAnalyzer(
        tiny_model, tokenizer=tiny_tokenizer
    )
    for seed, other in enumerate((name, "lr0.2")):
        analyzer.seed = seed
        returned = analyzer.analyze_recursive_ssm_attention_effects(TEXTS[seed], [0, 2])
        assert isinstance(analyzer.analysis_.tensors, dict)
        assert analyzer.save_analysis_results(tmp_path / other) == tmp_path / other
        results, tensors = load_results(tmp_path / other)
        assert results == dict(returned)
        assert set(tensors) == set(returned.tensors)
    assert load_results(tmp_path / name)[0]["provenance"]["seed"] == 0
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    ("script", "options"),
    [("input_attribution.py", ["--method", "recency"]), ("delta_extraction.py", ["--layers", "0"])],
)
def test_a_terminal_that_is_not_utf8_costs_no_results(model_dir, tmp_path, script, options):
    process = subprocess.run(
        [sys.executable, script, "--model", str(model_dir), "--text", "a b Ġ c", "--quiet",
         "--output-dir", str(tmp_path / "out ☃"), *options],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr.decode(errors="replace")
    assert process.stdout.count(b"out ?")
    assert list((tmp_path / "out ☃").glob("*.json"))


def test_escape_bytes_of_a_text_are_shown_not_executed(command, tmp_path, capsys):
    hostile = "a \x1b]0;title\x07 b \x9b2J c \r d \x7f e f g"
    assert command(texts=[hostile, TEXTS[0]]) == 0
    assert command(module=memory_analysis, folder="memory", texts=[hostile, TEXTS[0]]) == 0
    for page in [*tmp_path.glob("*/*.md"), tmp_path / "out" / "report.html"]:
        text = page.read_bytes().decode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), page.name
    assert "a ␛]0;title␇ b \\x9b2J" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "\x1b" not in capsys.readouterr().out


def signalled(number, seconds, run):
    """The status of a run that gets a signal after so much time of this process's processors."""
    # The process's own time, which other work on the machine leaves as it is.
    handler = signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), number))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return run()
    except SystemExit as error:
        return error.code
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


@pytest.mark.parametrize("moment", [0.3, 0.6, 0.8])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_any_moment_ends_with_its_status_and_no_half_file(
    command, whole, processor_seconds, tmp_path, moment, number, status
):
    found, seconds = 0, moment * processor_seconds
    while found == 0 and seconds > 0.1:  # 0: it ended first, on a machine that became faster
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        found = signalled(number, seconds, command)
        seconds *= 0.8
    assert found == status
    left = names(tmp_path / "out")
    assert not [name for name in left if name.endswith(".tmp") or name == LOCK_NAME]
    if "analysis_results.json" in left:
        load_results(tmp_path / "out" / "analysis_results.json")
    assert command() == 0
    assert names(tmp_path / "out") == names(whole(count=2))
