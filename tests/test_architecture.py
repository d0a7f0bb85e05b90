"""Who may import whom, what may stand where, and what may stand nowhere: read from the sources."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent

# The order of imports, from the bottom up, lazy ones included: a module may import from earlier
# rows, and from its own folder. Neighbours in a row do not know each other.
ORDER = (
    {"suite_plumbing"},
    {"selective_scan", "token_statistics"},
    {"mamba_mixers", "result_views"},
    {"ssm_measures"},
    {"causal_interventions", "recursive_visualizer"},
    {"ssm_component_extractor", "recursive_analysis_report", "convert_checkpoint"},
    {
        "delta_extraction", "layer_correlation_analyzer", "attention_neurons",
        "intervention_study", "input_attribution", "long_memory", "direct_attribution",
        "activation_patching", "steering",
    },
    {"analysis_pipelines", "attribution_faithfulness"},
    {
        "corrected_recursive_ssm_attention_analyzer", "memory_recursion_neuron_analyzer",
        "model_comparison", "corpus_analysis",
    },
    {"run_memory_recursion_analysis", "mamba_recursive_analysis"},
)  # fmt: skip
LEVEL = {name: number for number, names in enumerate(ORDER) for name in names}

# Names for notebooks; nothing of the suite imports them.
DOORS = {"utils", "analysis_utils"}

FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

# A class that lives at the root under the name it had as a module: `from result_views import
# Results` finds it when asked, and nothing in the folder uses it.
PASSED_UPWARDS = {("result_views", "recursive_visualizer")}


def dotted(path: Path) -> str:
    """The name a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    dotted(path): path
    for path in [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in ROOT.glob(f"{name}/**/*.py"))]
}
SCRIPTS = [
    path for name in ("demo_model", "benchmarks", "examples") for path in ROOT.glob(f"{name}/*.py")
]
TESTS = sorted(ROOT.glob("tests/**/*.py"))

# Functions in which a command talks to the terminal.
COMMANDS = {"main", "_main", "_command", "_run"}

TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cff", ".jinja"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of all modules imported, wherever the import stands; `from a import b` gives
    a and a.b, of which the second may be no module."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_names":
            homes = node.args[1]
            if isinstance(homes, ast.Dict):
                names |= {ast.literal_eval(key) for key in homes.keys if key is not None}
    return names


def imported_names(tree: ast.AST) -> set[str]:
    """Top-level names of everything imported."""
    return {name.split(".")[0] for name in imported(tree)}


IMPORTS = {name: imported(tree_of(path)) for name, path in MODULES.items()}


@cache
def reached_from(name: str) -> set[str]:
    """Modules of the suite that importing this one brings in; itself only if there is a cycle."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        for other in IMPORTS[waiting.pop()] & set(MODULES):
            # A folder's face loads the modules it passes names on from only when asked.
            if other not in reached and other not in FOLDERS:
                reached.add(other)
                waiting.append(other)
    return reached


def parameters(items):
    """The same items, each named by its file in the test's report."""
    return [
        pytest.param(item, id=str(item.relative_to(ROOT)) if isinstance(item, Path) else item)
        for item in items
    ]


each_module = pytest.mark.parametrize("name", parameters(MODULES))
each_source = pytest.mark.parametrize("path", parameters([*MODULES.values(), *SCRIPTS]))
each_file = pytest.mark.parametrize("path", parameters([*MODULES.values(), *SCRIPTS, *TESTS]))


def top(name: str) -> str:
    return name.split(".")[0]


@each_module
def test_no_module_imports_itself_by_a_detour(name):
    assert name not in reached_from(name)


@each_module
def test_imports_point_down(name):
    """Doors and commands are the last to know; nobody imports a door."""
    own = top(name)
    others = {top(other) for other in IMPORTS[name]} & (set(LEVEL) | DOORS) - {own}
    others -= {other for folder, other in PASSED_UPWARDS if folder == name}
    assert not others & DOORS
    if own not in DOORS:
        assert {other for other in others if LEVEL[other] >= LEVEL[own]} == set()


def test_the_order_names_every_folder_and_every_module_of_the_root():
    at_the_root = {name for name in MODULES if "." not in name}
    assert at_the_root == set(LEVEL) | DOORS
    assert len(at_the_root - set(FOLDERS)) <= 24


def test_faces_name_what_they_pass_on_twice_alike():
    """Once for a type checker, once for the run."""
    for folder in FOLDERS:
        tree = tree_of(ROOT / folder / "__init__.py")
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) == 2]
        if calls:
            homes = {k: set(names) for k, names in ast.literal_eval(calls[0].args[1]).items()}
            shown = {
                node.module: {alias.name for alias in node.names}
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module in homes
            }
            assert shown == homes


def test_a_folder_says_what_it_may_import_and_what_each_module_is_for():
    for folder in FOLDERS:
        doc = ast.get_docstring(tree_of(ROOT / folder / "__init__.py")) or ""
        assert "May import " in doc
        listed = set(re.findall(r"^(\w+) {2}", doc, re.M))
        assert {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"} <= listed


def test_folders_that_know_no_model_name_no_transformers():
    for name in MODULES:
        if top(name) in {"selective_scan", "token_statistics", "result_views"}:
            assert "transformers" not in {top(other) for other in IMPORTS[name]}, name


def test_readers_of_results_load_no_model():
    for name in ("recursive_visualizer", "recursive_analysis_report"):
        used = {node.id for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Name)}
        assert not used & {"load_model", "load_tokenizer", "resolve_model"}


@each_source
def test_hooks_are_registered_in_one_place(path):
    if path != ROOT / "mamba_mixers" / "hooks.py":
        assert not uses_of_attributes(path, "register_\\w*hook\\w*")


@each_module
def test_mixers_are_known_to_their_folder(name):
    if top(name) != "mamba_mixers":
        assert not uses_of_attributes(MODULES[name], "in_proj|x_proj|dt_proj|out_proj|A_log")


def uses_of_attributes(path: Path, pattern: str) -> list[str]:
    return [
        f"{path.name}:{node.lineno} {node.attr}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and re.fullmatch(pattern, node.attr)
    ]


def imported_at_run_time(tree: ast.Module) -> set[str]:
    """`imported_names` without those that only a type checker sees."""
    guarded = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    unseen = {child for node in guarded for child in ast.walk(node)}
    kept = [node for node in ast.walk(tree) if node not in unseen]
    return imported_names(ast.Module([n for n in kept if isinstance(n, ast.stmt)], []))


@each_source
def test_drawing_libraries_are_imported_where_drawing_is_done(path):
    name = str(path.relative_to(ROOT))
    if not name.startswith(("result_views/figures/", "recursive_visualizer.py")):
        assert not imported_at_run_time(tree_of(path)) & {"matplotlib", "seaborn"}


def prints_outside_commands(node: ast.AST, inside: bool = False) -> Iterator[int]:
    """Lines that call print outside every function named in COMMANDS."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        inside = inside or node.name in COMMANDS
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not inside:
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from prints_outside_commands(child, inside)


@each_source
def test_only_commands_print(path):
    assert not list(prints_outside_commands(tree_of(path)))


@each_file
def test_nothing_that_runs_code_from_files_or_hides_errors(path):
    assert not imported_names(tree_of(path)) & {"pickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree_of(path)):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), place
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "os.system"}, place
            # Of a file of torch.save, tensors and nothing that runs.
            safe = {word.arg for word in node.keywords if _is_true(word.value)}
            assert called != "torch.load" or "weights_only" in safe, place
            unsafe = {word.arg for word in node.keywords if _is_true(word.value)}
            assert not unsafe & {"trust_remote_code", "allow_pickle", "shell"}, place


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@each_source
def test_users_are_told_by_exceptions(path):
    """An assert vanishes under python -O."""
    assert not [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]


# What a base class outside the suite asks for and documents.
OVERRIDES = {"forward", "backward"}


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and their public methods without a docstring, and the module."""
    if not ast.get_docstring(tree):
        yield "the module itself"
    for owner, node in public_definitions(tree):
        if not ast.get_docstring(node):
            yield owner + node.name


def public_definitions(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple]:
    """(prefix, node) of the public functions and classes of a body, and of its public classes'."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_") or (owner and node.name in OVERRIDES):
            continue
        yield owner, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, f"{owner}{node.name}.")


@each_source
def test_everything_public_is_documented(path):
    assert not list(undocumented(tree_of(path)))


@pytest.mark.parametrize("path", parameters(TESTS))
def test_test_files_say_what_they_test(path):
    assert ast.get_docstring(tree_of(path))


def project_files() -> list[Path]:
    skipped = {"results", "__pycache__"}
    folders = ("tests", "demo_model", "benchmarks", "examples", "docs", *FOLDERS)
    files = [*ROOT.glob("*"), *(path for name in folders for path in ROOT.glob(f"{name}/**/*"))]
    files = [
        path for path in files
        if path.suffix in TEXT_SUFFIXES and not skipped & set(path.parts)
    ]  # fmt: skip
    return sorted([*files, *ROOT.glob(".ci/*"), *ROOT.glob(".github/**/*.yml")])


@pytest.mark.parametrize("path", parameters(project_files()))
def test_no_line_points_out_of_the_project(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for relative in re.findall(r"(?<![\w.])(?:\.\./)+[\w./-]*", line):
            target = (path.parent / relative).resolve()
            assert target.is_relative_to(ROOT), f"{path.name}:{number} {relative}"
        # Folders of one machine; written in two halves, or this line would find itself.
        found = re.findall(r"(?<![\w.:/-])/(?:wo" r"rk|ro" r"ot|ho" r"me|Us" r"ers)/[\w.-]+", line)
        assert not found, f"{path.name}:{number} {found}"


def test_the_checks_of_this_file_find_what_they_look_for():
    """Each detector meets a source that breaks its rule."""
    bad = ast.parse(
        "import matplotlib.pyplot as plt\nfrom pickle import load\ndef show(x):\n    print(x)\n"
        "class Thing:\n    def go(self):\n        return 1\n"
    )
    assert imported_names(bad) == {"matplotlib", "pickle"}
    assert list(prints_outside_commands(bad)) == [4]
    assert list(undocumented(bad)) == ["the module itself", "show", "Thing", "Thing.go"]
    good = ast.parse("def main():\n    def tell():\n        print(1)\n    tell()\n")
    assert list(prints_outside_commands(good)) == []
    lazy = ast.parse('lazy_names(__name__, {"b.c": ["d"]})\ndef f():\n    from e import g\n')
    assert imported(lazy) == {"b.c", "e", "e.g"}
    assert reached_from("ssm_component_extractor") >= {
        "mamba_mixers.recording",
        "selective_scan.scan",
    }
    assert uses_of_attributes(ROOT / "mamba_mixers" / "hooks.py", "register_forward_hook")
    assert uses_of_attributes(ROOT / "mamba_mixers" / "families.py", "A_log")


def test_the_package_and_the_readme_name_what_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setup = project["tool"]["setuptools"]
    at_the_root = {name for name in MODULES if "." not in name} - set(FOLDERS)
    assert set(setup["py-modules"]) == at_the_root - DOORS
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setup["packages"]) == packages | {"demo_model"}
    assert [name for name in at_the_root if f"`{name}.py`" not in readme] == []
    assert [name for name in FOLDERS if f"`{name}/`" not in readme] == []


@each_module
def test_every_module_has_a_file_of_tests(name):
    path = MODULES[name].relative_to(ROOT)
    if path.name != "__init__.py":
        assert (ROOT / "tests" / path.parent / f"test_{path.name}").exists()
