"""Data settings travel with checkpoints: every tool looks at the data of a network's training."""

import numpy as np
import pytest
from PIL import Image

from dataset import dataset_dict
from dataset.base import DataOptions
from helper.networks.checkpoint import read_checkpoint
from models import load_student
from tests.support.commands import squeezed


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Images of four shades below train/ alone: without --val_fraction there is nothing to evaluate on."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for c, name in enumerate(("black", "dark", "light", "white")):
        (root / "train" / name).mkdir(parents=True)
        for i in range(20):
            pixels = (rng.integers(0, 40, (16, 16, 3)) + 70 * c).astype(np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(commands, tree, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    argv = ("--dataset", "folder", "--data_folder", tree, "--image_size", 16, "--val_fraction", 0.25, "--epochs", 1)
    commands.teacher(*argv, "--batch_size", 15, "--tb_backend", "none", "--save_root", root).finished()
    (path,) = root.rglob("resnet8_best.pth")
    return path


def test_what_a_checkpoint_records(trained):
    meta = read_checkpoint(trained).meta
    assert meta["classes"] == ["black", "dark", "light", "white"]
    assert (meta["dataset"], meta["val_fraction"], meta["shapes"]) == ("folder", 0.25, {"image": [3, 16, 16]})


def test_every_tool_uses_it(commands, trained, tree, tmp_path):
    data = ("--data_folder", tree)
    out = commands("test_model.py", "--path", trained, *data).finished().out
    assert "data set as in training: folder" in out and "as in training: --val_fraction 0.25" in out
    assert "20 samples, fp32" in out and "apart" not in out, "the accuracy is that of the training"
    commands("test_model.py", "--path", trained, *data, "--val_fraction", 0).refused("--val_fraction")
    commands("test_model.py", "--path", tmp_path, *data).refused(str(tmp_path), "neither model.safetensors")
    run = trained.parent  # the folder of the run means its best epoch
    out = commands("test_model.py", "--path", run, *data, "--val_fraction", 0.5).finished().out
    assert "40 samples, fp32" in out
    argv = ("--s_path", run, "--data", tree, "--image_size", 16, "--epochs", 1)
    assert "60 + 20 features" in commands("eval_rep.py", *argv).finished().out
    argv = ("--path", run, *data, "--forms", "safetensors", "--images", 10, "--out", tmp_path / "export")
    commands("scripts/export_student.py", *argv).finished()
    argv = ("--path", run, *data, "--out", tmp_path / "plot.png")
    commands("scripts/plot.py", "reliability", *argv).finished()
    out = commands("scripts/cakd/robustness.py", "--path", run, *data).finished().out
    assert "| 16 |" in squeezed(out)


def test_on_the_training_images(commands, trained, tree):
    argv = ("test_model.py", "--path", trained, "--data_folder", tree, "--train_images")
    out = commands(*argv).finished().out
    data = dataset_dict["folder"](DataOptions(tree, image_size=16, val_fraction=0.25))
    student, images = load_student(trained), data.train_images.permute(0, 3, 1, 2) / 255
    right = (student(images).argmax(1) == data.train_labels).float().mean()
    assert "folder (train, not augmented), 60 samples" in out and f"top-1 {100 * right:.2f} " in out
    assert "recorded in the file" not in out and "batch norm counted 4 training batches" in out
    commands(*argv, "--dataset", "imagenet").refused("--train_images", "read from disk", "--val_dir")
    commands(*argv, "--file", "a.png").refused("--train_images", "--file")


def test_the_folder_that_is_evaluated_travels(commands, tmp_path_factory):
    """train/, valid/ and test/: which one decides is said, and --val_dir chooses it in every tool."""
    tree, root = tmp_path_factory.mktemp("three"), tmp_path_factory.mktemp("run")
    for part, count in (("train", 8), ("valid", 3), ("test", 2)):
        for c, name in enumerate(("black", "white")):
            (tree / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), 200 * c + i, np.uint8)).save(tree / part / name / f"{i}.png")
    argv = ("--dataset", "folder", "--data_folder", tree, "--image_size", 8, "--epochs", 1, "--batch_size", 8)
    argv += ("--tb_backend", "none", "--save_root", root)
    out = commands.teacher(*argv, "--trial", 1).finished().out
    assert "evaluated on test/, which also chooses the best epoch; not read: valid/ (--val_dir valid" in out
    out = commands.teacher(*argv, "--val_dir", "valid").finished().out
    assert "evaluated on valid/" in out and "chosen on valid, hence optimistic)" in out
    commands.teacher(*argv, "--val_dir", "dev").refused("no folder dev/", "--val_dir test")
    commands.teacher(*argv, "--val_dir", "valid", "--val_fraction", 0.2).refused("--val_dir valid", "leave one out")
    (path,) = root.rglob("*val_dir*/resnet8_best.pth")
    data = ("--path", path, "--data_folder", tree)
    out = commands("test_model.py", *data).finished().out
    assert "as in training: --val_dir valid" in out and "6 samples, fp32" in out and "apart" not in out
    assert "4 samples, fp32" in commands("test_model.py", *data, "--val_dir", "test").finished().out
    argv = ("--s_path", path, "--data", tree, "--image_size", 8, "--epochs", 1)
    assert "16 + 6 features" in commands("eval_rep.py", *argv).finished().out
    (tree / "test").rename(tree / "dev")
    commands.teacher("--dataset", "folder", "--data_folder", tree, "--dry_run").refused(
        "neither val/ nor", "--val_dir valid"
    )
