"""--class_weight balanced: cross-entropy by inverse class frequency, with hard and soft labels, in one setting."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.protocols import Batch, Context, Progress, Side
from distiller_zoo import method_dict
from distiller_zoo.base import inverse_frequencies
from helper.options.naming import folder_of
from helper.options.parse import parse
from models import model_dict

LABELS = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)


def method(name="kd", **settings):
    spec = model_dict["resnet8"]
    side = Side(spec, spec(num_classes=3).fc, {"logits": (3,), "pooled": (64,)})
    cls = method_dict[name]
    return cls(cls.Config(class_weight="balanced", **settings), Context(3, LABELS, 4, side, side))


def test_weights_are_one_on_average_over_the_samples():
    weights = inverse_frequencies(LABELS, 3)
    assert torch.allclose(weights, torch.tensor([12 / 18, 12 / 6, 12 / 12]))
    assert float(weights[LABELS].mean()) == pytest.approx(1)
    assert inverse_frequencies(torch.tensor([0, 0, 2, -1]), 4).tolist() == [0.375, 0.0, 0.75, 0.0]


def test_hard_and_soft_labels_agree_and_other_terms_stay():
    torch.manual_seed(0)
    z, t, target = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    batch, kd = Batch({}, target, torch.arange(4)), method()
    weights = kd.weights(Progress())
    found = kd.common_terms({"logits": z}, {"logits": t}, batch, weights)
    rows = F.cross_entropy(z, target, reduction="none") * inverse_frequencies(LABELS, 3)[target]
    assert torch.allclose(found["cls"], rows.mean())
    plain = method_dict["kd"](method_dict["kd"].Config(), Context(3, LABELS, 4, Side(model_dict["resnet8"], None, {})))
    assert torch.equal(found["div"], plain.common_terms({"logits": z}, {"logits": t}, batch, weights)["div"])
    soft = Batch({}, target, torch.arange(4), soft_target=F.one_hot(target, 3).float())
    assert torch.allclose(kd.common_terms({"logits": z}, {}, soft, weights)["cls"], found["cls"])
    mixed = torch.tensor([[0.5, 0.5, 0.0]])
    by_class = inverse_frequencies(LABELS, 3) * mixed * -F.log_softmax(z[:1], 1)
    assert torch.allclose(kd.cross_entropy(z[:1], mixed), by_class.sum())


def test_the_setting_is_part_of_a_run():
    """Of its identity, its name and what is said of flags without effect; no state keeps the weights."""
    argv = ["--path_t", "x.pth", "--class_weight", "balanced"]
    settings = parse(argv, teacher=False)
    assert settings.config.class_weight == settings.identity["class_weight"] == "balanced"
    assert "class_weight:balanced" in folder_of(settings, "resnet8").models.name
    assert parse(argv[2:], teacher=True).config.class_weight == "balanced"
    assert parse(["--path_t", "x.pth"], teacher=False).identity["class_weight"] == "none"
    assert parse([*argv, "--distill", "simkd"], teacher=False).without_effect["class_weight"]
    combined = parse([*argv, "--distill", "kd+at"], teacher=False).config
    assert combined.class_weight == "balanced"
    assert not method().state_dict()


def test_a_run_on_unequal_classes(commands, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, count in (("a", 12), ("b", 4)):
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    argv = ("--model", "resnet8", "--dataset", "folder", "--data_folder", tmp_path / "data", "--image_size", 8)
    argv += ("--batch_size", 8, "--epochs", 1, "--tb_backend", "none", "--save_root", tmp_path / "save")
    losses = []
    for more in ((), ("--class_weight", "balanced"), ("--class_weight", "balanced", "--mixup", 0.5)):
        commands("train_teacher.py", *argv, *more).finished()
    for path in Path(tmp_path / "save").rglob("metrics.jsonl"):
        losses.append(json.loads(path.read_text())["train_loss"])
    assert len(set(losses)) == 3
    for file in (tmp_path / "data").glob("train/a/*.png"):
        if int(file.stem) >= 4:
            file.unlink()
    out = commands("train_teacher.py", *argv, "--class_weight", "balanced", "--dry_run").finished().out
    assert "--class_weight (every class of folder has 4 samples)" in out
