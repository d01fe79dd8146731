"""A run from outside: its folder, its files, its name, and what repeating or changing a command does."""

import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from core import lock
from core.protocols import Published, UserError
from core.registry import Registry
from helper.networks.checkpoint import read_checkpoint
from helper.options.naming import folder_of, run_name
from helper.options.parse import parse
from helper.runs.folder import RunFolder, paths_in, refuse_differences, short_name_notice, without_folders
from models import model_dict
from tests.support.commands import DIGITS, ENV, ROOT
from tests.support.run_folders import rows_of

TAGS = ["train_acc", "train_loss", "test_acc", "test_acc_top5", "test_loss"]
SHORT = ("--epochs", 1, "--max_steps", 2, "--tb_backend", "none")
SUFFIX = "_batch_size:2_epochs:1"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_events(folder: Path, rows: list[dict]) -> None:
    events = events_of(folder)
    not_terms = {"train_acc", "train_acc_top5", "train_loss"}
    terms = {f"loss/{k[6:]}": k for k in rows[0] if k.startswith("train_") and k not in not_terms}
    sources = {tag: tag for tag in (*TAGS, "lr")} | terms
    assert sorted(events) == sorted(sources) and terms
    for tag, column in sources.items():
        assert [step for step, _ in events[tag]] == [row["epoch"] for row in rows]
        assert [value for _, value in events[tag]] == pytest.approx([row[column] for row in rows], rel=1e-6)


@pytest.fixture(scope="module")
def chain(commands, teacher, tmp_path_factory) -> dict[str, Path]:
    """One finished run of each kind, three epochs."""
    root = tmp_path_factory.mktemp("chain")
    folders = {}
    for method in ("vanilla", "kd", "simkd"):
        argv = ("--path_t", teacher) if method != "vanilla" else ()
        argv += ("--distill", method, "--epochs", 3, "--max_steps", 6, "--save_root", root)
        done = commands.student(*argv).finished()
        (folders[method],) = (f for f in (root / "students" / "models").iterdir() if f"_{method}_" in f.name)
        assert f"result in {folders[method]}" in done.out and "best accuracy: " in done.out
    return folders


@pytest.mark.parametrize(
    "method, name",
    [
        ("vanilla", "S:resnet8_T:none_digits_vanilla_r:1.0_a:0.0_b:0.0_0"),
        ("kd", "S:resnet8_T:resnet8_digits_kd_r:1.0_a:1.0_b:0.0_0"),
        ("simkd", "S:resnet8_T:resnet8_digits_simkd_r:0.0_a:0.0_b:1.0_0"),
    ],
)
def test_layout_of_a_student(chain, teacher, method, name):
    folder = chain[method]
    assert folder.name == f"{name}_image_size:8_epochs:3_max_steps:6"
    assert sorted(p.name for p in folder.iterdir()) == [
        "args.json",
        "env.json",
        "log.txt",
        "metrics.jsonl",
        "parameters.json",
        "resnet8_best.pth",
        "resnet8_last.pth",
        "test_best_metrics.json",
    ]
    best = torch.load(folder / "resnet8_best.pth", weights_only=True)
    assert set(best) == {"epoch", "model", "best_acc", *(["proj", "head"] if method == "simkd" else []), "meta"}
    assert type(best["epoch"]) is int and type(best["best_acc"]) is float
    assert best["model"].keys() == torch.load(teacher, weights_only=True)["model"].keys()
    assert best["meta"]["arch"] == "resnet8" and best["meta"]["num_classes"] == 10

    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    top = max(rows, key=lambda row: row["test_acc"])
    metrics = json.loads((folder / "test_best_metrics.json").read_text())
    assert list(metrics) == ["test_loss", "test_acc", "test_acc_top5", "epoch"]
    assert metrics == {k: top[k] for k in metrics} and best["best_acc"] == top["test_acc"]
    assert (folder / "test_best_metrics.json").read_text().startswith('{\n    "test_loss"')

    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["Total params"] == pytest.approx(sum(v.numel() for v in teacher_parameters(best["model"])) / 1e6)
    assert parameters["Total time"] > 0 and parameters["model_name"] == folder.name
    assert parameters["last"]["test_acc"] == rows[-1]["test_acc"]

    args = json.loads((folder / "args.json").read_text())
    assert args["sources"]["epochs"] == "command line" and args["sources"]["momentum"] == "default"
    assert args["sources"]["beta"] == "method" and args["settings"]["epochs"] == 3
    assert args["seed"] == 0 and args["cpu_threads"] == 1
    env = json.loads((folder / "env.json").read_text())
    assert env["versions"]["torch"] == torch.__version__.split("+")[0] or env["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "python", "platform", "cpu", "cuda", "gpus", "command"} <= env.keys()
    log = (folder / "log.txt").read_text()
    assert (
        " * Epoch 3, train: Acc@1" in log
        and " ** test: Acc@1" in log
        and "best accuracy: " in log
        and "==> training..." in log
    )
    assert_events(folder.parents[1] / "tensorboard" / folder.name, rows)


def teacher_parameters(state):
    return [v for k, v in state.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def test_layout_of_a_teacher(teacher_run):
    assert teacher_run.name == "resnet8_vanilla_digits_trial_0_image_size:8_epochs:2"
    assert teacher_run.parent.parent.name == "teachers"
    best = torch.load(teacher_run / "resnet8_best.pth", weights_only=True)
    assert set(best) == {"epoch", "model", "best_acc", "meta"}
    assert_events(teacher_run.parents[1] / "tensorboard" / teacher_run.name, rows_of(teacher_run))


def test_events_of_a_run_that_was_killed(commands, tmp_path):
    """However often it ends, and wherever: every epoch once."""
    argv = ("--epochs", 4, "--max_steps", 2, "--save_root", tmp_path)
    for hook, code in (({"fsync": 9}, 137), ({"fsync": 13}, 137), ({"signals": [[1, 15]]}, 143), ({}, 0)):
        done = commands.teacher(*argv, **hook)
        assert done.code == code, done
    (folder,) = (tmp_path / "teachers" / "models").iterdir()
    assert len(rows_of(folder)) == 4
    assert_events(tmp_path / "teachers" / "tensorboard" / folder.name, rows_of(folder))


def test_events_of_tensorboard_logger(commands, tmp_path):
    """In a process that has forgotten protobuf: which implementation of it is loaded is decided once."""
    code = (
        "import runpy, sys\n"
        "for m in [m for m in sys.modules if 'tensorboard' in m or m.partition('.')[0] == 'google']:\n"
        "    del sys.modules[m]\n"
        f"sys.argv[0] = {str(ROOT / 'train_teacher.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "assert 'google.protobuf.internal.python_message' in sys.modules"
    )
    command = [commands.python, "-c", code, *map(str, DIGITS), "--model", "resnet8"]
    command += ["--epochs", "2", "--max_steps", "2", "--save_root", str(tmp_path), "--tb-backend", "tensorboard_logger"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (folder,) = (tmp_path / "teachers" / "models").iterdir()
    assert_events(tmp_path / "teachers" / "tensorboard" / folder.name, rows_of(folder))


def test_repeating_and_changing_a_command(commands, tmp_path):
    root, argv = tmp_path / "save", (*SHORT, "--save_root", tmp_path / "save")
    commands.teacher(*argv).finished()
    (folder,) = (root / "teachers" / "models").iterdir()
    before = contents(root)
    for harmless in ((), ("--num_workers", 2), ("--print_freq", 1)):
        done = commands.teacher(*argv, *harmless).finished()
        assert f"already finished: {folder}" in done.out
        assert contents(root) == before and len(list(folder.parent.iterdir())) == 1

    # the name says nothing of what the data hold
    args = json.loads((folder / "args.json").read_text())
    args["identity"]["data"] = "0" * 16
    (folder / "args.json").write_text(json.dumps(args))
    commands.teacher(*argv).refused("args.json is damaged (its content does not match its checksum)", "--overwrite")
    del args["checksum"]  # as older versions wrote it
    (folder / "args.json").write_text(json.dumps(args))
    commands.teacher(*argv).refused("data was 0000000000000000, is ", "--overwrite", "--trial")
    assert "metrics.jsonl" in {p.name for p in folder.iterdir()}
    for damaged in ("{", "[]", '{"identity": 3}'):
        (folder / "args.json").write_text(damaged)
        commands.teacher(*argv).refused("args.json is damaged", "--overwrite")
    done = commands.teacher(*argv, "--overwrite").finished()
    assert "training..." in done.out
    again = {k: v for k, v in contents(root).items() if k.endswith("test_best_metrics.json")}
    assert again and all(before[k] == v for k, v in again.items())


def test_two_processes_do_not_train_one_run(commands, tmp_path):
    argv = (*SHORT, "--epochs", 2, "--save_root", tmp_path)
    assert commands.teacher(*argv, signals=[[2, 15]]).code == 143
    (log,) = tmp_path.rglob("log.txt")
    with open(log.with_name(".lock"), "w") as file:  # as the process does that trains it
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write('{"process": 77, "host": "box"}')
        file.flush()
        before = contents(tmp_path)
        for more in ((), ("--overwrite",)):
            commands.teacher(*argv, *more).refused(
                "another process is training", str(log.parent), "(process 77 on box)", "--trial"
            )
            assert contents(tmp_path) == before
    commands.teacher(*argv).finished()


def test_a_dead_process_frees_its_folder_and_forks_hold_nothing(commands, tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from core import lock\n"
        "lock.hold(Path(sys.argv[1]))\n"
        "if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "print(os.getpid(), flush=True); time.sleep(30)\n"
    )
    with subprocess.Popen([commands.python, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as first:
        pid = int(first.stdout.readline())
        with pytest.raises(UserError, match=rf"another process is training .*\(process {pid} on "):
            lock.hold(tmp_path)
        os.kill(pid, signal.SIGKILL)
        first.wait()
        lock.hold(tmp_path)
    lock.hold(tmp_path)  # again, by the same process
    lock.release()
    assert not list(tmp_path.iterdir())


def test_overwriting_follows_no_link(commands, tmp_path):
    argv = (*SHORT, "--epochs", 1, "--save_root", tmp_path / "save", "--overwrite")
    commands.teacher(*argv).finished()
    (folder,) = (tmp_path / "save" / "teachers" / "models").iterdir()
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "kept").write_text("gold")
    (folder / "inner").symlink_to(treasure, target_is_directory=True)
    (folder / "resnet8_last.pth").unlink()
    (folder / "resnet8_last.pth").symlink_to(treasure / "kept")
    commands.teacher(*argv).finished()
    assert not (folder / "inner").exists() and (treasure / "kept").read_text() == "gold"
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)
    before = contents(elsewhere)
    commands.teacher(*argv).refused("--overwrite would delete the target of the link", str(folder))
    assert contents(elsewhere) == before


def test_logs_and_rows_are_not_written_through_links(commands, tmp_path):
    argv = (*SHORT, "--save_root", tmp_path / "save", "--epochs", 2)
    assert commands.teacher(*argv, signals=[[2, 15]]).code == 143
    (folder,) = (tmp_path / "save" / "teachers" / "models").iterdir()
    for name in ("metrics.jsonl", "log.txt"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "log.txt")}
    commands.teacher(*argv).finished()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert all((folder / name).read_bytes().startswith(content) for name, content in before.items())


def names_of(*commands: str) -> list[str]:
    """The run names of student command lines."""
    settings = [parse(shlex.split(line), teacher=False) for line in commands]
    return [run_name(s, None if s.method.teacher_mode == "absent" else "resnet32x4") for s in settings]


def test_settings_off_their_default_stand_in_the_name():
    (name,) = names_of("--path_t T.pth --model_s resnet8 --distill sdd --sdd_scales 1 2 4 --lr_decay_epochs 2,3")
    assert name.endswith("_sdd_scales:1,2,4") and "_lr_decay_epochs:2,3" in name
    plain = "S:resnet8x4_T:resnet32x4_cifar100_simkd_r:0.0_a:0.0_b:1.0_0"
    factor, same, seed, long, wide = names_of(
        "--distill simkd -f 4",
        "--distill simkd -f 2 --batch_size 64 --seed 0",
        "--distill simkd --seed 7 --val_fraction 0.1 --precision fp32",
        f"--distill simkd --trial {'x' * 300}",
        f"--distill simkd --trial {'漢' * 100}",
    )
    assert factor == plain + "_factor:4"
    assert same == plain
    assert seed == plain + "_val_fraction:0.1_seed:7_precision:fp32"
    assert len(long.encode()) <= 200 and len(wide.encode()) <= 200
    published, authors, own = names_of(
        "--distill hint", "--distill hint --protocol authors", "--distill hint --protocol authors --hint_layer 1"
    )
    assert published == "S:resnet8x4_T:resnet32x4_cifar100_hint_r:1.0_a:1.0_b:100.0_0"
    assert authors == "S:resnet8x4_T:resnet32x4_cifar100_hint_r:1.0_a:0.0_b:100.0_0_protocol:authors"
    assert own == authors + "_hint_layer:1"


CHANGES = """--model_s vgg8|--dataset cifar10|--batch_size 32|--epochs 3|--learning_rate 0.1|--lr_decay_epochs 1,2
--lr_decay_rate 0.2|--weight_decay 0|--momentum 0|--accumulate 2|--trial 1|--seed 5|--precision fp32|--deterministic
--max_steps 3|-c 2|-d 2|-b 2|--kd_T 2|--protocol authors|--few_ratio 0.5|--val_fraction 0.5|--image_size 16
--distill kd|--nce_k 5|--nce_t 0.1|--nce_m 0.1|--feat_dim 4|--mode relax|--distill crd+kd"""


def test_runs_that_differ_share_no_folder():
    lines = [line for row in CHANGES.splitlines() for line in row.split("|")]
    names = names_of("--distill crd", *(f"--distill crd {line}" for line in lines))
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)


def test_explicit_learning_rate_beats_the_recipe(monkeypatch):
    slow = dataclasses.replace(model_dict["resnet8"], published=Published(learning_rate=0.01))
    real = Registry.__getitem__
    monkeypatch.setattr(Registry, "__getitem__", lambda self, k: slow if k == "resnet8" else real(self, k))
    for argv, rate, source in (
        (["--model", "resnet8"], 0.01, "model recipe"),
        (["--model", "resnet8", "--learning_rate", "0.05"], 0.05, "command line"),
        (["--model", "resnet20"], 0.05, "data set recipe"),
    ):
        settings = parse(argv, teacher=True)
        assert (settings.training.schedule.learning_rate, settings.sources["learning_rate"]) == (rate, source)
    fast = run_name(parse(["--model", "resnet8", "--learning_rate", "0.05"], teacher=True), None)
    assert fast.endswith("_learning_rate:0.05")


@pytest.mark.parametrize(
    "line, seed", [("", 0), ("--trial 3", 3), ("--trial three", zlib.crc32(b"three")), ("--trial 3 --seed 4", 4)]
)
def test_seed_of_a_trial(line, seed):
    assert parse(line.split(), teacher=False).run.seed == seed


def test_published_spellings():
    ours = parse(
        shlex.split("--path_t t.pth -c 0.1 -d 0.9 -b 2 --gpu_id 1 --print_freq 5 --skip_validation"), teacher=False
    )
    for line in (
        "--path-t t.pth -r 0.1 -a 0.9 --beta 2 --gpu_id 1 --print-freq 5 --skip-validation",
        "--path-t=t.pth --gamma 0.1 --alpha=0.9 --be 2 --gpu 1 --print-f 5 --skip-v",
        "--path_t t.pth --cls 0.1 --div 0.9 --be 2 --gpu 1 --print_freq 5 --skip-v",
    ):
        theirs = parse(shlex.split(line), teacher=False)
        assert theirs.as_dict() == ours.as_dict(), line
    line = "--multiprocessing-distributed --dist-url tcp://127.0.0.1:1 --use-lmdb --distill attention"
    theirs = parse(shlex.split(line), teacher=False)
    assert (
        theirs.machine.launch.multiprocessing_distributed
        and theirs.machine.launch.dist_url == "tcp://127.0.0.1:1"
        and theirs.distill == "at"
    )
    line = "--disti crd --mode relax --nce-k 8"  # a method's flag is no abbreviation of --model_s
    crd = parse(shlex.split(line), teacher=False)
    assert (crd.distill, crd.config.mode, crd.config.nce_k, crd.model) == ("crd", "relax", 8, "resnet8x4")


def test_help_and_list(commands):
    plain, crd = (commands("train_student.py", *argv, "--help_all") for argv in ((), ("--distill", "crd")))
    assert plain.finished() and "--nce_k" not in plain.out and "--path_t" in plain.out
    assert crd.finished() and "--nce_k" in crd.out and "--factor" not in crd.out
    words = " ".join(plain.out.split())
    assert "(default step)" in words and "(default 240; depends on the data set)" in words and "(default )" not in words
    listed = commands("train_student.py", "--list").finished().out
    assert "simkd" in listed and "fitnet, hint" in listed and "resnet32x4" in listed and "digits" in listed


def test_flags_without_effect(commands, teacher, tmp_path):
    flags = ("--use_lmdb", "--tb-freq", 3, "--num_workers", 4, "--dali", "gpu", "--dist-url", "x", "--init_epochs", 3)
    argv = (*SHORT, "--save_root", tmp_path, *flags, "--distill", "vanilla", "--path_t", teacher, "--kd_T", 2)
    done = commands.student(*argv).finished()
    notices = [line for line in done.out.splitlines() if line.startswith("without effect here: ")]
    named = {"use_lmdb", "tb_freq", "num_workers", "dali", "dist_url", "init_epochs", "path_t", "kd_T"}
    assert len(notices) == 1 and all(f"--{flag} (" in notices[0] for flag in named)
    (folder,) = (tmp_path / "students" / "models").iterdir()
    assert set(json.loads((folder / "args.json").read_text())["without_effect"]) == named
    assert "dali" not in folder.name


def accuracy_of(done) -> str:
    (line,) = [line for line in done.out.splitlines() if line.startswith("top-1 ")]
    return line.split()[1]


def test_a_simkd_student_is_a_model_of_its_own(commands, chain, tmp_path):
    best = chain["simkd"] / "resnet8_best.pth"
    row = max(rows_of(chain["simkd"]), key=lambda row: row["test_acc"])
    accuracy = accuracy_of(commands("test_model.py", "--path", best, "--dataset", "digits").finished())
    assert accuracy == f"{row['test_acc']:.2f}"  # both in float32, whatever the run trains in
    last = commands("test_model.py", "--path", chain["simkd"] / "resnet8_last.pth", "--dataset", "digits").finished()
    assert accuracy_of(last) == f"{rows_of(chain['simkd'])[-1]['test_acc']:.2f}" and "warning" not in last.out
    parameters = json.loads((chain["simkd"] / "parameters.json").read_text())
    assert f"parameters {round(parameters['Deployed params'] * 1e6)} " in last.out
    done = commands.student("--path_t", best, "--distill", "kd", *SHORT, "--save_root", tmp_path).finished()
    assert f"teacher accuracy:  {accuracy}" in done.out


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_the_same_number_in_float32(commands, teacher, tmp_path, method):
    argv = ("--path_t", teacher, "--distill", method, "--epochs", 1, "--max_steps", 4, "--precision", "fp32")
    commands.student(*argv, "--tb_backend", "none", "--save_root", tmp_path).finished()
    (folder,) = (tmp_path / "students" / "models").iterdir()
    done = commands("test_model.py", "--path", folder / "resnet8_best.pth", "--dataset", "digits").finished()
    assert accuracy_of(done) == f"{rows_of(folder)[0]['test_acc']:.2f}"


def test_a_setting_that_did_not_exist_is_no_difference():
    before, now = {"epochs": 3, "gone": 1}, {"epochs": 3, "gone": 1, "new": 0}
    refuse_differences(Path("run"), before, now)
    for changed, moved in ((now | {"epochs": 4}, ()), ({"epochs": 3, "new": 0}, ()), (now | {"new": 5}, ("new",))):
        with pytest.raises(UserError, match="other settings"):
            refuse_differences(Path("run"), before, changed, moved)


@pytest.fixture
def finished(tmp_path):
    """Makes the folder of a finished teacher with these settings."""
    root = tmp_path / "my runs"
    root.mkdir()

    def make(trial, epochs=240, max_steps=None, **more):
        name = f"resnet8_vanilla_cifar100_trial_{trial}_{epochs}_{max_steps}{''.join(more)}"
        identity = {"trial": str(trial), "seed": trial, "epochs": epochs, "max_steps": max_steps, "mixup": 0.0, **more}
        (root / name).mkdir()
        (root / name / "args.json").write_text(json.dumps({"identity": identity}))
        return RunFolder(root / name, root / name, "resnet8")

    return make


def test_the_short_name_stays_with_the_first_of_equals(finished):
    first, second, other = finished(0), finished(1), finished(2, epochs=300, mixup=0.2)
    link = first.models.parent / "resnet8_vanilla"
    assert short_name_notice(link, first) == f"also reachable as {link}" and os.readlink(link) == first.models.name
    for later in (second, other):
        said = short_name_notice(link, later)
        assert "already points to another run" in said and link.resolve() == first.models.resolve()
    subprocess.run(said.rpartition("point it here: ")[2], shell=True, check=True)
    assert link.resolve() == other.models.resolve()
    assert short_name_notice(link, other) == f"also reachable as {link}"
    shutil.rmtree(other.models)  # the link leads nowhere now, and is not taken all the same
    assert "already points" in short_name_notice(link, second) and os.readlink(link) == other.models.name
    folder = link.with_name("vgg8_vanilla")
    folder.mkdir()
    assert f"mv '{folder}' " in short_name_notice(folder, second) and not folder.is_symlink()


def test_a_trial_never_has_the_short_name_and_a_longer_run_takes_it(finished):
    trial, short, other_seed, whole = finished(0, 1, 8), finished(0, 1), finished(1, 1), finished(1)
    link = trial.models.parent / "resnet8_vanilla"
    assert "with --max_steps is a trial" in short_name_notice(link, trial) and not link.is_symlink()
    short_name_notice(link, short)
    assert "already points" in short_name_notice(link, other_seed) and link.resolve() == short.models.resolve()
    said = short_name_notice(link, whole)
    assert said.endswith(f"which pointed to the shorter run {short.models.name}")
    assert link.resolve() == whole.models.resolve() and "already points" in short_name_notice(link, short)
    link.unlink()
    link.symlink_to(trial.models.name)  # as an earlier version left it
    assert "shorter run" in short_name_notice(link, short) and link.resolve() == short.models.resolve()


def test_portable_names_and_names_of_ones_own(commands, tmp_path):
    argv = (*SHORT, "--distill", "vanilla", "--lr_decay_epochs", "1,2", "--save_root", tmp_path)
    commands.student(*argv, "--run_names", "portable").finished()
    (folder,) = (tmp_path / "students" / "models").iterdir()
    assert re.fullmatch(r"[\w.=+~-]+", folder.name) and folder.name.startswith("S=resnet8_T=none_digits_vanilla_r=1.0")
    for spelling in ((), ("--run_names", "portable")):
        assert f"already finished: {folder}" in commands.student(*argv, *spelling).finished().out
    commands.student(*argv, "--trial", 1).finished()
    (old,) = (f for f in (tmp_path / "students" / "models").iterdir() if f != folder)
    assert ":" in old.name
    done = commands.student(*argv, "--trial", 1, "--run_names", "portable").finished()
    assert f"already finished: {old}" in done.out
    commands.student(*argv, "--trial", 2, "--name", "mine").finished()
    assert (tmp_path / "students/models/mine/resnet8_best.pth").exists()
    commands.student(*argv, "--trial", 3, "--name", "mine").refused("holds a run with other settings", "trial was 2")
    commands.student(*argv, "--trials", 2, "--name", "mine").refused("--name names one run", "trains 2")
    commands.student(*argv, "--name", "a/b").refused("--name 'a/b'")


def test_checkpoints_of_portable_runs_have_portable_names():
    settings = parse(shlex.split("--model_s tsm:resnet8 --distill vanilla --run_names portable"), teacher=False)
    assert folder_of(settings, None).best.name == "tsm=resnet8_best.pth"


def test_the_published_commands_chain(commands, tmp_path):
    rng, (cwd, data) = np.random.default_rng(0), (tmp_path / "repo", tmp_path / "data")
    cwd.mkdir(), data.mkdir()
    images = {f"{part}_images": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in SIZES.items()}
    labels = {f"{part}_labels": np.arange(n) % 100 for part, n in SIZES.items()}
    np.savez(data / "cifar100.npz", **images, **labels, classes=[f"class{i}" for i in range(100)])
    first, second = (f"{line} --epochs 1 --batch_size 2" for line in PUBLISHED)
    for line in (first, second):
        script, *argv = shlex.split(line)[1:]
        commands(script, *argv, cwd=cwd).finished()
    teachers, students = (cwd / "save" / kind / "models" for kind in ("teachers", "students"))
    assert (teachers / "resnet32x4_vanilla").resolve().name == f"resnet32x4_vanilla_cifar100_trial_0{SUFFIX}"
    (student,) = students.iterdir()
    assert student.name == f"S:resnet8x4_T:resnet32x4_cifar100_simkd_r:0.0_a:0.0_b:1.0_0{SUFFIX}"
    assert (student / "resnet8x4_best.pth").exists()
    script, *argv = shlex.split(second)[1:]
    assert "already finished" in commands(script, *argv, cwd=cwd).finished().out


SIZES = {"train": 2, "test": 3}
PUBLISHED = (
    "python train_teacher.py --batch_size 64 --epochs 240 --dataset cifar100 --model resnet32x4 --learning_rate 0.05 "
    "--lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0 --gpu_id 0",
    "python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd "
    "--model_s resnet8x4 -c 0 -d 0 -b 1 --trial 0",
)


def test_protocols_of_combinations():
    hint = parse(shlex.split("--distill kd+hint --protocol authors"), teacher=False)
    assert (hint.method_flags["hint_layer"], hint.loss.cls, hint.loss.div) == (2, 1.0, 0.9)
    assert dict((m.name, c) for m, c in hint.config.members)["fitnet"].hint_layer == 2
    asked = parse(shlex.split("--distill kd+hint --protocol authors --hint_layer 3"), teacher=False)
    assert asked.method_flags["hint_layer"] == 3
    assert parse(shlex.split("--distill kd+hint"), teacher=False).method_flags["hint_layer"] == 1


def test_a_replaced_classifier_is_trained_only_on_demand():
    replaced = parse(shlex.split("--distill simkd+at"), teacher=False)
    assert (replaced.loss.cls, replaced.loss.div) == (0, 0)
    kept = parse(shlex.split("--distill at+kd"), teacher=False)
    assert (kept.loss.cls, kept.loss.div) == (1, 1)
    asked = parse(shlex.split("--distill simkd+kd -c 1 -d 1"), teacher=False)
    assert (asked.loss.cls, asked.loss.div) == (1, 1)


def test_only_the_last_epoch_is_evaluated_in_float32(commands, tmp_path):
    argv = ("--distill", "vanilla", "--epochs", 2, "--max_steps", 1, "--precision", "bf16", "--tb_backend", "none")
    rows, files = {}, {}
    for how in ("auto", "train", "fp32"):
        commands.student(*argv, "--eval_precision", how, "--save_root", tmp_path / how).finished()
        (folder,) = (tmp_path / how / "students" / "models").iterdir()
        rows[how] = [row["test_loss"] for row in rows_of(folder)]
        best, last = (read_checkpoint(folder / f"resnet8_{which}.pth") for which in ("best", "last"))
        assert last.evaluated_in == ("bf16" if how == "train" else "fp32")
        files[how] = best.evaluated_in, best.epoch
    assert rows["auto"][0] == rows["train"][0] != rows["fp32"][0]
    assert rows["auto"][1] == rows["fp32"][1] != rows["train"][1]
    assert files["fp32"][0] == "fp32" and files["train"][0] == "bf16"
    assert files["auto"][0] == ("fp32" if files["auto"][1] == 2 else "bf16")


def test_evaluation_every_few_epochs_changes_no_weight(commands, tmp_path):
    argv = ("--distill", "vanilla", "--epochs", 5, "--few_ratio", 0.1)
    folders = []
    for every in (1, 2):
        commands.student(*argv, "--eval_freq", every, "--save_root", tmp_path / str(every)).finished()
        folders += (tmp_path / str(every) / "students" / "models").iterdir()
    each, some = (rows_of(folder) for folder in folders)
    assert [row["epoch"] for row in some if "test_acc" in row] == [2, 4, 5] and len(some) == 5
    assert all(some[epoch - 1]["test_loss"] == each[epoch - 1]["test_loss"] for epoch in (2, 4, 5))
    assert [row["train_loss"] for row in some] == [row["train_loss"] for row in each]
    weights = [read_checkpoint(folder / "resnet8_last.pth").state for folder in folders]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    best = max((2, 4, 5), key=lambda epoch: some[epoch - 1]["test_acc"])
    assert read_checkpoint(folders[1] / "resnet8_best.pth").epoch == best
    parameters = json.loads((folders[1] / "parameters.json").read_text())
    assert parameters["best"] == {"test_acc": some[best - 1]["test_acc"], "epoch": best}
    events = events_of(tmp_path / "2" / "students" / "tensorboard" / folders[1].name)
    assert [step for step, _ in events["test_acc"]] == [2, 4, 5] and len(events["train_acc"]) == 5


def test_paths_are_shortened_wherever_they_stand():
    words = [
        "--data_folder",
        "/a b/c/data",
        "--path-t=/a b/T.pth",
        "imagenet:/a b/w",
        "--dist_url",
        "tcp://10.0.0.1:80",
    ]
    words += ["file:///a b/rdv", "../up/x", "/single"]
    assert without_folders(words) == [
        "--data_folder", ".../data", "--path-t=.../T.pth", "imagenet:.../w", "--dist_url", "tcp://10.0.0.1:80",
        "file:.../rdv", "../up/x", ".../single",
    ]  # fmt: skip
    assert paths_in(words) == ["/a b/c/data", *sorted(paths_in(words)[1:], key=len, reverse=True)]
    assert {*paths_in(words)} == {"/a b/c/data", "/a b/T.pth", "///a b/rdv", "/a b/w", "/single"}
