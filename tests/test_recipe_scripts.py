"""The recipes of the families, run as scripts: every command parses and reads what a command before it writes."""

import argparse
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from interpreter import Interpreter

from helper.options import parse
from helper.runs import run_name
from models import model_for

TRAIN = ("train_teacher.py", "train_student.py")
VIT = ("T.pth", "vit_tiny_cifar", "cifar100", "DATA", "SAVE")
SCRIPTS = {  # script -> arguments, programs it calls
    "cakd/ablation.sh": (VIT, ["train_student.py"] * 4 + ["scripts/make_table.py", "scripts/cakd/robustness.py"]),
    "cakd/cifar100.sh": (("T.pth", "vit_tiny_cifar", "DATA", "SAVE"), ["train_student.py"] * 3),
    "cakd/imagenet_baseline.sh": (("DATA", "SAVE"), ["train_student.py"]),
    "cakd/imagenet_cakd.sh": (("DATA", "SAVE", "T.pth"), ["train_student.py"]),
    "cakd/imagenet_logits.sh": (("DATA", "SAVE", "T.pth"), ["train_student.py"]),
    "cakd/student_sweep.sh": (("DATA", "SAVE", "T.pth"), ["train_student.py"] * 6 + ["scripts/make_table.py"]),
    "cakd/teacher.sh": (("T.pth", "DATA", "SAVE"), ["train_student.py"]),
    "vskd/teacher.sh": (("DATA", "trial", "--epochs", "3"), ["train_teacher.py"]),
    "vskd/student.sh": (("DATA", "T.pth"), ["train_student.py"]),
    "video/tsm_teacher.sh": ((), ["train_teacher.py", "test_model.py"]),
    "video/tsm_student.sh": ((), ["train_student.py", "test_model.py"]),
    "video/tsm_distil.sh": (("T.pth", "--epochs", "3"), ["train_student.py", "test_model.py"]),
    "video/tsn_teacher.sh": ((), ["train_teacher.py", "test_model.py"]),
    "video/tsn_student.sh": ((), ["train_student.py", "test_model.py"]),
    "video/tsn_distil.sh": (("T.pth",), ["train_student.py", "test_model.py"]),
}


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(tmp_path_factory.mktemp("interpreter"))


def written_by(program: str, argv: list[str]) -> list[str]:
    """The best and the last checkpoint of a run."""
    is_teacher = program == "train_teacher.py"
    settings = parse(argv, teacher=is_teacher)
    teacher = None if is_teacher or not settings.path_t else settings.model_t
    if settings.dataset == "cifar100" and teacher:
        teacher = model_for(teacher, (3, 32, 32)).name
    kind, model = ("teachers", settings.model) if is_teacher else ("students", settings.model_s)
    folder = f"{settings.save_root}/{kind}/models/{run_name(settings, teacher, is_teacher)}"
    return [f"{folder}/{model.replace(':', '-')}_{which}.pth" for which in ("best", "last")]


def understood(program: str, argv: list[str], monkeypatch) -> argparse.Namespace:
    found = {}
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        found["args"] = real(self, *args, **kwargs)
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        importlib.import_module(program.removesuffix(".py").replace("/", ".")).main(argv)
    return found["args"]


@pytest.mark.parametrize(
    "script, gpus", [(s, "0") for s in SCRIPTS] + [(s, "0,1,2,3") for s in SCRIPTS if s.startswith("video")]
)
def test_every_command_is_understood(script, gpus, interpreter, monkeypatch):
    argv, programs = SCRIPTS[script]
    calls = interpreter.run(script, *argv, KINETICS="DATA", SAVE="SAVE", GPUS=gpus)
    assert [call[0] for call in calls] == programs
    files = []
    for program, *argv in calls:
        if program in TRAIN:
            files += written_by(program, argv)
            assert parse(argv, teacher=program == TRAIN[0]).data_folder == "DATA"
            continue
        understood(program, argv, monkeypatch)
        for pattern in (word for word in argv if re.search(r"\.pth$", word)):
            assert any(fnmatch(file, pattern) for file in files), (pattern, files)


def test_a_message_ends_where_it_is_meant_to():
    """${1:?text with {braces}} ends at the first brace, and what follows joins the value."""
    for path in Path(__file__).parents[1].glob("scripts/**/*.sh"):
        assert not re.findall(r"\$\{\w+:\?[^}]*\{[^\n]*", path.read_text()), path
