"""Command lines are read, and refused, with the standard library alone."""

import ast
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from suite_plumbing.analysis_options import main_analysis_options
from suite_plumbing.command_lines import (
    collect_garbage_again,
    parse_first,
    parse_widths,
    wait_passively,
)
from suite_plumbing.step_options import input_attribution_options


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """`parse_first` lets signals end the process, which here is that of all tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


ROOT = Path(__file__).resolve().parent.parent.parent

LARGE = {"torch", "transformers", "matplotlib", "scipy", "pandas", "numpy"}


def is_command(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(n, ast.If) and "__main__" in ast.unparse(n) for n in tree.body)


COMMANDS = sorted(path.name for path in ROOT.glob("*.py") if is_command(path))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the root in a process of its own, which lists what it imports on stderr."""
    command = [sys.executable, "-X", "importtime", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


def imported(stderr: str) -> set[str]:
    """Top-level names of what a process run with `-X importtime` has imported."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


def said(stderr: str) -> str:
    return "\n".join(x for x in stderr.splitlines() if not x.startswith("import time:"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_answered_before_anything_large_is_imported(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert "argparse" in imported(done.stderr)
    assert not imported(done.stderr) & LARGE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_is_refused_before_anything_large_is_imported(command: str) -> None:
    done = run(command, "--no-such-option")
    assert done.returncode == 2
    assert "error: " in said(done.stderr)
    assert not imported(done.stderr) & LARGE


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["attention_neurons.py", "--ablate", "-1"], "error: ablate is -1 (int); it must be an"),
        (["recursive_visualizer.py", "--debug", "--quiet"], "error: --debug and --quiet are both"),
        (["delta_extraction.py", "--text", "x", "--texts-file", "y"], "error: --text and --texts-"),
        (["long_memory.py", "b.txt", "--windows", "8,x"], "error: windows is '8,x'; pass whole"),
        (["attribution_faithfulness.py", "--methods", "lime"], "error: method is 'lime'; it must"),
        (["input_attribution.py", "--methods", "occlusion"], "error: unrecognized arguments: --me"),
        (["steering.py", "--seed", "x"], "error: argument --seed: seed is 'x' (str); it must be"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2_at_once(arguments: list[str], line: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said(done.stderr).startswith(line)
    assert len(said(done.stderr).splitlines()) == 1
    assert not imported(done.stderr) & LARGE


def test_what_is_imported_is_seen() -> None:
    """Else the tests above could not fail."""
    done = run("-c", "import numpy.linalg")
    assert LARGE & imported(done.stderr) == {"numpy"}


def test_parse_first_returns_where_there_is_work_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command.py", "--seed", "3"])
    assert parse_first(main_analysis_options) is None
    assert not gc.isenabled()
    frozen = gc.get_freeze_count()
    collect_garbage_again()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()
    collect_garbage_again()  # of one that goes on, nothing changes
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    monkeypatch.setattr(sys, "argv", ["command.py", "--seed", "-3"])
    with pytest.raises(SystemExit) as caught:
        parse_first(main_analysis_options)
    assert caught.value.code == 2


def test_threads_wait_passively_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    assert os.environ["GOMP_SPINCOUNT"] == "5000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_command_sets_the_waiting_of_threads_before_torch_is_loaded(tmp_path: Path) -> None:
    """A stand-in for torch says what it finds when it is imported, and ends the command."""
    (tmp_path / "torch.py").write_text(
        "import os\nraise SystemExit(os.environ.get('OMP_WAIT_POLICY'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = str(tmp_path)
    for command in ("ssm_component_extractor.py", "run_memory_recursion_analysis.py"):
        done = subprocess.run(
            [sys.executable, command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.stderr.strip().endswith("PASSIVE")


def test_parse_widths_takes_whole_numbers_alone() -> None:
    assert parse_widths("128, 512,") == [128, 512]
    with pytest.raises(ValueError, match="windows is '128,x'"):
        parse_widths("128,x")


def test_an_option_that_there_is_not_is_answered_with_the_nearest(capsys) -> None:
    for given, answer in (("--methods", "the nearest option is --method"),
                          ("--colour", "--help shows every option")):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            input_attribution_options([given, "x"])
        assert caught.value.code == 2
        assert capsys.readouterr().err == (f"error: unrecognized arguments: {given} x; {answer}\n")
