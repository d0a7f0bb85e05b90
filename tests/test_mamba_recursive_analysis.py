"""The console command is the main analysis: its options, its exit statuses, its quick start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import corrected_recursive_ssm_attention_analyzer as analyzer
from mamba_recursive_analysis import main


def test_it_passes_arguments_and_status_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(analyzer, "main", lambda argv: seen.append(argv) or 1)
    assert main(["--seed", "3"]) == 1
    assert seen == [["--seed", "3"]]


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["--no-such-option"], 2), (["--twins", "-1"], 2)]
)
def test_it_ends_at_once_with_the_documented_statuses(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == status


def test_its_modules_load_nothing_large() -> None:
    root = Path(__file__).resolve().parent.parent
    code = "import mamba_recursive_analysis, sys; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_bad_input_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--texts-file", str(tmp_path / "none.txt"), "--quiet"]) == 2
    assert "none.txt" in capsys.readouterr().err
