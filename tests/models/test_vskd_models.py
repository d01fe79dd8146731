"""BN-Inception, relation networks and sensor networks: published numbers, taps, and what evaluation may depend on."""

import json
from math import comb
from pathlib import Path

import pytest
import torch
import torchvision

from core.protocols import UserError
from core.taps import TappedNet, probe
from helper.networks.load import started_from
from models import model_dict
from models.bninception import HOOKED, published_keys
from models.trn import MultiScaleRelation
from tests.golden.rule import fill_module, rand

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vskd.json").read_text())
HOOKED_SHAPES = {  # of the fact sheet, at 224 px
    "conv2_relu_3x3": (192, 56, 56),
    "inception_3a_relu_pool_proj": (32, 28, 28),
    "inception_3b_relu_pool_proj": (64, 28, 28),
    "inception_3c_relu_double_3x3_2": (96, 14, 14),
    **{f"inception_4{x}_relu_pool_proj": (128, 14, 14) for x in "abcd"},
    "inception_4e_relu_double_3x3_2": (256, 7, 7),
    "inception_5a_relu_pool_proj": (128, 7, 7),
    "inception_5b_relu_pool_proj": (128, 7, 7),
}
SENSORS = ("resnet18_gaf", "sensor_cnn", "sensor_transformer")


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def inception():
    return fill_module(model_dict["bninception"](num_classes=1000), salt=0).eval()


def test_golden_bninception(inception):
    golden = GOLDEN["bninception"]
    assert count(inception) == golden["params"] == 11_295_240
    assert {k: list(v.shape) for k, v in inception.state_dict().items()} == dict(golden["keys"])
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in inception.modules()) == 69
    maps = []
    hook = inception.inception_5b_output.register_forward_hook(lambda *call: maps.append(call[2]))
    with torch.no_grad():
        logits = inception(rand((2, 3, 224, 224), 1000).flip(1))  # the published network reads BGR
    hook.remove()
    want = golden["features"]
    assert list(maps[0].shape) == want["shape"]
    assert maps[0].norm().item() == pytest.approx(want["l2"], rel=1e-4)
    assert maps[0].mean().item() == pytest.approx(want["mean"], rel=1e-3)
    torch.testing.assert_close(logits[:, :10], torch.tensor(golden["logits"]), rtol=1e-3, atol=1e-3)
    assert logits.norm().item() == pytest.approx(golden["logits_l2"], rel=1e-3)


def test_the_branches_vskd_hooks():
    spec = model_dict["bninception"]
    assert tuple(HOOKED_SHAPES) == HOOKED
    with torch.device("meta"):
        names = {f"branch{i}": module for i, module in enumerate(HOOKED, 1)}
        net = TappedNet(spec(num_classes=5).eval(), spec, names)
        del net.mean, net.std
        net.mean = net.std = torch.ones(3, 1, 1)
        out = net({"image": torch.zeros(1, 3, 224, 224)})
    assert {module: tuple(out[k].shape[1:]) for k, module in names.items()} == HOOKED_SHAPES


def test_both_public_files_of_weights_fit(inception):
    cadene = inception.state_dict()
    yjxiong = {k.replace("last_linear", "fc"): v[None] if "_bn." in k and v.ndim == 1 else v for k, v in cadene.items()}
    assert yjxiong["conv1_7x7_s2_bn.weight"].shape == (1, 64)
    for state in (cadene, yjxiong):
        read = published_keys(state)
        assert read.keys() == cadene.keys() and all(torch.equal(read[k], v) for k, v in cadene.items())


@pytest.mark.parametrize("name", ["trn_bninception", "resnet18_gaf"])
def test_both_networks_start_from_published_weights_of_their_backbone(name, inception, tmp_path):
    if name == "resnet18_gaf":
        backbone, prefix = torchvision.models.resnet18(weights=None).state_dict(), "trunk."
    else:
        backbone, prefix = inception.state_dict(), "base_model."
    torch.save(backbone, tmp_path / "imagenet.pth")
    model = started_from(model_dict[name], str(tmp_path / "imagenet.pth"))(num_classes=3)
    held = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)}
    assert len(held) > 100 and all(torch.equal(v, backbone[k]) for k, v in held.items() if not k.startswith("fc."))
    torch.save(model.state_dict(), tmp_path / "own.pth")  # a file of the whole network is read as before
    again = started_from(model_dict[name], str(tmp_path / "own.pth"))(num_classes=3)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


def test_normalisation_makes_the_published_input_of_pixels():
    spec = model_dict["bninception"]
    net = TappedNet(torch.nn.Identity(), spec)
    pixels = torch.tensor([200.0, 100.0, 50.0]).view(1, 3, 1, 1) / 255  # RGB
    bgr = net({"image": pixels})["logits"].flip(1).flatten()
    torch.testing.assert_close(bgr, torch.tensor([50.0 - 104, 100 - 117, 200 - 128]))


@pytest.mark.parametrize("frames", [3, 8])
def test_golden_relation(frames):
    golden = GOLDEN[f"trn_multiscale_{frames}"]
    head = fill_module(MultiScaleRelation(frames, 256, 27), salt=0).eval()
    assert count(head) == golden["params"]
    assert [[k, list(v.shape)] for k, v in head.state_dict().items()] == golden["keys"]
    if frames == 3:  # every subset is used, so training computes the same
        x = rand(tuple(golden["input"]), golden["input_seed"])
        for mode in (True, False):
            out = head.train(mode)(x)
            torch.testing.assert_close(out[:, :10], torch.tensor(golden["logits"]), rtol=1e-4, atol=1e-4)
            assert out.norm().item() == pytest.approx(golden["l2"], rel=1e-4)


def test_relations_of_eight_frames():
    """19 calls over 7 scales; subsets drawn without replacement in training, fixed in evaluation; counts as tabled."""
    head = MultiScaleRelation(8, 256, 27)
    assert count(head) == 2_344_125 and count(MultiScaleRelation(8, 300, 27)) == 2_738_365
    assert [len(s) for s in head.subsets] == [comb(8, k) for k in range(8, 1, -1)] == [1, 8, 28, 56, 70, 56, 28]
    seen = set()
    for _ in range(40):
        drawn = head.train().chosen()
        assert [len(scale) for scale in drawn] == [1, 3, 3, 3, 3, 3, 3] and sum(map(len, drawn)) == 19
        assert all(
            len(set(scale)) == len(scale) and set(scale) <= set(every)
            for scale, every in zip(drawn, head.subsets, strict=True)
        )
        assert all(list(frames) == sorted(frames) for scale in drawn for frames in scale)
        seen |= set(drawn[1])
    assert seen == set(head.subsets[1])
    assert head.eval().chosen() == head.chosen()
    x = torch.rand(2, 8, 256)
    assert torch.equal(head(x), head(x)) and not torch.equal(head.train()(x), head(x))
    with pytest.raises(UserError, match="at least 2 frames"):
        MultiScaleRelation(1, 4, 2)


def test_parameters_of_the_teachers_and_the_student():
    with torch.device("meta"):
        assert count(model_dict["trn_bninception_256"](num_classes=27)) == 12_876_765
        wide = count(model_dict["trn_bninception"](num_classes=27))
        assert wide == 12_876_765 - 2_344_125 + 2_738_365 + 1025 * 44
        assert count(model_dict["resnet18_gaf"](num_classes=27)) == 11_338_539


@pytest.fixture(scope="module")
def trn():
    shapes = {"video": (4, 3, 32, 32)}
    spec = model_dict["trn:resnet8"].fitted(shapes)
    torch.manual_seed(0)
    return TappedNet(spec(num_classes=5), spec, spec.taps), shapes


def test_trn_taps_are_means_over_the_frames(trn):
    net, shapes = trn
    x = torch.rand(2, *shapes["video"])
    with torch.no_grad():
        out = net.eval()({"video": x})
        frame = net.model.base_model
        kept = []
        hook = frame.get_submodule(model_dict["resnet8"].taps["stage2"].module).register_forward_hook(
            lambda *call: kept.append(call[2])
        )
        features = net.model.new_fc(frame(((x - net.mean) / net.std).flatten(0, 1)))
        hook.remove()
    torch.testing.assert_close(out["stage2"], kept[0].unflatten(0, (2, 4)).mean(1))
    torch.testing.assert_close(out["semantic"], features.unflatten(0, (2, 4)).mean(1))
    assert torch.equal(out["pooled"], out["semantic"]) and out["semantic"].shape == (2, 300)
    assert out["logits"].shape == (2, 5)
    side = probe(net, shapes)
    assert side.shapes["stage1"] == (16, 32, 32) and side.head is net.model.consensus


def test_trn_over_anything_with_a_linear_classifier(trn):
    assert model_dict["trn:torchvision:resnet18"].stages == ("stage1", "stage2", "stage3", "stage4")
    with pytest.raises(UserError, match="reads 'sensor'"):
        model_dict["trn:sensor_cnn"]
    with pytest.raises(UserError, match="relates 4 frames, but a clip has 5"):
        trn[0]({"video": torch.rand(1, 5, 3, 32, 32)})


@pytest.mark.parametrize("axes", [3, 6])
@pytest.mark.parametrize("name", SENSORS)
def test_sensor_networks(name, axes):
    """Any number of axes; every tap fires once and every parameter is reached; the semantic layer is 300 wide, >= 0."""
    spec = model_dict[name].fitted({"sensor": (axes, 64)})
    assert spec.input_shape == (axes, 64) and model_dict[name].fitted({"image": (3, 8, 8)}) is model_dict[name]
    net = TappedNet(spec(num_classes=7), spec, spec.taps).train()
    out = net({"sensor": torch.randn(4, axes, 64)})
    assert out["logits"].shape == (4, 7) and out["semantic"].shape == (4, 300) and (out["semantic"] >= 0).all()
    assert all(out[stage].ndim == 4 for stage in spec.stages)
    out["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.head.in_features == 300


def test_gaf_student_sees_shape_and_not_size():
    """The field is inside the network: units and offset of the sensor do not reach it, the order in time does."""
    torch.manual_seed(0)
    net = model_dict["resnet18_gaf"].fitted({"sensor": (3, 32)})(num_classes=4).eval()
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(9.81 * x + 3), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(net(x), net(x.flip(-1)), rtol=1e-3, atol=1e-4)


def test_windows_too_short_for_a_token_are_refused():
    with pytest.raises(UserError, match="--window 4 is too short"):
        model_dict["sensor_transformer"].fitted({"sensor": (3, 4)})(num_classes=2)
