"""Rooms, arrows and floors of a tree made by hand."""

import pytest

from benchmarks.structure import main, structure


def test_a_tree_made_by_hand_is_counted(tmp_path, capsys):
    sources = {
        "step.py": "from plumbing.files import write\n\ndef late():\n    import scan.states\n",
        "plumbing/files.py": "import json\nfrom plumbing import errors\n",
        "plumbing/errors.py": "",
        "scan/states.py": "import torch\n",
        "plumbing/__init__.py": "",
        "tests/test_step.py": "import step\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    found = structure(tmp_path)
    assert (found.modules, found.at_the_root, found.folders) == (4, 1, 2)
    assert (found.arrows, found.floors) == (3, 3)  # step, files, errors
    assert (found.room_arrows, found.room_floors) == (2, 2)
    assert main([str(tmp_path)]) == 0
    assert "floors" in capsys.readouterr().out


def test_imports_in_a_circle_have_no_floors(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("import a\n")
    with pytest.raises(RecursionError):
        structure(tmp_path)
