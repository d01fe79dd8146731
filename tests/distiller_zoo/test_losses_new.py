"""The newer methods: against the published numbers, against their equations, and where logits saturate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from core.protocols import Batch, ModelSpec, Progress, UserError
from distiller_zoo import method_dict
from distiller_zoo._math import standardised
from distiller_zoo.mlkd import TEMPERATURES, batch_correlation, class_correlation
from distiller_zoo.vkd import orthonormal
from helper.options.parse import parse
from tests.distiller_zoo.test_losses import LABELS, cases, check, inputs
from tests.distiller_zoo.test_reference_losses import TOLERANCE, B, K, arrays, maps, normal, prepared
from tests.support import reference_losses
from tests.support import reference_new as reference
from tests.support.method_context import batch_of, build, run, side, spec

LATE = Progress(epoch=100, epochs=240)
LOGIT_METHODS = ("kd", "dkd", "dist", "nkd", "wttm", "ctkd", "mlkd")
TARGET = torch.arange(B) % K


def on_logits(name: str, classes: int = 100, **options: object):
    """A method that reads logits alone, with every common term off unless asked for."""
    weights = {"cls": 0.0} if name == "kd" else {"cls": 0.0, "div": 0.0}
    return build(name, side("s", [], 4, classes), side("t", [], 4, classes), **{**weights, **options})


def value(method, z_s, z_t, target, progress=LATE):
    terms, *_ = run(method, {"logits": z_s}, {"logits": z_t}, batch_of(target), progress)
    (term,) = terms.values()
    return term


def by_hyper(case: dict) -> str:
    return "-".join(f"{k}{v}" for k, v in case["hyper"].items())


# ------------------------------------------------------------------ the published numbers


SETTINGS = {
    "dkd": {"alpha": "tckd", "beta": "nckd", "T": "temperature"},
    "dist": {"beta": "inter", "gamma": "intra", "tau": "tau"},
    "nkd": {"gamma": "gamma", "temp": "temperature"},
}


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in SETTINGS for c in cases(n)], ids=lambda x: str(x)[:4])
def test_golden(name, case):
    x = inputs(case)
    method = on_logits(name, **{SETTINGS[name][k]: v for k, v in case["hyper"].items()})
    check(case, value(method, 3 * x["s"], 3 * x["t"], LABELS), x)


@pytest.mark.parametrize("case", cases("lskd"), ids=by_hyper)
def test_golden_lskd(case):
    x, hyper = inputs(case), case["hyper"]
    method = on_logits("kd", div=hyper["weight"], kd_T=hyper["T"], logit_stand=True)
    check(case, method.weights(LATE)["div"] * value(method, 3 * x["s"], 3 * x["t"], LABELS), x)


@pytest.mark.parametrize(
    ("function", "case"),
    [
        (class_correlation, cases("mlkd_class_correlation")[0]),
        (batch_correlation, cases("mlkd_batch_correlation")[0]),
    ],
    ids=["class", "batch"],
)
def test_golden_mlkd(function, case):
    x, temperature = inputs(case), case["hyper"]["T"]
    check(case, function(*((3 * x[k] / temperature).softmax(1) for k in ("s", "t"))), x)


# ------------------------------------------------------------------ the equations


def logits(seed: int = 0):
    return 3 * normal(B, K, seed=seed), 3 * normal(B, K, seed=seed + 1)


EQUATIONS = {
    "kd": ({"kd_T": 2.0}, lambda s, t, y: reference_losses.kd(s, t, 2.0)),
    "dkd": ({"tckd": 0.7, "nckd": 5.0, "temperature": 3.0}, lambda s, t, y: reference.dkd(s, t, y, 0.7, 5.0, 3.0)),
    "dist": ({"inter": 0.5, "intra": 1.5, "tau": 3.0}, lambda s, t, y: reference.dist(s, t, 0.5, 1.5, 3.0)),
    "nkd": ({"gamma": 1.5, "temperature": 2.0}, lambda s, t, y: reference.nkd(s, t, y, 1.5, 2.0)),
    "wttm": ({"gamma": 0.3}, lambda s, t, y: reference.wttm(s, t, 0.3)),
    "ctkd": (
        {"start": 2.0, "span": 10.0},
        lambda s, t, y: reference_losses.kd(s, t, reference.ctkd_temperature(1.0, 2.0, 10.0)),
    ),
    "mlkd": ({"views": 1}, lambda s, t, y: reference.mlkd(s, t)),
}


@pytest.mark.parametrize("stand", [False, True], ids=["", "stand"])
@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_equation_of_logits(name, stand):
    options, expected = EQUATIONS[name]
    z_s, z_t = logits()
    got = value(on_logits(name, K, logit_stand=stand, **options).double(), z_s, z_t, TARGET)
    scale = reference.z_score if stand else (lambda z: z)
    assert got.item() == pytest.approx(expected(scale(z_s.numpy()), scale(z_t.numpy()), TARGET.numpy()), **TOLERANCE)


@pytest.mark.parametrize("stand", [False, True], ids=["", "stand"])
def test_logit_stand_reaches_the_common_term_of_a_feature_method(stand):
    method, s, t, _ = prepared("at", [(3, 4, 4)], [(5, 4, 4)], div=1.0, kd_T=2.0, logit_stand=stand)
    z_s, z_t = s["logits"].numpy(), t["logits"].numpy()
    if stand:
        z_s, z_t = reference.z_score(z_s), reference.z_score(z_t)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    assert terms["div"].item() == pytest.approx(reference_losses.kd(z_s, z_t, 2.0), **TOLERANCE)


@pytest.mark.parametrize("relations", ["both", "weak"])
@pytest.mark.parametrize("halved", [False, True])
def test_mlkd_sums_both_views(halved, relations):
    """Rows of a sample lie side by side: even rows are the weak view, odd rows the strong one."""
    z_s, z_t = (torch.stack(pair, 1).flatten(0, 1) for pair in zip(logits(), logits(5), strict=True))
    method = on_logits("mlkd", K, cls=0.1, halved=halved, weak_relations=relations == "weak").double()
    batch = batch_of(TARGET, views=2)
    terms = method.terms({"logits": z_s}, {"logits": z_t}, batch, LATE)
    weak = reference.mlkd(z_s[::2].numpy(), z_t[::2].numpy())
    strong = reference.mlkd(z_s[1::2].numpy(), z_t[1::2].numpy(), relations=relations == "both")
    assert terms["mlkd"].item() == pytest.approx((0.5 if halved else 1.0) * weak + strong, **TOLERANCE)
    wanted = reference_losses.cross_entropy(z_s[1::2].numpy(), TARGET.numpy())
    assert terms["mlkd_cls"].item() == pytest.approx(wanted, **TOLERANCE)
    assert method.weights(LATE)["mlkd_cls"] == 0.1
    assert TEMPERATURES == (2, 3, 4, 5, 6)


SIZES = [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 5), (7, 5))]


@pytest.mark.parametrize("raw", [False, True], ids=["", "raw"])
@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_cat_kd(size_s, size_t, raw):
    method, s, t, head = prepared("cat_kd", [(2, 8, 8), (3, *size_s)], [(5, *size_t)], pooled_s=3, raw=raw)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    w_s, w_t = arrays(method.student_head), arrays(head)
    expected = reference.cat_kd(maps(s)[-1], maps(t)[-1], w_s, w_t, 2, normalised=not raw)
    assert terms["cat_kd"].item() == pytest.approx(expected, **TOLERANCE)


def test_cat_kd_trains_the_students_classifier_and_not_the_teachers():
    method, s, t, _ = prepared("cat_kd", [(3, 4, 4)], [(5, 4, 4)], pooled_s=3)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    terms["cat_kd"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.student_head.parameters())
    assert all(p.grad is None for p in method.teacher_head.parameters())


@pytest.mark.parametrize(("c_s", "c_t"), [(3, 5), (5, 5)])
@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_mgd(size_s, size_t, c_s, c_t):
    method, s, t, _ = prepared("mgd", [(c_s, *size_s)], [(c_t, *size_t)], mask=0.4)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    drawn = torch.rand(B, c_t, generator=torch.Generator().manual_seed(1))  # the generator of method_context
    kept = (drawn >= 0.4).double().numpy()
    assert 0 < kept.mean() < 1
    expected = reference.mgd(maps(s)[-1], maps(t)[-1], kept, arrays(method))
    assert terms["mgd"].item() == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("exponent", [4.0, 3.0])
@pytest.mark.parametrize("pooled_s", [12, 14, 20])
def test_srd(pooled_s, exponent):
    method, s, t, _ = prepared("srd", [], [], pooled_s, exponent=exponent)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    weight = arrays(method.project)["weight"]
    expected = reference.srd(s["pooled"].numpy(), t["pooled"].numpy(), weight, exponent)
    assert terms["srd"].item() == pytest.approx(expected, **TOLERANCE)


def test_srd_of_identical_features_is_finite():
    method, s, _, _ = prepared("srd", [], [], 14)
    target = s["pooled"].requires_grad_()
    term = method.terms({"srd.projected": target}, {"srd.target": target.detach()}, batch_of(TARGET), LATE)["srd"]
    assert term.isfinite() and torch.autograd.grad(term, target)[0].isfinite().all()


@pytest.mark.parametrize("pooled_s", [12, 14, 20])
def test_vkd(pooled_s):
    method, s, t, _ = prepared("vkd", [], [], pooled_s)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    weight = arrays(method.project)["weight"]
    assert terms["vkd"].item() == pytest.approx(
        reference.vkd(s["pooled"].numpy(), t["pooled"].numpy(), weight), **TOLERANCE
    )


@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 6)])
def test_vkd_projects_orthogonally_at_any_scale_of_its_weight(shape):
    weight = normal(*shape)
    p = orthonormal(weight)
    narrow = p if shape[0] <= shape[1] else p.mT
    torch.testing.assert_close(narrow @ narrow.mT, torch.eye(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(orthonormal(1e-3 * weight), p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stand", [False, True], ids=["", "stand"])
@pytest.mark.parametrize("eps", [1.0, 1.5])
def test_ofa_kd(eps, stand):
    method, s, t, _ = prepared("ofa_kd", [(3, 8, 8), (4, 4, 4), (6, 3, 3)], [(5, 4, 4)], eps=eps, logit_stand=stand)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    w = arrays(method)
    scale = reference.z_score if stand else (lambda z: z)
    z_t, expected = scale(t["logits"].numpy()), 0.0
    for z_s in (s["logits"].numpy(), *(reference.ofa_exit(f, w, f"exits.{i}", 2 - i) for i, f in enumerate(maps(s)))):
        expected += reference.ofa(scale(z_s), z_t, TARGET.numpy(), eps)
    assert terms["ofa_kd"].item() == pytest.approx(expected, **TOLERANCE)


# ------------------------------------------------------------------ published settings


PUBLISHED = {  # for CIFAR-100 where there are any, resnet32x4 -> resnet8x4; mgd, srd and vkd for ImageNet
    "cat_kd": {"beta": 300, "resolution": 2, "raw": False},
    "ctkd": {"cls": 0.1, "div": 0, "beta": 0.9, "start": 1, "span": 20, "epochs": 10},
    "dist": {"cls": 1, "div": 0, "beta": 2, "inter": 1, "intra": 1, "tau": 4},
    "dkd": {"cls": 1, "div": 0, "beta": 1, "tckd": 1, "nckd": 8, "temperature": 4, "warmup": 20},
    "mgd": {"beta": 7e-5, "mask": 0.15},
    "mlkd": {"cls": 0.1, "div": 0, "beta": 0.9, "views": 2, "halved": False, "weak_relations": False},
    "nkd": {"cls": 1, "div": 0, "beta": 1, "gamma": 3.5, "temperature": 3},
    "ofa_kd": {"cls": 1, "div": 0, "beta": 1, "eps": 1},
    "srd": {"cls": 1, "div": 1, "beta": 1, "exponent": 4},
    "vkd": {"cls": 1, "div": 1, "beta": 1},
    "wttm": {"cls": 1, "div": 0, "beta": 4, "gamma": 0.2},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_settings(name):
    cfg = method_dict[name].Config()
    assert {k: getattr(cfg, k) for k in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", ["srd", "vkd"])
def test_authors_compare_logits_at_temperature_one(name):
    settings = parse(["--distill", name, "--protocol", "authors"], teacher=False)
    assert (settings.loss.kd_T, settings.loss.div, settings.config.kd_T) == (1, 1, 1)
    assert parse(["--distill", name], teacher=False).loss.kd_T == 4


# ------------------------------------------------------------------ schedules


def test_dkd_warms_up_over_twenty_epochs():
    method = on_logits("dkd")
    ramp = [method.weights(Progress(epoch=e))["dkd"] for e in (1, 10, 20, 21, 240)]
    assert ramp == [0.05, 0.5, 1, 1, 1]
    assert on_logits("dkd", warmup=0).weights(Progress())["dkd"] == 1


def test_ctkd_climbs_and_ever_more():
    z_s, z_t = logits()
    method = on_logits("ctkd", K).double()
    slopes = []
    for epoch in (1, 5, 10, 50):
        loss = value(method, z_s, z_t, TARGET, Progress(epoch=epoch, epochs=240))
        slopes.append(torch.autograd.grad(loss, method.theta)[0].item())
    theta = method.theta.detach().requires_grad_()
    temperature = 1 + 20 * theta.sigmoid()
    plain = reference_slope(z_s, z_t, temperature, theta)
    share = [0.5 * (1 - np.cos(np.pi * min(e / 10, 1))) for e in (1, 5, 10, 50)]
    assert slopes == pytest.approx([-k * plain for k in share], rel=1e-9)


def reference_slope(z_s, z_t, temperature, theta) -> float:
    p_t = (z_t / temperature).softmax(1)
    kl = (p_t * (p_t.log() - (z_s / temperature).log_softmax(1))).sum(1).mean() * temperature**2
    return torch.autograd.grad(kl, theta)[0].item()


# ------------------------------------------------------------------ saturated logits and half precision


def saturated(size: float, classes: int = K):
    """Student sure of the label, sure of another class, sure of nothing; the teacher likewise, in another order."""
    one = nn.functional.one_hot(TARGET, classes).float()
    other = one.roll(1, 1)
    z_s = torch.stack([(one, other, one * 0)[b % 3][b] for b in range(B)]) * size
    z_t = torch.stack([(other, one, one)[(b // 2) % 3][b] for b in range(B)]) * size
    return z_s.requires_grad_(), z_t


@pytest.mark.parametrize("stand", [False, True], ids=["", "stand"])
@pytest.mark.parametrize("size", [100.0, 10000.0])
@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_saturated_logits_are_finite(name, size, stand):
    z_s, z_t = saturated(size)
    loss = value(on_logits(name, K, logit_stand=stand, **({"views": 1} if name == "mlkd" else {})), z_s, z_t, TARGET)
    assert loss.isfinite() and torch.autograd.grad(loss, z_s)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dkd", "nkd", "mlkd"])
def test_half_precision_is_finite(name, dtype):
    """A step hands over float32; the formulas hold without it too."""
    z_s, z_t = (z.detach().to(dtype) for z in saturated(100.0))
    z_s.requires_grad_()
    loss = value(on_logits(name, K, **({"views": 1} if name == "mlkd" else {})), z_s, z_t, TARGET)
    assert loss.isfinite() and torch.autograd.grad(loss, z_s)[0].isfinite().all()


def test_a_constant_row_stays_finite_when_standardised():
    z = torch.zeros(2, K, requires_grad=True)
    out = standardised(z)
    assert out.eq(0).all() and torch.autograd.grad(out.sum(), z)[0].isfinite().all()


# ------------------------------------------------------------------ views, networks and settings


def test_mlkd_adds_a_strong_view_beside_the_weak_one():
    method = on_logits("mlkd", K)
    x = torch.rand(B, 3, 16, 16)
    batch = Batch({"image": x}, TARGET, torch.arange(B), crop=torch.zeros(B, dtype=torch.long))
    wide = method.prepare(batch)
    assert wide.views == 2 and wide.crop is None and wide.inputs["image"].shape == (2 * B, 3, 16, 16)
    assert torch.equal(wide.inputs["image"][::2], x)
    assert not torch.equal(wide.inputs["image"][1::2], x)
    state = torch.get_rng_state()
    again = method.prepare(batch)
    assert not torch.equal(again.inputs["image"], wide.inputs["image"])
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert on_logits("mlkd", K, views=1).prepare(batch) is batch
    with pytest.raises(UserError, match="the batch holds 2 per sample"):
        method.prepare(wide)


def test_labels_repeat_over_views():
    z_s, z_t = logits()
    for name in ("dkd", "nkd"):
        method = on_logits(name, K).double()
        twice = [z.repeat_interleave(2, 0) for z in (z_s, z_t)]
        both = method.terms({"logits": twice[0]}, {"logits": twice[1]}, batch_of(TARGET, views=2), LATE)[name]
        torch.testing.assert_close(both, value(method, z_s, z_t, TARGET))


BARE = ModelSpec("sensor_net", nn.Module, {}, (), "fc")


@pytest.mark.parametrize("name", ["cat_kd", "mgd", "ofa_kd", "srd", "vkd"])
def test_networks_without_features_are_refused(name):
    method = method_dict[name]
    with pytest.raises(UserError, match="sensor_net"):
        method.needs(method.Config(), BARE, spec("t", 3))


@pytest.mark.parametrize("name", ["cat_kd", "mgd", "srd", "vkd"])
def test_teachers_without_features_are_refused(name):
    method = method_dict[name]
    with pytest.raises(UserError, match="sensor_net"):
        method.needs(method.Config(), spec("s", 3), BARE)


def test_mlkd_refuses_to_augment_what_is_no_image():
    sensor = side("s", [], 4, K)
    sensor = dataclasses.replace(sensor, spec=dataclasses.replace(sensor.spec, input="sensor", input_shape=(6, 50)))
    with pytest.raises(UserError, match="reads 'sensor'; use --mlkd_views 1"):
        build("mlkd", sensor, side("t", [], 4, K))
    build("mlkd", sensor, side("t", [], 4, K), views=1)


def test_cat_kd_wants_a_classifier_it_can_apply_everywhere():
    teacher = side("teacher", [(5, 4, 4)], 5, K)
    with pytest.raises(UserError, match="student to its last map of 3 channels, but the classifier reads 9 values"):
        build("cat_kd", side("student", [(3, 4, 4)], 9, K), teacher)
    with pytest.raises(UserError, match="the classifier is not a linear layer"):
        build("cat_kd", side("student", [(3, 4, 4)], 3, K, nn.Sequential(nn.Linear(3, K))), teacher)
    with pytest.raises(UserError, match="--cat_kd_resolution 2 exceeds the last map of student, which is 1x1"):
        build("cat_kd", side("student", [(3, 1, 1)], 3, K), teacher)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dkd --dkd_T 0", "--dkd_T 0.0 must be above 0"),
        ("dkd --dkd_alpha -1", "--dkd_alpha -1.0 must be at least 0"),
        ("dkd --dkd_beta nan", "--dkd_beta nan must be at least 0"),
        ("dkd --dkd_warmup -1", "--dkd_warmup -1 must be at least 0"),
        ("dist --dist_tau 0", "--dist_tau 0.0 must be above 0"),
        ("dist --dist_beta -1", "--dist_beta -1.0 must be at least 0"),
        ("dist --dist_gamma inf", "--dist_gamma inf must be at least 0"),
        ("nkd --nkd_T -3", "--nkd_T -3.0 must be above 0"),
        ("nkd --nkd_gamma -1", "--nkd_gamma -1.0 must be at least 0"),
        ("wttm --wttm_gamma 2", "--wttm_gamma 2.0 must be above 0 and at most 1"),
        ("ctkd --ctkd_start 0", "--ctkd_start 0.0 must be above 0"),
        ("ctkd --ctkd_range 0", "--ctkd_range 0.0 must be above 0"),
        ("ctkd --ctkd_epochs 0", "--ctkd_epochs 0 must be at least 1"),
        ("cat_kd --cat_kd_resolution 0", "--cat_kd_resolution 0 must be at least 1"),
        ("mgd --mgd_mask 1", "--mgd_mask 1.0 must be at least 0 and at most 0.99"),
        ("srd --srd_exponent 0", "--srd_exponent 0.0 must be at least 1"),
        ("ofa_kd --ofa_kd_eps 0.5", "--ofa_kd_eps 0.5 must be at least 1"),
    ],
)
def test_settings_out_of_range_name_flag_value_and_range(command, message):
    with pytest.raises(UserError) as error:
        parse(["--distill", *command.split()], teacher=False)
    assert message in str(error.value)


def test_flags_reach_the_method():
    command = "--distill dkd --dkd_alpha 2 --dkd_beta 6 --dkd_T 3 --dkd_warmup 5 --logit_stand"
    settings = parse(command.split(), teacher=False)
    config = settings.config
    assert (config.tckd, config.nckd, config.temperature, config.warmup, config.logit_stand) == (2, 6, 3, 5, True)
    assert settings.off_default()["logit_stand"] is True
    assert "logit_stand" not in settings.without_effect


def test_logit_stand_of_a_combination_reaches_its_members():
    settings = parse(["--distill", "dkd+crd", "--logit_stand"], teacher=False)
    assert settings.config.logit_stand and all(c.logit_stand for _, c in settings.config.members)


def test_logit_stand_without_logits_is_said_to_have_no_effect():
    settings = parse(["--distill", "at", "-d", "0", "--logit_stand"], teacher=False)
    assert "compares no logits" in settings.without_effect["logit_stand"]
