"""ImageNet networks: torchvision's own, seen through taps; the published table; one name for two ResNet50s."""

import pytest
import torch

from core.protocols import UserError
from core.taps import TappedNet
from helper.networks.checkpoint import num_classes_of
from helper.networks.load import load_network
from models import model_dict, model_for, model_in
from models._common import shuffle
from tests.golden.rule import fill_module, rand
from tests.support.model_contract import check_layout, check_training, shapes_alone, tapped, zeros

RESNET = ((64, 56), (64, 56), (128, 28), (256, 14), (512, 7), 512)
DEEP = ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7), 2048)
WIDE = ((64, 56), (128, 56), (256, 28), (512, 14), (1024, 7), 1024)
VGG = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14), 25088)
PUBLISHED = {  # name: (torchvision's name, parameters, state-dict keys, (channels, size) of each map, pooled)
    "ResNet18": ("resnet18", 11_689_512, 122, RESNET),
    "ResNet34": ("resnet34", 21_797_672, 218, RESNET),
    "ResNet50": ("resnet50", 25_557_032, 320, DEEP),
    "resnext50_32x4d": ("resnext50_32x4d", 25_028_904, 320, DEEP),
    "wrn_50_2": ("wide_resnet50_2", 68_883_240, 320, DEEP),
    "ResNet10x2": (None, 20_543_016, 80, WIDE),
    "ResNet18x2": (None, 45_618_216, 128, WIDE),
    "ResNet34x2": (None, 86_036_008, 224, WIDE),
    "MobileNetV1": (None, 4_231_976, 164, ((32, 112), (128, 56), (256, 28), (512, 14), (1024, 7), 1024)),
    "MobileNetV2_Imagenet": (
        "mobilenet_v2",
        3_504_872,
        314,
        ((32, 112), (24, 56), (32, 28), (96, 14), (320, 7), 1280),
    ),
    "ShuffleV2_Imagenet": ("shufflenet_v2_x1_0", 2_278_604, 338, ((24, 56), (116, 28), (232, 14), (464, 7), 1024)),
    "shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", 1_366_792, 338, ((24, 56), (48, 28), (96, 14), (192, 7), 1024)),
    "shufflenet_v2_x2_0": ("shufflenet_v2_x2_0", 7_393_996, 338, ((24, 56), (244, 28), (488, 14), (976, 7), 2048)),
    "vgg11_imagenet": ("vgg11_bn", 132_868_840, 62, VGG),
    "vgg13_imagenet": ("vgg13_bn", 133_053_736, 76, VGG),
}
FAMILIES = ("ResNet18", "ResNet10x2", "ResNet50", "MobileNetV1", "MobileNetV2_Imagenet", "shufflenet_v2_x0_5")


def test_every_large_network_is_in_the_table():
    large = {n for n in model_dict if model_dict[n].input_shape == (3, 224, 224) and not model_dict[n].branches}
    # bninception's weights want another normalisation: test_vskd_models.py
    assert large - {"vit_micro_224", "bninception"} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name):
    """Counts, keys and the shape of every feature at 224 px, on the meta device: no arithmetic, every layer."""
    torchvision_name, params, keys, feats = PUBLISHED[name]
    spec = model_dict[name]
    with shapes_alone():
        model = spec(num_classes=1000)
        out = tapped(spec, model, spec.feats)({"image": torch.zeros(1, 3, 224, 224)})
    assert sum(p.numel() for p in model.parameters()) == params
    assert len(model.state_dict()) == keys
    assert num_classes_of(model.state_dict(), spec) == 1000
    *maps, pooled = [tuple(out[tap].shape[1:]) for tap in spec.feats]
    assert maps == [(channels, size, size) for channels, size in feats[:-1]]
    assert pooled == (feats[-1],)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)
    if torchvision_name is not None:
        torchvision = pytest.importorskip("torchvision")
        with shapes_alone():
            theirs = torchvision.models.get_model(torchvision_name)
        ours = {k: v.shape for k, v in model.state_dict().items()}
        assert list(ours.items()) == [(k, v.shape) for k, v in theirs.state_dict().items()]


# the other block of residual networks is compared by value in test_models.py
@pytest.mark.parametrize(
    "name",
    ["ResNet18", pytest.param("ResNet50", marks=pytest.mark.slow), "MobileNetV2_Imagenet", "shufflenet_v2_x0_5"],
)
def test_equal_to_torchvision_bit_by_bit(name):
    """The same start from the same seed, the same logits in evaluation, the same gradients in training.

    ShuffleNetV2 sums gradients in another order: equal up to rounding, in double precision.
    """
    from torchvision import models

    torch.manual_seed(0)
    ours = model_dict[name](num_classes=10)
    torch.manual_seed(0)
    theirs = models.get_model(PUBLISHED[name][0], num_classes=10)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    x = rand((2, 3, 64, 64), 7)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    reordered = "shuffle" in name
    if reordered:
        ours, theirs, x = ours.double(), theirs.double(), x.double()
    for model in (ours, theirs):
        torch.manual_seed(1)  # dropout
        model.train()(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8 * reordered, atol=1e-10 * reordered)


def test_doubled_network_is_torchvisions_but_for_its_widths():
    """ResNet10x2 by hand: a torchvision ResNet of one block per stage, of which every stage is widened."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class ByHand(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            return super()._make_layer(block, planes * 2, blocks, stride, dilate)

    theirs = ByHand(BasicBlock, [1, 1, 1, 1])
    theirs.fc = torch.nn.Linear(1024, 10)
    ours = model_dict["ResNet10x2"](num_classes=10).eval()
    fill_module(ours), fill_module(theirs.eval())
    x = rand((2, 3, 64, 64), 8)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_taps(name):
    net = tapped(model_dict[name], num_classes=10)
    check_training(net, 64)
    check_layout(net, 64)


def test_vgg_taps_on_its_own_size():
    """132 million parameters: forward only. The head is all three layers, and reads `pooled`."""
    spec = model_dict["vgg11_imagenet"]
    net = tapped(spec, num_classes=2).eval()
    with torch.no_grad():
        out = net({"image": rand((1, 3, 64, 64), 9)})
        assert torch.equal(net.head(out["pooled"]), out["logits"])
        for stage in spec.stages:
            assert torch.equal(out[f"{stage}_preact"].relu(), out[stage])
    assert {v._version for v in out.values()} == {0}


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "MobileNetV1", "shufflenet_v2_x0_5"])
def test_preact_is_what_the_last_relu_reads(name):
    spec = model_dict[name]
    net = tapped(spec, num_classes=10).eval()
    with torch.no_grad():
        out = net({"image": rand((2, 3, 64, 64), 10)})
    for stage in spec.stages:
        assert out[f"{stage}_preact"].min() < 0
        want = out[f"{stage}_preact"].relu()
        assert torch.equal(shuffle(want, 2) if "shuffle" in name else want, out[stage])


def test_mobilenet_v1_is_timms():
    """Keys and values of timm's mobilenetv1_100, built with ReLU in place of ReLU6."""
    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    theirs = timm.create_model("mobilenetv1_100", num_classes=10, act_layer=torch.nn.ReLU)
    ours = model_dict["MobileNetV1"](num_classes=10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fill_module(ours.eval()), fill_module(theirs.eval())
    x = rand((2, 3, 64, 64), 11)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_pretrained_weights_load_but_for_another_number_of_classes(monkeypatch):
    from torchvision import models

    torch.manual_seed(0)
    state = models.resnet18().state_dict()
    asked = []
    monkeypatch.setattr(
        models.ResNet18_Weights, "get_state_dict", lambda self, *a, **k: asked.append(self.name) or state
    )
    whole = model_dict["ResNet18"](num_classes=1000, pretrained=True)
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())
    ten = model_dict["ResNet18"](num_classes=10, pretrained="IMAGENET1K_V1").state_dict()
    assert ten["fc.weight"].shape == (10, 512)
    assert all(torch.equal(v, state[k]) for k, v in ten.items() if not k.startswith("fc."))
    assert asked == ["IMAGENET1K_V1"] * 2
    with pytest.raises(UserError, match="no weights 'V9' for resnet18; it has IMAGENET1K_V1"):
        model_dict["ResNet18"](pretrained="V9")
    with pytest.raises(UserError, match="no published weights"):
        model_dict["ResNet10x2"](pretrained=True)


def test_no_connection_is_one_sentence(monkeypatch):
    from torchvision import models

    def offline(self, *args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match="cannot download the weights of resnet18 .*no route to host"):
        model_dict["ResNet18"](pretrained=True)


@pytest.mark.parametrize(
    ("size", "name"), [(32, "ResNet50_cifar"), (64, "ResNet50_cifar"), (65, "ResNet50"), (224, "ResNet50")]
)
def test_resnet50_means_two_networks(size, name):
    assert model_for("ResNet50", (3, size, size)).name == name
    assert model_for("ResNet50_cifar", (3, size, size)).name == "ResNet50_cifar"
    assert model_for("resnet8", (3, size, size)).name == "resnet8"


def test_keys_of_a_checkpoint_decide_which_resnet50_it_is(tmp_path):
    shapes = {"image": (3, 64, 64)}
    for name in ("ResNet50", "ResNet50_cifar"):
        state = zeros(model_dict[name], 10)
        assert model_in("ResNet50", state) is model_dict[name]
        path = tmp_path / name / "ResNet50_vanilla" / "ckpt_epoch_240.pth"  # RepDistiller's layout, either kind
        path.parent.mkdir(parents=True)
        torch.save({"model": state}, path)
        assert load_network(path, "ResNet50", 10, shapes).spec is model_dict[name]
        torch.save({"model": state, "meta": {"arch": name}}, path)
        assert load_network(path, None, 10, shapes).spec is model_dict[name]


def test_unknown_tap_lists_those_that_exist():
    spec = model_dict["shufflenet_v2_x0_5"]
    with pytest.raises(UserError, match="shufflenet_v2_x0_5 has no tap stage4; it has stem, stage1, .*pooled"):
        TappedNet(spec(num_classes=10), spec, ["stage4"])
