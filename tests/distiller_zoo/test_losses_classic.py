"""The classic methods of RepDistiller, SemCKD and mdistiller against the numbers of their published code.

Same sources and helpers as test_losses.py: golden/losses.json, and the float64 table.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.protocols import Features, Progress
from distiller_zoo import kdsvd
from distiller_zoo._math import attention_map
from distiller_zoo.ab import boundary
from distiller_zoo.base import Distiller
from distiller_zoo.ft import Paraphraser, Translator
from distiller_zoo.ofd import partial_l2
from distiller_zoo.reviewkd import hierarchical_context
from tests.distiller_zoo.test_losses import (
    GRAD,
    LABELS,
    TIGHT,
    cases,
    check,
    hash_fill,
    hashed,
    inputs,
    maps_named,
    shapes_of,
    staged,
)
from tests.support.method_context import batch_of, build, run, side

LAST = Progress(epoch=20, epochs=20)


def preact(x: dict[str, Tensor], letter: str) -> Features:
    return {k + "_preact" if k.startswith("stage") else k: v for k, v in staged(x, letter).items()}


def with_stem(x: dict[str, Tensor], letter: str) -> Features:
    """The first map is the stem."""
    first, *rest = (v for k, v in x.items() if k[0] == letter)
    return {"logits": torch.zeros(len(first), 10), "stem": first, **{f"stage{i + 1}": v for i, v in enumerate(rest)}}


def on_maps(name: str, x: dict[str, Tensor], features=staged, **options: object) -> tuple[Distiller, Tensor]:
    """A method on given maps, and the value of its term; its first stage if that holds the loss."""
    shapes = {letter: shapes_of(x, letter)[1 if features is with_stem else 0 :] for letter in "st"}
    sides = [side(letter, shapes[letter], shapes[letter][-1][0], 10) for letter in "st"]
    method = build(name, *sides, stage=0, cls=0.0, div=0.0, **options)
    batch = batch_of(torch.zeros(len(next(iter(x.values()))), dtype=torch.long))
    terms, *_ = run(method, features(x, "s"), features(x, "t"), batch)
    (term,) = terms.values()
    return method, term


def on_vectors(name: str, x: dict[str, Tensor], **options: object) -> Tensor:
    sides = [side(letter, [], x[letter].shape[1], 10) for letter in "st"]
    method = build(name, *sides, cls=0.0, div=0.0, **options)
    f_s, f_t = ({"logits": torch.zeros(len(x[letter]), 10), "pooled": x[letter]} for letter in "st")
    return run(method, f_s, f_t, batch_of(LABELS))[0][name]


def correlation(x: dict[str, Tensor]) -> Tensor:
    """CC on embeddings that are given."""
    method = build("cc", side("s", [], 4, 10), side("t", [], 4, 10))
    return method.terms({"cc.embedded": x["s"]}, {"cc.embedded": x["t"]}, batch_of(LABELS), LAST)["cc"]


# ------------------------------------------------------------------ golden/losses.json


@pytest.mark.parametrize("name", ["rkd", "pkt"])
def test_vectors(name):
    (case,) = cases(name)
    x = inputs(case)
    check(case, on_vectors(name, x), x)


@pytest.mark.parametrize("name", ["nst", "kdsvd"])
def test_maps(name):
    (case,) = cases(name)
    x = inputs(case)
    method, loss = on_maps(name, x)
    assert not list(method.parameters())
    check(case, loss, x)


def test_correlation():
    (case,) = cases("correlation")
    x = inputs(case)
    check(case, correlation(x), x)


def test_fsp():
    (case,) = cases("fsp")
    x = inputs(case)
    check(case, on_maps("fsp", x, with_stem)[1], x)


def test_ab():
    (case,) = cases("ab")
    x = inputs(case)
    method, loss = on_maps("ab", x, preact)
    assert all(isinstance(m, nn.Identity) for m in method.connectors)
    check(case, loss, x)


def test_factor_transfer():
    (case,) = cases("factor_transfer")
    x = inputs(case)
    check(case, (attention_map(x["s"]) - attention_map(x["t"])).abs().mean(), x)


def test_reviewkd_hcl():
    (case,) = cases("reviewkd_hcl")
    x = inputs(case)
    check(case, sum(hierarchical_context(x[f"s{i}"], x[f"t{i}"]) for i in range(4)), x)


def test_ofd_partial_l2():
    (case,) = cases("ofd_partial_l2")
    x = inputs(case)
    margin = torch.full((1, 32, 1, 1), case["hyper"]["margin"])
    check(case, partial_l2(x["s"], x["t"], margin), x)


# ------------------------------------------------------------------ the float64 table


def table_maps(names: str) -> dict[str, Tensor]:
    """Also ts...: teachers of the student's shapes."""
    given = [n for n in names.split() if not n.startswith("ts")]
    x = maps_named(" ".join(given))
    alike = [n for n in names.split() if n.startswith("ts")]
    return x | {n: 2 * hashed(n, tuple(x["s" + n[2:]].shape)) for n in alike}


def vectors() -> dict[str, Tensor]:
    return {"s": (2 * hashed("es", (4, 20))).requires_grad_(), "t": 2 * hashed("et", (4, 20))}


def grads(loss: Tensor, x: dict[str, Tensor]) -> list[float]:
    return [g.norm().item() for g in torch.autograd.grad(loss, [v for k, v in x.items() if k[0] == "s"])]


@pytest.mark.parametrize(
    ("name", "loss", "grad"),
    [
        ("rkd", 0.106729831, 0.396626),
        ("pkt", 0.000997177102, 0.00504382),
        ("irg", 1.00648727, 0.223696),
    ],
)
def test_table_vectors(name, loss, grad):
    x = vectors()
    value = on_vectors(name, x)
    assert value.item() == pytest.approx(loss, **TIGHT)
    assert grads(value, x) == pytest.approx([grad], **GRAD)


def test_table_correlation():
    x = vectors()
    value = correlation(x)
    assert value.item() == pytest.approx(19.9864136, **TIGHT)
    assert grads(value, x) == pytest.approx([4.71282], **GRAD)


@pytest.mark.parametrize(
    ("name", "maps", "loss", "expected", "features"),
    [
        ("nst", "s0 t0", 0.0589227063, [0.00597782], staged),
        ("nst", "s1 t1", 0.308545112, [0.0222303], staged),
        ("nst", "s2 t2", 0.0381426715, [0.0109112], staged),
        (
            "nst",
            "s0 s1 s2 t0 t1 t2",
            0.0589227063 + 0.308545112 + 0.0381426715,
            [0.00597782, 0.0222303, 0.0109112],
            staged,
        ),
        ("ab", "s0 s1 s2 ts0 ts1 ts2", 3.8963073, [0.0341314, 0.0415762, 0.0597659], preact),
        ("fsp", "s0 s1 ts0 ts1", 0.000159443852, None, with_stem),
        (
            "fsp",
            "s0 s1 s2 ts0 ts1 ts2",
            0.000159443852 + 0.00236476756,
            [5.66227e-05, 0.000317679, 0.000269748],
            with_stem,
        ),
    ],
)
def test_table_maps(name, maps, loss, expected, features):
    x = table_maps(maps)
    _, value = on_maps(name, x, features)
    assert value.item() == pytest.approx(loss, **TIGHT)
    if expected:
        assert grads(value, x) == pytest.approx(expected, **GRAD)


def lapack_vectors(f: Tensor, num: int) -> Tensor:
    return torch.linalg.svd(f.flatten(2).mT, full_matrices=False).Vh.mT[..., :num]


@pytest.mark.parametrize(
    ("maps", "loss"),
    [("s0 s1 ts0 ts1", 0.00142626875), ("s0 s1 s2 ts0 ts1 ts2", 0.00142626875 + 0.0248875695)],
)
def test_table_kdsvd(maps, loss, monkeypatch):
    """On maps of both signs the published value depends on the signs that LAPACK happens to return."""
    x = table_maps(maps)
    for f in x.values():
        ours, theirs = kdsvd.right_singular_vectors(f, 4), lapack_vectors(f, 4)
        torch.testing.assert_close((ours * theirs).sum(1).abs(), torch.ones(4, 4).double(), rtol=0, atol=1e-9)
    monkeypatch.setattr(kdsvd, "right_singular_vectors", lapack_vectors)
    assert on_maps("kdsvd", x)[1].item() == pytest.approx(loss, **TIGHT)


def test_table_ab_layers():
    x = table_maps("s0 s1 s2 ts0 ts1 ts2")
    values = [boundary(x[f"s{i}"], x[f"ts{i}"]).item() * 3e-3 * 2.0 ** (i - 2) for i in range(3)]
    assert values == pytest.approx([1.55326848, 1.15238533, 1.1906535], **TIGHT)


def test_table_hkd():
    x = table_maps("s0 s1 s2 t0 t1 t2")
    _, value = on_maps("hkd", x, layer_weights="semckd")
    assert value.item() == pytest.approx(3.22549392, **TIGHT)
    assert grads(value, x) == pytest.approx([0.41714, 0.00171716, 0.0113352], **GRAD)


def test_hkd_and_its_gradient_do_not_depend_on_the_precision():
    """A distance of a sample to itself that is rounding noise shifts both by percents."""
    x = {name: f.detach() * 30 for name, f in table_maps("s0 s1 s2 t0 t1 t2").items()}
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        own = {name: f.to(dtype).requires_grad_(name[0] == "s") for name, f in x.items()}
        values.append(on_maps("hkd", own)[1])
        gradients.append(torch.autograd.grad(values[-1], [own[f"s{i}"] for i in range(3)]))
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    for ours, exact in zip(*gradients, strict=True):
        assert (ours - exact).norm() < 1e-4 * exact.norm()


def test_table_factor():
    x = table_maps("s2 t2")
    value = (attention_map(x["s2"]) - attention_map(x["t2"])).abs().mean()
    assert value.item() == pytest.approx(0.0336656329, **TIGHT)
    assert grads(value, x) == pytest.approx([0.0211713], **GRAD)
    translator, paraphraser = hash_fill(Translator(24, 32)), hash_fill(Paraphraser(32))
    assert translator(x["s2"]).mean().item() == pytest.approx(0.140059447, **TIGHT)
    factor = paraphraser(x["t2"])
    assert factor.mean().item() == pytest.approx(0.0722241236, **TIGHT)
    assert paraphraser.decoder(factor).mean().item() == pytest.approx(0.15376553, **TIGHT)
