"""DASK against its equations, the published numbers and what the published code got wrong."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.protocols import Progress, UserError
from distiller_zoo import method_dict
from distiller_zoo._math import angles, distances
from helper.options.parse import parse
from tests.golden.rule import rand
from tests.support.method_context import batch_of, build, run, side

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vskd.json").read_text())
B, K, D = 8, 5, 6
OFF = {"distance": 0.0, "angle": 0.0, "semantic": 0.0}


def features(seed, width=D):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, width, generator=g, dtype=torch.float64).relu().requires_grad_()


def method(d_s=D, d_t=D, **options):
    return build("dask", side("s", [], d_s, K), side("t", [], d_t, K), **options)


def terms(dask, e_s, e_t, z_s=None, z_t=None):
    logits = [torch.zeros(B, K, dtype=torch.float64) if z is None else z for z in (z_s, z_t)]
    target = torch.arange(B) % K
    out, *_ = run(dask, {"pooled": e_s, "logits": logits[0]}, {"pooled": e_t, "logits": logits[1]}, batch_of(target))
    return out


def huber(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, 0.5 * d**2, d - 0.5).mean()


def slow(e):
    """Distances over their mean, and cosines at every corner, pair by pair in numpy float64."""
    n = len(e)
    d = np.array(
        [[np.sqrt(max(((e[i] - e[j]) ** 2).sum(), 1e-12)) if i != j else 0 for j in range(n)] for i in range(n)]
    )
    a = np.zeros((n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                u, v = e[j] - e[i], e[k] - e[i]
                a[i, j, k] = u @ v / max(np.linalg.norm(u), 1e-12) / max(np.linalg.norm(v), 1e-12)
    return d / d[d > 0].mean(), a


@pytest.mark.parametrize(("kind", "relation"), [("rkd_distance", distances), ("rkd_angle", angles)])
def test_golden_relations(kind, relation):
    case = GOLDEN[kind]
    s, t = (rand(tuple(case[k]["shape"]), case[k]["seed"]).requires_grad_(k == "s") for k in "st")
    loss = F.smooth_l1_loss(relation(s), relation(t))
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    assert torch.autograd.grad(loss, s)[0].norm().item() == pytest.approx(case["grad_l2"], rel=1e-4)


@pytest.mark.parametrize("part", ["distance", "angle", "semantic"])
def test_each_term_as_its_equation_says_and_with_a_gradient(part):
    e_s, e_t = features(1), features(2)
    loss = terms(method(**{**OFF, part: 3.0}), e_s, e_t.detach())["dask"]
    (d_s, a_s), (d_t, a_t) = slow(e_s.detach().numpy()), slow(e_t.detach().numpy())
    want = {
        "distance": huber(d_s, d_t),
        "angle": huber(a_s, a_t),
        "semantic": ((e_s - e_t) ** 2).mean().item(),
    }[part]
    assert loss.item() == pytest.approx(3 * want, rel=1e-10)
    gradient = torch.autograd.grad(loss, e_s)[0]
    assert gradient.isfinite().all() and (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("part", ["distance", "angle", "semantic"])
def test_equal_features_leave_no_loss_and_no_gradient(part):
    e = features(1)
    loss = terms(method(**{**OFF, part: 1.0}), e, e.detach().clone())["dask"]
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, e)[0].abs().max() < 1e-10


def test_whole_loss():
    """CE + 0.01 L_ST + L_D + L_A + L_S, soft targets at temperature 4."""
    z_s, z_t = (torch.randn(B, K, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (3, 4))
    e_s, e_t = features(1), features(2).detach()
    dask = method()
    out, weights = terms(dask, e_s, e_t, z_s, z_t), dask.weights(None)
    assert weights == {"cls": 1.0, "div": 0.01, "dask": 1.0}
    p, q = (z_t / 4).softmax(1), (z_s / 4).softmax(1)
    assert out["div"].item() == pytest.approx((p * (p / q).log()).sum().item() / B * 16, rel=1e-10)
    parts = sum(terms(method(**{**OFF, k: 1.0}), e_s, e_t)["dask"].item() for k in OFF)
    assert out["dask"].item() == pytest.approx(parts, rel=1e-12)


def test_committed_variant_is_cross_entropy_and_soft_targets():
    dask = method(variant="committed")
    out = terms(dask, features(1), features(2).detach())
    assert out.keys() == {"cls", "div"} and dask.weights(None) == {"cls": 1.0, "div": 0.01, "dask": 0.0}
    cfg = method_dict["dask"].Config(variant="committed")
    assert method_dict["dask"].needs(cfg, side("s", [], D, K).spec, side("t", [], D, K).spec).student == ()


@pytest.mark.parametrize("glove", [False, True])
def test_widths_that_differ_meet_in_a_shared_space(glove, tmp_path):
    path = tmp_path / "classes.npy"
    np.save(path, np.random.default_rng(0).normal(size=(K, 12)))
    settings = {**OFF, "semantic": 1.0} | ({"glove": str(path)} if glove else {})
    dask = method(D, D if glove else 9, **settings).double()
    e_s, e_t = features(1), features(2, D if glove else 9).detach()
    loss = terms(dask, e_s, e_t)["dask"]
    names = {n for n, _ in dask.named_parameters()}
    assert ("shared.vectors" in names) != glove and dask.shared.vectors.requires_grad != glove
    in_space, target, vectors = dask.shared(e_s, e_t)
    assert vectors.shape == (K, 12 if glove else 300)
    label = torch.arange(B) % K
    want = (in_space - target).pow(2).sum(1).mean()
    want = want + sum(-(e @ vectors.T / 0.1).log_softmax(1)[torch.arange(B), label].mean() for e in (in_space, target))
    assert loss.item() == pytest.approx(want.item(), rel=1e-10)
    grads = torch.autograd.grad(loss, [e_s, *dask.parameters()])
    assert all(g.abs().sum() > 0 for g in grads)


def test_the_anchor_reads_one_label_per_row_and_that_of_the_larger_share():
    dask = method(d_t=D + 2, distance=0.0, angle=0.0).double()
    e_s, e_t = features(1), features(2, D + 2)
    target, views = torch.arange(B) % K, batch_of(torch.arange(B // 2) % K, views=2)
    mixed = dataclasses.replace(batch_of(target), soft_target=F.one_hot((target + 1) % K, K).double())
    s, t = dask.connect({"pooled": e_s}, {"pooled": e_t})
    one, two, three = (
        dask.terms(s, t, batch, Progress())["dask"] for batch in (batch_of((target + 1) % K), mixed, views)
    )
    assert torch.equal(one, two) and three.isfinite()


def test_without_weight_unequal_widths_are_not_compared():
    assert terms(method(d_t=D + 2, beta=0.0), features(1), features(2, D + 2))["dask"].isfinite()


def test_the_difference_does_not_move_the_teachers_map():
    """Else both maps could shrink to one point."""
    dask = method(
        D,
        9,
        **OFF,
    ).double()
    assert dask.shared is None  # no semantic term, no map
    dask = method(D, 9, **{**OFF, "semantic": 1.0}).double()
    e_s, e_t = features(1), features(2, 9).detach()
    in_space, target, _ = dask.shared(e_s, e_t)
    loss = terms(dask, e_s, e_t)["dask"]
    own = F.cross_entropy(target @ F.normalize(dask.shared.vectors).T / 0.1, torch.arange(B) % K)
    weight = dask.shared.of_teacher.weight
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], torch.autograd.grad(own, weight)[0])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros((K + 1, 3)), "expected one row for each of 5 classes"),
        (np.zeros((K, 3)), "zero or not finite"),
        (np.zeros((K, 3), dtype=int), "expected one row"),
        (None, "cannot be read as a .npy file"),
    ],
)
def test_class_vectors_that_are_none(tmp_path, table, words):
    path = tmp_path / "glove.npy"
    path.write_bytes(b"text") if table is None else np.save(path, table)
    with pytest.raises(UserError, match=words):
        method(glove=str(path))


def test_flags():
    settings = parse(
        ["--distill", "dask", "--path_t", "x", "--dask_variant", "committed", "--dask_angle", "2"], teacher=False
    )
    assert (settings.config.variant, settings.config.angle, settings.config.div) == ("committed", 2.0, 0.01)
    with pytest.raises(UserError, match="--dask_distance -1"):
        method(distance=-1.0)
