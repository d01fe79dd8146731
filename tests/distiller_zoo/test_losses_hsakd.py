"""HSAKD, DML and DPCD: against the golden numbers, their equations, and where logits saturate."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from core.protocols import Batch, Context, Progress, UserError
from distiller_zoo import method_dict
from distiller_zoo._heads import joint_labels, rotations
from distiller_zoo._math import over_views
from distiller_zoo.dpcd import quantile_of
from models import model_dict
from tests.support import reference_hsakd as reference
from tests.support.contract import PROGRESS, make_step
from tests.support.method_context import run, side
from tests.support.toys import ToyData, network

LATE = Progress(epoch=60, epochs=240, steps_per_epoch=100)
R, C, J = np.arange(1, 9)[:, None], np.arange(1, 4)[None], np.arange(1, 13)[None]
Y = np.array([1, 2])
GOLDEN = {  # the case of the fact sheet: B = 2, N = 3, L = 2
    "s": (np.sin(0.7 * R * C), [np.cos(0.11 * i * R * (J + 1)) for i in (1, 2)]),
    "t": (2 * np.cos(0.3 * R * (C + 1)), [2 * np.sin(0.13 * i * R * J) for i in (1, 2)]),
}


def heads_side(name, num_heads, classes, per_class, image=(3, 8, 8)):
    plain = side(name, [], 4, classes)
    branches = tuple(f"aux{i}" for i in range(1, num_heads + 1))
    spec = dataclasses.replace(plain.spec, branches=branches)
    shapes = plain.shapes | dict.fromkeys(branches, (per_class * classes,))
    return dataclasses.replace(plain, spec=spec, shapes=shapes, input_shape=image)


def build(name, num_heads=2, classes=3, per_class=4, batch_size=8, teacher_heads=None, image=(3, 8, 8), **options):
    kind = method_dict[name]
    student = heads_side("student_aux", num_heads, classes, per_class, image)
    teacher = heads_side("teacher_aux", teacher_heads or num_heads, classes, per_class, image)
    ctx = Context(classes, torch.arange(20) % classes, batch_size, student, teacher)
    cfg = kind.Config(**options)
    kind.needs(cfg, student.spec, teacher.spec)
    return kind(cfg, ctx)


def features(pair, grad=False):
    main, heads = pair
    return {
        k: torch.from_numpy(np.array(v)).double().requires_grad_(grad)
        for k, v in (("logits", main), *((f"aux{i}", q) for i, q in enumerate(heads, 1)))
    }


def rotated_batch(y=Y):
    y = torch.from_numpy(np.asarray(y)).long()
    return Batch({}, y, torch.arange(len(y)), views=4, turns=torch.arange(4).repeat(len(y)))


def plain_batch(y):
    y = torch.from_numpy(np.asarray(y)).long()
    return Batch({}, y, torch.arange(len(y)))


def value(terms, *names):
    return sum(terms[n] for n in names).item()


# ------------------------------------------------------------------ rotation and labels


def test_rotations_turn_counter_clockwise_image_by_image():
    x = torch.arange(4.0).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    x[1] += 10
    views = rotations(x)[..., 0]
    want = [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    assert views[0].tolist() == want and (views[1] - 10).tolist() == want


def test_joint_labels_of_hsakd_teacher_and_hsakd_online():
    batch = rotated_batch(np.array([3, 7]))
    assert joint_labels(batch).tolist() == [12, 13, 14, 15, 28, 29, 30, 31]
    assert joint_labels(batch, 2).tolist() == 2 * [12, 13, 14, 15, 28, 29, 30, 31]
    soft = dataclasses.replace(batch, soft_target=torch.eye(8)[batch.target] * 0.9 + 0.0125)
    joint = joint_labels(soft)
    torch.testing.assert_close(joint.sum(1), torch.ones(8))
    assert joint.argmax(1).tolist() == joint_labels(batch).tolist()


def test_prepare_rotates_the_whole_batch_and_shares_it():
    method, other = build("hsakd"), build("hsakd")
    data = ToyData(image=(3, 8, 8))
    batch = data.batch(3)
    rotated = method.prepare(batch)
    assert rotated.views == 4 and rotated.turns.tolist() == [0, 1, 2, 3] * 3 and rotated.crop is None
    x = rotated.inputs["image"]
    assert x.shape == (12, 3, 8, 8) and x.is_contiguous(memory_format=torch.channels_last)
    for b in range(3):
        for k in range(4):
            assert torch.equal(x[4 * b + k], batch.inputs["image"][b].rot90(k, (1, 2)))
    assert other.prepare(batch) is rotated and method.prepare(data.batch(3, seed=1)) is not rotated
    with pytest.raises(UserError, match="rotates single views, but the batch holds 4"):
        method.prepare(rotated)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_budget_keeps_the_upright_view_and_the_expectation(num):
    method = build("hsakd", rotations=num)
    batch = ToyData(image=(3, 8, 8)).batch(8)
    sampled = [method.prepare(batch) for _ in range(60)]
    turns = torch.stack([b.turns.view(8, num) for b in sampled])
    assert (turns[..., 0] == 0).all()
    assert all(len(set(row)) == num for row in turns.flatten(0, 1).tolist())
    for b in range(8):
        for v in range(num):
            view = sampled[0].inputs["image"][num * b + v]
            assert torch.equal(view, batch.inputs["image"][b].rot90(int(turns[0, b, v]), (1, 2)))
    if num > 1:
        share = torch.bincount(turns[..., 1:].flatten(), minlength=4)[1:] / turns[..., 1:].numel()
        torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.05, rtol=0)
        # a term that depends on the rotation alone: its mean over draws is its mean over all four rotations
        of_turn = torch.tensor([1.0, 2.0, 3.0, 4.0])
        mean = torch.stack([over_views(of_turn[b.turns], method.view_weights) for b in sampled]).mean().item()
        assert mean == pytest.approx(2.5, abs=0.05)


# ------------------------------------------------------------------ HSAKD


def test_golden_hsakd_teacher():
    terms, *_ = run(build("hsakd_teacher"), features(GOLDEN["s"]), {}, rotated_batch())
    assert value(terms, "cls", "hsakd_teacher") == pytest.approx(6.779237341744265, rel=1e-12)
    assert value(terms, "cls", "hsakd_teacher") == pytest.approx(reference.hsakd_teacher(*GOLDEN["s"], Y), rel=1e-12)


def test_golden_hsakd():
    terms, *_ = run(build("hsakd"), features(GOLDEN["s"]), features(GOLDEN["t"]), rotated_batch())
    cls, div = reference.hsakd_student(*GOLDEN["s"], *GOLDEN["t"], Y)
    assert value(terms, "cls") == pytest.approx(1.4740464458226992, rel=1e-12) == cls
    assert value(terms, "hsakd", "div") == pytest.approx(2.3903076346387864, rel=1e-12)
    assert value(terms, "hsakd", "div") == pytest.approx(div, rel=1e-12)
    assert terms.keys() == {"cls", "div", "hsakd"}


def test_golden_hsakd_online():
    method = build("hsakd_online")
    s, t = features(GOLDEN["s"], grad=True), features(GOLDEN["t"], grad=True)
    terms, *_ = run(method, s, t, rotated_batch())
    cls, div = reference.hsakd_online(*GOLDEN["s"], *GOLDEN["t"], Y)
    assert (cls, div) == pytest.approx((13.851788846806052, 4.858615391556689), rel=1e-12)
    total = sum(method.weights(LATE)[k] * v for k, v in terms.items())
    assert total.item() == pytest.approx(cls + div, rel=1e-12)
    same = {head: head for head in method.heads}
    for own, other in ((s, t), (t, s)):  # a peer learns from its labels and from the other, and is no moving target
        fixed = {k: v.detach() for k, v in other.items()}
        apart = method.joint_entropy(own, method.heads, rotated_batch()) + method.head_kl(own, fixed, same)
        heads = [own[head] for head in method.heads]
        got = torch.autograd.grad(terms["hsakd_online"], heads, retain_graph=True)
        for a, b in zip(got, torch.autograd.grad(apart, heads), strict=True):
            torch.testing.assert_close(a, b)
    for name, peer in (("div", t), ("peer_div", s)):
        assert torch.autograd.grad(terms[name], peer["logits"], allow_unused=True, retain_graph=True) == (None,)


@pytest.mark.parametrize("name", ["hsakd_teacher", "hsakd", "hsakd_online", "dpcd_teacher", "dpcd"])
def test_terms_bear_the_methods_name_and_features_stay(name):
    per_class, rows = (1, 8) if name.startswith("dpcd") else (4, 32)
    method = build(name, per_class=per_class)
    s, t = (
        {"logits": torch.randn(rows, 3), **{f"aux{i}": torch.randn(rows, 3 * per_class) for i in (1, 2)}} for _ in "st"
    )
    batch = plain_batch(np.arange(8) % 3) if per_class == 1 else rotated_batch(np.arange(8) % 3)
    terms, s_out, t_out = run(method, s, t, batch)
    assert all(k in ("cls", "div", "peer_cls", "peer_div") or k.startswith(name) for k in terms)
    assert terms.keys() <= method.weights(LATE).keys()
    assert s_out is s and t_out is t


def test_golden_collapsed_logits():
    method = build("hsakd", report_heads=True)
    out = method.readouts(features(GOLDEN["s"]))
    want = [3.6792159781384615, 2.6937439058884767, 1.1951225801440173]
    assert out["aux1"][0].tolist() == pytest.approx(want, rel=1e-12)
    assert method.reported() == ("aux1", "aux2") and build("hsakd").reported() == ()


@pytest.mark.parametrize("weighted", [2, 3])
def test_budget_weighs_every_view(weighted):
    """The terms of a batch with fewer views: a quarter for the upright rows, the rest for the others."""
    method = build("hsakd", rotations=weighted)
    s, t = (features((GOLDEN[x][0][: 2 * weighted], [q[: 2 * weighted] for q in GOLDEN[x][1]])) for x in "st")
    batch = dataclasses.replace(rotated_batch(), views=weighted, turns=torch.arange(weighted).repeat(2))
    terms, *_ = run(method, s, t, batch)
    shares = np.array([0.25, *[0.75 / (weighted - 1)] * (weighted - 1)])
    for name, keys in (("div", ["logits"]), ("hsakd", ["aux1", "aux2"])):
        want = 0.0
        for key in keys:
            rows = [
                reference.kd(s[key][i : i + 1].numpy(), t[key][i : i + 1].numpy(), 3.0) for i in range(2 * weighted)
            ]
            want += (np.array(rows).reshape(2, weighted) @ shares).mean()
        assert value(terms, name) == pytest.approx(want, rel=1e-10)


def test_heads_are_paired_one_to_one_or_as_said():
    with pytest.raises(UserError, match="student_aux has 3 and teacher_aux 4: .*--hsakd_heads 2 3 4"):
        build("hsakd", num_heads=3, teacher_heads=4)
    with pytest.raises(UserError, match="student_aux has 4 and teacher_aux 2: .*--hsakd_heads 1 1 1 2"):
        build("hsakd", num_heads=4, teacher_heads=2)
    for wrong in ((1, 2), (1, 2, 5), (0, 1, 2)):
        with pytest.raises(UserError, match="must name one of the 4 heads of teacher_aux for each of the 3"):
            build("hsakd", num_heads=3, teacher_heads=4, heads=wrong)
    mapped = build("hsakd", num_heads=3, teacher_heads=4, heads=(2, 4, 4))
    assert mapped.pairs == {"aux1": "aux2", "aux2": "aux4", "aux3": "aux4"}
    student, teacher = (heads_side(n, k, 3, 4).spec for n, k in (("s", 3), ("t", 4)))
    assert type(mapped).needs(mapped.cfg, student, teacher).teacher == ("aux2", "aux4")


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(UserError, match="3x8x6 is not square"):
        build("hsakd_teacher", image=(3, 8, 6))
    with pytest.raises(UserError, match="needs heads with 12 outputs for 3 classes, but aux1 of student_aux has 3"):
        build("hsakd", per_class=1)
    with pytest.raises(UserError, match="needs heads with 3 outputs .* has 12: use student_aux_dpcd"):
        build("dpcd", per_class=4)
    with pytest.raises(UserError, match="reads auxiliary heads, but resnet8 has none: choose a network"):
        method_dict["hsakd"].needs(method_dict["hsakd"].Config(), model_dict["resnet8"], model_dict["resnet8"])
    with pytest.raises(UserError, match="is less than one batch"):
        build("dpcd", per_class=1, history=4)
    with pytest.raises(UserError, match="two increasing steps"):
        build("dpcd", per_class=1, tiers=(5, 2))
    with pytest.raises(UserError, match="--dpcd_ced_T 0.*must be above 0"):
        build("dpcd", per_class=1, ced_T=0.0)


def test_frozen_backbone_stays_as_it_is_statistics_included():
    kind = method_dict["hsakd_teacher"]
    data = ToyData(image=(3, 16, 16))
    step = make_step(kind, kind.Config(freeze_backbone=True), model_dict["resnet8_aux"], None, data, 8)
    before = {k: v.clone() for k, v in step.student.model.state_dict().items()}
    step.train()
    result = step(data.batch(), PROGRESS)
    assert result.terms.keys() == {"hsakd_teacher"}
    after = step.student.model.state_dict()
    moved = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert moved == {"auxiliary_classifier"}


def test_a_teachers_other_heads_are_not_computed():
    kind = method_dict["hsakd"]
    data = ToyData(image=(3, 16, 16))
    teacher = network(model_dict["resnet8_aux"])
    ran = []
    for i in (1, 2, 3):
        teacher.model.get_submodule(f"auxiliary_classifier.fc{i}").register_forward_hook(lambda *_, i=i: ran.append(i))
    step = make_step(kind, kind.Config(heads=(3, 3, 3)), model_dict["resnet8_aux"], lambda: teacher, data, 8)
    ran.clear()  # of the probe
    step.train()
    step(data.batch(), PROGRESS)
    assert ran == [3]
    calls = []
    step.student.model.auxiliary_classifier.fc1.register_forward_hook(lambda *_: calls.append(1))
    step.deployed().eval()(data.batch().inputs)
    assert not calls, "evaluation computed a head nobody asked for"


# ------------------------------------------------------------------ deep mutual learning


def test_dml_is_its_equation():
    rng = np.random.default_rng(0)
    z_1, z_2, y = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), np.array([0, 3, 1, 2, 2])
    kind = method_dict["dml"]
    ctx = Context(4, torch.arange(20) % 4, 8, side("s", [], 4, 4), side("t", [], 4, 4))
    method = kind(kind.Config(), ctx)
    s, t = ({"logits": torch.from_numpy(z).requires_grad_()} for z in (z_1, z_2))
    terms, *_ = run(method, s, t, plain_batch(y))
    want = {
        "cls": reference.cross_entropy(z_1, y),
        "div": reference.kd(z_1, z_2, 1.0),
        "peer_cls": reference.cross_entropy(z_2, y),
        "peer_div": reference.kd(z_2, z_1, 1.0),
    }
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(want, rel=1e-12)
    assert method.weights(LATE).items() >= dict.fromkeys(want, 1.0).items()
    assert torch.autograd.grad(terms["div"], t["logits"], allow_unused=True) == (None,)
    assert torch.autograd.grad(terms["peer_div"], s["logits"], allow_unused=True) == (None,)


# ------------------------------------------------------------------ DPCD

B_, C_ = np.arange(1, 5)[:, None], np.arange(1, 6)[None]
DPCD_S, DPCD_T, DPCD_Y = np.sin(0.7 * B_ * C_), 2 * np.cos(0.3 * B_ * (C_ + 1)), np.array([0, 2, 4, 1])


def dpcd(num_heads=1, **options):
    return build("dpcd", num_heads, classes=5, per_class=1, batch_size=4, **options).double()


def ced_of(beta=8.0, detach=False, **options):
    """(value, norms of the gradients) of CED with the golden case: head -> student is the only pair of one head."""
    method = dpcd(cls=0.0, ced_nckd=beta, detach=detach, **options)
    s = features((DPCD_S, [DPCD_T]), grad=True)
    terms, *_ = run(method, s, {"logits": torch.from_numpy(DPCD_T)}, plain_batch(DPCD_Y), LATE)
    grads = torch.autograd.grad(terms["dpcd_ced"], (s["logits"], s["aux1"]), allow_unused=True)
    return terms["dpcd_ced"].item(), [0.0 if g is None else g.norm().item() for g in grads]


def test_golden_dpcd_ced():
    """The published logarithm adds 1e-8, which the log-space form does not need: T^2 * 1e-8 * b_t / b_s apart."""
    got, norms = ced_of()
    tckd, nckd = reference.ced(DPCD_S, DPCD_T, DPCD_Y)
    assert (tckd, nckd) == pytest.approx((0.3526995969253827, 0.6644356053731515), rel=1e-12)
    assert got == pytest.approx(1.0171352022985343, rel=3e-7) and got == pytest.approx(tckd + nckd, rel=3e-7)
    assert norms == pytest.approx([0.38066868720212493, 0.23394526740612964], rel=1e-6)
    assert ced_of(beta=2.0)[0] == pytest.approx(0.5188084982686706, rel=5e-7)
    assert ced_of(beta=2.0, temperature=1.0)[0] == ced_of(beta=2.0)[0], "path 1's temperature is not path 2's"
    warm = sum(reference.ced(DPCD_S, DPCD_T, DPCD_Y, temperature=2.0))
    assert ced_of(ced_T=2.0, temperature=1.0)[0] == pytest.approx(warm, rel=3e-7)
    assert ced_of(detach=True)[1][1] == 0.0
    assert reference.kd(DPCD_S, DPCD_T, 3.0) == pytest.approx(0.7521717815241833, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "want"), [(1, 0.0), (6, 0.7410602321539772), (21, 2.964240928615909), (99, 2.964240928615909)]
)
def test_golden_dpcd_weights(epoch, want):
    """epoch: 1-based; the published ones are 0, 5, 20."""
    method = dpcd(cls=0.0, as_published=True)
    progress = Progress(epoch=epoch, epochs=240, step=3, steps_per_epoch=782)
    t = {"logits": torch.from_numpy(DPCD_T)}
    terms, *_ = run(method, features((DPCD_S, [DPCD_T])), t, plain_batch(DPCD_Y), progress)
    assert method.weights(progress)["dpcd"] * value(terms, "dpcd") == pytest.approx(want, rel=1e-6)
    assert method.memory_mean.item() == pytest.approx(0.29695915, rel=1e-6)
    alpha, beta = method.path_weights(0)
    assert (alpha.item(), beta.item()) == pytest.approx((1.99574, 5.0), rel=1e-5)


@pytest.mark.parametrize("num_heads", [3, 4])
def test_dpcd_is_its_equations(num_heads):
    rng = np.random.default_rng(1)
    p, heads = rng.standard_normal((4, 5)), [rng.standard_normal((4, 5)) for _ in range(num_heads)]
    method = dpcd(num_heads)
    terms, *_ = run(method, features((p, heads)), {"logits": torch.from_numpy(DPCD_T)}, plain_batch(DPCD_Y), LATE)
    tckd, nckd = reference.dkd(p, DPCD_T, DPCD_Y, 3.0)
    alpha, beta = reference.Dynamic()(DPCD_T, DPCD_Y, LATE.global_step)
    assert value(terms, "dpcd_ced") == pytest.approx(reference.dpcd_paths(p, heads, DPCD_Y, eps=0.0), rel=1e-10)
    # with the published 1e-8 in the logarithm, where a pair of a head with itself is about -2e-7
    assert value(terms, "dpcd_ced") == pytest.approx(reference.dpcd_paths(p, heads, DPCD_Y), abs=1e-5)
    assert value(terms, "dpcd") == pytest.approx(alpha * tckd + beta * nckd, rel=1e-6)
    assert value(terms, "dpcd_heads") == pytest.approx(
        sum(reference.cross_entropy(q, DPCD_Y) for q in heads), rel=1e-12
    )
    assert value(terms, "cls") == pytest.approx(reference.cross_entropy(p, DPCD_Y), rel=1e-12)
    assert len(method.teachers) == num_heads * (num_heads + 1) // 2


def test_dpcd_teacher_is_its_equation():
    rng = np.random.default_rng(2)
    p, heads = rng.standard_normal((4, 5)), [rng.standard_normal((4, 5)) for _ in range(3)]
    method = build("dpcd_teacher", 3, classes=5, per_class=1, batch_size=4)
    terms, *_ = run(method, features((p, heads)), {}, plain_batch(DPCD_Y))
    want = reference.cross_entropy(p, DPCD_Y) + sum(reference.cross_entropy(q, DPCD_Y) for q in heads)
    assert value(terms, "cls", "dpcd_teacher") == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("as_published", [False, True])
def test_dpcd_schedule_follows_the_steps_or_stays_at_the_first(as_published):
    """Sixty steps that pass both tiers, the end of the sensitivity's decay and a full history."""
    method, literal = dpcd(history=20, as_published=as_published), reference.Dynamic(20)
    rng, seen = np.random.default_rng(3), []
    for i in range(60):
        z_t, y = 3 * rng.standard_normal((4, 5)), rng.integers(0, 5, 4)
        probability = torch.from_numpy(z_t).softmax(1)[range(4), y]
        method._remember(probability)
        step = 20 * i
        got = [x.item() for x in method.path_weights(step)]
        want = literal(z_t, y, 0 if as_published else step)
        assert got == pytest.approx(want, rel=1e-5), step
        seen.append(got)
    assert len({round(alpha, 4) for alpha, _ in seen}) > 10


def test_dpcd_of_saturated_logits_is_no_nan():
    """The published form takes the logarithm of zero here."""
    z = torch.tensor([[400.0, 0, 0, 0, 0], [0, 400.0, 0, 0, 0], [-400.0, 0, 0, 0, 400.0], [0, 0, 0, 0, 0]])
    s = {"logits": z.clone().requires_grad_(), "aux1": (-z).requires_grad_(), "aux2": z.flip(0).requires_grad_()}
    method = build("dpcd", 2, classes=5, per_class=1, batch_size=4)
    terms, *_ = run(method, s, {"logits": -2 * z}, plain_batch(DPCD_Y), LATE)
    total = sum(terms.values())
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, list(s.values())))


@pytest.mark.parametrize("count", [1, 2, 7, 2000])
def test_dpcd_quantile_is_torchs(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    for q in (0.0, 0.65, 0.7, 1.0):
        assert torch.allclose(quantile_of(values, q), torch.quantile(values, q), atol=1e-6)


def test_dpcd_remembers_every_view_in_several_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("distiller_zoo.dpcd.gathered", lambda x: x)
    method = dpcd()
    method._remember(torch.arange(8).double())  # of 4 samples
    assert method.memory_seen.item() == 8 and method.memory_mean.item() == 3.5


@pytest.mark.parametrize("name, per_class", [("dpcd_teacher", 1), ("hsakd_teacher", 4)])
def test_class_weights_count_for_the_heads(name, per_class):
    """Both samples are of the class with 6 of the 20 labels."""
    batch = plain_batch([2, 2]) if per_class == 1 else rotated_batch([2, 2])
    s = {head: torch.randn(2 * batch.views, 3 * per_class).double() for head in ("aux1", "aux2")}
    equal, balanced = (
        build(name, per_class=per_class, class_weight=w).double().terms(s, {}, batch, LATE)[name].item()
        for w in ("none", "balanced")
    )
    assert balanced == pytest.approx(equal * 20 / 18)


def test_dpcd_history_longer_than_a_turn_keeps_the_latest():
    method = dpcd(history=6)
    for i in range(4):
        method._remember(torch.arange(4 * i, 4 * i + 4).double())
    assert sorted(method.memory_confidence[:-1].tolist()) == [10, 11, 12, 13, 14, 15]
    assert method.memory_seen.item() == 16
    want = 1.5
    for i in (1, 2, 3):
        want = 0.9 * want + 0.1 * (4 * i + 1.5)
    assert math.isclose(method.memory_mean.item(), want)
