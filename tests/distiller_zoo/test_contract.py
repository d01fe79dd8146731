"""The contract, for every registry entry and every family the seams were made for; and mistakes it must catch."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.protocols import Needs, UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict, published_names
from distiller_zoo._combined import Combined
from distiller_zoo._math import weighted_sum
from distiller_zoo._task import chain_of, thawed
from distiller_zoo.base import Distiller
from helper.networks.teacher_sources import LiveTeacher, SharedTeacher
from helper.training.stages import StagePlan, build_stages
from helper.training.step import StepSetup
from models import model_dict
from tests.support.cases import ALL, CLASSES, PAIRS, combined, config, soft_targets
from tests.support.contract import PROGRESS, check_contract, make_step
from tests.support.toys import VIT, B, Critic, Factor, FactorInit, ToyData, cnn, network


def maker(case, **kwargs):
    method, cfg, student, teacher, data = ALL[case]
    return partial(make_step, method, cfg, student, teacher, data, B, **kwargs), data


def repeats(case):
    """Whether it is the second pair of a method that reads no map: such pairs differ in their stages alone."""
    method, cfg, *_ = ALL[case]
    if not case.endswith("-".join(("", *PAIRS[1]))) or method.before:
        return False
    needs = method.needs(cfg, *(model_dict[name] for name in PAIRS[1]))
    return {*needs.student, *needs.teacher} <= {"pooled"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if repeats(c) else ()) for c in ALL])
def test_contract(case):
    make, data = maker(case)
    check_contract(make, data.batch(), data.num_classes)


@pytest.mark.parametrize("case", [case for case in ALL if ALL[case][0].before])
def test_contract_of_first_stages(case):
    make, data = maker(case, stage=0)
    check_contract(make, data.batch(), data.num_classes)


@pytest.mark.parametrize("name", method_dict)
def test_registry_entry(name):
    method = method_dict[name]
    assert method.name == name and issubclass(method, Distiller)
    module = __import__(method.__module__, fromlist=["_"])
    first = (module.__doc__ or "").splitlines()[0]
    assert name == "vanilla" or re.search(r"\b20\d\d\b", first), "first line: paper, venue, year"
    for field in dataclasses.fields(method.Config):
        assert field.default is not None, f"{name}.{field.name} has no default that runs"
    assert method_dict[published_names.get(name, name)] is method


def test_first_stage_trains_alone_and_is_handed_on():
    data, teacher = ToyData(), network(cnn(8))
    torch.manual_seed(0)
    run = build_stages(
        Factor,
        Factor.Config(beta=1.0),
        cnn(4),
        teacher,
        data,
        StepSetup(lambda p, s: torch.optim.SGD(p, lr=0.1), device=torch.device("cpu")),
        StagePlan(batch_size=B, epochs=1, init_epochs=1),
    )
    assert chain_of(Factor) == (FactorInit, Factor)
    first = next(run)
    assert not first.final
    student = {k: v.detach().clone() for k, v in first.step.student.named_parameters()}
    encode = first.step.method.encode.weight.detach().clone()
    first.step.train()
    first.step(data.batch(), PROGRESS)
    assert all(torch.equal(v, student[k]) for k, v in first.step.student.named_parameters())
    assert not torch.equal(encode, first.step.method.encode.weight)
    second = next(run)
    encode = second.step.method.encode.weight.detach().clone()
    second.step.train()
    second.step(data.batch(), PROGRESS)
    assert second.final and second.step.method.encode is first.step.method.encode
    assert torch.equal(encode, second.step.method.encode.weight)
    assert not torch.equal(second.step.student.model.fc.weight, student["model.fc.weight"])


def test_adversarial_signal_reaches_the_student_and_the_critic_sees_both():
    make, data = maker("critic")
    step = make()
    step.train()
    s, t = step.objective.features(data.batch())
    stem = step.student.model.stem[0].weight
    assert torch.autograd.grad(step.method.judge(s["critic.attn"], True), stem)[0].abs().sum() > 0
    params = list(step.method.critic.parameters())
    with thawed(params):
        for attention, real in ((t["attn"], True), (s["critic.attn"].detach(), False)):
            grads = torch.autograd.grad(step.method.judge(attention, real), params)
            assert any(g.abs().sum() > 0 for g in grads)


def test_phase_runs_every_nth_step():
    class Lazy(Critic):
        def extra_phases(self):
            return tuple(dataclasses.replace(p, every=2) for p in super().extra_phases())

    step = make_step(Lazy, Lazy.Config(), cnn(4), lambda: network(VIT), ToyData(), B)
    step.train()
    seen = [set(step(ToyData().batch(), dataclasses.replace(PROGRESS, epoch=1, step=i)).terms) for i in range(4)]
    assert ["critic" in terms for terms in seen] == [True, False, True, False]


class CachedTeacher:
    """A cache in memory: features by (index, crop), and a live teacher for the views not yet seen."""

    def __init__(self, live):
        self.live, self.spec, self.store, self.forwards = live, live.spec, {}, 0

    def features(self, batch, taps):
        assert batch.crop is not None and not taps, "this batch is no pixel view of the data set: run the teacher"
        keys = list(zip(batch.index.tolist(), batch.crop.tolist(), strict=True))
        if any(k not in self.store for k in keys):
            self.forwards += 1
            logits = self.live.features(batch, ())["logits"]
            self.store.update(zip(keys, logits, strict=True))
        return {"logits": torch.stack([self.store[k] for k in keys])}


def test_a_cached_teacher_changes_nothing():
    make, data = maker("teacher-view")
    method, _, student, teacher, _ = ALL["teacher-view"]
    kd = method_dict["kd"]
    plain = make_step(kd, kd.Config(), student, teacher, data, B)
    cache = CachedTeacher(LiveTeacher(plain.teacher.net))
    cached = make_step(kd, kd.Config(), student, teacher, data, B, source=cache)
    for step in (plain, cached):
        step.train()
    for _ in range(2):
        a, b = plain(data.batch(), PROGRESS), cached(data.batch(), PROGRESS)
        assert torch.equal(a.loss, b.loss)
    assert cache.forwards == 1


def test_changed_pixels_are_no_longer_a_known_crop():
    batch = ToyData().batch()
    assert batch.crop is not None and batch.with_inputs(batch.inputs).crop is None


def test_lanes_share_one_teacher_forward_and_equal_separate_runs():
    data, spec = ToyData(), cnn(4)
    lanes = {"kd": config("kd"), "at": config("at"), "simkd": config("simkd"), "crd": config("crd")}

    def build(name, source=None):
        return make_step(method_dict[name], lanes[name], spec, lambda: network(cnn(8)), data, B, source=source)

    torch.manual_seed(0)
    alone = {name: build(name) for name in lanes}
    union = {tap for step in alone.values() for tap in step.objective.taps}
    live = LiveTeacher(TappedNet(next(iter(alone.values())).teacher.net.model, cnn(8), union))
    forwards = []
    live.net.register_forward_hook(lambda *_: forwards.append(1))
    shared = SharedTeacher(live, tuple(union))
    together = {name: build(name, shared) for name in lanes}
    for name in lanes:  # the teachers' random weights differ by construction order: give all the same
        alone[name].teacher.net.model.load_state_dict(live.net.model.state_dict())
        together[name].load_state_dict(alone[name].state_dict())
        alone[name].train()
        together[name].train()
    for i in range(3):
        batch = data.batch(seed=i)
        losses = {name: step(batch, PROGRESS).loss for name, step in together.items()}
        for name, step in alone.items():
            assert torch.equal(step(batch, PROGRESS).loss, losses[name]), name
    assert len(forwards) == 3


@pytest.mark.parametrize("case", ["kd-resnet8-resnet8x4", "rotated", "crd-resnet8-resnet8x4", "critic"])
def test_accumulation_keeps_sizes_and_trains(case):
    make, data = maker(case, accumulate=3)
    step = make()
    step.train()
    result = step(data.batch(), PROGRESS)
    assert len(result.logits) == len(result.target) == B
    assert torch.isfinite(result.loss)


def test_accumulation_equals_one_batch_without_batch_norm():
    data = ToyData()

    def norm_free(spec):
        def build(num_classes):
            model = spec(num_classes=num_classes)
            for name, module in list(model.named_modules()):
                if isinstance(module, nn.BatchNorm2d):
                    parent, _, leaf = name.rpartition(".")
                    setattr(model.get_submodule(parent), leaf, nn.Identity())
            return model

        return dataclasses.replace(spec, build=build)

    losses, weights = [], []
    for parts in (1, 3):
        step = make_step(
            method_dict["kd"], config("kd"), norm_free(cnn(4)), lambda: network(cnn(8)), data, B, accumulate=parts
        )
        step.train()
        losses.append(step(data.batch(), PROGRESS).loss)
        weights.append(torch.cat([p.detach().flatten() for p in step.student.parameters()]))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(weights[0], weights[1])


def test_soft_targets_reach_the_classification_term():
    make, data = maker("kd-resnet8-resnet8x4")
    step, batch = make(), data.batch()
    step.train()
    s, t = step.objective.features(batch)
    soft = dataclasses.replace(batch, soft_target=soft_targets(batch, CLASSES))
    hard, mixed = (step.method.common_terms(s, t, b, step.method.weights(PROGRESS))["cls"] for b in (batch, soft))
    torch.testing.assert_close(mixed, F.cross_entropy(s["logits"], soft.soft_target))
    assert not torch.equal(hard, mixed)


def test_bf16_terms_are_float32():
    make, data = maker("simkd-resnet8-resnet8x4", autocast=torch.bfloat16)
    step = make()
    step.train()
    s, t = step.objective.features(data.batch())
    assert all(v.dtype == torch.float32 for v in (*s.values(), *t.values()))


def test_split_cuts_views_and_teacher_inputs_by_sample():
    batch = ToyData().batch()
    x = batch.inputs["image"]
    wide = dataclasses.replace(
        batch.with_inputs({"image": x.repeat_interleave(2, 0)}, views=2), teacher_inputs={"image": x}
    )
    parts = wide.split(3)
    assert [len(p) for p in parts] == [3, 3, 2] and [len(p.inputs["image"]) for p in parts] == [6, 6, 4]
    assert torch.equal(torch.cat([p.teacher_inputs["image"] for p in parts]), x)
    assert torch.equal(torch.cat([p.index for p in parts]), batch.index)


# ---- mistakes of earlier toolboxes, planted


class HiddenList(Distiller):
    name = "hidden_list"

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        self.scales = [nn.Parameter(torch.ones(1))]  # in a list: no optimiser will ever see it

    def connect(self, s, t):
        return {**s, "scaled": s["logits"] * self.scales[0]}, t

    def terms(self, s, t, batch, progress):
        return {self.name: s["scaled"].pow(2).mean()}

    def weights(self, progress):
        return {**super().weights(progress), self.name: 1.0}


class UnusedModule(HiddenList):
    def __init__(self, cfg, ctx):
        Distiller.__init__(self, cfg, ctx)
        self.scales = [1.0]
        self.never = nn.Linear(2, 2)


class UnweightedTerm(HiddenList):
    def __init__(self, cfg, ctx):
        Distiller.__init__(self, cfg, ctx)
        self.scales = [1.0]

    def weights(self, progress):
        return {"cls": 1.0, "div": 1.0}


class ForgottenCount(HiddenList):
    """Its loss follows a number that no state dict holds."""

    def __init__(self, cfg, ctx):
        Distiller.__init__(self, cfg, ctx)
        self.scales, self.count = [1.0], 0

    def terms(self, s, t, batch, progress):
        self.count += 1
        return {self.name: self.count * s["scaled"].pow(2).mean()}


class UntrainedHead(HiddenList):
    def __init__(self, cfg, ctx):
        Distiller.__init__(self, cfg, ctx)
        self.head = nn.Linear(5, 5)
        self.scales = [1.0]

    def connect(self, s, t):
        with torch.no_grad():
            return {**s, "scaled": s["logits"] + self.head(s["logits"])}, t


class DriftingTeacher(Distiller):
    name = "drifting"

    def __init__(self, cfg, ctx):
        super().__init__(cfg, ctx)
        self.teacher_head = ctx.teacher.head

    def terms(self, s, t, batch, progress):
        with torch.no_grad():
            self.teacher_head.bias += 1e-3
        return {}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (HiddenList, "no optimiser holds"),
        (UnusedModule, "never reaches"),
        (UnweightedTerm, "without a weight"),
        (UntrainedHead, "never reaches"),
        (DriftingTeacher, "the teacher changed|must not move"),
        (ForgottenCount, "does not restore training"),
    ],
)
def test_the_contract_catches(mistake, message):
    data = ToyData()
    make = partial(make_step, mistake, mistake.Config(), cnn(4), lambda: network(cnn(8)), data, B)
    with pytest.raises((AssertionError, KeyError), match=message):
        check_contract(make, data.batch(), data.num_classes)


def test_the_contract_catches_momentum_that_is_not_restored(monkeypatch):
    make, data = maker("kd-resnet8-resnet8x4")
    monkeypatch.setattr(torch.optim.SGD, "load_state_dict", lambda self, state: None)
    with pytest.raises(AssertionError, match="does not restore the optimisers"):
        check_contract(make, data.batch(), data.num_classes)


def test_a_tap_that_fires_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            return self.fc(self.conv(self.conv(x)).mean((2, 3)))

    spec = dataclasses.replace(cnn(4), build=lambda num_classes: Twice(), taps={"stem": cnn(4).taps["stem"]})
    spec = dataclasses.replace(spec, taps={"stem": dataclasses.replace(spec.taps["stem"], module="conv")})
    net = TappedNet(spec(num_classes=5), spec, ("stem",))
    with pytest.raises(RuntimeError, match="was called twice"):
        net({"image": torch.rand(2, 3, 16, 16)})


def test_a_reused_head_may_be_called_outside_a_forward():
    spec = dataclasses.replace(
        cnn(4), taps={**cnn(4).taps, "fc": dataclasses.replace(cnn(4).taps["pooled"], module="fc")}
    )
    net = TappedNet(spec(num_classes=5), spec, ("fc",))
    net.head(torch.rand(2, 8))
    assert net({"image": torch.rand(2, 3, 16, 16)})["fc"].shape == (2, 5)


def test_errors_speak():
    kd, data = method_dict["kd"], ToyData()
    with pytest.raises(UserError, match="has no tap stage9"):
        TappedNet(cnn(4)(num_classes=5), cnn(4), ("stage9",))
    with pytest.raises(UserError, match="Did you mean semckd"):
        method_dict["semkd"]
    with pytest.raises(KeyError, match="without a weight"):
        weighted_sum({"a": torch.ones(())}, {"b": 1.0})
    with pytest.raises(UserError, match="weight 0"):
        weighted_sum({}, {"cls": 0.0})
    with pytest.raises(UserError, match="--path_t"):
        make_step(kd, kd.Config(), cnn(4), None, data, B)
    with pytest.raises(UserError, match="both change the deployed network"):
        other = type("Other", (method_dict["simkd"],), {"name": "other"})
        Combined.check(dataclasses.replace(combined("simkd"), members=((method_dict["simkd"], None), (other, None))))
    with pytest.raises(UserError, match="reads 'video'"):
        from tests.support.toys import VIDEO

        probe(TappedNet(VIDEO(num_classes=5), VIDEO), {"image": (3, 16, 16)})


def test_needs_are_united():
    cfg = combined("at", "crd", "semckd")
    needs = Combined.needs(cfg, cnn(4), cnn(8))
    assert needs == Needs(("stage1", "stage2", "pooled"), ("stage1", "stage2", "pooled"), full_batches=True)
