"""CAKD against the published numbers, literal transcriptions of its equations, and the list of what must hold."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.log import log
from core.protocols import Progress, Side, Tap, UserError
from distiller_zoo import method_dict
from distiller_zoo._multiview import multi_view
from distiller_zoo._task import thawed
from distiller_zoo.cakd import CAKD, GroupLinear, MapCritic, distil_point
from helper.training.stages import warn_of_late_terms
from models import model_dict
from tests.golden.rule import fill_array, fill_module, rand
from tests.helper.test_resume import assert_same
from tests.support.cases import ALL
from tests.support.commands import DIGITS, squeezed
from tests.support.contract import PROGRESS, make_step
from tests.support.logs import records
from tests.support.method_context import batch_of, build, run, spec
from tests.support.run_folders import rows_of
from tests.support.toys import B, ToyData, network

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cakd.json").read_text())["resnet50_cakd"]
VIT_B = {"qkv": (3, 12, 197, 64), "patches": (196, 768), "class_token": (768,), "logits": (1000,)}
SMALL = {"qkv": (3, 2, 26, 3), "patches": (25, 6), "class_token": (6,), "logits": (5,)}  # a grid of 5 x 5
ALL_PARTS = "gl+pca+mv"


def vit(shapes=SMALL, name="vit", taps=("qkv", "patches", "class_token")) -> Side:
    known = dataclasses.replace(spec(name, 0), taps={k: Tap(k) for k in taps}, input_shape=(3, 40, 40))
    return Side(known, nn.Linear(shapes["patches"][-1], shapes["logits"][0]), shapes, (3, 40, 40))


def cnn(maps=((4, 10, 10), (8, 5, 5)), pooled=8, classes=5, size=40, name="cnn") -> Side:
    known = dataclasses.replace(spec(name, len(maps)), input_shape=(3, size, size))
    shapes = {f"stage{i}": tuple(shape) for i, shape in enumerate(maps, 1)}
    return Side(
        known, nn.Linear(pooled, classes), shapes | {"pooled": (pooled,), "logits": (classes,)}, (3, size, size)
    )


def cakd(student=None, teacher=None, **options):
    return build("cakd", student or cnn(), teacher or vit(), **options)


def features(student=None, teacher=None, batch=3, dtype=torch.float32):
    """Random features of both networks, the student's with gradient."""
    torch.manual_seed(1)
    student, teacher = student or cnn(), teacher or vit()
    s = {k: torch.randn(batch, *v, dtype=dtype, requires_grad=True) for k, v in student.shapes.items()}
    return s, {k: torch.randn(batch, *v, dtype=dtype) for k, v in teacher.shapes.items()}


RESNET50 = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))


def resnet50(**options):
    student = cnn(RESNET50, 2048, 1000, 224, "ResNet50")
    return cakd(student, vit(VIT_B), parts="gl+pca", **options)


# ---- golden numbers of the published code


def fill_published(method: CAKD) -> None:
    """The deterministic fill under the published key names, whose linear groups are sixteen layers."""
    state = {k: torch.from_numpy(fill_array(k, tuple(v.shape))).float() for k, v in method.state_dict().items()}
    for leaf in ("weight", "bias"):
        shape = tuple(method.gl_proj.state_dict()[leaf].shape[1:])
        groups = [fill_array(f"gl_proj.layers.fc_layer_{i}.{leaf}", shape) for i in range(16)]
        state[f"gl_proj.{leaf}"] = torch.stack([torch.from_numpy(g) for g in groups]).float()
    method.load_state_dict(state)


def test_cakd_golden_code_variant():
    method, model = resnet50(variant="code"), model_dict["ResNet50"](num_classes=1000)
    dead = 1024 * 1024 + 1024  # pca_proj.to_out, which no output of the published network depends on
    count = sum(p.numel() for p in (*model.parameters(), *method.parameters()))
    assert count + dead == GOLDEN["params"]
    published = dict((k, tuple(v)) for k, v in GOLDEN["keys"])
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()}.items() <= published.items()
    for key in ("pca_proj.to_qkv.weight", "cls_proj.weight", "cls_proj.bias"):
        assert tuple(method.state_dict()[key].shape) == published[key]

    fill_module(model)
    fill_published(method)
    from core.taps import TappedNet

    model_spec = dataclasses.replace(model_dict["ResNet50"], mean=None, std=None)
    net = TappedNet(model, model_spec, ("stage3", "pooled")).eval()
    method.eval()
    with torch.no_grad():
        s = net({"image": rand((2, 3, 224, 224), 1000)})
        s, _ = method.connect(s, {"qkv": torch.zeros(2, *VIT_B["qkv"])})
    got = (s["logits"], s["cakd.map"], s["cakd.values"], s["cakd.patches"], s["cakd.class_token"])
    logits, maps, patches, token = GOLDEN["outputs"]
    for tensor, want in zip(got, (logits, *maps, patches, token), strict=True):
        assert list(tensor.shape) == want["shape"]
        scale = want["l2"] / math.sqrt(tensor.numel())
        assert tensor.norm().item() == pytest.approx(want["l2"], rel=1e-3)
        assert tensor.mean().item() == pytest.approx(want["mean"], rel=1e-3, abs=1e-4 * scale)
        torch.testing.assert_close(tensor.flatten()[:6], torch.tensor(want["first"]), rtol=1e-3, atol=1e-4 * scale)


# ---- the checks of a rebuild


@pytest.mark.parametrize(("grid", "sizes"), [(14, [16, 16, 16, 8] * 3 + [8, 8, 8, 4]), (7, [16, 12, 12, 9])])
def test_cakd_groups_partition_the_grid(grid, sizes):
    """Which places react to which group: 4 x 4 neighbourhoods, cropped at the right and at the bottom."""
    layer = GroupLinear(1, 1, grid, 0.0)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(len(sizes)).float()[:, None])
        group = layer(torch.zeros(1, 1, grid, grid))[0, :, 0].long()
    side = -(-grid // 4)
    want = [(r // 4) * side + c // 4 for r in range(grid) for c in range(grid)]
    assert group.tolist() == want
    assert group.bincount().tolist() == sizes and sum(sizes) == grid**2


def test_cakd_group_linear_equals_one_linear_layer_per_group():
    torch.manual_seed(0)
    layer, f = GroupLinear(3, 2, 6, 0.0).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    out = layer(f)
    for place in range(36):
        row, column = divmod(place, 6)
        group = (row // 4) * 2 + column // 4
        want = F.linear(f[:, :, row, column], layer.weight[group], layer.bias[group])
        torch.testing.assert_close(out[:, place], want, rtol=1e-12, atol=1e-12)


def test_cakd_parameter_counts_of_resnet50():
    code, paper = resnet50(variant="code"), resnet50()
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in code.named_children()}
    assert count["gl_proj"] == 12_595_200 and count["cls_proj"] == 1_573_632 and count["pca_proj"] == 3 * 1024**2
    assert sum(p.numel() for p in MapCritic().parameters()) == 44_393
    assert code.stage == paper.stage == "stage3"
    assert sum(p.numel() for p in paper.pca_proj.parameters()) == 3 * 9 * 1024 * 768
    assert [m for m in paper.modules() if isinstance(m, nn.Dropout)][0].p == 0.1


def test_cakd_map_critic_goes_down_as_published():
    x, sides = torch.zeros(2, 1, 196, 196), []
    for layer in MapCritic().layers:
        x = layer(x)
        sides.append(x.shape[-1])
    assert list(dict.fromkeys(sides)) == [98, 49, 24, 23, 22]
    assert MapCritic()(torch.zeros(2, 196, 196)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("case", ["cakd-resnet8-vit_micro_cifar", "cakd-code"])
def test_cakd_adversarial_signal(case):
    """The critic learns from real and from fake, the student from the generator term, the teacher from nothing."""
    method, cfg, student, teacher, data = ALL[case]
    step = make_step(method, cfg, student, teacher, data, B)
    step.train()
    s, t = step.objective.features(step.method.prepare(data.batch()))
    stem = step.student.model.conv1.weight
    adversarial = step.method.terms(s, t, data.batch(), PROGRESS)["cakd_adv"]
    assert torch.autograd.grad(adversarial, stem)[0].abs().sum() > 0
    params = step.objective.isolated[0].params()
    with thawed(params):
        for real, fake in ((t, s), (s, t)):
            parts = [step.method.critic(step.method._judged(f)).mean() for f in (real, fake)]
            for part in parts:
                assert any(g.abs().sum() > 0 for g in torch.autograd.grad(part, params, retain_graph=True))
        detached = [{k: v.detach() for k, v in f.items()} for f in (s, t)]
        step.method._critic_terms(*detached, data.batch(), PROGRESS)["cakd_critic"].backward()
        assert all(p.grad is not None for p in params)
    step(data.batch(), PROGRESS)
    assert all(p.grad is None for p in step.teacher.net.parameters())
    assert not any(v.requires_grad for v in step.teacher.features(data.batch(), step.objective.taps).values())


def test_cakd_critic_steps_by_itself_and_every_nth_time():
    method, cfg, student, teacher, data = ALL["cakd-resnet8-vit_micro_cifar"]
    step = make_step(method, dataclasses.replace(cfg, every=3), student, teacher, data, B)
    step.train()
    seen = ["cakd_critic" in step(data.batch(), Progress(1, 1, i, 6)).terms for i in range(6)]
    assert seen == [True, False, False, True, False, False]
    assert CAKD.Config().every == 0 and cakd().extra_phases()[0].every == 5
    assert cakd(variant="code").extra_phases()[0].every == 1
    assert cakd(variant="code").extra_phases()[0].lr_scale == 0.01


# ---- the equations, in float64


def double(method):
    return method.double().eval()


def heads_of(flat, heads):
    """[B, P, H * d] -> [B, H, P, d]."""
    return torch.stack(flat.chunk(heads, -1), 1)


@pytest.mark.parametrize("replace", [0.0, 0.5, 1.0])
def test_cakd_paper_terms(replace):
    """Eq. 1-5 and 7, with the entries that the generator of the run chose."""
    torch.manual_seed(0)
    method = double(cakd(replace=replace))
    s, t = features(dtype=torch.float64)
    drawn = torch.Generator().manual_seed(1)  # as the run's
    choice = torch.rand((3, 3, 2, 25, 3), generator=drawn)
    terms, s_out, _ = run(method, s, t, batch_of(torch.arange(3)))

    weight = method.pca_proj.to_qkv.weight  # [3 * D, C, 3, 3]
    own = [heads_of(F.conv2d(s["stage2"], w, padding=1).flatten(2).mT, 2) for w in weight.chunk(3)]
    theirs = [m[:, :, 1:] for m in t["qkv"].unbind(1)]
    mixed = [torch.where(choice[:, i] < replace, theirs[i], own[i]) for i in range(3)]

    def attention(q, k, v):
        return ((q @ k.mT) / 3**0.5).softmax(-1) @ v

    pca = (attention(*theirs) - attention(*mixed)).pow(2).mean()
    v_s, v_t = own[2], theirs[2]
    pca = pca + (v_t @ v_t.mT / 3**0.5 - v_s @ v_s.mT / 3**0.5).pow(2).mean()
    torch.testing.assert_close(terms["cakd_pca"], pca, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        terms["cakd_gl"], (s_out["cakd.patches"] - t["patches"]).pow(2).mean(), rtol=1e-10, atol=0
    )
    probability = torch.sigmoid(method.critic(s_out["cakd.patches"]))
    torch.testing.assert_close(terms["cakd_adv"], (1 - probability).log().mean(), rtol=1e-10, atol=0)
    real = torch.sigmoid(method.critic(t["patches"]))
    critic = method._critic_terms(s_out, t, batch_of(torch.arange(3)), Progress())["cakd_critic"]
    torch.testing.assert_close(critic, (-real.log() - (1 - probability).log()).mean(), rtol=1e-10, atol=0)
    if replace == 1:
        torch.testing.assert_close(attention(*mixed), attention(*theirs))


@pytest.mark.parametrize("vv_scaled", [False, True])
def test_cakd_code_terms(vv_scaled):
    """As published, head by head, with the discriminator's view of the student attached."""
    torch.manual_seed(0)
    student, teacher = cnn(((4, 10, 10), (32, 5, 5)), 8), vit()
    method = double(cakd(student, teacher, variant="code", vv_scaled=vv_scaled))
    s, t = features(student, teacher, dtype=torch.float64)
    terms, s_out, t_out = run(method, s, t, batch_of(torch.arange(3)))

    tokens = s["stage2"].flatten(2).mT  # [B, P, C], 16 heads of 2
    q, k, v = (heads_of(F.linear(tokens, w), 16) for w in method.pca_proj.to_qkv.weight.chunk(3))
    qk, vv = ((a @ b.mT / 2**0.5).mean(1) for a, b in ((q, k), (v, v)))
    q_t, k_t, v_t = (m[:, :, 1:] for m in t["qkv"].unbind(1))
    qk_t, vv_t = (q_t @ k_t.mT / 3**0.5).mean(1), (v_t @ v_t.mT).mean(1) / (3**0.5 if vv_scaled else 1)
    pca = 0.2 * (qk - qk_t).pow(2).mean() + 0.05 * (vv - vv_t).pow(2).mean()
    torch.testing.assert_close(terms["cakd_pca"], pca, rtol=1e-10, atol=0)
    token = F.linear(s["pooled"], method.cls_proj.weight, method.cls_proj.bias)
    gl = (s["logits"] - t["logits"]).pow(2).mean() + (token - t["class_token"]).pow(2).mean()
    gl = gl + 0.05 * (s_out["cakd.patches"] - t["patches"]).pow(2).mean()
    torch.testing.assert_close(terms["cakd_gl"], gl, rtol=1e-10, atol=0)

    def bce(score, label):
        return F.binary_cross_entropy_with_logits(score, torch.full_like(score, label))

    fake, real = method.critic(qk), method.critic(qk_t)
    torch.testing.assert_close(terms["cakd_adv"], bce(fake, 1.0), rtol=1e-8, atol=1e-12)
    critic = method._critic_terms(s_out, t_out, batch_of(torch.arange(3)), Progress())["cakd_critic"]
    torch.testing.assert_close(critic, 0.5 * (bce(real, 1.0) + bce(fake, 0.0)), rtol=1e-8, atol=1e-12)


def test_cakd_ramp_of_the_code_variant():
    method = cakd(variant="code")
    shares = {e: method.weights(Progress(epoch=e + 1, epochs=120))["cakd_gl"] for e in (0, 25, 26, 30, 35, 36, 119)}
    assert shares == pytest.approx({0: 0, 25: 0, 26: 0.02, 30: 0.1, 35: 0.2, 36: 0.2, 119: 0.2})
    weights = cakd(beta=2.0).weights(Progress())
    assert (weights["cakd_pca"], weights["cakd_gl"], weights["cakd_adv"]) == (2.0, 2.0, 0.2)


@pytest.mark.parametrize(("epochs", "silent"), [(26, True), (27, False)])
def test_a_run_that_ends_before_the_terms_count_says_so(caplog, monkeypatch, epochs, silent):
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level("WARNING"):
        warn_of_late_terms(cakd(variant="code"), epochs)
    words = "the weight of cakd_gl + cakd_pca + cakd_adv is 0 before epoch 27, but --epochs is 26"
    assert (words in caplog.text) == silent == bool(caplog.text)
    warn_of_late_terms(cakd(), 1)
    warn_of_late_terms(cakd(variant="code", beta=0.0), 1)
    assert len(records(caplog)) == silent


def test_logits_term():
    s, t = torch.randn(4, 5), torch.randn(4, 5)
    side_s = cnn()
    terms, _, _ = run(build("logits", side_s, vit()), {"logits": s}, {"logits": t}, batch_of(torch.arange(4)))
    torch.testing.assert_close(terms["logits"], sum((s - t).flatten() ** 2) / 20)
    assert method_dict["baseline"] is method_dict["vanilla"]


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_cakd_parts_are_left_out(variant):
    seen = {}
    for parts in ("gl", "gl+pca", ALL_PARTS):
        method = cakd(variant=variant, parts=parts)
        terms, _, _ = run(method, *features(), batch_of(torch.arange(3)))
        seen[parts] = (sorted(k for k in terms if k.startswith("cakd")), len(method.extra_phases()))
        assert hasattr(method, "critic") == (parts == ALL_PARTS)
    assert seen == {
        "gl": (["cakd_gl"], 0),
        "gl+pca": (["cakd_gl", "cakd_pca"], 0),
        ALL_PARTS: (["cakd_adv", "cakd_gl", "cakd_pca"], 1),
    }


# ---- other views


def test_multi_view_changes_about_half_of_the_batch_and_leaves_the_rest_alone():
    x = torch.rand(200, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    out = multi_view(x, torch.Generator().manual_seed(0))
    changed = (out != x).flatten(1).any(1)
    assert 70 < changed.sum() < 130 and out.shape == x.shape
    assert torch.equal(out[~changed], x[~changed])
    assert out.min() >= 0 and out.max() <= 1 and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, multi_view(x, torch.Generator().manual_seed(0)))
    assert torch.equal(multi_view(x, torch.Generator(), share=0.0), x)


def test_the_teacher_sees_the_image_itself():
    method, cfg, student, teacher, data = ALL["cakd-resnet8-vit_micro_cifar"]
    step = make_step(method, cfg, student, teacher, data, B)
    batch = data.batch()
    prepared = step.method.prepare(batch)
    assert prepared.teacher_inputs is batch.inputs and prepared.crop is None
    assert not torch.equal(prepared.inputs["image"], batch.inputs["image"])
    for case in ("cakd-code", "cakd-gl+pca"):
        method, cfg, student, teacher, data = ALL[case]
        assert make_step(method, cfg, student, teacher, data, B).method.prepare(batch) is batch


# ---- what does not fit


def test_distil_point():
    """Stride 16, or the teacher's own where it is finer; of equals the deepest."""
    vgg = cnn(((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)), size=32)
    assert distil_point(vgg, vit(), 8) == "stage3" and distil_point(vgg, vit(), 4) == "stage5"
    net = cnn(RESNET50, size=224)
    assert [distil_point(net, vit(), grid) for grid in (28, 14, 7)] == ["stage2", "stage3", "stage3"]


@pytest.mark.parametrize("maps", [((8, 10, 10),), ((8, 3, 3),), ((8, 5, 5),)])
def test_a_map_of_another_size_is_brought_to_the_grid(maps):
    student = cnn(maps)
    terms, s, _ = run(cakd(student), *features(student), batch_of(torch.arange(3)))
    assert s["cakd.patches"].shape == (3, 25, 6)
    terms["cakd_gl"].backward()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cakd(cnn(((8, 40, 40), (8, 20, 20)))), "near stride 8 .*5x5 patches of vit.*stage2 20x20"),
        (
            lambda: cakd(teacher=vit({**SMALL, "qkv": (3, 2, 25, 3), "patches": (24, 6)})),
            "square grid .* vit has 24 patch tokens and attention over 25",
        ),
        (
            lambda: cakd(teacher=vit({**SMALL, "qkv": (3, 2, 17, 3), "patches": (16, 6)}), variant="code"),
            "at least 24x24, but vit has 4x4 patches, a map of 16x16",
        ),
        (lambda: cakd(cls=0.0), "raise -c or -d"),
        (lambda: cakd(replace=1.5), "--cakd_replace 1.5 must be at least 0 and at most 1"),
        (lambda: cakd(every=-1), "--cakd_every -1"),
    ],
)  # fmt: skip
def test_cakd_refuses(make, words):
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("student", "teacher", "options", "words"),
    [
        ("resnet8", "resnet8x4", {}, "resnet8x4 has no attention of a supported kind.*vit_tiny_cifar"),
        ("torchvision:swin_t", "vit_micro_cifar", {}, "swin_t has no stage maps.*choose a CNN"),
        ("resnet8", "torchvision:swin_t", {"variant": "code"}, "class token, but torchvision:swin_t has none"),
        ("resnet8", "vit_micro_cifar", {"stage": "stage9"}, "stage9 is not a stage of resnet8; it has stage1"),
    ],
)  # fmt: skip
def test_cakd_refuses_networks(student, teacher, options, words):
    with pytest.raises(UserError, match=words):
        CAKD.needs(CAKD.Config(**options), model_dict[student], model_dict[teacher])
    assert CAKD.needs(CAKD.Config(), model_dict["resnet8"], model_dict["torchvision:swin_t"])


# ---- whole runs


@pytest.fixture(scope="module")
def vit_teacher(commands, tmp_path_factory):
    root = tmp_path_factory.mktemp("vit")
    commands(
        "train_teacher.py", *DIGITS, "--image_size", 16, "--model", "vit_micro_cifar", "--epochs", 1, "--max_steps", 3,
        "--tb_backend", "none", "--save_root", root,
    ).finished()  # fmt: skip
    (folder,) = (root / "teachers" / "models").glob("vit_micro_cifar_vanilla_digits_trial_0_*")
    return folder


SETTINGS = ("--distill", "cakd", "--epochs", 2, "--few_ratio", 0.05, "--batch_size", 30, "--tb_backend", "none")
SETTINGS += ("--skip_validation", "--cakd_every", 2, "--learning_rate", 0.001, "--image_size", 16)


# the other critic is kept and restored in test_contract.py
@pytest.mark.parametrize("variant", ["paper", pytest.param("code", marks=pytest.mark.slow)])
def test_cakd_resumes_exactly(commands, vit_teacher, tmp_path, variant):
    """Interrupted in mid-epoch and in the middle of the critic's period, all files are those of the whole run."""
    argv = ("--path_t", vit_teacher / "vit_micro_cifar_best.pth", *SETTINGS, "--cakd_variant", variant)
    argv += ("--cakd_start", 0, "--image_size", 32 if variant == "code" else 16)  # its critic needs a larger grid
    folders = []
    for root, at in ((tmp_path / "whole", ()), (tmp_path / "cut", (1, 4))):
        for step in at:
            assert commands.student(*argv, "--save_root", root, signals=[[step, 15]]).code == 143
        commands.student(*argv, "--save_root", root).finished()
        folders.append(next((root / "students" / "models").iterdir()))
    assert_same(folders[1], folders[0])
    rows = rows_of(folders[0])
    assert {"train_cakd_gl", "train_cakd_pca", "train_cakd_adv"} <= rows[-1].keys()
    last, best = (torch.load(folders[0] / f"resnet8_{n}.pth", weights_only=True) for n in ("last", "best"))
    momentum = last["step_state"]["optimizers"]["cakd.critic"]["state"]
    assert momentum and all(v["momentum_buffer"].abs().sum() > 0 for v in momentum.values())
    assert any("critic" in k for k in last["step_state"]["trained"])
    plain = model_dict["resnet8"](num_classes=10).state_dict()
    assert best["model"].keys() == plain.keys() and "proj" not in best, "only the student is taken away"


def test_cakd_in_two_processes(commands, vit_teacher, tmp_path):
    """A whole run on two halves of each batch; the critic's own optimiser steps on the mean of both."""
    argv = ("--path_t", vit_teacher / "vit_micro_cifar_best.pth", *SETTINGS, "--epochs", 1, "--cakd_every", 1)
    done = commands.student(*argv, "--save_root", tmp_path, ranks=2).finished()
    assert done.out.count("==> training...") == 1
    folder = next((tmp_path / "students" / "models").iterdir())
    (row,) = rows_of(folder)
    assert {f"train_cakd_{term}" for term in ("gl", "pca", "adv", "critic")} <= row.keys()
    last = torch.load(folder / "resnet8_last.pth", weights_only=True)
    assert len(last["ranks"]) == 2
    assert last["step_state"]["optimizers"]["cakd.critic"]["state"]


def test_cakd_teacher_without_attention_is_one_sentence(commands, teacher, tmp_path):
    done = commands.student("--distill", "cakd", "--path_t", teacher, "--save_root", tmp_path, "--skip_validation")
    done.refused("cakd reads attention that is a softmax", "resnet8 has no attention of a supported kind")


def test_other_methods_learn_from_a_transformer():
    """at and fitnet read its blocks as maps, pkt its class token."""
    data = ToyData(image=(3, 32, 32))
    for name in ("at", "fitnet", "pkt"):
        method = method_dict[name]
        step = make_step(
            method, method.Config(), model_dict["resnet8"], lambda: network(model_dict["vit_micro_cifar"]), data, B
        )
        step.train()
        assert torch.isfinite(step(data.batch(), PROGRESS).loss)


# ---- scripts


def test_robustness(commands, vit_teacher, tmp_path):
    """Noise is the same for every checkpoint."""
    best = vit_teacher / "vit_micro_cifar_best.pth"
    spoil = ("--dataset", "digits", "--data_folder", tmp_path, "--noise", 0.1, 3)
    done = commands("scripts/cakd/robustness.py", "--path", best, best, *spoil, "--out", tmp_path / "t.md").finished()
    header, _, first, second = squeezed((tmp_path / "t.md").read_text()).splitlines()
    assert header == "| checkpoint | px | clean | noise 0.1 | noise 3 | views |" and first == second
    assert first in squeezed(done.out)
    commands("scripts/cakd/robustness.py", "--path", best, *spoil[:-2], -1).refused("--noise -1.0")

    short = ("--image_size", 8, "--epochs", 1, "--max_steps", 1, "--tb_backend", "none")
    commands.student("--distill", "baseline", *short, "--save_root", tmp_path / "small").finished()
    (small,) = (p / "resnet8_best.pth" for p in (tmp_path / "small/students/models").iterdir() if not p.is_symlink())
    sizes = [], ["--image_size", 12]
    rows = [
        commands("scripts/cakd/robustness.py", "--path", small, best, *spoil[:-1], *s).finished().out for s in sizes
    ]
    assert [[line.split(" | ")[1] for line in squeezed(out).splitlines()[2:]] for out in rows] == [
        ["8", "16"],
        ["12", "12"],
    ]
    out = commands("test_model.py", "--path", small, *spoil[:4]).finished().out
    clean = rows[0].splitlines()[2].split(" | ")[2]
    assert f"top-1 {clean} " in out and "recorded in the file" in out and "warning" not in out
