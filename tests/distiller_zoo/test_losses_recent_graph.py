"""Methods of recent years that change or run a part of a network: published numbers, equations, edges."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from core.protocols import Context, Progress, UserError
from core.taps import TappedNet, probe
from distiller_zoo import attach, method_dict
from helper.options.parse import parse
from models import model_dict
from tests.distiller_zoo.test_losses import check
from tests.distiller_zoo.test_losses_recent import GOLDEN, by_variant, cases, golden_inputs
from tests.distiller_zoo.test_reference_losses import TOLERANCE, B, K, arrays, maps, prepared
from tests.golden.rule import fill_module, rand
from tests.support import reference_recent_features as reference
from tests.support.method_context import batch_of, build, run, side
from tests.support.model_contract import undrawn
from tests.support.reference_losses import cross_entropy

TARGET = torch.arange(B) % K


def networks(name: str, variant: str = "") -> list[dict]:
    return [c for c in GOLDEN["networks"] if c["name"] == name and variant in c["variant"]]


# ------------------------------------------------------------------ norm


@pytest.mark.parametrize("case", cases("norm"), ids=by_variant)
def test_golden_norm(case):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    options = {"cls": hyper["cls"], "div": hyper["div"], "kd_T": hyper["kd_T"], "copies": hyper["N"]}
    student, teacher = (side(k, [x[k].shape[1:]], x[k].shape[1], 100) for k in "st")
    method, progress = build("norm", student, teacher, **options), Progress(hyper["epoch"] + 1, 240)
    s = {"logits": x["s_logits"], "norm.expanded": x["s"]}
    terms, *_ = run(method, s, {"logits": x["t_logits"], "stage1": x["t"]}, batch_of(labels), progress)
    weights = method.weights(progress)
    assert weights["norm"] == hyper["ramp"]
    check(case, sum(weights[k] * v for k, v in terms.items()), leaves, rtol=1e-5)


@pytest.mark.parametrize("case", networks("norm_student"), ids=lambda c: c["variant"])
def test_golden_norm_student(case):
    spec = model_dict["resnet8x4"]
    net = TappedNet(fill_module(spec(num_classes=100)), spec, ("stage3",))
    net.mean.zero_(), net.std.fill_(1)  # the case's images are normalised already
    method = build("norm", probe(net, {"image": (3, 32, 32)}), side("t", [(64, 8, 8)], 64, 100), copies=4)
    widened = fill_module(method.deployment().widened)
    alpha = {"alpha": [4]}  # published, and read nowhere
    assert {k: list(v.shape) for k, v in widened.state_dict().items()} | alpha == case["extra_keys"]
    count = sum(p.numel() for p in (*net.parameters(), *widened.parameters()))
    assert count == case["parameters"] - 4
    for module in (net, widened):
        module.train(case["variant"] == "train")
    features = net({"image": rand((2, 3, 32, 32), case["image_seed"])})
    expanded = features["norm.expanded"]
    assert list(expanded.shape) == case["expanded_shape"]
    assert expanded.mean().item() == pytest.approx(case["expanded_mean"], rel=1e-4)
    assert expanded.norm().item() == pytest.approx(case["expanded_l2"], rel=1e-5)
    torch.testing.assert_close(features["logits"][:, :5], torch.tensor(case["logits_first"]), rtol=1e-4, atol=1e-5)
    deployed = method.deploy(features)["logits"]
    assert torch.equal(deployed.argmax(1), features["logits"].argmax(1))


@pytest.mark.parametrize(("size_s", "size_t"), [(4, 4), (4, 8), (6, 3)])
@pytest.mark.parametrize("copies", [1, 3])
def test_norm(size_s, size_t, copies):
    sizes = [(3, size_s, size_s)], [(5, size_t, size_t)]
    method, s, t, _ = prepared("norm", *sizes, copies=copies, cls=0.7, div=0.4, kd_T=3.0)
    _, extra = method.deployment().widened(s["stage1"])
    terms, *_ = run(method, {**s, **extra}, t, batch_of(TARGET))
    expanded, z_s, z_t = (x.detach().numpy() for x in (extra["norm.expanded"], s["logits"], t["logits"]))
    assert terms["norm"].item() == pytest.approx(reference.norm(expanded, maps(t)[0], copies), **TOLERANCE)
    cls, div = reference.norm_logits(z_s, z_t, TARGET.numpy(), 3.0)
    assert terms["cls"].item() == pytest.approx(cls, **TOLERANCE)
    assert terms["div"].item() == pytest.approx(div, **TOLERANCE)


def test_the_weight_of_norm_changes_after_the_epochs_of_its_ramp():
    method, *_ = prepared("norm", [(3, 4, 4)], [(5, 4, 4)], copies=1, beta=2.0, ramp=(1, 2, 4, 5))
    assert [method.weights(Progress(e, 6))["norm"] for e in range(1, 7)] == [0.2, 1.0, 2.0, 2.0, 1.0, 0.2]


def test_the_layers_of_norm():
    method, s, *_ = prepared("norm", [(3, 4, 4)], [(5, 4, 4)], copies=2)
    output, extra = method.deployment().widened(s["stage1"])
    theirs = reference.norm_layers(s["stage1"].numpy(), arrays(method.deployment().widened))
    for ours, wanted in zip((extra["norm.expanded"], output), theirs, strict=True):
        torch.testing.assert_close(ours.detach(), torch.from_numpy(wanted), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("student", ["wrn_16_1", "ShuffleV2", "MobileNetV2", "vgg8"])
def test_norm_sits_inside_any_student(student):
    images, teacher = torch.rand(4, 3, 32, 32), model_dict["resnet8"](num_classes=5)
    net = model_dict[student](num_classes=5)
    before = copy.deepcopy(net).eval()(images)
    task = attach("norm", net, teacher, sample=images[:2], copies=2)
    assert not torch.allclose(before, net.eval()(images), rtol=1e-3)
    net.train()
    task(images, torch.arange(4))["loss"].backward()
    assert all(p.grad is not None for p in task.parameters())
    deployed = task.eval().deployed()
    assert torch.equal(deployed(images).argmax(1), net(images).argmax(1))
    assert torch.allclose(deployed(images[:2]), deployed(images)[:2], rtol=1e-4)  # eval mode, also of what is inside


def test_norm_settings():
    cfg = method_dict["norm"].Config()
    assert (cfg.cls, cfg.div, cfg.beta, cfg.copies) == (0.1, 0.0, 1.0, 8)
    for command, message in (
        ("--norm_copies 0", "--norm_copies 0 must be at least 1"),
        ("--norm_ramp 10 20 180", "--norm_ramp 10 20 180 must be 4 epochs in order, such as 10 20 180 210"),
        ("--norm_ramp 20 10 180 210", "--norm_ramp 20 10 180 210 must be 4 epochs in order"),
    ):
        with pytest.raises(UserError, match=message):
            parse(["--distill", "norm", *command.split()], teacher=False)


# ------------------------------------------------------------------ deit


def two_heads(x: dict) -> tuple[dict, dict]:
    s = {"class_logits": x["s"], "distilled_logits": x["s_dist"], "logits": (x["s"] + x["s_dist"]) / 2}
    return s, {"logits": x["t"]}


@pytest.mark.parametrize("case", cases("deit_token"), ids=by_variant)
def test_golden_deit(case):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    options = {"cls": hyper["task"], "beta": hyper["distill"], "kind": hyper["kind"]}
    options |= {"temperature": hyper.get("T", 1.0), "as_published": hyper.get("reduction") == "elements"}
    method = build("deit", side("s", [], 4, 100), side("t", [], 4, 100), **options)
    terms, *_ = run(method, *two_heads(x), batch_of(labels))
    weights = method.weights(Progress())
    check(case, sum(weights[k] * v for k, v in terms.items()), leaves, rtol=1e-5)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_deit(kind, published):
    method, s, t, _ = prepared("deit", [], [], cls=1.0, kind=kind, temperature=2.0, as_published=published)
    x = {"s": s["logits"], "s_dist": s["logits"].flip(1), "t": t["logits"]}
    terms, *_ = run(method, *two_heads(x), batch_of(TARGET))
    z = {k: v.numpy() for k, v in x.items()}
    expected = reference.deit(z["s_dist"], z["t"], kind, 2.0) / (K if published and kind == "soft" else 1)
    assert terms["deit"].item() == pytest.approx(expected, **TOLERANCE)
    assert terms["cls"].item() == pytest.approx(cross_entropy(z["s"], TARGET.numpy()), **TOLERANCE)


@pytest.mark.parametrize("name", ["vit_micro_cifar_distilled", "timm:deit_tiny_distilled_patch16_224"])
def test_deit_deploys_the_mean_of_two_heads(name):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    spec, sizes = model_dict[name], {"vit": 32, "tim": 224}
    net = TappedNet(spec(num_classes=5), spec, ("class_logits", "distilled_logits"))
    out = net({"image": torch.rand(2, 3, sizes[name[:3]], sizes[name[:3]])})
    assert not torch.equal(out["class_logits"], out["distilled_logits"])
    torch.testing.assert_close(out["logits"], (out["class_logits"] + out["distilled_logits"]) / 2)


def test_deit_refuses_a_student_without_the_token():
    nets = [model_dict["resnet8"](num_classes=5) for _ in range(2)]
    with pytest.raises(UserError, match="deit trains a distillation token, but resnet8 has none: choose vit_tiny"):
        attach("deit", *nets, sample=torch.rand(2, 3, 32, 32))
    with pytest.raises(UserError, match="--deit_T 0.0 must be above 0"):
        parse(["--distill", "deit", "--deit_T", "0"], teacher=False)


# ------------------------------------------------------------------ fcfd


def joined(student: str, teacher: str, classes: int = 100, **options):
    """Two tapped networks filled by the key rule, and the method, with its bridges so filled; float64."""
    nets = []
    for name, salt in ((student, 0), (teacher, 1)):
        spec = model_dict[name]
        nets.append(TappedNet(fill_module(spec(num_classes=classes), salt), spec, spec.stages))
    shapes = {"image": (3, 32, 32)}
    ctx = Context(classes, torch.arange(classes), 8, *(probe(net, shapes) for net in nets))
    method = method_dict["fcfd"](method_dict["fcfd"].Config(**options), ctx)
    fill_module(method.bridges, prefix="bridges.")
    for net in nets:
        net.mean.zero_(), net.std.fill_(1)
    return *(net.double() for net in nets), method.double()


@pytest.mark.parametrize("case", networks("fcfd"), ids=lambda c: f"{c['variant']}-{c['paths']}-{c['epoch']}")
def test_golden_fcfd(case, monkeypatch):
    hyper = case["hyper"]
    options = {"kd_T": hyper["T"], "beta": hyper["weight"], "mixed": hyper["mixed"], "warmup": hyper["ramp_epochs"]}
    net_s, net_t, method = joined(case["student"], case["teacher"], **options)
    keys = networks("fcfd")[0]["bridges"].keys()
    assert {f"bridges.{k}" for k in method.bridges.state_dict()} == {k for k in keys if not k.startswith("bridges.3.1")}
    switches = [(str(path[-1]), path.index(path[-1]) - 1) for path in case["paths"]]
    monkeypatch.setattr(method, "paths", lambda: switches)
    net_t.train(case["variant"] == "code").requires_grad_(False)
    x = {"image": rand((case["batch"], 3, 32, 32), case["image_seed"]).double()}
    labels = torch.from_numpy(np.random.RandomState(case["label_seed"]).randint(0, 100, case["batch"]))
    statistics = net_s.model.bn1.running_mean.clone(), net_s.model.layer3[0].bn1.num_batches_tracked.clone()
    terms, s, t = run(method, net_s(x), net_t(x), batch_of(labels), Progress(case["epoch"] + 1, 240))
    weights = method.weights(Progress(case["epoch"] + 1, 240))
    loss = sum(weights[k] * v for k, v in terms.items())
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert terms["fcfd"].item() == pytest.approx(sum(case["l2_per_stage"]), rel=1e-6)
    loss.backward()
    for module, name in ((net_s, "student"), (method.bridges, "bridge")):
        gradients = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        assert torch.stack(gradients).norm().item() == pytest.approx(case[f"{name}_grad_l2"], rel=1e-6)
    first = net_s.model.conv1.weight.grad.flatten()[:5]
    assert first.tolist() == pytest.approx(case["student_conv1_grad_first"], rel=1e-4)
    assert not torch.equal(statistics[0], net_s.model.bn1.running_mean)
    assert net_s.model.layer3[0].bn1.num_batches_tracked == statistics[1] + 1  # of the plain pass alone


CHAINED = [n for n in model_dict if model_dict[n].chain and model_dict[n].input_shape[-1] == 32 and "x2" not in n]


# NAME_aux_dpcd has the backbone of NAME_aux
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(n, marks=pytest.mark.slow if n.endswith("_aux_dpcd") else ()) for n in CHAINED),
        *("ResNet18", "MobileNetV1", "torchvision:resnet18", "timm:resnet18"),
    ],
)
def test_fcfd_runs_the_rest_of_a_network(name, side_of_images=None):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    spec = model_dict[name]
    with undrawn():
        model = spec(num_classes=5)
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-0.1, 0.1)  # quicker than what its family draws
    net, side_of_images = TappedNet(model, spec, spec.stages).eval(), side_of_images or min(spec.input_shape[-1], 64)
    with torch.no_grad():
        features = net({"image": torch.rand(1, 3, side_of_images, side_of_images)})
        for i, stage in enumerate(spec.stages):
            again = net.run_from(stage, features[stage])
            assert list(again) == [*spec.stages[i + 1 :], "logits"]
            assert all(torch.equal(again[k], features[k]) for k in again)


def test_fcfd_runs_the_rest_of_a_vgg_at_64_px():
    """Where its fourth block is pooled, too."""
    test_fcfd_runs_the_rest_of_a_network("vgg8", 64)


def test_every_family_of_cifar_says_how():
    assert {"resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50_cifar"} <= set(CHAINED)


def test_fcfd_draws_the_switches_and_remembers_them():
    *_, method = joined("resnet8", "wrn_16_1", 5)
    drawn = [method.paths() for _ in range(40)]
    assert {p for paths in drawn for p in paths} == {(to, i) for to in "01" for i in (1, 2)}
    assert all(len(set(paths)) == 2 for paths in drawn)
    *_, again = joined("resnet8", "wrn_16_1", 5)
    again.load_state_dict(method.state_dict())
    assert [again.paths() for _ in range(5)] == [method.paths() for _ in range(5)]


def test_fcfd_refuses_what_it_cannot_join():
    image = torch.rand(2, 3, 32, 32)
    for pair, message in (
        (("resnet8", "vgg8"), "resnet8 has 3 of them, vgg8 4: choose two with the same number"),
        (("vit_micro_cifar", "resnet8"), "the parts of vit_micro_cifar are unknown"),
    ):
        with pytest.raises(UserError, match=message):
            attach("fcfd", *(model_dict[name](num_classes=5) for name in pair), sample=image)
    for flag in ("paths 0", "mixed -1", "warmup -1"):
        with pytest.raises(UserError, match="must be at least"):
            parse(["--distill", "fcfd", *f"--fcfd_{flag}".split()], teacher=False)


def test_fcfd():
    net_s, net_t, method = joined("resnet8", "wrn_16_1", 5, paths=3)
    x = {"image": rand((2, 3, 32, 32), 1).double()}
    with torch.no_grad():
        terms, s, t = run(method, net_s(x), net_t.eval()(x), batch_of(torch.tensor([0, 3])))
    numbers = {k: v.numpy() for k, v in s.items()}
    made = [[v for k, v in numbers.items() if k.startswith(f"fcfd.stage{i}.")] for i in (1, 2, 3)]
    mixed = [v for k, v in numbers.items() if k.startswith("fcfd.logits.")]
    assert [len(m) for m in made][0] == 1 and len(mixed) == 3
    maps_t = [t[f"stage{i}"].numpy() for i in (1, 2, 3)]
    expected = reference.fcfd(made, maps_t, mixed, t["logits"].numpy(), 4.0)
    assert terms["fcfd"].item() == pytest.approx(expected[0], **TOLERANCE)
    assert terms["fcfd_mixed"].item() == pytest.approx(expected[1], **TOLERANCE)
