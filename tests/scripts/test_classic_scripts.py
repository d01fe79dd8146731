"""The scripts of the classic tables, run by an interpreter that trains nothing: what they ask for is understood."""

import contextlib
import os
import signal
import subprocess

import pytest

from distiller_zoo import method_dict
from helper.options.parse import parse_students
from scripts.slurm.submit import commands_of
from tests.scripts.test_recipe_scripts import TRAIN, understood
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter

STUDIES = {  # script -> students it trains, what comes after training
    "short": (8, ["make_table"]),
    "scaled": (3 * 6, ["make_table", "report", "plot"]),
    "zoo": (None, ["make_table"]),
}
TEACHER = "save/teachers/models/resnet20_vanilla_cifar100_trial_0"


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(tmp_path_factory.mktemp("classic"), answer=f"echo 'result in {TEACHER}'")


def students(calls):
    return [
        lane for program, *argv in calls if program in TRAIN for lane in sum(parse_students(argv, teacher=False), [])
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(name, interpreter, monkeypatch):
    count, after = STUDIES[name]
    calls = interpreter.run(f"cifar100/{name}_study.sh", "T.pth", "DATA", "SAVE", "1")
    assert (interpreter.tree / "SAVE" / "study.log").exists()
    lanes = students(calls)
    assert count in (None, len(lanes))
    assert len({str(sorted(lane.identity.items(), key=str)) for lane in lanes}) == len(lanes)  # nothing comes twice
    assert {(lane.data.source.data_folder, lane.run.save_root, lane.training.schedule.epochs) for lane in lanes} == {
        ("DATA", "SAVE", 10)
    }
    assert all(lane.teacher.path_t == ["T.pth"] for lane in lanes if lane.distill != "vanilla")
    assert [call[0] for call in calls if call[0] not in TRAIN] == [f"scripts/{program}.py" for program in after]
    for program, *argv in calls[-len(after) :]:
        args = understood(program, argv, monkeypatch)
        assert [str(root) for root in args.root] == ["SAVE"]
        assert str(args.out).startswith(f"results/cifar100_{name}_resnet20_resnet8")


def test_the_zoo_study_leaves_out_what_needs_other_networks_or_no_teacher(interpreter):
    calls = interpreter.run("cifar100/zoo_study.sh", "T.pth", "DATA", "SAVE", "1")
    elsewhere = {
        *("cakd", "dask", "logits", "deit"),  # for networks of other kinds
        *("dml", "baseline", "queue"),  # several students, another name of vanilla, no classifier
        *(m for m in method_dict if m[:5] in ("hsakd", "dpcd", "dpcd_")),
    }
    assert {lane.distill for lane in students(calls)} == set(method_dict) - elsewhere
    calls = interpreter.run("cifar100/zoo_study.sh", "T.pth", "DATA", "SAVE", "1", METHODS="recent")
    assert {"vanilla", "kd", "sp", "hkd", "ttm", "deepkd", "fcfd"} < {lane.distill for lane in students(calls)}
    assert calls[-1][calls[-1].index("--out") + 1] == "results/cifar100_zoo_recent_resnet20_resnet8.md"


def test_an_entry_of_the_zoo_study_may_have_a_rate_and_a_flag(tmp_path):
    interpreter = Interpreter(tmp_path)
    study = interpreter.tree / "scripts/cifar100/zoo_study.sh"
    study.write_text(study.read_text().replace(" ldrld:", " ldrld@0.01:"))
    trained = students(interpreter.run("cifar100/zoo_study.sh", "T.pth", "DATA", "SAVE", "1", METHODS="recent"))
    lanes = [lane for lane in trained if lane.identity.get("ldrld_as_published")]
    assert [lane.training.schedule.learning_rate for lane in lanes] == [0.01, 0.01]


def test_flags_behind_a_study_reach_every_training(interpreter):
    calls = interpreter.run("cifar100/scaled_study.sh", "T.pth", "DATA", "SAVE", "1", "--max_steps", "3")
    assert {lane.training.loop.max_steps for lane in students(calls)} == {3}


def test_the_teachers(interpreter):
    calls = interpreter.run("teachers/train_teachers.sh", "--data_folder", "DATA")
    settings = [parse_students(argv, teacher=True)[0][0] for _, *argv in calls]
    assert {s.data.source.data_folder for s in settings} == {"DATA"} and len(settings) == 6


def test_the_quickstart(interpreter, monkeypatch):
    *calls, table, plot = interpreter.run("quickstart.sh", "-v", "--trial", "3")
    (argv,) = (argv for program, *argv in calls if program == "train_teacher.py")
    assert parse_students(argv, teacher=True)[0][0].run.trial == "3"
    lanes = students(call for call in calls if call[0] == "train_student.py")
    assert sorted((lane.distill, lane.run.trial) for lane in lanes) == [
        (method, trial) for method in ("kd", "simkd", "vanilla") for trial in "345"
    ]
    assert {lane.identity["few_ratio"] for lane in lanes} == {0.1}
    assert {str(lane.teacher.path_t) for lane in lanes if lane.distill != "vanilla"} == {
        str([f"{TEACHER}/resnet20_best.pth"])
    }
    assert understood(*table[:1], table[1:], monkeypatch).dataset == "digits"
    assert str(understood(*plot[:1], plot[1:], monkeypatch).out) == "save/quickstart.png"


def test_the_quickstart_reads_its_table_where_it_trained(tmp_path, monkeypatch):
    answer = "echo 'result in a b/teachers/models/resnet20_vanilla_digits_trial_0'"
    *_, table, _ = Interpreter(tmp_path, answer).run("quickstart.sh", "--save_root", "a b")
    args = understood(*table[:1], table[1:], monkeypatch)
    assert [str(root) for root in args.root] == ["a b"] and args.dataset == "digits"


LOG = """case $1 in train_*) ;; *) exit ;; esac
echo ' * Epoch 60, Acc@1 99.0'
case $1 in *student*) echo '[kd] last epoch Acc@1 98.15, best accuracy: 99.00 (epoch 3, selected on test), 0:12'
echo '[kd] result in S/students/models/S:resnet8_T:resnet20_digits_kd_r:1.0_a:1.0_b:0.0_1_few_ratio:0.1' ;;
*) echo 'last epoch Acc@1 97.00, best accuracy: 98.00 (epoch 2, selected on test), 0:03'
echo 'result in S/teachers/models/resnet20_vanilla_digits_trial_4_image_size:16' ;; esac
echo 'already finished: S/teachers/models/resnet20_vanilla_digits_trial_0 holds the result (--overwrite)'"""


def test_the_quickstart_shows_one_line_a_run(tmp_path):
    said = Interpreter(tmp_path / "a", LOG).bash("quickstart.sh")
    assert said.returncode == 0, said.stderr
    assert "kd, seed 1: 98.15 %, 0:12\n" in said.stdout and "Epoch 60" not in said.stdout
    assert "teacher, seed 4: 97.00 %, 0:03\n" in said.stdout
    assert "finished before: resnet20_vanilla_digits_trial_0\n" in said.stdout
    loud = Interpreter(tmp_path / "b", LOG).bash("quickstart.sh", "-v")
    assert " * Epoch 60, Acc@1 99.0\n" in loud.stdout


def test_the_quickstart_shows_what_went_wrong(tmp_path):
    said = Interpreter(tmp_path, "echo 'no such thing' >&2; exit 2").bash("quickstart.sh")
    assert said.returncode == 2 and said.stderr.count("no such thing") == 1


def test_the_quickstart_waits_for_all_teachers(tmp_path, monkeypatch):
    """With --trials, one process trains several; the last one teaches."""
    teachers = "for i in 0 1; do echo result in S/teachers/models/T_$i; sleep 0.3; done"
    calls = Interpreter(tmp_path, f"case $1 in train_teacher.py) {teachers} ;; esac").run(
        "quickstart.sh", "--trials", "2"
    )
    lanes = students(call for call in calls if call[0] == "train_student.py")
    taught = {str(lane.teacher.path_t) for lane in lanes if lane.distill != "vanilla"}
    assert len(lanes) == 6 and taught == {str(["S/teachers/models/T_1/resnet20_best.pth"])}


def test_no_part_of_the_quickstart_outlives_it(tmp_path):
    """Its folder of logs is deleted when it is terminated; its trainings end, and nothing waits for their logs."""
    interpreter = Interpreter(tmp_path, """case $1 in train_teacher.py) rm -r "$logs"; esac""")
    quickstart = subprocess.Popen(
        ["bash", interpreter.tree / "scripts" / "quickstart.sh"],
        env={**os.environ, "VIRTUAL_ENV": str(interpreter.venv)},
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        assert quickstart.wait(60) == 1 and b"/code" not in quickstart.stderr.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(quickstart.pid, signal.SIGKILL)


def test_the_example_of_a_grid():
    for program, *argv in commands_of(ROOT / "scripts" / "slurm" / "grid_example.txt"):
        assert parse_students(argv, teacher=program == "train_teacher.py")
