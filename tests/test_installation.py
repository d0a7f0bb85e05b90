"""What an installation puts beside other people's packages, and that it can be used from there.

The wheel is built by setuptools itself from a copy of the sources, without a network.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
FOLDERS = {name for name in SETUP["packages"] if "." not in name}

# Its own modules of these names a notebook's folder may have.
GENERIC = ("utils", "analysis_utils", "findings", "drawing")

COMMAND = "mamba-recursive-analysis"


def built(how: str, place: Path) -> Path:
    """A wheel of the suite, made by a function of setuptools' build backend."""
    sources = place / "sources"
    sources.mkdir(parents=True)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), *(ROOT / n for n in ("pyproject.toml", "README.md"))]:
        shutil.copy(path, sources)
    shutil.copy(ROOT / "LICENSE", sources)
    code = f"from setuptools.build_meta import {how} as build; build({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, as site-packages would have it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with the wheel's contents on its path."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_a_wheel_holds_the_folders_and_commands_of_the_list_and_nothing_else(site: Path) -> None:
    found = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert found == FOLDERS | {f"{name}.py" for name in SETUP["py-modules"]}
    assert not {f"{name}.py" for name in GENERIC} & found


def test_a_wheel_holds_every_module_template_and_file_of_the_demo_model(site: Path) -> None:
    for name in FOLDERS:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (site / path.relative_to(ROOT)).is_file(), path.name


def test_a_wheel_has_the_console_command(site: Path) -> None:
    (entries,) = site.glob("*.dist-info/entry_points.txt")
    assert f"{COMMAND} = mamba_recursive_analysis:main" in entries.read_text()


def test_an_editable_installation_offers_the_same_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(built("build_editable", tmp_path)) as archive:
        (finder,) = [name for name in archive.namelist() if name.endswith("_finder.py")]
        source = archive.read(finder).decode()
    mapping = re.search(r"^MAPPING: .* = (\{.*\})$", source, re.M)
    spaces = re.search(r"^NAMESPACES: .* = (\{.*\})$", source, re.M)
    assert mapping
    assert spaces
    modules = re.findall(r"'(\w+)': '", mapping[1])
    offered = {*modules, *re.findall(r"'(\w+)': \[", spaces[1])}
    assert offered == FOLDERS | set(SETUP["py-modules"])


def test_a_folder_with_modules_of_the_same_names_uses_the_suite(site: Path, tmp_path: Path) -> None:
    """And the bundled model is found by its name, far from where it lies."""
    for name in GENERIC:
        (tmp_path / f"{name}.py").write_text(f"MINE = {name!r}\n")
    (tmp_path / "mine.py").write_text(
        f"import {', '.join(GENERIC)}\n"
        "import corrected_recursive_ssm_attention_analyzer, memory_recursion_neuron_analyzer\n"
        "import model_comparison, recursive_analysis_report\n"
        "from ssm_component_extractor import SSMComponentExtractor\n"
        "extractor = SSMComponentExtractor('demo_model')\n"
        "found = extractor.extract_ssm_components([0], 'The old net held.')\n"
        f"print({', '.join(f'{name}.MINE' for name in GENERIC)}, found[0].replay_error < 1e-5)\n"
    )
    done = run(site, tmp_path, "mine.py")
    assert done.stdout.split() == [*GENERIC, "True"], done.stderr
    assert done.stderr == ""


def test_the_console_command_answers_from_anywhere(site: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv[0] = {COMMAND!r}\nfrom mamba_recursive_analysis import main\nmain()"
    )
    done = run(site, tmp_path, "-c", code, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {COMMAND} ")
