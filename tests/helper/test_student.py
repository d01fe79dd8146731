"""A trained network in a program of one's own, from every place it may lie in."""

import json
import shutil

import pytest
import torch

from core.protocols import UserError
from helper.networks.load import load_network
from models import load_student, model_dict
from scripts.export_student import main as export

SHORT = ("--epochs", 1, "--max_steps", 4, "--tb_backend", "none")
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # digits of `commands` have 8 px


@pytest.fixture(scope="module")
def simkd(commands, teacher, tmp_path_factory):
    root = tmp_path_factory.mktemp("simkd")
    argv = ("--path_t", teacher, "--distill", "simkd", "--skip_validation", "--save_root", root, *SHORT)
    commands.student(*argv).finished()
    (folder,) = (root / "students" / "models").iterdir()
    return folder / "resnet8_best.pth"


@pytest.fixture(scope="module")
def exported(simkd, tmp_path_factory):
    pytest.importorskip("safetensors", reason="needs safetensors, of requirements-extra.txt")
    out = tmp_path_factory.mktemp("exported")
    export(["--path", str(simkd), "--dataset", "digits", "--out", str(out), "--forms", "safetensors"])
    return out


@torch.no_grad()
def logits_of(path):
    network = load_network(path, None, None, {"image": (3, 8, 8)})
    return network.tapped().eval()({"image": IMAGES})["logits"]


@torch.no_grad()
def test_a_run_folder_and_its_checkpoint(teacher):
    expected = logits_of(teacher)
    for path in (teacher, str(teacher), teacher.parent):
        student = load_student(path)
        assert not student.training and torch.equal(student(IMAGES), expected)
    assert "stage2" in student.taps and student.name == "resnet8"
    assert (student.format.kind, student.format.shape) == ("image", (3, 8, 8))
    features = load_student(teacher, taps=("pooled",)).features(IMAGES)
    assert features["pooled"].shape == (3, 64) and torch.equal(features["logits"], expected)
    with pytest.raises(UserError, match="no tap nose; it has stem, "):
        load_student(teacher, taps=("nose",))


@torch.no_grad()
def test_a_composite_from_its_export(simkd, exported):
    """SimKD's student brings its projector and the classifier of its teacher along, and the export its names."""
    expected = logits_of(simkd)
    digits = tuple(map(str, range(10)))
    for path in (simkd, exported, exported / "model.safetensors"):
        torch.testing.assert_close(load_student(path)(IMAGES), expected)
    assert load_student(exported).classes == digits
    shutil.copy(exported / "model.safetensors", exported / "alone.safetensors")  # without config.json next to it
    assert load_student(exported / "alone.safetensors").classes == digits


def test_names_of_classes_come_from_the_checkpoint(tmp_path):
    model = model_dict["resnet8"](num_classes=2)
    meta = {"arch": "resnet8", "num_classes": 2, "classes": ["cat", "dog"], "shapes": {"image": [3, 24, 24]}}
    torch.save({"model": model.state_dict(), "meta": meta}, tmp_path / "a.pth")
    student = load_student(tmp_path / "a.pth")
    assert student.classes == ("cat", "dog") and student.format.shape == (3, 24, 24)
    torch.save(model.state_dict(), tmp_path / "resnet8_of_others.pth")
    assert load_student(tmp_path / "resnet8_of_others.pth").classes is None


def test_folders_that_say_too_little(tmp_path, teacher):
    with pytest.raises(UserError, match="holds neither model.safetensors"):
        load_student(tmp_path)
    for name in ("a", "b"):
        shutil.copy(teacher, tmp_path / f"{name}_best.pth")
    with pytest.raises(UserError, match="several networks .a_best.pth, b_best.pth.: give one"):
        load_student(tmp_path)
    torch.save(model_dict["resnet8"]().state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="give it with model="):
        load_student(tmp_path / "x.pth")


@torch.no_grad()
def test_from_the_local_cache_of_a_hub(exported, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub, of requirements-extra.txt")
    commit, repository = "0" * 40, tmp_path / "models--ann--student"
    shutil.copytree(exported, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    student = load_student("hf_hub:ann/student")
    assert student.classes == tuple(map(str, range(10)))
    torch.testing.assert_close(student(IMAGES), load_student(exported)(IMAGES))
    with pytest.raises(UserError, match="hf_hub:ann/other is not in the local cache"):
        load_student("hf_hub:ann/other")


def test_a_network_without_a_classifier_is_refused(tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    files = pytest.importorskip("safetensors.torch", reason="needs safetensors, of requirements-extra.txt")
    files.save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    with pytest.raises(UserError, match="has no classifier .its published weights hold none., so it cannot predict"):
        load_student(tmp_path)


def test_a_damaged_config(exported, tmp_path):
    for file in ("model.safetensors", "config.json"):
        shutil.copy(exported / file, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps({"classes": []})[:-1])
    with pytest.raises(UserError, match="cannot read '.*config.json'"):
        load_student(tmp_path)
