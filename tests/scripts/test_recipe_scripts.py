"""The recipes of the families, run as scripts: every command parses and reads what a command before it writes."""

import argparse
import importlib
import re
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest

from helper.options.naming import run_name
from helper.options.parse import parse
from models import model_for
from tests.support.interpreter import Interpreter

TRAIN = ("train_teacher.py", "train_student.py")
KINDS = ("teachers", "students")
SWIN, MORE = "timm:swin_large_patch4_window7_224", ("--epochs", "95")
VIT = ("T.pth", "vit_tiny_cifar", "cifar100", "DATA", "SAVE")
SCRIPTS = {  # script -> arguments, programs it calls
    "cakd/ablation.sh": (
        (*VIT, "ResNet50", "--image_size", "224"),
        ["train_student.py"] * 4 + ["scripts/make_table.py", "scripts/cakd/robustness.py"],
    ),
    "cakd/cifar100.sh": (("T.pth", "vit_tiny_cifar", "DATA", "SAVE", "ResNet50", "3", *MORE), ["train_student.py"] * 3),
    "cakd/imagenet_baseline.sh": (("DATA", "SAVE", "ResNet50", *MORE), ["train_student.py"]),
    "cakd/imagenet_cakd.sh": (("DATA", "SAVE", "T.pth", "code", "ResNet18", SWIN, *MORE), ["train_student.py"]),
    "cakd/imagenet_logits.sh": (("DATA", "SAVE", "T.pth", "ResNet50", SWIN, *MORE), ["train_student.py"]),
    "cakd/student_sweep.sh": (
        ("DATA", "SAVE", "T.pth", SWIN, *MORE),
        ["train_student.py"] * 6 + ["scripts/make_table.py"],
    ),
    "cakd/teacher.sh": (("T.pth", "DATA", "SAVE", "vit_tiny_cifar", "wrn_16_2", *MORE), ["train_student.py"]),
    "vskd/teacher.sh": (("DATA", "trial", "--epochs", "3"), ["train_teacher.py"]),
    "vskd/student.sh": (("DATA", "T.pth"), ["train_student.py"]),
    "video/tsm_teacher.sh": ((), ["train_teacher.py", "test_model.py"]),
    "video/tsm_student.sh": ((), ["train_student.py", "test_model.py"]),
    "video/tsm_distil.sh": (("T.pth", "--epochs", "3"), ["train_student.py", "test_model.py"]),
    "video/tsn_teacher.sh": ((), ["train_teacher.py", "test_model.py"]),
    "video/tsn_student.sh": ((), ["train_student.py", "test_model.py"]),
    "video/tsn_distil.sh": (("T.pth",), ["train_student.py", "test_model.py"]),
}
SEVERAL = ("video", "cakd/ablation", "cakd/imagenet", "cakd/student_sweep")  # that read $GPUS


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    answer = 'case "$1" in train_*) echo "result in RUN" ;; esac'
    return Interpreter(tmp_path_factory.mktemp("interpreter"), answer)


def written_by(program: str, argv: list[str]) -> list[str]:
    """The best and the last checkpoint of a run."""
    is_teacher = program == "train_teacher.py"
    settings = parse(argv, teacher=is_teacher)
    teacher = None if is_teacher or not settings.teacher.path_t else settings.teacher.model_t
    if settings.data.source.dataset == "cifar100" and teacher:
        teacher = model_for(teacher, (3, 32, 32)).name
    kind, model = ("teachers", settings.model) if is_teacher else ("students", settings.model)
    folder = f"{settings.run.save_root}/{kind}/models/{run_name(settings, teacher)}"
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
    "script, gpus", [(s, "0") for s in SCRIPTS] + [(s, "0,1,2,3") for s in SCRIPTS if s.startswith(SEVERAL)]
)
def test_every_command_is_understood(script, gpus, interpreter, monkeypatch):
    argv, programs = SCRIPTS[script]
    calls = interpreter.run(script, *argv, KINETICS="DATA", SAVE="SAVE", GPUS=gpus)
    assert [call[0] for call in calls] == programs
    files = []
    for program, *argv in calls:
        if program in TRAIN:
            files += (written := written_by(program, argv))
            files += [f"RUN/{Path(file).name}" for file in written]  # where the run said that it lies
            settings = parse(argv, teacher=program == TRAIN[0])
            assert settings.data.source.data_folder == "DATA"
            given = SCRIPTS[script][0]
            flags = {word[2:]: value for word, value in pairwise(given) if word.startswith("--")}
            assert all(str(settings.as_dict()[flag]) == value for flag, value in flags.items())
            if script.startswith(SEVERAL):
                assert (settings.machine.device.gpu_id, settings.machine.launch.multiprocessing_distributed) == (
                    gpus,
                    "," in gpus,
                )
            assert settings.as_dict().get("model_t") in (*given, None) or SWIN not in given
            continue
        understood(program, argv, monkeypatch)
        for pattern in (word for word in argv if re.search(r"\.pth$", word)):
            assert any(fnmatch(file, pattern) for file in files), (pattern, files)


LEAVES = """
for word in "$@"; do
    case ${before:-} in --save_root) root=$word ;; --model | --model_s) model=$word ;; esac
    before=$word
done
case "$1" in train_*) mkdir -p "$root/run" && touch "$root/run/${model}_last.pth" && echo "result in $root/run" ;; esac
"""


@pytest.mark.parametrize(
    "study, before", [("cakd", ["T.pth", "a set", "some images"]), ("hsakd", ["T.pth", "a set", "t"])]
)
def test_a_study_takes_folders_with_blanks(study, before, tmp_path):
    save = str(tmp_path / "my runs")
    calls = Interpreter(tmp_path / "interpreter", LEAVES).run(f"{study}/short_study.sh", *before, save)
    trained = [parse(argv, teacher=program == TRAIN[0]) for program, *argv in calls if program in TRAIN]
    assert {s.data.source.data_folder for s in trained} == ({"a set"} if study == "hsakd" else {"a set", "some images"})
    assert len(trained) > 8 and all(s.run.save_root.startswith(save) for s in trained)
    assert all(s.data.source.data_folder == "some images" for s in trained if s.data.source.dataset == "folder")


NAMES = """
case "$1" in train_*) echo "[vanilla] result in SAVE/new_vanilla"
mkdir -p SAVE/new_dist_ && touch "SAVE/new_dist_/${model}_best.pth" "SAVE/new_dist_/${model}_last.pth"
echo "[dist] result in SAVE/new_dist_" ;; test_model.py) echo top-1 ;; esac
"""


@pytest.mark.parametrize(
    "script, argv",
    [
        ("cakd/ablation.sh", VIT),
        ("cakd/short_study.sh", ("T.pth", "DATA", "IMAGES", "SAVE")),
        ("hsakd/short_study.sh", ("T.pth", "DATA", "TINY", "SAVE")),
        ("studies/headless_study.sh", ("SAVE",)),
        ("studies/int8_study.sh", ("S.pth", "T.pth", "DATA", "UTD", "SAVE")),
        ("video/short_study.sh", ("CLIPS", "SAVE")),
        ("vskd/short_study.sh", ("UTD", "BERKELEY", "SAVE")),
    ],
)
def test_a_study_reads_its_own_runs_where_others_lie(script, argv, tmp_path):
    """Such as those of a first try with other settings."""
    interpreter = Interpreter(tmp_path, LEAVES + NAMES)
    (interpreter.tree / "results").mkdir()
    names = (
        "trn_bninception_vanilla_utd_mhad_older",
        "trn_bninception_vanilla_utd_mhad_older2",
        "S_dist_r:_b:_0_older",
    )
    for part in ("", "teacher", "utd", "utd_alone", "utd_under", "cifar_alone", "cifar_under"):
        for folder in (interpreter.tree / "SAVE" / part / kind / "models" / name for kind in KINDS for name in names):
            folder.mkdir(parents=True)
            for model in (
                "vit_micro_cifar",
                "wrn_16_2_aux",
                "resnet20_aux",
                "trn_bninception",
                "sensor_cnn",
                "resnet20",
                "tsm_mobilenetv2",
            ):
                (folder / f"{model}_best.pth").touch()
                (folder / f"{model}_last.pth").touch()
    calls = interpreter.run(script, *argv)
    assert not [word for call in calls for word in call if "_older" in word]
    assert any("SAVE/new_dist_" in word for call in calls for word in call)


def test_students_of_imagenette_learn_from_the_teacher_of_the_study(tmp_path):
    trained, network = "mkdir -p SAVE/mine && touch SAVE/mine/$name && echo result in SAVE/mine", "torchvision:resnet34"
    interpreter = Interpreter(tmp_path, f'name={network}_best.pth; case "$*" in *train_teacher*) {trained} ;; esac')
    finished = interpreter.tree / "SAVE/students/models/S_kd_T_b:0.0_1_image_size:48"  # the run that would be killed
    for place in (interpreter.tree / f"SAVE/teachers/models/older/{network}_best.pth", finished / "parameters.json"):
        place.parent.mkdir(parents=True)
        place.touch()
    (finished / "log.txt").write_text("continuing from\n")
    calls = interpreter.run("studies/imagenette_study.sh", "DATA", "SAVE")
    taught = {call[call.index("--path_t") + 1] for call in calls if "--path_t" in call}
    assert taught == {f"SAVE/mine/{network}_best.pth"}


def test_a_message_ends_where_it_is_meant_to():
    """${1:?text with {braces}} ends at the first brace, and what follows joins the value."""
    for path in Path(__file__).resolve().parents[2].glob("scripts/**/*.sh"):
        assert not re.findall(r"\$\{\w+:\?[^}]*\{[^\n]*", path.read_text()), path
