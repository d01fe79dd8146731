"""torchvision:NAME and timm:NAME: found taps, own normalisation, errors, and a run on image files."""

import json
import sys
from pathlib import Path

import pytest
import torch

import train_student
from core.protocols import Tap, UserError
from core.registry import Registry
from core.taps import TappedNet, probe
from distiller_zoo import method_dict
from helper.networks.load import load_network
from helper.runs.folder import RunFolder, file_name
from models import external, model_dict
from tests.golden.rule import rand
from tests.support import image_sets
from tests.support.model_contract import check_layout, check_training, shapes_alone, tapped

STAGES = tuple(f"stage{i}" for i in (1, 2, 3, 4))
RESNET = {"stem": "relu", **{f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)}, "pooled": "fc"}
FOUND = {  # name: tap -> module
    "torchvision:resnet18": RESNET,
    "timm:resnet18": RESNET | {"stem": "act1"},
    "torchvision:mobilenet_v2": {
        "stem": "features.1",
        "stage1": "features.3",
        "stage2": "features.6",
        "stage3": "features.13",
        "stage4": "features",
        "pooled": "classifier.1",
    },
    "timm:mobilenetv3_small_050": {
        "stem": "bn1",
        "stage1": "blocks.0",
        "stage2": "blocks.1",
        "stage3": "blocks.3",
        "stage4": "blocks.5",
        "pooled": "classifier",
    },
    "torchvision:densenet121": {  # the last norm's output is overwritten by a functional ReLU: not a tap
        "stem": "features.relu0",
        **{f"stage{i}": f"features.denseblock{i}" for i in (1, 2, 3, 4)},
        "pooled": "classifier",
    },
    "timm:convnext_atto": {  # no map of stride 2
        "stem": "stem",
        **{f"stage{i}": f"stages.{i - 1}" for i in (1, 2, 3, 4)},
        "pooled": "head.fc",
    },
}


@pytest.fixture(autouse=True)
def need_timm(request):
    if "timm" in request.node.name:
        pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")


@pytest.mark.parametrize("name", FOUND)
def test_taps_are_found(name):
    """At half of the size it was made for: strides 4, 8, 16, 32 and the vector the classifier reads."""
    spec = model_dict[name]
    assert {k: t.module for k, t in spec.taps.items()} == FOUND[name]
    assert spec.feats == ("stem", *STAGES, "pooled")
    assert spec.taps["pooled"] == Tap(spec.head, "vector", "input")
    with shapes_alone():
        net = tapped(spec, num_classes=7)
        out = net({"image": torch.zeros(2, 3, 112, 112)})
    assert [112 / out[s].shape[-1] for s in STAGES[:3]] == [4, 8, 16]
    assert out["logits"].shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050", "timm:resnet10t"])
def test_taps_of_a_network_in_training(name):
    net = tapped(model_dict[name], num_classes=7)
    check_layout(net, 64)
    check_training(net, 64)


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_auxiliary_heads_are_left_out(name):
    spec = model_dict[name]
    with shapes_alone():
        out = tapped(spec, num_classes=7).train()({"image": torch.zeros(2, *spec.input_shape)})
    assert out["logits"].shape == (2, 7)
    assert spec.stages == STAGES


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "torchvision:swin_t", "timm:vit_tiny_patch16_224"])
def test_a_network_without_maps_says_so(name):
    spec = model_dict[name]
    assert spec.stages == ()
    assert spec.feats == ("pooled",)
    assert spec.taps.keys() - {"tokens", "patches", "class_token", "qkv"} == {"pooled"}
    with pytest.raises(UserError, match="stage maps"):
        method_dict["at"].needs(method_dict["at"].Config(), spec, spec)
    with shapes_alone():
        out = tapped(spec, num_classes=7)({"image": torch.zeros(1, 3, 224, 224)})
    assert out["pooled"].ndim == 2
    if "tokens" in out:
        assert out["tokens"].shape[1:] == (197, out["pooled"].shape[1])
    with pytest.raises(UserError, match=f"{spec.name} has no tap stage1; it has .*pooled"):
        TappedNet(torch.nn.Identity(), spec, ["stage1"])


def test_wrong_size_for_a_timm_transformer_is_one_sentence():
    spec = model_dict["timm:vit_tiny_patch16_224"]
    with pytest.raises(UserError, match="timm:vit_tiny_patch16_224 cannot run on inputs of 3x60x60: .*patch size"):
        probe(TappedNet(spec(num_classes=3), spec), {"image": (3, 60, 60)})


def test_a_convolution_as_torchvision_squeezenets_classifier():
    spec = model_dict["torchvision:squeezenet1_1"]
    assert spec.taps["pooled"] == Tap("classifier.1", "map", "input")
    assert spec(num_classes=3)(rand((1, 3, 64, 64), 0)).shape == (1, 3)


def test_normalisation_is_the_networks_own():
    assert model_dict["torchvision:resnet18"].mean == (0.485, 0.456, 0.406)
    assert model_dict["torchvision:inception_v3"].input_shape == (3, 299, 299)


def test_normalisation_of_timm_networks_is_applied():
    spec = model_dict["timm:mobilenetv1_100"]
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model, x = spec(num_classes=3).eval(), rand((1, 3, 64, 64), 5).abs()
    with torch.no_grad():
        assert torch.equal(TappedNet(model, spec)({"image": x})["logits"], model((x - 0.5) / 0.5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "torchvision has no network 'resnet81': did you mean .*torchvision:resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no network"),
        ("torchvision:", "torchvision has no network '': it has alexnet"),
        ("torchvison:resnet18", "unknown model 'torchvison:resnet18'. Did you mean torchvision:resnet18\\?"),
        ("timm:resnett18", "timm has no network 'resnett18': did you mean .*timm:resnet18"),
        ("timm:resnet18.nobody", "timm has no network 'resnet18.nobody': did you mean timm:resnet18\\."),
        ("hub:resnet18", "unknown model 'hub:resnet18'.*torchvision:NAME, timm:NAME"),
    ],
)
def test_unknown_names(name, message):
    for look_up in (model_dict.__getitem__, model_dict.resolve):
        with pytest.raises(UserError, match=message):
            look_up(name)
    assert name not in model_dict


def test_registry_answers_for_prefixed_names_without_listing_them():
    assert "torchvision:resnet18" in model_dict
    assert model_dict["torchvision:resnet18"] is model_dict["torchvision:resnet18"]
    assert model_dict.resolve("torchvision:resnet18") == "torchvision:resnet18"
    assert not [name for name in model_dict if ":" in name]
    assert 3 not in model_dict
    plain = Registry("thing", {"a": "models._common:CIFAR_MEAN"})
    assert "torchvision:resnet18" not in plain


def test_absent_timm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    external.timm_spec.cache_clear()
    with pytest.raises(UserError, match="timm:resnet18 needs the package timm: pip install timm"):
        model_dict["timm:resnet18"]
    assert "timm:resnet18" not in model_dict


def test_looking_a_network_up_draws_no_random_numbers():
    external.torchvision_spec.cache_clear()
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    model_dict["torchvision:squeezenet1_1"]
    assert torch.equal(torch.rand(3), want)


def test_pretrained_torchvision_network(monkeypatch):
    from torchvision import models

    state = models.resnet18().state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *a, **k: state)
    spec = model_dict["torchvision:resnet18"]
    whole = spec(num_classes=1000, pretrained=True).state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.items())
    three = spec(num_classes=3, pretrained=True)
    assert three.fc.weight.shape == (3, 512)
    assert torch.equal(three.conv1.weight, state["conv1.weight"])
    assert not [m for m in three.modules() if getattr(m, "inplace", False)]


def test_pretrained_timm_network(tmp_path, monkeypatch):
    import timm

    state = timm.create_model("resnet10t").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    spec = model_dict["timm:resnet10t"]
    three = spec(num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    assert three.fc.weight.shape == (3, 512)
    assert torch.equal(three.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    assert not [m for m in three.modules() if getattr(m, "inplace", False)]

    def unpublished(*args, **options):
        raise RuntimeError("No pretrained weights exist for it.\nmore")

    monkeypatch.setattr(timm, "create_model", unpublished)
    with pytest.raises(UserError, match=r"no pretrained weights for timm:resnet10t: No pretrained .* it\.$"):
        spec(num_classes=3, pretrained=True)


def test_names_in_file_names(monkeypatch):
    assert file_name("timm:resnet18") == "timm:resnet18"
    monkeypatch.setattr("helper.runs.folder.SEPARATOR", "~")
    assert RunFolder(Path("m"), Path("t"), "timm:resnet18").best.name == "timm~resnet18_best.pth"


def test_checkpoint_of_an_external_network(tmp_path):
    """What the file records decides; without a record, --model_t does."""
    state = model_dict["torchvision:squeezenet1_1"](num_classes=3).state_dict()
    path, shapes = tmp_path / "some_name.pth", {"image": (3, 64, 64)}
    torch.save({"model": state}, path)
    network = load_network(path, "torchvision:squeezenet1_1", 3, shapes)
    assert network.spec is model_dict["torchvision:squeezenet1_1"]
    torch.save({"model": state, "meta": {"arch": "torchvision:squeezenet1_1"}}, path)
    assert load_network(path, None, None, shapes).spec is network.spec
    with pytest.raises(UserError, match="trained for 3 classes, but the data set has 5"):
        load_network(path, None, 5, shapes)


def test_a_timm_student_of_image_files(tmp_path, monkeypatch):
    """timm student, ImageNet teacher read from its own run's file, feature maps of both, on 64 px images."""
    few = image_sets.jpegs(tmp_path / "data", 3, train=4, val=2)
    torch.manual_seed(0)
    teacher = tmp_path / "t" / "shufflenet_v2_x0_5_best.pth"
    teacher.parent.mkdir()
    torch.save({"model": model_dict["shufflenet_v2_x0_5"](num_classes=3).state_dict()}, teacher)
    argv = ["--dataset", "folder", "--data_folder", str(few), "--image_size", "64", "--batch_size", "6"]
    argv += ["--epochs", "1", "--save_root", str(tmp_path / "save"), "--tb_backend", "none"]
    argv += ["--model_s", "timm:resnet10t", "--path_t", str(teacher), "--distill", "fitnet", "-b", "1"]
    monkeypatch.setattr(sys, "argv", ["train_student.py"])
    train_student.main(argv)
    (run,) = (tmp_path / "save" / "students" / "models").iterdir()
    assert run.name.startswith(f"S:{file_name('timm:resnet10t')}_T:shufflenet_v2_x0_5_folder_hint")
    (best,) = run.glob("*_best.pth")
    assert best.name == f"{file_name('timm:resnet10t')}_best.pth"
    again = load_network(best, None, 3, {"image": (3, 64, 64)})
    assert again.spec is model_dict["timm:resnet10t"]
    assert json.loads((run / "parameters.json").read_text())["last"]["epoch"] == 1
