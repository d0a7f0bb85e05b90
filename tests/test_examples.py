"""The example notebooks run from top to bottom and show what they say; all but one are empty.

They run on the demo model, in a kernel of their own; the one for mamba-130m with that model's name
replaced, so that nothing is downloaded.
"""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from examples import draw_gallery
from recursive_visualizer import figures_of
from suite_plumbing.texts import EXAMPLE_TEXTS
from tests.conftest import make_tiny_model

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EMPTY = [path for path in NOTEBOOKS if path.stem != "ten_cells"]  # whose outputs are kept


def executed(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path = FOLDER):
    """The notebook with the outputs of a run in a folder, one thread, offline."""
    for variable, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"state-spaces/mamba-130m-hf"', '"../demo_model"')
    options = {"timeout": 600, "resources": {"metadata": {"path": str(folder)}}}
    return NotebookClient(notebook, **options).execute()


def shown(notebook, kind: str) -> list[str]:
    """Outputs of one MIME type in order; "text" is what was printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "text":
        return [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    return [o.data[kind] for o in outputs if kind in o.get("data", {})]


def test_first_look_shows_its_tables_and_figures(monkeypatch):
    notebook = executed("first_look", monkeypatch)
    tables = shown(notebook, "text/html")
    assert "Largest replay error" in tables[0]
    assert "median_half_life" in tables[1]
    assert "promoted" in tables[2]
    assert len(shown(notebook, "image/png")) == 2


def test_causal_memory_shows_that_a_reset_is_causal(monkeypatch):
    notebook = executed("causal_memory", monkeypatch)
    assert len(shown(notebook, "image/png")) == 1
    printed = "".join(shown(notebook, "text"))
    assert float(printed.split("largest change: ")[1].split()[0]) == 0.0
    assert re.search(r"repeated -?\d+\.\d+, new -?\d+\.\d+ nats", printed)


def test_direct_attribution_shows_parts_that_sum_to_the_logit(monkeypatch):
    notebook = executed("direct_attribution", monkeypatch)
    printed = "".join(shown(notebook, "text"))
    logit, total = re.findall(r"-?\d+\.\d+", printed)
    assert float(total) == pytest.approx(float(logit), abs=2e-4)  # printed with four decimals
    assert len(shown(notebook, "image/png")) == 1
    assert len(shown(notebook, "text/html")) == 5


def test_patching_shows_where_the_answer_sits(monkeypatch):
    notebook = executed("patching", monkeypatch)
    printed = "".join(shown(notebook, "text"))
    clean, corrupt = map(float, re.findall(r"([+-]\d+\.\d+)(?= (?:logits|in))", printed))
    assert clean > corrupt
    effects = [float(x) for x in re.findall(r"effect (-?\d+\.\d+)", printed)]
    assert effects == pytest.approx([1.0, 1.0], abs=0.02)
    # What the notebook says of the tokens between: the state of layer 11 has it, nothing else.
    stream, state = re.findall(
        r"between: layer 11 (\S+) to \S+, other layers at most (\S+)", printed
    )
    assert max(map(float, stream)) < 0.1
    assert float(state[0]) > 0.9
    assert float(state[1]) < 0.1
    assert len(shown(notebook, "image/png")) == 1
    assert len(shown(notebook, "text/html")) == 1


def test_mamba_130m_uses_what_there_is_to_use(monkeypatch):
    notebook = executed("mamba_130m", monkeypatch)
    assert "Largest replay error" in shown(notebook, "text/html")[0]
    assert len(shown(notebook, "image/png")) == 2


def test_mamba_130m_says_what_it_downloads_before_it_does():
    cells = json.loads((FOLDER / "mamba_130m.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    said = next(i for i, text in enumerate(sources) if "downloads" in text and "MB" in text)
    assert said < next(i for i, text in enumerate(sources) if "load_model(" in text)


def test_ten_cells_import_three_modules_and_show_what_is_kept(monkeypatch, tmp_path):
    kept = nbformat.read(FOLDER / "ten_cells.ipynb", as_version=4)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert len(code) == 10
    lines = [line for cell in code for line in cell.source.splitlines() if " import " in line]
    own = {line.split()[1] for line in lines if line.startswith("from ")} - {"transformers"}
    assert own == {"attention_neurons", "layer_correlation_analyzer", "mamba_mixers"}
    assert all(cell.outputs for cell in code[1:])
    (tmp_path / "demo_model").symlink_to(FOLDER.parent / "demo_model")
    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    found = executed("ten_cells", monkeypatch, tmp_path / "examples")
    assert (tmp_path / "examples" / "attention_of_layer_11.pdf").is_file()
    assert len(shown(found, "image/png")) == len(shown(kept, "image/png")) == 1
    # What is kept is what comes; the last digits may be of another machine.
    words = [re.sub(r"[\d.e+-]+", "#", "".join(shown(one, "text"))) for one in (kept, found)]
    assert words[0] == words[1]


@pytest.mark.parametrize("path", EMPTY, ids=lambda path: path.stem)
def test_notebooks_are_committed_empty_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert os.path.getsize(path) < 20_000


def test_each_notebook_has_a_test():
    assert [path.stem for path in EMPTY] == [
        "causal_memory", "direct_attribution", "first_look", "mamba_130m", "patching",
    ]  # fmt: skip


def test_the_gallery_draws_every_figure_of_both_analyses(tiny_tokenizer, tmp_path, monkeypatch):
    options = {"tokenizer": tiny_tokenizer, "max_sequence_length": 50}
    found = draw_gallery.analyses(make_tiny_model(), list(EXAMPLE_TEXTS[:2]), **options)
    names = [name for names in draw_gallery.GALLERY.values() for name in names]
    drawable = [name for results in found.values() for name in figures_of(results)]
    # Both analyses have findings, on pages of their own; the gallery shows the first of the main's.
    others = {name for name in drawable if re.fullmatch(r"findings_\d+", name)}
    assert set(names) == set(drawable) - others
    monkeypatch.setattr(draw_gallery, "GALLERY", {"main": ("consistency_analysis",)})
    paths = draw_gallery.draw(found, tmp_path)
    assert [path.name for path in paths] == ["first_look.png", "consistency_analysis.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
