"""What shell scripts have in common: --help, the order of words and flags, --dry_run, output into a file."""

import os
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


@pytest.mark.parametrize("name", TRAINING)
def test_a_dry_run_ends_well(name, interpreter):
    done = interpreter.bash(name, *TRAINING[name], "--dry_run", KINETICS="DATA", SAVE="SAVE", GPUS="0")
    assert done.returncode == 0, done.stderr
    lines = (interpreter.venv / "asked").read_text().splitlines()
    calls = [line.split("\0")[:-1] for line in lines]
    assert all("--dry_run" in call for call in calls if call[0].startswith("train_")), calls
    assert calls or "is not trained yet" in done.stdout
    assert all(call[0].startswith("train_") for call in calls), "nothing reads what was not written"


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
