"""Logit losses of 2022 to 2026: against published numbers, against their equations, and where logits saturate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.protocols import Batch, Context, Progress, UserError
from dataset.images.randaugment import cutout, rand_augment
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined
from distiller_zoo._math import entropy_weights, standardised
from distiller_zoo.base import Distiller
from distiller_zoo.pld import label_first
from distiller_zoo.skd import direction
from distiller_zoo.wkd_l import cka_distances, transport
from helper.options.parse import parse
from tests.distiller_zoo.test_losses import check
from tests.distiller_zoo.test_losses_new import saturated
from tests.distiller_zoo.test_reference_losses import TOLERANCE, B, K, arrays, features, maps, normal, prepared
from tests.golden.rule import fill_module, rand
from tests.helper.test_lanes import SHORT, assert_same_run, runs
from tests.support import reference_losses, reference_new
from tests.support import reference_recent as reference
from tests.support.method_context import batch_of, build, run, side, spec

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "newer_losses.json").read_text())
LABELS = torch.tensor(GOLDEN["labels"])
LATE = Progress(epoch=100, epochs=240)
TARGET = torch.arange(B) % K
# deit reads two heads of a network: test_losses_parts.py
EA_METHODS = [name for name in method_dict if method_dict[name].weighs_rows and name != "deit"]


def cases(name: str) -> list[dict]:
    return [c for c in GOLDEN["cases"] if c["name"] == name]


def by_variant(case: dict) -> str:
    return case.get("variant", "") + "-" + "-".join(f"{k}{v}" for k, v in case["hyper"].items())


def golden_inputs(case: dict) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Raw leaves (s... with gradient), what the method reads, and labels."""
    labels = torch.tensor(case["labels"]) if "labels" in case else LABELS
    leaves, ready = {}, {}
    for key, how in case["inputs"].items():
        x = rand(tuple(how["shape"]), how["seed"])
        leaves[key] = (x.relu() if how["relu"] else x).requires_grad_(key.startswith("s"))
        ready[key] = how.get("scale", 1.0) * leaves[key]
        if boost := how.get("boost"):
            added = torch.zeros_like(x)
            added[boost["rows"], labels[boost["rows"]]] = boost["add"]
            ready[key] = ready[key] + added
    return leaves, ready, labels


def on_logits(name: str, classes: int = 100, head: nn.Module | None = None, **options: object) -> Distiller:
    """A method that reads logits alone, with cross-entropy off unless asked for."""
    weights = {"cls": 0.0} if name == "kd" else {"cls": 0.0, "div": 0.0}
    return build(name, side("s", [], 4, classes), side("t", [], 4, classes, head), **{**weights, **options})


def value(method: Distiller, z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
    """Its only term."""
    terms, *_ = run(method, {"logits": z_s}, {"logits": z_t}, batch_of(target), LATE)
    (term,) = terms.values()
    return term


# ------------------------------------------------------------------ the published numbers

SETTINGS = {  # Config fields by the letters of the golden file
    "ttm": {"gamma": "gamma"},
    "pld": {"tau": "tau"},
    "luminet": {"alpha": "alpha", "T": "temperature"},
    "rld": {
        "alpha": "confidence",
        "beta": "correlation",
        "T": "temperature",
        "alpha_T": "alpha_T",
        "logit_stand": "logit_stand",
    },
    "ldrld": {"d": "top", "T": "temperature", "alpha": "local", "beta": "rest", "averaged": "as_published"},
}


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c) for n in SETTINGS for c in cases(n)],
    ids=lambda x: x if isinstance(x, str) else by_variant(x),
)
def test_golden(name, case):
    leaves, x, labels = golden_inputs(case)
    method = on_logits(name, **{SETTINGS[name][k]: v for k, v in case["hyper"].items()})
    check(case, value(method, x["s"], x["t"], labels), leaves)


@pytest.mark.parametrize("case", cases("wkd_l"), ids=by_variant)
def test_golden_wkd_l(case, tmp_path):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    head, cost = nn.Linear(128, 100), "classifier"
    if hyper["cost"] == "cka":
        cost = str(tmp_path / "features.pt")
        torch.save(x["class_features"], cost)
    else:
        fill_module(head, prefix="fc.")
    method = on_logits("wkd_l", head=head, beta=hyper["gamma"], temperature=hyper["T"], kappa=hyper["kappa"], cost=cost)
    parts = case["parts"]
    assert method.cost.norm().item() == pytest.approx(parts["cost_l2"], rel=1e-5)
    first = parts["cost_first_row"]
    assert method.cost[0, : len(first)].tolist() == pytest.approx(first, rel=1e-4, abs=1e-6)
    terms, *_ = run(method, {"logits": x["s"]}, {"logits": x["t"]}, batch_of(labels), LATE)
    weights = method.weights(LATE)
    check(case, sum(weights[k] * v for k, v in terms.items()), leaves)


@pytest.mark.parametrize("case", cases("sdd"), ids=by_variant)
def test_golden_sdd(case):
    leaves, x, labels = golden_inputs(case)
    hyper = dict(case["hyper"])
    masked = hyper.pop("masked", True)
    names = {"T": "temperature", "alpha": "tckd", "beta": "nckd"}
    options = {names.get(k, k): tuple(v) if k == "scales" else v for k, v in hyper.items()}
    sides = []
    for key, name in (("s", "student"), ("t", "teacher")):
        channels, *size = x[key].shape[1:]
        head = fill_module(nn.Linear(channels, 100), prefix=f"{name}.fc.")
        sides.append(side(name, [(channels, *size)], channels, 100, head))
    method = build("sdd", *sides, cls=0.0, div=0.0, as_published=not masked, **options)
    s, t = ({"logits": torch.zeros(8, 100), "stage1": x[k]} for k in ("s", "t"))
    terms, s, t = run(method, s, t, batch_of(labels), LATE)
    right = t["sdd.logits"].argmax(2) == labels[:, None]
    if parts := case.get("parts"):
        assert right[:, 0].int().tolist() == parts["global_right"]
        assert (right != right[:, :1]).sum().item() == parts["regions_weighted_2"]
    check(case, terms["sdd"], leaves)


def test_golden_skd():
    (case,) = cases("skd_direction")
    leaves, x, labels = golden_inputs(case)
    check(case, direction(x["s"], x["t"], case["hyper"]["ridge"]).mean(), leaves, rtol=1e-5)
    (case,) = cases("skd")
    leaves, x, labels = golden_inputs(case)
    method = on_logits("skd", cls=case["hyper"]["ce"], beta=case["hyper"]["kd"])
    terms, *_ = run(method, {"logits": x["s"]}, {"logits": x["t"]}, batch_of(labels), LATE)
    weights = method.weights(LATE)
    check(case, weights["cls"] * terms["cls"] + weights["skd"] * terms["skd"], leaves)


@pytest.mark.parametrize("case", cases("crld"), ids=by_variant)
def test_golden_crld(case):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    method = on_logits(
        "crld",
        cls=hyper["ce"],
        within=hyper["wv"],
        across=hyper["cv"],
        weak_threshold=hyper["tau_w"],
        strong_threshold=hyper["tau_s"],
        temperature=hyper["T"],
    )
    z_s, z_t = (torch.stack([x[f"{k}_w"], x[f"{k}_s"]], 1).flatten(0, 1) for k in "st")
    terms, *_ = run(method, {"logits": z_s}, {"logits": z_t}, batch_of(labels, views=2), LATE)
    assert terms["crld"].item() == pytest.approx(case["parts"]["kd"], rel=1e-5)
    weights = method.weights(LATE)
    check(case, sum(weights[k] * v for k, v in terms.items()), leaves)


@pytest.mark.parametrize("case", cases("ea_kd") + cases("ea_dkd"), ids=lambda c: c["name"] + by_variant(c))
def test_golden_ea(case, monkeypatch):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    if (bound := hyper["H_ub"]) not in (100, math.log(100)):  # log 1000, whatever the number of classes
        monkeypatch.setattr("distiller_zoo.base.entropy_weights", lambda s, t, T, _: entropy_weights(s, t, T, bound))
    flags = {"ea_weight": True, "ea_T": hyper["t"], "ea_as_published": bound == 100}
    flags["logit_stand"] = hyper.get("logit_stand", False)
    if case["name"] == "ea_kd":
        method = on_logits("kd", kd_T=hyper["T"], **flags)
    else:
        settings = {"tckd": hyper["alpha"], "nckd": hyper["beta"], "temperature": hyper["T"]}
        method = on_logits("dkd", **settings, **flags)
    if "parts" in case:
        weights = method.row_weights(x["s"], x["t"])
        assert weights.tolist() == pytest.approx(case["parts"]["weights"], rel=1e-4) and not weights.requires_grad
    check(case, value(method, x["s"], x["t"], labels), leaves)


@pytest.mark.parametrize("case", cases("normkd") + cases("normkd_dkd"), ids=lambda c: c["name"] + by_variant(c))
def test_golden_norm_kd(case):
    leaves, x, labels = golden_inputs(case)
    hyper = case["hyper"]
    if case["name"] == "normkd":
        method = on_logits("kd", kd_T=hyper["n"], norm_kd=True)
    else:
        settings = {"tckd": hyper["alpha"], "nckd": hyper["beta"], "temperature": hyper["n"]}
        method = on_logits("dkd", **settings, norm_kd=True)
    check(case, value(method, x["s"], x["t"], labels), leaves)


@pytest.mark.parametrize("case", cases("hard_kd"))
def test_golden_hard_kd(case):
    leaves, x, labels = golden_inputs(case)
    check(case, value(on_logits("kd", hard=True), x["s"], x["t"], labels), leaves)


# ------------------------------------------------------------------ the equations


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    return 3 * normal(B, K, seed=seed), 3 * normal(B, K, seed=seed + 1)


EQUATIONS = {
    "hard": ("kd", {"hard": True}, lambda s, t, y: reference.hard_kd(s, t)),
    "ttm": ("ttm", {"gamma": 0.3}, lambda s, t, y: reference.ttm(s, t, 0.3)),
    "pld": ("pld", {"tau": 2.0}, lambda s, t, y: reference.pld(s, t, y, 2.0)),
    "luminet": ("luminet", {"alpha": 3.0, "temperature": 2.0}, lambda s, t, y: reference.luminet(s, t, 3.0, 2.0)),
    "rld": (
        "rld",
        {"confidence": 0.7, "correlation": 3.0, "alpha_T": 2.0, "temperature": 3.0},
        lambda s, t, y: reference.rld(s, t, y, (0.7, 3.0), (2.0, 3.0)),
    ),
    "ldrld": (
        "ldrld",
        {"top": 4, "temperature": 3.0, "local": 2.0, "rest": 0.5},
        lambda s, t, y: reference.ldrld(s, t, 4, 3.0, (2.0, 0.5), False),
    ),
    "ldrld-published": (
        "ldrld",
        {"top": 2, "temperature": 3.0, "local": 2.0, "rest": 0.5, "as_published": True},
        lambda s, t, y: reference.ldrld(s, t, 2, 3.0, (2.0, 0.5), True),
    ),
    "skd": (
        "skd",
        {"kl": 0.7, "direction": 40.0, "ridge": 0.2, "temperature": 2.0},
        lambda s, t, y: 0.7 * reference.kd(s, t, 2.0) + 40 * reference.skd_direction(s, t, 0.2),
    ),
    "dkd": (
        "dkd",
        {"tckd": 0.7, "nckd": 5.0, "temperature": 3.0},
        lambda s, t, y: reference.dkd(s, t, y, 0.7, 5.0, 3.0),
    ),
    "nkd": ("nkd", {"gamma": 1.5, "temperature": 2.0}, lambda s, t, y: reference.nkd(s, t, y, 1.5, 2.0)),
}


@pytest.mark.parametrize("stand", [False, True], ids=["", "stand"])
@pytest.mark.parametrize("case", EQUATIONS)
def test_equation(case, stand):
    name, options, expected = EQUATIONS[case]
    z_s, z_t = logits()
    method = on_logits(name, K, logit_stand=stand, **options).double()
    scale = reference_new.z_score if stand else (lambda z: z)
    wanted = expected(scale(z_s.numpy()), scale(z_t.numpy()), TARGET.numpy()).mean()
    assert value(method, z_s, z_t, TARGET).item() == pytest.approx(wanted, **tolerance(name))


def tolerance(name: str) -> dict[str, float]:
    return {"rel": 1e-7} if name == "ldrld" else TOLERANCE  # its weights of pairs are a float32 buffer


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("case", ["hard", "ttm", "pld", "luminet", "rld", "ldrld", "dkd", "nkd"])
def test_equation_weighted_by_entropies(case, published):
    name, options, expected = EQUATIONS[case]
    z_s, z_t = logits()
    flags = {"ea_weight": True, "ea_T": 2.0, "ea_as_published": published}
    rows = expected(z_s.numpy(), z_t.numpy(), TARGET.numpy())
    weights = reference.ea_weights(z_s.numpy(), z_t.numpy(), 2.0, K if published else math.log(K))
    got = value(on_logits(name, K, **options, **flags).double(), z_s, z_t, TARGET)
    assert got.item() == pytest.approx((rows * weights).mean(), **tolerance(name))


@pytest.mark.parametrize("n", [1.0, 2.0])
def test_norm_kd(n):
    z_s, z_t = logits()
    got = value(on_logits("kd", K, kd_T=n, norm_kd=True).double(), z_s, z_t, TARGET)
    assert got.item() == pytest.approx(reference.normkd(z_s.numpy(), z_t.numpy(), n).mean(), rel=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["classifier", "features", "distances"])
def test_wkd_l(kind, kappa, tmp_path):
    z_s, z_t = logits()
    head, features = nn.Linear(6, K).double(), normal(K, 5, 3)
    distances = reference.cka_distances(features.numpy())
    np.testing.assert_allclose(cka_distances(features).numpy(), distances, rtol=1e-9, atol=1e-9)
    cost = "classifier" if kind == "classifier" else str(tmp_path / "costs.pt")
    if kind == "classifier":
        distances = reference.cosine_distances(arrays(head)["weight"])
    else:
        torch.save(features if kind == "features" else torch.from_numpy(distances), cost)
    method = on_logits("wkd_l", K, head=head, cost=cost, temperature=3.0, kappa=kappa).double()
    wanted = 1 - np.exp(-kappa * distances) if kappa else distances
    np.testing.assert_allclose(method.cost.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    terms, *_ = run(method, {"logits": z_s}, {"logits": z_t}, batch_of(TARGET), LATE)
    z = z_s.numpy(), z_t.numpy(), TARGET.numpy()
    moved = reference.transport(*z, method.cost.numpy(), 3.0).mean()
    assert terms["wkd_l"].item() == pytest.approx(moved, **TOLERANCE)
    assert terms["wkd_l_target"].item() == pytest.approx(reference.nkd(*z, 0.0, 1.0).mean(), **TOLERANCE)


def test_wkd_l_ends_with_the_last_epoch():
    method = on_logits("wkd_l", beta=600.0, constant=150)
    weights = [method.weights(Progress(epoch, 240)) for epoch in (1, 150, 195, 240)]
    assert [w["wkd_l"] for w in weights] == pytest.approx([600, 600, 300, 0], abs=1e-9)
    assert all(w["wkd_l_target"] == 1 for w in weights)


def test_transport_of_equal_distributions_costs_nothing():
    z = normal(B, K).requires_grad_()
    cost = 1 - torch.eye(K).double()
    moved = transport(z, z.detach(), cost, TARGET, 2.0)
    assert moved.max() < 1e-4 and torch.autograd.grad(moved.sum(), z)[0].isfinite().all()


BASES = {
    "kd": lambda s, t, y: reference.kd(s, t, 3.0),
    "dkd": lambda s, t, y: reference.dkd(s, t, y, 0.7, 5.0, 3.0),
    "nkd": lambda s, t, y: reference.nkd(s, t, y, 2.0, 3.0),
    "nkd-published": lambda s, t, y: reference.nkd(s, t, y, 2.0, 3.0, masked=False),
}


@pytest.mark.parametrize("scales", [(1,), (1, 2), (4, 1), (1, 2, 4)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("size_s", "size_t"), [((8, 8), (4, 4)), ((2, 2), (7, 5))])
def test_sdd(base, scales, size_s, size_t):
    name, _, published = base.partition("-")
    options = {"temperature": 3.0, "tckd": 0.7, "nckd": 5.0, "gamma": 2.0}
    method, s, t, head = prepared(
        "sdd",
        [(3, *size_s)],
        [(5, *size_t)],
        pooled_s=3,
        base=name,
        scales=scales,
        as_published=bool(published),
        **options,
    )
    terms, *_ = run(method, s, t, batch_of(TARGET))
    w_s, w_t = arrays(method.student_head), arrays(head)
    z_s = reference.region_logits(maps(s)[0], w_s["weight"], w_s["bias"], scales)
    z_t = reference.region_logits(maps(t)[0], w_t["weight"], w_t["bias"], scales)
    wanted = reference.sdd(z_s, z_t, TARGET.numpy(), BASES[base])
    assert terms["sdd"].item() == pytest.approx(wanted, **TOLERANCE)


def test_sdd_trains_the_students_classifier_and_not_the_teachers():
    method, s, t, _ = prepared("sdd", [(3, 4, 4)], [(5, 4, 4)], pooled_s=3)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    terms["sdd"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.student_head.parameters())
    assert all(p.grad is None for p in method.teacher_head.parameters())


def test_crld():
    """Rows of a sample lie side by side: even rows are the weak view, odd rows the strong one."""
    options = {"within": 1.5, "across": 0.7, "weak_threshold": 0.6, "strong_threshold": 0.5, "temperature": 3.0}
    z_s, z_t = (torch.stack(pair, 1).flatten(0, 1) for pair in zip(logits(), logits(5), strict=True))
    method = on_logits("crld", K, cls=0.5, **options).double()
    terms = method.terms({"logits": z_s}, {"logits": z_t}, batch_of(TARGET, views=2), LATE)
    views = [(z[::2].numpy(), z[1::2].numpy()) for z in (z_s, z_t)]
    rows = reference.crld(*views, (1.5, 0.7), (0.6, 0.5), 3.0)
    assert 0 < (rows == 0).sum() < B
    assert terms["crld"].item() == pytest.approx(rows.mean(), **TOLERANCE)
    strong = reference_losses.cross_entropy(views[0][1], TARGET.numpy())
    assert terms["crld_cls"].item() == pytest.approx(strong, **TOLERANCE)
    assert method.weights(LATE)["crld_cls"] == 0.5


# ------------------------------------------------------------------ weights of rows, a seam


def test_rows_count_alike_by_default():
    z_s, z_t = logits()
    assert on_logits("kd", K).row_weights(z_s, z_t) is None


@pytest.mark.parametrize("name", EA_METHODS)
def test_every_logit_loss_weighs_its_rows(name):
    """Rows of weight 2 double a loss that is a mean of rows; relational parts stay."""
    options = {"mlkd": {"views": 1}, "skd": {"direction": 0.0}, "crld": {"strong_threshold": 0.0}}.get(name, {})
    stages = [(3, 8, 8), (4, 4, 4)]
    method = build(name, side("s", stages, 4, K), side("t", stages, 4, K), **options).double()
    s, t = (features(stages, 4, seed) for seed in (1, 2))
    views = 2 if name == "crld" else 1
    batch = batch_of(TARGET[: B // views], views=views)
    own = method.terms(*method.connect(s, t), batch, LATE)
    method.row_weights = lambda z_s, z_t: torch.full((len(z_s),), 2.0).to(z_s)
    weighted = method.terms(*method.connect(s, t), batch, LATE)
    for term in own.keys() - {"crld_cls"}:
        if name == "mlkd":  # with correlations
            assert own[term] < weighted[term] < 2 * own[term]
        else:
            torch.testing.assert_close(weighted[term], 2 * own[term])


@pytest.mark.parametrize("name", ["at", "kd+at"])
def test_weights_of_rows_reach_the_common_term(name):
    settings = parse(["--distill", name, "--ea_weight", "--ea_T", "2"], teacher=False)
    assert settings.config.ea_weight and settings.config.ea_T == 2
    z_s, z_t = (z.float() for z in logits())
    method, *_ = prepared("at", [(3, 4, 4)], [(5, 4, 4)], div=1.0, kd_T=2.0, ea_weight=True)
    terms = method.common_terms({"logits": z_s}, {"logits": z_t}, batch_of(TARGET), {"div": 1.0})
    weights = reference.ea_weights(z_s.numpy(), z_t.numpy(), 3.0, math.log(K))
    wanted = (weights * reference.kd(z_s.double().numpy(), z_t.double().numpy(), 2.0)).mean()
    assert terms["div"].item() == pytest.approx(wanted, rel=1e-4)


def test_flags_of_logit_losses():
    settings = parse(["--distill", "dist", "--ea_weight", "--protocol", "authors"], teacher=False)
    assert settings.without_effect["ea_weight"] == "dist has no logit loss per sample with -d 0"
    assert parse(["--distill", "kd", "--ea_T", "2"], teacher=False).without_effect["ea_T"] == "--ea_weight is off"
    assert "ea_weight" not in parse(["--distill", "ttm", "--ea_weight"], teacher=False).without_effect
    assert parse(["--distill", "kd", "--norm_kd", "--hard"], teacher=False).config.hard
    with pytest.raises(UserError, match="--logit_stand and --norm_kd both set the scale"):
        parse(["--distill", "kd", "--norm_kd", "--logit_stand"], teacher=False)
    with pytest.raises(UserError, match="--ea_T 0.0 must be above 0"):
        parse(["--distill", "kd", "--ea_weight", "--ea_T", "0"], teacher=False)


def test_hard_labels_reach_a_combination():
    z_s, z_t = logits()
    config = parse(["--distill", "kd+ttm", "--hard"], teacher=False).config
    members = dict(config.members)
    assert members[method_dict["kd"]].hard
    ctx = Context(K, torch.arange(50) % K, B, side("s", [], 4, K), side("t", [], 4, K))
    rows = Combined(config, ctx).div_rows(z_s, z_t)
    np.testing.assert_allclose(rows.numpy(), reference.hard_kd(z_s.numpy(), z_t.numpy()), rtol=1e-9)


# ------------------------------------------------------------------ published settings and schedules

PUBLISHED = {  # for CIFAR-100, resnet32x4 -> resnet8x4 where there are any; ttm for vgg13 -> vgg8
    "kd": {"hard": False, "norm_kd": False, "ea_weight": False, "ea_T": 3, "ea_as_published": False},
    "ttm": {"cls": 1, "div": 0, "beta": 45, "gamma": 0.1},
    "pld": {"cls": 0, "div": 0, "beta": 1, "tau": 4},
    "luminet": {"cls": 2, "div": 0, "beta": 1, "alpha": 33, "temperature": 4, "warmup": 20},
    "wkd_l": {"cls": 1, "div": 0, "beta": 600, "target": 1, "temperature": 8, "kappa": 1, "constant": 150},
    "rld": {"cls": 1, "div": 0, "beta": 1, "confidence": 1, "correlation": 8, "temperature": 4, "alpha_T": 1},
    "sdd": {"cls": 0.1, "div": 0, "beta": 0.9, "base": "kd", "scales": (1, 2), "temperature": 4, "warmup": 0},
    "ldrld": {"cls": 1, "div": 0, "beta": 1, "top": 7, "temperature": 4, "local": 10.5, "rest": 7},
    "skd": {"cls": 0.5, "div": 0, "beta": 0.5, "kl": 0.5, "direction": 0.5, "ridge": 0.1, "temperature": 4},
    "crld": {
        "cls": 1,
        "div": 0,
        "beta": 1,
        "within": 2,
        "across": 0.5,
        "weak_threshold": 0.9,
        "strong_threshold": 0.2,
        "temperature": 4,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_settings(name):
    cfg = method_dict[name].Config()
    assert {k: getattr(cfg, k) for k in PUBLISHED[name]} == PUBLISHED[name]
    assert not getattr(cfg, "as_published", False)


@pytest.mark.parametrize("name", ["luminet", "rld", "sdd"])
def test_the_weight_rises_over_the_first_epochs(name):
    stages = [(4, 4, 4)]
    ends = [side(n, stages, 4, K) for n in ("s", "t")]
    method = build(name, *ends, warmup=20, beta=2.0)
    assert [method.weights(Progress(epoch=e))[name] for e in (1, 10, 20, 21, 240)] == [0.1, 1, 2, 2, 2]
    assert build(name, *ends, warmup=0, beta=2.0).weights(Progress())[name] == 2


# ------------------------------------------------------------------ saturated logits, ties and corners


@pytest.mark.parametrize("flag", ["", "logit_stand", "norm_kd", "ea_weight"])
@pytest.mark.parametrize("size", [100.0, 10000.0])
@pytest.mark.parametrize("case", [*EQUATIONS, "wkd_l"])
def test_saturated_logits_are_finite(case, size, flag):
    name, options, _ = EQUATIONS.get(case, (case, {}, None))
    z_s, z_t = saturated(size)
    method = on_logits(name, K, **options, **({flag: True} if flag else {}))
    terms, *_ = run(method, {"logits": z_s}, {"logits": z_t}, batch_of(TARGET), LATE)
    loss = torch.stack(list(terms.values())).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, z_s)[0].isfinite().all()


@pytest.mark.parametrize("case", EQUATIONS)
def test_equal_logits_and_a_batch_of_one_are_finite(case):
    name, options, _ = EQUATIONS[case]
    for rows in (1, B):
        z = logits()[0].float()[:rows].requires_grad_()
        loss = value(on_logits(name, K, **options), z, z.detach(), TARGET[:rows])
        assert loss.isfinite() and torch.autograd.grad(loss, z)[0].isfinite().all()


def test_pld_puts_the_label_before_the_teachers_order():
    z_t = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    assert label_first(z_t, torch.tensor([1])).tolist() == [[1, 0, 2, 3]]


def test_rld_equals_dkd_where_the_teacher_is_right():
    z_s, z_t = logits()
    right = z_t.argmax(1)
    settings = {"confidence": 1.0, "correlation": 8.0, "alpha_T": 4.0, "temperature": 4.0}
    torch.testing.assert_close(
        value(on_logits("rld", K, **settings).double(), z_s, z_t, right),
        value(on_logits("dkd", K).double(), z_s, z_t, right),
    )


# ------------------------------------------------------------------ views, networks and messages


def test_crld_adds_a_strong_view_beside_the_weak_one():
    method = on_logits("crld", K)
    x = torch.rand(B, 3, 16, 16)
    wide = method.prepare(Batch({"image": x}, TARGET, torch.arange(B), crop=torch.zeros(B, dtype=torch.long)))
    assert wide.views == 2 and wide.crop is None and torch.equal(wide.inputs["image"][::2], x)
    strong = wide.inputs["image"][1::2]
    assert not torch.equal(strong, x) and strong.min() >= 0 and strong.max() <= 1
    with pytest.raises(UserError, match="crld adds a strong view to single views"):
        method.prepare(wide)


def test_random_magnitudes_differ_by_image():
    x = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    out = rand_augment(x, torch.Generator().manual_seed(0), magnitude=None)
    assert out.min() >= 0 and out.max() <= 1
    assert len({tuple(v.flatten()[:40].tolist()) for v in out}) > 40  # of 14 x 14 pairs of operations


def test_cutout_hides_one_grey_rectangle():
    x = torch.ones(200, 3, 20, 20)
    out = cutout(x, torch.Generator().manual_seed(0))
    hidden = (out != 1).any(1)  # [B, H, W]
    share = hidden.float().mean((1, 2))
    assert share.max() <= 0.31 and 0.04 < share.mean() < 0.12  # side U(0, half): a twelfth, less what sticks out
    for mask in hidden:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
    grey = out.permute(0, 2, 3, 1)[hidden]
    torch.testing.assert_close(grey, torch.tensor([125.0, 123, 114]).div(255).expand_as(grey))


MISTAKES = [
    ("ttm", {"gamma": 1.5}, "--ttm_gamma 1.5 must be above 0 and at most 1"),
    ("pld", {"tau": 0.0}, "--pld_tau 0.0 must be above 0"),
    ("luminet", {"temperature": -1.0}, "--luminet_T -1.0 must be above 0"),
    ("wkd_l", {"kappa": -1.0}, "--wkd_l_kappa -1.0 must be at least 0"),
    ("wkd_l", {"cost": "nowhere.pt"}, "--wkd_l_cost nowhere.pt is neither 'classifier' nor a file"),
    ("rld", {"alpha_T": 0.0}, "--rld_alpha_T 0.0 must be above 0"),
    ("ldrld", {"top": 1}, "--ldrld_d 1 must be at least 2"),
    ("ldrld", {"top": K}, f"--ldrld_d {K} must be below the number of classes, {K}"),
    ("skd", {"ridge": 0.0}, "--skd_ridge 0.0 must be above 0"),
    ("crld", {"weak_threshold": 1.5}, "--crld_tau_w 1.5 must be at least 0 and at most 1"),
    ("sdd", {"scales": (2, 4)}, "--sdd_scales 2 4 must be distinct numbers from 1, 2 and 4, including 1"),
]


@pytest.mark.parametrize(("name", "options", "message"), MISTAKES, ids=lambda x: x if isinstance(x, str) else "")
def test_mistakes_are_answered_in_one_sentence(name, options, message):
    with pytest.raises(UserError) as caught:
        on_logits(name, K, **options)
    assert str(caught.value) == message


def test_wkd_l_needs_a_linear_classifier_or_a_file(tmp_path):
    with pytest.raises(UserError, match="compares the rows of a linear classifier"):
        on_logits("wkd_l", K, head=nn.Sequential(nn.Linear(4, K)))
    (tmp_path / "notes.txt").write_text("distances")
    with pytest.raises(UserError, match="notes.txt is truncated or not a file that torch.save wrote"):
        on_logits("wkd_l", K, cost=str(tmp_path / "notes.txt"))
    torch.save(torch.zeros(K, K + 1), tmp_path / "costs.pt")
    with pytest.raises(UserError, match=rf"must hold a tensor \[{K}, {K}\]"):
        on_logits("wkd_l", K, cost=str(tmp_path / "costs.pt"))


@pytest.mark.parametrize("name", ["sdd", "crld"])
def test_frames_are_refused(name):
    method = method_dict[name]
    with pytest.raises(UserError, match="leave --frame_logits out"):
        method.needs(method.Config(frame_logits=True), spec("s", 1), spec("t", 1))


def test_standardised_logits_are_those_of_norm_kd_but_for_the_mean():
    z = logits()[0]
    scaled = on_logits("kd", K, norm_kd=True).comparable(z)
    torch.testing.assert_close(scaled - scaled.mean(1, keepdim=True), standardised(z))


# ------------------------------------------------------------------ runs


CACHED = "ttm,pld,luminet,wkd_l,rld,ldrld,skd"  # they read logits alone


def test_cached_lanes_equal_a_run_alone(commands, teacher, tmp_path):
    cache = ("--teacher_cache", tmp_path / "cache", "--save_root", tmp_path / "lanes")
    done = commands.student("--path_t", teacher, "--distill", CACHED, *SHORT, *cache).finished()
    assert done.out.count("teacher accuracy") == 1
    for name in ("luminet", "wkd_l"):
        commands.student("--path_t", teacher, "--distill", name, *SHORT, "--save_root", tmp_path / name).finished()
        ((folder, alone),) = runs(tmp_path / name).items()
        assert_same_run(runs(tmp_path / "lanes")[folder], alone)


def test_lanes_of_methods_that_see_other_pixels_or_maps(commands, teacher, tmp_path):
    together = ("--distill", "kd,crld,sdd", "--ea_weight", "--save_root", tmp_path / "lanes")
    commands.student("--path_t", teacher, *together, *SHORT).finished()
    alone = ("--distill", "crld", "--ea_weight", "--save_root", tmp_path / "alone")
    commands.student("--path_t", teacher, *alone, *SHORT).finished()
    ((folder, run),) = runs(tmp_path / "alone").items()
    assert_same_run(runs(tmp_path / "lanes")[folder], run)


def test_a_run_with_flags_of_logit_losses(commands, teacher, tmp_path):
    flags = ("--hard", "--norm_kd", "--ea_weight", "--ea_T", 2, "--ea_as_published", "--save_root", tmp_path)
    commands.student("--path_t", teacher, "--distill", "kd", *flags, *SHORT).finished()
    (run,) = runs(tmp_path).values()
    parameters = json.loads((run / "parameters.json").read_text())
    assert parameters["hard"] and parameters["norm_kd"] and parameters["ea_T"] == 2


def test_class_distances_of_a_teacher(commands, teacher, tmp_path):
    """The paper's costs, which need the training images, come from a script."""
    out = tmp_path / "new" / "distances.pt"
    data = ("--path_t", teacher, "--dataset", "digits")
    done = commands("scripts/class_distances.py", "--path_t", teacher.parent, *data[2:], "--out", out).finished()
    assert "10 classes" in done.out
    distances = torch.load(out, weights_only=True)
    assert distances.shape == (10, 10) and distances.diagonal().abs().max() < 1e-4
    torch.testing.assert_close(distances, distances.T, rtol=1e-4, atol=1e-5)
    assert distances[0, 1:].min() > 0 and distances.max() <= 1
    flags = ("--distill", "wkd_l", "--wkd_l_cost", out, "--save_root", tmp_path)
    commands.student("--path_t", teacher, *flags, *SHORT).finished()
    wrong = ("--dataset", "imagenet", "--data_folder", tmp_path, "--out", out)
    commands("scripts/class_distances.py", "--path_t", teacher, *wrong).refused("no ImageNet in")


def test_ldrld_says_for_which_sum_its_weights_were_published():
    cls = method_dict["ldrld"]
    (note,) = cls.notes(cls.Config(), None, None)
    assert "the mean, 22 times less" in note and "--ldrld_as_published" in note
    assert cls.notes(cls.Config(as_published=True), None, None) == ()
