"""What shell scripts have in common: --help, the order of words and flags, --dry_run, output into a file."""

import os
import re
import subprocess

import pytest

from helper.options import flags
from tests.scripts.test_recipe_scripts import SCRIPTS as RECIPES
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter

SOURCED = {"setup.sh", "words.sh", "cakd/common.sh", "video/common.sh", "hsakd/run.sh"}
ALL = sorted(str(p.relative_to(ROOT / "scripts")) for p in (ROOT / "scripts").rglob("*.sh"))
HANDED_ON = {"run_table.sh", "test.sh", "teachers/fetch_teachers.sh"}  # to a program with a --help of its own
HELPED = [name for name in ALL if name not in SOURCED | HANDED_ON]
TRAINING = {name: given for name, (given, _) in RECIPES.items()} | {
    "quickstart.sh": ("-v",),
    "teachers/train_teachers.sh": (),
    **{
        f"hsakd/{name}.sh": (".",)
        for name in ("few_shot", "teachers", "online_cifar", "same_style", "dpcd", "imagenet")
    },
}
STUDIES = {  # that print into a file of their own
    "cakd/short_study.sh": ("CNN.pth", "DATA", "IMAGES", "SAVE", "1"),
    "cifar100/full_cells.sh": ("T.pth", "DATA", "SAVE"),
    "cifar100/patient_teachers.sh": ("vanillakd", "T.pth", "DATA", "SAVE"),
    "cifar100/scaled_study.sh": ("T.pth", "DATA", "SAVE", "2"),
    "cifar100/short_study.sh": ("T.pth", "DATA", "SAVE"),
    "studies/unlabelled_study.sh": ("T.pth", "DATA", "SAVE"),
    "studies/headless_study.sh": ("SAVE",),
    "cifar100/zoo_study.sh": ("T.pth", "DATA", "SAVE"),
    "gpu_table.sh": ("teacher", "scripts"),
    "hsakd/short_study.sh": ("T.pth", "DATA", "TINY", "SAVE"),
    "hsakd/different_style.sh": (".",),
    "hsakd/online_imagenet.sh": (".",),
    "hsakd/transfer.sh": (".",),
    "studies/imagenette_study.sh": ("DATA", "SAVE"),
    "studies/int8_study.sh": ("S.pth", "T.pth", "DATA", "UTD", "SAVE"),
    "video/short_study.sh": ("CLIPS", "SAVE"),
    "vskd/short_study.sh": ("UTD", "BERKELEY", "SAVE"),
}
RESULT = """case "$1 $*" in train_*--dry_run*) echo dry ;; train_*) mkdir -p save/x; echo "result in save/x" ;; esac"""


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(tmp_path_factory.mktemp("interpreter"), RESULT)


def test_flags_txt_is_up_to_date():
    assert flags.VALUES.read_text() == flags.values(), "run: python -m helper.options.flags"


@pytest.mark.parametrize("name", HELPED)
def test_help_prints_the_header(name, interpreter):
    header = (ROOT / "scripts" / name).read_text().split("\n")[1:]
    for argv in (("--help",), ("-h",)):
        done = interpreter.bash(name, *argv)
        assert done.returncode == 0 and not done.stderr and not (interpreter.venv / "asked").read_text()
        lines = done.stdout.splitlines()
        assert lines and f"# {lines[0]}" == header[0] and len(lines) < 40
        assert not any(line.startswith(("source", "set ", "exec")) for line in lines)


@pytest.mark.parametrize("name", sorted(HANDED_ON))
def test_others_hand_the_question_on(name, interpreter):
    assert interpreter.run(name, "--help")[-1][-1] == "--help"


FLAGS = ("--weight", "cakd=1", "cls=2", "--lr=0.1", "--trial", "1", "--dry_run")


@pytest.mark.parametrize(
    "argv",
    [
        ("DATA", "SAVE", "T.pth", "code", "ResNet18", *FLAGS),
        (*FLAGS, "DATA", "SAVE", "T.pth", "code", "ResNet18"),
        ("DATA", *FLAGS, "SAVE", "T.pth", "code", "ResNet18"),
        ("DATA", "SAVE", "T.pth", *FLAGS[4:], "code", "ResNet18", *FLAGS[:4]),
    ],
)
def test_the_order_of_words_and_flags(argv, interpreter):
    (call,) = interpreter.run("cakd/imagenet_cakd.sh", *argv)
    values = {flag: call[call.index(flag) + 1] for flag in ("--data_folder", "--save_root", "--path_t", "--model_s")}
    assert list(values.values()) == ["DATA", "SAVE", "T.pth", "ResNet18"]
    assert call[call.index("--cakd_variant") + 1] == "code" and {"--dry_run", "--lr=0.1", "cls=2"} <= set(call)


def test_optional_words_may_be_left_out(interpreter):
    (call,) = interpreter.run("cakd/imagenet_cakd.sh", "DATA", "SAVE", "T.pth", "--trial", "3")
    assert call[call.index("--cakd_variant") + 1] == "paper" and call[-2:] == ["--trial", "3"]
    assert call[call.index("--model_t") + 1] == "torchvision:vit_b_16"


def test_a_flag_may_hold_its_value(interpreter):
    (call,) = interpreter.run("cakd/imagenet_cakd.sh", "--clip_cache=/a b/c", "DATA", "SAVE", "T.pth")
    assert call[-1] == "--clip_cache=/a b/c" and call[call.index("--path_t") + 1] == "T.pth"


@pytest.mark.parametrize("name", [*TRAINING, *STUDIES])
def test_a_dry_run_ends_well(name, interpreter):
    words, there = (TRAINING | STUDIES)[name], set(interpreter.tree.iterdir())
    done = interpreter.bash(name, *words, "--max_steps", "3", "--dry_run", KINETICS="DATA", SAVE="SAVE", GPUS="0")
    assert done.returncode == 0 and not done.stderr, done.stderr
    calls = [line.split("\0")[:-1] for line in (interpreter.venv / "asked").read_text().splitlines()]
    calls = [call[call.index("--standalone") :] if call[0] == "-m" else call for call in calls]  # of torchrun
    trainings = [call for call in calls if any(re.match(r"train_\w+\.py", word) for word in call)]
    assert all({"--dry_run", "--max_steps"} <= set(call) for call in trainings), trainings
    assert trainings or "is not trained yet" in done.stdout or "trains nothing" in done.stdout
    others = {call[0] for call in calls if call not in trainings}
    assert others <= {"scripts/video/utd_lists.py"}, "nothing reads what was not written"
    assert set(interpreter.tree.iterdir()) == there, "nothing is written"


def test_no_script_that_trains_is_left_out():
    elsewhere = {"bench/bench_cpu.sh", "bench/bench_gpu.sh", "check.sh", "dev/two_hosts.sh"}
    assert set(HELPED) - elsewhere == TRAINING.keys() | STUDIES.keys()


@pytest.mark.parametrize("name", sorted(HANDED_ON))
def test_a_question_installs_nothing(name, tmp_path):
    interpreter = Interpreter(tmp_path)
    (interpreter.venv / ".retort-requirements.txt").unlink()
    header = (ROOT / "scripts" / name).read_text().split("\n")[1]
    for flag in ("-h", "--help"):
        done = interpreter.bash(name, flag)
        assert done.returncode == 0 and done.stdout.startswith(header.removeprefix("# ")), done
        assert not (interpreter.venv / "asked").read_text()


@pytest.mark.parametrize("name", TRAINING)
def test_output_goes_to_a_file_without_loss(name, interpreter, tmp_path):
    """As nohup, cron and sbatch do it: the file has content already, and keeps it."""
    log = tmp_path / "log"
    log.write_text("before\n")
    env = {**os.environ, "VIRTUAL_ENV": str(interpreter.venv), "KINETICS": "DATA", "SAVE": "SAVE", "GPUS": "0"}
    (interpreter.venv / "asked").write_text("")
    (interpreter.tree / "save/x").mkdir(parents=True, exist_ok=True)
    (interpreter.tree / "save/x/resnet8x4_double_best.pth").touch()
    with log.open("a") as file:
        command = ["bash", str(interpreter.tree / "scripts" / name), *TRAINING[name]]
        code = subprocess.run(command, env=env, stdout=file, stderr=subprocess.PIPE, text=True)
    assert code.returncode == 0, code.stderr
    text = log.read_text()
    trainings = sum(line.startswith("train_") for line in (interpreter.venv / "asked").read_text().splitlines())
    assert text.startswith("before\n") and text.count("result in save/x") == trainings > 0


def test_an_interrupted_folder_of_images_is_made_again(tmp_path):
    """By the study that makes it: a folder that is there is complete."""
    answer = 'case $1 in *rest.py) mkdir -p "${!#}"; [ ! -e stop ] || exit 1 ;; esac'
    interpreter = Interpreter(tmp_path, answer)
    (interpreter.tree / "stop").touch()
    study = ("studies/unlabelled_study.sh", "T.pth", "DATA", "my runs")
    assert interpreter.bash(*study).returncode == 1 and not (interpreter.tree / "my runs" / "rest_0").exists()
    (interpreter.tree / "stop").unlink()
    made = [call for call in interpreter.run(*study) if call[0].endswith("rest.py")]
    assert len(made) == 3 and (interpreter.tree / "my runs" / "rest_0").is_dir()
    assert not [call for call in interpreter.run(*study) if call[0].endswith("rest.py")]


def test_a_training_leaves_no_temporary_file(tmp_path):
    """Also where the script is killed during it."""
    (tmp_path / "t").mkdir()
    interpreter = Interpreter(tmp_path / "i", f"ls {tmp_path}/t >>{tmp_path}/there; echo result in save/x")
    done = interpreter.bash("studies/headless_study.sh", "SAVE", TMPDIR=str(tmp_path / "t"))
    calls = (interpreter.venv / "asked").read_text().splitlines()
    assert done.returncode == 0 and not (tmp_path / "there").read_text()
    assert "save/x/vit_micro_cifar_best.pth" in calls[1]  # what the training said was read all the same


@pytest.mark.parametrize("name", ["scaled", "short", "zoo"])
def test_a_study_appends_to_its_log(name, tmp_path):
    """An interrupted study that resumes keeps the log of its first part."""
    interpreter = Interpreter(tmp_path, "echo trained")
    for times in (1, 2):
        assert interpreter.bash(f"cifar100/{name}_study.sh", "T.pth", "DATA", "SAVE", "1").returncode == 0
        log = (interpreter.tree / "SAVE" / "study.log").read_text()
        trainings = (interpreter.venv / "asked").read_text().count("train_student.py")
        assert log.count("trained") == times * trainings > 0
