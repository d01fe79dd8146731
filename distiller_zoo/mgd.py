"""Masked Generative Distillation (Yang et al., ECCV 2022): sum (G(M * align(f_s)) - f_t)^2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._math import pool_to_smaller, squared_error
from distiller_zoo.base import LastMaps, WithoutKL


class MGD(LastMaps):
    """From the student's last map with random channels hidden, a generator rebuilds the teacher's: mean over B of sums.

    G: conv 3x3, ReLU, conv 3x3. The channels of a sample are hidden as a whole, as the paper does for classification.
    align: conv 1x1 where the channels differ; the larger map is pooled to the smaller.
    Weight and share are those published for ImageNet, resnet34 -> resnet18, without a logit KL; nothing is published
    for CIFAR-100. As a weight of the mean, 7e-5 amounts to 1.8 there (512x7x7) and to 1.1 for resnet8x4 (256x8x8).
    """

    name = "mgd"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 7e-5
        mask: float = option(
            0.15, "share of the student's channels that is hidden", "--mgd_mask", check=within(least=0, most=0.99)
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.rng = ctx.rng
        c_s, c_t = ctx.student.shapes[self.last_s][0], ctx.teacher.shapes[self.last_t][0]
        self.align = nn.Identity() if c_s == c_t else nn.Conv2d(c_s, c_t, 1)
        self.generate = nn.Sequential(nn.Conv2d(c_t, c_t, 3, padding=1), nn.ReLU(), nn.Conv2d(c_t, c_t, 3, padding=1))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        f_s, f_t = pool_to_smaller(s[self.last_s], t[self.last_t])
        f_s = self.align(f_s)
        drawn = torch.rand(f_s.shape[:2], generator=self.rng, device=f_s.device)
        kept = (drawn >= self.cfg.mask).to(f_s.dtype)[:, :, None, None]  # [B, C, 1, 1]
        return {**s, "mgd.generated": self.generate(f_s * kept)}, {**t, "mgd.target": f_t}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"mgd": squared_error(s["mgd.generated"], t["mgd.target"], "sum") / len(t["mgd.target"])}
