"""Losses and gradients against numbers that the published implementations produced.

Two sources: golden/losses.json (float32; every case of a method that stands here), and a table of float64 values with a
fill rule of its own (`hashed`), which adds shapes and settings.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden.rule import fill_module, rand
from tests.support.method_context import batch_of, build, run, side

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
LABELS = torch.tensor(GOLDEN["labels"])
NAMES = {"hint": "fitnet", "attention": "at", "similarity": "sp"}


def cases(name: str) -> list[dict]:
    return [c for c in GOLDEN["cases"] if c["name"] == name]


def inputs(case: dict) -> dict[str, Tensor]:
    """s... require gradients, t... do not."""
    out = {}
    for key, how in case["inputs"].items():
        x = rand(tuple(how["shape"]), how["seed"])
        out[key] = (x.relu() if how["relu"] else x).requires_grad_(key.startswith("s"))
    return out


def check(case: dict, loss: Tensor, x: dict[str, Tensor], rtol: float = 2e-5) -> None:
    assert loss.ndim == 0
    torch.testing.assert_close(loss.item(), case["loss"], rtol=rtol, atol=1e-9)
    keys = list(case["grads"])
    for key, gradient in zip(keys, torch.autograd.grad(loss, [x[k] for k in keys]), strict=True):
        golden = case["grads"][key]
        assert gradient.norm().item() == pytest.approx(golden["l2"], rel=1e-4), key
        scale = golden["l2"] / math.sqrt(gradient.numel())
        first = gradient.flatten()[: len(golden["first"])].double()
        torch.testing.assert_close(first, torch.tensor(golden["first"]).double(), rtol=1e-3, atol=1e-3 * scale)


def shapes_of(x: dict[str, Tensor], letter: str) -> list[tuple[int, ...]]:
    return [tuple(v.shape[1:]) for k, v in x.items() if k[0] == letter]


def staged(x: dict[str, Tensor], letter: str) -> dict[str, Tensor]:
    maps = [v for k, v in x.items() if k[0] == letter]
    return {"logits": torch.zeros(len(maps[0]), 100), **{f"stage{i + 1}": v for i, v in enumerate(maps)}}


def maps_case(case: dict, **options: object) -> tuple:
    """A method on stage maps, and its term, from the case's inputs."""
    x = inputs(case)
    (*_, last_s), (*_, last_t) = shapes_of(x, "s"), shapes_of(x, "t")
    student = side("student", shapes_of(x, "s"), last_s[0], 100)
    teacher = side("teacher", shapes_of(x, "t"), last_t[0], 100, fill_module(nn.Linear(last_t[0], 100), prefix="fc."))
    name = NAMES.get(case["name"], case["name"])
    return build(name, student, teacher, cls=0.0, div=0.0, **options), x


def has_published_keys(module: nn.Module, case: dict) -> None:
    wanted = {k: tuple(v) for k, v in case["params"].items() if not k.startswith(("query", "key")) or "linear" in k}
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == wanted


@pytest.mark.parametrize("case", cases("kd"), ids=lambda c: f"T{c['hyper']['T']}")
def test_kd(case):
    x = inputs(case)
    method = build("kd", side("s", [], 4, 100), side("t", [], 4, 100), cls=0.0, kd_T=case["hyper"]["T"])
    terms, *_ = run(method, {"logits": 3 * x["s"]}, {"logits": 3 * x["t"]}, batch_of(LABELS))
    assert list(terms) == ["div"]
    check(case, terms["div"], x)


@pytest.mark.parametrize("case", cases("attention") + cases("similarity"), ids=lambda c: c["name"])
def test_without_parameters(case):
    method, x = maps_case(case)
    terms, *_ = run(method, staged(x, "s"), staged(x, "t"), batch_of(LABELS))
    assert not list(method.parameters())
    check(case, terms[method.name], x)


@pytest.mark.parametrize("case", cases("hint"), ids=lambda c: c["variant"])
def test_fitnet(case):
    method, x = maps_case(case)
    has_published_keys(method, case)
    fill_module(method)
    terms, *_ = run(method, staged(x, "s"), staged(x, "t"), batch_of(LABELS))
    check(case, terms["fitnet"], x)


@pytest.mark.parametrize("case", cases("vid"), ids=["down"])
def test_vid(case):
    method, x = maps_case(case)
    (layer,) = method.layers
    has_published_keys(layer, case)
    log_scale = layer.log_scale.detach().clone()
    fill_module(layer)
    layer.log_scale.data.copy_(log_scale)
    terms, *_ = run(method, staged(x, "s"), staged(x, "t"), batch_of(LABELS))
    check(case, terms["vid"], x)


@pytest.mark.parametrize("case", cases("srrl"), ids=["vectors"])
def test_srrl(case):
    x = inputs(case)
    head = fill_module(nn.Linear(128, 100), prefix="fc.")
    method = build("srrl", side("s", [], 64, 100), side("t", [], 128, 100, head), cls=0.0, div=0.0)
    has_published_keys(nn.ModuleDict({"transfer": method.transfer}), case)
    fill_module(method.transfer, prefix="transfer.")
    logits = torch.zeros(8, 100)
    terms, *_ = run(
        method, {"logits": logits, "pooled": x["s"]}, {"logits": head(x["t"]), "pooled": x["t"]}, batch_of(LABELS)
    )
    check(case, terms["srrl"], x)
    assert not any(p.requires_grad for p in method.teacher_head.parameters())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_simkd(factor):
    """The three cases of a factor share one projector in train mode, in file order: their statistics add up."""
    shared = None
    for case in [c for c in cases("simkd") if c["hyper"]["factor"] == factor]:
        method, x = maps_case(case, factor=factor)
        has_published_keys(nn.ModuleDict({"transfer": method.projected.transfer}), case)
        deployment = method.deployment()
        deployment.load_entries({"proj": shared}) if shared else fill_module(deployment.transfer, prefix="transfer.")
        terms, s, _ = run(method, staged(x, "s"), staged(x, "t"), batch_of(LABELS))
        check(case, terms["simkd"], x)
        assert s["own_logits"].eq(0).all()
        shared = deployment.entries()["proj"]
        assert shared.keys() == case["params"].keys()
        if "eval_logits" in case:
            golden = case["eval_logits"]
            last, _ = maps_case(cases("simkd")[0], factor=factor)  # 8x8 on both sides
            last.deployment().load_entries({"proj": shared})
            with torch.no_grad():
                maps = rand(tuple(golden["s_shape"]), 81).relu()
                out = last.eval().deploy({"logits": torch.zeros(8, 100), "stage1": maps})
            logits = last.readouts(out)["student"]
            torch.testing.assert_close(logits.flatten()[:8], torch.tensor(golden["first"]), rtol=1e-4, atol=1e-5)
            assert logits.norm().item() == pytest.approx(golden["l2"], rel=1e-4)


@pytest.mark.parametrize("case", cases("semckd"), ids=["three"])
def test_semckd(case):
    method, x = maps_case(case, soft=case["hyper"]["soft"])
    has_published_keys(method, case)
    fill_module(method)
    terms, *_ = run(method, staged(x, "s"), staged(x, "t"), batch_of(LABELS))
    check(case, terms["semckd"], x)


def test_crd():
    """Two calls on the same banks: Z is fixed by the first, and the banks move in between."""
    first, second = cases("crd")
    hyper = first["hyper"]
    method = build(
        "crd",
        side("s", [], 64, 100),
        side("t", [], 96, 100),
        cls=0.0,
        div=0.0,
        **{k: hyper[k] for k in ("feat_dim", "nce_k", "nce_t", "nce_m")},
    )
    has_published_keys(nn.ModuleDict({"embed_s": method.embed_s, "embed_t": method.embed_t}), first)
    fill_module(method.embed_s, prefix="embed_s.")
    fill_module(method.embed_t, prefix="embed_t.")
    method.memory.memory_v1.copy_(0.1 * rand((50, 16), 201))
    method.memory.memory_v2.copy_(0.1 * rand((50, 16), 202))
    for case in (first, second):
        x = inputs(case)
        method.contrast.forward = lambda index, case=case: torch.tensor(case["contrast_idx"])
        batch = batch_of(LABELS, torch.tensor(case["idx"]))
        logits = torch.zeros(8, 100)
        terms, s, t = run(method, {"logits": logits, "pooled": x["s"]}, {"logits": logits, "pooled": x["t"]}, batch)
        check(case, terms["crd"], x)
        method.after_step(s, t, batch)


# ------------------------------------------------------------------ the float64 table


def hashed(key: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [-0.5, 0.5), a function of the key."""
    i = np.arange(math.prod(shape), dtype=np.uint64)
    h = (i * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))) % np.uint64(2**32)
    return torch.from_numpy(h.astype(np.float64) / 2**32 - 0.5).reshape(shape)


def hash_fill(module: nn.Module, prefix: str = "") -> nn.Module:
    state = {}
    for key, value in module.double().state_dict().items():
        u, leaf = hashed(prefix + key, tuple(value.shape)), key.rsplit(".", 1)[-1]
        if value.ndim >= 2:
            state[key] = u * math.sqrt(24 / math.prod(value.shape[1:]))
        elif leaf == "running_var" or leaf == "weight":
            state[key] = 1 + 0.4 * u
        elif leaf in ("bias", "running_mean"):
            state[key] = 0.2 * u
        else:
            state[key] = value  # counters, log_scale
    module.load_state_dict(state)
    return module.eval()


def maps_named(names: str, batch: int = 4) -> dict[str, Tensor]:
    shapes = {
        "s0": (8, 16, 16),
        "s1": (16, 8, 8),
        "s2": (24, 4, 4),
        "t0": (12, 16, 16),
        "t1": (16, 4, 4),
        "t2": (32, 4, 4),
    }
    return {n: (2 * hashed(n, (batch, *shapes[n]))).requires_grad_(n[0] == "s") for n in names.split()}


def table_method(name: str, x: dict[str, Tensor], head: nn.Module | None = None, **options: object):
    (*_, last_s), (*_, last_t) = shapes_of(x, "s"), shapes_of(x, "t")
    batch = len(next(iter(x.values())))
    method = build(
        name,
        side("s", shapes_of(x, "s"), last_s[0], 10),
        side("t", shapes_of(x, "t"), last_t[0], 10, head),
        batch_size=batch,
        cls=0.0,
        div=0.0,
        **options,
    )
    return method.double(), batch_of(torch.zeros(batch, dtype=torch.long))


def term_and_grads(method, x: dict[str, Tensor], batch) -> tuple[float, list[float]]:
    terms, *_ = run(method, staged(x, "s"), staged(x, "t"), batch)
    grads = torch.autograd.grad(terms[method.name], [v for k, v in x.items() if k[0] == "s"])
    return terms[method.name].item(), [g.norm().item() for g in grads]


TIGHT = {"rel": 1e-7}  # the table prints about nine digits
GRAD = {"rel": 1e-5}  # and six of a gradient


@pytest.mark.parametrize(("temperature", "loss", "grad"), [(4.0, 4.34091917, 0.454839), (1.0, 3.0517288, 0.354916)])
def test_table_kd(temperature, loss, grad):
    logits_s, logits_t = (6 * hashed("ls", (4, 10))).requires_grad_(), 6 * hashed("lt", (4, 10))
    method = build("kd", side("s", [], 4, 10), side("t", [], 4, 10), cls=0.0, kd_T=temperature)
    terms, *_ = run(method, {"logits": logits_s}, {"logits": logits_t}, batch_of(torch.zeros(4, dtype=torch.long)))
    assert terms["div"].item() == pytest.approx(loss, **TIGHT)
    assert torch.autograd.grad(terms["div"], logits_s)[0].norm().item() == pytest.approx(grad, **GRAD)


@pytest.mark.parametrize(
    ("name", "maps", "loss", "grads"),
    [
        ("at", "s0 t0", 0.000176519711, [6.06648e-05]),
        ("at", "s1 t1", 0.00176829973, [0.00235204]),
        ("at", "s2 t2", 0.00144844089, [0.00164139]),
        ("at", "s0 s1 s2 t0 t1 t2", 0.00339326033, [6.06648e-05, 0.00235204, 0.00164139]),
        ("sp", "s2 t2", 0.169413786, [0.0173057]),
        ("vid", "s0 t0", 0.877021126, [0.00285917]),
        ("vid", "s1 t1", 0.840333301, [0.00274177]),
        ("vid", "s2 t2", 0.845362231, [0.00415041]),
        ("vid", "s0 s1 s2 t0 t1 t2", 2.56271666, [0.00285917, 0.00274177, 0.00415041]),
    ],
)
def test_table_maps(name, maps, loss, grads):
    x = maps_named(maps)
    method, batch = table_method(name, x)
    for layer in getattr(method, "layers", ()):
        hash_fill(layer)
    value, norms = term_and_grads(method, x, batch)
    assert value == pytest.approx(loss, **TIGHT)
    assert norms == pytest.approx(grads, **GRAD)


@pytest.mark.parametrize(
    ("factor", "loss", "size", "mean"),
    [
        (2, 0.352774115, 3328, 0.0209180518),
        (4, 0.350588886, 1120, -0.0019428756),
        (8, 0.382691288, 448, -0.000637345871),
    ],
)
def test_table_simkd(factor, loss, size, mean):
    x = maps_named("s2 t2")
    method, batch = table_method("simkd", x, hash_fill(nn.Linear(32, 10)), factor=factor)
    hash_fill(method.deployment().transfer, "transfer.")
    terms, s, _ = run(method, staged(x, "s"), staged(x, "t"), batch)
    assert terms["simkd"].item() == pytest.approx(loss, **TIGHT)
    assert s["logits"].mean().item() == pytest.approx(mean, **TIGHT)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == size


def test_table_simkd_small_student():
    x = maps_named("s1 t0")
    method, batch = table_method("simkd", x, factor=2)
    hash_fill(method.deployment().transfer, "transfer.")
    terms, s, _ = run(method, staged(x, "s"), staged(x, "t"), batch)
    assert terms["simkd"].item() == pytest.approx(0.124784204, **TIGHT)
    assert s["simkd.projected"].shape == (4, 12, 8, 8)


def test_table_srrl():
    head = hash_fill(nn.Linear(32, 10))
    method = build("srrl", side("s", [], 20, 10), side("t", [], 32, 10, head), cls=0.0, div=0.0).double()
    hash_fill(method.transfer, "transfer.")
    s = {"logits": torch.zeros(4, 10), "pooled": 2 * hashed("es", (4, 20))}
    t = {"logits": 6 * hashed("lt", (4, 10)), "pooled": 2 * hashed("ft", (4, 32))}
    terms, *_ = run(method, s, t, batch_of(torch.zeros(4, dtype=torch.long)))
    assert terms["srrl"].item() == pytest.approx(7.88842515, **TIGHT)


@pytest.mark.parametrize(
    ("batch", "soft", "loss", "grads"),
    [
        (4, 1.0, 0.332588396, [0.00294979, 0.00650184, 0.00494034]),
        (4, 2.0, 0.336481318, None),
        (8, 1.0, 0.358009958, [0.00241041, 0.00486343, 0.00424984]),
    ],
)
def test_table_semckd(batch, soft, loss, grads):
    x = maps_named("s0 s1 s2 t0 t1 t2", batch)
    method, made = table_method("semckd", x, soft=soft)
    hash_fill(method)
    value, norms = term_and_grads(method, x, made)
    assert value == pytest.approx(loss, **TIGHT)
    if grads:
        assert norms == pytest.approx(grads, **GRAD)
    if batch == 8:
        _, s, _ = run(method, staged(x, "s"), staged(x, "t"), made)
        alpha = torch.tensor(
            [[0.400187, 0.302481, 0.297331], [0.112791, 0.764607, 0.122602], [0.32919, 0.418141, 0.252669]]
        )
        torch.testing.assert_close(s["semckd.attention"][0], alpha.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape_s", "shape_t", "mean"),
    [
        ((8, 16, 16), (12, 8, 8), 0.273383368),
        ((8, 8, 8), (12, 16, 16), 0.108041309),
        ((8, 16, 16), (12, 16, 16), 0.348779267),
        ((8, 7, 7), (12, 5, 5), 0.329703388),
        ((8, 8, 8), (12, 32, 32), 0.986765852),
    ],
)
def test_table_regressor(shape_s, shape_t, mean):
    x = {"s": 2 * hashed("s0", (4, *shape_s)), "t": 2 * hashed("t0", (4, *shape_t))}
    method, batch = table_method("fitnet", x)
    hash_fill(method)
    terms, s, t = run(method, staged(x, "s"), staged(x, "t"), batch)
    assert s["fitnet.regressed"].mean().item() == pytest.approx(mean, **TIGHT)
    assert s["fitnet.regressed"].shape == t["fitnet.hint"].shape
    if shape_t == (12, 32, 32):
        assert t["fitnet.hint"].abs().mean().item() == pytest.approx(0.0565712322, **TIGHT)


def test_table_crd():
    method = build("crd", side("s", [], 20, 10), side("t", [], 20, 10), cls=0.0, div=0.0, feat_dim=8, nce_k=6).double()
    hash_fill(method.embed_s)
    hash_fill(method.embed_t, "t.")
    bound = 2 / math.sqrt(8 / 3)
    for name in ("memory_v1", "memory_v2"):
        getattr(method.memory, name).copy_(bound * hashed(name, (50, 8)))
    index = torch.tensor([3, 17, 5, 40])
    places = (7 * torch.arange(4)[:, None] + 13 * torch.arange(7) + 1) % 50
    places[:, 0] = index
    method.contrast.forward = lambda _: places
    batch = batch_of(torch.zeros(4, dtype=torch.long), index)
    for loss, grad in ((26.7136492, 2.11815), (31.9532826, 2.03772)):
        v_s, v_t = (2 * hashed("es", (4, 20))).requires_grad_(), 2 * hashed("et", (4, 20))
        logits = torch.zeros(4, 10)
        terms, s, t = run(method, {"logits": logits, "pooled": v_s}, {"logits": logits, "pooled": v_t}, batch)
        assert terms["crd"].item() == pytest.approx(loss, **TIGHT)
        assert torch.autograd.grad(terms["crd"], v_s)[0].norm().item() == pytest.approx(grad, **GRAD)
        assert method.criterion.z1.item() == pytest.approx(292687.384, **TIGHT)
        assert method.criterion.z2.item() == pytest.approx(263772.716, **TIGHT)
        method.after_step(s, t, batch)
    torch.testing.assert_close(
        method.memory.memory_v1[3, :3], torch.tensor([0.573137, -0.254932, -0.205730]).double(), rtol=0, atol=1e-6
    )
