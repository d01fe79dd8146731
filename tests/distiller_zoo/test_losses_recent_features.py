"""Feature methods of recent years: against the published numbers, against their equations, and at their edges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.protocols import Context, Progress, UserError
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig
from distiller_zoo._stages import as_map
from distiller_zoo.itrd import correlation, mutual
from distiller_zoo.queue import queue_size
from helper.options.parse import parse
from models import model_dict
from tests.distiller_zoo import test_losses_recent as newer
from tests.distiller_zoo.test_losses import check
from tests.distiller_zoo.test_reference_losses import TOLERANCE, B, K, arrays, maps, prepared
from tests.golden.rule import fill_array, fill_module, rand
from tests.support import reference_recent_features as reference
from tests.support.contract import PROGRESS, make_step
from tests.support.method_context import batch_of, build, run, side
from tests.support.toys import ToyData, network

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "newer_losses_features.json").read_text())
LABELS = torch.tensor(GOLDEN["labels"])
TARGET = torch.arange(B) % K
LATE = Progress(epoch=100, epochs=240)


def cases(*names: str) -> list[dict]:
    return [c for c in GOLDEN["cases"] if c["name"] in names]


def called(case: dict) -> str:
    return f"{case['name']}-{case.get('variant', '')}-{'-'.join(map(str, case['hyper'].values()))}"


def inputs(case: dict) -> tuple[dict, dict]:
    """Raw leaves, of which those of the student require gradients, and what the method is given."""
    leaves, given = {}, {}
    for key, how in case["inputs"].items():
        x = rand(tuple(how["shape"]), how["seed"])
        leaves[key] = (x.relu() if how["relu"] else x).requires_grad_(key in case["grads"])
        given[key] = leaves[key] * how.get("scale", 1.0)
        if boost := how.get("boost"):
            given[key][boost["rows"], LABELS[boost["rows"]]] += boost["add"]
    return leaves, given


def keys_of(module: torch.nn.Module) -> dict[str, list[int]]:
    running = ("running_mean", "running_var", "num_batches_tracked")
    return {k: list(v.shape) for k, v in module.state_dict().items() if not k.endswith(running)}


def vectors(name: str, x: dict, **options: object):
    """A method on the pooled vectors of a case."""
    student, teacher = (side(letter, [], x[letter].shape[1], 100) for letter in "st")
    return build(name, student, teacher, cls=0.0, div=0.0, **options)


def pooled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pooled": x, "logits": torch.zeros(len(x), 100, dtype=x.dtype)}


# ------------------------------------------------------------------ the published numbers


@pytest.mark.parametrize("case", cases("itrd_correlation", "itrd_mutual"), ids=called)
def test_golden_itrd(case):
    leaves, x = inputs(case)
    method = vectors("itrd", x)
    fill_module(method.embed, prefix="embed.linear.")
    s, t = method.connect(pooled(x["s"]), pooled(x["t"]))
    if case["name"] == "itrd_mutual":
        loss = mutual(s["itrd.compared"], t["pooled"])
    else:
        loss = correlation(s["itrd.embedded"], t["pooled"], case["hyper"]["alpha"])
    check(case, loss, leaves, rtol=1e-5)


@pytest.mark.parametrize("case", cases("wkd_f"), ids=called)
def test_golden_wkd_f(case):
    leaves, x = inputs(case)
    hyper = case["hyper"]
    options = {k: hyper[k] for k in ("projector", "hidden", "grid", "ratio") if k in hyper}
    shapes = [[tuple(x[letter].shape[1:])] for letter in "st"]
    student, teacher = (side(letter, shape, shape[0][0], 100) for letter, shape in zip("st", shapes, strict=True))
    method = build("wkd_f", student, teacher, cls=0.0, div=0.0, beta=hyper["weight"], **options)
    own = keys_of(method)
    if hyper["projector"] == "bottleneck":  # published without the prefix
        own = {k.removeprefix("conv."): v for k, v in own.items()}
        fill_module(method.conv), fill_module(method.bn, prefix="bn.")
    else:
        fill_module(method)
    assert own == case["params"]
    s, t = ({"logits": torch.zeros(8, 100), "stage1": x[letter]} for letter in "st")
    terms, *_ = run(method, s, t, batch_of(LABELS), Progress(1, 240))
    check(case, method.weights(Progress(1, 240))["wkd_f"] * terms["wkd_f"], leaves, rtol=1e-5)


@pytest.mark.parametrize("case", cases("embed_match"), ids=called)
def test_golden_embed(case):
    leaves, x = inputs(case)
    hyper = case["hyper"]
    method = vectors(
        "embed", x, loss=hyper["loss"], projector=hyper["projector"], whiten=hyper.get("teacher_norm", False)
    )
    assert keys_of(method) == case["params"]
    fill_module(method)
    terms, *_ = run(method, pooled(x["s"]), pooled(x["t"]), batch_of(LABELS))
    check(case, terms["embed"], leaves, rtol=1e-5)


@pytest.mark.parametrize("case", cases("label_free"), ids=called)
def test_golden_queue(case):
    leaves, x = inputs(case)
    rows = case["hyper"]["queue"] + case["hyper"].get("zeros", 0)
    sides = [side(k, [x[f"{k}_map"].shape[1:]], x[k].shape[1], 100) for k in "st"]
    method = build("queue", *sides, size=rows, local=case["hyper"]["local"])
    with torch.no_grad():
        for name, head in (("global", method.globals), ("local", method.locals)):
            for key, p in head.named_parameters():
                p.copy_(torch.from_numpy(fill_array(f"{name}.{key}", tuple(p.shape))))
        if "zeros" not in case["hyper"]:
            method.rows_kept[: rows - 8] = torch.nn.functional.normalize(x["queue"])
    s, t = ({**pooled(x[k]), "stage1": x[f"{k}_map"]} for k in "st")
    terms, *_ = run(method, s, t, batch_of(LABELS))
    check(case, terms["queue"], leaves, rtol=1e-5)


def with_means(method, x):
    """The class means of a case put in, through the pass over the training set."""
    means = x["class_means"]
    method.prepare_teacher(lambda: [({"pooled": means}, batch_of(torch.arange(len(means))))])
    assert torch.equal(method.class_means, means)
    return method


@pytest.mark.parametrize("case", [c for c in newer.GOLDEN["cases"] if c["name"] == "nd"], ids=called)
def test_golden_kdpp_term(case):
    leaves, x, labels = newer.golden_inputs(case)
    method = with_means(vectors("kdpp", x, direction=case["hyper"]["nd"], dropout=0.0), x)
    if "params" in case:
        fill_module(method.fc1, prefix="fc1.")
        assert {k: v for k, v in keys_of(method).items() if k != "class_means"} == case["params"]
    s, t = method.connect(pooled(x["s"]), pooled(x["t"]))
    term = method.terms(s, t, batch_of(labels), LATE)["kdpp"]
    check(case, method.weights(LATE)["kdpp"] * term, leaves, rtol=1e-5)


@pytest.mark.parametrize("case", [c for c in newer.GOLDEN["cases"] if c["name"] == "kdpp"], ids=called)
def test_golden_kdpp(case):
    leaves, x, labels = newer.golden_inputs(case)
    hyper, progress = case["hyper"], Progress(case["hyper"]["epoch"] + 1, 240)
    if hyper["base"] == "kd":
        student, teacher = (side(k, [], x[k].shape[1], 100) for k in "st")
        method = build("kdpp", student, teacher, div=hyper["kd"], direction=hyper["nd"])
        with_means(method, x)
    else:
        own = {"dkd": {"tckd": hyper["alpha"], "nckd": hyper["beta"]}, "kdpp": {"direction": hyper["nd"]}}
        members = tuple((method_dict[n], method_dict[n].Config(**o)) for n, o in own.items())
        ctx = Context(100, labels, 8, *(side(k, [], x[k].shape[1], 100) for k in "st"))
        method = Combined(CombinedConfig(members=members, div=0.0), ctx)
        assert method.prepares_teacher
        with_means(method.members["kdpp"], x)
    s, t = ({"pooled": x[k], "logits": x[f"{k}_logits"]} for k in "st")
    terms, *_ = run(method, s, t, batch_of(labels), progress)
    weights = method.weights(progress)
    check(case, sum(weights[k] * v for k, v in terms.items()), leaves, rtol=1e-5)


# ------------------------------------------------------------------ the equations


@pytest.mark.parametrize("width", [12, 14])
def test_kdpp(width):
    method, s, t, _ = prepared("kdpp", [], [], width, dropout=0.0, div=3.0)
    seen = [({"pooled": torch.randn(5, 14).double()}, batch_of(torch.tensor([0, 1, 1, 3, 9]))) for _ in range(2)]
    method.prepare_teacher(lambda: iter(seen))
    terms, *_ = run(method, s, t, batch_of(TARGET))
    vectors_t = np.concatenate([f["pooled"].numpy() for f, _ in seen])
    labels = np.concatenate([b.target.numpy() for _, b in seen])
    w = {k: v for k, v in arrays(method).items() if k.startswith("fc1")}
    expected = reference.kdpp(s["pooled"].numpy(), t["pooled"].numpy(), (vectors_t, labels), TARGET.numpy(), w)
    assert terms["kdpp"].item() == pytest.approx(expected, **TOLERANCE)
    assert [method.weights(Progress(e, 240))["div"] for e in (1, 11, 21, 240)] == [0, 1.5, 3, 3]


def test_kdpp_counts_a_mixed_image_to_the_class_of_its_larger_share():
    """`target` of a mixed batch is the class of the first image, which may have the smaller share."""
    method, *_ = prepared("kdpp", [], [], 14)
    soft = torch.zeros(2, K)
    soft[[0, 1], [0, 1]], soft[[0, 1], [2, 0]] = 0.3, 0.7
    vectors_t, mixed = torch.randn(2, 14).double(), batch_of(torch.tensor([0, 1]))
    method.prepare_teacher(lambda: [({"pooled": vectors_t}, dataclasses.replace(mixed, soft_target=soft))])
    assert torch.equal(method.class_means[[2, 0]], vectors_t) and not method.class_means[1].any()


def test_kdpp_without_cross_entropy_trains_the_classifier():
    """The weight of the KL, which alone trains it then, is 0 in the first epoch."""
    step = make_step(
        method_dict["kdpp"],
        method_dict["kdpp"].Config(cls=0.0),
        model_dict["resnet8"],
        lambda: network(model_dict["resnet8"]),
        ToyData(image=(3, 16, 16)),
        B,
    )
    trained = {id(p) for p in step.main_params}
    assert {id(p) for p in step.student.head.parameters()} <= trained


def test_kdpp_of_missing_classes_and_empty_vectors_is_finite():
    method, s, t, _ = prepared("kdpp", [], [], 14)
    for f in (s, t):
        f["pooled"][0] = 0.0
    s["pooled"].requires_grad_()
    terms, *_ = run(method, s, t, batch_of(TARGET))  # no class was seen: every direction is 0
    assert terms["kdpp"].item() == 1 and torch.autograd.grad(terms["kdpp"], s["pooled"])[0].isfinite().all()


def test_kdpp_drops_the_share_it_says():
    method, s, t, _ = prepared("kdpp", [], [], 12, dropout=0.25)
    s["pooled"] = torch.randn(4000, 12).double()
    method.fc1[2].weight.data.copy_(torch.eye(14, 12)), method.fc1[2].bias.data.zero_()
    made = method.connect(s, t)[0]["kdpp.vector"][:, :12]
    assert (made == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    whole = method.fc1[0](s["pooled"])
    torch.testing.assert_close(made[made != 0], (whole / 0.75)[made != 0])


@pytest.mark.parametrize("alpha", [1.01, 1.5])
@pytest.mark.parametrize("width", [12, 14])
def test_itrd(width, alpha):
    options = {"correlation_weight": 0.7, "mutual_weight": 3.0, "alpha": alpha}
    method, s, t, _ = prepared("itrd", [], [], width, **options)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    expected = reference.itrd(s["pooled"].numpy(), t["pooled"].numpy(), arrays(method), (0.7, 3.0), alpha)
    assert terms["itrd"].item() == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("who", ["s", "t"])
def test_itrd_of_a_constant_channel_is_finite(who):
    method, s, t, _ = prepared("itrd", [], [], 14)
    (s if who == "s" else t)["pooled"][:, 3] = 0.0
    s["pooled"].requires_grad_()
    terms, *_ = run(method, s, t, batch_of(TARGET))
    assert terms["itrd"].isfinite() and torch.autograd.grad(terms["itrd"], s["pooled"])[0].isfinite().all()


@pytest.mark.parametrize("projector", ["conv1x1", "bottleneck"])
@pytest.mark.parametrize(("size_s", "size_t"), [(8, 8), (8, 4), (4, 8), (7, 7), (9, 4)])
@pytest.mark.parametrize("grid", [1, 2])
def test_wkd_f(size_s, size_t, grid, projector):
    sizes = [(3, size_s, size_s)], [(5, size_t, size_t)]
    method, s, t, _ = prepared("wkd_f", *sizes, grid=grid, ratio=2.0, projector=projector, hidden=4)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    convolved = method.conv(s["stage1"]).detach().numpy()
    expected = reference.wkd_f(convolved, maps(t)[0], arrays(method), grid, 2.0)
    assert terms["wkd_f"].item() == pytest.approx(expected, **TOLERANCE)


def test_wkd_f_falls_along_a_cosine():
    method, *_ = prepared("wkd_f", [(3, 8, 8)], [(5, 8, 8)])
    weights = [method.weights(Progress(e, 240))["wkd_f"] / 0.08 for e in (1, 150, 195, 240)]
    assert weights == pytest.approx([1, 1, 0.5, 0], abs=1e-12)


def test_wkd_f_refuses_cells_of_one_pixel():
    with pytest.raises(UserError, match="--wkd_f_grid 4 leaves cells of one pixel.* t is 4x4, so choose less than 4"):
        prepared("wkd_f", [(3, 8, 8)], [(5, 4, 4)], grid=4)
    with pytest.raises(UserError, match="s is 1x1, so choose larger images or another network"):
        prepared("wkd_f", [(3, 1, 1)], [(5, 4, 4)])


@pytest.mark.parametrize("whiten", [False, True], ids=["", "whitened"])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("loss", ["cosine", "smooth_l1", "mse"])
def test_embed(loss, projector, whiten):
    method, s, t, _ = prepared("embed", [], [], loss=loss, projector=projector, whiten=whiten)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    expected = reference.embed(s["pooled"].numpy(), t["pooled"].numpy(), arrays(method), loss, whiten)
    assert terms["embed"].item() == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("whiten", [False, True], ids=["", "whitened"])
def test_embed_at_every_place(whiten):
    method, s, t, _ = prepared("embed", [(3, 4, 4)], [(5, 4, 4)], loss="mse", whiten=whiten, local=0.5)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    w = arrays(method)
    rows = [m.transpose(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in (maps(s)[0], maps(t)[0])]
    expected = reference.embed(s["pooled"].numpy(), t["pooled"].numpy(), w, "mse", whiten)
    local = {"proj.weight": w["locals.0.weight"], "proj.bias": w["locals.0.bias"]}
    expected += 0.5 * reference.embed(*rows, local, "mse", whiten)
    assert terms["embed"].item() == pytest.approx(expected, **TOLERANCE)


def test_patch_tokens_of_a_transformer_meet_the_last_map():
    """The student's 8 x 8 places are resized to no other grid here; the teacher's tokens are in rows."""
    x = rand((2, 5, 4, 4), 0)
    assert torch.equal(as_map(x.flatten(2).mT), x) and as_map(x) is x
    data = ToyData(image=(3, 32, 32), num_classes=5)
    cfg = method_dict["embed"].Config(cls=0.0, local=1.0)
    step = make_step(
        method_dict["embed"], cfg, model_dict["resnet8"], lambda: network(model_dict["vit_micro_cifar"], 5), data, 8
    )
    step.train()
    assert (step.method.places_s, step.method.places_t) == ("stage3", "patches")
    before = step.method.locals[0].weight.detach().clone()
    assert step(data.batch(), PROGRESS).loss.isfinite() and not torch.equal(before, step.method.locals[0].weight)


@pytest.mark.parametrize("name", ["embed", "queue"])
def test_a_pooled_map_is_no_embedding(name):
    teacher, data = model_dict["torchvision:squeezenet1_1"], ToyData(image=(3, 32, 32), num_classes=5)
    cfg = method_dict[name].Config(**({"local": 0.0} if name == "queue" else {}))
    with pytest.raises(UserError, match=f"{name} compares pooled vectors, but .*squeezenet1_1 reads a map, "):
        make_step(method_dict[name], cfg, model_dict["resnet8"], lambda: network(teacher, 5), data, 8)


@pytest.mark.parametrize("size", [5, 8, 20])
def test_queue(size):
    method, s, t, _ = prepared("queue", [(3, 4, 4)], [(5, 4, 4)], 3, size=size, local=0.5, temperature=0.1)
    t["pooled"] = t["pooled"][:, :5]
    w, rows = arrays(method), np.zeros((size, 5))
    for _ in range(3):
        expected = reference.queue_global(s["pooled"].numpy(), t["pooled"].numpy(), rows, w, 0.1)
        expected += 0.5 * reference.queue_local(maps(s)[0], maps(t)[0], w, 0.1)
        terms, made_s, made_t = run(method, s, t, batch_of(TARGET))
        assert terms["queue"].item() == pytest.approx(expected, **TOLERANCE)
        with torch.no_grad():
            method.after_step(made_s, made_t, batch_of(TARGET))
        rows = np.concatenate([[reference.unit(v) for v in t["pooled"].numpy()], rows])[:size]
        t["pooled"] = t["pooled"].flip(0) + 1


def test_queue_without_maps_needs_none():
    method, s, t, _ = prepared("queue", [], [], local=0.0, size=16)
    terms, *_ = run(method, s, t, batch_of(TARGET))
    assert terms["queue"].isfinite() and len(list(method.parameters())) == 2
    assert [queue_size(n) for n in (50, 51, 500, 20_000, 50_000)] == [16, 32, 128, 4096, 8192]


# ------------------------------------------------------------------ settings


PUBLISHED = {
    "itrd": {"beta": 1, "correlation_weight": 2, "mutual_weight": 1, "alpha": 1.01},
    "wkd_f": {"beta": 0.08, "ratio": 4, "grid": 1, "projector": "conv1x1", "constant": 150},
    "embed": {"beta": 1, "loss": "cosine", "projector": "linear", "whiten": False},
    "queue": {"cls": 0, "div": 0, "beta": 1, "temperature": 0.07, "local": 1},
    "kdpp": {"beta": 1, "direction": 2, "dropout": 0.5, "warmup": 20},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_settings(name):
    cfg = method_dict[name].Config()
    assert {k: getattr(cfg, k) for k in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("itrd --itrd_alpha 0.4", "--itrd_alpha 0.4 must be at least 0.5"),
        ("itrd --itrd_correlation 0", "--itrd_correlation 0.0 must be above 0"),
        ("itrd --itrd_mutual -1", "--itrd_mutual -1.0 must be at least 0"),
        ("wkd_f --wkd_f_grid 0", "--wkd_f_grid 0 must be at least 1"),
        ("wkd_f --wkd_f_ratio -1", "--wkd_f_ratio -1.0 must be at least 0"),
        ("wkd_f --wkd_f_hidden 0", "--wkd_f_hidden 0 must be at least 1"),
        ("wkd_f --wkd_f_constant -1", "--wkd_f_constant -1 must be at least 0"),
        ("embed --embed_hidden -1", "--embed_hidden -1 must be at least 0"),
        ("kdpp --kdpp_nd -1", "--kdpp_nd -1.0 must be at least 0"),
        ("kdpp --kdpp_dropout 1", "--kdpp_dropout 1.0 must be at least 0 and at most 0.99"),
        ("kdpp --kdpp_warmup -1", "--kdpp_warmup -1 must be at least 0"),
        ("queue --queue_size -1", "--queue_size -1 must be at least 0"),
        ("queue --queue_T 0", "--queue_T 0.0 must be above 0"),
        ("queue --queue_local -1", "--queue_local -1.0 must be at least 0"),
    ],
)
def test_settings_out_of_range_name_flag_value_and_range(command, message):
    with pytest.raises(UserError) as error:
        parse(["--distill", *command.split()], teacher=False)
    assert message in str(error.value)
