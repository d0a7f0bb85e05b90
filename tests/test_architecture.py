"""Who may import whom, what may stand where, and what may stand nowhere: read from the sources."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = [
    path for name in ("demo_model", "benchmarks", "examples") for path in ROOT.glob(f"{name}/*.py")
]
TESTS = sorted(ROOT.glob("tests/*.py"))

# The spine of the suite, from the bottom up. A module may reach, through whatever it imports,
# modules of lower levels only: never one above, and never a neighbour on its own level. Modules
# that are not named here belong to those that import them, and are held by the same rule.
LEVELS = (
    {"utils"},
    {"selective_scan"},
    {"mamba_mixers"},
    {"ssm_component_extractor"},
    {"delta_extraction", "layer_correlation_analyzer", "attention_neurons"},
    {
        "memory_recursion_neuron_analyzer",
        "corrected_recursive_ssm_attention_analyzer",
        "model_comparison",
    },
    {"run_memory_recursion_analysis"},
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

# What `utils` passes on, and what `analysis_utils` is made of.
PLUMBING = {"utils", "analysis_inputs", "memory_tracker", "model_loading", "result_files"}
DRAWING = {
    "analysis_panels", "analysis_utils", "comparison_figures", "drawing", "faithfulness_figures",
    "figure_pages", "finding_figures", "long_memory_figures", "memory_figures", "memory_panels",
    "neuron_figures", "panel_primitives", "recursive_visualizer",
}  # fmt: skip

# Functions in which a command talks to the terminal.
COMMANDS = {"main", "_main", "_command", "_run"}

TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".cff", ".jinja"}

# These read stored results: no model, no step of the analysis.
READERS = {
    "recursive_visualizer", "recursive_analysis_report", "comparison_figures", "comparison_report"
}  # fmt: skip


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_names(tree: ast.Module) -> set[str]:
    """Top-level names of everything imported, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


IMPORTS = {name: imported_names(tree_of(path)) for name, path in MODULES.items()}


@cache
def reached_from(name: str) -> set[str]:
    """Modules of the suite that importing this one brings in; itself only if there is a cycle."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        for other in IMPORTS[waiting.pop()] & set(MODULES):
            if other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached


def parameters(items):
    """The same items, each named by its file in the test's report."""
    return [pytest.param(item, id=getattr(item, "name", item)) for item in items]


each_module = pytest.mark.parametrize("name", parameters(MODULES))
each_source = pytest.mark.parametrize("path", parameters([*MODULES.values(), *SCRIPTS]))
each_file = pytest.mark.parametrize("path", parameters([*MODULES.values(), *SCRIPTS, *TESTS]))


@each_module
def test_no_module_imports_itself_by_a_detour(name):
    assert name not in reached_from(name)


@pytest.mark.parametrize("name", sorted(set(LEVEL) & set(MODULES)))
def test_imports_point_down_the_spine(name):
    reached = reached_from(name) & set(LEVEL)
    assert not {other for other in reached if LEVEL[other] >= LEVEL[name]}


def test_plumbing_and_statistics_know_nothing_of_the_analyses():
    for name in PLUMBING & set(MODULES):
        assert reached_from(name) <= PLUMBING
    assert reached_from("analysis_utils") <= PLUMBING | {"drawing"}
    assert reached_from("drawing") == set()


def test_the_scan_knows_no_model():
    parts = reached_from("selective_scan") - PLUMBING
    assert parts <= {"implicit_attention", "scan_operands"}
    for name in {"selective_scan"} | parts:
        assert "transformers" not in IMPORTS[name]


def test_readers_of_results_load_no_model_and_run_no_analysis():
    for name in READERS & set(MODULES):
        assert not reached_from(name) & (set(LEVEL) - {"utils"})
        used = {node.id for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Name)}
        assert not used & {"load_model", "load_tokenizer", "resolve_model"}


@each_source
def test_hooks_are_registered_in_one_place(path):
    if path.stem != "utils":
        assert not uses_of_attributes(path, "register_\\w*hook\\w*")


@each_module
def test_mixers_are_known_to_their_modules(name):
    if name not in {"mamba_mixers", "mixer_families", "mixer_replay"}:
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
    if path.stem not in DRAWING:
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
            assert called not in {"torch.load", "eval", "exec", "os.system"}, place
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
    folders = [
        ROOT,
        *(
            ROOT / name
            for name in ("tests", "demo_model", "benchmarks", "examples", "report_template")
        ),
    ]
    files = [
        path for folder in folders for path in folder.glob("*") if path.suffix in TEXT_SUFFIXES
    ]
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
    assert reached_from("ssm_component_extractor") >= {"mamba_mixers", "selective_scan", *PLUMBING}
    assert uses_of_attributes(MODULES["utils"], "register_forward_hook")
    assert uses_of_attributes(MODULES["mixer_families"], "A_log")


def test_the_package_and_the_readme_name_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"py-modules = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    assert listed is not None
    assert re.findall(r'"(\w+)"', listed[1]) == sorted(MODULES)
    assert [name for name in MODULES if f"`{name}.py`" not in readme] == []
    assert [name for name in MODULES if not (ROOT / "tests" / f"test_{name}.py").exists()] == []
