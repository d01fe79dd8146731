"""CONTRIBUTING, followed to the letter: a method, a model, a data set and a flag, in the places it names."""

import json
import re
import shutil
import subprocess

import pytest

from tests.support.commands import ENV, ROOT

TESTS = ("tests/distiller_zoo/test_contract.py", "tests/helper/test_sync.py", "tests/distiller_zoo/test_methods.py")
FOLDERS = ("core", "crd", "dataset", "distiller_zoo", "helper", "models", "scripts", "tests")
METHOD = '''"""Cosine (Example et al., 2026): one minus the cosine of the logits."""

from dataclasses import dataclass

from torch.nn import functional as F

from core.option import option
from distiller_zoo.base import Distiller


class Cosine(Distiller):
    name = "cosine"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1.0
        power: float = option(1.0, "exponent of the distance")

    def terms(self, s, t, batch, progress):
        return {"cosine": (1 - F.cosine_similarity(s["logits"], t["logits"])).pow(self.cfg.power).mean()}
'''
MODEL = '''"""Two convolutions."""

from torch import nn

from core.protocols import ModelSpec, Tap


def build(num_classes=100):
    first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


spec = ModelSpec("two_convs", build, {"stage1": Tap("0"), "pooled": Tap("3", kind="vector")}, ("stage1", "pooled"), "4")
'''
DATA = '''"""Noise of two classes."""

import torch

from dataset.images.resident import ResidentData, Split


def load(options):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 16, 16, 3), dtype=torch.uint8, generator=g)
    part = Split(images, torch.arange(64) % 2)
    return ResidentData("noise", ("a", "b"), part, part, flips=True)
'''


def add_line(path, before, line):
    text = path.read_text()
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, line + before))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("clone")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(file, root)
    (root / "distiller_zoo" / "cosine.py").write_text(METHOD)
    (root / "models" / "two_convs.py").write_text(MODEL)
    (root / "dataset" / "images" / "noise.py").write_text(DATA)
    add_line(
        root / "distiller_zoo" / "__init__.py", '        "kd": ', '        "cosine": "distiller_zoo.cosine:Cosine",\n'
    )
    add_line(
        root / "models" / "__init__.py", '        "MobileNetV2": ', '        "two_convs": "models.two_convs:spec",\n'
    )
    add_line(root / "dataset" / "__init__.py", '        "digits": ', '        "noise": "dataset.images.noise:load",\n')
    optim = root / "helper" / "training" / "optim.py"
    add_line(optim, "    clip_grad: float = option(", '    shout: str = option("", "say this", role=RESULT)\n')
    return root


@pytest.fixture
def run(clone, commands):
    """Python code in the clone: in a process that has imported torch, but nothing of this repository."""
    forget = (
        "import os, sys; os.environ['PYTHONPATH'] = os.getcwd()\n"
        f"sys.path[:] = [p for p in sys.path if p not in {(str(ROOT), str(ROOT / 'tests' / 'support'))}]\n"
        f"for m in [m for m in sys.modules if m.partition('.')[0] in {(*FOLDERS, 'train_student')}]:\n"
        "    del sys.modules[m]\n"
    )

    def run(code):
        done = subprocess.run(
            [commands.python, "-c", forget + code], cwd=clone, env=ENV, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_one_run_of_all_that_was_added(clone, run):
    common = ("--dataset", "noise", "--epochs", 1, "--max_steps", 1, "--batch_size", 16, "--tb_backend", "none")
    train_teacher = ("--model", "two_convs", *common)
    train_student = ("--distill", "cosine", "-b", 1, "--model_s", "two_convs", "--cosine_power", 2, "--shout", "hello")
    code = (
        "import glob, train_student\n"
        f"train_student.main({list(map(str, train_teacher))}, is_teacher=True)\n"
        "teacher = glob.glob('save/teachers/models/*/two_convs_last.pth')\n"
        f"train_student.main(['--path_t', *teacher, *{list(map(str, (*train_student, *common)))}])"
    )
    run(code)  # in one process, whose start takes longer than both trainings
    (folder,) = clone.glob("save/students/models/*")
    settings = json.loads((folder / "args.json").read_text())["settings"]
    assert (settings["cosine_power"], settings["shout"]) == (2.0, "hello")
    assert "cosine_power" in folder.name and "shout" in folder.name
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["train_cosine"] > 0


def test_listings_and_contract_tests_follow(run):
    code = (
        "from helper.options import listing; print(listing.page()); "
        "from scripts.cifar100 import method; method.main(['cosine']); "
        "import pytest, sys; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{TESTS}, '-k', 'cosine']))"
    )
    out = run(code)
    assert re.search("^cosine", out, re.M) and "--distill cosine" in out and "two_convs" in out and "noise" in out
    assert re.search(r"\d+ passed", out)
