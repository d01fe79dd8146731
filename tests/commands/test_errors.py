"""What a user gets wrong is answered with one sentence and exit code 2, and costs nothing that was there."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helper.machine.devices import pick_device
from tests.support.commands import ENV, ROOT
from tests.support.run_folders import rows_of

SHORT = ("--epochs", 1, "--max_steps", 2, "--tb_backend", "none")


@pytest.fixture
def student(commands, teacher, tmp_path):
    """A short distillation with further flags (later ones win), and the assurance that refusals leave no folder."""

    def run(*argv, **hooks):
        root = tmp_path / "save"
        done = commands.student("--path_t", teacher, *SHORT, "--save_root", root, *argv, **hooks)
        if done.code == 2 and "training..." not in done.out:
            assert not root.exists(), f"a run that never started left {list(root.rglob('*'))}"
        return done

    return run


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--model_s", "resnet8x5"), ("unknown model 'resnet8x5'", "resnet8x4")),
        (("--model_t", "resnet8x5"), ("unknown model 'resnet8x5'", "resnet8x4")),
        (("--distill", "simkdd"), ("unknown method 'simkdd'", "simkd")),
        (("--distill", "kd+crdd"), ("unknown method 'crdd'", "crd")),
        (("--distill", "kd+kd"), ("names a method twice",)),
        (("--dataset", "cifar10O"), ("unknown data set 'cifar10O'", "cifar100")),
        (("--path_t", "nowhere/resnet8_best.pth"), ("nowhere/resnet8_best.pth", "No such file")),
        (("--path_t", "."), ("neither model.safetensors",)),
        (("--name", ".."), ("--name '..' becomes part of a folder name",)),
        (("--resume", "."), (". is a folder, not a checkpoint",)),
        (("--batch_size", 1438), ("--batch_size 1438", "1437")),
        (("--batch_size", 0), ("--batch_size 0",)),
        (("--distill", "semckd", "--batch_size", 3), ("semckd", "3 samples")),
        (("--distill", "semckd", "--accumulate", 3), ("--batch_size 64", "--accumulate 3")),
        (("--distill", "hint", "--hint_layer", 4), ("--hint_layer 4", "resnet8", "stage3")),
        (("--distill", "simkd", "-f", 3), ("--factor 3", "64 channels")),
        (("--lr_decay_epochs", "150;180"), ("--lr_decay_epochs '150;180'",)),
        (("--lr_decay_epochs", "180,150"), ("increasing",)),
        (("--lr_decay_epochs", 150, 180, 210), ("--lr_decay_epochs 150 180 210", "by commas", "150,180,210")),
        (("--weight", "5e-4"), ("--weight takes NAME=NUMBER", "not 5e-4", "--weight_decay")),
        (("--init_epochs", 0), ("--init_epochs 0 must be at least 1",)),
        (("--gpu_id", "x"), ("--gpu_id 'x'",)),
        (("--trial", "a/b"), ("--trial 'a/b'",)),
        (("--trial", "a\nb"), ("--trial 'a\\nb'",)),
        (("--trial", "\udcff"), ("--trial '\\udcff'",)),
        (("--distill", "srrl", "--batch_size", 1), ("a batch of one", "--batch_size")),
        (("--distill", "srrl", "--batch_size", 718), ("a batch of one", "--batch_size")),
        (("--distill", "srd", "--batch_size", 1), ("srd normalises", "a batch of one", "--batch_size")),
        (("--distill", "reviewkd", "--batch_size", 718), ("reviewkd normalises", "a batch of one", "--batch_size")),
        (("--distill", "crd", "--feat_dim", 0), ("--feat_dim 0",)),
        (("--distill", "crd", "--nce_k", 10**13), ("--nce_k 10000000000000", "at most 16,777,216")),
        (("--distill", "crd", "--nce_t", 0), ("--nce_t 0.0",)),
        (("--distill", "cc", "--feat_dim", 10**12), ("--feat_dim 1000000000000", "at most")),
        (("--image_size", 4000), ("1797 images at 4000x4000 need", "--image_size")),
        (("-c", -1), ("--cls -1.0", "at least 0")),
        (("-d", "nan"), ("--div nan", "at least 0")),
        (("--distill", "at", "-b", "inf"), ("--beta inf", "at least 0")),
        (("--distill", "kd+at", "--weight", "at=-2"), ("--weight at -2.0", "at least 0")),
        (("--weight_decay", -1), ("--weight_decay -1.0", "at least 0")),
        (("--momentum", 1), ("--momentum 1.0", "at least 0 and below 1")),
        (("--kd_T", "nan"), ("--kd_T nan", "must be above 0")),
        (("--learning_rate", "inf"), ("--learning_rate inf", "must be above 0")),
        (("--distill", "kd+at", "--weight", "at=2", "attention=3"), ("--weight names at twice",)),
        (("--distill", "kd+at", "--weight", "kd=2"), ("--weight names kd", "has no own term", "div")),
        (("--distill", "simkd+ab"), ("ab trains a separate first stage and cannot be combined",)),
        (("--distill", "rkd", "--rkd_distance", -1), ("--rkd_distance -1.0", "at least 0")),
        (("--distill", "rkd", "--rkd_angle", "nan"), ("--rkd_angle nan", "at least 0")),
        (("--distill", "semckd", "--soft", 0), ("--soft 0.0", "above 0")),
        (("--momentum", -0.1), ("--momentum -0.1", "at least 0 and below 1")),
        (("--distill", "kd+simkd"), ("simkd replaces the classifier that kd would train", "-c and -d")),
        (("--trial", "9" * 30), ("the seed 999", "--trial")),
        (("--seed", -1), ("the seed -1",)),
        (("--learning_rate", 0), ("--learning_rate 0.0",)),
        (("--few_ratio", 2), ("--few_ratio 2.0",)),
        (("--val_fraction", 0.0001), ("val_fraction 0.0001", "classes")),
        (("--cls", 0, "--div", 0), ("weight 0", "-c, -d, -b")),
        (("--distill", "kd+crd", "-c", 0, "-d", 0, "-b", 0), ("weight 0",)),
        (("--distill", "vanilla", "-c", 0, "-d", 1), ("weight 0",)),
        (("--distill", "kd", "-c", 0, "-d", 0, "-b", 1), ("weight 0",)),
        (("--resume", "nowhere_last.pth"), ("nowhere_last.pth", "No such file")),
        (("--dataset", "folder", "--data_folder", "nowhere"), ("'nowhere' does not exist",)),
        (("--dataset", "cifar100", "--data_folder", "nowhere"), ("'nowhere' does not exist",)),
        (("--dataset", "imagenet"), ("ImageNet",)),
        (("--dataset", ""), ("unknown data set ''",)),
        (("--path_t", ""), ("--path_t is empty",)),
        (("--path_t", "timm:no_such_net"), ("no_such_net",)),
        (("--mean_t", "nan"), ("--mean_t nan",)),
        (("--std_t", 0), ("must be above 0",)),
        (("--std_t", 1, 1), ("or one per channel",)),
        (("--few_ratio", 0.0001), ("--few_ratio 0.0001",)),
        (("--plugin", "none.py"), ("none.py",)),
        (("--mixup", 1, "--teacher_cache", "cache"), ("--mixup",)),
        (("--unlabelled", "nowhere"), ("nowhere",)),
        (("--trials", 3, "--name", "a"), ("--name",)),
    ],
)
def test_a_wrong_setting(student, argv, words):
    student(*argv).refused(*words)


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--distill", "kd", "--nce_k", "5"), ("--nce_k", "belongs to --distill crd")),
        (("--distill", "kd", "--mode", "relax"), ("--mode", "belongs to --distill crd")),
        (("--distill", "kd", "-f", "2"), ("-f", "belongs to --distill simkd")),
        (("--epochs", "many"), ("--epochs", "invalid int value")),
        (("--precision", "fp64"), ("--precision", "bf16")),
        (("--tb_backend", "wandb"), ("--tb_backend", "tensorboard")),
        (("--distill",), ("--distill", "expected one argument")),
    ],
)
def test_a_malformed_command_line(student, argv, words):
    done = student(*argv)
    assert done.code == 2 and "Traceback" not in done.err and "--help" in done.err
    assert all(word in done.err for word in words), done.err


def test_a_rate_that_is_never_lowered(commands, teacher, tmp_path):
    words = (
        "note: training ends (--epochs 1) before the first learning-rate drop (--lr_decay_epochs 150,180,210): "
        "the learning rate stays at 0.01"
    )
    argv = ("--path_t", teacher, *SHORT, "--dry_run", "--lr", 0.01)
    assert commands.student(*argv, "--distill", "kd,at", cwd=tmp_path).finished().out.count(words) == 1
    for fits in (("--epochs", 2, "--lr_decay_epochs", 1), ("--schedule", "cosine"), ("--lr_decay_epochs", "")):
        assert "before the first learning-rate drop" not in commands.student(*argv, *fits, cwd=tmp_path).finished().out


def test_several_devices_for_one_process(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    alone = "--gpu_id 2,3 names 2 devices, but this process uses only the first: "
    assert pick_device("2,3", 0, 1) == (
        torch.device("cuda", 2),
        f"{alone}add --multiprocessing_distributed, or name one",
    )
    assert pick_device("2,3") == (torch.device("cuda", 2), f"{alone}name one")  # no flag starts several
    assert pick_device("2,3", 1, 2) == (torch.device("cuda", 3), None)  # one of two processes
    assert pick_device("3", 0, 1) == (torch.device("cuda", 3), None)


def test_no_teacher_named(commands, tmp_path):
    commands.student("--distill", "kd", "--save_root", tmp_path / "save").refused("--distill kd", "--path_t")
    assert not (tmp_path / "save").exists()


def test_a_teacher_that_does_not_fit(student, teacher, tmp_path):
    content = torch.load(teacher, weights_only=True)

    def saved(name, **changed):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({**content, **changed}, tmp_path / name)
        return tmp_path / name

    state = dict(content["model"])
    state["fc.weight"], state["fc.bias"] = torch.zeros(100, 64), torch.zeros(100)
    student("--path_t", saved("hundred.pth", model=state)).refused("100 classes", "10")
    student("--path_t", saved("vgg8_vanilla/vgg8_best.pth", meta={})).refused("vgg8")
    student("--path_t", saved("plain/best.pth", meta={})).refused("--model_t")
    student("--path_t", saved("wider.pth", meta={"arch": "resnet8x4"})).refused("resnet8x4")
    student("--path_t", teacher, "--model_t", "resnet20").refused("resnet8", "resnet20")


def test_a_file_that_is_no_checkpoint(student, teacher, tmp_path):
    whole = teacher.read_bytes()
    for name, content, word in (
        ("truncated", whole[: len(whole) // 2], "truncated"),
        ("empty", b"", "empty"),
        ("page", b"<html>not found</html>", "not a checkpoint"),
    ):
        (tmp_path / f"{name}.pth").write_bytes(content)
        student("--path_t", tmp_path / f"{name}.pth").refused(f"{name}.pth", word)
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "foreign.pth")
    student("--path_t", tmp_path / "foreign.pth").refused("foreign.pth", "refused", "state_dict")


@pytest.fixture(scope="module")
def image_tree(tmp_path_factory):
    """Two classes, six images each, 32 x 32."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def test_a_folder_of_images(commands, image_tree, tmp_path):
    tree = shutil.copytree(image_tree, tmp_path / "tree")
    argv = ("--dataset", "folder", "--data_folder", tree, "--batch_size", 6, *SHORT, "--save_root", tmp_path / "save")
    commands.teacher(*argv).finished()
    shutil.rmtree(tmp_path / "save")

    image = tree / "train" / "dog" / "3.png"
    image.write_bytes(image.read_bytes()[:100])
    commands.teacher(*argv).refused(str(image), "corrupt")
    image.unlink()
    commands.teacher(*argv, "--batch_size", 12).refused("--batch_size 12", "11")
    (tree / "val").rename(tree / "validation")
    commands.teacher(*argv).refused(str(tree), "val")
    shutil.rmtree(tree / "train" / "dog")
    (tree / "train").rename(tree / "training")
    commands.teacher(*argv).refused(str(tree), "no folder train/")
    assert not (tmp_path / "save").exists()


def test_one_class_is_no_classification(commands, image_tree, tmp_path):
    tree = shutil.copytree(image_tree, tmp_path / "tree")
    for part in ("train", "val"):
        shutil.rmtree(tree / part / "dog")
    commands.teacher("--dataset", "folder", "--data_folder", tree, "--batch_size", 2, *SHORT).refused(
        "holds one class folder, cat", "at least two"
    )


def test_digits_make_no_data_folder(commands, tmp_path):
    (tmp_path / "here").mkdir()
    commands.teacher(*SHORT, cwd=tmp_path / "here").finished()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here"]


def test_out_of_memory_is_one_sentence(student):
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux: memory cannot be limited elsewhere")
    student("--distill", "crd", "--nce_k", 2**24, memory=2**29).refused("out of memory", "--batch_size")


def test_cifar_half_there(commands, tmp_path):
    argv = ("--dataset", "cifar100", "--data_folder", tmp_path, *SHORT, "--save_root", tmp_path / "save")
    (tmp_path / "cifar100.npz").write_bytes(b"PK\x03\x04 and no more")
    commands.teacher(*argv).refused("cifar100.npz", "truncated")
    np.savez(tmp_path / "cifar100.npz", train_images=np.zeros((4, 32, 32, 3), np.uint8))
    commands.teacher(*argv).refused("cifar100.npz", "train_labels")
    assert not (tmp_path / "save").exists()


def test_stages_that_differ_are_paired_and_named(commands, student, tmp_path):
    root = tmp_path / "vgg"
    commands.teacher("--model", "vgg8", *SHORT, "--save_root", root).finished()
    (folder,) = (root / "teachers" / "models").iterdir()
    done = student("--path_t", folder / "vgg8_best.pth", "--distill", "at").finished()
    assert "pairs" in done.out and "stage1 with" in done.out


def test_a_save_root_that_cannot_be(commands, teacher, tmp_path):
    (tmp_path / "file").write_text("a file")
    done = commands.student("--path_t", teacher, *SHORT, "--save_root", tmp_path / "file" / "save")
    done.refused("cannot make the run folder", "Not a directory")
    dry = ("--path_t", teacher, *SHORT, "--dry_run", "--save_root")
    commands.student(*dry, tmp_path / "file" / "save").refused("cannot make the run folder", "file is a file")
    cache = ("--teacher_cache", tmp_path / "file" / "cache")
    commands.student(*dry, tmp_path, *cache).refused("cannot make the teacher cache", "file is a file")


@pytest.mark.parametrize("backend", ["tensorboard", "tensorboard_logger"])
def test_a_writer_that_is_not_installed(student, backend):
    student("--tb_backend", backend, hide=backend).refused(
        f"--tb_backend {backend}", "pip install", "--tb_backend none"
    )


DIVERGE = ("--distill", "vanilla", "--learning_rate", 1e30, "--precision", "fp32", "--max_steps", 3)


def test_a_loss_that_is_not_finite(commands, tmp_path):
    done = commands.student(*SHORT, "--save_root", tmp_path, *DIVERGE)
    done.refused(
        "the loss became NaN or infinite in epoch 1, step 2",
        "there is no checkpoint yet",
        "a lower -b, --clip_grad 5 or",
    )
    (folder,) = (tmp_path / "students" / "models").iterdir()
    assert not list(folder.glob("*.pth")) and (folder / "metrics.jsonl").read_text() == ""


def test_an_update_that_spoils_the_weights(commands, tmp_path):
    done = commands.student(*SHORT, "--save_root", tmp_path, *DIVERGE, "--max_steps", 1)
    done.refused("NaN or infinite in epoch 1, step 1", "there is no checkpoint yet")
    assert not list(tmp_path.rglob("*.pth"))


def test_a_stop_after_divergence_keeps_the_good_state(commands, tmp_path):
    # 1e37 * 10 is infinite: epoch 1 is healthy at a rate of zero
    argv = (*SHORT, "--save_root", tmp_path, *DIVERGE, "--epochs", 2, "--lr_decay_epochs", 1)
    argv += ("--learning_rate", 1e-8, "--lr_decay_rate", 1e38, "--clip_grad", 1e20)
    done = commands.student(*argv, signals=[[5, 15]])
    done.refused("NaN or infinite in epoch 2", "the last good checkpoint is", "a lower -b or --precision fp32")
    (last,) = tmp_path.rglob("resnet8_last.pth")
    state = torch.load(last, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(v.isfinite().all() for v in state["model"].values())
    rows = rows_of(last.parent)
    assert len(rows) == 1 and math.isfinite(rows[0]["test_loss"])


def test_disk_full(commands, teacher, tmp_path):
    """No file may grow beyond a limit between the sizes of the best and the last checkpoint."""
    argv = ("--path_t", teacher, *SHORT, "--epochs", 3, "--save_root", tmp_path)
    assert commands.student(*argv, signals=[[3, 15]]).code == 143
    (last,) = tmp_path.rglob("resnet8_last.pth")
    before, limit = last.read_bytes(), last.stat().st_size // 2
    assert last.with_name("resnet8_best.pth").stat().st_size > limit // 2
    commands.student(*argv, fsize=limit).refused("cannot write", "its previous content is kept")
    assert last.read_bytes() == before and not list(last.parent.glob(".*.tmp"))
    commands.student(*argv).finished()
    rows = [row["epoch"] for row in rows_of(last.parent)]
    assert rows == [1, 2, 3]


def test_disk_full_of_events(commands, teacher, tmp_path):
    """What the writer's own thread cannot write ends the run with a sentence, and nothing of the run is lost."""
    argv = ("--path_t", teacher, *SHORT, "--epochs", 2, "--save_root", tmp_path, "--tb_backend", "tensorboard")
    commands.student(*argv, events_full=True).refused("cannot write event files", "No space left")
    commands.student(*argv).finished()


def test_a_bug_shows_its_traceback(student):
    done = student(bug_at=2)
    assert done.code == 1 and "Traceback" in done.err and "KeyError: 'planted'" in done.err


def test_the_real_command(tmp_path):
    """No fork, no hooks: the interpreter and the script."""
    command = [sys.executable, str(ROOT / "train_student.py"), "--distill", "atention", "--dataset", "digits"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "Did you mean attention" in done.stderr
    assert not list(tmp_path.iterdir())
