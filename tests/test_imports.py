"""The floors: who may import whom, read off the folders and the import statements (lazy ones too). Runs nothing."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# bottom up; parts of one row do not import each other
FLOORS = (
    ("core",),
    ("models", "dataset", "crd"),
    ("distiller_zoo",),
    ("helper.machine",),
    ("helper.runs",),
    ("helper.networks",),
    ("helper.evaluation",),
    ("helper.training",),
    ("helper.deploy",),
    ("helper.options",),
    ("helper.tables",),
    ("helper.opening",),
    ("helper.session",),
    ("scripts", "train_student", "test_model", "eval_rep", "predict"),
    ("train_teacher",),  # train_student.py without a teacher
)
LEVEL = {part: level for level, row in enumerate(FLOORS) for part in row}
PACKAGES = ("core", "models", "dataset", "crd", "distiller_zoo", "helper", "scripts")


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for path in [*ROOT.glob("*.py"), *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))]
}


def imports_of(path):
    """The project modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


@pytest.fixture(scope="module")
def graph():
    return {name: imports_of(path) for name, path in MODULES.items()}


def floor_of(name):
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "helper" else parts[0]


def test_every_module_stands_on_a_floor():
    assert {floor_of(name) for name in MODULES} - {"helper"} <= LEVEL.keys()


def test_imports_go_down(graph):
    for name, imports in graph.items():
        for other in imports:
            mine, theirs = floor_of(name), floor_of(other)
            assert theirs == mine or LEVEL[theirs] < LEVEL[mine], f"{name} imports {other}"


def test_no_circle(graph):
    """Modules whose imports are all done go, until none is left."""
    left = {name: set(imports) for name, imports in graph.items()}
    while done := [name for name, imports in left.items() if not imports & left.keys() - {name}]:
        for name in done:
            del left[name]
    assert not left, f"these import each other in a circle, or such a circle: {sorted(left)}"


def test_no_method_imports_another(graph):
    for name in (n for n in MODULES if n.startswith("distiller_zoo.")):
        shared = ("distiller_zoo._", "distiller_zoo.base")
        stray = [n for n in graph[name] if n.startswith("distiller_zoo.") and not n.startswith(shared)]
        assert not stray, f"{name} imports {stray}"


def test_every_file_of_the_zoos_is_an_entry_or_begins_with_an_underscore():
    from distiller_zoo import method_dict

    entries = {path.split(":")[0] for path in method_dict.table.values()}
    listed = {n for n in MODULES if n.startswith("distiller_zoo.") and not n.startswith("distiller_zoo._")}
    assert listed == entries | {"distiller_zoo.base"}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("reference_*.py")), ids=lambda p: p.name)
def test_a_literal_transcription_imports_nothing_of_the_project(path):
    """A list of what is allowed: helpers in tests/ import the project without naming a package of it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    assert modules <= {"__future__", "math", "numpy", "tests.support.reference_losses", "torch", "torch.nn.functional"}


def test_entry_points_are_thin_and_name_no_method_or_model():
    from dataset import dataset_dict
    from distiller_zoo import method_dict
    from models import model_dict

    for name in ("train_teacher.py", "train_student.py"):
        text = (ROOT / name).read_text()
        assert len(text.splitlines()) <= 60
        code = ast.parse(text)
        strings = {n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not strings & {*method_dict, *model_dict, *dataset_dict}


def test_no_branch_on_a_method_outside_its_file():
    pattern = re.compile(r"(args|opt|cfg|self|settings)\.(distill|method)(\.name|_name)? *([!=]=|(not )?in\b)")
    assert all(map(pattern.search, ('if settings.distill == "kd":', "if self.method.name not in NAMES:")))
    for name, path in MODULES.items():
        if name.startswith(("core", "helper", "models", "dataset", "crd")):
            assert not pattern.search(path.read_text()), path


def functions():
    for name, path in MODULES.items():
        if not name.startswith("scripts"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield name, node


def test_functions_are_neither_wide_nor_long():
    """At most 8 parameters everywhere below scripts/; at most 70 lines in the engine."""
    for name, node in functions():
        a = node.args
        named = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        count = len(named) - (named[:1] in (["self"], ["cls"]))
        assert count <= 8, f"{name}.{node.name} takes {count} parameters"
        if name.startswith(("core", "helper")):
            length = node.end_lineno - node.lineno + 1
            assert length <= 70, f"{name}.{node.name} has {length} lines"


def test_what_is_imported_only_where_it_is_asked_for(commands):
    """A recipe imports no loader, a method no other, a loader and the list of networks no optional package.

    In a process that has imported torch, but nothing of this repository.
    """
    code = """
import sys

optional = {"torchvision", "timm", "sklearn", "PIL"}
for m in [m for m in sys.modules if m.partition(".")[0] in {*FOLDERS, *optional}]:
    del sys.modules[m]
import dataset

dataset.recipe("digits"), dataset.recipe("imagenet")
assert not {m for m in sys.modules if m.startswith("dataset.")} - {"dataset.recipes"}, sys.modules
from distiller_zoo import method_dict
from models import model_dict

method_dict["kd"]
named = {m for m in sys.modules if m.startswith(("distiller_zoo.", "torchvision", "sklearn", "crd"))}
assert {m for m in named if not m.startswith("distiller_zoo._")} == {"distiller_zoo.base", "distiller_zoo.kd"}, named
assert len([model_dict[name] for name in model_dict]) > 40
[dataset.dataset_dict[name] for name in dataset.dataset_dict]
assert not optional & {*sys.modules}, sys.modules
"""
    code = f"FOLDERS = {[*PACKAGES, 'tests']}\n{code}"
    subprocess.run([commands.python, "-c", code], cwd=ROOT, check=True)
