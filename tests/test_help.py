"""Every command explains itself: what it does, its options, and an example that fits them."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "benchmarks", "examples")


def has_main(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    imported = [
        name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    ]
    guarded = any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node) for node in tree.body
    )
    return "main" in [*defined, *imported] and guarded


COMMANDS = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if has_main(path)
]


def module_of(path: Path):
    return importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def help_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        module_of(path).main(["--help"])
    assert ending.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_has_a_description_and_an_example(path, capsys):
    text = help_of(path, capsys)
    example = re.search(r"example: (python \S+\.py\b.*)$", text)
    assert example, text
    words = shlex.split(example[1])
    assert (ROOT / words[1]).is_file()
    # The options of the example are among those that the same help lists.
    options = [word for word in words if word.startswith("--")]
    assert all(f"{option} " in text[: example.start()] for option in options), options
    described = text.split("options:")[0]
    assert re.search(r"\] [A-Z][^\[\]]+\.", described) or len(described.split(". ")) > 1


def test_the_suites_commands_are_all_found():
    names = {path.stem for path in COMMANDS}
    assert {
        "corrected_recursive_ssm_attention_analyzer", "run_memory_recursion_analysis",
        "ssm_component_extractor", "layer_correlation_analyzer", "attention_neurons",
        "delta_extraction", "recursive_visualizer",
    } <= names  # fmt: skip
