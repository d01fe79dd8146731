"""docs/commands.md: what other toolboxes print, and what to type, which is run dry on fixtures."""

import re
import shlex

import pytest
import torch

from distiller_zoo import method_dict
from helper.options.method_flags import flags_of
from helper.options.old_flags import ARCH, OLD
from helper.options.parse import parse, parse_students, script_parser
from helper.options.quick import normalised
from helper.options.settings import TrainStudentConfigs, TrainTeacherConfigs
from tests.commands.test_documented_runs import fixtures, kind_of_network, reduced, teachers_of, without  # noqa: F401
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter

PAGE = (ROOT / "docs/commands.md").read_text()
ROW = re.compile(
    r"(?P<title>[^\n]+)\n\n"
    r"(?:Works as printed:\n\n```bash\n(?P<same>.*?)\n```|"
    r"```text\n(?P<printed>.*?)\n```\n\n(?:Type:\n\n```bash\n(?P<typed>.*?)\n```|Type nothing\.)\s+\S)",
    re.S,
)
FOUND = [ROW.match(part) for part in PAGE.split("\n### ")[1:]]
ROWS = {row["title"]: (row["same"] or row["printed"], row["same"] or row["typed"]) for row in FOUND if row}
TYPED = {title: typed for title, (_, typed) in ROWS.items() if typed}


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    answer = 'case "$1" in train_*) echo result in save/students/models/x;; esac'
    return Interpreter(tmp_path_factory.mktemp("interpreter"), answer)


def call_of(typed):
    """[program, arguments...] of a line of Python, behind variables and launchers."""
    words = shlex.split(typed.replace("\\\n", " "))
    start = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[start:]


def test_every_row_is_complete():
    assert len(ROWS) == len(FOUND) >= 30
    assert sum(printed == typed for printed, typed in ROWS.values()) >= 6, "as printed"
    for words in (
        "experiments/run_cakd.sh",
        "valprep.sh",
        "mim install",
        "--tcheckpoint",
        "preprocess_tinyimagenet.py",
    ):
        assert any(words in printed for printed, _ in ROWS.values()), words


@pytest.mark.parametrize("title", [t for t, typed in TYPED.items() if re.search(r"train_\w+\.py", typed)])
def test_a_training_command_runs(title, fixtures, commands, tmp_path):  # noqa: F811
    program, *argv = call_of(TYPED[title])
    settings = parse(argv, teacher=program == "train_teacher.py")
    teacher = None
    if program == "train_student.py" and settings.teacher.path_t:
        teacher = kind_of_network(teachers_of(settings)[0])
    plain = without({"--dali", "--gpu", "--dist_url", "--dist_backend", "--world_size", "--rank"}, normalised(argv))
    small = reduced(plain, fixtures, teacher, kind_of_network(settings.model))
    done = commands(program, *small, "--dry_run", "--num_workers", 0, "--save_root", tmp_path / "save", cwd=tmp_path)
    assert re.search(r"dry run of \S+: loss [\d.]+", done.finished().out) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("title", [t for t, typed in TYPED.items() if "bash scripts/" in typed])
def test_a_script_asks_for_what_parses(title, interpreter):
    words = shlex.split(TYPED[title])
    env = dict(word.split("=", 1) for word in words[: words.index("bash")])
    script, *argv = words[words.index("bash") + 1 :]
    calls = [c for c in interpreter.run(script.removeprefix("scripts/"), *argv, **env) if c[0].startswith("train_")]
    assert calls
    for program, *flags in calls:
        settings = parse(flags, teacher=program == "train_teacher.py")
        assert ("," in env.get("GPUS", "")) == settings.machine.launch.multiprocessing_distributed


def test_the_slurm_row_names_a_script():
    """Its jobs are started in tests/scripts/test_hosts.py."""
    (typed,) = [t for t in TYPED.values() if "slurm/submit.py" in t]
    script, word = typed.partition(" -- ")[2].split()
    assert (ROOT / script).is_file() and word == "TEACHER.pth"


def test_no_row_is_left_out():
    """Every text to type is run by a test of this file, but for ln, and quickstart.sh, which has tests of its own."""
    kinds = (
        r"train_\w+\.py",
        "bash scripts/",
        "test_model.py",
        "eval_rep.py",
        "slurm/submit.py",
        "convert_kd",
        "sort_imagenet",
    )
    left = [typed for typed in TYPED.values() if not any(re.search(kind, typed) for kind in kinds)]
    assert left == ["ln -s PATH_TO_YOUR_IMAGENET ./data/"]


@pytest.mark.parametrize("title", [t for t, typed in TYPED.items() if "test_model.py" in typed])
def test_a_testing_command_runs(title, fixtures, commands, tmp_path):  # noqa: F811
    program, *argv = call_of(TYPED[title])
    flags = normalised(argv)
    if "kinetics400" in flags:
        kind = "tsm"
        clips = fixtures[("--dataset", "video", *next(k for k in fixtures if "video" in k)[2:])]
        more = (
            "--dataset",
            "video",
            "--data_folder",
            clips,
            "--image_size",
            32,
            "--short_side",
            32,
            "--num_segments",
            2,
        )
        more = (*more, "--crop_size", 32, "--model", "tsm:resnet8", "--num_workers", 0)
    else:
        kind = "aux"
        more = ("--dataset", "digits", "--image_size", 16, "--arch", "resnet8_aux")
    path = "--path" if "--path" in flags else "--student_weights"
    flags = without({"--multiprocessing_distributed", "--gpu_id"}, flags)
    done = commands(program, *flags, *more, path, fixtures[kind], "--batch_size", 4, cwd=tmp_path).finished()
    assert "top-1" in done.out


@pytest.mark.parametrize("title", [t for t, typed in TYPED.items() if "eval_rep.py" in typed])
def test_a_probe_runs(title, fixtures, commands, tmp_path):  # noqa: F811
    program, *argv = call_of(TYPED[title])
    more = ("--arch", "resnet8", "--s-path", fixtures["plain"], "--dataset", "digits", "--epochs", 1)
    assert "top-1" in commands(program, *argv, *more, cwd=tmp_path).finished().out


def test_a_distillation_checkpoint_is_converted(commands, fixtures, tmp_path):  # noqa: F811
    (typed,) = [t for t in TYPED.values() if "convert_kd" in t]
    state = torch.load(fixtures["plain"], weights_only=True)["model"]
    torch.save({"meta": {}, "state_dict": {f"architecture.{k}": v for k, v in state.items()}}, tmp_path / "kd.pth")
    program, *argv = call_of(typed)
    commands(program, *(str(tmp_path / "kd.pth") if a == "CHECKPOINT.pth" else a for a in argv)).finished()
    assert torch.load(tmp_path / "kd_student.pth", weights_only=True)["state_dict"].keys() == state.keys()


def test_validation_images_are_sorted(commands, tmp_path):
    (typed,) = [t for t in TYPED.values() if "sort_imagenet_val" in t]
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.JPEG").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("a.JPEG n01440764\n")
    program, _, flag, _ = call_of(typed)
    commands(program, tmp_path / "val", flag, tmp_path / "labels.txt").finished()
    assert (tmp_path / "val" / "n01440764" / "a.JPEG").exists()


# flags on the command line

KNOWN = {kind: set(script_parser(kind).known()) for kind in (TrainStudentConfigs, TrainTeacherConfigs)}


def test_every_answer_names_flags_that_exist():
    answers = [*OLD.values(), *ARCH.values()]
    named = {flag for text in answers for flag in re.findall(r"--\w+", text)} - {"--path"}
    own = {name for method in method_dict.values() for flag in flags_of(method) for name in flag.names}
    assert named <= KNOWN[TrainStudentConfigs] | KNOWN[TrainTeacherConfigs] | own
    assert not OLD.keys() & (KNOWN[TrainStudentConfigs] & KNOWN[TrainTeacherConfigs]), (
        "a flag that works needs no answer"
    )
    for path in (p for text in answers for p in re.findall(r"[\w/]+\.(?:md|py|sh)", text)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("script", "argv", "words"),
    [
        ("train_student.py", ("--arch", "resnet8"), "(--arch is --model_s)"),
        ("train_teacher.py", ("--arch=resnet8",), "(--arch is --model)"),
        ("train_student.py", ("--tcheckpoint", "x"), "(--tcheckpoint is --path_t)"),
        ("train_student.py", ("--checkpoint-dir", "x"), "(--checkpoint_dir is --save_root)"),
        ("train_student.py", ("--milestones", "30", "60"), "--lr_decay_epochs 150,180,210"),
        ("train_student.py", ("--init-lr", "0.1"), "(--init_lr is --learning_rate)"),
        ("train_student.py", ("--tarch", "x"), "--model_t"),
        ("train_teacher.py", ("--tarch", "x"), "of a student: use train_student.py"),
        ("train_student.py", ("--freezed",), "belongs to --distill"),
        ("train_student.py", ("--resume",), "leave it out: the same command resumes its run"),
        ("train_student.py", ("--batchsize", "3"), "(did you mean --batch_size for --batchsize?)"),
        ("train_student.py", ("--learning-rte", "3"), "(did you mean --learning_rate for --learning_rte?)"),
        ("test_model.py", ("--path", "x", "--checkpoint", "y"), "(--checkpoint is --path)"),
        ("test_model.py", ("--path", "x", "--launcher", "pytorch"), "torchrun"),
        ("eval_rep.py", ("--path", "x", "--mileston", "3", "--sovler", "sgd"), "did you mean --solver"),
    ],
)
def test_an_old_or_misspelt_flag_is_answered(commands, script, argv, words):
    done = commands(script, *argv)
    assert done.code == 2 and words in done.err and "Traceback" not in done.err, done


# --bias-weight-decay, --transformer-embedding-decay and --augmix-severity have no counterpart
PUBLISHED = {
    "SemCKD": (
        "--distill hkd",
        "--print-freq --path-t --use-lmdb --hkd_initial_weight --hkd_decay --skip-validation",
    ),
    "HSAKD teacher": (
        "--distill hsakd_teacher",
        "--data --arch --init-lr --lr-type --sgdr-t --milestones --warmup-epoch --gpu-id --manual_seed --kd_T "
        "--evaluate --checkpoint-dir --freezed --pretrained-backbone --world-size --rank --dist-url "
        "--dist-backend",
    ),
    "HSAKD": (
        "--distill hsakd",
        "--tarch --arch --tcheckpoint --few-ratio --kd_T --gpu --manual --checkpoint-dir",
    ),
    "CAKD": (
        "--distill cakd",
        "--data-path --device -j --workers --opt --lr --wd --norm-weight-decay --label-smoothing "
        "--mixup-alpha --cutmix-alpha --lr-scheduler --lr-warmup-epochs --lr-warmup-method --lr-warmup-decay "
        "--lr-step-size --lr-gamma --lr-min --print-freq --output-dir --resume --start-epoch --cache-dataset "
        "--sync-bn --test-only --auto-augment --ra-magnitude --random-erase --amp --world-size --dist-url "
        "--model-ema --model-ema-steps --model-ema-decay --use-deterministic-algorithms --interpolation "
        "--val-resize-size --val-crop-size --train-crop-size --clip-grad-norm --ra-sampler --ra-reps",
    ),
    "VSKD": (
        "--distill dask",
        "--watch_train_path --watch_test_path --video_train_path --video_test_path --modality --video_base "
        "--watch_base --consensus_type --arch --img_feature_dim --dropout --num_classes --triplet_ratio "
        "--dist_ratio --angle_ratio --dark_ratio --dark_alpha --dark_beta --at_ratio --triplet_sample "
        "--triplet_margin --iter_per_epoch --lr_decay_gamma --recall --print_freq --tb_freq --trial -r "
        "--gamma -a --alpha -b --beta",
    ),
    "VSKD teacher": (
        "",
        "--video_teacher_train_path --video_teacher_test_path --student_base --save_dir --load --do",
    ),
    "TRN": (
        "",
        "--lr_steps --clip-gradient --gd --no_partialbn --workers --root_log --root_model --root_output",
    ),
    "MMRazor": (
        "--distill dist",
        "--launcher --gpus --gpus-per-node --partition --work-dir --amp --cfg-options --local_rank",
    ),
}


@pytest.mark.parametrize("toolbox", PUBLISHED)
def test_every_published_flag_works_or_is_answered(toolbox, capsys):
    base, flags = PUBLISHED[toolbox]
    for flag in normalised(flags.split()):
        try:
            argv = normalised([*base.split(), flag])
            parse_students(argv, teacher="teacher" in toolbox or toolbox == "TRN")
        except SystemExit:
            err = capsys.readouterr().err
            works = "expected one argument" in err or "expected at least one argument" in err
            assert works or f"({flag} is " in err, err


@pytest.mark.parametrize(
    "flags",
    [
        ("--data", "x"),
        ("--dataset", "UTD"),
        ("--manual", "3"),
        ("--manual_seed", "3"),
        ("--gpu", "0"),
        ("--gpu-id", "0"),
    ],
)
@pytest.mark.parametrize("teacher", [True, False])
def test_old_flags_that_work(flags, teacher):
    assert parse(flags, teacher=teacher).given
