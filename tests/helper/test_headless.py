"""Teachers without a classifier for the data: recognised from every source, refused or used, never random."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.protocols import Published, UserError
from core.taps import TappedNet
from distiller_zoo import method_dict
from helper.networks.head_probe import fit_linear_head, means_head
from helper.networks.headless import load_teacher, with_view
from helper.networks.load import Network, ensemble_of
from models import model_dict
from models._imagenet_names import places
from tests.support import hub
from tests.support.contract import PROGRESS, make_step
from tests.support.headless import step_without_logits
from tests.support.toys import B, ToyData, network

NAMED = ("timm:convnextv2_atto.fcmae", "timm:test_vit", "torchvision:shufflenet_v2_x0_5")
SOURCES = {  # source -> why it has no classifier for ten digits
    "headless.pth": "its file holds no fc.weight",
    "seven.pth": "trained for 7 classes, but the data set has 10",
    NAMED[0]: "its published weights hold none",
    NAMED[1]: "trained for 1000 classes, but the data set has 10",
    NAMED[2]: "trained for 1000 classes, but the data set has 10",
    "hf_hub:someone/small": "its published weights hold none",
    "dinov2": "its published weights hold none",
    "siglip": "its published weights hold none",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folder with weights of every source: files, and caches that stand for what is published. Those of DINOv2 and
    SigLIP have the keys that transformers writes."""
    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    pytest.importorskip("transformers", reason="needs transformers, of requirements-extra.txt")
    pytest.importorskip("safetensors", reason="needs safetensors, of requirements-extra.txt")
    from torchvision import models

    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    seven = model_dict["resnet8"](num_classes=7).state_dict()
    torch.save({"model": seven, "meta": {"arch": "resnet8"}}, root / "seven.pth")
    bare = {k: v for k, v in seven.items() if not k.startswith("fc.")}
    torch.save({"model": bare, "meta": {"arch": "resnet8"}}, root / "headless.pth")
    headless = timm.create_model("convnextv2_atto", num_classes=0)
    hub.fill(root, "timm/convnextv2_atto.fcmae", headless.state_dict(), {})
    hub.fill(root, "timm/test_vit.r160_in1k", timm.create_model("test_vit").state_dict(), {})
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    hub.fill(root, "someone/small", timm.create_model("test_vit", num_classes=0).state_dict(), config)
    hub.saved(hub.made("dinov2")[0], root / "dinov2")
    hub.saved(hub.made("siglip_vision_model")[0], root / "siglip", "vision_model.")
    hub.fill_torch(root / "torch", "shufflenet_v2_x0_5", models.shufflenet_v2_x0_5())
    return root


@pytest.fixture(scope="module")
def loaded(commands, sources):
    """What reads the sources takes seconds to import."""
    own = (f"transformers.models.{name}.modeling_{name}" for name in ("dinov2", "siglip"))
    commands.load(
        "timm", "safetensors.torch", *own, **{k: v for k, v in hub.offline(sources).items() if k[:3] == "HF_"}
    )


@pytest.fixture
def student(commands, sources, loaded, tmp_path):
    """train_student.py for a few steps with a teacher of `sources`."""

    def run(source, *argv):
        path = source if ":" in source else sources / source
        few = ["--image_size", 32, "--epochs", 1, "--few_ratio", 0.2, "--max_steps", 2, "--save_root", tmp_path]
        few += ["--tb_backend", "none"]
        return commands.student("--path_t", path, *few, *argv, env=hub.offline(sources))

    return run


@pytest.mark.parametrize("source", SOURCES)
def test_no_teacher_teaches_through_a_random_head(student, source):
    done = student(source, "--distill", "kd")
    done.refused("has no classifier for this data", SOURCES[source], "--teacher_probe linear", "embed -d 0", "-d 1")


# the same code, tested above, recognises the others
@pytest.mark.parametrize("source", ["headless.pth", *(s for s in SOURCES if s in (NAMED[0], NAMED[2], "dinov2"))])
def test_features_alone_need_no_classifier(student, source):
    done = student(source, "--distill", "embed", "-d", 0).finished()
    assert "teacher accuracy:  none" in done.out


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        pytest.param(source, kind, marks=pytest.mark.slow if (source == "dinov2") == (kind == "linear") else ())
        for source in (NAMED[0], "dinov2", "siglip")
        for kind in ("linear", "means")
    ],
)
def test_a_probe_lets_logits_teach(student, source, kind, tmp_path):
    done = student(source, "--distill", "kd", "--teacher_probe", kind).finished()
    assert f"fitting a {kind} probe" in done.out
    (path,) = (tmp_path / "teacher_probes").iterdir()
    (run,) = (tmp_path / "students" / "models").iterdir()
    identity = json.loads((run / "args.json").read_text())["identity"]
    assert identity["teacher_probe"] == kind
    assert identity["teacher"].endswith(f" {kind} probe {path.stem.removeprefix(f'{kind}_')}")
    accuracy = json.loads((run / "parameters.json").read_text())["teacher_acc"]
    assert accuracy > {"linear": 20, "means": 13}[kind]  # of ten classes, on features of random weights


def test_an_exported_student_teaches(commands, teacher, tmp_path):
    """As the folder or as its file; on other classes it has no classifier."""
    export = ("--path", teacher, "--dataset", "digits", "--out", tmp_path / "out", "--forms", "safetensors")
    commands("scripts/export_student.py", *export).finished()
    argv = ["--epochs", 1, "--max_steps", 2, "--tb_backend", "none", "--distill", "kd"]
    said = []
    for i, path in enumerate((teacher.parent, tmp_path / "out", tmp_path / "out" / "model.safetensors")):
        done = commands.student("--path_t", path, "--save_root", tmp_path / str(i), *argv).finished()
        said += [line for line in done.out.splitlines() if line.startswith("teacher accuracy")]
    assert len(said) == 3 and len(set(said)) == 1
    other = load_teacher(tmp_path / "out", None, 7, {"image": (3, 32, 32)})
    assert other.spec.headless and other.lacks == "it was trained for 10 classes, but the data set has 7"


def test_a_probe_is_fitted_once_and_then_read(student, tmp_path):
    dry = student("seven.pth", "--distill", "kd", "--teacher_probe", "means", "--dry_run").finished()
    assert "means probe of resnet8" in dry.out and not any(tmp_path.iterdir())
    student("seven.pth", "--distill", "kd", "--teacher_probe", "means").finished()
    again = student("seven.pth", "--distill", "dkd", "--teacher_probe", "means").finished()
    assert "fitting" not in again.out and "means probe of resnet8" in again.out
    assert len(list((tmp_path / "teacher_probes").iterdir())) == 1


def test_methods_that_apply_the_teachers_classifier_refuse_too(student):
    student("headless.pth", "--distill", "simkd", "-d", 0).refused("--distill simkd reads its logits")
    student("headless.pth", "--distill", "embed+dkd", "-d", 0).refused("--distill embed+dkd reads its logits")


def test_an_ensemble_needs_classifiers(commands, sources, tmp_path):
    both = [sources / "headless.pth", sources / "seven.pth"]
    done = commands.student("--path_t", *both, "--save_root", tmp_path, "--distill", "kd", "-d", 0)
    done.refused("an ensemble reads its logits")


def test_the_cache_keeps_the_pooled_features_of_a_headless_teacher(student, tmp_path):
    argv = ["--distill", "embed", "-d", 0, "--teacher_cache", tmp_path / "cache", "--epochs", 2]
    student("headless.pth", *argv).finished()
    assert json.loads((tmp_path / "cache" / "key.json").read_text())["dtype"] == "float16"
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {"key.json", "pooled.bin", "pooled_sums.bin"}
    assert any((tmp_path / "cache" / "pooled_sums.bin").read_bytes())


def test_the_teacher_sees_another_size(student, sources, tmp_path):
    """Positions are interpolated; the cache and the run say which size it was."""
    argv = ["--distill", "embed", "-d", 0, "--teacher_cache", tmp_path / "cache", "--teacher_image_size"]
    done = student(NAMED[1], *argv, 48).finished()
    assert "position embedding interpolated from 10x10 patches to 3x3" in done.out
    assert " at 48 px, bicubic" in json.loads((tmp_path / "cache" / "key.json").read_text())["teacher"]
    student(NAMED[1], *argv, 64).refused("caches another teacher or other data", "at 48 px", "at 64 px")
    student(NAMED[1], *argv, 50).refused("patches of 16 px", "50 px", "--teacher_image_size 48")


def test_several_teachers_by_features(commands, sources, tmp_path):
    both = [sources / "headless.pth", sources / "seven.pth"]
    argv = ["--path_t", *both, "--save_root", tmp_path, "--epochs", 1, "--max_steps", 2, "--tb_backend", "none"]
    commands.student(*argv, "--distill", "embed", "-d", 0).finished()
    commands.student(*argv, "--distill", "embed", "-d", 1).refused("has no classifier", "--distill embed with -d 1")
    commands.student(*argv, "--distill", "sp", "-d", 0).refused("an ensemble reads its logits")


def test_each_teacher_has_a_projector():
    """The loss of two is the mean of what each alone would give; logits are those of the ensemble."""
    data = ToyData(image=(3, 32, 32), num_classes=5)
    teachers = [network(model_dict[name], 5) for name in ("resnet8", "resnet8x4")]
    two = ensemble_of(teachers, (0.25, 0.75), by_features=True)
    cfg = method_dict["embed"].Config(cls=0.0)
    step = make_step(method_dict["embed"], cfg, model_dict["resnet8"], lambda: two, data, B)
    step.train()
    method, batch = step.method, data.batch()
    assert [m.weight.shape[0] for m in (method.proj, *method.more)] == [64, 256]
    s, t = step.objective.features(batch)
    own = method.terms(s, t, batch, PROGRESS)["embed"]
    alone = [
        1 - F.cosine_similarity(proj(s["pooled"]), t[name]).mean()
        for name, proj in (("pooled", method.proj), ("pooled@1", method.more[0]))
    ]
    assert torch.allclose(own, sum(alone) / 2)
    one, other = (n.tapped().eval()({"image": batch.inputs["image"]})["logits"].softmax(1) for n in teachers)
    assert torch.allclose(t["logits"].exp(), 0.25 * one + 0.75 * other, atol=1e-6)
    before = method.more[0].weight.detach().clone()
    step(batch, PROGRESS)
    assert not torch.equal(before, method.more[0].weight)


@pytest.mark.parametrize(
    ("classes", "want"),
    [
        (["tench", "goldfish"], [0, 1]),
        (["Great White Shark", "chain-saw"], [2, 491]),
        (["tench", "no such thing"], None),
        (["tench", "Tench"], None),
    ],
)
def test_places_of_imagenets_classes_by_name(classes, want):
    assert places(classes) == want


def test_places_of_imagenets_classes_by_number():
    pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    assert places(["n01443537", "n01440764"]) == [1, 0]


def test_an_imagenet_teacher_of_some_of_its_classes(sources, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(sources / "torch" / "hub"))
    shapes = {"image": (3, 32, 32)}
    seen = load_teacher(NAMED[2], None, ["goldfish", "tench"], shapes)
    whole = load_teacher(NAMED[2], None, 1000, shapes)
    x = {"image": torch.rand(2, 3, 32, 32)}
    with torch.no_grad():
        want = whole.tapped().eval()(x)["logits"][:, [1, 0]]
        assert torch.allclose(seen.tapped().eval()(x)["logits"], want, atol=1e-6)
    assert not seen.spec.headless and seen.checksum != whole.checksum
    assert load_teacher(NAMED[2], None, ["tench", "zero"], shapes).spec.headless


def test_an_imagenet_teacher_of_a_folder_of_wordnet_numbers(student, tmp_path):
    for part in ("train", "val"):
        for number in ("n01443537", "n01440764"):
            place = tmp_path / "tree" / part / number
            place.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), (30 * i, 100, 50)).save(place / f"{i}.png")
    argv = ["--dataset", "folder", "--data_folder", tmp_path / "tree", "--few_ratio", 1, "--batch_size", 8]
    done = student(NAMED[2], "--distill", "kd", *argv).finished()
    assert "2 of its 1000 classes are used" in done.out
    (run,) = (tmp_path / "students" / "models").iterdir()
    assert " classes " in json.loads((run / "args.json").read_text())["identity"]["teacher"]


def test_a_view_is_the_resized_batch():
    torch.manual_seed(0)
    path = SimpleNamespace(path=Path("x"), peer=None)
    spec = dataclasses.replace(model_dict["resnet8"], published=Published(interpolation="bicubic"))
    network = Network(spec, spec(num_classes=10).eval(), path)
    x = torch.rand(2, 3, 16, 16)
    larger = F.interpolate(x, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    want = TappedNet(network.model, spec)({"image": larger})["logits"]
    seen = with_view(network, 32, {"image": (3, 16, 16)})
    assert torch.allclose(seen.tapped()({"image": x})["logits"], want, atol=1e-5)
    with pytest.raises(UserError, match="resizes images, but sensor_cnn reads"):
        with_view(dataclasses.replace(network, spec=model_dict["sensor_cnn"]), 32, {})


@pytest.mark.parametrize("name", [n for n in method_dict if method_dict[n].teacher_mode == "frozen"])
def test_what_a_method_says_of_logits_is_true(name):
    """A method that says it needs no classifier never asks for a headless teacher's logits."""
    method = method_dict[name]
    if method.needs_classifier(method.Config(div=0.0)):
        with pytest.raises((KeyError, UserError, AttributeError, AssertionError)):
            step_without_logits(name)
    else:
        assert torch.isfinite(step_without_logits(name))


def test_heads_find_classes_that_are_apart():
    """They draw no random number: training continues as if a student had not been probed."""
    g = torch.Generator().manual_seed(0)
    centres, y = 3 * torch.randn(5, 8, generator=g), torch.arange(200) % 5
    x = centres[y] + torch.randn(200, 8, generator=g)
    for fit in (fit_linear_head, means_head):
        before = torch.get_rng_state()
        weight, bias = fit(x, y, 5)
        assert ((x @ weight.T + bias).argmax(1) == y).float().mean() > 0.95
        assert torch.equal(torch.get_rng_state(), before)


def test_nearest_means_by_hand():
    x, y = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]), torch.tensor([0, 0, 1, 1])
    weight, bias = means_head(x, y, 2)
    margin = (x @ weight.T + bias) @ torch.tensor([1.0, -1.0])
    distance = x.sub(torch.tensor([1.0, 4.0])).square().sum(1) - x.sub(torch.tensor([1.0, 0.0])).square().sum(1)
    assert torch.allclose(margin / margin[0], distance / distance[0])
    assert margin[0] > 0 > margin[2]
