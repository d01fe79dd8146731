"""Who may import whom (docs: the map of the house). Reads import statements, runs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("models", "crd", "dataset", "distiller_zoo")
# no methods, but what several have in common
SHARED = ("distiller_zoo.base", "distiller_zoo._heads", "distiller_zoo.rows")
VOCABULARY = ("core.protocols", "core.registry")
ALLOWED = {  # package -> project modules it may import, beside its own
    "models": (*VOCABULARY, "models._gaf"),  # a function of tensors, part of a network that is exported
    "crd": VOCABULARY,
    "dataset": VOCABULARY,
    "distiller_zoo": (
        *VOCABULARY,
        "crd",
        "distiller_zoo._randaugment",
        "distiller_zoo._multiview",
    ),  # functions of tensors, for other views
}


def project_imports(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
    return [n for n in names if n.split(".")[0] in (*PARTS, "helper", "scripts", "tests")]


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", [p for part in PARTS for p in files(part)], ids=lambda p: str(p.relative_to(ROOT)))
def test_parts_import_the_vocabulary_alone(path):
    package = path.relative_to(ROOT).parts[0]
    for name in project_imports(path):
        allowed = name.startswith(package) or any(name == a or name.startswith(a + ".") for a in ALLOWED[package])
        assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", files("distiller_zoo"), ids=lambda p: p.name)
def test_no_method_imports_another(path):
    if path.name in ("__init__.py", "base.py"):
        return
    for name in project_imports(path):
        assert not name.startswith("distiller_zoo.") or name in SHARED, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("reference_*.py")), ids=lambda p: p.name)
def test_a_literal_transcription_imports_nothing_of_the_project(path):
    """A list of what is allowed: helpers in tests/ import the project without naming a package of it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    assert modules <= {"__future__", "math", "numpy", "reference_losses", "torch", "torch.nn.functional"}


def test_vocabulary_imports_nothing_of_the_project():
    assert project_imports(ROOT / "core/protocols.py") == []
    assert project_imports(ROOT / "core/registry.py") == ["core.protocols"]


def test_engine_does_not_import_scripts():
    for path in files("helper"):
        assert not [n for n in project_imports(path) if n.split(".")[0] in ("scripts", "tests")], path


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
    import re

    pattern = re.compile(r"(args|opt|cfg|self|settings)\.(distill|method)(\.name|_name)? *(==|in)\b")
    for package in ("helper", "models", "dataset", "crd"):
        for path in files(package):
            assert not pattern.search(path.read_text()), path


def test_asking_for_one_method_imports_no_other():
    code = (
        "import sys; from distiller_zoo import method_dict; from models import model_dict; method_dict['kd']; "
        "print([m for m in sys.modules if m.startswith(('distiller_zoo.', 'torchvision', 'sklearn', 'crd'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert eval(out) == ["distiller_zoo.base", "distiller_zoo.kd"] or set(eval(out)) == {
        "distiller_zoo.base",
        "distiller_zoo.kd",
    }
