"""Every network of the registry against the published numbers (tests/golden) and the contract of its taps."""

import json
import math
import zlib
from pathlib import Path

import pytest
import torch

from core.protocols import UserError
from core.taps import TappedNet, normalised, probe
from models import model_dict
from models._common import shuffle
from tests.golden.rule import fill_module, rand
from tests.support.model_contract import check_layout, check_training, shapes_alone, tapped, undrawn
from tests.support.shared import shared

GOLDEN = Path(__file__).parents[1] / "golden"
RENAMED = {("repdistiller", "ResNet50"): "ResNet50_cifar"}
CASES: dict[str, list] = {}  # name -> what each source publishes
for source in ("simkd", "repdistiller"):
    for name, case in json.loads((GOLDEN / f"models_{source}.json").read_text()).items():
        CASES.setdefault(RENAMED.get((source, name), name), []).append(case)
# others of the same code with more layers or channels are quick; keys, counts and places of taps are checked for all
DEEP = {"resnet32x4", "resnet38", "resnet38x2", "resnet38x4", "resnet44", "resnet56", "resnet110", "resnet110x2"}
DEEP |= {"resnet116", "resnet14x2", "resnet14x4", "resnet8x4_double", "wrn_40_1", "wrn_40_2", "vgg11", "vgg16", "vgg19"}
DEEP |= {"mobilenetV2_dpcd", "MobileNetV2_1_0", "ShuffleV2_1_5", "vit_small_cifar", "vit_tiny_cifar"}
DEEP |= {"vit_tiny_cifar_distilled"}
HEAVY = {
    "ResNet18x2",
    "ResNet34x2",
    "wrn_50_2",
    "ResNet34",
    "resnext50_32x4d",
    "resnet38x4",
    "resnet110",
    "resnet110x2",
}
HEAVY |= {"resnet116", "vgg16", "vgg19"}  # filling these takes long, too
SMALL = (3, 32, 32)
SPECS = [
    pytest.param(model_dict[name], id=name, marks=pytest.mark.slow if name in DEEP else ())
    for name in model_dict
    if model_dict[name].input_shape == SMALL and not model_dict[name].branches
]


def some(*names):
    return pytest.mark.parametrize("spec", [pytest.param(model_dict[name], id=name) for name in names])


@pytest.mark.parametrize("name", CASES)
def test_golden_keys(name):
    """Parameters, keys in order and shapes, without arithmetic."""
    with shapes_alone():
        model = tapped(model_dict[name]).model  # every tap has its place
    for golden in CASES[name]:
        assert sum(p.numel() for p in model.parameters()) == golden["params"]
        assert [[k, list(v.shape)] for k, v in model.state_dict().items()] == golden["keys"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in CASES])
def test_golden(name):
    spec = model_dict[name]
    with undrawn():
        model = spec(num_classes=100)
    fill_module(model, salt=0).eval()
    with torch.no_grad():
        out = tapped(spec, model, spec.feats)({"image": rand((2, 3, 32, 32), 1000)})
    for golden in CASES[name]:
        compare(spec, out, golden)


def compare(spec, out, golden):
    assert len(spec.feats) == len(golden["feats"])
    for tap, want in zip(spec.feats, golden["feats"], strict=True):
        got = out[tap]
        scale = want["l2"] / math.sqrt(got.numel())  # root mean square
        assert list(got.shape) == want["shape"], tap
        assert got.norm().item() == pytest.approx(want["l2"], rel=1e-4), tap
        assert got.mean().item() == pytest.approx(want["mean"], rel=1e-3, abs=1e-4 * scale), tap
    want = torch.tensor(golden["logits"])
    torch.testing.assert_close(out["logits"][:, :10], want, rtol=1e-3, atol=1e-3 * want.abs().mean().item())
    assert out["logits"].norm().item() == pytest.approx(golden["logits_l2"], rel=1e-3)


def test_golden_preact():
    """Means of the published preact=True lists, float64, another deterministic fill: u = hash of position and key."""

    def u(key, shape):
        spread = (torch.arange(math.prod(shape)) * 2654435761 + zlib.crc32(key.encode())) % 2**32
        return (spread.double() / 2**32 - 0.5).reshape(shape)

    def fill(key, shape):
        if len(shape) >= 2:
            return u(key, shape) * math.sqrt(24 / math.prod(shape[1:]))
        return 1 + 0.4 * u(key, shape) if key.endswith((".weight", ".running_var")) else 0.2 * u(key, shape)

    published = {
        "resnet8": (0.277235, 0.256671, -0.0373092, -0.0193335, 0.177133),
        "resnet8x4": (0.282987, 0.0233367, -0.000143814, -0.0106954, 0.294188),
        "wrn_40_2": (2.7876e-05, 0.0708517, -0.00323501, 0.000447961, 0.326282),
        "vgg8": (0.265154, 0.0215718, -0.00183649, -0.000222779, 0.00235128, 0.0383819),
    }
    for name, means in published.items():
        spec = model_dict[name]
        model = spec(num_classes=100).double().eval()
        model.load_state_dict({k: v if v.ndim == 0 else fill(k, v.shape) for k, v in model.state_dict().items()})
        order = [f"{tap}_preact" if tap in spec.stages else tap for tap in spec.feats]
        with torch.no_grad():
            out = tapped(spec, model)({"image": 2 * u("input", (2, 3, 32, 32))})
        assert [out[tap].mean().item() for tap in order] == pytest.approx(means, rel=1e-5), name


@pytest.mark.parametrize("spec", SPECS)
def test_contract(spec):
    """Every stage of a CIFAR network also says what its last ReLU reads, and no tapped tensor was ever written over;
    channels_last stays channels_last at every tap and changes no value; 64 px inputs run; a second network built the
    same way takes the first one's state, probing it changes none of it."""
    net = tapped(spec, num_classes=7)
    check_training(net, 32)
    assert {f"{stage}_preact" for stage in spec.stages} <= net.want
    with torch.no_grad():
        out = net({"image": rand((2, 3, 32, 32), 1)})
    assert {k: v._version for k, v in out.items()} == dict.fromkeys(out, 0)

    plain = check_layout(net, 32)
    with torch.no_grad():
        large = net({"image": rand((1, 3, 64, 64), 3)})
    assert large["logits"].shape == (1, 7)
    assert large["pooled"].shape[1] == plain["pooled"].shape[1]

    first = net.model
    with undrawn():
        second = spec(num_classes=7)
    second.load_state_dict(first.state_dict())
    side = probe(TappedNet(second, spec, spec.feats).train(), {"image": (3, 32, 32)})
    assert second.training
    assert side.shapes["logits"] == (7,)
    assert side.head is second.get_submodule(spec.head)
    for (key, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("groups", [2, 3])
def test_shuffle(groups):
    """Channel g * n + k goes to k * groups + g, in either memory layout, the same within one compiled graph."""
    x = rand((2, 6 * groups, 3, 4), 6)
    order = [g * 6 + k for k in range(6) for g in range(groups)]
    compiled = torch.compile(shuffle, backend="eager", fullgraph=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        for function in (shuffle, compiled):
            out = function(x.contiguous(memory_format=layout), groups)
            assert torch.equal(out, x[:, order])
            assert out.is_contiguous(memory_format=layout)
    torch.compiler.reset()


@some("resnet8", "vgg8")  # tracing the deeper ones takes long, and they have nothing else in them
def test_compiles_as_one_graph(spec):
    net = tapped(spec).eval()
    x = rand((2, 3, 32, 32), 4)
    torch.compiler.reset()
    with torch.no_grad():
        want = net({"image": x})
        got = torch.compile(net, backend="eager", fullgraph=True)({"image": x})
    torch.testing.assert_close(got, want)
    torch.compiler.reset()


@some("resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ResNet50_cifar")
def test_initialisation(spec):
    """Convolutions ~ N(0, 2 / (k * k * C_out)); the head as each family published it."""
    torch.manual_seed(0)
    model = spec(num_classes=100)
    for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 5000):
        std = math.sqrt(2 / (conv.out_channels * math.prod(conv.kernel_size)))
        assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
        assert conv.bias is None or not conv.bias.any()
    head = model.get_submodule(spec.head)
    assert bool(head.bias.any()) == spec.name.lower().startswith("resnet")
    std = 0.01 if spec.name.startswith(("vgg", "MobileNet")) else 1 / math.sqrt(3 * head.in_features)
    assert head.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_keep_the_default_initialisation(name):
    torch.manual_seed(0)
    for conv in (m for m in model_dict[name]().modules() if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 5000):
        assert conv.weight.std().item() == pytest.approx(1 / math.sqrt(3 * conv.weight[0].numel()), rel=0.05)


def test_learning_rate_is_the_published_override():
    slow = {name for name in model_dict if model_dict[name].published.learning_rate == 0.01}
    plain = {name for name in slow if not model_dict[name].branches}
    assert plain == {"MobileNetV2", "MobileNetV2_1_0", "ShuffleV1", "ShuffleV2", "ShuffleV2_1_5"} | {
        "mobilenetV2",
        "mobilenetV2_dpcd",
    }
    assert {name.split("_")[0] for name in slow - plain} == {"mobilenetV2", "ShuffleV1", "ShuffleV2"}
    assert {model_dict[name].published.learning_rate for name in model_dict} == {None, 0.01}


@pytest.mark.parametrize("name", [spec.id for spec in SPECS])
def test_spec(name):
    spec = model_dict[name]
    assert spec.name == name and spec.mean == (0.5071, 0.4867, 0.4408)
    assert spec.std == (0.2675, 0.2565, 0.2761)
    assert spec.feats[0] == "stem"
    assert spec.stages == tuple(f"stage{i + 1}" for i in range(len(spec.stages)))
    assert spec.feats[-1] == "pooled"


def test_vgg_pools_its_fourth_block_at_64_px_only():
    """As published; 32 px and all other sizes are halved three times."""
    net = tapped(model_dict["vgg8"]).eval()
    with torch.no_grad():
        size = {s: net({"image": rand((1, 3, s, s), 5)})["stage4"].shape[-1] for s in (32, 48, 64)}
    assert size == {32: 4, 48: 6, 64: 4}


def test_unknown_name_suggests_near_ones():
    with pytest.raises(UserError, match="resnet8x4"):
        model_dict["ResNet8x4"]


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_published_checkpoint_loads_strictly(name):
    path = shared(f"checkpoints/{name}.pth")  # of other people
    model = model_dict[name](num_classes=100)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)


@pytest.mark.parametrize("shape", [(4, 3, 8, 6), (2, 1, 5, 5), (3, 3, 1, 7), (1, 3, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_images_are_normalised_to_the_bit_in_any_memory_order(shape, memory_format):
    torch.manual_seed(0)
    x = torch.rand(shape).contiguous(memory_format=memory_format)
    mean, std = torch.rand(2, shape[1], 1, 1)
    expected, got = (x - mean) / std, normalised(x, mean, std)
    assert torch.equal(got, expected) and got.stride() == expected.stride()
