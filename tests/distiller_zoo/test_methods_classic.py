"""What the classic methods promise beyond their numbers: memory, degenerate input, refusals, first stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.protocols import ModelSpec, Progress, UserError
from distiller_zoo import method_dict
from distiller_zoo.kdsvd import right_singular_vectors
from helper.options.parse import parse
from helper.training.stages import StagePlan, build_stages
from helper.training.step import StepSetup
from models import model_dict
from tests.support.cases import CLASSES, config
from tests.support.contract import plain_sgd
from tests.support.method_context import batch_of, build, run, side
from tests.support.toys import B, ToyData, network

LIMIT = 64 * 2**20  # bytes of one intermediate, batch 64
RESNET8X4 = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
VGG8 = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]


class Largest(TorchDispatchMode):
    """The size in bytes of the largest tensor any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel() * x.element_size())
        return out


def feature_maps(stages, batch, seed, grad=False):
    g = torch.Generator().manual_seed(seed)
    maps = {f"stage{i + 1}": torch.randn(batch, *x, generator=g).relu() for i, x in enumerate(stages)}
    for f in maps.values():
        f.requires_grad_(grad)
    return {"logits": torch.zeros(batch, 5), **maps}


@pytest.mark.parametrize("name", ["nst", "kdsvd"])
@pytest.mark.parametrize("stages", [RESNET8X4, VGG8], ids=["resnet", "vgg"])
def test_no_intermediate_is_large(name, stages, monkeypatch):
    if name == "kdsvd":  # the decomposition takes seconds here, and its result is never larger than its input
        monkeypatch.setattr("torch.linalg.eigh", lambda a: (a[:, 0].contiguous(), a.clone()))
    sides = [side(letter, stages, stages[-1][0], 5) for letter in "st"]
    method = build(name, *sides, cls=0.0, div=0.0)
    s, t = feature_maps(stages, 64, 0, grad=True), feature_maps(stages, 64, 1)
    with Largest() as largest:
        terms, *_ = run(method, s, t, batch_of(torch.zeros(64, dtype=torch.long)))
        terms[name].backward()
    assert 2**20 < largest.size <= LIMIT


def degenerate_maps() -> dict[str, torch.Tensor]:
    """[B, 6, 4, 4] each: zero, one rank, all singular values equal, two equal ones, hardly anything."""
    g = torch.Generator().manual_seed(0)
    flat = torch.zeros(4, 6, 16)
    flat[:, :, :6] = torch.eye(6)
    pair = flat.clone()
    pair[:, 2:] = 0
    one = torch.rand(4, 6, 1, generator=g) * torch.rand(4, 1, 16, generator=g)
    maps = {
        "zero": torch.zeros(4, 6, 16),
        "rank one": one,
        "equal": flat,
        "two equal": pair,
        "constant": torch.ones(4, 6, 16),
    }
    return {k: v.reshape(4, 6, 4, 4) for k, v in (maps | {"tiny": 1e-18 * one}).items()}


@pytest.mark.parametrize("kind", degenerate_maps())
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_kdsvd_survives_degenerate_spectra(kind, who):
    shapes = [(6, 4, 4), (20, 2, 2)]  # more places than channels, and fewer
    method = build("kdsvd", *(side(letter, shapes, 6, 5) for letter in "st"))
    s, t = feature_maps(shapes, 4, 0), feature_maps(shapes, 4, 1)
    bad = degenerate_maps()[kind]
    for f, name in ((s, "student"), (t, "teacher")):
        if who in (name, "both"):
            f["stage1"], f["stage2"] = bad.clone(), bad.flatten(1)[:, :80].reshape(4, 20, 2, 2).clone()
    for f in s.values():
        f.requires_grad_()
    loss = run(method, s, t, batch_of(torch.zeros(4, dtype=torch.long)))[0]["kdsvd"]
    gradients = torch.autograd.grad(loss, [s["stage1"], s["stage2"]])
    assert torch.isfinite(loss)
    for f, gradient in zip((s["stage1"], s["stage2"]), gradients, strict=True):
        assert torch.isfinite(gradient).all()
        assert kind == "tiny" or gradient.abs().max() < 1e4 * max(
            1.0, 1 / f.detach().abs().max().clamp_min(1e-2).item()
        )


def test_kdsvd_hands_an_infinite_map_on():
    """The loop refuses a loss that is not finite; an exception out of the decomposition would hide why."""
    shapes = [(6, 4, 4), (20, 2, 2)]
    method = build("kdsvd", *(side(letter, shapes, 6, 5) for letter in "st"))
    s, t = feature_maps(shapes, 4, 0), feature_maps(shapes, 4, 1)
    s["stage1"][0, 0, 0, 0] = torch.inf
    assert not run(method, s, t, batch_of(torch.zeros(4, dtype=torch.long)))[0]["kdsvd"].isfinite()


def test_kdsvd_reads_every_sample_by_itself():
    f = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    f[1] *= 1e-4
    alone = torch.cat([right_singular_vectors(sample, 2) for sample in f.split(1)])
    torch.testing.assert_close(right_singular_vectors(f, 2), alone)


def test_kdsvd_gradient_is_the_derivative():
    shapes = [(5, 4, 4), (20, 2, 2), (6, 3, 3)]
    method = build("kdsvd", *(side(letter, shapes, 6, 5) for letter in "st"))
    s, t = ({k: v.double() for k, v in feature_maps(shapes, 1, seed).items()} for seed in (0, 1))
    names = ("stage1", "stage2", "stage3")

    def loss(*maps):
        return method.terms({**s, **dict(zip(names, maps, strict=True))}, t, None, None)["kdsvd"]

    inputs = [s[n].requires_grad_() for n in names]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["rkd", "pkt", "irg", "hkd", "cc"])
@pytest.mark.parametrize("kind", ["zero", "equal", "one sample"])
def test_relations_of_samples_stay_finite(name, kind):
    """Samples that coincide, vectors of zeros, and a last batch of one."""
    n = 1 if kind == "one sample" else 4
    g = torch.Generator().manual_seed(0)
    value = torch.rand(1, 6, generator=g).repeat(n, 1) * (kind != "zero")
    s = {"logits": torch.zeros(n, 5), "pooled": value.clone().requires_grad_()}
    s["stage1"] = value.clone().reshape(n, 6, 1, 1).requires_grad_()
    t = {
        "logits": torch.zeros(n, 5),
        "pooled": torch.rand(n, 6, generator=g),
        "stage1": torch.rand(n, 6, 1, 1, generator=g),
    }
    method = build(name, *(side(letter, [(6, 1, 1)], 6, 5) for letter in "st"))
    loss = run(method, s, t, batch_of(torch.zeros(n, dtype=torch.long)))[0][name]
    gradients = torch.autograd.grad(loss, [s["pooled"], s["stage1"]], allow_unused=True)
    assert torch.isfinite(loss) and all(
        torch.isfinite(x).all() and x.abs().max() < 1e8 for x in gradients if x is not None
    )


def test_shapes_that_do_not_fit_name_stage_and_shapes():
    narrow, wide = [(4, 8, 8), (6, 4, 4)], [(4, 8, 8), (12, 4, 4)]
    for name in ("kdsvd", "fsp"):
        message = r"stage2 of a is 6x4x4, stage2 of b is 12x4x4"
        with pytest.raises(UserError, match=f"{name} needs maps of equal width: {message}"):
            build(name, side("a", narrow, 6, 5), side("b", wide, 12, 5))
    with pytest.raises(
        UserError, match=r"ab cannot take stage1_preact of a \(4x8x8\) to stage1_preact of b \(4x20x20\)"
    ):
        build("ab", side("a", narrow, 6, 5), side("b", [(4, 20, 20), (6, 4, 4)], 6, 5))
    with pytest.raises(UserError, match="kdsvd compares consecutive stages"):
        build("kdsvd", side("a", narrow[:1], 6, 5), side("b", wide, 12, 5))


def test_networks_without_preactivations_are_refused():
    plain = ModelSpec("plain", torch.nn.Module, {"stage1": None}, ("stem", "stage1", "pooled"), "fc")
    for name in ("ab", "ofd"):
        method = method_dict[name]
        first = method.before or method
        with pytest.raises(
            UserError, match=f"{name} reads stage maps before their ReLU, but plain has no tap stage1_pre"
        ):
            first.needs(method.Config(), plain, side("t", [(4, 8, 8)], 4, 5).spec)


def test_irg_layers_come_in_pairs_that_exist():
    spec = side("a", [(4, 8, 8), (6, 4, 4)], 6, 5).spec
    irg = method_dict["irg"]
    for layers_s, layers_t, message in (
        ((0, 1, 2), (0, 1, 2), "pairs of maps; there are: 0 .stem., 1 .stage1., 2 .stage2."),
        ((0, 3), (0, 1), "--transform_layer_s 0 3 "),
        ((0, 1), (), "give the same number of both"),
    ):
        with pytest.raises(UserError, match=message):
            irg.needs(irg.Config(transform_layer_s=layers_s, transform_layer_t=layers_t), spec, spec)
    settings = parse(
        ["--distill", "irg", "--transform_layer_s", "0", "1", "--transform_layer_t", "1", "2"], teacher=False
    )
    needs = irg.needs(settings.config, spec, spec)
    assert needs.student == ("stem", "stage1", "pooled") and needs.teacher == ("stage1", "stage2", "pooled")


def test_methods_may_share_a_flag():
    settings = parse(["--distill", "cc+crd", "--feat_dim", "7", "--path_t", "x"], teacher=False)
    assert [c.feat_dim for _, c in settings.config.members] == [7, 7]


@pytest.mark.parametrize("name", ["ab", "fsp", "ft"])
def test_first_stages_train_what_they_are_for(name):
    """ab and fsp: the student below its classifier. ft: the paraphraser, which the second stage keeps as it is."""
    data, cfg, spec = ToyData(image=(3, 32, 32), num_classes=CLASSES), config(name), model_dict["resnet8"]
    stages = build_stages(
        method_dict[name],
        cfg,
        spec,
        network(model_dict["resnet14"], CLASSES),
        data,
        StepSetup(plain_sgd, device=torch.device("cpu")),
        StagePlan(batch_size=B, epochs=1, init_epochs=1),
    )
    first = next(stages)
    assert not first.final and first.constant_lr == (0.01 if name == "ft" else None)
    student = first.step.student.model
    before = {k: v.clone() for k, v in student.state_dict().items()}
    first.step.train()
    result = first.step(data.batch(), Progress())
    assert result.terms.keys() == {f"{name}_init"}
    moved = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == (set() if name == "ft" else before.keys() - {"fc.weight", "fc.bias"})
    second = next(stages)
    assert second.final and second.constant_lr is None
    second.step.train()
    result = second.step(data.batch(), Progress())
    if name == "ft":
        kept = {k: v.clone() for k, v in first.step.method.paraphraser.state_dict().items()}
        assert result.terms.keys() == {"cls", "div", "ft"} and not second.step.method.paraphraser.training
        now = second.step.method.paraphraser.state_dict()
        assert all(torch.equal(v, now[k]) for k, v in kept.items())
    else:
        assert result.terms.keys() == {"cls", "div"}


def test_first_stage_keeps_its_own_rate(commands, teacher, tmp_path):
    argv = ["--path_t", teacher, "--skip_validation", "--distill", "ft", "--init_epochs", 2, "--epochs", 2]
    argv += ["--lr_decay_epochs", 1, "--max_steps", 2, "--save_root", tmp_path, "--tb_backend", "none"]
    done = commands.student(*argv).finished()
    assert "ft: its first stage runs at learning rate 0.01" in done.out
    (rows,) = Path(tmp_path).glob("students/models/*_factor_*/metrics.jsonl")
    rates = [(row["stage"], row["lr"]) for row in map(json.loads, rows.read_text().splitlines())]
    assert rates == [(0, 0.01), (0, 0.01), (1, 0.05), (1, pytest.approx(0.005))]
