"""Networks with auxiliary heads: published counts, keys and numbers of both repositories, and the contract of taps."""

import json
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from core.log import log
from core.protocols import UserError
from core.taps import TappedNet
from helper.deploy.cost import deployed_count, deployed_parameters, macs
from helper.networks.checkpoint import read_checkpoint
from helper.networks.load import load_backbone, load_network
from helper.options import listing
from models import AUXILIARY, PAIRS, model_dict, model_in
from models.auxiliary import SPECS
from tests.golden.rule import fill_array, rand
from tests.support.model_contract import check_layout, check_training, shapes_alone, tapped, undrawn

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {  # name -> {ending: published case}
    name: {end: golden[name] for end, golden in both.items() if name in golden}
    for both in [
        {
            end: json.loads((GOLDEN / f"models_{of}_aux.json").read_text())
            for of, end in (("hsakd", ""), ("dpcd", "_dpcd"))
        }
    ]
    for name in sorted(both[""].keys() | both["_dpcd"].keys())
}
# of the large ones, one of each family is compared by value; the others are too slow to fill for every run of the tests
HEAVY = ("ResNet50_aux", "resnet34_imagenet_aux", "resnet50_imagenet_aux")
# others of the same code with more layers or channels are quick
DEEP = ("resnet32x4_aux", "resnet56_aux", "wrn_40_1_aux", "wrn_40_2_aux", "vgg13_bn_aux", "ResNet18_aux")
# ResNet50 is ResNet18 with more blocks
SMALL = [
    name
    for name, spec in SPECS.items()
    if spec.input_shape == (3, 32, 32) and not name.endswith("_dpcd") and name != "ResNet50_aux"
]


def on_meta(spec, num_classes):
    with shapes_alone():
        return spec(num_classes=num_classes)


def close(got, want, l2):
    want = torch.tensor(want)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().mean().item())
    assert l2[0] == pytest.approx(l2[1], rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_golden_keys(name):
    """Parameters, keys in order and shapes, without arithmetic."""
    for end, case in CASES[name].items():
        model = on_meta(model_dict[name + end], 1000 if "imagenet" in name else 100)
        assert sum(p.numel() for p in model.parameters()) == case["params"]
        assert [[k, list(v.shape)] for k, v in model.state_dict().items()] == case["keys"]
        assert len(case["keys"]) == case["n_keys"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY + DEEP else ()) for n in CASES])
def test_golden(name):
    """Logits and every head of both repositories; weights that they share are filled once."""
    size, classes = (224, 1000) if "imagenet" in name else (32, 100)

    @cache
    def filled(key, shape):
        return torch.from_numpy(fill_array(key, shape)).reshape(shape).float()

    for end, case in CASES[name].items():
        spec = model_dict[name + end]
        model = on_meta(spec, classes)
        state = {
            k: torch.zeros((), dtype=torch.int64) if v.ndim == 0 else filled(k, tuple(v.shape))
            for k, v in model.state_dict().items()
        }
        model.load_state_dict(state, assign=True)
        net = tapped(spec, model.eval(), spec.branches)
        with torch.no_grad():
            out = net({"image": rand((2, 3, size, size), 1000)})
        close(out["logits"][:, :10], case["logits"], (out["logits"].norm().item(), case["logits_l2"]))
        assert len(spec.branches) == len(case["heads"])
        for branch, want in zip(spec.branches, case["heads"], strict=True):
            assert list(out[branch].shape) == want["shape"]
            close(out[branch].flatten()[: len(want["first"])], want["first"], (out[branch].norm().item(), want["l2"]))


TABLE = {  # parameters and multiply-accumulates in millions: total, backbone (HSAKD, table of sizes)
    "wrn_40_2": (8_024_484, 2_255_156, 768.17, 327.61),
    "wrn_40_1": (2_054_212, 569_780, 193.46, 83.29),
    "wrn_16_2": (2_631_588, 703_284, 239.68, 101.12),
    "resnet56": (3_067_684, 861_620, 292.55, 125.75),
    "resnet20": (1_041_316, 278_324, 94.37, 40.82),
    "resnet8x4": (4_790_836, 1_233_540, 429.04, 177.07),
    "mobilenetV2": (5_484_332, 812_836, 86.57, 25.71),
    "ShuffleV1": (4_067_998, 949_258, 87.13, 38.69),
    "ShuffleV2": (5_875_516, 1_355_528, 117.04, 44.50),
    "mobilenetV2_dpcd": (3_947_132, 812_836, 21.74, None),
    "vgg8_bn_dpcd": (20_183_412, 3_965_028, 398.39, None),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_sizes(name):
    base, _, end = name.partition("_dpcd")
    spec = model_dict[f"{base}_aux{'_dpcd' if 'dpcd' in name else ''}"]
    total, backbone, total_macs, backbone_macs = TABLE[name]
    with undrawn():
        net = TappedNet(spec(num_classes=100), spec, spec.branches)
    assert deployed_parameters(net, None) == (total, backbone) and deployed_count(net.model) == backbone
    shapes, cpu = {"image": (3, 32, 32)}, torch.device("cpu")
    assert macs(net, shapes, cpu) / 1e6 == pytest.approx(total_macs, abs=0.3)
    if backbone_macs is not None:
        assert macs(TappedNet(net.model, spec), shapes, cpu) / 1e6 == pytest.approx(backbone_macs, abs=0.3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in DEEP else ()) for n in (*SMALL, "resnet18_imagenet_aux")],
)
def test_contract_of_taps(name):
    """Each tap fires once, gradients reach every parameter, and channels_last changes nothing."""
    spec = model_dict[name]
    net, size = tapped(spec, num_classes=10), 64 if "imagenet" in name else 32
    check_training(net, size)
    plain = check_layout(net, size)
    per_class = [plain[branch].shape[1] for branch in spec.branches]
    assert per_class == [40] * len(spec.branches)


KEY = re.compile(r"backbone\.|auxiliary_classifier\.(block_extractor|bn|conv2_|fc)(?P<level>\d)\.")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n.removesuffix("_dpcd") in DEEP + HEAVY and "_dpcd" in n else ())
        for n in SPECS
        if n not in (*SMALL, "resnet18_imagenet_aux")
    ],
)
def test_contract_without_numbers(name):
    """Of all others, the large ones and those of DPCD: taps, keys, heads and counts, without arithmetic."""
    spec, per_class = model_dict[name], 1 if name.endswith("_dpcd") else 4
    model = on_meta(spec, 10)
    levels = [KEY.match(key)["level"] for key in model.state_dict()]
    assert {level for level in levels if level} == {branch.removeprefix("aux") for branch in spec.branches}
    with shapes_alone():
        features = check_training(tapped(spec, model), 64 if "imagenet" in name else 32)
    assert [features[branch].shape[1] for branch in spec.branches] == [10 * per_class] * len(spec.branches)
    backbone = sum(p.numel() for p in model.backbone.parameters())
    heads = sum(p.numel() for branch in spec.branches for part in model.parts(branch) for p in part.parameters())
    assert backbone + heads == sum(p.numel() for p in model.parameters())
    assert deployed_count(model) == backbone


def test_every_network_has_both_kinds_of_heads():
    assert SPECS.keys() == {f"{name}_aux{end}" for name in AUXILIARY for end in ("", "_dpcd")}
    for name, spec in SPECS.items():
        assert model_dict[name] is spec and spec.name == name
        assert spec.branches == tuple(f"aux{i}" for i in range(1, len(spec.branches) + 1))
        plain = AUXILIARY[name.removesuffix("_dpcd").removesuffix("_aux")]
        if plain is not None and "mobilenet" not in name:
            assert (
                spec.feats == model_dict[plain].feats
                and spec.published.learning_rate == model_dict[plain].published.learning_rate
            )
    assert all(model_dict[pair].branches for pair in PAIRS)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return model_dict["resnet8_aux"](num_classes=10)


def test_only_the_heads_asked_for_are_computed(small):
    spec, x = model_dict["resnet8_aux"], {"image": rand((2, 3, 16, 16), 0)}
    ran = []
    for i in (1, 2, 3):
        head = small.get_submodule(f"auxiliary_classifier.fc{i}")
        head.register_forward_hook(lambda *_, i=i: ran.append(i))
    TappedNet(small, spec)(x)
    assert ran == []
    net = TappedNet(small, spec, ("aux3", "stage1", "aux1"))
    assert net(x).keys() == {"logits", "stage1", "aux1", "aux3"} and ran == [1, 3]
    assert net(x, ()).keys() == {"logits", "stage1"} and ran == [1, 3]
    second = {id(p) for p in small.auxiliary_classifier.parts(2)[0].parameters()}
    assert second < {id(p) for p in net.idle()}


def test_initialisation(small):
    """As tabled: He's fan-out for convolutions, and what each family makes of its linear layers."""
    heads = small.auxiliary_classifier
    conv = heads.block_extractor3[0][0].conv1
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert not heads.fc1.bias.any() and heads.fc1.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.1)
    torch.manual_seed(0)
    mobile = model_dict["mobilenetV2_aux"](num_classes=10).auxiliary_classifier
    assert mobile.fc1.weight.std().item() == pytest.approx(0.01, rel=0.05) and not mobile.fc1.bias.any()
    shuffle = model_dict["ShuffleV2_aux"](num_classes=10).auxiliary_classifier
    conv = shuffle.block_extractor2[1]
    assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 464), rel=0.05) and shuffle.fc1.bias.any()


def save(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


SHAPES = {"image": (3, 32, 32)}


def test_published_files_load(small, tmp_path):
    """The published form: a `net` entry, accuracy as a fraction, .pth.tar, a network's name as the file's."""
    state = {f"module.{k}": v for k, v in small.state_dict().items()}
    path = save(tmp_path, "resnet8_aux.pth.tar", {"net": state, "acc": 0.7231, "epoch": 239, "optimizer": {}})
    network = load_network(path, None, 10, SHAPES)
    assert network.spec.name == "resnet8_aux"
    assert network.checkpoint.best_acc is None  # the file does not say whether it is the network's or its best head's
    best = save(tmp_path, "resnet8_aux_best.pth.tar", {"net": state})
    for asked in (None, "resnet8_aux", "resnet8", "resnet8_aux_dpcd"):  # what the file holds decides
        assert load_network(best, asked, 10, SHAPES).spec.name == "resnet8_aux"
    torch.manual_seed(1)
    other = model_dict["resnet8_aux_dpcd"](num_classes=10).state_dict()
    for asked in (None, "resnet8_aux", "resnet8"):
        path = save(tmp_path / "dpcd", "resnet8_aux_best.pth.tar", {"net": other})
        assert load_network(path, asked, 10, SHAPES).spec.name == "resnet8_aux_dpcd"
    with pytest.raises(UserError, match="does not fit"):
        load_network(save(tmp_path, "wrn_16_1_aux.pth.tar", {"net": state}), None, 10, SHAPES)


def test_the_stride_of_mobilenets_stem_is_told_apart(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    with torch.no_grad():
        for name, size in (("mobilenetV2", 16), ("mobilenetV2_dpcd", 8)):
            spec = model_dict[name]
            out = TappedNet(spec(num_classes=10), spec, ("stage2",))({"image": rand((2, 3, 16, 16), 0)})
            assert out["stage2"].shape[-1] == size // 2
    for name, stride in (("mobilenetV2", 1), ("mobilenetV2_aux", 1), ("mobilenetV2_dpcd", 2)):
        assert f"stem of stride {stride}" in listing.model(model_dict[name]).taps
    heads = save(tmp_path, "mobilenetV2_aux.pth.tar", {"net": model_dict["mobilenetV2_aux_dpcd"](10).state_dict()})
    with caplog.at_level("WARNING"):
        assert load_network(heads, None, 10, SHAPES).spec.name == "mobilenetV2_aux_dpcd"
    assert "stem of stride 2" in caplog.text and "not as the given mobilenetV2_aux (stem of stride 1" in caplog.text
    caplog.clear()
    plain = save(tmp_path, "mobilenetV2.pth.tar", {"net": model_dict["mobilenetV2"](10).state_dict()})
    with caplog.at_level("WARNING"):
        assert load_network(plain, None, 10, SHAPES).spec.name == "mobilenetV2"
    assert "mobilenetV2_dpcd (stem of stride 2" in caplog.text
    caplog.clear()
    recorded = save(
        tmp_path, "best.pth", {"model": model_dict["mobilenetV2"](10).state_dict(), "meta": {"arch": "mobilenetV2"}}
    )
    with caplog.at_level("WARNING"):
        load_network(recorded, None, 10, SHAPES)
        with pytest.raises(UserError, match="holds a mobilenetV2"):
            load_network(recorded, "mobilenetV2_dpcd", 10, SHAPES)
    assert not caplog.text


def test_a_backbone_of_another_stride_is_named(tmp_path, caplog, monkeypatch):
    """Its weights fit either stem: what the file recorded, or the heads in it, tell."""
    monkeypatch.setattr(log, "propagate", True)
    plain = model_dict["mobilenetV2"](10).state_dict()
    recorded = save(tmp_path, "best.pth", {"model": plain, "meta": {"arch": "mobilenetV2"}})
    unknown = save(tmp_path, "mobilenetV2.pth.tar", {"net": plain})
    heads = save(tmp_path, "mobilenetV2_aux.pth.tar", {"net": model_dict["mobilenetV2_aux"](10).state_dict()})
    stride_1, stride_2 = ("mobilenetV2", "mobilenetV2_aux"), ("mobilenetV2_dpcd", "mobilenetV2_aux_dpcd")

    def said(file, name):
        caplog.clear()
        spec = model_dict[name]
        with caplog.at_level("WARNING"):
            load_backbone(TappedNet(spec(num_classes=10), spec), str(file), 10, frozen=False)
        return caplog.text

    other = "holds a mobilenetV2 (stem of stride 1"
    assert not any(said(file, name) for file in (recorded, heads) for name in stride_1)
    for file in (recorded, heads):
        text = said(file, stride_2[1])
        assert other in text and "are used for a mobilenetV2_dpcd (stem of stride 2" in text
    assert other in said(recorded, stride_2[0])
    assert "mobilenetV2_dpcd (stem of stride 2" in said(unknown, stride_1[1]) and "fits both " in caplog.text


def test_peers_load_one_by_one(small, tmp_path):
    torch.manual_seed(2)
    second = model_dict["resnet8_aux"](num_classes=10)
    both = {f"net{i}.{k}": v for i, net in ((1, small), (2, second)) for k, v in net.state_dict().items()}
    path = save(tmp_path, "pair.pth.tar", {"net": both})
    with pytest.raises(UserError, match="two peers: choose one"):
        read_checkpoint(path)
    ours = save(tmp_path, "ours.pth", {"model": small.state_dict(), "peer": second.state_dict()})
    for file in (path, ours):
        for i, net in ((1, small), (2, second)):
            state = load_network(f"{file}@net{i}", "resnet8_aux", 10, SHAPES).model.state_dict()
            assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        teachers = [load_network(f"{file}@net{i}", "resnet8_aux", 10, SHAPES).checksum for i in (1, 2)]
        assert len(set(teachers)) == 2, "one file, two teachers: runs, caches and remembered accuracies tell them apart"
    with pytest.raises(UserError, match="without a peer"):
        read_checkpoint(f"{save(tmp_path, 'one.pth', {'model': small.state_dict()})}@net2")
    pair = save(tmp_path, "resnet20_resnet20.pth.tar", {"net": {"net1.x": torch.zeros(1)}})
    with pytest.raises(UserError, match="the classifier of resnet20_aux"):
        load_network(f"{pair}@net1", None, 10, SHAPES)


def test_plain_names_with_heads_in_the_file():
    keys = {"auxiliary_classifier.fc1.weight": torch.zeros(40, 3), "backbone.fc.weight": torch.zeros(10, 3)}
    assert model_in("wrn_40_2", keys).name == "wrn_40_2_aux"
    assert model_in("vgg13_bn", keys).name == "vgg13_bn_aux"
    assert model_in("ResNet18", keys).name == "resnet18_imagenet_aux"
    assert model_in("ResNet18_aux", keys).name == "ResNet18_aux"
    assert model_in("wrn_40_2", {"fc.weight": 0}).name == "wrn_40_2"
