"""Distilling Knowledge via Knowledge Review (Chen et al., CVPR 2021, eq. 8): HCL of fused student maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, ModelSpec, Progress, Terms
from distiller_zoo._math import squared_error, warmed_up
from distiller_zoo._stages import pooled_tap, refuse_single_samples
from distiller_zoo.base import StagePairs, WithoutKL

WIDEST = 512  # of the fused maps
WARM_UP = 20  # epochs over which the weight grows to its full value


class Fusion(nn.Module):
    """Attention based fusion (ABF): a student map joined with what all deeper levels left, in the teacher's shape.

    Input [B, C_s, H, W] and residual [B, mid, h, w]; returns [B, C_t, *size_t] and the next residual [B, mid, *size_t].
    """

    def __init__(self, c_s: int, mid: int, c_t: int, size_s: Sequence[int], size_t: Sequence[int], deepest: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(c_s, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.conv2 = nn.Sequential(nn.Conv2d(mid, c_t, 3, padding=1, bias=False), nn.BatchNorm2d(c_t))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid())
        for conv in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.size_s, self.size_t = tuple(size_s), tuple(size_t)

    def forward(self, f_s: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = as_one_convolution(*self.conv1, f_s)
        if self.att_conv is None:
            x = F.conv2d(f_s, weight[..., None, None], bias)
        else:
            # gated before the convolution, where the map has fewer channels: a (W f + b) = W (a f) + b a
            own, deeper = self._attention(f_s, weight, bias, residual).chunk(2, 1)
            gated = torch.cat([f_s * own, own], 1)
            x = F.conv2d(gated, torch.cat([weight, bias[:, None]], 1)[..., None, None])
            x = x + deeper * F.interpolate(residual, self.size_s, mode="nearest")
        if self.size_s != self.size_t:
            x = F.interpolate(x, self.size_t, mode="nearest")
        return self.conv2(x), x

    def _attention(self, f_s: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        """att_conv of the normalised map and the enlarged residual: [B, 2, H, W]. Convolutions of size 1 follow each
        other as one, and commute with the enlargement: two channels suffice, and no map is joined."""
        conv, sigmoid = self.att_conv
        own, deeper = conv.weight.flatten(1).chunk(2, 1)
        enlarged = F.interpolate(F.conv2d(residual, deeper[..., None, None], conv.bias), self.size_s, mode="nearest")
        return sigmoid(F.conv2d(f_s, (own @ weight)[..., None, None], own @ bias) + enlarged)


def as_one_convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d, f: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [C', C] and bias [C'] of norm(conv(f)), for a convolution W of size 1 without bias and f [B, C, H, W].

    W f has the mean W mean(f) and the variance diag(W cov(f) W^T), so the map need not be computed to normalise it: it
    has more channels than f, and batch norm takes longer than the convolution. Updates the running statistics as norm
    does."""
    weight = conv.weight.flatten(1)
    if norm.training:
        if f.numel() == f.shape[1]:
            raise ValueError(f"batch norm has one value per channel in a map of {list(f.shape)}: use larger batches")
        with torch.autocast(f.device.type, enabled=False):
            values = f.permute(0, 2, 3, 1).flatten(0, 2).to(weight.dtype)
            count, mean = len(values), values.mean(0)
            values = values - mean
            variance = (weight @ (values.T @ values / count) * weight).sum(1).clamp_min(0)
            mean = weight @ mean
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return weight * scale[:, None], norm.bias - mean * scale


def hierarchical_context(f_s: Tensor, f_t: Tensor) -> Tensor:
    """HCL: the squared error of the maps and of their averages on 4x4, 2x2 and 1x1 grids, each half the weight of the
    one before; weights sum to one, grids no finer than the map itself are left out. Where the cells of a grid are whole
    cells of the grid before, they are averaged from that."""
    loss, weight, total = squared_error(f_s, f_t), 1.0, 1.0
    nested = not any(size % 4 for size in f_s.shape[2:])
    a, b = f_s, f_t
    for grid in (4, 2, 1):
        if grid < f_s.shape[2]:
            weight /= 2
            total += weight
            a, b = (F.adaptive_avg_pool2d(f, grid) for f in ((a, b) if nested else (f_s, f_t)))
            loss = loss + weight * F.mse_loss(a, b)
    return loss / total


class ReviewKD(StagePairs):
    """A student level reviews all deeper ones: fused from the pooled feature upwards, compared at each level.

    Sum over levels. Weight beta * min(epoch / 20, 1). Published beta: 5; 8 for ShuffleNetV2, 0.6 for resnet20. All
    shapes come from the networks; the published code lists them per pair.
    """

    name = "reviewkd"
    deepest = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 5.0

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        refuse_single_samples(ctx, self.name)
        shapes = [
            ((*ctx.student.shapes[a], 1, 1)[:3], (*ctx.teacher.shapes[b], 1, 1)[:3]) for a, b in self.pairs
        ]  # [C] of a pooled feature -> [C, 1, 1]
        mid = min(WIDEST, shapes[0][0][0])
        self.abfs = nn.ModuleList(
            Fusion(c_s, mid, c_t, size_s, size_t, deepest=i == 0)
            for i, ((c_s, *size_s), (c_t, *size_t)) in enumerate(shapes)
        )

    @classmethod
    def pairs_of(cls, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[str, str], ...]:
        """Pooled feature and stages of both networks side by side, the deepest first. The teacher's stages are read
        before their ReLU where it has taps there."""
        pairs = [(pooled_tap(student, cls.name), pooled_tap(teacher, cls.name))]
        for stage_s, stage_t in reversed(super().pairs_of(student, teacher)):
            before_relu = f"{stage_t}_preact"
            pairs.append((stage_s, before_relu if before_relu in teacher.taps else stage_t))
        return tuple(pairs)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added_s, added_t, residual = {}, {}, None
        for fuse, (a, b) in zip(self.abfs, self.pairs, strict=True):
            f_s, f_t = (f if f.ndim == 4 else f[:, :, None, None] for f in (s[a], t[b]))
            added_s[f"reviewkd.{a}"], residual = fuse(f_s, residual)
            added_t[f"reviewkd.{b}"] = f_t
        return {**s, **added_s}, {**t, **added_t}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        losses = [hierarchical_context(s[f"reviewkd.{a}"], t[f"reviewkd.{b}"]) for a, b in self.pairs]
        return {"reviewkd": torch.stack(losses).sum()}

    def weights(self, progress: Progress) -> dict[str, float]:
        weights = super().weights(progress)
        return {**weights, self.name: weights[self.name] * warmed_up(progress.epoch, WARM_UP)}
