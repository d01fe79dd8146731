"""scripts/cifar100/full_cells.sh asks for the experiments that the published cells are, and resumes them."""

import json
import re
import shlex

import pytest

from helper.options.parse import parse_students
from helper.tables.published import read_table
from tests.support import image_sets
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter

ROWS = {"vanilla": 69.06, "kd": 70.66, "dkd": 71.97, "crd": 71.16, "at": 70.55, "pkt": 70.34, "dist": 71.75}


def test_every_student_has_its_published_number(tmp_path):
    calls = Interpreter(tmp_path).run("cifar100/full_cells.sh", "a b.pth", "DATA", "SAVE", "--max_steps", "3")
    assert [call[0] for call in calls] == ["train_student.py", "scripts/make_table.py"] * 3
    tables = [ROOT / word if word.endswith(".toml") else word for word in calls[1] if re.search("same|toml", word)]
    cells = [cell for name in tables for cell in read_table(str(name)).cells if cell.student == "resnet20"]
    lanes = [lane for call in calls[::2] for lane in sum(parse_students(call[1:], teacher=False), [])]
    assert [(lane.distill, lane.run.trial) for lane in lanes] == [
        ("vanilla", "0"), ("kd", "0"), *((method, "0") for method in ("dkd", "crd", "at", "pkt", "dist")),
        ("vanilla", "1"), ("kd", "1"),
    ]  # fmt: skip
    for lane in lanes:
        assert lane.training.loop.max_steps == 3 and lane.training.schedule.epochs == 240
        identity = json.loads(json.dumps(lane.identity))
        teacher = None if lane.distill == "vanilla" else "resnet56"
        assert not any(cell.fits(identity, teacher) for cell in cells)  # three steps are another experiment
        identity["max_steps"] = cells[0].settings.training.loop.max_steps
        assert {cell.published for cell in cells if cell.fits(identity, teacher)} == {ROWS[lane.distill]}


def test_the_plan_is_what_runs(tmp_path):
    interpreter = Interpreter(tmp_path)
    said = interpreter.bash("cifar100/full_cells.sh", "plan")
    assert said.returncode == 0 and not (tmp_path / "venv" / "asked").read_text(), said.stderr
    calls = interpreter.run("cifar100/full_cells.sh", "TEACHER.pth", "DATA_FOLDER", "SAVE_ROOT")
    assert [shlex.split(line) for line in said.stdout.splitlines()] == [["python", *call] for call in calls[::2]]


@pytest.mark.slow
def test_toy_cells_end_in_a_table_and_resume(commands, tmp_path):
    """The three groups on noise, two epochs of one step; a second run trains nothing."""
    data = image_sets.cifar100(tmp_path)
    common = ("--dataset", "cifar100", "--data_folder", data, "--few_ratio", 1, "--epochs", 2, "--max_steps", 1)
    trained = commands("train_teacher.py", *common, "--model", "resnet56", "--lr_decay_epochs", 1,
                       "--save_root", tmp_path / "save")  # fmt: skip
    assert trained.code == 0, trained.err
    (teacher,) = (tmp_path / "save" / "teachers" / "models").glob("*trial_0*/resnet56_best.pth")
    toy = ("--epochs", "2", "--lr_decay_epochs", "1", "--max_steps", "1", "--batch_size", "16", "--few_ratio", "1")
    plan = Interpreter(tmp_path / "i").run("cifar100/full_cells.sh", str(teacher), str(data), str(tmp_path / "s"), *toy)
    for _ in range(2):
        said = ""
        for program, *argv in plan:
            done = commands(program, *[str(ROOT / w) if w.endswith(".toml") else w for w in argv])
            assert done.code == 0, done.err
            said += done.out
    assert said.count("already finished") == 9
    text = (tmp_path / "s" / "full_cells.md").read_text()
    assert "Seeds: 0, 1." in text and "Hardware:" in text and "| dkd" in text and "published" in text
