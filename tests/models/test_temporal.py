"""Temporal shift, TSN and TSM: golden numbers, places of the shifts, taps, key maps of published files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from core.protocols import UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict
from helper.networks.load import load_network
from models import model_dict
from models._video_keys import to_openmmlab
from models.temporal import SWIN_BASE, TemporalShift, _over, shifted
from tests.golden.rule import fill_module, rand
from tests.support import openmmlab
from tests.support.cases import mostly
from tests.support.contract import PROGRESS, check_contract, make_step
from tests.support.model_contract import shapes_alone
from tests.support.toys import ToyData, network

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "video.json").read_text())
NAMED = ("tsm_resnet50", "tsm_mobilenetv2", "tsn_resnet50", "tsn_swin_base")
FAMILY = {
    "tsm_resnet50": "resnet",
    "tsn_resnet50": "resnet",
    "tsm_mobilenetv2": "mobilenet_v2",
    "tsn_swin_base": "swin",
}


class VideoToy(ToyData):
    """Noise clips of 2 frames, 32 px."""

    @property
    def shapes(self):
        return {"video": (2, 3, 32, 32)}


def on_meta(name, num_classes=400):
    with shapes_alone():
        return model_dict[name](num_classes=num_classes)


def test_golden_shift():
    case = GOLDEN["shift"]
    y = shifted(rand(case["input"], case["seed"]), case["n_segment"], case["input"][1] // case["fold_div"])
    assert y.norm().item() == pytest.approx(case["l2"], rel=1e-6)
    torch.testing.assert_close(y[1, :, 0, 0], torch.tensor(case["first"][: y.shape[1]]))


def test_shift_by_hand():
    """Two clips of 0..63 as [8, 8, 1, 1]: channels 0 to 2 at each time; nothing comes from the other clip."""
    x = torch.arange(64.0).view(8, 8, 1, 1)
    y = shifted(x, 4, 1)
    assert y[:4, :3, 0, 0].tolist() == [[8, 0, 2], [16, 1, 10], [24, 9, 18], [0, 17, 26]]
    assert y[4:, :3, 0, 0].tolist() == [[40, 0, 34], [48, 33, 42], [56, 41, 50], [0, 49, 58]]
    assert torch.equal(y[:, 2:], x[:, 2:])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shift_gradient_and_in_place(layout):
    """The gradient is the transpose; without gradient the input is shifted in place and put back, bit by bit."""
    x = rand((8, 16, 2, 2), 5).contiguous(memory_format=layout)
    layer = TemporalShift(torch.nn.Conv2d(16, 4, 1), 4)
    double, wide = layer.double(), x.double().requires_grad_()
    assert torch.autograd.gradcheck(double, (wide,))
    layer, before = layer.float(), x.clone()
    with torch.no_grad():
        in_place = layer(x)
    assert torch.equal(x, before)
    assert torch.equal(in_place, layer.net(shifted(x, 4, 2)))
    assert torch.equal(in_place, layer(x).detach())


# without the shift, it is the ResNet-50 of test_models_imagenet.py
@pytest.mark.parametrize("name", ["tsm_resnet50", pytest.param("tsn_resnet50", marks=pytest.mark.slow)])
def test_golden_network(name):
    case = GOLDEN[name]
    model = fill_module(model_dict[name](num_classes=case["classes"]), salt=0).eval()
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    assert [[k, list(v.shape)] for k, v in model.state_dict().items()] == case["keys"]
    batch, channels, *size = case["input"]
    x = rand(case["input"], 1000).view(batch, case["segments"], channels // case["segments"], *size)
    with torch.no_grad():
        logits = model(x)
    want = torch.tensor(case["logits"])
    torch.testing.assert_close(logits[:, : want.shape[1]], want, rtol=1e-3, atol=1e-3 * want.abs().mean().item())
    assert logits.norm().item() == pytest.approx(case["l2"], rel=1e-3)


def test_published_sizes():
    params = {n: sum(p.numel() for p in on_meta(n).parameters()) for n in NAMED}
    assert params == {
        "tsm_resnet50": 24_327_632,
        "tsn_resnet50": 24_327_632,
        "tsm_mobilenetv2": 2_736_272,
        "tsn_swin_base": 86_743_224 + 1024 * 400 + 400,
    }
    assert len(on_meta("tsm_resnet50").base_model.state_dict()) == 318
    assert len(on_meta("tsm_mobilenetv2").base_model.state_dict()) == 312


def test_places_of_the_shifts():
    """16 in ResNet50 (the first convolution of every block), 10 in MobileNetV2 (the expansion beside a shortcut), every
    second block from ResNet101 on; an eighth of the channels each way."""

    def folds(name):
        found = {}
        for path, module in on_meta(name).named_modules():
            if isinstance(module, TemporalShift):
                conv = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
                found[path.removeprefix("base_model.")] = conv.in_channels // module.shift_div
        return found

    resnet = folds("tsm_resnet50")
    assert len(resnet) == 16 and all(path.endswith(".conv1") for path in resnet)
    assert (resnet["layer1.0.conv1"], resnet["layer1.1.conv1"], resnet["layer4.1.conv1"]) == (8, 32, 256)
    mobile = folds("tsm_mobilenetv2")
    assert mobile == {
        f"features.{i}.conv.0": fold
        for i, fold in ((3, 3), (5, 4), (6, 4), (8, 8), (9, 8), (10, 8), (12, 12), (13, 12), (15, 20), (16, 20))
    }
    deep = folds("tsm:torchvision:resnet101")
    assert len(deep) == 2 + 2 + 12 + 2
    assert "layer3.22.conv1" in deep and "layer3.21.conv1" not in deep


@pytest.mark.parametrize(
    ("name", "shifts"),
    [
        ("tsm:resnet20", 9),
        ("tsm:wrn_16_1", 6),
        ("tsm:ResNet50_cifar", 16),
        ("tsm:MobileNetV2", 10),
        ("tsm:torchvision:mobilenet_v3_small", 6),
        ("tsm:torchvision:convnext_tiny", 18),
        ("tsm:timm:mobilenetv2_100", 10),
        ("tsm:timm:resnet18", 8),
        ("tsm:timm:regnetx_002", 13),
    ],
)
def test_any_network_of_residual_blocks(name, shifts):
    if "timm" in name:
        pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    model = model_dict[name](num_classes=5)  # not on the meta device, where RegNet cannot be built with torch 2.11
    assert sum(isinstance(m, TemporalShift) for m in model.modules()) == shifts


def test_networks_that_cannot_be_shifted():
    with pytest.raises(UserError, match="first layers of its residual branches.*tsn:vgg8"):
        model_dict["tsm:vgg8"](num_classes=3)
    with pytest.raises(UserError, match="reads 'video'"):
        model_dict["tsn:tsn_resnet50"]
    with pytest.raises(UserError, match="--num_segments 8"):
        on_meta("tsm:resnet8")(torch.zeros(1, 4, 3, 32, 32, device="meta"))


@pytest.mark.parametrize("name", ["tsm:resnet8", "tsn:resnet8", "tsn:torchvision:mobilenet_v3_small"])
def test_taps_are_means_over_frames(name):
    spec = model_dict[name].fitted({"video": (4, 3, 32, 32)})
    torch.manual_seed(0)
    net = TappedNet(spec(num_classes=5), spec, spec.taps).eval()
    side = probe(net, {"video": (4, 3, 32, 32)})
    x = rand((2, 4, 3, 32, 32), 1)
    with torch.no_grad():
        out = net({"video": x})
    width = side.shapes["pooled"][0]
    assert out["pooled"].shape == (2, width) and side.shapes["logits"] == (5,)
    torch.testing.assert_close(net.head(out["pooled"]), out["logits"])  # in evaluation both heads are linear
    if name == "tsn:resnet8":
        image = model_dict["resnet8"]
        alone = TappedNet(net.model.base_model, image, ("stage2", "stem")).eval()
        with torch.no_grad():
            frames = alone({"image": x.flatten(0, 1)})
        torch.testing.assert_close(out["stage2"], frames["stage2"].unflatten(0, (2, 4)).mean(1))
    if name.startswith("tsm"):
        assert out["frame_logits"].shape == (8, 5)
        torch.testing.assert_close(out["frame_logits"].unflatten(0, (2, 4)).mean(1), out["logits"])
    else:
        assert "frame_logits" not in spec.taps


def test_the_order_of_the_heads():
    """With dropout, TSN drops values of the mean, TSM of every frame; both rates and initial scales as published."""
    tsn, tsm = (model_dict[f"{kind}:resnet8"](num_classes=50) for kind in ("tsn", "tsm"))
    assert (tsn.dropout.p, tsm.dropout.p) == (0.4, 0.5)
    assert tsn.new_fc.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert tsm.new_fc.weight.std().item() == pytest.approx(0.001, rel=0.1)
    seen = []
    for model in (tsn, tsm):
        model.dropout.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
        model.train()(rand((2, 8, 3, 32, 32), 2))
    assert seen == [(2, 64), (16, 64)]


def test_swin_has_torchvisions_weights():
    """Keys, shapes and the rate of stochastic depth; test_torchvision_swin_gives_timms_features compares values."""
    from torchvision.models import swin_b

    ours = on_meta("tsn_swin_base", 10)
    with shapes_alone():
        theirs = swin_b()
    backbone = {k: v.shape for k, v in ours.base_model.state_dict().items()}
    wanted = {k: v.shape for k, v in theirs.state_dict().items() if "relative_position_index" not in k}
    assert backbone == {k: v for k, v in wanted.items() if not k.startswith("head.")}
    assert max(getattr(m, "p", 0.0) for m in ours.base_model.modules() if type(m).__name__ == "StochasticDepth") == 0.1


@pytest.mark.parametrize("name", ["tsm_resnet50", "tsm_mobilenetv2", "tsn_resnet50"])
def test_openmmlab_keys(name):
    """By name, both ways; the published observation that order and shapes agree is the independent check."""
    model, spec = on_meta(name), model_dict[name]
    builder = openmmlab.mobilenet_v2 if "mobile" in name else openmmlab.resnet50
    with torch.device("meta"):
        theirs = builder(400, shifted=name.startswith("tsm")).state_dict()
    if "resnet" in name:
        assert list(theirs)[0] == "backbone.conv1.conv.weight"
        assert [k for k in theirs if k.startswith("backbone.")][-1] == "backbone.layer4.2.conv3.bn.num_batches_tracked"
    ours = model.state_dict()
    mapped = spec.published.adapt(theirs)
    assert mapped.keys() == ours.keys()
    if "mobile" in name:
        assert list(mapped) == list(ours)
    assert all(mapped[k].shape == ours[k].shape for k in ours)
    back = to_openmmlab(FAMILY[name], mapped)
    assert back.keys() == theirs.keys()
    assert all(back[k] is theirs[k] for k in theirs)
    wrapped = {f"architecture.{k}": v for k, v in theirs.items()} | {f"teacher.{k}": v for k, v in theirs.items()}
    student = spec.published.adapt(wrapped)
    assert all(student[k] is mapped[k] for k in ours)


def test_temporal_shift_modules_keys():
    """Of ResNet they are ours already; MobileNetV2 has eight modules in a row."""
    spec = model_dict["tsm_mobilenetv2"]
    with torch.device("meta"):
        theirs = openmmlab.mit_mobilenet_v2(400).state_dict()
    mapped, ours = spec.published.adapt(theirs), on_meta("tsm_mobilenetv2").state_dict()
    assert list(mapped) == list(ours)
    assert "base_model.features.3.conv.0.net.0.weight" in mapped
    renamed = {k.replace("new_fc", "base_model.classifier"): v for k, v in theirs.items()}
    assert list(spec.published.adapt(renamed)) == list(ours)
    own = on_meta("tsm_resnet50").state_dict()
    assert list(model_dict["tsm_resnet50"].published.adapt(own)) == list(own)


def fits(name, state):
    ours, mapped = on_meta(name).state_dict(), model_dict[name].published.adapt(state)
    assert mapped.keys() == ours.keys(), sorted(mapped.keys() ^ ours.keys())[:4]
    return [k for k in ours if mapped[k].shape != ours[k].shape]


@pytest.mark.parametrize(
    ("name", "torchvision_name", "timm_name"),
    [
        ("tsm_resnet50", "resnet50", "resnet50"),
        ("tsn_resnet50", "resnet50", "resnet50"),
        ("tsm_mobilenetv2", "mobilenet_v2", "mobilenetv2_100"),
        ("tsn_swin_base", "swin_b", "swin_base_patch4_window7_224"),
    ],
)
def test_image_weights_fit_by_shape(name, torchvision_name, timm_name):
    """Everything but the classifier, whose classes differ."""
    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    from torchvision import models

    with shapes_alone():
        files = [models.get_model(torchvision_name).state_dict(), timm.create_model(timm_name).state_dict()]
    for state in files:
        assert fits(name, state) == ["new_fc.weight", "new_fc.bias"]
    if "swin" in name:  # timm before 0.9: a merge ends the stage before, and index buffers are saved
        old = {}
        for k, v in files[1].items():
            stage = k.split(".")[1] if ".downsample." in k else None
            old[k if stage is None else k.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.")] = v
        old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
        old["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
        assert fits(name, old) == ["new_fc.weight", "new_fc.bias"]
        to_timm = to_openmmlab("swin", model_dict[name].published.adapt(files[1]))
        kept = {k for k in to_timm if k.startswith("backbone.")}
        assert {k.removeprefix("backbone.") for k in kept} == {k for k in files[1] if not k.startswith("head.")}


def test_torchvision_swin_gives_timms_features():
    """The map between the two layouts, on a small Swin of both packages: equal features from one set of weights."""
    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    from torchvision.models.swin_transformer import SwinTransformer

    from models._video_keys import canonical

    torch.manual_seed(0)
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 2), num_heads=(2, 4), num_classes=3
    ).eval()
    ours = SwinTransformer([4, 4], 24, [1, 2], [2, 4], [7, 7], num_classes=3).eval()
    state = theirs.state_dict()
    names = canonical("swin", list(state))
    mapped = {n.replace("classifier", "head"): state[k] for k, n in names.items()}
    missing, unexpected = ours.load_state_dict(mapped, strict=False)
    assert not unexpected and all("relative_position_index" in k for k in missing)
    x = rand((1, 3, 56, 56), 3)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_published_file_loads(tmp_path):
    """An OpenMMLab file of a small network through load_network, with nothing but --model_t."""
    name = "tsm:torchvision:resnet18"
    spec = model_dict[name].fitted({"video": (4, 3, 32, 32)})
    torch.manual_seed(0)
    model = spec(num_classes=3)
    state = to_openmmlab("resnet", model.state_dict())
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "published.pth")
    read = load_network(tmp_path / "published.pth", name, 3, {"video": (4, 3, 32, 32)})
    assert all(torch.equal(v, read.model.state_dict()[k]) for k, v in model.state_dict().items())
    del state["backbone.conv1.conv.weight"]
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "published.pth")
    with pytest.raises(UserError, match="1 missing .base_model.conv1.weight"):
        load_network(tmp_path / "published.pth", name, 3, {"video": (4, 3, 32, 32)})


SMALL = {"crd": {"nce_k": 8, "feat_dim": 4}, "cc": {"feat_dim": 4}, "mlkd": {"views": 1}, "ldrld": {"top": 2}}
CANNOT = {  # method -> why it does not run on a pair of videos, in its own words
    **dict.fromkeys(("hsakd", "hsakd_teacher", "hsakd_online", "dpcd", "dpcd_teacher"), "auxiliary heads"),
    "cakd": "cakd reads attention",
    "crld": "crld augments images",
    "deit": "deit trains a distillation token",
    "norm": "norm inserts layers into the student, but .* reads the frames of a clip one by one",
    "fcfd": "fcfd runs parts of both networks",
}


def step_of(method, student="tsm:resnet8", teacher="tsn:resnet14"):
    data, cls = VideoToy(), method_dict[method]
    cfg = cls.Config(**SMALL.get(method, {}))

    def make():
        torch.manual_seed(1)
        other = network(model_dict[teacher].fitted(data.shapes))
        absent = cls.teacher_mode == "absent"
        spec = model_dict[student].fitted(data.shapes)
        return make_step(cls, cfg, spec, None if absent else lambda: other, data, 8)

    return make, data


@pytest.mark.parametrize("method", ["kd", "at", "crd", "simkd"])
def test_the_contract_on_video_pairs(method):
    """For a TSM that a TSN teaches."""
    make, data = step_of(method)
    torch.manual_seed(2)
    check_contract(make, data.batch(), data.num_classes)


@pytest.mark.parametrize("method", mostly(m for m in method_dict if m not in CANNOT))
def test_methods_on_video_pairs(method):
    """One step of every method of the registry."""
    make, data = step_of(method)
    torch.manual_seed(2)
    step = make()
    step.train()
    result = step(data.batch(), PROGRESS)
    assert result.terms and all(torch.isfinite(v).all() for v in result.terms.values())


@pytest.mark.parametrize("method", CANNOT)
def test_methods_that_images_keep(method):
    """Refused in a sentence, not by a shape deep inside."""
    teacher = "tsn:vit_micro_cifar" if method == "cakd" else "tsn:resnet14"
    with pytest.raises(UserError, match=CANNOT[method]):
        step_of(method, teacher=teacher)[0]()


def small_swin(num_classes):
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 8, [1, 1, 1, 1], [1, 1, 1, 1], [7, 7], num_classes=num_classes)


def test_stages_of_swin_are_maps_with_their_channels_first():
    """Of the frames of a clip, and as a ResNet has them: at strides 4, 8, 16, 32 of 224 px."""
    spec = _over("tsn", dataclasses.replace(SWIN_BASE, build=small_swin), "tsn:small_swin")
    torch.manual_seed(0)
    net = TappedNet(spec(num_classes=3), spec, spec.taps).eval()
    x = rand((1, 2, 3, 224, 224), 1)
    with torch.no_grad():
        out = net({"video": x})
        inside = net.model.base_model.features[:4](((x - net.mean) / net.std).flatten(0, 1))
    assert [tuple(out[f"stage{i}"].shape[1:]) for i in (1, 2, 3, 4)] == [
        (8, 56, 56),
        (16, 28, 28),
        (32, 14, 14),
        (64, 7, 7),
    ]
    torch.testing.assert_close(out["stage2"], inside.permute(0, 3, 1, 2).mean(0, keepdim=True))
    base, resnet = (model_dict[n].stages for n in ("tsn_swin_base", "tsn_resnet50"))
    assert base == resnet == ("stage1", "stage2", "stage3", "stage4")


@pytest.mark.parametrize("method", ["at", "fitnet", "ofd"])
def test_stages_of_swin_teach(method):
    """The second published pair, in small: a Swin teaches a ResNet of four stages by its maps."""
    swin = _over("tsn", dataclasses.replace(SWIN_BASE, build=small_swin), "tsn:small_swin")
    data, cls = VideoToy(), method_dict[method]
    other = network(swin.fitted(data.shapes))
    student = model_dict["tsn:ResNet18"].fitted(data.shapes)
    step = make_step(cls, cls.Config(), student, lambda: other, data, 8)
    step.train()
    assert all(torch.isfinite(v).all() for v in step(data.batch(), PROGRESS).terms.values())
