"""The classic methods against literal transcriptions of their equations, float64, on random inputs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import Progress
from distiller_zoo.reviewkd import as_one_convolution
from tests.distiller_zoo.test_reference_losses import SIZES, TOLERANCE, B, K, arrays, features, maps, normal
from tests.support import reference_classic as reference
from tests.support.method_context import batch_of, build, run, side


def prepared(name: str, stages_s: list, stages_t: list, pooled: tuple[int, int] = (12, 14), stage=-1, **options):
    """A distiller in float64 with random weights, and features of both networks; pre-activations and stem included."""
    sides = [
        side(letter, stages, width, K) for letter, stages, width in zip("st", (stages_s, stages_t), pooled, strict=True)
    ]
    method = build(name, *sides, batch_size=B, stage=stage, **{"cls": 0.0, "div": 0.0, **options}).double()
    with torch.no_grad():
        for i, p in enumerate(method.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=i))
    both = []
    for stages, width, seed in ((stages_s, pooled[0], 1), (stages_t, pooled[1], 2)):
        f = features(stages, width, seed)
        f |= {f"{k}_preact": v + 0.1 for k, v in f.items() if k.startswith("stage")}
        if stages:
            f["stem"] = normal(B, *stages[0], seed=seed + 10)
        both.append(f)
    return method, *both


def term(method, s: dict[str, Tensor], t: dict[str, Tensor], progress: Progress | None = None) -> float:
    return run(method, s, t, batch_of(torch.arange(B) % K), progress)[0][method.name].item()


def stages(f: dict[str, Tensor]) -> list:
    return maps({k: v for k, v in f.items() if not k.endswith("_preact")})


def preacts(f: dict[str, Tensor]) -> list:
    return maps({k: v for k, v in f.items() if k.endswith("_preact")})


def vectors(*fs: dict[str, Tensor]) -> list:
    return [f["pooled"].numpy() for f in fs]


def test_cc():
    method, s, t = prepared("cc", [], [], feat_dim=5)
    assert term(method, s, t) == pytest.approx(reference.cc(*vectors(s, t), arrays(method)), **TOLERANCE)


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd(weights):
    method, s, t = prepared("rkd", [], [], distance=weights[0], angle=weights[1])
    s["pooled"][0] *= 20  # an outlier: the linear part of the Huber loss
    assert term(method, s, t) == pytest.approx(reference.rkd(*vectors(s, t), *weights), **TOLERANCE)


def test_pkt():
    method, s, t = prepared("pkt", [], [])
    assert term(method, s, t) == pytest.approx(reference.pkt(*vectors(s, t)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_nst(size_s, size_t):
    """Both ways to add up a kernel: few channels on large maps, and many on a small one."""
    method, s, t = prepared("nst", [(3, *size_s), (9, 2, 2)], [(5, *size_t), (7, 3, 3)])
    assert term(method, s, t) == pytest.approx(reference.nst(stages(s), stages(t)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_kdsvd(size_s, size_t):
    """More places than channels, and fewer."""
    widths = (5, 20, 6)
    stages_s = [(widths[0], *size_s), (widths[1], 3, 3), (widths[2], 4, 4)]
    stages_t = [(widths[0], *size_t), (widths[1], 4, 4), (widths[2], 2, 2)]
    method, s, t = prepared("kdsvd", stages_s, stages_t)
    assert term(method, s, t) == pytest.approx(reference.kdsvd(stages(s), stages(t)), **TOLERANCE)


@pytest.mark.parametrize("pooled", [(12, 14), (12, 12)])
def test_irg(pooled):
    method, s, t = prepared("irg", [], [], pooled)
    assert term(method, s, t) == pytest.approx(reference.irg(*vectors(s, t)), **TOLERANCE)


@pytest.mark.parametrize("without_edges", [False, True])
def test_irg_transform(without_edges):
    layers = {"transform_layer_s": (0, 1, 1, 2), "transform_layer_t": (0, 1, 2, 3), "no_edge_transform": without_edges}
    shapes = [(3, 4, 4), (5, 2, 2)], [(4, 4, 4), (6, 2, 2), (6, 2, 2)]
    method, s, t = prepared("irg", *shapes, **layers)
    (f_1, f_2), (g_1, g_2, g_3) = stages(s), stages(t)
    expected = reference.irg(*vectors(s, t))
    expected += reference.irg_transform((s["stem"].numpy(), f_1), (t["stem"].numpy(), g_1), not without_edges)
    expected += reference.irg_transform((f_1, f_2), (g_2, g_3), not without_edges)
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "epoch", "weights"),
    [
        ({}, 1, [100, 100, 1]),
        ({}, 4, [34.3, 34.3, 1]),
        ({"layer_weights": "semckd"}, 4, [100, 1, 1]),
    ],
)
def test_hkd(options, epoch, weights):
    shapes = [(3, 6, 6), (4, 4, 4), (6, 2, 2)], [(5, 6, 6), (3, 3, 3), (8, 2, 2)]
    method, s, t = prepared("hkd", *shapes, **options)
    expected = reference.hkd(stages(s), stages(t), weights)
    assert term(method, s, t, Progress(epoch=epoch, epochs=9)) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("size_s", "size_t"), [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 8), (3, 3)), ((7, 5), (7, 5))]
)
def test_ab(size_s, size_t):
    method, s, t = prepared("ab", [(3, *size_s), (4, 2, 2)], [(5, *size_t), (4, 2, 2)], stage=0)
    assert term(method, s, t) == pytest.approx(reference.ab(preacts(s), preacts(t), arrays(method)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_ft(size_s, size_t):
    shapes = [(3, 8, 8), (4, *size_s)], [(5, 8, 8), (6, *size_t)]
    method, s, t = prepared("ft", *shapes)
    assert term(method, s, t) == pytest.approx(reference.ft(stages(s)[-1], stages(t)[-1], arrays(method)), **TOLERANCE)
    first, s, t = prepared("ft", *shapes, stage=0)
    assert term(first, s, t) == pytest.approx(reference.ft_init(stages(t)[-1], arrays(first)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_fsp(size_s, size_t):
    shapes = [(3, *size_s), (4, 2, 2), (5, 3, 3)], [(3, *size_t), (4, 2, 2), (5, 1, 1)]
    method, s, t = prepared("fsp", *shapes, stage=0)
    chains = ([f["stem"].numpy(), *stages(f)] for f in (s, t))
    assert term(method, s, t) == pytest.approx(reference.fsp(*chains), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_ofd(size_s, size_t):
    method, s, t = prepared("ofd", [(3, 4, 4), (4, *size_s), (2, 2, 2)], [(5, 4, 4), (6, *size_t), (3, 2, 2)])
    t["stage3_preact"].abs_()  # channels without a negative value
    assert term(method, s, t) == pytest.approx(reference.ofd(preacts(s), preacts(t), arrays(method)), **TOLERANCE)


def test_ofd_pairs_the_deepest_stages():
    method, s, t = prepared("ofd", [(3, 4, 4), (4, 2, 2)], [(7, 8, 8), (5, 4, 4), (6, 2, 2)])
    expected = reference.ofd(preacts(s), preacts(t)[1:], arrays(method))
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
@pytest.mark.parametrize("more", [0, 1])
def test_reviewkd(size_s, size_t, more):
    """more: stages that the teacher has and the student lacks; the deepest levels are compared."""
    stages_s, stages_t = [(3, *size_s), (4, 3, 3)], [(7, 9, 9)] * more + [(5, *size_t), (6, 4, 4)]
    method, s, t = prepared("reviewkd", stages_s, stages_t)
    levels_s, levels_t = (
        [f["pooled"].numpy()[:, :, None, None], *reversed(m)] for f, m in ((s, stages(s)), (t, preacts(t)))
    )
    expected = reference.reviewkd(levels_s, levels_t, arrays(method))
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


def test_reviewkd_normalises_without_the_map():
    """Loss, gradients and running statistics are those of the convolution and its batch norm, one after the other; in
    evaluation, too."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 1, bias=False).double(), nn.BatchNorm2d(8).double()
    nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
    ours, usual = (copy.deepcopy(nn.Sequential(conv, norm)) for _ in range(2))
    f_ours, f_usual = (torch.randn(4, 3, 5, 5).double().add(2).requires_grad_() for _ in range(2))
    f_usual.data.copy_(f_ours.data)
    target = torch.randn(4, 8, 5, 5).double()
    for training in (True, True, False):
        ours.train(training), usual.train(training)
        weight, bias = as_one_convolution(*ours, f_ours)
        losses = F.mse_loss(F.conv2d(f_ours, weight[..., None, None], bias), target), F.mse_loss(usual(f_usual), target)
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    torch.testing.assert_close(ours.state_dict(), usual.state_dict())
    assert all(x.grad is not None for x in ours.parameters())
    torch.testing.assert_close(
        [f_ours.grad, *(x.grad for x in ours.parameters())], [f_usual.grad, *(x.grad for x in usual.parameters())]
    )


def test_reviewkd_warms_up():
    method, *_ = prepared("reviewkd", [(3, 4, 4)], [(3, 4, 4)])
    weights = [method.weights(Progress(epoch=e, epochs=99))["reviewkd"] for e in (1, 10, 20, 60)]
    assert weights == pytest.approx([0.25, 2.5, 5.0, 5.0])


@pytest.mark.parametrize(("width", "mid"), [(20, 20), (512, 512), (600, 512)])
def test_reviewkd_fuses_in_the_width_of_the_pooled_feature(width, mid):
    """At most 512 channels, as published."""
    sides = (side("s", [(3, 2, 2)], width, 4), side("t", [(3, 2, 2)], 5, 4))
    assert [fuse.conv1[0].out_channels for fuse in build("reviewkd", *sides).abfs] == [mid, mid]


def test_one_value_per_channel_is_refused_as_by_batch_norm():
    norm = nn.BatchNorm2d(7)
    with pytest.raises(ValueError, match="one value per channel"):
        as_one_convolution(nn.Conv2d(5, 7, 1, bias=False), norm, torch.ones(1, 5, 1, 1))
    assert norm.running_var.isfinite().all() and norm.num_batches_tracked == 0
