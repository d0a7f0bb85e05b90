"""The README: every command and snippet runs, every link and picture is there.

Commands run in this process, from a temporary folder, on short texts; models of the hub are
replaced by tiny ones of as many layers, since nothing is downloaded.
"""

import importlib
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import VOCAB_SIZE

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")

# What makes a command short: fewer tokens, and fewer of the passes that cost most.
SHORTER = {
    "corrected_recursive_ssm_attention_analyzer": ["--max-sequence-length", "24"],
    "run_memory_recursion_analysis": ["--max-sequence-length", "40", "--num-positions", "2",
                                      "--ablate", "3", "--layers", "0,12"],
    "layer_correlation_analyzer": ["--max-sequence-length", "60"],
    "model_comparison": ["--max-sequence-length", "24"],
    "recursive_analysis_report": [],
    "recursive_visualizer": ["--formats", "svg"],
}  # fmt: skip
# Not run again from within the tests: they are the tests.
THE_TESTS = ["python", "-m", "pytest", "-q", "-n", "2"]


def blocks(language: str) -> list[str]:
    """Code blocks of the README in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M)


def commands() -> list[list[str]]:
    """The commands of the shell blocks as words; comments, continued lines and && taken apart."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


PYTHON = [words for words in commands() if words[0] == "python" and words != THE_TESTS]


def save_tiny(model, tokenizer, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tiny_tokenizer, tmp_path_factory):
    """A folder with texts, the demo model, and stand-ins for the models of the hub by name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_texts.txt").write_text("\n".join(EXAMPLE_TEXTS[:2]), encoding="utf-8")
    (folder / "demo_model").symlink_to(ROOT / "demo_model")
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mamba = MambaForCausalLM(
            MambaConfig(**sizes, hidden_size=16, num_hidden_layers=24, state_size=4)
        )
        attention = GPTNeoXForCausalLM(
            GPTNeoXConfig(**sizes, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                          intermediate_size=32)
        )  # fmt: skip
    models = {"state-spaces/mamba-130m-hf": mamba, "EleutherAI/pythia-160m": attention}
    names = {
        name: str(save_tiny(model, tiny_tokenizer, folder / name.rpartition("/")[2]))
        for name, model in models.items()
    }
    return folder, names


def test_every_command_runs(place, monkeypatch, capsys):
    folder, names = place
    monkeypatch.chdir(folder)
    assert len(PYTHON) >= 4
    for _, script, *given in PYTHON:
        arguments = [names.get(word, word) for word in given] + SHORTER[Path(script).stem]
        if not given:  # the default of five layers is that of the snippets too
            arguments += ["--layers", "0,12"]
        status = importlib.import_module(Path(script).stem).main(arguments)
        printed = capsys.readouterr()
        assert status == 0, f"{script} {arguments}: {printed.err}"
        assert printed.out
    assert (folder / "corrected_mamba_analysis" / "analysis_results.json").is_file()
    assert (folder / "my_analysis" / "ssm_analysis.png").is_file()
    assert (folder / "recursive_analysis_plots" / "ssm_analysis.svg").is_file()


def test_every_snippet_runs(place, monkeypatch, capsys):
    folder, _ = place
    monkeypatch.chdir(folder)
    script = folder / "snippets.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    runpy.run_path(str(script))
    assert float(capsys.readouterr().out.splitlines()[0]) < 1e-5  # the replay error
    for name in ("attention.pdf", "neurons.png", "analysis_output/ssm_analysis.png"):
        assert (folder / name).is_file()


def test_commands_name_scripts_that_are_there():
    for words in commands():
        if words[:2] == ["pip", "install"]:
            files = [words[i + 1] for i, word in enumerate(words) if word == "-r"]
            assert len(words) == 2 + 2 * len(files)  # nothing that no file pins
            for name in files:
                lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
                pins = [line for line in lines if line and not line.startswith("#")]
                assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", pin) for pin in pins), name
        elif words != THE_TESTS:
            assert words[0] == "python"
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).resolve().exists(), link


def test_the_readme_is_read_in_one_go():
    assert len(README.splitlines()) <= 180


def test_every_benchmark_is_listed():
    helpers = {"commands.py", "family_models.py", "fuzz_commands.py", "fuzz_inputs.py",
               "other_ways.py", "passages.py", "recall_models.py", "recall_sources.py",
               "transformer_lens_patching.py"}  # fmt: skip
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - helpers
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(?:python benchmarks/)?(\w+\.py)`", page))
    assert scripts - {"speed.py"} <= listed
    assert "benchmarks/results/speed.md" in page
    assert "docs/measured.md" in README


def test_the_gallery_shows_what_its_script_draws():
    from examples.draw_gallery import GALLERY

    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\((\w+)\.png\)", page)
    assert shown == [name for names in GALLERY.values() for name in names]
    pictures = {path.stem for path in (ROOT / "docs").glob("*.png")}
    assert pictures == {"first_look", *shown}


def test_exit_statuses_are_those_that_the_commands_document():
    from suite_plumbing.commands import run_main

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", page, re.M)
    statuses = {int(number) for numbers, _ in table for number in numbers.split(",")}
    documented = {int(number) for number in re.findall(r"\b(\d+):", run_main.__doc__ or "")}
    assert statuses == documented == {0, 1, 2, 130, 143}
