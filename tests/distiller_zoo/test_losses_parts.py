"""Methods that differentiate parts of their loss one by one: published trajectories, equations, ranks, edges."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.protocols import Batch, Context, ModelSpec, Part, Progress, Tap, UserError
from core.taps import TappedNet, probe
from distiller_zoo import attach, method_dict
from distiller_zoo._combined import Combined
from distiller_zoo._rows import target_class
from distiller_zoo._task import averaged_over_ranks
from distiller_zoo.deepkd import classes_in_mask, other_classes
from distiller_zoo.dhkd import DHKD, LOSSES
from distiller_zoo.dot import DOT
from helper.options.parse import parse
from helper.training.optim import OptimConfig, PartedSGD
from helper.training.step import DistillStep, StepSetup
from models import model_dict
from tests.distiller_zoo.test_losses import check
from tests.distiller_zoo.test_losses_recent import GOLDEN, TARGET, by_variant, cases, golden_inputs
from tests.distiller_zoo.test_reference_losses import TOLERANCE, normal
from tests.golden.rule import fill_array, fill_module, rand
from tests.support import reference_recent as reference
from tests.support.cases import combined
from tests.support.contract import PROGRESS, make_step
from tests.support.method_context import batch_of, build, run, side
from tests.support.toys import B, ToyData, cnn, network

LATE = Progress(epoch=20, epochs=240)


def trajectories(name: str) -> list[dict]:
    return [c for c in GOLDEN["trajectories"] if c["name"] == name]


class TwoLayers(nn.Module):
    """The network of the trajectories; head: the name of its classifier."""

    def __init__(self, head: str, num_classes: int = 10):
        super().__init__()
        self.head, self.fc1 = head, nn.Linear(12, 16)
        self.add_module(head, nn.Linear(16, num_classes))

    def forward(self, x):
        return self.get_submodule(self.head)(self.fc1(x).relu())


def two_layers(head: str) -> TappedNet:
    taps = {"pooled": Tap(head, kind="vector", side="input")}
    spec = ModelSpec("two_layers", partial(TwoLayers, head), taps, ("pooled",), head, input="x", input_shape=(12,))
    return TappedNet(fill_module(TwoLayers(head)), spec, ("pooled",))


class GivenTeacher:
    """Answers with logits that the batch holds."""

    def features(self, batch, taps):
        return {"logits": batch.inputs["teacher"]}


def batch(k: int, size: int = 8) -> Batch:
    labels = torch.from_numpy(np.random.RandomState(700 + k).randint(0, 10, size))
    return Batch({"x": rand((size, 12), 600 + k), "teacher": 3 * rand((size, 10), 800 + k)}, labels, torch.arange(size))


def step_of(method, cfg, case, head: str = "fc2", **setup) -> DistillStep:
    """A step with the case's optimiser; parameters of the method by the key rule."""
    net, hyper = two_layers(head), case["hyper"]
    ctx = Context(10, torch.arange(10), 8, probe(net, {"x": (12,)}), side("t", [], 4, 10))
    built = method(cfg, ctx)
    with torch.no_grad():
        for name, p in built.named_parameters():
            p.copy_(torch.from_numpy(fill_array(name, tuple(p.shape))))
    make = partial(torch.optim.SGD, lr=hyper["lr"], momentum=hyper["mu"], weight_decay=hyper["weight_decay"])
    return DistillStep(net, GivenTeacher(), built, StepSetup(lambda params, scale: make(params), **setup))


def walk(step: DistillStep, case: dict) -> tuple[list[float], list[float], list[dict]]:
    start = [p.detach().clone() for p in step.trained.parameters()]
    lengths, ways, terms = [], [], []
    step.train()
    for k in range(case["steps"]):
        terms.append({name: v.item() for name, v in step(batch(k), LATE).terms.items()})
        now = [p.detach() for p in step.trained.parameters()]
        lengths.append(torch.cat([p.flatten() for p in now]).norm().item())
        ways.append(torch.cat([(p - q).flatten() for p, q in zip(now, start, strict=True)]).norm().item())
    return lengths, ways, terms


def agrees(case: dict, walked: tuple) -> None:
    lengths, ways, _ = walked
    assert ways == pytest.approx(case["moved_l2"], rel=case["rtol"])
    assert lengths == pytest.approx(case["param_l2"], rel=case["rtol"])


# ------------------------------------------------------------------ the published numbers


class Alone(DOT):
    """Parameters that one loss alone reaches: KD reads z + aux h, cross-entropy reads z + own."""

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        self.aux, self.own = nn.Linear(16, 10, bias=False), nn.Module()
        self.own.bias = nn.Parameter(torch.zeros(10))

    def common_terms(self, s, t, batch, weights):
        with_aux = {**s, "logits": s["logits"] + self.aux(s["pooled"])}
        distils = super().common_terms(with_aux, t, batch, {"div": weights["div"]})
        return distils | {"cls": F.cross_entropy(s["logits"] + self.own.bias, batch.target)}


@pytest.mark.parametrize("case", trajectories("dot"), ids=lambda c: c["variant"])
def test_golden_dot(case):
    hyper = case["hyper"]
    cfg = DOT.Config(cls=hyper["ce"], div=hyper["kd"], kd_T=hyper["T"], delta=hyper["delta"])
    walked = walk(step_of(Alone if "alone" in case["variant"] else DOT, cfg, case), case)
    agrees(case, walked)
    assert [hyper["ce"] * t["cls"] for t in walked[2]] == pytest.approx(case["losses_task"], rel=1e-5)
    assert [hyper["kd"] * t["div"] for t in walked[2]] == pytest.approx(case["losses_kd"], rel=1e-5)


@pytest.mark.parametrize("case", trajectories("deepkd"), ids=lambda c: c["variant"])
def test_golden_deepkd(case):
    h = case["hyper"]
    cfg = method_dict["deepkd"].Config(
        cls=h["ce"],
        form="dkd" if h["dkd"] else "kd",
        alpha=h["alpha"],
        others=h["beta"],
        temperature=h["T"],
        task=h["delta_task"],
        target=h["delta_target"],
        other=h["delta_non_target"],
        as_published=h["order"] == "code",
    )
    walked = walk(step_of(method_dict["deepkd"], cfg, case), case)
    agrees(case, walked)
    weights = {"cls": h["ce"], "deepkd_target": 1, "deepkd_other": h["beta"] if h["dkd"] else 1}
    for name, losses in (("cls", "task"), ("deepkd_target", "target"), ("deepkd_other", "non_target")):
        ours = [weights[name] * t[name] for t in walked[2]]
        assert ours == pytest.approx(case[f"losses_{losses}"], rel=1e-5), name


@pytest.mark.parametrize("case", trajectories("dhkd_gradient_alignment"), ids=lambda c: c["variant"])
def test_golden_dhkd_alignment(case):
    hyper = case["hyper"]
    options = {"cls": hyper["gamma"], "beta": hyper["alpha"], "temperature": hyper["T"], "head": "linear"}
    walked = walk(step_of(DHKD, DHKD.Config(**options), case, "fc"), case)
    agrees(case, walked)
    assert [t["dhkd"] for t in walked[2]] == pytest.approx(case["losses_kd"], rel=1e-5)
    plain = walk(step_of(DHKD, DHKD.Config(**options, plain=True), case, "fc"), case)
    assert case["conflict"][0] and plain[1][0] != pytest.approx(case["moved_l2"][0], rel=1e-4)


@pytest.mark.parametrize("case", cases("deepkd_losses"), ids=by_variant)
def test_golden_deepkd_losses(case):
    leaves, x, labels = golden_inputs(case)
    h = case["hyper"]
    options = {"alpha": h["alpha"], "others": h["beta"], "temperature": h["T"], "topk": h["topk"]}
    form = "dkd" if h["dkd"] else "kd"
    method = build("deepkd", side("s", [], 4, 100), side("t", [], 4, 100), cls=0.0, form=form, **options)
    progress = Progress(h["epoch"], 240)
    terms, *_ = run(method, {"logits": x["s"]}, {"logits": x["t"]}, batch_of(labels), progress)
    weights = method.weights(progress)
    parts = {k.removeprefix("deepkd_"): weights[k] * v for k, v in terms.items()}
    assert parts["target"].item() == pytest.approx(case["parts"]["target"], rel=1e-5)
    assert parts["other"].item() == pytest.approx(case["parts"]["non_target"], rel=1e-5)
    check(case, parts["target"] + parts["other"], leaves, rtol=1e-5)


@pytest.mark.parametrize(("name", "loss"), [("dhkd_binary_kl_norm", "norm"), ("dhkd_binary_kl", "plain")])
def test_golden_dhkd(name, loss):
    (case,) = cases(name)
    leaves, x, _ = golden_inputs(case)
    check(case, LOSSES[loss](x["s"], x["t"], case["hyper"]["T"]).mean(), leaves, rtol=1e-5)


# ------------------------------------------------------------------ the equations

LOGITS = 3 * normal(8, 10, seed=1), 3 * normal(8, 10, seed=2)


@pytest.mark.parametrize("top", [0, 1, 4, 10])
def test_deepkd(top):
    z_s, z_t = LOGITS
    target, other = reference.deepkd(z_s.numpy(), z_t.numpy(), TARGET.numpy(), 3.0, top or 10)
    assert target_class(z_s, z_t, TARGET, 3.0).tolist() == pytest.approx(target.tolist(), **TOLERANCE)
    assert other_classes(z_s, z_t, TARGET, 3.0, top).tolist() == pytest.approx(other.tolist(), **TOLERANCE)


@pytest.mark.parametrize("loss", LOSSES)
def test_dhkd(loss):
    z_s, z_t = LOGITS
    expected = reference.dhkd(z_s.numpy(), z_t.numpy(), 2.0, loss == "norm")
    assert LOSSES[loss](z_s, z_t, 2.0).tolist() == pytest.approx(expected.tolist(), **TOLERANCE)


def test_the_mask_of_deepkd_widens():
    def widths(phases, *epochs):
        return [classes_in_mask(40, phases, 100, Progress(e, 240)) for e in epochs]

    assert widths((), 1, 240) == [40, 40]
    assert widths((60, 180), 0, 30, 60, 180, 210, 240) == [5, 22, 40, 40, 70, 100]


PARTS = Part("task", None, -0.05, decays=True), Part("other", ("x",), 0.06), Part("third", ("y",), 0.02)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_dot_and_deepkd_optimiser(order):
    """Every combination of losses that reach a parameter, over five steps; settings of two groups."""
    parts = [PARTS[i] for i in order]
    reached = [(0, 1, 2), (0, 1), (0,), (1,), (2,), (1, 2)]
    params = [nn.Parameter(normal(3, 2, seed=i)) for i in range(len(reached))]
    start = [p.detach().numpy().copy() for p in params]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.3}]
    optimizer = PartedSGD(torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01), parts, "x")
    seen = []
    for k in range(5):
        gradients = [
            [normal(3, 2, seed=100 * k + 10 * i + j) if part in own else None for i, own in enumerate(reached)]
            for j, part in enumerate(order)
        ]
        optimizer.step_parts(params, gradients)
        seen.append(gradients)
    settings = [(0.1, 0.01)] * 2 + [(0.02, 0.3)] * 4
    for i, p in enumerate(params):
        own = [[None if g[j][i] is None else g[j][i].numpy() for g in seen] for j in range(3)]
        lr, decay = settings[i]
        expected = reference.parted_sgd(start[i], own, [(q.momentum, q.decays) for q in parts], (lr, 0.9, decay))
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)
    again = PartedSGD(torch.optim.SGD([{"params": g["params"]} for g in groups], lr=1, momentum=0.9), parts, "x")
    again.load_state_dict(optimizer.state_dict())
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_dhkd_alignment():
    method = build("dhkd", side("s", [], 4, 5), side("t", [], 4, 5), head="linear")
    for sign in (1, -1):
        a, b = normal(3, seed=1), normal(3, seed=2)
        b = b if (a @ b > 0) == (sign > 0) else -b
        task, own = [a, normal(2, seed=3), None], [b, None, normal(4, seed=4)]
        joined = method.join_gradients([list(task), list(own)])
        expected = reference.aligned([None if x is None else x.numpy() for x in (*task, *own)])
        assert all(x is y for x, y in zip(joined[0], task, strict=True))
        for ours, theirs in zip(joined[1], expected, strict=True):
            ours = torch.zeros(len(theirs)) if ours is None else ours
            assert ours.tolist() == pytest.approx(theirs.tolist(), **TOLERANCE)


# ------------------------------------------------------------------ the step


@pytest.mark.parametrize("name", ["dot", "deepkd", "dhkd"])
def test_micro_batches_of_parts_add_up(name):
    (case, *_) = trajectories("dot")
    options = {"head": "linear"} if name == "dhkd" else {}
    ways = [
        walk(step_of(method_dict[name], method_dict[name].Config(**options), case, accumulate=n), case)[1]
        for n in (1, 2)
    ]
    if name != "deepkd":  # its loss multiplies two means over the micro-batch
        assert ways[0] == pytest.approx(ways[1], rel=1e-5)
    assert all(np.isfinite(ways[1]))


def test_parts_with_equal_momenta_are_plain_sgd():
    (case, *_) = trajectories("dot")
    hyper = dict(case["hyper"])
    kd = method_dict["kd"]
    plain = walk(step_of(kd, kd.Config(cls=0.3, div=0.7), case), case)
    parted = walk(step_of(DOT, DOT.Config(cls=0.3, div=0.7, delta=0.0), case), case)
    assert parted[1] == pytest.approx(plain[1], rel=1e-5) and hyper["weight_decay"]


def test_each_part_is_clipped_by_itself():
    """A step is the sum of the steps of its parts alone, each as long as the limit."""
    (case, *_) = trajectories("dot")
    case = {**case, "hyper": case["hyper"] | {"weight_decay": 0.0}}

    def moved(**weights):
        step = step_of(DOT, DOT.Config(**weights), case, optim=OptimConfig(clip_grad=0.01))
        before = torch.cat([p.detach().flatten() for p in step.trained.parameters()])
        step.train()
        step(batch(0), LATE)
        return torch.cat([p.detach().flatten() for p in step.trained.parameters()]) - before

    task, distillation = moved(div=0.0), moved(cls=0.0)
    for part in (task, distillation):
        assert part.norm().item() == pytest.approx(0.01 * case["hyper"]["lr"], rel=1e-2)
    torch.testing.assert_close(moved(), task + distillation, rtol=0, atol=1e-6)


def test_gradients_outside_ddp_are_means_over_processes(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.mul_(4))  # the other's are three times as large
    params = [nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,), (1,))]
    for i, p in enumerate(params[:2], 1):
        p.grad = torch.full_like(p, i)
    gradients = averaged_over_ranks([p.grad for p in params])
    for mean, p, want in zip(gradients, params, (2.0, 4.0), strict=False):
        assert (mean == want).all() and torch.equal(p.grad, mean)
    assert gradients[2] is None and params[2].grad is None


def test_a_combination_takes_the_parts_of_its_member():
    step = make_step(Combined, combined("dkd", "dot", "crd"), cnn(4), lambda: network(cnn(8)), ToyData(), B)
    assert [p.name for p in step.parts] == ["task", "distillation"] and isinstance(step.optimizers["main"], PartedSGD)
    step.train()
    assert step(ToyData().batch(), PROGRESS).loss.isfinite()
    with pytest.raises(UserError, match="dot and deepkd both need separate gradients"):
        Combined.check(combined("dot", "deepkd"))


def test_a_plain_loop_cannot_train_parts():
    nets = [model_dict["resnet8"](num_classes=5) for _ in range(2)]
    with pytest.raises(UserError, match=r"dkd\+dot needs separate gradients of the parts .* with train_student.py"):
        attach("dkd+dot", *nets, sample=torch.rand(2, 3, 32, 32))
    assert attach("dhkd", *nets, sample=torch.rand(2, 3, 32, 32), plain=True)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dot --dot_delta -1", "--dot_delta -1.0 must be at least 0 and at most 1"),
        ("deepkd --deepkd_topk -1", "--deepkd_topk -1 must be at least 0"),
        ("deepkd --deepkd_T 0", "--deepkd_T 0.0 must be above 0"),
        ("deepkd --deepkd_alpha -1", "--deepkd_alpha -1.0 must be at least 0"),
        ("deepkd --deepkd_beta -1", "--deepkd_beta -1.0 must be at least 0"),
        ("deepkd --deepkd_warmup -1", "--deepkd_warmup -1 must be at least 0"),
        ("deepkd --deepkd_task 2", "--deepkd_task 2.0 must be at least -1 and at most 1"),
        ("deepkd --deepkd_phases 60 180", "--deepkd_phases 60 180 must be two epochs in order, and needs"),
        ("deepkd --deepkd_topk 5 --deepkd_phases 60", "--deepkd_phases 60 must be two epochs"),
        ("dhkd --dhkd_T 0", "--dhkd_T 0.0 must be above 0"),
    ],
)
def test_settings_out_of_range(command, message):
    with pytest.raises(UserError) as error:
        parse(["--distill", *command.split()], teacher=False)
    assert message in str(error.value)


def test_optimisers_without_one_momentum_are_refused():
    p = [nn.Parameter(torch.zeros(1))]
    for other in (torch.optim.Adam(p), torch.optim.SGD(p, lr=1, momentum=0.9, nesterov=True)):
        with pytest.raises(UserError, match="dot has a momentum for every part of its loss.* --optimizer sgd"):
            PartedSGD(other, PARTS, "dot")
    with pytest.raises(UserError, match="the other part has momentum 1.01 .that of the run plus"):
        PartedSGD(torch.optim.SGD(p, lr=1, momentum=0.95), PARTS, "dot")
